"""`--workers N` as a user runs it: real processes, killed and stopped; and the market that they share."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import time
from contextlib import closing

import numpy as np
import psutil
import pytest
import torch

from tests.runner.test_cli import command, environment, load, start_forked, states
from tests.support.forked_scripts import Forked
from train.records.errors import StudyError
from train.runner import crew, preparation, session
from train.runner.request import StudyRequest
from train.runner.sharing import SharedData
from train.runner.worker import Ending, no_hook
from train.store.address import absolute_url
from train.study.eligibility import NO_SIGNAL, best_trial, broken_bounds
from train.study.folds import load_study_data
from train.study.interruption import Interruption
from train.study.objective import Bounds
from train.study.progress import summary_lines
from train.study.search_space import build_space
from train.study.split_plan import SplitPlan


def workers_of(process: Forked) -> list[psutil.Process]:
    return [c for c in psutil.Process(process.pid).children() if "train.worker_program" in c.cmdline()]


def wait_for(what, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def stopped_in_mid_trial(process: Forked, folder) -> psutil.Process | None:
    """A worker whose trial runs and has not ended; it stands still, so that this is still so when it is killed."""
    for worker in workers_of(process):
        worker.suspend()
        number = running_trial_of(worker.pid, folder)
        if number is not None and not (folder / "results" / "s" / f"trial_{number}" / "value.json").exists():
            return worker
        worker.resume()
    return None


def running_trial_of(pid: int, folder) -> int | None:
    """Read with nothing but SQLite, which a writer that stands still does not hold up."""
    query = """SELECT number, value_json FROM trials JOIN trial_user_attributes USING (trial_id)
               WHERE state = 'RUNNING' AND key = 'worker'"""
    with closing(sqlite3.connect(folder / "s.db")) as connection:
        found = [number for number, worker in connection.execute(query) if json.loads(worker)["pid"] == pid]
    return found[0] if found else None


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_the_end_comes_once(tmp_path, market_folder):
    flags = ("--n-trials", "4", "--pruner", "none", "--workers", "2", "--break-step", "8192")
    process = start_forked(command(tmp_path, market_folder, *flags), tmp_path, "Using Vectorized")
    log = tmp_path / "log.txt"
    wait_for(lambda: stopped_in_mid_trial(process, tmp_path)).kill()
    assert process.wait(300) == 0, log.read_text()
    text = log.read_text()
    assert "killed by SIGKILL; restarting (1 of at most 5 times)" in text
    assert re.search(r"worker \d: trial \d: its process was killed", text)
    found = states(tmp_path)
    assert found["COMPLETE"] + found["PRUNED"] == 4
    assert (found["FAIL"], sum(found.values())) == (1, 5)
    assert text.count("hold-out: trial") == text.count("report: ") == text.count("plot: ") == 1
    assert len({t.user_attrs["worker"]["pid"] for t in load(tmp_path).trials}) >= 2
    assert "Traceback" not in text


def start_none_again() -> None:
    crew.MOST_RESTARTS = 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_that_reached_its_target_ends_well_though_a_worker_was_given_up(tmp_path, market_folder, number):
    flags = ("--n-trials", "3", "--pruner", "none", "--workers", "2", "--break-step", "8192")
    arguments = command(tmp_path, market_folder, *flags)
    process = start_forked(arguments, tmp_path, "Using Vectorized", before=start_none_again)
    worker = wait_for(lambda: stopped_in_mid_trial(process, tmp_path))
    worker.send_signal(number)
    worker.resume()
    log = tmp_path / "log.txt"
    assert process.wait(300) == 0, log.read_text()
    if number == signal.SIGKILL:
        assert re.search(r"worker \d was killed 1 time, by SIGKILL; it is not restarted", log.read_text())
        assert "the study has reached its target number of trials anyway" in log.read_text()
    assert log.read_text().count("hold-out: trial") == 1
    found = states(tmp_path)
    assert found["COMPLETE"] + found["PRUNED"] == 3


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "worker 1 was killed 3 times, the last time by SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "worker 1 was killed 3 times, the last time by signal 37"),
        ("os._exit(0)", "worker 1 ended with exit code 0; see the log above"),
        ("os._exit(7)", "worker 1 ended with exit code 7; see the log above"),
    ],
)
def test_a_worker_that_always_dies_is_counted_and_its_signal_named(tmp_path, monkeypatch, caplog, code, words):
    (tmp_path / "dies.py").write_text(f"import os, signal\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(crew, "MOST_RESTARTS", 2)
    with Interruption() as interruption:
        ending = crew.Supervisor(lambda *_: None, SharedData((), ()), 1, interruption, None, "dies").run()
    assert ending == Ending(error=words)
    assert caplog.text.count("restarting (") == (2 if "killed" in words else 0)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_to_the_parent_ends_all_and_leaves_no_running_trial(tmp_path, market_folder, number, code):
    flags = ("--n-trials", "4", "--pruner", "none", "--workers", "2", "--break-step", "2000000")
    process = start_forked(command(tmp_path, market_folder, *flags), tmp_path, "Using Vectorized")
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(number)
    assert process.wait(30) == code
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == []
    text = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in text
    assert set(states(tmp_path)) == {"FAIL", "WAITING"}, "cut off, not brought to its end"
    if code > 0:
        assert f"stopped by {signal.Signals(number).name}" in text


@pytest.mark.slow
def test_workers_are_ours_in_the_folder_of_a_host_that_has_a_train_of_its_own(tmp_path, market_folder):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").touch()
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--pruner", "none", "--workers", "2")
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_bars_of_every_process_are_the_pages_of_one_file(market_folder):
    """Also behind the hold-out's cut. What the trials see is `tests/runner/test_sharing.py`."""
    (data,) = load_study_data(market_folder, None, None, SplitPlan("standard", 1, 1, 0.15))
    config = data.dataset.env_config(data.folds[0].fit)
    for name, array in data.dataset.arrays.items():
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert isinstance(base, np.memmap)
        assert len(base) > len(array)  # the hold-out is cut off by a view
        assert np.shares_memory(config[name], base)  # and a fold's segments do not copy either


def request(tmp_path, **changed) -> StudyRequest:
    url = absolute_url("sqlite:///s.db", tmp_path)
    return StudyRequest(1, "s", url, tmp_path, tmp_path, SplitPlan("standard", 1, 1), **changed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"workers": 0}, "--workers must be at least 1; received 0"),
        ({"gpu_ids": (0, -2)}, "--gpu must be at least -1; received -2"),
        ({"gpu_ids": (-1, -1)}, "pass --workers 2"),
        ({"bounds": Bounds(0.0, 1)}, "--max-drawdown must be a fraction, above 0 and at most 1; received 0"),
        ({"bounds": Bounds(0.5, -1)}, "--min-trades must be at least 0; received -1"),
    ],
)
def test_bad_values_are_refused_by_their_flag(tmp_path, changed, words):
    with pytest.raises(StudyError, match=re.escape(words)):
        request(tmp_path, **changed)


def test_gpus_are_given_to_the_workers_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = request(tmp_path, gpu_ids=(0, 1), workers=3)
    given = []

    class Recorded(session.Supervisor):
        def run(self):
            given.extend(self._request_of(number, 5.0) for number in range(self._n_workers))

    monkeypatch.setattr(session, "Supervisor", Recorded)
    study = session.open_study(asked.storage, "s", {}, False, session.make_pruner("none"))
    opened = session.OpenedStudy(study, (), build_space(), 7, tmp_path)
    session.run_workers(opened, asked, session.Interruption(), no_hook, "")
    assert [(r.gpu_id, r.workers, r.n_envs, r.timeout_s) for r in given] == [
        (0, 1, 7, 5.0),
        (1, 1, 7, 5.0),
        (0, 1, 7, 5.0),
    ]


def test_workers_share_the_memory_that_auto_counts(market_folder, monkeypatch):
    data = load_study_data(market_folder, None, None, SplitPlan("standard", 1, 1))
    space = build_space(longest_episode_bars=500, agent="ppo")
    alone = preparation.choose_for(-1, data, space)
    monkeypatch.setattr(preparation, "free_bytes", lambda _: 400 << 20)
    few, fewer = preparation.choose_for(-1, data, space), preparation.choose_for(-1, data, space, workers=4)
    assert alone.n_envs >= few.n_envs
    assert "400 MiB free" in few.reason
    assert "100 MiB free" in fewer.reason


def test_a_trial_that_breaks_a_bound_is_complete_and_never_best(lab, make_outcome):
    lab.bounds = Bounds(max_drawdown=0.2, min_trades=2)
    deep = make_outcome(1, 9.0)
    deep = type(deep)(**vars(deep) | {"agent": type(deep.agent)(**vars(deep.agent) | {"max_drawdown": 0.21})})
    lab.runner.results = [1.0] * 6 + [9.0, deep, *[9.0] * 4] + [8.0, make_outcome(1, 8.0, trades=1), *[8.0] * 4]
    study, _ = lab.run(3)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert [list(broken_bounds(t.constraints)) for t in study.trials] == [[], ["max_drawdown"], ["min_trades"]]
    assert study.trials[1].constraints == {"max_drawdown": pytest.approx(0.01), "min_trades": -1.0}
    assert best_trial(study).number == study.best_trial.number == 0


def test_a_study_whose_trials_all_break_a_bound_has_no_best(lab):
    lab.bounds = Bounds(min_trades=4)
    study, _ = lab.run(2)
    assert best_trial(study) is None
    assert summary_lines(study)[-1] == (
        "there is no best trial: none of 2 completed trials is eligible to be best: --min-trades violated by 2"
    )
    assert NO_SIGNAL not in summary_lines(study)  # they were in the market


def test_other_bounds_are_another_study(tmp_path, market_folder):
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--timeout", "0.000001")
    run = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True, "check": False}
    assert subprocess.run(arguments, **run).returncode == 1
    again = subprocess.run([*arguments, "--max-drawdown", "0.3"], **run)
    assert again.returncode == 2
    assert "differs in its scoring: max_drawdown was 0.5, now 0.3" in again.stderr
