"""Every wait of a study says what it waits for within 10 s and ends within 5 s of a signal; locks are real."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from optuna.pruners import NopPruner
from sqlalchemy import create_engine, text

from tests.runner.test_cli import command, load, start_forked, states, wait_for_line
from tests.support import cheap_study
from tests.support.held_locks import DATABASE_LOCK, FILE_LOCK, held
from train.store import waiting
from train.store.address import absolute_url, connect_args
from train.store.database import open_study, take_next
from train.store.lock import _digest, study_lock
from train.study.interruption import Interrupted, Interruption

SAID_S, ENDS_S, ENDS_WITH_WORKERS_S = 10.0, 5.0, 10.0


def lock_of(folder: Path, purpose: str = "") -> Path:
    return folder / (f"s.db.{_digest(purpose).hex()[:8]}.lock" if purpose else "s.db.lock")


def said_and_ended(process, folder: Path, words: str, most_s: float, code: int = 143) -> str:
    """The log of a process that is to wait, says so in time, and ends at SIGTERM in time."""
    wait_for_line(process, folder / "log.txt", words)
    line = next(line for line in (folder / "log.txt").read_text().splitlines() if words in line)
    assert float(re.search(r" for (\d+) s", line)[1]) < SAID_S  # as the process counts: before, it ended a trial
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == code
    assert time.monotonic() - began_s < most_s
    return (folder / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "most_s"), [(1, ENDS_S), (2, ENDS_WITH_WORKERS_S)])
@pytest.mark.parametrize(
    ("program", "name", "words"),
    [(FILE_LOCK, "s.db.lock", "waiting for the lock for taking trials in"), (DATABASE_LOCK, "s.db", "locked; nothing")],
)
def test_a_worker_that_waits_for_a_frozen_one_or_the_database_says_so_and_ends(
    tmp_path, market_folder, program, name, words, workers, most_s
):
    flags = ("--n-trials", "99", "--pruner", "none", "--workers", str(workers))
    process = start_forked(command(tmp_path, market_folder, *flags), tmp_path, "Using Vectorized")
    with held(program, tmp_path / name):
        log = said_and_ended(process, tmp_path, words, most_s)
    assert "stopped while waiting for" in log
    assert "stopped by SIGTERM" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_workers_that_wait_while_they_open_their_study_end_with_the_parent(tmp_path, market_folder):
    flags = ("--n-trials", "9", "--pruner", "none", "--workers", "2")
    process = start_forked(command(tmp_path, market_folder, *flags), tmp_path, "starting 2 workers")
    with held(FILE_LOCK, tmp_path / "s.db.lock"):
        wait_for_line(process, tmp_path / "log.txt", "worker 2: waiting for the lock")
        log = said_and_ended(process, tmp_path, "worker 1: waiting for the lock", ENDS_WITH_WORKERS_S)
    assert "killed" not in log
    assert len(load(tmp_path).trials) == 0


@pytest.mark.slow
@pytest.mark.parametrize("purpose", ["hold-out of s", "yardsticks of s"])
def test_a_study_that_waits_to_score_its_hold_out_says_so_ends_and_scores_it_later(tmp_path, market_folder, purpose):
    arguments = command(tmp_path, market_folder, "--n-trials", "2", "--pruner", "none")
    with held(FILE_LOCK, lock_of(tmp_path, purpose)):
        process = start_forked(arguments, tmp_path, "trial 1: ")
        log = said_and_ended(process, tmp_path, f"waiting for the lock for {purpose} in {tmp_path}/s.db", ENDS_S)
    assert "stopped by SIGTERM" in log
    assert states(tmp_path) == {"COMPLETE": 2}
    assert start_forked(arguments, tmp_path).wait() == 0
    assert "hold-out: trial" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_a_study_that_waits_before_it_begins_says_so_and_ends(tmp_path, market_folder):
    with held(FILE_LOCK, tmp_path / "s.db.lock"):
        process = start_forked(command(tmp_path, market_folder, "--n-trials", "2"), tmp_path)
        said_and_ended(process, tmp_path, "waiting for the lock for taking trials", ENDS_S, -signal.SIGTERM)


@pytest.mark.parametrize("what", ["lock", "row"])
def test_a_session_that_holds_a_servers_lock_or_a_row_is_waited_for_aloud(postgres, monkeypatch, caplog, what):
    monkeypatch.setattr(waiting, "QUIET_S", 0.5)
    url = absolute_url(postgres.new_database(f"holds{what}"), Path("/"))
    study = open_study(url, "s", cheap_study.IDENTITY, False, NopPruner())
    with ExitStack() as stack, Interruption() as interruption:
        if what == "lock":
            stack.enter_context(study_lock(url))
        else:
            connection = stack.enter_context(create_engine(url, connect_args=connect_args(url)).connect())
            connection.execute(text("SELECT * FROM studies FOR UPDATE"))
        threading.Timer(4.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        began_s = time.monotonic()
        with pytest.raises(Interrupted):
            stack.enter_context(study_lock(url)) if what == "lock" else take_next(study, 0)
        assert interruption.received == signal.SIGTERM
        assert time.monotonic() - began_s < 4.0 + ENDS_S
    said = {"lock": "another session on the server holds it", "row": "canceling statement due to lock timeout"}[what]
    assert [text for text in caplog.messages if text.startswith("waiting for ") and said in text]  # before it ended
    assert study.get_trials() == []


def test_a_wait_is_said_again_each_minute_and_its_end_once(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    now_s = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(waiting.time, "sleep", lambda s: now_s.__setitem__(0, now_s[0] + s))
    waiting.take_lock(lambda: now_s[0] > 150.0, "the pot", "another cook holds it")
    assert [m.partition(" s: ")[0] for m in caplog.messages[:-1]] == [
        f"waiting for the lock for the pot for {s}" for s in (5, 65, 125)
    ]
    assert caplog.messages[-1].startswith("the lock for the pot: available after 150 s")
