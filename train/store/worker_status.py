"""Status of a worker during training: one small file per process, for monitoring on the same file system.

`<study's results>/workers/<host>-<pid>.json` is replaced at most every few seconds and removed when the worker exits.
The file is a convenience, not a record: it is not synced to disk, and a failed write is only logged. The file of a
killed worker is removed by the next worker on that machine.
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
EVERY_S = 5.0  # interval between two writes
FORGOTTEN_S = 3600.0  # without an update
LARGEST_FILE_BYTES = 65_536


@dataclass(frozen=True)
class WorkerStatus:
    """Progress of a worker. None means unknown or not applicable."""

    host: str
    pid: int
    started: float  # with `started_ticks`, distinguishes processes with a reused pid, as in `WorkerIdentity`
    updated: float  # time of this update, UTC seconds
    rss_bytes: int | None = None
    trial: int | None = None  # None: between trials
    split: int | None = None
    n_splits: int | None = None
    env_steps: int | None = None  # steps of this split, summed over environments
    total_env_steps: int | None = None
    explore_steps_per_s: float | None = None  # environment steps per second of exploration
    update_samples_per_s: float | None = None  # samples in gradient steps per second of updates
    validation_score: float | None = None  # latest of this split
    machine: str = ""  # as in `train.store.worker_identity.this_worker`; host names are not unique
    started_ticks: int | None = None
    code: str = ""  # as in `WorkerIdentity`

    @property
    def is_of_this_machine(self) -> bool:
        """True if the process number belongs to this machine."""
        return is_this_machine(self.host, self.machine)

    @property
    def is_left_over(self) -> bool:
        """True if no process will update or remove the file any more."""
        if self.is_of_this_machine:
            return not is_running(self.pid, self.started, self.started_ticks)
        # Same host name: this machine before a reboot, or another container.
        return self.host == socket.gethostname() and time.time() - self.updated > FORGOTTEN_S


class StatusFile:
    """Status file of this process; a context manager."""

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
        """True if the next write is due. This only reads the clock."""
        return time.monotonic() >= self._next_s

    def write(self, **known: Any) -> None:
        """Replace the file now. `known` holds fields of `WorkerStatus`; the other fields are unknown."""
        self._next_s = time.monotonic() + self._every_s
        rss = self._process.memory_info().rss
        content = asdict(WorkerStatus(**vars(self._me), updated=time.time(), rss_bytes=rss, **known))
        try:
            with whole_file(self.path, is_durable=False) as file:
                file.write(json.dumps(content).encode())
        except OSError as error:
            if not self._is_broken:
                logger.warning("could not write %s: %s; dashboards will not show the progress of this worker",
                               self.path, error.strerror)  # fmt: skip
            self._is_broken = True


def _remove(path: Path) -> None:
    """Remove the file if possible. A leftover file is harmless, because its process is recognized as dead."""
    with suppress(OSError):
        path.unlink()


def status_path(study_folder: Path, host: str, pid: int) -> Path:
    """Return `<study>/workers/<host>-<pid>.json`."""
    return study_folder / WORKERS_FOLDER / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', host)}-{pid}.json"


def read_statuses(study_folder: Path) -> list[WorkerStatus]:
    """Return the latest status of every worker. Unknown or incomplete files are skipped."""
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
    """Return the fields of a status after checking their types.

    Raises:
        ValueError, TypeError: the content is not a status.
    """
    known = {field.name: str(field.type) for field in fields(WorkerStatus)}
    values = {name: value for name, value in dict(content).items() if name in known}
    for name, value in values.items():
        kinds = {"str": (str,), "int": (int,), "float": (int, float)}[known[name].partition(" ")[0]]
        is_absent = value is None and known[name].endswith("None")
        if not is_absent and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise ValueError(name)
    return values
