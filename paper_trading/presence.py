"""One trader for one account on this machine: the lock, the pid file, the heartbeat.

The lock lies in the system's folder for temporary files, under the account's name, so that two checkouts share it. The
kernel lets it go when its holder ends, however it ends.
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
STALE_S = 60.0  # a heartbeat older than this is of a trader that hangs
STOP_WAIT_S = 45.0
DONE, NO_TRADER = 0, 3  # exit codes


class BusyError(UserError):
    """Another trader has the account."""

    exit_code = 4


@contextmanager
def sole_trader(account: str, folder: Path) -> Iterator[None]:
    """Hold the account on this machine and its folder on any, and say in the folder who holds them.

    Raises:
        BusyError: another process has one of them.
        UserError: a lock cannot be opened.
    """
    with ExitStack() as held:
        for path in lock_paths(account, folder):
            held.callback(os.close, _locked(path, account))
        with suppress(OSError):  # a full disk must not keep --flatten from its work
            write_whole(folder / PID_FILE, f"{os.getpid()}\n{start_ticks(os.getpid())}\n".encode())
        try:
            yield
        finally:
            (folder / PID_FILE).unlink(missing_ok=True)


def _locked(path: Path, account: str) -> int:
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(f"the lock {path} cannot be opened ({error.strerror}); another user's trader?") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BusyError(f"another trader has the account {account} on this machine; see it with --status") from error
    return handle


def lock_paths(account: str, folder: Path) -> list[Path]:
    """A venue's account is one on the machine, whatever TMPDIR says; a folder is one trader's wherever it lies."""
    shared = Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())
    return [folder / ".lock", *([] if account == "replay" else [shared / f"barwise-trader-{account}.lock"])]


def trader_pid(folder: Path) -> int | None:
    """The process that trades in this folder; None where none does, or the number is another process's by now."""
    try:
        pid, ticks = (folder / PID_FILE).read_text().split()
        is_ours = is_running(int(pid), None, int(ticks))
    except (OSError, ValueError):
        return None
    return int(pid) if is_ours else None


def ask(folder: Path, number: signal.Signals, wait_s: float) -> bool | None:
    """Send a signal to the trader and wait for its end; None where there is none, else whether it ended in time."""
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
    """`status.json`: what the trader does now, written again every `HEARTBEAT_S`."""

    def __init__(self, folder: Path, constant: dict[str, Any]) -> None:
        own = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "machine": this_machine()}
        self._path, self._constant = folder / STATUS_FILE, constant | own
        self._written_s, self._failed = float("-inf"), False
        self._locks = lock_paths(str(constant["account"]), folder)

    def beat(self, content: dict[str, Any], now: bool = False) -> None:
        """Write it if it is time, or `now`; a disk that is full must not stop what follows."""
        if not now and time.monotonic() - self._written_s < HEARTBEAT_S:
            return
        self._written_s = time.monotonic()
        for path in self._locks:  # a folder for temporary files may be swept of what is old
            with suppress(OSError):
                os.utime(path)
        stamp = datetime.fromtimestamp(time.time(), tz=UTC).isoformat(timespec="seconds")
        try:
            write_whole(self._path, json.dumps(self._constant | {"utc": stamp} | content, indent=1).encode())
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s)", self._path, error.strerror)
            self._failed = True


def read_status(folder: Path) -> dict[str, Any] | None:
    """The last heartbeat; None where there is none that can be read."""
    try:
        found = json.loads((folder / STATUS_FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def folders(trading: Path) -> list[Path]:
    """Accounts that a trader has had, the newest heartbeat first."""
    found = [path for path in trading.glob("*") if (path / FILE).exists()]
    return sorted(found, key=lambda path: -(path / FILE).stat().st_mtime)


def status(trading: Path) -> tuple[int, str]:
    """What trades, and how it stands."""
    running = [folder for folder in folders(trading) if trader_pid(folder) is not None]
    if not running:
        return NO_TRADER, f"no trader runs in {trading}"
    is_silent = any(_silent_s(folder) > STALE_S for folder in running)
    return (NO_TRADER if is_silent else DONE), "\n".join(map(_line, running))


def _silent_s(folder: Path) -> float:
    """Seconds since the last heartbeat."""
    try:
        return time.time() - (folder / STATUS_FILE).stat().st_mtime
    except OSError:
        return 0.0  # it has just begun


def _line(folder: Path) -> str:
    found: Mapping[str, Any] = read_status(folder) or {}
    why = f" ({found['why']})" if found.get("why") else ""
    who = f"{found.get('mode', '?')} {folder.name}: pid {trader_pid(folder)}, {found.get('state', 'unknown')}{why}"
    hangs = f", SILENT for {_silent_s(folder):.0f} s" if _silent_s(folder) > STALE_S else ""
    return f"{who}, {found.get('phase', 'starting')}, deployment {found.get('deployment', 'unknown')}{hangs}"


def stop(trading: Path) -> tuple[int, str]:
    """Ask every trader of this folder to stop, and wait for it."""
    stopped = []
    for folder in folders(trading):
        done = ask(folder, signal.SIGTERM, STOP_WAIT_S)
        if done is False:
            raise UserError(f"the trader of {folder.name} still runs {STOP_WAIT_S:.0f} s after SIGTERM")
        if done:
            is_replay = folder.name.startswith("replay")
            stopped.append(
                "stopped the replay" if is_replay else f"stopped the trader of {folder.name}; positions stay"
            )
    return (DONE, "\n".join(stopped)) if stopped else (NO_TRADER, f"no trader runs in {trading}")
