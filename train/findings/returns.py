"""Returns of a study's trials on common bars, the input of their Sharpe ratios, deflated Sharpe ratios and PBO.

In a combinatorial study several splits test the same bar, each with its own policy. A trial's return on a bar is the
mean over these splits: one account divided equally among their policies. Each bar counts once, so a study is not
longer than its data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from market.names import counted, timeframe_seconds
from train.records.attributes import SPLIT, identity_in
from train.records.errors import StudyError
from train.records.keys import SETTINGS
from train.records.results import read_equity, split_folder, trial_folder
from train.records.seals import EQUITY, check_seal, is_sealed
from train.store.artifact_files import fetch_splits
from train.store.database import FINISHED
from train.study.eligibility import best_trial, why_no_best
from train.validation.lead import lead_returns
from train.validation.metrics import bar_returns, sharpe

MOST_LISTED = 10  # trials listed in an error
READERS = 4  # threads; decompression releases the interpreter lock
YEAR_S = 365.0 * 86_400.0

Columns = Mapping[str, np.ndarray]
# The returns of an account, and its alpha returns (`train.validation.lead`).
Kind = Literal["account", "lead"]
Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------------- one trial
@dataclass(frozen=True)
class Layout:
    """Positions of each split's returns on the common axis of T tested bars."""

    bars: np.ndarray  # (T,) bar index in the dataset at which each return ends
    n_rows: dict[int, int]  # split -> number of rows of its equity file
    steps: dict[int, np.ndarray]  # split -> rows of the equity file at which a return ends
    places: dict[int, np.ndarray]  # split -> positions of these rows on the common axis
    n_policies: np.ndarray  # (T,) number of splits that test each bar
    equal_weight: np.ndarray  # (T,) returns of the equal-weight portfolio


def layout_of(splits: Mapping[int, Columns]) -> Layout:
    """Return the layout of one trial's splits; the other trials of the study trade the same bars."""
    steps = {i: np.flatnonzero(np.diff(c["segment"]) == 0) + 1 for i, c in splits.items()}
    bars = np.unique(np.concatenate([splits[i]["bar"][rows] for i, rows in steps.items()]))
    places = {i: np.searchsorted(bars, splits[i]["bar"][rows]) for i, rows in steps.items()}
    count, held = np.zeros(len(bars)), np.zeros(len(bars))
    for i, c in splits.items():
        is_first = np.diff(c["segment"], prepend=-1) != 0
        value = np.where(is_first, c["equity"], c["benchmark_equity"])  # includes the entry fee
        count[places[i]] += 1.0
        held[places[i]] += bar_returns(value)[steps[i] - 1]
    return Layout(bars, {i: len(c["bar"]) for i, c in splits.items()}, steps, places, count, held / count)


def mean_returns(layout: Layout, equities: Mapping[int, np.ndarray]) -> np.ndarray:
    """Return the mean return (T,) over the given splits that tested each bar, or nan if none did."""
    total, count = np.zeros(len(layout.bars)), np.zeros(len(layout.bars))
    for i, equity in equities.items():
        total[layout.places[i]] += bar_returns(equity)[layout.steps[i] - 1]
        count[layout.places[i]] += 1.0
    return np.divide(total, count, out=np.full(len(layout.bars), np.nan), where=count > 0.0)


# --------------------------------------------------------------------------------------------------------- all trials
@dataclass(frozen=True)
class StudyReturns:
    """Returns of a study's finished trials; the rows of the matrix are common test bars."""

    account: np.ndarray  # (T, N) returns of the trials that traded every test bar
    equal_weight: np.ndarray  # (T,)
    numbers: tuple[int, ...]  # (N,) trial number of each column
    bars: np.ndarray  # (T,)
    winner: int  # column index of the study's best trial
    rows: tuple[Row, ...]  # every finished trial of this timeframe: number, state, annual Sharpe ratios
    n_elsewhere: int  # number of finished trials of other timeframes, which have other bars
    timeframe: str
    n_unverified: int = 0  # trials in `rows` whose files have no hash in the database (`train.records.seals`)

    @property
    def bars_per_year(self) -> float:
        """Number of bars per year, from the actual bar spacing."""
        return YEAR_S / timeframe_seconds(self.timeframe)

    @property
    def n_tried(self) -> int:
        """Number of finished trials of all timeframes, from which the winner was chosen."""
        return len(self.rows) + self.n_elsewhere

    def matrix(self, kind: Kind) -> np.ndarray:
        """Return the account returns or the alpha returns ("lead") as a matrix (T, N)."""
        if kind == "account":
            return self.account
        return np.stack([lead_returns(column, self.equal_weight) for column in self.account.T], axis=1)

    def annual_sharpes(self, kind: Kind) -> np.ndarray:
        """Return the annual Sharpe ratio of every finished trial (n_tried,), nan if unknown or undefined."""
        name = "sharpe" if kind == "account" else "lead_sharpe"
        return np.array([row[name] for row in self.rows] + [np.nan] * self.n_elsewhere, dtype=np.float64)

    def count_text(self) -> str:
        """Return the number of trials by state and by use in the statistics."""
        states = [row["state"] for row in self.rows]
        known = int(np.isfinite(self.annual_sharpes("account")).sum())
        text = (
            f"{len(states)} finished trials: {states.count('complete')} completed, {states.count('pruned')} pruned; "
            f"{known} have a Sharpe ratio; {len(self.numbers)} have returns on all {len(self.bars)} common bars"
        )
        if not self.n_elsewhere:
            return text
        return f"{text}; {self.n_elsewhere} of other timeframes count only as trials tried"


def read_returns(study: optuna.Study, folder: Path) -> StudyReturns:
    """Read every finished trial's returns on its test bars.

    A pruned trial was tested on only some of the bars. It has a Sharpe ratio if its returns vary, but no column in the
    matrix. Trials without a column still count as tried.

    The files of every finished trial must be unchanged, because the expected best of N trials is estimated from all N.
    Removing trials would change it.

    Args:
        study: study with its identity.
        folder: results folder of the study.

    Raises:
        StudyError: the study has no best trial, or files of trials are missing, changed or have other bars.
    """
    best = best_trial(study)
    if best is None:
        why = why_no_best(study.get_trials(deepcopy=False))
        raise StudyError(f"study {study.study_name} has no best trial, so there is nothing to judge: {why}")
    timeframe = timeframe_of(study, best)
    finished = study.get_trials(deepcopy=False, states=FINISHED)
    mine = [trial for trial in finished if timeframe_of(study, trial) == timeframe]
    fetch_splits(study, folder, mine, (EQUITY,))
    fetch_splits(study, folder, [best], (SETTINGS,))
    layout = layout_of(_winner_columns(folder, best))

    def one(trial: FrozenTrial) -> np.ndarray | StudyError:
        try:
            return mean_returns(layout, _equities(folder, trial, layout))
        except StudyError as error:
            return error

    with ThreadPoolExecutor(READERS) as pool:
        read = list(pool.map(one, mine))
    errors = {trial.number: found for trial, found in zip(mine, read, strict=True) if isinstance(found, StudyError)}
    if errors:
        first, *others = errors
        more = f"; files of {counted(len(others), 'more trial')} cannot be used: {_listed(others)}" if others else ""
        raise StudyError(f"{errors[first]}{more}")
    returns = [found for found in read if not isinstance(found, StudyError)]
    per_year = YEAR_S / timeframe_seconds(timeframe)
    rows = tuple(_row(trial, r, layout, per_year) for trial, r in zip(mine, returns, strict=True))
    whole = [i for i, row in enumerate(rows) if row["in_matrix"]]
    numbers = tuple(mine[i].number for i in whole)
    if best.number not in numbers:
        raise StudyError(f"the returns of the best trial, {best.number}, are not finite on every test bar")
    return StudyReturns(
        account=np.stack([returns[i] for i in whole], axis=1),
        equal_weight=layout.equal_weight,
        numbers=numbers,
        bars=layout.bars,
        winner=numbers.index(best.number),
        rows=rows,
        n_elsewhere=len(finished) - len(mine),
        timeframe=timeframe,
        n_unverified=sum(not is_sealed(trial) for trial in mine),
    )


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:MOST_LISTED]))
    return shown if len(numbers) <= MOST_LISTED else f"{shown}, ..."


def timeframe_of(study: optuna.Study, trial: FrozenTrial) -> str:
    """Return the timeframe that a trial traded."""
    if "timeframe" in trial.params:
        return trial.params["timeframe"]
    identity = identity_in(study.user_attrs)
    return next(iter(identity.data_sha256), "5m") if identity else "5m"


def n_scored(trial: FrozenTrial) -> int:
    """Return the number of splits that the trial was scored on."""
    return sum(name.startswith(SPLIT) for name in trial.user_attrs)


def _row(trial: FrozenTrial, returns: np.ndarray, layout: Layout, per_year: float) -> Row:
    is_traded = np.isfinite(returns)
    r = returns[is_traded]
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else np.nan,
        "bars": len(r),
        "sharpe": float(sharpe(r, per_year)),
        "lead_sharpe": float(sharpe(lead_returns(r, layout.equal_weight[is_traded]), per_year)),
        "in_matrix": trial.state == TrialState.COMPLETE and bool(is_traded.all()),
    }


def _winner_columns(folder: Path, best: FrozenTrial) -> dict[int, Columns]:
    found = {}
    for k in range(n_scored(best)):
        path = split_folder(folder, best.number, k) / EQUITY
        try:
            for name in (SETTINGS, EQUITY):
                check_seal(folder, best, k, name)
            found[k] = read_equity(path)
        except StudyError as error:
            raise StudyError(f"{_missing(folder, best)}: {error}") from error
    if not found:
        raise StudyError(_missing(folder, best))
    return found


def _equities(folder: Path, trial: FrozenTrial, layout: Layout) -> dict[int, np.ndarray]:
    """Return {split: equity (M,)} of the splits that the trial was scored on."""
    found = {}
    for k in range(n_scored(trial)):
        path = split_folder(folder, trial.number, k) / EQUITY
        if not path.exists():
            raise StudyError(_missing(folder, trial))
        check_seal(folder, trial, k, EQUITY)
        found[k] = read_equity(path, ("equity",))["equity"]
        if found[k].shape != (layout.n_rows.get(k, -1),):
            raise StudyError(f"{trial_folder(folder, trial.number)}: its test bars differ from those of the best trial")
    return found


def _missing(folder: Path, trial: FrozenTrial) -> str:
    there = len(list(trial_folder(folder, trial.number).glob("split_*/equity.npz")))
    return (
        f"{trial_folder(folder, trial.number)}: only {there} of {n_scored(trial)} splits have an equity.npz; restore "
        "the study's results"
    )
