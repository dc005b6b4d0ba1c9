"""Whether a study's winner is skilled or the luckiest of many: its trials' returns on common bars, and what they say.

A column of the matrix is a trial's account, bar by bar. In a combinatorial design every bar is tested by several of a
trial's policies; the column has the mean of their returns, an account spread evenly over the full paths.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from market.files import write_whole
from market.names import TIMEFRAME_SECONDS
from train.study.data import StudyError
from train.study.progress import best_trial
from train.study.replay import StoredStudy
from train.study.results import read_equity, trial_folder
from train.study.storage import FINISHED
from train.validation.metrics import bar_returns, sharpe
from train.validation.overfitting import (
    Overfitting,
    Search,
    SharpeEstimate,
    deflated_sharpe,
    effective_trials,
    estimate_sharpe,
    expected_maximum_sharpe,
    minimum_track_record_length,
    pbo_cscv,
    probabilistic_sharpe,
    search_of,
    verdict,
)

LEAST_TRIALS = 10  # ranks among fewer are too coarse for a probability
N_BLOCKS = 16
YEAR_S = 365.0 * 86_400.0

Kind = Literal["account", "excess"]  # returns, and returns less the equal-weight portfolio's
Curve = dict[int, float]  # bar -> return
Row = dict[str, Any]


@dataclass(frozen=True)
class TrialReturns:
    """The returns of a study's finished trials. Rows of the matrix are common test bars."""

    matrix: np.ndarray  # (T, N) of trials that traded every test bar
    numbers: tuple[int, ...]  # (N,) of those trials
    bars: np.ndarray  # (T,)
    winner: int  # column of the study's best trial
    rows: list[Row]  # every finished trial: its number, state, Sharpe
    bars_per_year: float
    timeframe: str

    @property
    def annual_sharpes(self) -> np.ndarray:
        """Of every finished trial; nan where there is none."""
        return np.array([row["sharpe"] for row in self.rows], dtype=np.float64)


@dataclass(frozen=True)
class Assessment:
    """What the returns say of the winner. Sharpe ratios per bar but for what says annual."""

    kind: Kind
    estimate: SharpeEstimate
    search: Search
    overfitting: Overfitting
    effective_trials: float
    minimum_length: float  # returns until the winner's Sharpe is above 0 with 95 %; infinite where it is not
    verdict: str
    bars_per_year: float

    def to_json(self) -> Row:
        """Plain values but for nan and infinity."""
        year, own, found = math.sqrt(self.bars_per_year), self.estimate, self.overfitting
        return {
            "returns": self.kind,
            "annual_sharpe": own.sharpe * year,
            "n_returns": own.n_returns,
            "skew": own.skew,
            "kurtosis": own.kurtosis,
            "probabilistic_sharpe": probabilistic_sharpe(own),
            "deflated_sharpe": deflated_sharpe(own, self.search),
            "n_trials": self.search.n_trials,
            "effective_trials": self.effective_trials,
            "annual_sharpe_variance": self.search.sharpe_variance * self.bars_per_year,
            "annual_sharpe_of_luck": expected_maximum_sharpe(self.search) * year,
            "minimum_track_record_bars": self.minimum_length,
            "minimum_track_record_years": self.minimum_length / self.bars_per_year,
            "pbo": found.pbo,
            "combinations": len(found.logits),
            "degradation_slope": found.degradation_slope,
            "probability_of_loss": found.probability_of_loss,
            "verdict": self.verdict,
        }


def trial_returns(stored: StoredStudy, kind: Kind) -> TrialReturns:
    """Read every finished trial's returns on its test bars.

    A pruned trial was tested on some of the bars only: it has a Sharpe ratio where its returns vary, and no column. In
    a study of several timeframes the trials of the winner's are compared; the others' bars are not the same.

    Raises:
        StudyError: no completed trial, or the winner's curves are missing.
    """
    best = best_trial(stored.study)
    if best is None:
        raise StudyError(f"study {stored.study.study_name} has no completed trial, so there is nothing to judge")
    timeframe = best.params.get("timeframe") or next(iter(stored.identity["data_sha256"]))
    per_year = YEAR_S / TIMEFRAME_SECONDS[timeframe]
    finished = stored.study.get_trials(deepcopy=False, states=FINISHED)
    mine = [trial for trial in finished if trial.params.get("timeframe", timeframe) == timeframe]
    curves = {trial.number: _mean_curve(stored, trial, kind) for trial in mine}
    common = sorted(curves[best.number])
    whole = [trial.number for trial in mine if trial.state == TrialState.COMPLETE and curves[trial.number]]
    for number in whole:
        if sorted(curves[number]) != common:
            raise StudyError(
                f"{trial_folder(stored.folder, number)}: its test bars are not those of trial {best.number}"
            )
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state == TrialState.COMPLETE else np.nan,
            "bars": len(curves[trial.number]),
            "sharpe": float(sharpe(np.array(list(curves[trial.number].values())), per_year)),
            "in_matrix": trial.number in whole,
        }
        for trial in mine
    ]
    matrix = np.array([[curves[number][bar] for number in whole] for bar in common]).reshape(len(common), len(whole))
    return TrialReturns(matrix, tuple(whole), np.array(common), whole.index(best.number), rows, per_year, timeframe)


def assess(returns: TrialReturns, kind: Kind, n_blocks: int = N_BLOCKS, least_trials: int = LEAST_TRIALS) -> Assessment:
    """PBO of the matrix, and the winner's Sharpe deflated by all finished trials.

    Raises:
        StudyError: too few trials or bars, or a trial whose returns have no Sharpe ratio.
    """
    n = len(returns.numbers)
    if n < max(least_trials, 2):
        raise StudyError(
            f"the probability of overfitting compares completed trials and needs at least {max(least_trials, 2)}; the "
            f"study has {n} ({len(returns.rows) - n} more finished without returns on every test bar), so run "
            f"{max(least_trials, 2) - n} more to completion"
        )
    own = estimate_sharpe(returns.matrix[:, returns.winner])
    search = search_of(returns.annual_sharpes, returns.bars_per_year)
    try:
        found = pbo_cscv(returns.matrix, n_blocks)
    except ValueError as error:
        raise StudyError(f"the probability of overfitting is not defined: {error}") from error
    return Assessment(
        kind=kind,
        estimate=own,
        search=search,
        overfitting=found,
        effective_trials=effective_trials(returns.matrix),
        minimum_length=minimum_track_record_length(own),
        verdict=verdict(own, search, returns.bars_per_year, found.pbo),
        bars_per_year=returns.bars_per_year,
    )


def count_text(study: optuna.Study, returns: TrialReturns) -> str:
    """Which trials count for what."""
    all_finished = len(study.get_trials(deepcopy=False, states=FINISHED))
    states = [row["state"] for row in returns.rows]
    known = int(np.isfinite(returns.annual_sharpes).sum())
    text = (
        f"{len(states)} finished trials: {states.count('complete')} completed, {states.count('pruned')} pruned; "
        f"{known} have a Sharpe ratio; {len(returns.numbers)} have returns on all {len(returns.bars)} common bars"
    )
    others = all_finished - len(states)
    return text + (f"; {others} of other timeframes than {returns.timeframe} are left out" if others else "")


def write_matrix(path: Path, returns: TrialReturns, found: Overfitting) -> None:
    """The matrix and every combination: `returns` (T, N), `trial` (N,), `bar` (T,), `logit`, `chosen`, ... (C,)."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, allow_pickle=False, returns=returns.matrix, trial=np.array(returns.numbers), bar=returns.bars,
        logit=found.logits, chosen=found.chosen, in_sample=found.in_sample, out_of_sample=found.out_of_sample,
        sharpe_grid=found.sharpe_grid, chosen_share=found.chosen_share, any_share=found.any_share,
    )  # fmt: skip
    write_whole(path, buffer.getvalue())


def _mean_curve(stored: StoredStudy, trial: FrozenTrial, kind: Kind) -> Curve:
    """Bar -> mean return of the trial's policies that were tested on it."""
    paths = sorted(trial_folder(stored.folder, trial.number).glob("split_*/equity.npz"))
    scored = sum(name.startswith("split_") for name in trial.user_attrs)
    if len(paths) < scored:
        raise StudyError(
            f"{trial_folder(stored.folder, trial.number)}: {len(paths)} of {scored} splits' equity.npz are there; "
            "restore the study's results"
        )
    bars, values = zip(*(_split_returns(path, kind) for path in paths), strict=True) if paths else ((), ())
    return _means(bars, values)


def _split_returns(path: Path, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Bars (n,) that a return leads to, and the returns (n,)."""
    curve = read_equity(path)
    is_step = curve["segment"][1:] == curve["segment"][:-1]
    returns = bar_returns(curve["equity"])[is_step]
    if kind == "excess":
        is_first = np.concatenate([[True], ~is_step])
        fair = np.where(is_first, curve["equity"], curve["benchmark_equity"])  # from the same cash, the fee included
        returns = returns - bar_returns(fair)[is_step]
    return curve["bar"][1:][is_step], returns


def _means(bars: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> Curve:
    if not bars:
        return {}
    bar, place = np.unique(np.concatenate(bars), return_inverse=True)
    totals, counts = np.bincount(place, np.concatenate(values)), np.bincount(place)
    return dict(zip(bar.tolist(), (totals / counts).tolist(), strict=True))
