"""A database that is away for a while: locked, full, restarted, out of reach. A study waits for it and loses nothing.

Every operation that Optuna makes on the database is tried again, with longer and longer pauses, until it works. All of
them may be repeated: they write what is there already. What only looks like a passing trouble but is not (a damaged
file, a missing table) is passed on at once.
"""

from __future__ import annotations

import functools
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 10.0
QUIET_S = 1.0  # a trouble that is over by then is not worth a line: two workers wrote at one moment
REPEAT_S = 60.0  # between lines about one trouble
# SQLite has one class of error for what passes and for what does not.
SQLITE_PASSES = ("locked", "busy", "disk is full", "disk I/O error", "unable to open database file", "readonly")
TROUBLES = (StorageInternalError, DBAPIError, PendingRollbackError)


def passes(error: BaseException) -> bool:
    """Whether a database's error is one that time or its administrator mends."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):  # the server went away in the middle of a transaction
        return True
    if not isinstance(cause, DBAPIError):
        return False
    if isinstance(cause.orig, sqlite3.Error):
        return any(words in str(cause.orig) for words in SQLITE_PASSES)
    return cause.connection_invalidated or isinstance(cause, OperationalError | InterfaceError)


def reason_of(error: BaseException) -> str:
    """What the database itself said, in one line."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def insist(work: Callable[[], Result], database: str, gives_up: Callable[[], bool] = lambda: False) -> Result:
    """Do something with a database, again and again until it is there.

    Args:
        work: may be repeated.
        database: its name in the log.
        gives_up: asked before every pause and several times a second in it.

    Raises:
        StorageInternalError, DBAPIError: what does not pass, or passes too late for `gives_up`.
    """
    trouble = _Trouble(database)
    while True:
        try:
            result = work()
        except TROUBLES as error:
            if not passes(error) or gives_up():
                raise
            reason = reason_of(error)
        else:
            trouble.is_over()
            return result
        trouble.wait(reason, gives_up)


class PatientStorage(RDBStorage):
    """Optuna's database, waited for.

    Heartbeats are not waited for: a late one says nothing (`train.store.heartbeat`).

    Attributes:
        gives_up: while the database is away, whether to raise instead of waiting on.
        recovered_s: `time.monotonic()` when it last came back.
    """

    def __init__(self, url: str, name: str, **options: Any) -> None:
        self.database_name = name
        self.gives_up: Callable[[], bool] = lambda: False
        self.recovered_s = -float("inf")
        super().__init__(url, **options)

    def insist(self, work: Callable[[], Result]) -> Result:
        """As the function."""
        n_failures = 0

        def counted() -> Result:
            nonlocal n_failures
            n_failures += 1
            return work()

        result = insist(counted, self.database_name, self.gives_up)
        if n_failures > 1:
            self.recovered_s = time.monotonic()
        return result

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's. An end that is there already to the letter is a success: its answer may have been lost."""
        try:
            return self.insist(lambda: super(PatientStorage, self).set_trial_state_values(trial_id, state, values))
        except UpdateFinishedTrialError:
            trial = self.get_trial(trial_id)
            if trial.state == state and (values is None or list(trial.values or []) == list(values)):
                return True
            raise


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
    "get_all_studies", "create_new_trial", "_create_new_trial", "_set_trial_param",
    "get_trial_id_from_study_id_trial_number", "_get_best_trial_id", "set_trial_intermediate_value",
    "set_trial_user_attr", "set_trial_system_attr", "get_trial", "_get_trials", "_get_stale_trial_ids",
):  # fmt: skip
    setattr(PatientStorage, _name, _insisting(_name))


class _Trouble:
    """Pauses between attempts, and the log's lines about them."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._began_s = time.monotonic()
        self._pause_s = FIRST_PAUSE_S
        self._said_s: float | None = None

    def wait(self, reason: str, gives_up: Callable[[], bool]) -> None:
        """Pause; of unequal length, so that workers do not come back all at once."""
        now = time.monotonic()
        lasts_s = now - self._began_s
        if lasts_s >= QUIET_S and (self._said_s is None or now - self._said_s >= REPEAT_S):
            self._said_s = now
            logger.warning("the database %s cannot be used for %.0f s now: %s; waiting for it, nothing is lost",
                           self._database, lasts_s, reason)  # fmt: skip
        end = now + self._pause_s * random.uniform(0.5, 1.0)
        if self._said_s is None:  # look again when it would be said, and do not sleep over the whole trouble in silence
            end = min(end, max(self._began_s + QUIET_S, now + FIRST_PAUSE_S))
        self._pause_s = min(2.0 * self._pause_s, LONGEST_PAUSE_S)
        while time.monotonic() < end and not gives_up():
            time.sleep(min(max(end - time.monotonic(), 0.0), 0.2))

    def is_over(self) -> None:
        """Say that it is back, if it was said that it was away."""
        if self._said_s is not None:
            logger.info("the database %s is back after %.0f s", self._database, time.monotonic() - self._began_s)
