"""A judge that waits for its database or its folder says so and ends at a signal; a rollback never waits for long."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy.test_handover import SCRIPT
from tests.support.held_locks import DATABASE_LOCK, FILE_LOCK, held
from train.deploy.folder import LOCK

pytestmark = pytest.mark.slow
SAID_S, ENDS_S = 10.0, 5.0


def until(process, words: str) -> None:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return
    pytest.fail(f"ended without saying {words}: {''.join(lines)}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("program", "name", "words"),
    [
        (DATABASE_LOCK.replace("IMMEDIATE", "EXCLUSIVE"), "study.db", "study.db for"),
        (FILE_LOCK, f"deployments/{LOCK}", "waiting for the lock for the deployments in"),
    ],
)
def test_a_judge_that_waits_says_so_and_ends_at_a_signal(planted, program, name, words, number):
    planted.deployments.prepare()
    if name == "study.db":
        execute(planted.root / name, "PRAGMA journal_mode=DELETE")  # a writer then keeps readers out, too
    command = [sys.executable, str(SCRIPT), *planted.flags(), "--allow-synthetic", "--interval", "0.2"]
    with (
        held(program, planted.root / name),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        try:
            until(process, "checking study")
            began_s = time.monotonic()
            until(process, words)
            assert time.monotonic() - began_s < SAID_S
            began_s = time.monotonic()
            process.send_signal(number)
            until(process, f"stopped by {signal.Signals(number).name}")
            assert process.wait(30) == 128 + number
            assert time.monotonic() - began_s < ENDS_S
        finally:
            process.kill()


def execute(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


def test_a_rollback_is_not_held_up_by_a_judge_whose_database_is_locked(planted):
    """The judge reads, trains again, and cannot write its look down; who wants the old policy back need not wait."""
    flags, folder = planted.flags(), planted.root / "deployments"
    judge = [sys.executable, str(SCRIPT), *flags, "--once", "--allow-synthetic"]
    subprocess.run(judge, check=True)
    shutil.copytree(folder / planted.deployments.current_name(), folder / "earlier")
    log = planted.deployments.log.path
    log.write_text('{"event": "current", "deployment": "earlier", "cause": "accepted"}\n' + log.read_text())
    execute(planted.root / "study.db", "DELETE FROM study_user_attributes WHERE key LIKE 'handover_look_%'")
    command = [*judge, "--alpha", "0.01"]
    with (
        held(DATABASE_LOCK, planted.root / "study.db"),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
    ):
        try:
            until(process, "waiting for the database")
            rollback = [sys.executable, str(SCRIPT), *flags, "--rollback"]
            subprocess.run(rollback, check=True, timeout=60)  # most of it to start Python
            assert planted.deployments.current_name() == "earlier"
            until(process, "the database failed: database is locked")
            assert process.wait(30) == 1
        finally:
            process.kill()
