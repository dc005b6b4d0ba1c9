"""Lock, pid file and heartbeat, so that at most one trader uses an account on this machine.

The lock is in the system's temporary folder and is named after the account, so that all checkouts share it. The kernel
releases it when its holder ends for any reason.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from market.errors import UserError
from market.files import write_whole
from paper_trading.journal import FILE
from train.store.worker_identity import is_running, start_ticks, this_machine

log = logging.getLogger(__name__)

PID_FILE, STATUS_FILE = "trader.pid", "status.json"
HEARTBEAT_S = 10.0
STALE_S = 60.0  # if the heartbeat is older than this, the trader is considered hung
STOP_WAIT_S = 45.0
DONE, NO_TRADER = 0, 3  # exit codes


class BusyError(UserError):
    """Another trader uses the account."""

    exit_code = 4


@contextmanager
def sole_trader(account: str, folder: Path) -> Iterator[None]:
    """Hold the locks of the account on this machine and of its folder, and write the pid file.

    Raises:
        BusyError: if another process holds one of the locks.
        UserError: if a lock cannot be opened.
    """
    with ExitStack() as held:
        for path in lock_paths(account, folder):
            held.callback(os.close, _locked(path, account))
        with suppress(OSError):  # a full disk must not prevent --flatten
            write_whole(folder / PID_FILE, f"{os.getpid()}\n{start_ticks(os.getpid())}\n".encode())
        try:
            yield
        finally:
            (folder / PID_FILE).unlink(missing_ok=True)


def _locked(path: Path, account: str) -> int:
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(f"cannot open the lock {path} ({error.strerror}); it may belong to another user") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BusyError(f"another trader uses account {account} on this machine; check it with --status") from error
    return handle


def lock_paths(account: str, folder: Path) -> list[Path]:
    """Return the lock in the folder and, for a venue's account, the lock in /tmp, which does not depend on TMPDIR."""
    shared = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    return [folder / ".lock", *([] if account == "replay" else [shared / f"barwise-trader-{account}.lock"])]


def trader_pid(folder: Path) -> int | None:
    """Return the pid of the trader of this folder, or None if it is not running or its pid was reused."""
    try:
        pid, ticks = (folder / PID_FILE).read_text().split()
        is_ours = is_running(int(pid), None, int(ticks))
    except (OSError, ValueError):
        return None
    return int(pid) if is_ours else None


def ask(folder: Path, number: signal.Signals, wait_s: float) -> bool | None:
    """Send the trader a signal and wait until it exits. Return True if it exited in time, or None if no trader runs."""
    pid = trader_pid(folder)
    if pid is None:
        return None
    os.kill(pid, number)
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if trader_pid(folder) != pid:
            return True
        time.sleep(0.1)
    return trader_pid(folder) != pid


class Heartbeat:
    """Writer of `status.json`, which describes the running trader and is updated every `HEARTBEAT_S`."""

    def __init__(self, folder: Path, constant: dict[str, Any]) -> None:
        own = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "machine": this_machine()}
        self._path, self._constant = folder / STATUS_FILE, constant | own
        self._written_s, self._failed = float("-inf"), False
        self._locks = lock_paths(str(constant["account"]), folder)

    def beat(self, content: dict[str, Any], now: bool = False) -> None:
        """Write the heartbeat if it is due, or if `now` is True. Write errors are logged and ignored."""
        if not now and time.monotonic() - self._written_s < HEARTBEAT_S:
            return
        self._written_s = time.monotonic()
        for path in self._locks:  # automatic cleanup of the temporary folder may delete old files
            with suppress(OSError):
                os.utime(path)
        stamp = datetime.fromtimestamp(time.time(), tz=UTC).isoformat(timespec="seconds")
        try:
            write_whole(self._path, json.dumps(self._constant | {"utc": stamp} | content, indent=1).encode())
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("cannot write %s (%s)", self._path, error.strerror)
            self._failed = True


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return the last heartbeat, or None if no readable one exists."""
    try:
        found = json.loads((folder / STATUS_FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def folders(trading: Path) -> list[Path]:
    """Return the folders of all accounts, with the most recently active first."""
    found = [path for path in trading.glob("*") if (path / FILE).exists()]
    return sorted(found, key=lambda path: -(path / FILE).stat().st_mtime)


def status(trading: Path) -> tuple[int, str]:
    """Return the exit code and the text of --status, which has one line per running trader."""
    running = [folder for folder in folders(trading) if trader_pid(folder) is not None]
    if not running:
        return NO_TRADER, f"no trader is running in {trading}"
    is_silent = any(_silent_s(folder) > STALE_S for folder in running)
    return (NO_TRADER if is_silent else DONE), "\n".join(map(_line, running))


def _silent_s(folder: Path) -> float:
    """Return the seconds since the last heartbeat."""
    try:
        return time.time() - (folder / STATUS_FILE).stat().st_mtime
    except OSError:
        return 0.0  # the trader has just started


def _line(folder: Path) -> str:
    found: Mapping[str, Any] = read_status(folder) or {}
    why = f" ({found['why']})" if found.get("why") else ""
    who = f"{found.get('mode', '?')} {folder.name}: pid {trader_pid(folder)}, {found.get('state', 'unknown')}{why}"
    hangs = f", SILENT for {_silent_s(folder):.0f} s" if _silent_s(folder) > STALE_S else ""
    return f"{who}, {found.get('phase', 'starting')}, deployment {found.get('deployment', 'unknown')}{hangs}"


def stop(trading: Path) -> tuple[int, str]:
    """Stop every trader of this folder, wait for them, and return the exit code and the text of --stop."""
    stopped = []
    for folder in folders(trading):
        done = ask(folder, signal.SIGTERM, STOP_WAIT_S)
        if done is False:
            raise UserError(f"the trader of {folder.name} is still running {STOP_WAIT_S:.0f} s after SIGTERM")
        if done:
            is_replay = folder.name.startswith("replay")
            stopped.append(
                "stopped the replay" if is_replay else f"stopped the trader of {folder.name}; positions are kept"
            )
    return (DONE, "\n".join(stopped)) if stopped else (NO_TRADER, f"no trader is running in {trading}")
