"""The terminal dashboard as a user runs it: another folder, blanks in paths, pipes, terminals, Ctrl-C, locked files."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from paper_trader_dashboard import main
from tests.support.made_studies import close, make_study, trial, url_of, use_rollback_journal
from train.store.worker_identity import this_worker
from train.watch import program, reading
from train.watch.program import Dashboard

REPO = Path(__file__).resolve().parents[2]
PROGRAM = REPO / "paper_trader_dashboard.py"
HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "a folder with blanks"
    place.mkdir()
    return place


def call(cwd: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *flags], cwd=cwd, env={**os.environ, **variables}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def assert_one_line(result: subprocess.CompletedProcess, code: int, *words: str) -> None:
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_one_frame_for_a_script_from_another_folder(folder):
    running = trial(TrialState.RUNNING, worker=vars(this_worker()))
    close(make_study(folder, [trial(value=1.5, splits=(1.0, 2.0)), running]))
    (folder / "my log.txt").write_text("the last line\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    flags = ("--once", "--study", "s", "--storage", "sqlite:///study.db", "--log", "my log.txt")
    result = call(folder, "--training", *flags, COLUMNS="80")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    for part in ("study s", "1 of 20 trials", "+1.5000  trial 0", f"alive {this_worker().host} pid {os.getpid()}",
                 "the last line"):  # fmt: skip
        assert part in result.stdout, part
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_not_there_is_one_line_and_an_exit_code(folder):
    flags = ("--training", "--once", "--storage", "sqlite:///study.db")
    assert_one_line(call(folder, *flags), 2, "there is no database", "a folder with blanks/study.db")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--training", "--account", "a"), ["--account: only for a trader; remove --training"]),
        (("--training", "--refresh", "0"), ["--refresh", "0.2"]),
        (("--training", "--refresh", "nan"), ["--refresh"]),
        (("--training", "--once", "--storage", "what"), ["--storage what: not a database URL"]),
    ],
)
def test_a_flag_that_cannot_be_is_named(flags, words, capsys):
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line


def test_a_study_that_is_not_there_is_named(folder, capsys):
    close(make_study(folder))
    assert main(["--training", "--once", "--storage", f"sqlite:///{folder}/study.db", "--study", "x"]) == 2
    assert capsys.readouterr().err.endswith("study.db has no study x; its studies: s\n")


def test_a_database_that_stays_locked_is_an_exit_code(folder, capsys, monkeypatch):
    close(make_study(folder))
    use_rollback_journal(folder / "study.db")
    monkeypatch.setattr(reading, "PATIENCE_S", 0.1)
    monkeypatch.setattr(program, "ONCE_PATIENCE_S", 0.3)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder / "study.db")], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as holder:  # fmt: skip
        assert holder.stdout.readline() == "held\n"
        dashboard = Dashboard(url_of(folder), None, folder / "log")
        assert program.show_once(dashboard, program.Console()) == 1
        holder.stdin.close()
    assert "database is locked" in capsys.readouterr().err


def test_the_last_frame_stays_while_the_database_is_away(folder):
    close(make_study(folder, [trial(value=1.5)]))
    dashboard = Dashboard(url_of(folder), None, folder / "log")
    first, trouble = dashboard.frame_or_trouble()
    assert trouble == ""
    (folder / "study.db").rename(folder / "moved.db")
    kept, trouble = dashboard.frame_or_trouble()
    assert "there is no database" in trouble
    assert "showing figures from 0 s ago, retrying" in trouble
    assert (kept.snapshot, kept.trouble) == (first.snapshot, trouble)
    (folder / "moved.db").rename(folder / "study.db")
    again, trouble = dashboard.frame_or_trouble()
    assert (again.trouble, trouble) == ("", "")


def test_a_watched_study_stays_when_another_begins_a_trial(folder):
    make_study(folder, [trial(value=1.0, minutes_ago=50)], name="first")
    dashboard = Dashboard(url_of(folder), None, folder / "log")
    assert dashboard.frame().snapshot.name == "first"
    make_study(folder, [trial(value=1.0, minutes_ago=1)], name="second")
    assert dashboard.frame().snapshot.name == "first"


class Terminal:
    """A terminal of 100 x 40 characters that the dashboard runs in."""

    def __init__(self, folder: Path) -> None:
        self.seen = ""
        self._here, there = pty.openpty()
        flags = ("--training", "--storage", "sqlite:///study.db", "--refresh", "0.2", "--log", "none")
        size = {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), *flags], cwd=folder, stdin=there, stdout=there, stderr=there,
            env={**os.environ, **size}, start_new_session=True,
        )  # fmt: skip
        os.close(there)

    def wait_for(self, text: str) -> None:
        """Until it has drawn `text` since the last call."""
        end, fresh = time.monotonic() + 40.0, ""
        while text not in fresh:
            assert time.monotonic() < end, fresh
            fresh += self._read()
        self.seen += fresh

    def end(self) -> str:
        """Everything until the process ends."""
        while self.process.poll() is None:
            self.seen += self._read()
        self.seen += self._read()
        os.close(self._here)
        return self.seen

    def _read(self) -> str:
        if not select.select([self._here], [], [], 0.2)[0]:
            return ""
        try:
            return os.read(self._here, 65_536).decode("utf-8", "replace")
        except OSError:  # the other end is closed
            return ""


@pytest.mark.slow
def test_on_a_terminal_it_waits_for_a_study_shows_it_and_ends_with_ctrl_c(folder):
    terminal = Terminal(folder)
    terminal.wait_for("there is no database")
    study = make_study(folder, [trial(value=1.25)])
    terminal.wait_for("+1.2500")
    study.add_trial(trial(value=2.5))
    terminal.wait_for("+2.5000")
    terminal.process.send_signal(signal.SIGINT)
    seen = terminal.end()
    assert terminal.process.returncode == 0
    assert "Traceback" not in seen
    assert seen.count("\x1b[?1049h") == seen.count("\x1b[?1049l") == 1  # the user's screen is back
    assert "\x1b[?25h" in seen  # and the cursor


@pytest.mark.slow
def test_into_a_pipe_it_prints_frame_after_frame(folder):
    make_study(folder, [trial(value=1.25)])
    flags = ("--training", "--storage", "sqlite:///study.db", "--refresh", "0.2", "--log", "none")
    with subprocess.Popen([sys.executable, str(PROGRAM), *flags], cwd=folder, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        n_frames = 0
        while n_frames < 2:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            n_frames += line.startswith("study s")
        process.stdout.close()  # as `| head` does
        assert process.wait(20) == 1
        assert process.stderr.read() == ""  # no traceback
