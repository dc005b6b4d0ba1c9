"""Where a study is kept: opening it, recognising it, and clearing up after workers that died.

SQLite by default (write-ahead log, 60 s of patience with a locked file), any other database by its URL. A study carries
its identity (`train.study.rules`) as a user attribute; the same name with another identity is refused, because its
trials could not be compared.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from train.study.data import StudyError

DEFAULT_STORAGE = "sqlite:///databases/optuna_cappuccino.db"  # in the repository
DIRECTION = "maximize"
IDENTITY, FAILURE, WORKER, RETRY_OF = "identity", "failure", "worker", "retry_of"
CODE_VERSION = "code_version"
TARGET = "target"  # study's: finished trials it is to have, by its last command
DATA_DIR = "data_dir"  # where the study read its data last
HOLDOUT_SCORE = "holdout_score"  # of the winner, once (`train.study.holdout`)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # a failed trial does not count towards the target
MAX_RETRIES = 2  # of a killed or interrupted trial
LOCK_TIMEOUT_S = 60
HEARTBEAT_S = 30
GRACE_S = 120  # without a heartbeat a worker on another machine counts as dead
SQLITE_HEADER = b"SQLite format 3\x00"


@contextmanager
def experimental_allowed() -> Iterator[None]:
    """Heartbeats and the Wilcoxon pruner are marked experimental in Optuna 5; the tests hold what is used of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def absolute_url(url: str, base: Path) -> URL:
    """The storage's URL, a relative SQLite path taken relative to `base`.

    Raises:
        StudyError: not a database URL, or one that keeps nothing.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StudyError(
            f"--storage {url}: not a database URL; give sqlite:///path/to/file.db or postgresql://user@host/name"
        ) from error
    if parsed.get_backend_name() != "sqlite":
        return parsed
    if parsed.database in (None, "", ":memory:"):
        raise StudyError(f"--storage {url}: names no file, so nothing would be kept; give sqlite:///path/to/file.db")
    return parsed.set(database=str(base / parsed.database))


def open_study(
    url: URL, name: str, identity: Mapping[str, Any], must_exist: bool, pruner: optuna.pruners.BasePruner
) -> Study:
    """Open the study of that name, or make it.

    Args:
        url: as `absolute_url` returns it.
        name: of the study.
        identity: plain JSON values; must equal the stored ones.
        must_exist: refuse to make a new study.
        pruner: decides after every split whether a trial goes on.

    Raises:
        StudyError: no such study, another identity or direction, or a database that cannot be used.
    """
    if must_exist:
        load_study(url, name)
    with study_lock(url):  # workers that start together would race on creating the tables
        study = optuna.create_study(
            storage=_open_storage(url), study_name=name, direction=DIRECTION, load_if_exists=True, pruner=pruner
        )
        _check_identity(study, identity, url)
    return study


def load_study(url: URL, name: str) -> Study:
    """A study that is there already; nothing is made.

    Raises:
        StudyError: there is none, or the database cannot be used.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise StudyError(f"there is no database {path}, so no study {name}")
    storage = _open_storage(url)
    names = optuna.study.get_all_study_names(storage)
    if name not in names:
        raise StudyError(f"{_shown(url)} has no study {name}; it has {', '.join(sorted(names)) or 'none'}")
    return optuna.load_study(study_name=name, storage=storage)


def stored_identity(url: URL, name: str) -> Mapping[str, Any] | None:
    """What the study of that name was begun under; None where there is no such study, or one that is not ours.

    Raises:
        StudyError: the database cannot be used.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return None
    with study_lock(url):
        storage = _open_storage(url)
        if name not in optuna.study.get_all_study_names(storage):
            return None
        return optuna.load_study(study_name=name, storage=storage).user_attrs.get(IDENTITY)


def sqlite_path(url: URL) -> Path | None:
    """The database file, None for a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


@contextmanager
def study_lock(url: URL) -> Iterator[None]:
    """Held while a worker counts the trials and takes the next one: workers together then stop exactly at the target.

    A lock on a file beside the SQLite database; the system lets go of it when a worker dies. Nothing for a server yet.
    """
    path = sqlite_path(url)
    if path is None:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise StudyError(f"--storage: {path.parent} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def n_finished(study: Study) -> int:
    """Trials that count towards the target: completed and pruned ones."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def sign_trial(trial: optuna.Trial) -> None:
    """Write down which process runs this trial."""
    trial.set_user_attr(WORKER, this_worker())


def this_worker() -> dict[str, Any]:
    """This process, such that a later one on the same machine can tell whether it still lives."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def fail_abandoned_trials(study: Study) -> list[int]:
    """Fail the RUNNING trials whose worker is dead and queue their settings again; returns their numbers.

    A worker of this machine is looked up at once; one elsewhere is dead when its heartbeat stopped.
    """
    abandoned = [t for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if _is_abandoned(t)]
    for trial in abandoned:
        fail_and_retry(study, trial, "killed: its process ended without finishing it")
    with experimental_allowed():
        fail_stale_trials(study)
    return [trial.number for trial in abandoned]


def fail_and_retry(study: Study, trial: FrozenTrial, reason: str) -> None:
    """Mark a RUNNING trial failed, with the reason, and queue its settings again."""
    storage = study._storage
    storage.set_trial_user_attr(trial._trial_id, FAILURE, reason)
    if storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
        queue_retry(study, trial)


def queue_retry(study: Study, trial: FrozenTrial) -> None:
    """Queue a failed trial's settings again, at most MAX_RETRIES times after the first."""
    history = [*trial.user_attrs.get(RETRY_OF, []), trial.number]
    if len(history) > MAX_RETRIES or not trial.params:
        return
    study.enqueue_trial(trial.params, user_attrs={RETRY_OF: history})


def make_sampler(seed: int, n_trials: int) -> optuna.samplers.BaseSampler:
    """TPE for the next trial of a study that has `n_trials`.

    Seeded anew for every trial: a study that was stopped goes on as if it had not been, where a sampler seeded once
    would begin the same random sequence again and repeat its first trials.
    """
    return optuna.samplers.TPESampler(seed=(seed * 1_000_003 + n_trials) % 2**32, multivariate=True)


def _open_storage(url: URL) -> RDBStorage:
    path = sqlite_path(url)
    try:
        if path is not None:
            _prepare_sqlite(path)
        with experimental_allowed():
            return RDBStorage(
                url.render_as_string(hide_password=False),
                engine_kwargs={"connect_args": {"timeout": LOCK_TIMEOUT_S}} if path else {"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=queue_retry,
            )
    except (SQLAlchemyError, sqlite3.Error, ImportError, RuntimeError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StudyError(f"--storage {_shown(url)}: cannot be used: {reason}") from error


def _prepare_sqlite(path: Path) -> None:
    """Check that the file is a database or not there yet, and turn the write-ahead log on."""
    if path.exists():
        with path.open("rb") as file:
            head = file.read(len(SQLITE_HEADER))
        if head != SQLITE_HEADER:
            what = "is not an SQLite database" if head else "is empty"
            raise StudyError(f"--storage: {path} {what}; restore it from a copy, or move it away to start afresh")
    with sqlite3.connect(path, timeout=LOCK_TIMEOUT_S) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _check_identity(study: Study, identity: Mapping[str, Any], url: URL) -> None:
    """Give a new study its identity; refuse an old one with another."""
    stored = study.user_attrs.get(IDENTITY)
    if stored is None and not study.get_trials(deepcopy=False) and study.direction == StudyDirection.MAXIMIZE:
        study.set_user_attr("uuid", uuid.uuid4().hex)
        study.set_user_attr("created_s", int(time.time()))
        study.set_user_attr(IDENTITY, dict(identity))
        return
    what = _first_difference(study, stored, identity)
    if what:
        raise StudyError(
            f"study {study.study_name} in {_shown(url)} {what}, so new trials could not be compared with its own; "
            "give the old flags, or another --study-name"
        )


def _first_difference(study: Study, stored: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> str:
    """What differs, as the predicate of a sentence; empty when nothing does."""
    if len(study.directions) != 1 or study.direction != StudyDirection.MAXIMIZE:
        return "minimizes or has several objectives, while ours maximizes one"
    if stored is None:
        return "was not made by this program"
    for part, ours in identity.items():
        theirs = stored.get(part)
        if theirs == ours:
            continue
        if theirs is None:
            return f"was made by a version of this program that did not write down its {part}"
        if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
            return f"has {part} {theirs!r}, not {ours!r}"
        missing = object()      # told apart from a None that was written down
        name = next(n for n in sorted({*ours, *theirs}) if ours.get(n, missing) != theirs.get(n, missing))
        return f"has another {part}: {name} is {_said(theirs.get(name))} there and {_said(ours.get(name))} here"
    return ""


def _said(value: object) -> str:
    return "absent" if value is None else str(value)


def _is_abandoned(trial: FrozenTrial) -> bool:
    """Whether a RUNNING trial's process is known to be dead."""
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # killed between being made and being signed; another worker's is signed within moments
        started_s = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - started_s > GRACE_S
    if worker["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(worker["pid"])
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - worker["started"]) > 1.0
    except psutil.NoSuchProcess:
        return True


def _shown(url: URL) -> str:
    return str(sqlite_path(url) or url.render_as_string(hide_password=True))
