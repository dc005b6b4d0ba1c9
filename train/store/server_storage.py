"""Optuna storage for a remote PostgreSQL server: the same rows in fewer round trips.

Optuna needs four round trips to write a setting (begin, find the trial, write, commit) and nine to read the trials.
Here one statement checks the trial's state and writes the setting without a transaction, one message reads all tables
of the trials, and one message creates a trial. Settings and attributes that belong together are written together
(`together`). The operations that take a queued trial and finish a trial remain Optuna's.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, TypeVar

from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import get_storage
from optuna.storages._rdb import models
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, DateTime, Enum, Float, Integer, cast, column, event, func, select, true, values
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from train.store.retrying import MADE, PatientStorage, TrialLostError

Row = tuple[Any, ...]
Rows = Sequence[Row]
Written = dict[str, Any]  # column -> value
Model = Any  # one of Optuna's models
Result = TypeVar("Result")

HEART, PARAM, VALUE = models.TrialHeartbeatModel, models.TrialParamModel, models.TrialIntermediateValueModel
USER, SYSTEM = models.TrialUserAttributeModel, models.TrialSystemAttributeModel
# Tables of a trial, in the order of the arguments of `_frozen`: (table, columns after trial_id, order of rows).
READ = (
    ("trials", "number, state, datetime_start, datetime_complete", "trial_id"),
    ("trial_params", "param_name, param_value, distribution_json", "trial_id, param_id"),
    ("trial_values", "value, value_type", "trial_id, objective"),
    *((f"trial_{whose}_attributes", "key, value_json", "1") for whose in ("user", "system")),
    ("trial_intermediate_values", "step, intermediate_value, intermediate_value_type", "trial_id, step"),
)
NAME_IN = {PARAM: "param_name", VALUE: "step", USER: "key", SYSTEM: "key"}  # unique per trial in its table
OPEN = (TrialState.RUNNING, TrialState.WAITING)  # states in which a trial may be written


class ServerStorage(PatientStorage):
    """Optuna storage on PostgreSQL with few round trips. Every operation is retried (`PatientStorage`)."""

    _kept: dict[tuple[Model, int], dict[Any, Written]] | None = None  # name -> row; None: writes are not collected

    def __init__(self, url: str, name: str, **options: Any) -> None:
        # (trial, setting) -> range that has not been compared with other trials.
        self._unchecked: dict[tuple[int, str], BaseDistribution] = {}
        self._is_reconnected = False
        self.seen_s: dict[tuple[int, TrialState], float] = {}  # first seen in this state by `train.store.abandoned`
        self._reads_once = False
        self._fresh: set[int] = set()  # studies whose trials are up to date in the cache
        super().__init__(url, name, **options)
        event.listen(self.engine, "connect", self._on_connect)

    def _on_connect(self, *_: object) -> None:
        self._is_reconnected = True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Collect the writes to trials inside this context. They are sent when it exits, or before the next read."""
        self._kept = {}
        try:
            yield
        finally:
            try:
                self._write_kept()
            finally:
                self._kept = None

    @contextmanager
    def read_once(self) -> Iterator[None]:
        """Serve trials from Optuna's cache inside this context, until this process writes."""
        self._reads_once = True
        try:
            yield
        finally:
            self._reads_once, self._fresh = False, set()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._write(USER, trial_id, {"key": key, "value_json": json.dumps(value)})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `optuna.storages.BaseStorage`."""
        self._write(SYSTEM, trial_id, {"key": key, "value_json": json.dumps(value)})

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """See `optuna.storages.BaseStorage`."""
        stored, kind = VALUE.intermediate_value_to_stored_repr(intermediate_value)
        self._write(VALUE, trial_id, {"step": step, "intermediate_value": stored, "intermediate_value_type": kind})

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        """See `optuna.storages.RDBStorage`."""
        if previous_distribution is not None:
            check_distribution_compatibility(previous_distribution, distribution)
        else:
            self._unchecked[trial_id, param_name] = distribution
        row = {"param_name": param_name, "param_value": param_value_internal,
               "distribution_json": distribution_to_json(distribution)}  # fmt: skip
        self._write(PARAM, trial_id, row)

    def _make(self, study_id: int, trial: FrozenTrial, token: str, is_new: bool) -> None:
        """See `PatientStorage`. One message, which is one transaction, creates a new RUNNING trial.

        The message locks the study first, so its second statement sees every trial that was created before.
        """
        if not is_new:
            super()._make(study_id, trial, token, is_new)
            return
        study_id, started = int(study_id), datetime.now(UTC).replace(tzinfo=None)
        is_made = f"key = '{MADE}' AND value_json = '\"{token}\"'"
        make = f"""
            SELECT 1 FROM studies WHERE study_id = {study_id} FOR UPDATE;
            WITH made AS (
                INSERT INTO trials (number, study_id, state, datetime_start)
                SELECT (SELECT count(*) FROM trials WHERE study_id = {study_id}), study_id, 'RUNNING', '{started}'
                FROM studies WHERE study_id = {study_id}
                AND NOT EXISTS (SELECT 1 FROM trial_system_attributes WHERE {is_made})
                RETURNING trial_id
            )
            INSERT INTO trial_system_attributes (trial_id, key, value_json)
            SELECT trial_id, '{MADE}', '"{token}"' FROM made;
            SELECT number, datetime_start, trial_id FROM trials JOIN trial_system_attributes USING (trial_id)
            WHERE {is_made}
        """
        with self._connected() as connection:
            _, found = _results(connection, make)
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        ((trial.number, started, trial._trial_id),) = found
        trial.datetime_start = _local(started)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `optuna.storages.BaseStorage`.

        Raises:
            KeyError: the trial does not exist.
            TrialLostError: this process created or took the trial, but the trial is gone, or its id belongs to a
                different trial.
        """
        found, token = self._read_trials(f"trial_id = {int(trial_id)}"), self.tokens.get(trial_id)
        if token and not any(token in trial.system_attrs.values() for trial in found):
            raise TrialLostError(f"trial {trial_id} is no longer in {self.database_name}")
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        return found[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Return new or requested trials without rereading cached ones. A deleted study has no trials."""
        if study_id in self._fresh and trial_id_greater_than > -1:
            return []
        ids = [f"trial_id = {int(trial_id)}" for trial_id in included_trial_ids if trial_id <= trial_id_greater_than]
        which = " OR ".join([f"trial_id > {int(trial_id_greater_than)}", *ids])
        found = self._read_trials(f"study_id = {int(study_id)} AND ({which})")
        if self._reads_once:
            self._fresh.add(study_id)
        return [trial for trial in found if states is None or trial.state in states]

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat, without retries."""
        beat = insert(HEART).values(trial_id=trial_id, heartbeat=func.now())
        beat = beat.on_conflict_do_update(index_elements=["trial_id"], set_={"heartbeat": func.now()})
        with self._connected() as connection:
            connection.execute(beat)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """See `optuna.storages.RDBStorage`."""
        trial, silent = models.TrialModel, cast(func.now(), DateTime) - HEART.heartbeat
        stale = (
            select(trial.trial_id)
            .join(HEART)
            .where(
                trial.study_id == study_id,
                trial.state == TrialState.RUNNING,
                silent > timedelta(seconds=self.grace_period or 0),
            )
        )
        return list(self._ask(lambda connection: connection.execute(stale).scalars().all()))

    def _get_best_trial_id(self, study_id: int, direction: StudyDirection) -> int:
        """Return the id of the best trial, in a session without a transaction."""
        model = models.TrialModel
        find = model.find_max_value_trial_id if direction == StudyDirection.MAXIMIZE else model.find_min_value_trial_id

        def best(connection: Connection) -> int:
            with Session(connection) as session:
                return find(study_id, 0, session)

        return self._ask(best)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `optuna.storages.BaseStorage`."""
        self._write_kept()
        self._fresh = set()
        return super().set_trial_state_values(trial_id, state, values)

    # --------------------------------------------------------------------------------------------------------- writing
    def _write(self, model: Model, trial_id: int, row: Written) -> None:
        self._fresh = set()
        if self._kept is not None:
            self._kept.setdefault((model, trial_id), {})[row[NAME_IN[model]]] = row
        else:
            self._write_rows(model, trial_id, [row])

    def _write_kept(self) -> None:
        if not self._kept:
            return
        kept, self._kept = self._kept, {}
        for (model, trial_id), rows in kept.items():
            self._write_rows(model, trial_id, list(rows.values()))

    def _write_rows(self, model: Model, trial_id: int, rows: list[Written]) -> None:
        """Insert or replace rows of an unfinished trial.

        Raises:
            UpdateFinishedTrialError: the trial is finished.
            KeyError, TrialLostError: see `get_trial`.
            ValueError: a setting has a different kind of range in other trials of the study.
        """
        if model is PARAM:
            self._check_distributions(trial_id, rows)
        table, trial, name = model.__table__, models.TrialModel.__table__, NAME_IN[model]
        columns = list(rows[0])
        numbered = [(place, *(row[column] for column in columns)) for place, row in enumerate(rows)]
        given = values(column("place", Integer), *(column(c, table.c[c].type) for c in columns), name="given")
        given = given.data(numbered)
        # PostgreSQL treats untyped values as text. Text itself is not cast, which would cut long names.
        typed = [cast(given.c[c], t) if isinstance(t := table.c[c].type, Enum | Float) else given.c[c] for c in columns]
        source = select(trial.c.trial_id, *typed).join_from(trial, given, true()).where(trial.c.trial_id == trial_id)
        source = source.where(trial.c.state.in_(OPEN)).order_by(given.c.place)
        if token := self.tokens.get(trial_id):
            has_token = (SYSTEM.trial_id == trial_id) & (SYSTEM.value_json == json.dumps(token))
            source = source.where(select(SYSTEM.trial_id).where(has_token).exists())
        write = insert(table).from_select(["trial_id", *columns], source)
        replaced = {c: write.excluded[c] for c in columns}
        write = write.on_conflict_do_update(index_elements=["trial_id", name], set_=replaced)
        write = write.execution_options(preserve_rowcount=True)
        if self._ask(lambda connection: connection.execute(write).rowcount) != len(rows):
            self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)

    def _check_distributions(self, trial_id: int, rows: list[Written]) -> None:
        """Raise ValueError if a setting has a different kind of range in other trials of the study."""
        names = [row["param_name"] for row in rows]
        new = {name: self._unchecked.pop((trial_id, name)) for name in names if (trial_id, name) in self._unchecked}
        if not new:
            return
        trial, own = models.TrialModel, models.TrialModel.__table__.alias()
        earlier = (
            select(PARAM.param_name, PARAM.distribution_json)
            .distinct()
            .join(trial)
            .join(own, own.c.study_id == trial.study_id)
            .where(own.c.trial_id == trial_id, PARAM.param_name.in_(new))
        )
        for name, text in self._ask(lambda connection: connection.execute(earlier).all()):
            check_distribution_compatibility(json_to_distribution(text), new[name])

    # --------------------------------------------------------------------------------------------------------- reading
    def _read_trials(self, which: str) -> list[FrozenTrial]:
        """Return the trials that match an SQL condition, ordered by id. One message reads all their tables."""
        self._write_kept()
        chosen = f"WHERE trial_id IN (SELECT trial_id FROM trials WHERE {which})"
        queries = [
            f"SELECT trial_id, {columns} FROM {table} {chosen} ORDER BY {order}" for table, columns, order in READ
        ]
        found, *parts = self._ask(lambda connection: _results(connection, "; ".join(queries)))
        rows = [_by_trial(part) for part in parts]
        return [_frozen(row, *(part.get(row[0], ()) for part in rows)) for row in found]

    def _ask(self, work: Callable[[Connection], Result]) -> Result:
        """Execute one statement, retrying until it succeeds."""

        def once() -> Result:
            with self._connected() as connection:
                return work(connection)

        return self.insist(once)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """Yield a connection in autocommit mode."""
        with self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")


def _results(connection: Connection, queries: str) -> list[list[Row]]:
    """Return the rows of several queries without parameters that are sent together."""
    cursor: Any = connection.exec_driver_sql(queries).cursor
    results: list[list[Row]] = []
    while True:
        if cursor.description is not None:
            results.append(cursor.fetchall())
        if not cursor.nextset():
            return results


def _by_trial(rows: list[Row]) -> dict[int, list[Row]]:
    """Group rows by their first column, a trial's id, which the groups do not have."""
    groups: dict[int, list[Row]] = defaultdict(list)
    for trial_id, *rest in rows:
        groups[trial_id].append(tuple(rest))
    return groups


# A worker reads all RUNNING trials several times per own trial, and they have few different ranges.
_distribution = lru_cache(maxsize=4096)(json_to_distribution)


def _frozen(row: Row, params: Rows, values: Rows, user: Rows, system: Rows, reported: Rows) -> FrozenTrial:
    """Build a trial from rows with the columns of `READ`, as Optuna's `_build_frozen_trial_from_trial_model` does."""
    trial_id, number, state, started, completed = row
    finite, step = models.TrialValueModel, VALUE
    return FrozenTrial(
        trial_id=trial_id,
        number=number,
        state=TrialState[state],
        value=None,
        values=[finite.stored_repr_to_value(v, finite.TrialValueType[kind]) for v, kind in values] or None,
        datetime_start=_local(started),
        datetime_complete=_local(completed),
        params={name: _distribution(text).to_external_repr(value) for name, value, text in params},
        distributions={name: _distribution(text) for name, _, text in params},
        user_attrs={key: json.loads(text) for key, text in user},
        system_attrs={key: json.loads(text) for key, text in system},
        intermediate_values={
            at: step.stored_repr_to_intermediate_value(v, step.TrialIntermediateValueType[kind])
            for at, v, kind in reported
        },
    )


def _local(utc: datetime | None) -> datetime | None:
    """Convert a stored time from naive UTC to naive local time, which Optuna returns."""
    return None if utc is None else utc.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


def together(study: Study) -> AbstractContextManager[None]:
    """Apply `ServerStorage.together`. Other storages write immediately, as usual."""
    storage = getattr(study._storage, "_backend", None)  # below Optuna's cache
    return storage.together() if isinstance(storage, ServerStorage) else nullcontext()


def read_once(study: Study) -> AbstractContextManager[None]:
    """Apply `ServerStorage.read_once`. Other storages read each time."""
    storage = getattr(study._storage, "_backend", None)
    return storage.read_once() if isinstance(storage, ServerStorage) else nullcontext()


def forget_if_reconnected(study: Study) -> bool:
    """Clear Optuna's cache after a new connection. Return True if that was necessary.

    A server that was restored from an earlier copy has fewer trials than the cache, and reuses their ids.
    """
    storage = getattr(study._storage, "_backend", None)
    if not isinstance(storage, ServerStorage) or not storage._is_reconnected:
        return False
    storage._is_reconnected, storage._fresh = False, set()
    study._storage = get_storage(storage)
    return True
