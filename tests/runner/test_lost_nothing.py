"""A finished trial is never lost: killed workers, locked, full and restarted databases, many workers; all real."""

from __future__ import annotations

import logging
import math
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from tests.support import cheap_study
from tests.support.postgres_server import PASSWORD
from train.records.errors import StudyError
from train.records.keys import FAILURE, RETRY_OF
from train.runner import worker
from train.store import abandoned, address, waiting
from train.store import database as storage
from train.store import retrying as patience
from train.store.abandoned import fail_abandoned_trials, fail_and_retry
from train.store.address import absolute_url
from train.store.database import load_study, open_study
from train.store.lock import study_lock, wait_for_database
from train.store.retrying import patient_storage
from train.store.trial_end import VALUE, kept
from train.study import objective

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    name = f"d{abs(hash(tmp_path)):x}"
    return request.getfixturevalue("postgres").new_database(name)


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.support.cheap_study", *map(str, arguments)]


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(program(*arguments), cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"})


def states(study) -> Counter:
    return Counter(t.state.name for t in study.get_trials())


def opened(url: str):
    return load_study(absolute_url(url, Path()), "s")


@pytest.mark.slow
def test_workers_together_reach_the_target_exactly_though_one_is_killed_and_others_join(url, tmp_path):
    n_workers, n_later, target = (8, 1, 20) if url.startswith("postgres") else (4, 2, 12)
    done = subprocess.run(program("crowd", url, tmp_path, n_workers, n_later, target), cwd=REPO, timeout=120,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stderr + done.stdout
    study = opened(url)
    assert states(study) == {"COMPLETE": target, "FAIL": 1}
    (killed,) = study.get_trials(states=(TrialState.FAIL,))
    again = [t for t in study.get_trials() if t.user_attrs.get(RETRY_OF) == [killed.number]]
    assert [t.params for t in again] == [killed.params]
    assert len({str(t.params) for t in study.get_trials()}) == target
    assert sorted(t.number for t in study.get_trials()) == list(range(target + 1))


class AtTheEnd:
    """Does something at the moment between a trial's value being kept and told."""

    def __init__(self, monkeypatch, what) -> None:
        keep, self.n_calls = worker.keep, 0

        def keep_and_break(*arguments) -> None:
            keep(*arguments)
            self.n_calls += 1
            if self.n_calls == 1:
                what()

        monkeypatch.setattr(worker, "keep", keep_and_break)


def check_two_trials(study, trained: list[int]) -> None:
    assert [(t.state, t.value) for t in study.trials] == [(TrialState.COMPLETE, 1.0), (TrialState.COMPLETE, 2.0)]
    assert trained == [0, 0, 1, 1]  # nothing was run twice


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 8, 30])
def test_a_database_locked_when_a_trial_ends_is_waited_for(tmp_path, monkeypatch, caplog, seconds):
    caplog.set_level(logging.INFO)
    holders = []

    def lock() -> None:
        holder = sqlite3.connect(tmp_path / "study.db", check_same_thread=False, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        holders.append(threading.Timer(seconds, lambda: (holder.execute("COMMIT"), holder.close())))
        holders[0].start()

    AtTheEnd(monkeypatch, lock)
    trained: list[int] = []
    study, _ = cheap_study.work(f"sqlite:///{tmp_path}/study.db", tmp_path, 2, trained.append)
    holders[0].join()
    check_two_trials(study, trained)
    assert "database is locked; nothing is lost" in caplog.text
    assert "study.db: available after" in caplog.text


@pytest.mark.slow
def test_a_worker_that_starts_while_the_server_does_waits_for_it(postgres):
    url = absolute_url(postgres.new_database("starting"), Path("/"))
    starting, began_s = threading.Timer(1.5, postgres.start), time.monotonic()
    postgres.stop()
    starting.start()
    wait_for_database(url)
    assert time.monotonic() - began_s > 1.4
    starting.join()


@pytest.mark.parametrize("seed", range(50))
def test_no_trouble_of_two_seconds_is_slept_over_in_silence(monkeypatch, caplog, seed):
    """Whatever the pauses between attempts come to."""
    now_s = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now_s[0], sleep=lambda s: now_s.__setitem__(0, now_s[0] + s))
    monkeypatch.setattr(waiting, "time", clock)

    def work() -> bool:
        if now_s[0] < 2.0:
            raise OperationalError("", {}, Exception("refused"), connection_invalidated=True)
        return True

    random.seed(seed)
    assert patience.insist(work, "s.db")
    assert "waiting for the database s.db for 1 s" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["in mid-trial", "when the value is told", "when a trial is taken"])
def test_a_server_restarted_loses_nothing(postgres, tmp_path, monkeypatch, caplog, moment):
    caplog.set_level(logging.INFO)
    url = postgres.new_database(f"restart{len(moment)}")
    threads = []

    def restart() -> None:
        postgres.stop()
        threads.append(threading.Timer(2.0, postgres.start))
        threads[0].start()

    trained: list[int] = []

    def on_split(trial: int) -> None:
        trained.append(trial)
        if moment == "in mid-trial" and len(trained) == 1:
            restart()

    if moment == "when the value is told":
        AtTheEnd(monkeypatch, restart)
    if moment == "when a trial is taken":
        take = worker.take_next

        def restart_and_take(study, seed):  # the lock is held, and forgotten by the server
            if len(study.get_trials(deepcopy=False)) == 1:
                restart()
            return take(study, seed)

        monkeypatch.setattr(worker, "take_next", restart_and_take)
    study, _ = cheap_study.work(url, tmp_path, 2, on_split)
    threads[0].join()
    check_two_trials(study, trained)
    assert "; nothing is lost" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.slow
def test_a_disk_that_is_full_when_a_trial_ends_is_waited_for(tmp_path, monkeypatch, caplog):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    threads = []

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))  # no file grows
        threads.append(threading.Timer(2.5, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))))
        threads[0].start()

    AtTheEnd(monkeypatch, fill)
    trained: list[int] = []
    try:
        study, _ = cheap_study.work(f"sqlite:///{tmp_path}/study.db", tmp_path, 2, trained.append)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # or a failure could not be written down
    threads[0].join()
    check_two_trials(study, trained)
    assert "; nothing is lost" in caplog.text


@pytest.mark.slow
def test_a_value_that_was_kept_and_not_told_is_told_by_the_next_start(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    url = f"sqlite:///{tmp_path}/study.db"
    assert start("one", url, tmp_path, 1, "kept").wait(60) == -signal.SIGKILL
    assert states(opened(url)) == {"RUNNING": 1}
    trained: list[int] = []
    study, _ = cheap_study.work(url, tmp_path, 1, trained.append)
    assert states(study) == {"COMPLETE": 1}
    assert (study.trials[0].value, trained) == (1.0, [])
    assert "trial 0: finished before its process was killed; wrote its stored result" in caplog.text


def test_a_kept_value_of_other_settings_or_a_damaged_one_is_not_told(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study, _ = cheap_study.work(url, tmp_path, 1)
    path = tmp_path / "results" / "trial_0" / VALUE
    frozen = study.trials[0]
    assert kept(tmp_path / "results", frozen).value == 1.0
    frozen.params["gamma"] = 0.5
    assert kept(tmp_path / "results", frozen) is None
    path.write_text(path.read_text()[:20])
    assert kept(tmp_path / "results", study.trials[0]) is None


def wait_for(what, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_elsewhere_lives_while_its_heart_beats_and_is_replaced_when_it_stops(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/study.db"
    monkeypatch.setattr(storage, "GRACE_S", 4)
    monkeypatch.setattr(abandoned, "HEARTBEAT_S", 1)
    study = open_study(absolute_url(url, tmp_path), "s", cheap_study.IDENTITY, False, NopPruner())
    other = start("one", url, tmp_path, 1, "elsewhere")
    wait_for(lambda: (tmp_path / "results" / "trial_0" / "settings.json").exists())
    time.sleep(6.0)  # longer than the grace
    assert fail_abandoned_trials(study) == []
    other.kill()
    other.wait()
    assert fail_abandoned_trials(study) == []  # nobody can know yet
    time.sleep(6.0)
    assert fail_abandoned_trials(study) == []  # just after an outage, or a step of the clock, all hearts seem silent
    time.sleep(2.1)
    assert fail_abandoned_trials(study) == [0]
    failed, again = study.trials
    assert failed.user_attrs[FAILURE].startswith("killed")
    assert (again.state, again.user_attrs[RETRY_OF]) == (TrialState.WAITING, [0])


def test_a_trial_taken_for_dead_while_it_ran_does_not_stop_its_worker(tmp_path, caplog):
    url = f"sqlite:///{tmp_path}/study.db"
    trained: list[int] = []

    def on_split(trial: int) -> None:
        trained.append(trial)
        if len(trained) == 2:
            study = opened(url)
            fail_and_retry(study, study.trials[0], "killed: so it seemed")

    study, _ = cheap_study.work(url, tmp_path, 1, on_split)
    assert states(study) == {"FAIL": 1, "COMPLETE": 1}
    assert study.trials[1].params == study.trials[0].params
    assert "trial 0: considered dead" in caplog.text


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_value_that_is_no_number_is_never_best(lab, monkeypatch, value):
    values = iter([value, 0.5])
    monkeypatch.setattr(objective, "score", lambda _: next(values))  # finite splits whose mean overflows, say
    study, _ = lab.run(1)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    assert study.trials[0].user_attrs[FAILURE] == f"its value is not finite ({value})"
    assert study.best_trial.number == 1


def test_a_signal_that_python_drops_in_a_finalizer_still_stops_the_trial(lab, capfd):
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler runs here, and what it raises is dropped

    steps = []

    def runner(settings, data, fold, out_dir, origin, on_progress=None, checkpoints=None):
        del settings
        Finalized()
        for number in range(3):
            steps.append(number)
            on_progress(None)

    lab.runner = runner
    study, ending = lab.run(1)
    assert (ending.signal_number, steps) == (signal.SIGTERM, [0])
    assert states(study) == {"FAIL": 1, "WAITING": 1}
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_lock_that_the_server_forgot_is_noticed_and_the_trial_too_many_given_up(postgres, tmp_path):
    url = absolute_url(postgres.new_database("forgotten"), tmp_path)
    study = open_study(url, "s", cheap_study.IDENTITY, False, NopPruner())
    with study_lock(url) as is_held:
        assert is_held()
        with patient_storage(study).engine.begin() as connection:
            ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory'"
            assert connection.execute(text(ended)).scalar() == 1
        assert not is_held()
        with study_lock(url):  # another worker's
            storage.take_next(study, 0)
        mine = storage.take_next(study, 0)
    assert worker._given_up_if_too_many(study, url, mine, 1) is None
    assert states(study) == {"RUNNING": 1, "FAIL": 1}
    assert worker._given_up_if_too_many(study, url, mine, 2) is mine


def test_locks_of_other_purposes_do_not_wait_for_one_another(url, tmp_path):
    parsed = absolute_url(url, tmp_path)
    taken = threading.Event()
    with study_lock(parsed):
        with study_lock(parsed, "hold-out"):
            pass
        other = threading.Thread(target=lambda: [taken.set() for _ in [study_lock(parsed).__enter__()]], daemon=True)
        other.start()
        assert not taken.wait(0.3)
    assert taken.wait(5.0)


def test_a_database_that_time_does_not_mend_is_not_waited_for(tmp_path):
    url = absolute_url(f"sqlite:///{tmp_path}/study.db", tmp_path)
    study = open_study(url, "s", cheap_study.IDENTITY, False, NopPruner())
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("DROP TABLE trial_user_attributes")
    with pytest.raises(patience.StorageInternalError) as error:
        study.ask().set_user_attr("x", 1)
    assert patience.reason_of(error.value) == "no such table: trial_user_attributes"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://me:hidden@host/db", "mysql is not supported, because the workers need a lock"),
        ("postgresql://me:hidden@host:port/db", "not a database URL"),
        ("postgresql:/me:hidden@host/db", "not a database URL"),
        ("host=db password=hidden", "not a database URL"),
        ("me:hidden@host/db", "not a database URL"),
        ("postgresql://me:a@hidden@host/db", "more than one @.* write @ as %40.* PGPASSWORD"),
        ("postgresql://me:a@hidden/b@host/db", "more than one @"),
        ("postgresql://me:one@host/db?password=hidden", "more than one user or password"),
        ("postgresql://host/db?password=hidden&password=hidden", "more than one user or password"),
        ("mysql://me@host/db?password=hidden", "mysql is not supported, because the workers need a lock"),
        ("mysql://me@host/db?pass%77ord=hidden", "mysql is not supported, because the workers need a lock"),
    ],
)
def test_other_servers_and_passwords(tmp_path, url, words):
    with pytest.raises(StudyError, match=words) as error:
        absolute_url(url, tmp_path)
    assert "hidden" not in str(error.value)


def test_without_psycopg_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(address.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StudyError, match=r"requires psycopg; run pip install -r requirements-postgresql.txt"):
        absolute_url("postgresql://me@host/db", tmp_path)
