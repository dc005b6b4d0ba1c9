"""Database of a study: opening it, checking the study's identity, and taking the next trial.

The default is SQLite with a write-ahead log. Workers on several machines use PostgreSQL. Other database servers are
rejected, because the workers' lock is implemented only for these two. A study stores its identity
(`train.study.identity`) as a user attribute. A run with the same name and a different identity is rejected, because its
trials would not be comparable.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import time
import uuid
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from textwrap import shorten
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
from train.store.server_storage import ServerStorage, forget_if_reconnected
from train.store.worker_identity import GRACE_S, HEARTBEAT_S, this_worker

logger = logging.getLogger(__name__)

DIRECTION = "maximize"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # failed trials do not count towards the target


def open_study(
    url: URL,
    name: str,
    identity: Mapping[str, Any],
    must_exist: bool,
    pruner: optuna.pruners.BasePruner,
    absent: Mapping[str, Mapping[str, Any]] | None = None,
) -> Study:
    """Open the study with this name, or create it.

    Args:
        url: URL from `absolute_url`.
        name: name of the study.
        identity: plain JSON values that must equal the stored ones.
        must_exist: refuse to create a new study.
        pruner: decides after every split whether a trial continues.
        absent: part -> name -> the value to use if a stored identity lacks the name.

    Raises:
        StudyError: the study is missing or has a different identity or direction, or the database cannot be used.
    """
    if must_exist:
        study = load_study(url, name, math.inf)
        if IDENTITY in study.user_attrs:  # nothing is written, so workers can open the study at the same time
            study.pruner = pruner
            _check_identity(study, identity, url, absent or {})
            return study
    else:
        reach(url)
    with study_lock(url):  # otherwise workers that start together race to create the tables
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
    """Load an existing study without creating anything.

    Args:
        url: URL from `absolute_url`.
        name: name of the study.
        lasts_s: seconds for which each operation waits for an unavailable database (default: `LOCK_TIMEOUT_S`).

    Raises:
        StudyError: the study does not exist, or the database cannot be used.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise StudyError(f"there is no database {path}, so there is no study {name}; check --storage")
    reach(url)
    storage = _open_storage(url, LOCK_TIMEOUT_S if lasts_s is None else lasts_s)
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        names = optuna.study.get_all_study_names(storage)
    found = shorten(", ".join(sorted(names)), 100, placeholder=" ...") or "none"
    raise StudyError(f"{shown_url(url)} has no study {name}; check --study-name. Studies found: {found}")


def study_names(url: URL) -> dict[str, str]:
    """Return id -> name of every study that this program created in a database, without creating anything.

    Raises:
        StudyError: the database does not exist or cannot be used.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise StudyError(f"there is no database {path}; check --storage")
    reach(url)
    studies = _open_storage(url, LOCK_TIMEOUT_S).get_all_studies()
    return {str(study.user_attrs[UUID]): study.study_name for study in studies if UUID in study.user_attrs}


def stored_identity(url: URL, name: str, is_there: bool = False) -> Mapping[str, Any] | None:
    """Return the identity of a study, or None if the study does not exist or was not created by this program.

    Args:
        url: URL from `absolute_url`.
        name: name of the study.
        is_there: the study is known to exist, so no lock is needed to create tables.

    Raises:
        StudyError: the database cannot be used.
    """
    path = sqlite_path(url)
    if path is not None and not path.exists():
        return None
    reach(url)
    with nullcontext() if is_there else study_lock(url):
        storage = _open_storage(url, math.inf)
        try:
            return optuna.load_study(study_name=name, storage=storage).user_attrs.get(IDENTITY)
        except KeyError:
            return None


def n_finished(study: Study) -> int:
    """Return the number of completed and pruned trials, which count towards the target."""
    finished = study.get_trials(deepcopy=False, states=FINISHED)
    while forget_if_reconnected(study):
        finished = study.get_trials(deepcopy=False, states=FINISHED)
    return len(finished)


def take_next(study: Study, seed: int) -> optuna.Trial:
    """Return the next trial, set to RUNNING. `seed` is the study's seed. Call `sign` soon afterwards."""
    study.sampler = SamplerByNumber(seed)
    with warnings.catch_warnings():  # heartbeats are written without `Study.optimize` (`train.store.heartbeat`)
        warnings.filterwarnings("ignore", "Heartbeat of storage")
        return study.ask()


def sign(trial: optuna.Trial) -> optuna.Trial:
    """Record this process as the worker of a trial. A trial without a worker counts as abandoned after `GRACE_S`."""
    trial.set_user_attr(WORKER, plain(this_worker()))
    return trial


def _open_storage(url: URL, lasts_s: float) -> PatientStorage:
    """Open the database, which must be reachable. `lasts_s`: see `load_study`. It also applies to opening."""
    if sqlite_path(url) is None:
        return _open_server(url, lasts_s)
    return _opened(url, lasts_s, PatientStorage, {"connect_args": {"timeout": ATTEMPT_S}})


@cache
def _open_server(url: URL, lasts_s: float) -> PatientStorage:
    """Open a server's database once per process. Over a network, opening it takes as long as several trials."""
    from train.store.server_connection import engine_options  # requires psycopg, which SQLite does not need

    return _opened(url, lasts_s, ServerStorage, engine_options(url, lasts_s) | {"pool_size": 2})


os.register_at_fork(after_in_child=_open_server.cache_clear)  # connections cannot be shared between processes


def _opened(url: URL, lasts_s: float, kind: type[PatientStorage], options: dict[str, Any]) -> PatientStorage:
    path = sqlite_path(url)

    def opened() -> PatientStorage:
        if path is not None:
            _prepare_sqlite(path)
        with experimental_allowed():
            return kind(
                url.render_as_string(hide_password=False),
                shown_url(url),
                engine_kwargs=options,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=queue_retry,
            )

    try:
        storage = insist(opened, shown_url(url), lasts_s, is_locked if path else passes)
    except (SQLAlchemyError, sqlite3.Error, ImportError, RuntimeError, OSError) as error:
        raise StudyError(f"cannot use --storage {shown_url(url)}: {reason_of(error)}") from error
    storage.lasts_s = lasts_s
    return storage


def _prepare_sqlite(path: Path) -> None:
    """Check that the file is a database or does not exist, and enable the write-ahead log."""
    if path.exists():
        with path.open("rb") as file:
            head = file.read(len(SQLITE_HEADER))
        if head != SQLITE_HEADER:
            what = "is not an SQLite database" if head else "is empty"
            raise StudyError(f"--storage: {path} {what}; restore it from a backup, or move it elsewhere to start over")
        n_names = path.stat().st_nlink
        if n_names > 1:  # each name has its own journal: https://www.sqlite.org/howtocorrupt.html, section 2.5
            raise StudyError(
                f"--storage: {path} has {n_names} hard links, which could corrupt an SQLite database; delete the "
                "others, or replace them with symbolic links"
            )
    with sqlite3.connect(path, timeout=ATTEMPT_S) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _check_identity(
    study: Study, identity: Mapping[str, Any], url: URL, absent: Mapping[str, Mapping[str, Any]]
) -> None:
    """Store the identity in a new study, or raise StudyError if an existing study has a different identity."""
    stored = study.user_attrs.get(IDENTITY)
    if stored is None and not study.get_trials(deepcopy=False) and study.direction == StudyDirection.MAXIMIZE:
        study.set_user_attr(UUID, uuid.uuid4().hex)
        study.set_user_attr("created_s", int(time.time()))
        study.set_user_attr(IDENTITY, dict(identity))
        return
    what = _first_difference(study, stored, identity, absent)
    if what:
        raise StudyError(
            f"study {study.study_name} in {shown_url(url)} {what}, so new trials would not be comparable with its "
            "trials; pass the original flags, or a different --study-name"
        )


def _first_difference(
    study: Study,
    stored: Mapping[str, Any] | None,
    identity: Mapping[str, Any],
    absent: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the first difference as the predicate of a sentence, or "" if the identities are equal."""
    if len(study.directions) != 1 or study.direction != StudyDirection.MAXIMIZE:
        return "minimizes or has several objectives instead of maximizing one"
    if stored is None:
        return "was not created by this program"
    for part, ours in identity.items():
        theirs = stored.get(part)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            # Names that exist only in the stored identity are compared; names that exist only in `absent` are not.
            theirs = {name: value for name, value in absent.get(part, {}).items() if name in ours} | dict(theirs)
        if theirs == ours:
            continue
        if theirs is None:
            return f"was created by a version of this program that did not store its {part}"
        if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
            return f"has {part} {theirs!r}, not {ours!r}"
        missing = object()  # different from a stored None
        name = next(n for n in sorted({*ours, *theirs}) if ours.get(n, missing) != theirs.get(n, missing))
        return f"differs in its {part}: {name} was {_said(theirs, name)}, now {_said(ours, name)}"
    return ""


def _said(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    if isinstance(value, Mapping) and "attributes" in value:  # a range in Optuna's JSON
        return "searched"
    return "absent" if value is None else str(value)
