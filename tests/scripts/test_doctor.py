"""What the doctor finds, on real files, folders and processes."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch

import environment_Alpaca_vectorized as drop_in
from barwise import setup_checks as doctor
from barwise.commands import doctor as doctor_program
from barwise.setup_checks import BAD, NOTE, OK, Finding, Places, database, datasets, folders, packages, report, trainer
from market.dataset import save_dataset
from market.sample import synthetic_dataset

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "scripts" / "setup" / "doctor.py"


def one(findings) -> Finding:
    (found,) = findings
    return found


def run(*arguments, python=sys.executable, cwd, env=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [python, str(SCRIPT), *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False
    )


# ---------------------------------------------------------------------------------------------------------- the program
@pytest.mark.slow
def test_the_screen_from_another_folder_says_all_parts_and_changes_nothing(tmp_path):
    folder = tmp_path / "bl ank"
    folder.mkdir()
    found = run("--storage", "sqlite:///none.db", cwd=folder)
    assert found.returncode == 0, found.stdout + found.stderr
    for part in ("python", "packages", "device", "data", "database", "logs", "trainer", "keys"):
        assert f"  {part} " in found.stdout
    assert len(found.stdout.splitlines()) < 30
    assert "Ready to train." in found.stdout
    assert not list(folder.iterdir())


def test_a_python_without_packages_is_told_what_is_missing_and_nothing_else_breaks(tmp_path):
    # -S: no site-packages, as on a fresh machine.
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", str(SCRIPT)]
    found = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 1
    assert "missing: torch, numpy" in found.stdout
    assert "torch cannot be imported" in found.stdout
    assert found.stderr == ""


def test_a_bad_finding_is_the_exit_code(tmp_path, capsys):
    empty = tmp_path / "s.db"
    empty.touch()
    assert doctor_program.main(["--storage", f"sqlite:///{empty}"]) == 1
    assert "1 problem to fix" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------ packages
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("torch==2.12.9", "required: ==2.12.9"),
        ("numpy>=99.1", "required: >=99.1"),
        ("no-such-package-here>=1.0", "missing: no-such-package-here"),
        ("torch==2.13.0", ""),  # a build such as 2.13.0+cpu is that version
        ("numpy>=2", ""),
    ],
)
def test_versions_are_compared_by_their_numbers(tmp_path, line, words):
    (tmp_path / "requirements.txt").write_text(f"# a comment\n{line}\n")
    (tmp_path / "requirements-elegantrl.txt").write_text("")
    text = report(packages(tmp_path))
    assert words in text if words else text.startswith("ok") and "required:" not in text


# ---------------------------------------------------------------------------------------------------- data and database
def test_data_is_read_and_a_damaged_file_named(tmp_path):
    assert one(datasets(tmp_path)).state == NOTE
    assert one(datasets(tmp_path, is_named=True)).state == BAD
    save_dataset(synthetic_dataset("1h", 600, ("BTC", "ETH"), seed=0), tmp_path / "1h")
    assert "SYNTHETIC" in one(datasets(tmp_path)).text
    assert one(datasets(tmp_path / "1h")).state == OK
    path = tmp_path / "1h" / "price_array.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    found = one(datasets(tmp_path))
    assert found.state == BAD
    assert "price_array.npy" in found.text


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_is_opened_for_reading_only(tmp_path, mode):
    path = tmp_path / "s.db"
    assert "does not exist yet" in one(database("sqlite:///s.db", tmp_path)).text
    assert not path.exists()
    optuna.create_study(storage=f"sqlite:///{path}", study_name="mine")
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
    connection.close()
    before = path.read_bytes()
    found = one(database("sqlite:///s.db", tmp_path))
    assert (found.state, "1 study (mine)" in found.text) == (OK, True)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"s.db"}


@pytest.mark.parametrize("content", [b"", b"not a database at all, long enough", b"SQLite format 3\x00" + b"\7" * 999])
def test_a_damaged_database_is_named(tmp_path, content):
    (tmp_path / "s.db").write_bytes(content)
    found = one(database("sqlite:///s.db", tmp_path))
    assert (found.state, "s.db" in found.text) == (BAD, True)


def test_a_locked_database_is_said_to_be_locked(tmp_path):
    path = tmp_path / "s.db"
    optuna.create_study(storage=f"sqlite:///{path}", study_name="mine")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        assert "locked by another program" in one(database("sqlite:///s.db", tmp_path)).text
    finally:
        holder.close()


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path):
    found = one(database("postgresql+psycopg://me:secret@127.0.0.1:1/none", tmp_path))
    assert found.state == BAD
    assert "secret" not in found.text


# ----------------------------------------------------------------------------------------------------- native steps
@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Writes outcomes of a first use, by this code and this torch unless it is told otherwise."""
    outcomes = drop_in.kernels("outcomes")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    known = {"code": outcomes.code_sha256(drop_in.__file__), "torch": torch.__version__}

    def write(step, device, verdict, **facts):
        key = known | facts.pop("key", {}) | {"step": step, "device": device, "n": str(len(list(outcomes.read_all())))}
        outcome = outcomes.Outcome(step, device, verdict, key=key, **facts)
        outcomes.write(outcome)
        return outcomes.file_of(outcome.key)

    return write


def test_the_outcome_of_each_devices_first_use_is_shown_with_its_ratio_and_time(tried):
    assert "no native step" in one(doctor.first_uses()).text
    tried("numba", "x86_64 znver4", "equal", ratio=84.2, n_steps=234, when_s=1_796_000_000.0)
    for ratio in (61.0, 93.0):
        tried("triton", "Card A (gfx1100)", "equal", ratio=ratio, n_steps=299, when_s=1_796_000_000.0)
    numba, triton = doctor.first_uses()
    assert (numba.state, triton.state) == (OK, OK)
    assert numba.text == (
        "numba on x86_64 znver4: equal to the plain step over 234 steps, 84 times as fast, 2026-11-30 00:53 UTC"
    )
    assert triton.text.startswith(
        "triton on Card A (gfx1100): equal to the plain step over 598 steps with 2 settings, 61 times to 93 times as"
    )


@pytest.mark.parametrize(
    ("verdict", "facts", "words"),
    [("failed", {"reason": "RuntimeError: unsupported target: 'gfx1030'"}, "failed: RuntimeError: unsupported target"),
     ("differs", {"reason": "step 17, field cash"}, "differs: step 17, field cash"),
     ("slower", {"ratio": 0.25}, "slower: 0.25 times the speed of the plain step")],
)  # fmt: skip
def test_an_outcome_against_a_step_is_a_note_that_says_how_to_try_again(tried, verdict, facts, words):
    tried("triton", "Card B (gfx1030)", "equal", ratio=50.0)
    path = tried("triton", "Card B (gfx1030)", verdict, **facts)
    found = one(doctor.first_uses())
    assert found.state == NOTE
    assert words in found.text
    assert str(path) in found.remedy


def test_outcomes_of_other_code_or_another_torch_are_not_shown(tried):
    tried("numba", "a", "differs", key={"code": "0" * 64})
    tried("numba", "b", "equal", key={"torch": "1.0"})
    assert "no native step" in one(doctor.first_uses()).text


# ------------------------------------------------------------------------------------------------- folders and process
def test_folders_that_cannot_be_written_are_bad(tmp_path, monkeypatch):
    assert [f.state for f in folders(tmp_path)] == [OK] * 3 or doctor.shutil.disk_usage(tmp_path).free < 5 << 30
    assert not list(tmp_path.iterdir())
    (tmp_path / "logs").write_text("a file where the folder should be")
    assert [f.state == BAD for f in folders(tmp_path)] == [True, False, False]


def test_little_room_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 1 << 60)
    assert {f.state for f in folders(tmp_path)} == {NOTE}
    monkeypatch.setattr(doctor, "NO_DISK_BYTES", 1 << 60)
    assert {f.state for f in folders(tmp_path)} == {BAD}


def test_only_the_process_of_the_pid_file_is_the_trainer(tmp_path):
    path = tmp_path / "t.pid"
    assert "not running" in one(trainer(path)).text
    ticks = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    path.write_text(f"{os.getpid()}\n{ticks}\npython trainer\n")
    assert f"running (pid {os.getpid()})" in one(trainer(path)).text
    path.write_text(f"{os.getpid()}\n{int(ticks) + 1}\npython trainer\n")
    assert "has ended" in one(trainer(path)).text
    path.write_text("garbage")
    assert "not running" in one(trainer(path)).text


def test_keys_are_never_shown(monkeypatch):
    monkeypatch.setenv("APCA_API_KEY_ID", "very-secret")
    monkeypatch.delenv("APCA_API_SECRET_KEY", raising=False)
    found = one(doctor.keys())
    assert found.state == NOTE
    assert "very-secret" not in report([found])


def test_every_problem_says_what_to_do(tmp_path):
    places = Places(REPO, tmp_path, "nonsense", tmp_path)
    assert all(f.remedy for f in doctor.examine(places) if f.state != OK)
