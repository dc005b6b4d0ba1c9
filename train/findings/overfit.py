"""Assessment of whether a study's winner is skilled or lucky, from the trials' returns on common bars."""

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
    """Statistics of the winner's returns; Sharpe ratios are per bar unless named annual."""

    kind: Kind
    estimate: SharpeEstimate
    search: Search
    overfitting: Overfitting | None
    undefined: str  # why the overfitting test is undefined; empty if it is defined
    choice: Choice | None  # whether the trials differ enough for the test; None without the test
    holdout: bool | None  # True if the winner passed the hold-out; None without a verdict
    effective_trials: float
    minimum_length: float  # returns needed for a Sharpe ratio above 0 at 95 % confidence; may be infinite
    bars_per_year: float

    @property
    def pbo(self) -> float:
        """Probability of backtest overfitting, or nan if undefined."""
        return self.overfitting.pbo if self.overfitting else math.nan

    @property
    def conclusion(self) -> str:
        """Conclusion in words, about skill for alpha returns and about earnings for account returns."""
        if self.kind == "account":
            return earning(self.estimate, self.search)
        pbo = self.pbo if self.overfitting else None
        return conclusion(self.estimate, self.search, pbo, self.choice, self.holdout)

    @property
    def is_evidence(self) -> bool:
        """True if the alpha returns are evidence of skill."""
        return self.kind == "lead" and self.conclusion.startswith(EVIDENCE)

    @property
    def finding(self) -> str:
        """Metrics behind the conclusion, in words."""
        pbo = self.pbo if self.overfitting else None
        return finding(self.estimate, self.search, self.bars_per_year, pbo, self.choice)

    def to_json(self) -> Row:
        """Return plain JSON values, except that nan and infinity are kept."""
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
    """Return the winner's Sharpe ratio deflated by all trials, and PBO if enough trials can be compared.

    Args:
        returns: returns of the study's trials.
        kind: account returns or alpha returns ("lead").
        n_blocks: number of blocks for PBO.
        least_trials: number of trials below which PBO is undefined.
        holdout: True if the winner passed the hold-out (`train.study.holdout_figures.is_passed`).
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
    """Raise an error if the study has too few trials to compare.

    Raises:
        StudyError: the message states how many more trials are needed.
    """
    n, needed = len(returns.numbers), max(least, 2)
    if n < needed:
        raise StudyError(
            f"PBO needs at least {needed} completed trials; the study has {n} ({returns.n_tried - n} more finished "
            f"without returns on every test bar of {returns.timeframe}); run {needed - n} more trials to completion"
        )


def write_matrix(path: Path, returns: StudyReturns, found: Assessment) -> None:
    """Write matrix and combinations: `returns` (T, N), `trial` (N,), `bar` (T,), `logit`, `chosen`, ... (C,)."""
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
