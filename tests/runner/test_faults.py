"""Faults at the command line that no other file holds: terminals, disks, folders and files that are really so."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import termios
import time
from functools import partial
from pathlib import Path

import pytest

from environment_Alpaca import CryptoEnvAlpaca
from tests.runner.test_cli import SCRIPT, TIMEOUT_S, command, environment, load, start_forked, states
from tests.support import real_study, small_disk
from tests.support.small_disk import fill, seen_by
from train.records.keys import FAILURE
from train.study.eligibility import best_trial
from train.study.split import run_split


@pytest.fixture(scope="module")
def disks():
    """Skips where none can be mounted."""
    if reason := small_disk.why_not():
        pytest.skip(reason)


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    assert line.startswith(f"{SCRIPT.name}: ")
    return line


# --- what training gives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "words"),
    [(float("nan"), "the mean reward"), (float("inf"), "the mean reward"), (0.25, "all rewards are equal")],
)
def test_a_trial_of_nan_infinite_or_constant_rewards_fails_and_is_never_best(tmp_path, reward, words):
    step = CryptoEnvAlpaca.step

    def spoiled(env, action):
        state, _, done, info = step(env, action)
        return state, reward, done, info

    def runner(settings, data, fold, out_dir, origin, *rest):
        with pytest.MonkeyPatch.context() as patch:
            if origin.trial == 0:
                patch.setattr(CryptoEnvAlpaca, "step", spoiled)
            return run_split(settings, data, fold, out_dir, origin, *rest)

    trades = {"norm_action": 1.0, "learning_rate": 3e-3, "turnover_penalty": 1e-5, "trailing_stop_pct": 0.0,
              "observe_account": False}  # fmt: skip
    study, _ = real_study.run(tmp_path, 1, runner=runner, given=real_study.GIVEN | trades)
    assert [t.state.name for t in study.trials] == ["FAIL", "COMPLETE"]
    assert study.trials[0].user_attrs[FAILURE].startswith(f"split 0: TrainingDiverged: {words}")
    assert best_trial(study).number == study.best_trial.number == 1


# --- files -----------------------------------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_studies_of_one_name_and_equal_trial_numbers_never_touch_each_others_files(tmp_path, market_folder, script):
    """Two databases, one folder of results; then a study of another name."""
    shared = ("--results-dir", str(tmp_path / "results"), "--n-trials", "1", "--pruner", "none")
    seen: dict[str, str] = {}
    for database, name in (("a", "s"), ("b", "s"), ("b", "t")):
        (tmp_path / database).mkdir(exist_ok=True)
        arguments = command(tmp_path / database, market_folder, *shared, "--study-name", name)[2:]
        script.main(arguments)  # the trial may end pruned: it hardly trained
        after = digests(tmp_path / "results")
        assert seen.items() <= after.items()
        assert len([path for path in after if path not in seen and "/trial_0/" in path]) > 4
        seen = after


@pytest.mark.parametrize("damage", ["empty", "half", "a page of zeros", "garbage"])
def test_a_damaged_database_of_a_study_is_refused_by_name_and_left_as_it_is(
    tmp_path, market_folder, script, capsys, damage
):
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--timeout", "0.000001")[2:]
    assert script.main(arguments) == 1  # the study exists, no trial began
    path = tmp_path / "copy" / "s.db"
    path.parent.mkdir()
    with sqlite3.connect(tmp_path / "s.db") as connection, sqlite3.connect(path) as copy:
        connection.backup(copy)
    copy.close()
    content = path.read_bytes()
    page = int.from_bytes(content[16:18], "big")
    damaged = {
        "empty": b"", "half": content[: len(content) // 2 // page * page],
        "a page of zeros": bytes(page) + content[page:], "garbage": os.urandom(len(content)),
    }[damage]  # fmt: skip
    path.write_bytes(damaged)
    capsys.readouterr()
    assert script.main([*arguments, "--storage", f"sqlite:///{path}"]) == 2
    assert str(path) in one_line(capsys.readouterr().err)
    assert path.read_bytes() == damaged


# --- folders and disks -----------------------------------------------------------------------------------------------


def test_a_results_folder_that_is_a_file_is_refused(tmp_path, market_folder, script, capsys):
    (tmp_path / "mine").write_text("a file")
    assert script.main([*command(tmp_path, market_folder)[2:], "--results-dir", str(tmp_path / "mine" / "x")]) == 2
    assert f"{tmp_path / 'mine'} is a file; pass a folder" in one_line(capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("what", ["results", "database"])
def test_a_folder_that_cannot_be_written_is_refused_before_a_study_begins(disks, tmp_path, market_folder, what):
    folder = tmp_path / "read only"
    folder.mkdir()
    flags = {"results": ("--results-dir", str(folder / "r")), "database": ("--storage", f"sqlite:///{folder}/s.db")}
    before = partial(small_disk.mount, folder, 65536, read_only=True)
    arguments = command(tmp_path, market_folder, "--n-trials", "1", *flags[what])
    assert start_forked(arguments, tmp_path, before=before).wait(30) == 2
    words = {"results": "is not writable", "database": "cannot be written"}[what]
    assert f"{folder} {words}" in one_line((tmp_path / "log.txt").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.txt", "read only"]


@pytest.mark.slow
def test_a_disk_of_results_that_is_full_stops_the_run_after_five_equal_failures(disks, tmp_path, market_folder):
    results, log = tmp_path / "results", tmp_path / "log.txt"
    results.mkdir()
    arguments = command(tmp_path, market_folder, "--n-trials", "9", "--pruner", "none")
    process = start_forked(arguments, tmp_path, "Using Vectorized", partial(small_disk.mount, results, 4 << 20))
    fill(seen_by(process.pid, results))
    assert process.wait() == 1
    text = log.read_text()
    assert "Traceback" not in text
    assert f"No space left on device: '{results}/s/trial_" in text.partition("trials fail repeatedly")[2]
    found = states(tmp_path)
    assert set(found) == {"FAIL"}
    assert 5 <= found["FAIL"] <= 6  # the first may have failed elsewhere


@pytest.mark.slow
def test_a_disk_of_the_database_that_is_full_is_waited_for(disks, tmp_path, market_folder):
    folder, log = tmp_path / "db", tmp_path / "log.txt"
    folder.mkdir()
    arguments = command(tmp_path, market_folder, "--n-trials", "2", "--pruner", "none", "--storage",
                        f"sqlite:///{folder}/s.db")  # fmt: skip
    n_bytes = 16 << 20  # SQLite's log of writes alone grows to 4 MiB
    process = start_forked(arguments, tmp_path, "Using Vectorized", partial(small_disk.mount, folder, n_bytes))
    disk = os.open(seen_by(process.pid, folder), os.O_DIRECTORY)  # stays there when the process has ended
    filler = fill(Path(f"/proc/self/fd/{disk}"))
    wait_for(lambda: "; nothing is lost" in log.read_text())
    assert "database or disk is full" in log.read_text()
    filler.unlink()
    assert process.wait() in (0, 1)  # 1 where both trials hardly traded
    for file in Path(f"/proc/self/fd/{disk}").glob("s.db*"):
        shutil.copy(file, tmp_path)
    os.close(disk)
    ended = [trial.state.name for trial in load(tmp_path).trials]
    assert sorted(set(ended)) in (["COMPLETE"], ["PRUNED"], ["COMPLETE", "PRUNED"])
    assert len(ended) == 2
    assert "Traceback" not in log.read_text()


def wait_for(what) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_log_costs_lines_and_not_the_study(tmp_path, market_folder):
    arguments = command(tmp_path, market_folder, "--n-trials", "1", "--pruner", "none", "--min-trades", "0")
    with open("/dev/full", "w") as full:
        done = subprocess.run(arguments, cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE,
                              text=True, timeout=TIMEOUT_S, check=False)  # fmt: skip
    assert done.returncode in (0, 1)
    (trial,) = load(tmp_path).trials
    assert trial.state.name == {0: "COMPLETE", 1: "PRUNED"}[done.returncode]
    assert done.stderr == "the log cannot be written (No space left on device); the run continues, but lines are lost\n"


# --- terminals -------------------------------------------------------------------------------------------------------


def own_the_terminal() -> None:
    """As a shell starts its programs; a test that runs under nohup would hand down that SIGHUP is ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_a_terminal_that_is_closed_ends_the_run_as_ctrl_c_does(tmp_path, market_folder):
    """The trainer as a terminal's own program; the kernel sends SIGHUP, and nobody reads what it prints."""
    ours, theirs = pty.openpty()
    arguments = command(tmp_path, market_folder, "--n-trials", "3", "--pruner", "none", "--break-step", "200000")
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=own_the_terminal,
    )  # fmt: skip
    os.close(theirs)
    read = b""
    while b"Using Vectorized" not in read:
        read += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(30) == 128 + signal.SIGHUP
    assert states(tmp_path) == {"FAIL": 1, "WAITING": 1}
    assert load(tmp_path).trials[0].user_attrs[FAILURE] == "interrupted by SIGHUP"
