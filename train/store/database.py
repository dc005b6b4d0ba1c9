"""Where a study is kept: opening it, recognising it, taking its next trial.

SQLite by default (write-ahead log), PostgreSQL by its URL for workers on several machines; other servers are refused,
because workers take turns under a lock that only these two have here. A study carries its identity
(`train.study.identity`) as a user attribute; the same name with another identity is refused, because its trials could
not be compared.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import time
import uuid
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from train.records.errors import StudyError
from train.records.keys import IDENTITY, UUID, WORKER
from train.records.record_files import plain
from train.store.abandoned import queue_retry
from train.store.address import ATTEMPT_S, LOCK_TIMEOUT_S, SQLITE_HEADER, shown_url, sqlite_path
from train.store.lock import reach, study_lock
from train.store.retrying import PatientStorage, insist, is_locked, passes, reason_of
from train.store.sampler import SamplerByNumber, experimental_allowed
from train.store.server_storage import ServerStorage
from train.store.worker_identity import GRACE_S, HEARTBEAT_S, this_worker

logger = logging.getLogger(__name__)

DIRECTION = "maximize"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # a failed trial does not count towards the target


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
    if must_exist:
        study = load_study(url, name, math.inf)
        if IDENTITY in study.user_attrs:  # nothing is written, so the workers of a study need not take turns
            study.pruner = pruner
            _check_identity(study, identity, url, absent or {})
            return study
    reach(url)
    with study_lock(url):  # workers that start together would race on creating the tables
        study = optuna.create_study(
            storage=_open_storage(url, math.inf),
            study_name=name,
            direction=DIRECTION,
            load_if_exists=True,
            pruner=pruner,
        )
        _check_identity(study, identity, url, absent or {})
    return study


def load_study(url: URL, name: str, lasts_s: float | None = None) -> Study:
    """A study that is there already; nothing is made.

    Args:
        url: as `absolute_url` returns it.
        name: of the study.
        lasts_s: seconds that each operation waits for a database that is away, `LOCK_TIMEOUT_S` unless given.

    Raises:
        StudyError: there is none, or the database cannot be used.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise StudyError(f"there is no database {path}, so no study {name}")
    storage = _open_storage(url, LOCK_TIMEOUT_S if lasts_s is None else lasts_s)
    names = optuna.study.get_all_study_names(storage)
    if name not in names:
        raise StudyError(f"{shown_url(url)} has no study {name}; it has {', '.join(sorted(names)) or 'none'}")
    return optuna.load_study(study_name=name, storage=storage)


def study_names(url: URL) -> dict[str, str]:
    """Id -> name of every study that this program made in a database; nothing is made.

    Raises:
        StudyError: there is no database, or it cannot be used.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise StudyError(f"there is no database {path}")
    studies = _open_storage(url, LOCK_TIMEOUT_S).get_all_studies()
    return {str(study.user_attrs[UUID]): study.study_name for study in studies if UUID in study.user_attrs}


def stored_identity(url: URL, name: str, is_there: bool = False) -> Mapping[str, Any] | None:
    """What the study of that name was begun under; None where there is no such study, or one that is not ours.

    Args:
        url: as `absolute_url` returns it.
        name: of the study.
        is_there: the study is known to exist, so that its tables need not be made under the lock.

    Raises:
        StudyError: the database cannot be used.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return None
    reach(url)
    with nullcontext() if is_there else study_lock(url):
        storage = _open_storage(url, math.inf)
        if name not in optuna.study.get_all_study_names(storage):
            return None
        return optuna.load_study(study_name=name, storage=storage).user_attrs.get(IDENTITY)


def n_finished(study: Study) -> int:
    """Trials that count towards the target: completed and pruned ones."""
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def take_next(study: Study, seed: int) -> optuna.Trial:
    """Return the next trial, RUNNING; `seed` is the study's. `sign` it soon."""
    study.sampler = SamplerByNumber(seed)
    with warnings.catch_warnings():  # ours beat without `Study.optimize` (`train.store.heartbeat`)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        return study.ask()


def sign(trial: optuna.Trial) -> optuna.Trial:
    """Write down that this process runs a trial. One that is not signed within `GRACE_S` counts as abandoned."""
    trial.set_user_attr(WORKER, plain(this_worker()))
    return trial


def _open_storage(url: URL, lasts_s: float) -> PatientStorage:
    """The database, opened; `lasts_s` as of `load_study`, for the opening too."""
    path = sqlite_path(url)

    def opened() -> PatientStorage:
        if path is not None:
            _prepare_sqlite(path)
            kind, options = PatientStorage, {"connect_args": {"timeout": ATTEMPT_S}}
        else:
            kind, options = _server_storage(url, lasts_s)
        with experimental_allowed():
            return kind(
                url.render_as_string(hide_password=False),
                shown_url(url),
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=queue_retry,
            )

    reach(url)
    try:
        storage = insist(opened, shown_url(url), lasts_s, is_locked if path else passes)
    except (SQLAlchemyError, sqlite3.Error, ImportError, RuntimeError, OSError) as error:
        raise StudyError(f"--storage {shown_url(url)}: cannot be used: {reason_of(error)}") from error
    storage.lasts_s = lasts_s
    return storage


def _server_storage(url: URL, lasts_s: float) -> tuple[type[PatientStorage], dict[str, Any]]:
    """The storage of a server, and the options of its engine; they need psycopg."""
    from train.store.server_connection import engine_options

    return ServerStorage, engine_options(url, lasts_s) | {"pool_size": 2}


def _prepare_sqlite(path: Path) -> None:
    """Check that the file is a database or not there yet, and turn the write-ahead log on."""
    if path.exists():
        with path.open("rb") as file:
            head = file.read(len(SQLITE_HEADER))
        if head != SQLITE_HEADER:
            what = "is not an SQLite database" if head else "is empty"
            raise StudyError(f"--storage: {path} {what}; restore it from a copy, or move it away to start afresh")
        n_names = path.stat().st_nlink
        if n_names > 1:  # each name has a journal of its own: https://www.sqlite.org/howtocorrupt.html, section 2.5
            raise StudyError(
                f"--storage: {path} has {n_names} names (hard links), by which SQLite would damage it; delete the "
                "others, or make symbolic links of them"
            )
    with sqlite3.connect(path, timeout=ATTEMPT_S) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _check_identity(
    study: Study, identity: Mapping[str, Any], url: URL, absent: Mapping[str, Mapping[str, Any]]
) -> None:
    """Give a new study its identity; refuse an old one with another."""
    stored = study.user_attrs.get(IDENTITY)
    if stored is None and not study.get_trials(deepcopy=False) and study.direction == StudyDirection.MAXIMIZE:
        study.set_user_attr(UUID, uuid.uuid4().hex)
        study.set_user_attr("created_s", int(time.time()))
        study.set_user_attr(IDENTITY, dict(identity))
        return
    what = _first_difference(study, stored, identity, absent)
    if what:
        raise StudyError(
            f"study {study.study_name} in {shown_url(url)} {what}, so new trials could not be compared with its own; "
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
        missing = object()  # told apart from a None that was written down
        name = next(n for n in sorted({*ours, *theirs}) if ours.get(n, missing) != theirs.get(n, missing))
        return f"has another {part}: {name} is {_said(theirs, name)} there and {_said(ours, name)} here"
    return ""


def _said(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    if isinstance(value, Mapping) and "attributes" in value:  # a range, as Optuna writes it
        return "searched"
    return "absent" if value is None else str(value)
