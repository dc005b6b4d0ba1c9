"""Returns of a study's trials on common bars: what their Sharpe ratios, their deflation and PBO are computed from.

A bar is tested by several splits of a combinatorial study, each with a policy of its own. A trial's return on it is the
mean over those splits: one account divided equally among their policies. Each bar counts once, so a study does not look
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

MOST_LISTED = 10  # trials in an error
READERS = 4  # threads: unpacking leaves the interpreter free
YEAR_S = 365.0 * 86_400.0

Columns = Mapping[str, np.ndarray]
# Returns, and what is left of them after the account's exposure to the market (`train.validation.lead`).
Kind = Literal["account", "lead"]
Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------------- one trial
@dataclass(frozen=True)
class Layout:
    """Where the returns of each split go on the common axis of T tested bars."""

    bars: np.ndarray  # (T,) of the data set: where a return ends
    n_rows: dict[int, int]  # split -> rows of its equity file
    steps: dict[int, np.ndarray]  # split -> rows that end a return
    places: dict[int, np.ndarray]  # split -> their places
    n_policies: np.ndarray  # (T,) splits that test each bar
    equal_weight: np.ndarray  # (T,) return of the equal-weight portfolio


def layout_of(splits: Mapping[int, Columns]) -> Layout:
    """From all splits of one trial; the others of the study trade the very same bars."""
    steps = {i: np.flatnonzero(np.diff(c["segment"]) == 0) + 1 for i, c in splits.items()}
    bars = np.unique(np.concatenate([splits[i]["bar"][rows] for i, rows in steps.items()]))
    places = {i: np.searchsorted(bars, splits[i]["bar"][rows]) for i, rows in steps.items()}
    count, held = np.zeros(len(bars)), np.zeros(len(bars))
    for i, c in splits.items():
        is_first = np.diff(c["segment"], prepend=-1) != 0
        value = np.where(is_first, c["equity"], c["benchmark_equity"])  # from the same cash, the entry fee included
        count[places[i]] += 1.0
        held[places[i]] += bar_returns(value)[steps[i] - 1]
    return Layout(bars, {i: len(c["bar"]) for i, c in splits.items()}, steps, places, count, held / count)


def mean_returns(layout: Layout, equities: Mapping[int, np.ndarray]) -> np.ndarray:
    """(T,) mean return over the given splits that tested each bar; nan where none of them did."""
    total, count = np.zeros(len(layout.bars)), np.zeros(len(layout.bars))
    for i, equity in equities.items():
        total[layout.places[i]] += bar_returns(equity)[layout.steps[i] - 1]
        count[layout.places[i]] += 1.0
    return np.divide(total, count, out=np.full(len(layout.bars), np.nan), where=count > 0.0)


# --------------------------------------------------------------------------------------------------------- all trials
@dataclass(frozen=True)
class StudyReturns:
    """The returns of a study's finished trials. Rows of the matrix are common test bars."""

    account: np.ndarray  # (T, N) of trials that traded every test bar
    equal_weight: np.ndarray  # (T,)
    numbers: tuple[int, ...]  # (N,) of those trials
    bars: np.ndarray  # (T,)
    winner: int  # column of the study's best trial
    rows: tuple[Row, ...]  # every finished trial of this timeframe: number, state, annual Sharpe ratios
    n_elsewhere: int  # finished trials of other timeframes, whose bars are not the same
    timeframe: str
    n_unverified: int = 0  # of `rows`: trials whose files have no hash in the database (`train.records.seals`)

    @property
    def bars_per_year(self) -> float:
        """From the real bar spacing."""
        return YEAR_S / timeframe_seconds(self.timeframe)

    @property
    def n_tried(self) -> int:
        """Finished trials, of any timeframe: what the winner was chosen from."""
        return len(self.rows) + self.n_elsewhere

    def matrix(self, kind: Kind) -> np.ndarray:
        """(T, N) returns of that kind: the accounts', or each less its beta times equal weight's."""
        if kind == "account":
            return self.account
        return np.stack([lead_returns(column, self.equal_weight) for column in self.account.T], axis=1)

    def annual_sharpes(self, kind: Kind) -> np.ndarray:
        """(n_tried,) of every trial that was tried; nan where it is not known or not defined."""
        name = "sharpe" if kind == "account" else "lead_sharpe"
        return np.array([row[name] for row in self.rows] + [np.nan] * self.n_elsewhere, dtype=np.float64)

    def count_text(self) -> str:
        """Which trials count for what."""
        states = [row["state"] for row in self.rows]
        known = int(np.isfinite(self.annual_sharpes("account")).sum())
        text = (
            f"{len(states)} finished trials: {states.count('complete')} completed, {states.count('pruned')} pruned; "
            f"{known} have a Sharpe ratio; {len(self.numbers)} have returns on all {len(self.bars)} common bars"
        )
        if not self.n_elsewhere:
            return text
        return f"{text}; {self.n_elsewhere} of other timeframes than {self.timeframe} count as tried and for no more"


def read_returns(study: optuna.Study, folder: Path) -> StudyReturns:
    """Read every finished trial's returns on its test bars.

    A pruned trial was tested on some of the bars only: it has a Sharpe ratio where its returns vary, and no column. A
    trial that is left out of the matrix still counts as tried.

    Every finished trial's files must be there as they were scored: the luck of the best of N is estimated from all N,
    and whoever removes the others changes it.

    Args:
        study: with its identity.
        folder: of its results.

    Raises:
        StudyError: no best trial, or trials whose files are missing, changed or of other bars; names them.
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
        raise StudyError(f"returns of trial {best.number}, the best, are not finite on every test bar")
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
    """Of the bars a trial traded."""
    if "timeframe" in trial.params:
        return trial.params["timeframe"]
    identity = identity_in(study.user_attrs)
    return next(iter(identity.data_sha256), "5m") if identity else "5m"


def n_scored(trial: FrozenTrial) -> int:
    """Splits that the trial was scored on."""
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
    """Split -> (M,) equity of the splits that the trial was scored on."""
    found = {}
    for k in range(n_scored(trial)):
        path = split_folder(folder, trial.number, k) / EQUITY
        if not path.exists():
            raise StudyError(_missing(folder, trial))
        check_seal(folder, trial, k, EQUITY)
        found[k] = read_equity(path, ("equity",))["equity"]
        if found[k].shape != (layout.n_rows.get(k, -1),):
            raise StudyError(f"{trial_folder(folder, trial.number)}: its test bars are not those of the best trial")
    return found


def _missing(folder: Path, trial: FrozenTrial) -> str:
    there = len(list(trial_folder(folder, trial.number).glob("split_*/equity.npz")))
    return (
        f"{trial_folder(folder, trial.number)}: {there} of {n_scored(trial)} splits' equity.npz are there; restore the "
        "study's results"
    )
