"""Whether a study's winner is skilled or the luckiest of many, from its trials' returns on common bars."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from market.files import write_whole
from train.findings.returns import Kind, StudyReturns
from train.records.defaults import LEAST_TRIALS, N_BLOCKS
from train.records.errors import StudyError
from train.validation.choice import Choice, choice_of
from train.validation.overfitting import (
    EVIDENCE,
    Overfitting,
    Search,
    SharpeEstimate,
    conclusion,
    deflated_sharpe,
    earning,
    effective_trials,
    estimate_sharpe,
    expected_maximum_sharpe,
    finding,
    minimum_track_record_length,
    pbo_cscv,
    probabilistic_sharpe,
    search_of,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Assessment:
    """What the returns say of the winner. Sharpe ratios per bar but for what says annual."""

    kind: Kind
    estimate: SharpeEstimate
    search: Search
    overfitting: Overfitting | None
    undefined: str  # why there is no overfitting test; empty where there is one
    choice: Choice | None  # whether there is something for that test to test; None without the test
    holdout: bool | None  # whether the winner passed the hold-out; None without a verdict
    effective_trials: float
    minimum_length: float  # returns until the winner's Sharpe is above 0 with 95 %; infinite where it is not
    bars_per_year: float

    @property
    def pbo(self) -> float:
        """nan where it is undefined."""
        return self.overfitting.pbo if self.overfitting else math.nan

    @property
    def conclusion(self) -> str:
        """Of the lead: whether it is evidence of skill. Of the account: whether it earned money."""
        if self.kind == "account":
            return earning(self.estimate, self.search)
        pbo = self.pbo if self.overfitting else None
        return conclusion(self.estimate, self.search, pbo, self.choice, self.holdout)

    @property
    def is_evidence(self) -> bool:
        """Whether the lead is evidence of skill."""
        return self.kind == "lead" and self.conclusion.startswith(EVIDENCE)

    @property
    def finding(self) -> str:
        """What that rests on, in words; without the overfitting test where there is none."""
        pbo = self.pbo if self.overfitting else None
        return finding(self.estimate, self.search, self.bars_per_year, pbo, self.choice)

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
            "pbo": self.pbo,
            "choice_p_value": self.choice.p_value if self.choice else math.nan,
            "combinations": len(found.logits) if found else 0,
            "degradation_slope": found.degradation_slope if found else math.nan,
            "probability_of_loss": found.probability_of_loss if found else math.nan,
            "verdict": f"{self.conclusion} {self.finding}",
        }


def assess(
    returns: StudyReturns,
    kind: Kind,
    n_blocks: int = N_BLOCKS,
    least_trials: int = LEAST_TRIALS,
    holdout: bool | None = None,
) -> Assessment:
    """The winner's Sharpe deflated by all trials that were tried, and PBO where enough of them can be compared.

    Args:
        returns: of the study's trials.
        kind: which of their returns.
        n_blocks: of PBO.
        least_trials: without which PBO is undefined.
        holdout: whether the winner passed the hold-out (`train.study.holdout_figures.is_passed`).
    """
    matrix = returns.matrix(kind)
    own = estimate_sharpe(matrix[:, returns.winner])
    overfitting, undefined = _overfitting(matrix, n_blocks, max(least_trials, 2))
    return Assessment(
        kind=kind,
        estimate=own,
        search=search_of(returns.annual_sharpes(kind), returns.bars_per_year),
        overfitting=overfitting,
        undefined=undefined,
        choice=choice_of(matrix, returns.winner) if overfitting else None,
        holdout=holdout,
        effective_trials=effective_trials(matrix),
        minimum_length=minimum_track_record_length(own),
        bars_per_year=returns.bars_per_year,
    )


def require_trials(returns: StudyReturns, least: int = LEAST_TRIALS) -> None:
    """Refuse a study with too few trials to compare.

    Raises:
        StudyError: says how many more are needed.
    """
    n, needed = len(returns.numbers), max(least, 2)
    if n < needed:
        raise StudyError(
            f"PBO needs at least {needed} completed trials; the study has {n} ({returns.n_tried - n} more ended "
            f"without returns on every test bar of {returns.timeframe}); run {needed - n} more trials to completion"
        )


def write_matrix(path: Path, returns: StudyReturns, found: Assessment) -> None:
    """The matrix and every combination: `returns` (T, N), `trial` (N,), `bar` (T,), `logit`, `chosen`, ... (C,)."""
    buffer, test = io.BytesIO(), found.overfitting
    names = ("chosen", "in_sample", "out_of_sample", "sharpe_grid", "chosen_share", "any_share")
    columns = {} if test is None else {"logit": test.logits} | {name: getattr(test, name) for name in names}
    np.savez_compressed(
        buffer, allow_pickle=False, returns=returns.matrix(found.kind), trial=np.array(returns.numbers),
        bar=returns.bars, **columns,
    )  # fmt: skip
    write_whole(path, buffer.getvalue())


def _overfitting(matrix: np.ndarray, n_blocks: int, least_trials: int) -> tuple[Overfitting | None, str]:
    n = matrix.shape[1]
    if n < least_trials:
        return None, f"it needs at least {least_trials} completed trials; the study has {n}"
    try:
        return pbo_cscv(matrix, n_blocks), ""
    except ValueError as error:
        return None, str(error)
