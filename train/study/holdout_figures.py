"""What a scored hold-out says: how sure its excess Sharpe is, and which policies were hardly in the market."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.validation.lead import sharpe_difference_error
from train.validation.metrics import LEAST_EXPOSURE, joined_returns

if TYPE_CHECKING:
    from train.evaluator import EpisodeRecord

EXCESS_ERROR = "excess_sharpe_error"  # in holdout.json, of each policy and of their mean


def excess_error(records: Sequence[EpisodeRecord], bars_per_year: float) -> float:
    """Standard error of a policy's annual excess Sharpe: of a difference of two ratios on the same bars."""
    held = [np.concatenate([r.equity[:1], r.benchmark_equity[1:]]) for r in records]
    return sharpe_difference_error(joined_returns([r.equity for r in records]), joined_returns(held), bars_per_year)


def mean_error(errors: Sequence[float | None]) -> float | None:
    """Of the mean over policies: the mean of their errors, as if all erred together; None where one is undefined.

    They share the bars and were trained on overlapping ones, so their number makes nothing surer.
    """
    known = [error for error in errors if error is not None and math.isfinite(error)]
    return float(np.mean(known)) if known and len(known) == len(errors) else None


def error_of(scored: Mapping[str, Any]) -> float | None:
    """Standard error of the mean excess Sharpe.

    A file from before it was kept has the error of ONE ratio; the difference of two that have nothing to do with each
    other has sqrt(2) times that, which claims least.
    """
    if EXCESS_ERROR in scored:
        return scored[EXCESS_ERROR]
    single = scored.get("sharpe_standard_error")
    return None if single is None else math.sqrt(2.0) * single


def hardly_traded(agent: Mapping[str, Any]) -> bool:
    """Whether an account was too little in the market for its Sharpe ratio to say anything of an invested one."""
    exposure = agent.get("exposure")
    return exposure is not None and exposure < LEAST_EXPOSURE


def n_idle(scored: Mapping[str, Any]) -> int:
    """Policies that hardly traded: where there are some, the mean excess Sharpe is no verdict."""
    return sum(hardly_traded(policy.get("agent", {})) for policy in scored["policies"])


def idle_text(scored: Mapping[str, Any]) -> str:
    """Why there is no verdict; empty where all policies were in the market."""
    n = n_idle(scored)
    if not n:
        return ""
    return (
        f"{n} of {len(scored['policies'])} policies hardly traded (mean exposure under {LEAST_EXPOSURE:.0%}), so their "
        "Sharpe ratios say nothing of an invested account"
    )
