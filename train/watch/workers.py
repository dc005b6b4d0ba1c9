"""Workers of a study, from running trials in the database, status files and the processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from train.records.attributes import uuid_in
from train.records.errors import StudyError
from train.records.record_files import decode
from train.records.results import find_study_folder
from train.records.stored import WorkerIdentity
from train.store.worker_identity import GRACE_S, is_running, is_this_machine
from train.store.worker_status import WorkerStatus, read_statuses
from train.watch.machine import Meter
from train.watch.snapshot import Running, Snapshot

ALIVE, DEAD, SILENT, UNKNOWN = "alive", "dead", "silent", "unknown"
OLD_STATUS_S = 60.0  # age in seconds from which the status of a live worker counts as old


@dataclass(frozen=True)
class Worker:
    """A worker process. None means unknown."""

    host: str
    pid: int | None
    state: str  # alive; dead: no such process on this machine; silent: heartbeat overdue; unknown
    trial: int | None
    status: WorkerStatus | None  # status file of the worker, if it is about this trial
    sign_age_s: float | None  # seconds since the last status or heartbeat
    cores: float | None = None
    rss_bytes: int | None = None

    @property
    def is_status_old(self) -> bool:
        """True if the status may be out of date."""
        return self.status is not None and (self.state != ALIVE or time.time() - self.status.updated > OLD_STATUS_S)

    @property
    def split_share(self) -> float | None:
        """Fraction (0 to 1) of the current split's step budget that is used."""
        s = self.status
        if s is None or s.env_steps is None or not s.total_env_steps:
            return None
        return min(s.env_steps / s.total_env_steps, 1.0)


def results_folder(snapshot: Snapshot, results_dir: Path | None = None) -> Path | None:
    """Return the study's results, in `results_dir` or at the path stored in the study, or None if they are missing."""
    if results_dir is not None:
        with suppress(StudyError):
            return find_study_folder(results_dir, snapshot.name, uuid_in(snapshot.user_attrs))
        return None
    named = snapshot.user_attrs.get("results")
    return Path(named) if isinstance(named, str) and Path(named).is_dir() else None


def find_workers(snapshot: Snapshot, meter: Meter, results_dir: Path | None = None) -> list[Worker]:
    """Return every worker that runs a trial or wrote a status file, live workers first."""
    folder = results_folder(snapshot, results_dir)
    statuses = {(s.host, s.pid): s for s in read_statuses(folder)} if folder is not None else {}
    found = [_of_trial(running, statuses, meter) for running in snapshot.running]
    known = {(worker.host, worker.pid) for worker in found}
    found += [_of_status(status, meter) for key, status in statuses.items() if key not in known]
    return sorted(found, key=lambda w: ((ALIVE, UNKNOWN, SILENT, DEAD).index(w.state), w.host, w.pid or 0))


def _of_trial(running: Running, statuses: dict[tuple[str, int], WorkerStatus], meter: Meter) -> Worker:
    try:
        signed_by = decode(running.worker, WorkerIdentity, f"the worker of trial {running.number}")
    except StudyError:  # trial of another program, or one whose worker has not written its identity yet
        return Worker("unknown", None, UNKNOWN, running.number, None, running.heartbeat_age_s)
    status = statuses.get((signed_by.host, signed_by.pid))
    if status is not None and status.trial != running.number:
        status = None
    ages = [running.heartbeat_age_s, time.time() - status.updated if status else None]
    return _living(signed_by, running.number, status, ages, meter)


def _of_status(status: WorkerStatus, meter: Meter) -> Worker:
    """Return a worker without a running trial, either between two trials or dead."""
    age_s = time.time() - status.updated
    return _living(status, status.trial, status, [age_s], meter)


def _living(
    who: WorkerIdentity | WorkerStatus,
    trial: int | None,
    status: WorkerStatus | None,
    sign_ages_s: Sequence[float | None],
    meter: Meter,
) -> Worker:
    host, pid = who.host, who.pid
    age_s = min((max(age, 0.0) for age in sign_ages_s if age is not None), default=None)
    if is_this_machine(host, who.machine):
        is_alive = is_running(pid, who.started, who.started_ticks)
        load = meter.process(pid) if is_alive else None
        cores, rss = (load.cores, load.rss_bytes) if load else (None, None)
        return Worker(host, pid, ALIVE if is_alive else DEAD, trial, status, age_s, cores, rss)
    state = UNKNOWN if age_s is None else ALIVE if age_s <= GRACE_S else SILENT
    return Worker(host, pid, state, trial, status, age_s, None, status.rss_bytes if status else None)
