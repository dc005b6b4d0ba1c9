"""A database that is away for a while: locked, full, restarted, out of reach. A study waits for it and loses nothing.

Every operation that Optuna makes on the database is tried again, with longer and longer pauses, until it works. All of
them may be repeated, also when the first attempt was carried out and only its answer was lost: they write what exists
already, and a trial that is made or taken carries a token by which it is recognised. What only looks like a passing
trouble but is not (a damaged file, a missing table) is passed on at once.
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
QUIET_S = 1.0  # a trouble that is over by then is not worth a line: two workers wrote at one moment
# SQLite has one class of error for what passes and for what does not.
SQLITE_LOCKED = ("locked", "busy")
SQLITE_PASSES = (*SQLITE_LOCKED, "disk is full", "disk I/O error", "unable to open database file", "readonly")
TROUBLES = (StorageInternalError, DBAPIError, PendingRollbackError, sqlite3.Error)
MADE, TAKEN = "made", "taken"  # system attributes of a trial: tokens of the attempts that made it and set it RUNNING


def passes(error: BaseException) -> bool:
    """Whether a database's error is one that time or its administrator mends."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):  # the server went away in the middle of a transaction
        return True
    if not isinstance(cause, DBAPIError):
        return is_locked(error)
    if isinstance(cause.orig, sqlite3.Error):
        return any(words in str(cause.orig) for words in SQLITE_PASSES)
    return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)


def is_locked(error: BaseException) -> bool:
    """Whether an SQLite file was locked by another process for as long as one attempt waits."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    raw = cause.orig if isinstance(cause, DBAPIError) else cause
    return isinstance(raw, sqlite3.Error) and any(words in str(raw) for words in SQLITE_LOCKED)


def reason_of(error: BaseException) -> str:
    """What the database itself said, in one line."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def insist(
    work: Callable[[], Result],
    database: str,
    lasts_s: float = math.inf,
    passes: Callable[[BaseException], bool] = passes,
) -> Result:
    """Do something with a database, again and again until it works.

    Args:
        work: may be repeated.
        database: its name in the log.
        lasts_s: seconds after which an error is raised and not waited out.
        passes: whether an error is worth waiting.

    Raises:
        StorageInternalError, DBAPIError, sqlite3.Error: what does not pass, or not in time.
        Interrupted: a signal asked this process to stop.
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
    """Optuna's database, waited for.

    Heartbeats are not waited for: a late one says nothing (`train.store.heartbeat`).

    Attributes:
        lasts_s: seconds that one operation waits for the database; then its error is raised.
        stale_since_s: trial id -> `time.monotonic()` when its heart was first seen silent (`train.store.abandoned`).
    """

    def __init__(self, url: str, name: str, **options: Any) -> None:
        self.database_name = name
        self.lasts_s = math.inf
        self.stale_since_s: dict[int, float] = {}
        super().__init__(url, **options)

    def insist(self, work: Callable[[], Result]) -> Result:
        """As the function."""
        return insist(work, self.database_name, self.lasts_s)

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """As Optuna's, but once, however often it is repeated: a trial carries a token by which it is found again."""
        trial = _running_trial() if template_trial is None else copy.deepcopy(template_trial)
        token = trial.system_attrs[MADE] = uuid.uuid4().hex
        self.insist(lambda: self._make(study_id, trial, token, template_trial is None))
        return trial

    def _make(self, study_id: int, trial: FrozenTrial, token: str, is_new: bool) -> None:
        """Write a trial into the database unless the token is there already, and give it its number, start and id.

        `is_new`: RUNNING, with nothing but its token.
        """
        with _create_scoped_session(self.scoped_session) as session:
            # Until the end of the transaction, that of a lost answer included: numbers follow one another.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            row: Any = _trial_with(MADE, token, session) or self._get_prepared_new_trial(study_id, trial, session)
            trial.number, trial.datetime_start, trial._trial_id = row.number, row.datetime_start, row.trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's. An end that is there already to the letter is a success: its answer may have been lost."""
        if state == TrialState.RUNNING:
            return self._take(trial_id, uuid.uuid4().hex)
        try:
            return self.insist(lambda: super(PatientStorage, self).set_trial_state_values(trial_id, state, values))
        except UpdateFinishedTrialError:
            trial = self.get_trial(trial_id)
            if trial.state == state and (values is None or list(trial.values or []) == list(values)):
                return True
            raise

    def _take(self, trial_id: int, token: str) -> bool:
        """Set a WAITING trial RUNNING; False where somebody else did. The token says who, should an answer be lost."""

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
    """What Optuna makes of a new trial without a template."""
    return FrozenTrial(number=-1, state=TrialState.RUNNING, value=None, datetime_start=datetime.now(),
                       datetime_complete=None, params={}, distributions={}, user_attrs={}, system_attrs={},
                       intermediate_values={}, trial_id=-1)  # fmt: skip


def _trial_with(name: str, token: str, session: Session) -> models.TrialModel | None:
    attribute = models.TrialSystemAttributeModel
    is_it = (attribute.key == name) & (attribute.value_json == json.dumps(token))
    return session.query(models.TrialModel).join(attribute).filter(is_it).one_or_none()


def patient_storage(study: Study) -> PatientStorage:
    """The storage below Optuna's cache."""
    storage = getattr(study._storage, "_backend", study._storage)
    assert isinstance(storage, PatientStorage)
    return storage


def _insisting(name: str) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def insisting(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.insist(functools.partial(method, self, *args, **kwargs))

    return insisting


# What Optuna's cache calls; the underscored ones are called by no other name.
for _name in (
    "create_new_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs",
    "get_all_studies", "_set_trial_param",
    "get_trial_id_from_study_id_trial_number", "_get_best_trial_id", "set_trial_intermediate_value",
    "set_trial_user_attr", "set_trial_system_attr", "get_trial", "_get_trials", "_get_stale_trial_ids",
):  # fmt: skip
    setattr(PatientStorage, _name, _insisting(_name))
