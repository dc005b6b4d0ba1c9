"""What a worker says of itself while it trains: one small file a process, for who watches on the same file system.

`<study's results>/workers/<host>-<pid>.json` is replaced at most every few seconds and removed when the worker ends. It
is a convenience, not a record: it is not forced onto the disk, and a file that cannot be written costs a line in the
log and nothing else. A killed worker leaves its file behind; the next worker of that machine removes it.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from market.files import whole_file
from train.store.worker_identity import is_running, is_this_machine, this_worker

logger = logging.getLogger(__name__)

WORKERS_FOLDER = "workers"
EVERY_S = 5.0  # between two writes
FORGOTTEN_S = 3600.0  # without a word
LARGEST_FILE_BYTES = 65_536


@dataclass(frozen=True)
class WorkerStatus:
    """Where a worker stands. None: not known, or nothing to say."""

    host: str
    pid: int
    started: float  # with `started_ticks`, as in `WorkerIdentity`: tells the process from a later one's pid
    updated: float  # when this was written, UTC seconds
    rss_bytes: int | None = None
    trial: int | None = None  # None: between trials
    split: int | None = None
    n_splits: int | None = None
    env_steps: int | None = None  # of this split, all environments together
    total_env_steps: int | None = None
    explore_steps_per_s: float | None = None  # environment steps per second of exploring
    update_samples_per_s: float | None = None  # samples through gradient steps per second of updating
    validation_score: float | None = None  # the split's last one
    machine: str = ""  # as in `train.store.worker_identity.this_worker`: host names repeat among containers
    started_ticks: int | None = None
    code: str = ""  # as in `WorkerIdentity`

    @property
    def is_of_this_machine(self) -> bool:
        """Whether its process number means one of our processes."""
        return is_this_machine(self.host, self.machine)

    @property
    def is_left_over(self) -> bool:
        """Whether nobody will write or remove its file any more."""
        if self.is_of_this_machine:
            return not is_running(self.pid, self.started, self.started_ticks)
        # Of a machine with our name: this one before it was started anew, or another container.
        return self.host == socket.gethostname() and time.time() - self.updated > FORGOTTEN_S


class StatusFile:
    """This process's file; in use as a context manager."""

    def __init__(self, study_folder: Path, every_s: float = EVERY_S) -> None:
        process = psutil.Process()
        self._process, self._every_s = process, every_s
        self._me = this_worker()
        self.path = status_path(study_folder, self._me.host, process.pid)
        self._next_s = 0.0
        self._is_broken = False

    def __enter__(self) -> StatusFile:
        for status in read_statuses(self.path.parent.parent):
            if status.is_left_over:
                _remove(status_path(self.path.parent.parent, status.host, status.pid))
        self.write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self.path)

    @property
    def is_due(self) -> bool:
        """Whether the last write is long enough ago; costs a look at the clock."""
        return time.monotonic() >= self._next_s

    def write(self, **known: Any) -> None:
        """Replace the file now. `known`: fields of `WorkerStatus`; the others are unknown."""
        self._next_s = time.monotonic() + self._every_s
        rss = self._process.memory_info().rss
        content = asdict(WorkerStatus(**vars(self._me), updated=time.time(), rss_bytes=rss, **known))
        try:
            with whole_file(self.path, is_durable=False) as file:
                file.write(json.dumps(content).encode())
        except OSError as error:
            if not self._is_broken:
                logger.warning("%s: cannot be written (%s); dashboards will not show how far this worker is",
                               self.path, error.strerror)  # fmt: skip
            self._is_broken = True


def _remove(path: Path) -> None:
    """A file that stays is no harm: its process is seen to have ended."""
    with suppress(OSError):
        path.unlink()


def status_path(study_folder: Path, host: str, pid: int) -> Path:
    """`<study>/workers/<host>-<pid>.json`."""
    return study_folder / WORKERS_FOLDER / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', host)}-{pid}.json"


def read_statuses(study_folder: Path) -> list[WorkerStatus]:
    """Every worker's last word; files that are not ours, or not whole, are left out."""
    found = [_read(path) for path in sorted((study_folder / WORKERS_FOLDER).glob("[!.]*.json"))]
    return [status for status in found if status is not None]


def _read(path: Path) -> WorkerStatus | None:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(LARGEST_FILE_BYTES))
        return WorkerStatus(**_checked(content))
    except (OSError, ValueError, TypeError):
        return None


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a status, each of the kind it should be.

    Raises:
        ValueError, TypeError: it is no status.
    """
    known = {field.name: str(field.type) for field in fields(WorkerStatus)}
    values = {name: value for name, value in dict(content).items() if name in known}
    for name, value in values.items():
        kinds = {"str": (str,), "int": (int,), "float": (int, float)}[known[name].partition(" ")[0]]
        is_absent = value is None and known[name].endswith("None")
        if not is_absent and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ValueError(name)
    return values
