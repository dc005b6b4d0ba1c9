"""Which process works on a trial, and after how long without a heartbeat it counts as dead."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

import psutil

from train.records.stored import WorkerIdentity

MAX_KILLS = 2  # after which a trial is tried again; one that was interrupted by its user always is
HEARTBEAT_S = 30
GRACE_S = 120  # without a heartbeat a worker on another machine counts as dead


def this_worker() -> WorkerIdentity:
    """This process, such that a later one on the same machine can tell whether it still lives."""
    started = psutil.Process().create_time()
    return WorkerIdentity(host=socket.gethostname(), machine=this_machine(), pid=os.getpid(), started=started)


@cache
def this_machine() -> str:
    """Where a process number means one process: host names repeat, among containers and cloned machines."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
