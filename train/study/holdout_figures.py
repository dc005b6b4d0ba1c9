"""What a scored hold-out says: how sure its excess Sharpe is, and which policies were hardly in the market."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import UNSET
from scipy.special import ndtr, ndtri

from train.records.account import LEAST_EXPOSURE
from train.records.stored import HoldoutScore
from train.validation.lead import lead_returns, sharpe_difference_error
from train.validation.metrics import joined_returns, sharpe

if TYPE_CHECKING:
    from train.evaluator import EpisodeRecord

FIRST_ERRORS_ASKED = 2.0


def excess_error(records: Sequence[EpisodeRecord], bars_per_year: float) -> float:
    """Standard error of a policy's annual excess Sharpe: of a difference of two ratios on the same bars."""
    return sharpe_difference_error(*_returns(records), bars_per_year)


def lead_sharpe(records: Sequence[EpisodeRecord], bars_per_year: float) -> float:
    """Annual Sharpe ratio of what the account earned beside its exposure to equal weight.

    Where prices fall, whoever is seldom in the market has a better Sharpe ratio than equal weight, and no skill.
    """
    return float(sharpe(lead_returns(*_returns(records)), bars_per_year))


def _returns(records: Sequence[EpisodeRecord]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) of the account and (n,) of equal weight, which starts from the same cash."""
    held = [np.concatenate([r.equity[:1], r.benchmark_equity[1:]]) for r in records]
    return joined_returns([r.equity for r in records]), joined_returns(held)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Over policies; None where one is undefined.

    The mean of their errors is the error of their mean as if all erred together: they share the bars and were trained
    on overlapping ones, so their number makes nothing surer.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def error_of(scored: HoldoutScore) -> float | None:
    """Standard error of the mean excess Sharpe.

    A file from before it was kept has the error of ONE ratio; the difference of two that have nothing to do with each
    other has sqrt(2) times that, which claims least.
    """
    if scored.excess_sharpe_error is not UNSET:
        return scored.excess_sharpe_error
    single = scored.sharpe_standard_error
    return None if single is None else math.sqrt(2.0) * single


def lead_in_errors(scored: HoldoutScore) -> float | None:
    """The mean over policies of the lead's Sharpe ratio, in standard errors of one; None where it is not kept."""
    mean, error = scored.mean_lead_sharpe, scored.sharpe_standard_error
    return None if mean is None or error is None else mean / error


def is_passed(scored: HoldoutScore | None, trial: int) -> bool | None:
    """Whether a trial passed the hold-out: its mean excess Sharpe and its lead are `errors_asked` above 0.

    None without a verdict: not scored, spent on another trial, hardly traded, or a figure that is undefined.
    """
    if scored is None or scored.trial != trial or n_idle(scored):
        return None
    mean, error, lead = scored.mean_excess_sharpe, error_of(scored), lead_in_errors(scored)
    if mean is None or error is None or lead is None:
        return None
    asked = errors_asked(scored)
    return mean >= asked * error and lead >= asked


def errors_asked(scored: HoldoutScore) -> float:
    """Standard errors above 0 that count as more than chance: two at the first look at these bars, then more.

    With k earlier looks by other studies the level is that of two errors times 2 / ((k + 1) (k + 2)), so that all looks
    together are wrong at most twice as often as one.
    """
    k = len(scored.earlier_looks)
    if not k:
        return FIRST_ERRORS_ASKED
    return -float(ndtri(ndtr(-FIRST_ERRORS_ASKED) * 2.0 / ((k + 1) * (k + 2))))


def found_text(scored: HoldoutScore, mean: float, error: float) -> str:
    """What a mean excess Sharpe with its error says; above chance only where the lead is, too."""
    asked = errors_asked(scored)
    if abs(mean) < asked * error:
        return "which is within the chance error: neither skill nor its absence is shown"
    if mean < 0:
        return "clearly worse than equal weight"
    lead = lead_in_errors(scored)
    if lead is None:
        return "above what chance explains; how much of that is exposure to a market that fell was not kept"
    if lead < asked:
        return (
            f"but what it earned beside its exposure to the market is {lead:+.1f} standard errors, within the chance "
            "error: neither skill nor its absence is shown"
        )
    return (
        f"above what chance explains, and so is what it earned beside its exposure to the market ({lead:+.1f} standard "
        "errors)"
    )


def hardly_traded(exposure: float) -> bool:
    """Whether an account was too little in the market for its Sharpe ratio to say anything of an invested one.

    Args:
        exposure: mean share of equity in coins; nan, where it is not known, is not too little.
    """
    return exposure < LEAST_EXPOSURE


def n_idle(scored: HoldoutScore) -> int:
    """Policies that hardly traded: where there are some, the mean excess Sharpe is no verdict."""
    return sum(hardly_traded(policy.agent.exposure) for policy in scored.policies)


def idle_text(scored: HoldoutScore) -> str:
    """Why there is no verdict; empty where all policies were in the market."""
    n = n_idle(scored)
    if not n:
        return ""
    return (
        f"{n} of {len(scored.policies)} policies hardly traded (mean exposure under {LEAST_EXPOSURE:.0%}), so their "
        "Sharpe ratios say nothing of an invested account"
    )
