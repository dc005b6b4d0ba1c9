"""What workers say of themselves, and what is made of it: real files, real processes, real kills."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
from optuna.trial import TrialState

from tests.support.made_studies import make_study, trial, url_of
from train.records.results import study_folder
from train.records.stored import StudyFile
from train.run import Progress
from train.store.worker_identity import GRACE_S, is_running, start_ticks, this_worker
from train.store.worker_status import StatusFile, WorkerStatus, read_statuses, status_path
from train.study.progress import Reporter
from train.study.search_space import build_space
from train.watch.machine import Meter
from train.watch.snapshot import take_snapshot
from train.watch.workers import ALIVE, DEAD, SILENT, UNKNOWN, find_workers, results_folder

SETTINGS = SimpleNamespace(train={"total_env_steps": 1000, "batch_size": 10, "horizon_len": 5, "n_envs": 4})
FOLD = SimpleNamespace(index=2)


def progress(env_steps: int, score: float | None = None) -> Progress:
    return Progress(env_steps, 1000, 1, 60, 2.0, 3.0, 0.0, 0.0, (), score, False)


@pytest.fixture
def other_process():
    """Another worker's process."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


def signed(process: subprocess.Popen) -> dict:
    began = {"started": psutil.Process(process.pid).create_time(), "started_ticks": start_ticks(process.pid)}
    return vars(this_worker()) | {"pid": process.pid} | began


def write_status(folder, worker: dict, updated: float | None = None, **said) -> None:
    path = status_path(folder, worker["host"], worker["pid"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(worker | {"updated": updated or time.time()} | said))


# ------------------------------------------------------------------------------------------------------------ the file
def test_a_reporter_says_how_far_it_is_no_more_often_than_it_should_and_leaves_nothing(tmp_path, lab):
    with StatusFile(tmp_path, every_s=0.3) as status:
        reporter = Reporter(lab.open(), build_space(), 6, 5, status)
        assert read_statuses(tmp_path)[0].trial is None
        with reporter.progress_bar(7, SETTINGS, FOLD) as tell:
            begun = read_statuses(tmp_path)[0]
            assert (begun.trial, begun.split, begun.n_splits, begun.env_steps) == (7, 2, 6, 0)
            tell(progress(100, score=0.5))  # too early
            assert read_statuses(tmp_path) == [begun]
            time.sleep(0.35)
            tell(progress(200))
        (told,) = read_statuses(tmp_path)
        # 200 steps in 2 s; 60 gradient steps of 10 samples in 3 s
        assert (told.env_steps, told.explore_steps_per_s, told.update_samples_per_s) == (200, 100.0, 200.0)
        assert (told.validation_score, told.total_env_steps) == (0.5, 1000)
        assert told.rss_bytes > 1_000_000
        with reporter.progress_bar(7, SETTINGS, FOLD):
            (next_split,) = read_statuses(tmp_path)
        assert (next_split.env_steps, next_split.explore_steps_per_s) == (0, 100.0)  # until it knows better
        assert (told.pid, told.host) == (this_worker().pid, this_worker().host)
    assert list((tmp_path / "workers").iterdir()) == []


def test_a_stand_in_for_the_trainer_needs_no_status(lab):
    with Reporter(lab.open(), build_space(), 6, 5).progress_bar(7, SETTINGS, FOLD) as tell:
        tell(progress(100))


def test_telling_costs_microseconds(tmp_path, lab):
    """Against updates of milliseconds at least. The bound is a hundred times what it takes."""
    with StatusFile(tmp_path) as status:
        reporter = Reporter(lab.open(), build_space(), 6, 5, status)
        with reporter.progress_bar(7, SETTINGS, FOLD) as tell:
            began = time.process_time()
            for n in range(1000):
                tell(progress(n % 1000))
            assert time.process_time() - began < 0.5


def test_a_worker_removes_what_killed_ones_of_its_machine_left(tmp_path, other_process):
    write_status(tmp_path, signed(other_process))
    dead = signed(other_process) | {"started_ticks": 1}  # the pid was another process's then
    write_status(tmp_path, dead | {"pid": 2**22 + 1})
    write_status(tmp_path, {"host": "elsewhere", "pid": 5, "started": 1.0}, updated=1.0)
    earlier = vars(this_worker()) | {"machine": "before it was started anew"}
    write_status(tmp_path, earlier | {"pid": 6}, updated=1.0)
    write_status(tmp_path, earlier | {"pid": 7})  # or a container with our host name, at work
    with StatusFile(tmp_path):
        left = {(s.host, s.pid) for s in read_statuses(tmp_path)}
    here = this_worker().host
    assert left == {(here, other_process.pid), ("elsewhere", 5), (here, 7), (here, os.getpid())}


def test_a_folder_that_cannot_be_written_costs_one_line_of_the_log(tmp_path, caplog):
    (tmp_path / "workers").write_text("a file, where the folder should be")
    with caplog.at_level(logging.WARNING), StatusFile(tmp_path) as status:
        status.write(trial=1)
        status.write(trial=2)
    assert len(caplog.messages) == 1
    assert "could not write" in caplog.messages[0]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"host": "h"}', '{"host": "h", "pid": "7", "started": 1, "updated": 1}',
     '{"host": "h", "pid": 7, "started": 1, "updated": 1, "env_steps": "many"}',
     '{"host": null, "pid": 7, "started": 1, "updated": 1}', "\0" * 70_000],
)  # fmt: skip
def test_a_file_that_is_no_status_is_left_out(tmp_path, content):
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "h-7.json").write_text(content)
    assert read_statuses(tmp_path) == []


def test_a_status_of_a_later_version_is_read_as_far_as_it_is_known(tmp_path):
    write_status(tmp_path, {"host": "h", "pid": 7, "started": 1.0}, updated=2.0, split=1, mood="good")
    assert read_statuses(tmp_path) == [WorkerStatus("h", 7, 1.0, 2.0, split=1)]


def test_a_process_is_told_from_a_later_one_with_its_number(other_process):
    worker = signed(other_process)
    assert is_running(worker["pid"], worker["started"])
    assert not is_running(worker["pid"], worker["started"] - 100.0)  # signed by an earlier version, or without /proc
    assert is_running(worker["pid"], worker["started"] - 100.0, worker["started_ticks"])  # the clock was set since
    assert not is_running(worker["pid"], worker["started"], worker["started_ticks"] - 1)
    other_process.kill()
    while psutil.Process(worker["pid"]).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not is_running(worker["pid"], worker["started"])
    assert not is_running(-1, None)
    assert not is_running(2**70, None)


# ------------------------------------------------------------------------------------------------------- the dashboard
def seen(folder):
    return find_workers(take_snapshot(url_of(folder), "s"), Meter())


def test_a_worker_that_is_killed_is_seen_to_be_dead(tmp_path, other_process):
    make_study(tmp_path, [trial(TrialState.RUNNING, worker=signed(other_process))])
    folder = tmp_path / "results" / "s"
    write_status(folder, signed(other_process), trial=0, split=1, n_splits=6, env_steps=50, total_env_steps=200)
    (worker,) = seen(tmp_path)
    assert (worker.state, worker.trial, worker.split_share) == (ALIVE, 0, 0.25)
    assert worker.rss_bytes > 1_000_000
    assert not worker.is_status_old
    other_process.kill()
    other_process.wait()
    (worker,) = seen(tmp_path)
    assert (worker.state, worker.trial, worker.rss_bytes) == (DEAD, 0, None)
    assert worker.is_status_old
    assert worker.sign_age_s < 30.0


def test_what_a_worker_said_of_an_earlier_trial_is_not_told_of_this_one(tmp_path, other_process):
    make_study(tmp_path, [trial(TrialState.RUNNING, worker=signed(other_process))])
    write_status(tmp_path / "results" / "s", signed(other_process), trial=9, split=1)
    (worker,) = seen(tmp_path)
    assert (worker.state, worker.trial, worker.status) == (ALIVE, 0, None)


def test_a_worker_between_two_trials_and_one_that_died_there_are_seen(tmp_path, other_process):
    make_study(tmp_path)
    folder = tmp_path / "results" / "s"
    write_status(folder, signed(other_process), trial=None)
    write_status(folder, vars(this_worker()) | {"pid": 2**22 + 1, "started": 1.0}, trial=None)
    assert [(w.state, w.trial) for w in seen(tmp_path)] == [(ALIVE, None), (DEAD, None)]


def test_a_worker_of_another_machine_lives_as_long_as_its_heart_beats(tmp_path):
    elsewhere = {"host": "elsewhere", "pid": 5, "started": 1.0}
    silent = {"host": "silent", "pid": 6, "started": 1.0}
    unheard = {"host": "unheard", "pid": 7, "started": 1.0}
    container = {"host": this_worker().host, "machine": "another", "pid": 2**22 + 1, "started": 1.0}
    signed_by = (elsewhere, silent, unheard, container)
    study = make_study(tmp_path, [trial(TrialState.RUNNING, worker=w) for w in signed_by])
    study._storage.record_heartbeat(study.get_trials()[0]._trial_id)
    folder = tmp_path / "results" / "s"
    write_status(folder, silent, updated=time.time() - GRACE_S - 9.0, trial=1, split=3)
    workers = {w.host: w for w in seen(tmp_path)}
    assert {host: w.state for host, w in workers.items()} == {
        "elsewhere": ALIVE, "silent": SILENT, "unheard": UNKNOWN, this_worker().host: UNKNOWN,
    }  # fmt: skip
    assert workers["silent"].is_status_old
    assert workers["unheard"].sign_age_s is None


def test_a_running_trial_that_nobody_signed_has_an_unknown_worker(tmp_path):
    make_study(tmp_path, [trial(TrialState.RUNNING), trial(TrialState.RUNNING, worker={"host": "h"})])
    assert [(w.state, w.pid, w.trial) for w in seen(tmp_path)] == [(UNKNOWN, None, 0), (UNKNOWN, None, 1)]


def test_results_that_are_on_another_machine_are_not_looked_for(tmp_path):
    make_study(tmp_path)
    snapshot = take_snapshot(url_of(tmp_path), "s")
    assert results_folder(snapshot) is None
    (tmp_path / "results" / "s").mkdir(parents=True)
    assert results_folder(snapshot) == tmp_path / "results" / "s"


def test_a_named_results_folder_is_the_studys_own_and_not_one_of_the_same_name(tmp_path):
    study = make_study(tmp_path)
    snapshot, elsewhere = take_snapshot(url_of(tmp_path), "s"), tmp_path / "elsewhere"
    uuid = study.user_attrs["uuid"]
    assert results_folder(snapshot, elsewhere) is None
    study_folder(elsewhere, StudyFile("s", "b" * 32))
    assert results_folder(snapshot, elsewhere) is None
    own = study_folder(elsewhere, StudyFile("s", uuid))
    assert own.name == f"s-{uuid[:8]}"
    assert results_folder(snapshot, elsewhere) == own
