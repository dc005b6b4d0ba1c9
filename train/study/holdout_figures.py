"""Hold-out score of a study: standard error of its excess Sharpe ratio, verdict, and inactive policies."""

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
    """Return the standard error of a policy's annual excess Sharpe ratio, computed from paired returns."""
    return sharpe_difference_error(*_returns(records), bars_per_year)


def lead_sharpe(records: Sequence[EpisodeRecord], bars_per_year: float) -> float:
    """Return the annual Sharpe ratio of the account's alpha returns relative to equal weight.

    If prices fall, an account that is rarely in the market has a higher Sharpe ratio than equal weight without any
    skill. Alpha returns remove that effect.
    """
    return float(sharpe(lead_returns(*_returns(records)), bars_per_year))


def _returns(records: Sequence[EpisodeRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Return the returns of the account and of equal weight, (n,) each. Both start from the same cash."""
    held = [np.concatenate([r.equity[:1], r.benchmark_equity[1:]]) for r in records]
    return joined_returns([r.equity for r in records]), joined_returns(held)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean over policies, or None if a value is undefined.

    For standard errors, this is the error of the mean if the errors are perfectly correlated. The policies share their
    bars and were trained on overlapping bars, so a larger number of policies does not reduce the error.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def error_of(scored: HoldoutScore) -> float | None:
    """Return the standard error of the mean excess Sharpe ratio, or None if it is unknown.

    Older files hold the error of a single ratio. The difference of two independent ratios has sqrt(2) times that error,
    which is the conservative choice.
    """
    if scored.excess_sharpe_error is not UNSET:
        return scored.excess_sharpe_error
    single = scored.sharpe_standard_error
    return None if single is None else math.sqrt(2.0) * single


def lead_in_errors(scored: HoldoutScore) -> float | None:
    """Return the mean Sharpe ratio of alpha returns in standard errors, or None if it was not stored."""
    mean, error = scored.mean_lead_sharpe, scored.sharpe_standard_error
    return None if mean is None or error is None else mean / error


def is_passed(scored: HoldoutScore | None, trial: int) -> bool | None:
    """Return True if the trial's mean excess Sharpe and alpha Sharpe are both `errors_asked` standard errors above 0.

    Return None if there is no verdict: the hold-out was not scored, a different trial was scored, a policy is inactive,
        or a metric is undefined.
    """
    if scored is None or scored.trial != trial or n_idle(scored):
        return None
    mean, error, lead = scored.mean_excess_sharpe, error_of(scored), lead_in_errors(scored)
    if mean is None or error is None or lead is None:
        return None
    asked = errors_asked(scored)
    return mean >= asked * error and lead >= asked


def errors_asked(scored: HoldoutScore) -> float:
    """Return the required distance from 0 in standard errors: 2 for the first evaluation of these bars, then more.

    After k earlier evaluations by other studies, the significance level is that of two standard errors times
    2 / ((k + 1) (k + 2)). The total error probability of all evaluations is then at most twice that of one.
    """
    k = len(scored.earlier_looks)
    if not k:
        return FIRST_ERRORS_ASKED
    return -float(ndtri(ndtr(-FIRST_ERRORS_ASKED) * 2.0 / ((k + 1) * (k + 2))))


def found_text(scored: HoldoutScore, mean: float, error: float) -> str:
    """Return the interpretation of a mean excess Sharpe ratio with its error, taking alpha returns into account."""
    asked = errors_asked(scored)
    if abs(mean) < asked * error:
        return "which is within the chance error, so it shows neither skill nor its absence"
    if mean < 0:
        return "clearly worse than equal weight"
    lead = lead_in_errors(scored)
    if lead is None:
        return "above what chance explains; the part due to low exposure in a falling market was not stored"
    if lead < asked:
        return (
            f"but the Sharpe ratio of alpha returns is {lead:+.1f} standard errors, within the chance error, so it "
            "shows neither skill nor its absence"
        )
    return f"above what chance explains, and so is the Sharpe ratio of alpha returns ({lead:+.1f} standard errors)"


def hardly_traded(exposure: float) -> bool:
    """Return True if an account was inactive: its exposure is too low for its Sharpe ratio to be meaningful.

    Args:
        exposure: mean fraction of equity in coins. nan (unknown) returns False.
    """
    return exposure < LEAST_EXPOSURE


def n_idle(scored: HoldoutScore) -> int:
    """Return the number of inactive policies. If it is above 0, the mean excess Sharpe ratio gives no verdict."""
    return sum(hardly_traded(policy.agent.exposure) for policy in scored.policies)


def idle_text(scored: HoldoutScore) -> str:
    """Return why inactive policies prevent a verdict, or "" if all policies were active."""
    n = n_idle(scored)
    if not n:
        return ""
    return (
        f"{n} of {len(scored.policies)} policies were inactive (mean exposure below {LEAST_EXPOSURE:.0%}), so their "
        "Sharpe ratios are not meaningful"
    )
