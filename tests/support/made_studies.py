"""Studies on a database file, written by Optuna itself, with trials in any state and at any time."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.support.fabricated_study import identity
from train.records.keys import IDENTITY, TARGET
from train.store.address import absolute_url
from train.store.database import open_study

NOW = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)
SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "net_depth": IntDistribution(1, 4),
    "target_kl": CategoricalDistribution((None, 0.05)),
    "observe_account": CategoricalDistribution((True, False)),
}
LABEL = "REAL 5m, 7 coins, 70144 bars, 6 segments, 2024-01-01 10:45 .. 2024-09-01 00:00 UTC, source binance"


def url_of(folder: Path):
    return absolute_url("sqlite:///study.db", folder)


def make_study(
    folder: Path, trials: Sequence[FrozenTrial] = (), name: str = "s", target: int | None = 20, label: str = LABEL
) -> optuna.Study:
    """A study as the trainer opens it."""
    study = open_study(url_of(folder), name, identity(holdout={}), False, optuna.pruners.NopPruner())
    study.set_user_attr("data", [label])
    study.set_user_attr("results", str(folder / "results" / name))
    if target is not None:
        study.set_user_attr(TARGET, target)
    assert IDENTITY in study.user_attrs
    study.add_trials(trials)
    return study


def trial(
    state: TrialState = TrialState.COMPLETE,
    value: float | None = None,
    minutes_ago: float = 10.0,
    took_s: float = 100.0,
    splits: Sequence[float] = (),
    **user_attrs: Any,
) -> FrozenTrial:
    """A trial that ended so long before `NOW`."""
    made = create_trial(
        state=state,
        params={"learning_rate": 0.00123456, "net_depth": 2, "target_kl": None, "observe_account": True},
        distributions=SPACE,
        value=value,
        intermediate_values=dict(enumerate(splits)),
        user_attrs=user_attrs,
    )
    ended = NOW - timedelta(minutes=minutes_ago)
    made.datetime_start = as_optuna_says(ended - timedelta(seconds=took_s))
    made.datetime_complete = as_optuna_says(ended) if state.is_finished() else None
    return made


def as_optuna_says(moment: datetime) -> datetime:
    """A time without a zone, by the local clock of this process; `fold` tells the two of a repeated hour apart."""
    return datetime.fromtimestamp(moment.timestamp())


def split_figures(explore: float = 40_000.0, update: float = 20_000.0) -> dict[str, Any]:
    return {"explore_steps_per_s": explore, "update_samples_per_s": update}


def close(study: optuna.Study) -> None:
    """Let go of the file, as a process that ends does."""
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def use_rollback_journal(path: Path) -> None:
    """As a database of another program is: readers and writers keep each other out."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the database; it lets go when its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
