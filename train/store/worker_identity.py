"""Identity of the process that runs a trial, and the time after which it is considered dead."""

from __future__ import annotations

import socket
from functools import cache
from pathlib import Path

import psutil
from optuna.trial import FrozenTrial

from train.records.keys import WORKER
from train.records.provenance import trial_code_sha256
from train.records.record_files import decode
from train.records.stored import WorkerIdentity

MAX_KILLS = 2  # a trial is retried after at most this many kills; trials interrupted by the user always are
HEARTBEAT_S = 30
GRACE_S = 120  # time without a heartbeat after which a worker on another machine counts as dead


def this_worker() -> WorkerIdentity:
    """Return the identity of this process, so that other processes can check whether it is alive."""
    process = psutil.Process()
    return WorkerIdentity(
        host=socket.gethostname(),
        machine=this_machine(),
        pid=process.pid,
        started=process.create_time(),
        started_ticks=start_ticks(process.pid),
        code=code_of_trials(),
    )


def code_of_trials() -> str:
    """Return the first characters of the hash of all code that a trial's value depends on."""
    return trial_code_sha256()[:12]


def worker_of(trial: FrozenTrial) -> WorkerIdentity | None:
    """Return the process that took a trial, or None if it was killed before it was recorded."""
    signed = trial.user_attrs.get(WORKER)
    return None if signed is None else decode(signed, WorkerIdentity, f"the worker of trial {trial.number}")


def start_ticks(pid: int) -> int | None:
    """Return the clock ticks from boot to the start of a process. They do not depend on the system clock's setting.

    Return None if the process or /proc does not exist. Source: proc(5), field `starttime` of /proc/pid/stat.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2]
        return int(after_name.split()[19])
    except (OSError, ValueError, IndexError):
        return None


def is_running(pid: int, started: float | None, started_ticks: int | None = None) -> bool:
    """Return True if the process is alive on this machine and its start time matches, so its pid was not reused."""
    try:
        process = psutil.Process(pid)
        if started_ticks is not None and (ticks := start_ticks(pid)) is not None:
            is_same = ticks == started_ticks
        else:
            is_same = started is None or abs(process.create_time() - started) <= 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def is_this_machine(host: str, machine: str) -> bool:
    """Return True if a worker runs on this machine. If `machine` is empty, only the host is compared."""
    return (host, machine or this_machine()) == (socket.gethostname(), this_machine())


@cache
def this_machine() -> str:
    """Return boot id and pid namespace. Host names alone are not unique among containers and cloned machines."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
