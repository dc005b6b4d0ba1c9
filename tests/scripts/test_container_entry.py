"""The container's entry without a container: what it refuses, and that it becomes the trader."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from market.defaults import KEY_VARIABLES
from tests.support import small_disk
from tests.support.launcher_clone import ROOT

# Writes down what it was started with, then waits for SIGTERM.
PYTHON = f"""#!{sys.executable}
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
pathlib.Path(os.environ["STARTED"]).write_text("\\n".join(sys.argv[1:]))
if "--wait" in sys.argv:
    time.sleep(60)
"""
KEYS = {"APCA_API_KEY_ID": "id", "APCA_API_SECRET_KEY": "secret"}


class Container:
    """What the image holds, in a folder with blanks; `python` is a stand-in."""

    def __init__(self, folder: Path) -> None:
        self.app, self.started, self.bin = folder / "an app", folder / "started", folder / "bin"
        (self.app / "scripts" / "deployment").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "deployment" / "container_entry.sh", self.app / "scripts" / "deployment")
        (self.app / "deployments" / "current").mkdir(parents=True)
        (self.app / "trading").mkdir()
        self.bin.mkdir()
        (self.bin / "python").write_text(PYTHON)
        (self.bin / "python").chmod(0o755)

    @property
    def trader(self) -> str:
        return str(self.app / "scripts" / "deployment" / "paper_trade.py")

    def command(self, *flags: str) -> list[str]:
        return ["bash", str(self.app / "scripts" / "deployment" / "container_entry.sh"), *flags]

    def environment(self, keys: dict[str, str]) -> dict[str, str]:
        others = {k: v for k, v in os.environ.items() if not k.startswith(("APCA_", "ALPACA_"))}
        return others | {"PATH": f"{self.bin}:{os.environ['PATH']}", "STARTED": str(self.started)} | keys

    def run(
        self, *flags: str, keys: dict[str, str] = KEYS, before: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess:
        command = [*before, *self.command(*flags)]
        return subprocess.run(
            command, env=self.environment(keys), cwd=self.app, capture_output=True, text=True, timeout=30, check=False
        )

    def started_with(self) -> list[str] | None:
        return self.started.read_text().splitlines() if self.started.exists() else None


@pytest.fixture
def container(tmp_path: Path) -> Container:
    return Container(tmp_path)


def assert_refused(container: Container, result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("container_entry.sh: ")
    assert all(word in line for word in words), line
    assert container.started_with() is None


@pytest.mark.parametrize("names", KEY_VARIABLES)
def test_with_keys_it_becomes_the_trader_and_passes_all_flags(container, names):
    result = container.run("--max-drawdown", "0.1", "--alert-command", "tell me", keys=dict.fromkeys(names, "x"))
    assert (result.returncode, result.stderr) == (0, "")
    assert container.started_with() == [container.trader, "--max-drawdown", "0.1", "--alert-command", "tell me"]


@pytest.mark.parametrize("keys", [{}, {"APCA_API_KEY_ID": "id"}, {"APCA_API_KEY_ID": "id", "ALPACA_API_SECRET": "s"},
                                  KEYS | {"APCA_API_SECRET_KEY": ""}])  # fmt: skip
def test_missing_keys_are_refused_and_become_no_replay(container, keys):
    for flags in ((), ("--live",), ("--broker", "alpaca"), ("--flatten",)):
        assert_refused(container, container.run(*flags, keys=keys), "keys are not set", "--broker replay")


@pytest.mark.parametrize("flags", [("--broker", "replay"), ("--broker=replay",)])
def test_a_replay_needs_no_keys(container, flags):
    assert container.run(*flags, keys={}).returncode == 0
    assert container.started_with() == [container.trader, *flags]


@pytest.mark.parametrize("flags", [(), ("--deployments-dir", "elsewhere"), ("--deployments-dir=elsewhere",)])
def test_deployments_that_are_not_mounted_are_refused(container, flags):
    if not flags:
        (container.app / "deployments" / "current").rmdir()
        (container.app / "deployments" / "current").symlink_to("gone")
    assert_refused(container, container.run(*flags), "elsewhere" if flags else "deployments/current", "mount")


@pytest.mark.parametrize("flags", [("--trading-dir", "a file/x"), ("--trading-dir=a file",)])
def test_a_trading_folder_that_cannot_be_made_is_refused(container, flags):
    (container.app / "a file").touch()
    assert_refused(container, container.run(*flags), "cannot write", "a file", "chown")


def test_a_read_only_trading_folder_is_refused(container):
    """On a read-only disk, which root cannot write either."""
    if reason := small_disk.why_not():
        pytest.skip(reason)
    mounted = "import os, sys, pathlib; sys.path.insert(0, sys.argv[1]); from tests.support.small_disk import mount; "
    mounted += "mount(pathlib.Path(sys.argv[2]), 4096, read_only=True); os.execvp(sys.argv[3], sys.argv[3:])"
    before = (sys.executable, "-c", mounted, str(ROOT), str(container.app / "trading"))
    assert_refused(container, container.run(before=before), "cannot write", "trading")


def test_questions_and_the_kill_switch_are_not_kept_from_the_trader(container):
    shutil.rmtree(container.app / "deployments")
    shutil.rmtree(container.app / "trading")
    (container.app / "trading").touch()
    assert container.run("--flatten").returncode == 0
    assert container.started_with() == [container.trader, "--flatten"]
    for question in ("--status", "--stop", "--help"):
        assert container.run(question, keys={}).returncode == 0
        assert container.started_with() == [container.trader, question]


def test_sigterm_reaches_the_trader_which_is_the_same_process(container):
    process = subprocess.Popen(container.command("--wait"), env=container.environment(KEYS), cwd=container.app)
    deadline = time.monotonic() + 20.0
    while container.started_with() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
    assert container.trader.encode() in words
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143


def test_the_exit_code_is_the_traders(container):
    (container.bin / "python").write_text("#!/bin/sh\nexit 5\n")
    assert container.run().returncode == 5
