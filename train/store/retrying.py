"""Retries for a database that is locked, full, restarting or unreachable. A study waits and loses no results.

Every Optuna database operation is retried with increasing pauses until it succeeds. All operations can be repeated
safely, even if the first attempt succeeded and only its answer was lost. Values are simply written again. A token in
each trial identifies the attempt that created or took the trial. Permanent errors (a damaged file, a missing table) are
raised immediately.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError
from sqlalchemy.orm import Session

from train.store.waiting import Wait

Result = TypeVar("Result")

LONGEST_PAUSE_S = 10.0
QUIET_S = 1.0  # no log line before this time, because two workers may write simultaneously
# SQLite has the same error class for temporary and permanent errors.
SQLITE_LOCKED = ("locked", "busy")
SQLITE_PASSES = (*SQLITE_LOCKED, "disk is full", "disk I/O error", "unable to open database file", "readonly")
TROUBLES = (StorageInternalError, DBAPIError, PendingRollbackError, sqlite3.Error)
MADE, TAKEN = "made", "taken"  # system attributes: tokens of the attempts that created and took the trial


class TrialLostError(Exception):
    """The database no longer has a trial of this process, because the server was restored from an earlier copy."""


def passes(error: BaseException) -> bool:
    """Return True if a database error is temporary or if an administrator can fix it."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):  # the connection was lost during a transaction
        return True
    if not isinstance(cause, DBAPIError):
        return is_locked(error)
    if isinstance(cause.orig, sqlite3.Error):
        return any(words in str(cause.orig) for words in SQLITE_PASSES)
    return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)


def is_locked(error: BaseException) -> bool:
    """Return True if another process held an SQLite lock for the whole duration of an attempt."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    raw = cause.orig if isinstance(cause, DBAPIError) else cause
    return isinstance(raw, sqlite3.Error) and any(words in str(raw) for words in SQLITE_LOCKED)


def reason_of(error: BaseException) -> str:
    """Return the first line of the database's own error message."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def insist(
    work: Callable[[], Result],
    database: str,
    lasts_s: float = math.inf,
    passes: Callable[[BaseException], bool] = passes,
) -> Result:
    """Retry a database operation until it succeeds.

    Args:
        work: operation; it may be repeated.
        database: name of the database in the log.
        lasts_s: seconds after which errors are raised instead of retried.
        passes: returns True for errors that are retried.

    Raises:
        StorageInternalError, DBAPIError, sqlite3.Error: the error is permanent, or lasted too long.
        Interrupted: a signal was received.
    """
    wait = Wait(f"the database {database}", QUIET_S, LONGEST_PAUSE_S)
    while True:
        try:
            with wait.is_current():
                result = work()
        except TROUBLES as error:
            if not passes(error) or wait.lasts_s >= lasts_s:
                raise
            reason = reason_of(error)
        else:
            wait.is_over()
            return result
        wait.pause(reason)


class PatientStorage(RDBStorage):
    """Optuna's RDB storage with retries.

    Heartbeats are not retried, because a late heartbeat has no value (`train.store.heartbeat`).

    Attributes:
        lasts_s: seconds for which one operation is retried before its error is raised.
        stale_since_s: trial id -> `time.monotonic()` when its heartbeat was first seen stale (`train.store.abandoned`).
        tokens: trial id -> the token with which this process created or took the trial.
    """

    def __init__(self, url: str, name: str, **options: Any) -> None:
        self.database_name = name
        self.lasts_s = math.inf
        self.stale_since_s: dict[int, float] = {}
        self.tokens: dict[int, str] = {}
        super().__init__(url, **options)

    def insist(self, work: Callable[[], Result]) -> Result:
        """Call the function `insist` for this database."""
        return insist(work, self.database_name, self.lasts_s)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Create a trial exactly once, even if the call is repeated. A token in the trial identifies it."""
        trial = _running_trial() if template_trial is None else copy.deepcopy(template_trial)
        token = trial.system_attrs[MADE] = uuid.uuid4().hex
        self.insist(lambda: self._make(study_id, trial, token, template_trial is None))
        self.tokens[trial._trial_id] = token
        return trial

    def _make(self, study_id: int, trial: FrozenTrial, token: str, is_new: bool) -> None:
        """Write a trial unless its token exists already, and set its number, start time and id.

        `is_new` means that the trial is RUNNING and has only the token.
        """
        with _create_scoped_session(self.scoped_session) as session:
            # Locked until the end of the transaction, even if its answer is lost, so that numbers are consecutive.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            row: Any = _trial_with(MADE, token, session) or self._get_prepared_new_trial(study_id, trial, session)
            trial.number, trial.datetime_start, trial._trial_id = row.number, row.datetime_start, row.trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set state and values. Repeating an identical call succeeds, because the first answer may be lost."""
        if state == TrialState.RUNNING:
            token = uuid.uuid4().hex
            is_taken = self._take(trial_id, token)
            if is_taken:
                self.tokens[trial_id] = token
            return is_taken
        try:
            return self.insist(lambda: super(PatientStorage, self).set_trial_state_values(trial_id, state, values))
        except UpdateFinishedTrialError:
            trial = self.get_trial(trial_id)
            if trial.state == state and (values is None or list(trial.values or []) == list(values)):
                return True
            raise

    def _take(self, trial_id: int, token: str) -> bool:
        """Set a WAITING trial to RUNNING; return False if another process was faster. The token identifies retries."""

        def take() -> bool:
            with _create_scoped_session(self.scoped_session) as session:
                row: Any = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
                self.check_trial_is_updatable(trial_id, row.state)
                if row.state != TrialState.WAITING:
                    return _trial_with(TAKEN, token, session) is not None
                row.state, row.datetime_start = TrialState.RUNNING, datetime.now()
                attribute = models.TrialSystemAttributeModel
                self._set_trial_attr_without_commit(session, attribute, trial_id, TAKEN, token)
                return True

        return self.insist(take)


def _running_trial() -> FrozenTrial:
    """Return a trial like the one that Optuna creates when no template is given."""
    return FrozenTrial(number=-1, state=TrialState.RUNNING, value=None, datetime_start=datetime.now(),
                       datetime_complete=None, params={}, distributions={}, user_attrs={}, system_attrs={},
                       intermediate_values={}, trial_id=-1)  # fmt: skip


def _trial_with(name: str, token: str, session: Session) -> models.TrialModel | None:
    attribute = models.TrialSystemAttributeModel
    is_it = (attribute.key == name) & (attribute.value_json == json.dumps(token))
    return session.query(models.TrialModel).join(attribute).filter(is_it).one_or_none()


def patient_storage(study: Study) -> PatientStorage:
    """Return the storage behind Optuna's cache."""
    storage = getattr(study._storage, "_backend", study._storage)
    assert isinstance(storage, PatientStorage)
    return storage


def _insisting(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def insisting(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.insist(functools.partial(method, self, *args, **kwargs))

    return insisting


# Methods that Optuna's cache calls. Some are private.
for _name in (
    "create_new_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs",
    "get_all_studies", "_set_trial_param",
    "get_trial_id_from_study_id_trial_number", "_get_best_trial_id", "set_trial_intermediate_value",
    "set_trial_user_attr", "set_trial_system_attr", "get_trial", "_get_trials", "_get_stale_trial_ids",
):  # fmt: skip
    setattr(PatientStorage, _name, _insisting(_name))
