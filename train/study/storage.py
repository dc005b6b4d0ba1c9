"""Where a study is kept: opening it, recognising it, and clearing up after workers that died.

SQLite by default (write-ahead log), PostgreSQL by its URL for workers on several machines; other servers are refused,
because workers take turns under a lock that only these two have here. A study carries its identity
(`train.study.rules`) as a user attribute; the same name with another identity is refused, because its trials could not
be compared.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import re
import socket
import sqlite3
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from train.study.data import StudyError
from train.study.kept import kept, tell
from train.study.patience import PatientStorage, insist, patient_storage, reason_of

logger = logging.getLogger(__name__)

DEFAULT_STORAGE = "sqlite:///databases/optuna_cappuccino.db"  # in the repository
DIRECTION = "maximize"
IDENTITY, FAILURE, WORKER, RETRY_OF, KILLS = "identity", "failure", "worker", "retry_of", "kills"
CODE_VERSION = "code_version"
DATA_DIR = "data_dir"  # where the study read its data last
TARGET = "target"  # study's: finished trials it is to have, by its last command
HOLDOUT_SCORE = "holdout_score"  # of the winner, once (`train.study.holdout`)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # a failed trial does not count towards the target
KILLED, INTERRUPTED = "killed", "interrupted"  # how the reason of such a failure begins
MAX_KILLS = 2  # after which a trial is tried again; one that was interrupted by its user always is
LOCK_TIMEOUT_S = 10  # of one attempt at a locked SQLite file; then it is tried again (`train.study.patience`)
CONNECT_TIMEOUT_S = 10  # to a server
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
    except (ArgumentError, ValueError) as error:  # the second: a port that is no number
        raise StudyError(
            f"--storage {_without_password(url)}: not a database URL; give sqlite:///path/to/file.db or "
            "postgresql://user@host/name"
        ) from error
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return _with_psycopg(parsed)
    if parsed.get_backend_name() != "sqlite":
        raise StudyError(
            f"--storage {_shown(parsed)}: {parsed.get_backend_name()} has no lock under which this program's workers "
            "could take turns; give sqlite:///path/to/file.db or postgresql://user@host/name"
        )
    if parsed.database in (None, "", ":memory:"):
        raise StudyError(f"--storage {url}: names no file, so nothing would be kept; give sqlite:///path/to/file.db")
    return parsed.set(database=str(base / parsed.database))


def _with_psycopg(url: URL) -> URL:
    """`postgresql://` means psycopg 3 here, whatever SQLAlchemy's version takes it for; a named driver stays."""
    if "+" in url.drivername:
        return url
    if importlib.util.find_spec("psycopg") is None:
        raise StudyError(
            f"--storage {_shown(url)}: PostgreSQL needs psycopg; pip install -r requirements-postgresql.txt"
        )
    return url.set(drivername="postgresql+psycopg")


def open_study(
    url: URL,
    name: str,
    identity: Mapping[str, Any],
    must_exist: bool,
    pruner: optuna.pruners.BasePruner,
    absent: Mapping[str, Mapping[str, Any]] | None = None,
) -> Study:
    """Open the study of that name, or make it.

    Args:
        url: as `absolute_url` returns it.
        name: of the study.
        identity: plain JSON values; must equal the stored ones.
        must_exist: refuse to make a new study.
        pruner: decides after every split whether a trial goes on.
        absent: part -> name -> the value that a stored identity without that name stands for.

    Raises:
        StudyError: no such study, another identity or direction, or a database that cannot be used.
    """
    _reach(url)
    if must_exist:
        load_study(url, name)
    with study_lock(url):  # workers that start together would race on creating the tables
        study = optuna.create_study(
            storage=_open_storage(url), study_name=name, direction=DIRECTION, load_if_exists=True, pruner=pruner
        )
        _check_identity(study, identity, url, absent or {})
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
    _reach(url)
    with study_lock(url):
        storage = _open_storage(url)
        if name not in optuna.study.get_all_study_names(storage):
            return None
        return optuna.load_study(study_name=name, storage=storage).user_attrs.get(IDENTITY)


def sqlite_path(url: URL) -> Path | None:
    """The database file, None for a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


@contextmanager
def study_lock(url: URL, purpose: str = "") -> Iterator[Callable[[], bool]]:
    """Held while a worker counts the trials and takes the next one: workers together then stop exactly at the target.

    A lock on a file beside the SQLite database, an advisory lock of a PostgreSQL server; either lets go of it when its
    holder dies.

    Args:
        url: of the database.
        purpose: locks of other purposes do not exclude one another.

    Yields:
        Whether the lock is still held: a server that is restarted forgets it.
    """
    with _file_lock(url, purpose) if sqlite_path(url) else _server_lock(url, purpose) as is_held:
        yield is_held


@contextmanager
def _file_lock(url: URL, purpose: str) -> Iterator[Callable[[], bool]]:
    path = sqlite_path(url)
    assert path is not None
    suffix = f".{_digest(purpose).hex()[:8]}.lock" if purpose else ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{path}{suffix}", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise StudyError(f"--storage: {path.parent} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield lambda: True
    finally:
        os.close(handle)


def _reach(url: URL) -> None:
    """One connection to a server: who starts with a wrong address is told at once; only later is a server waited for.

    Raises:
        StudyError: it does not answer.
    """
    try:
        _connect_once(url)
    except (SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StudyError(f"--storage {_shown(url)}: cannot be used: {reason}") from error


def wait_for_database(url: URL, gives_up: Callable[[], bool]) -> None:
    """Until a server answers: for a worker, whose study was reached before. A file is always there.

    Raises:
        DBAPIError: `gives_up` said so, or what is wrong does not pass.
    """
    insist(lambda: _connect_once(url), _shown(url), gives_up)


def _connect_once(url: URL) -> None:
    if sqlite_path(url) is None:
        create_engine(url, poolclass=NullPool, connect_args=connect_args(url)).connect().close()


@contextmanager
def _server_lock(url: URL, purpose: str) -> Iterator[Callable[[], bool]]:
    """On a connection of its own, because the lock belongs to its session and ends with it."""
    key = int.from_bytes(_digest(f"train.study {purpose}")[:8], "big", signed=True)
    options = {"isolation_level": "AUTOCOMMIT", "poolclass": NullPool, "connect_args": connect_args(url)}
    engine = create_engine(url, **options)

    def locked() -> Connection:
        connection = engine.connect()
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        except BaseException:
            connection.close()
            raise
        return connection

    connection = insist(locked, _shown(url))
    try:
        yield lambda: _answers(connection)
    finally:
        connection.invalidate()  # ends the session, and with it the lock, also one whose server is gone
        connection.close()


def _answers(connection: Connection) -> bool:
    try:
        connection.execute(text("SELECT 1"))
    except DBAPIError:
        return False
    return True


def connect_args(url: URL) -> dict[str, Any]:
    """A server's machine that vanishes is noticed in a minute, and at its end a worker's that vanishes too."""
    if url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    ours = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    theirs = " ".join(f"-c tcp_{name}={value}" for name, value in ours.items())
    own = {} if "options" in url.query else {"options": theirs}
    # Text comes as bytes from a database without an encoding (SQL_ASCII) unless one is asked for.
    return {"connect_timeout": CONNECT_TIMEOUT_S, "client_encoding": "utf8", **ours, **own}


def _digest(purpose: str) -> bytes:
    return hashlib.sha256(purpose.encode()).digest()


def n_finished(study: Study) -> int:
    """Trials that count towards the target: completed and pruned ones."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def take_next(study: Study) -> optuna.Trial:
    """The next trial, RUNNING, with the process that runs it written down."""
    with warnings.catch_warnings():  # ours beat without `Study.optimize` (`train.study.heartbeat`)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        trial = study.ask()
    trial.set_user_attr(WORKER, this_worker())
    return trial


def this_worker() -> dict[str, Any]:
    """This process, such that a later one on the same machine can tell whether it still lives."""
    started = psutil.Process().create_time()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": started}


@cache
def _machine() -> str:
    """Where a process number means one process: host names repeat, among containers and cloned machines."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def fail_abandoned_trials(study: Study, study_folder: Path | None = None) -> list[int]:
    """Fail the RUNNING trials whose worker is dead and queue their settings again; returns their numbers.

    A worker of this machine is looked up at once; one elsewhere is dead when its heartbeat stopped. A trial that had
    ended, of which only the database was not told yet, is told and not failed.

    Args:
        study: whose trials.
        study_folder: its results, where ends are kept.
    """
    stale, failed = _stale_trials(study), []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_abandoned(trial, trial._trial_id in stale):
            continue
        end = kept(study_folder, trial) if study_folder else None
        try:
            if end is None:
                fail_and_retry(study, trial, f"{KILLED}: its process ended without finishing it")
                failed.append(trial.number)
            else:
                tell(study, trial.number, end)
                logger.info("trial %d: had finished when its process was killed; told from its results", trial.number)
        except (UpdateFinishedTrialError, ValueError):
            logger.debug("trial %d: another worker was first", trial.number)
    return failed


def _stale_trials(study: Study) -> set[int]:
    """Ids of RUNNING trials whose heartbeat stopped; none just after the database was away, for all of them then."""
    storage = patient_storage(study)
    if time.monotonic() - storage.recovered_s < 2 * HEARTBEAT_S:
        return set()
    return set(storage._get_stale_trial_ids(study._study_id))


def fail_and_retry(study: Study, trial: FrozenTrial, reason: str, was_killed: bool = True) -> None:
    """Mark a RUNNING trial failed, with the reason, and queue its settings again (`queue_retry`)."""
    storage = study._storage
    storage.set_trial_user_attr(trial._trial_id, FAILURE, reason)
    if storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
        queue_retry(study, trial, was_killed)


def queue_retry(study: Study, trial: FrozenTrial, was_killed: bool = True) -> None:
    """Queue a failed trial's settings again, unless they may be what kills: then at most MAX_KILLS times."""
    history = [*trial.user_attrs.get(RETRY_OF, []), trial.number]
    kills = trial.user_attrs.get(KILLS, 0) + was_killed
    params = trial.system_attrs.get("fixed_params", {}) | trial.params  # queued for it, and sampled so far
    if kills > MAX_KILLS or not params:
        return
    study.enqueue_trial(params, user_attrs={RETRY_OF: history, KILLS: kills})


def queue_lost_retries(study: Study) -> None:
    """Queue the settings of trials where a kill came after they were failed and before their settings were queued.

    Not of those that failed just now: their own process may be about to queue them.
    """
    trials, long_ago = study.get_trials(deepcopy=False), datetime.now() - timedelta(seconds=GRACE_S)
    queued = {trial.user_attrs[RETRY_OF][-1] for trial in trials if RETRY_OF in trial.user_attrs}
    for trial in trials:
        reason = str(trial.user_attrs.get(FAILURE, ""))
        is_lost = trial.state == TrialState.FAIL and trial.number not in queued
        if is_lost and reason.startswith((KILLED, INTERRUPTED)) and (trial.datetime_complete or long_ago) < long_ago:
            queue_retry(study, trial, was_killed=reason.startswith(KILLED))


def make_sampler(seed: int, n_trials: int) -> optuna.samplers.BaseSampler:
    """TPE for the next trial of a study that has `n_trials`.

    Seeded anew for every trial: a study that was stopped goes on as if it had not been, where a sampler seeded once
    would begin the same random sequence again and repeat its first trials. Workers together do not sample duplicates
    for the same reason: trials are taken one at a time, and each has another number. RUNNING trials count as bad ones
    (`constant_liar`), so that what is being tried is not tried again nearby.
    """
    with experimental_allowed():
        return optuna.samplers.TPESampler(
            seed=(seed * 1_000_003 + n_trials) % 2**32, multivariate=True, group=True, constant_liar=True
        )


def _open_storage(url: URL) -> PatientStorage:
    path = sqlite_path(url)
    sqlite: dict[str, Any] = {"connect_args": {"timeout": LOCK_TIMEOUT_S}}
    server: dict[str, Any] = {"connect_args": connect_args(url), "pool_pre_ping": True, "pool_size": 2}
    try:
        if path is not None:
            _prepare_sqlite(path)
        with experimental_allowed():
            return PatientStorage(
                url.render_as_string(hide_password=False),
                _shown(url),
                engine_kwargs=sqlite if path else server,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=queue_retry,
            )
    except (SQLAlchemyError, sqlite3.Error, ImportError, RuntimeError, OSError) as error:
        raise StudyError(f"--storage {_shown(url)}: cannot be used: {reason_of(error)}") from error


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


def _check_identity(
    study: Study, identity: Mapping[str, Any], url: URL, absent: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give a new study its identity; refuse an old one with another."""
    stored = study.user_attrs.get(IDENTITY)
    if stored is None and not study.get_trials(deepcopy=False) and study.direction == StudyDirection.MAXIMIZE:
        study.set_user_attr("uuid", uuid.uuid4().hex)
        study.set_user_attr("created_s", int(time.time()))
        study.set_user_attr(IDENTITY, dict(identity))
        return
    what = _first_difference(study, stored, identity, absent)
    if what:
        raise StudyError(
            f"study {study.study_name} in {_shown(url)} {what}, so new trials could not be compared with its own; "
            "give the old flags, or another --study-name"
        )


def _first_difference(
    study: Study,
    stored: Mapping[str, Any] | None,
    identity: Mapping[str, Any],
    absent: Mapping[str, Mapping[str, Any]],
) -> str:
    """What differs, as the predicate of a sentence; empty when nothing does."""
    if len(study.directions) != 1 or study.direction != StudyDirection.MAXIMIZE:
        return "minimizes or has several objectives, while ours maximizes one"
    if stored is None:
        return "was not made by this program"
    for part, ours in identity.items():
        theirs = stored.get(part)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            # Names that only the stored identity has are compared, names that only `absent` has are not.
            theirs = {name: value for name, value in absent.get(part, {}).items() if name in ours} | dict(theirs)
        if theirs == ours:
            continue
        if theirs is None:
            return f"was made by a version of this program that did not write down its {part}"
        if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
            return f"has {part} {theirs!r}, not {ours!r}"
        missing = object()      # told apart from a None that was written down
        name = next(n for n in sorted({*ours, *theirs}) if ours.get(n, missing) != theirs.get(n, missing))
        return f"has another {part}: {name} is {_said(theirs, name)} there and {_said(ours, name)} here"
    return ""


def _said(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    if isinstance(value, Mapping) and "attributes" in value:  # a range, as Optuna writes it
        return "searched"
    return "absent" if value is None else str(value)


def _is_abandoned(trial: FrozenTrial, is_stale: bool) -> bool:
    """Whether a RUNNING trial's process is known to be dead; `is_stale`: its heartbeat stopped."""
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # killed between being made and being signed; another worker's is signed within moments
        started_s = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
        return time.time() - started_s > GRACE_S
    if (worker["host"], worker.get("machine", _machine())) != (socket.gethostname(), _machine()):
        return is_stale
    try:
        process = psutil.Process(worker["pid"])
        return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - worker["started"]) > 1.0
    except psutil.NoSuchProcess:
        return True


def _shown(url: URL) -> str:
    return str(sqlite_path(url) or url.render_as_string(hide_password=True))


def _without_password(text_: str) -> str:
    return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text_)
