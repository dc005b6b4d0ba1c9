"""Is the best trial of a study skilled? The study's curves through `train.validation.overfitting`, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from market.candles import utc_text
from train.study.curves import Columns, Judged, Layout, trial_returns
from train.study.storage import IDENTITY
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
from train.validation.report import Verdict

BLOCKS = 16  # of the overfitting test
FEW_TRIALS = 10


def unjudged(reason: str) -> Verdict:
    """What is said where nothing can be judged."""
    return Verdict((f"The study cannot be judged: {reason}. Not evidence of skill.",))


def judge(
    judged: Mapping[int, Judged],
    best: int,
    splits: Mapping[int, Columns],
    layout: Layout,
    pruned: Sequence[tuple[float, float]],
    n_tried: int,
    bar_seconds: int,
) -> Verdict:
    """The verdict on the best trial.

    Args:
        judged: every completed trial that can be compared, by number.
        best: the winner's number.
        splits: the winner's columns.
        layout: of the study's splits.
        pruned: (Sharpe, Sharpe of the lead) per bar of the trials that were stopped early.
        n_tried: completed and pruned trials: what the winner was chosen from.
        bar_seconds: length of a bar.
    """
    if best not in judged:
        return unjudged(f"returns of trial {best}, the best, are not finite")
    per_year = 365.0 * 86_400.0 / bar_seconds
    returns = trial_returns(layout, {i: c["equity"] for i, c in splits.items()})
    own = estimate_sharpe(returns)
    lead = estimate_sharpe(returns - layout.equal_weight)
    search = _search([j.sharpe for j in judged.values()] + [own for own, _ in pruned], n_tried)
    search_lead = _search([j.lead_sharpe for j in judged.values()] + [lead for _, lead in pruned], n_tried)
    overfitting, reason = _overfitting(judged)
    pbo = overfitting.pbo if overfitting else None
    sentences = [
        verdict(own, search, per_year, pbo),
        "The same question about its lead over equal weight (return minus equal weight's, bar by bar): "
        + verdict(lead, search_lead, per_year),
    ]
    if reason:
        sentences.append(f"PBO is undefined: {reason}.")
    if n_tried < FEW_TRIALS:
        sentences.append(f"With only {n_tried} trials these figures are crude: read them as examples.")
    days = len(returns) * bar_seconds / 86_400
    sentences.append(
        f"Judged is one account divided equally among the policies that tested each bar: {len(returns):,} bars, "
        f"{days:,.0f} days."
    )
    return Verdict(tuple(sentences), _numbers(own, lead, search, search_lead, overfitting, judged, per_year, reason))


def _search(sharpes: list[float], n_tried: int) -> Search:
    """Per bar; trials without a comparable Sharpe count as tried."""
    return search_of(np.array(sharpes + [np.nan] * max(n_tried - len(sharpes), 0)))


def _overfitting(judged: Mapping[int, Judged]) -> tuple[Overfitting | None, str]:
    if len(judged) < 2:
        return None, f"it compares completed trials, and there {'is 1' if len(judged) == 1 else 'are none'}"
    try:
        return pbo_cscv(np.stack([j.returns for j in judged.values()], axis=1), BLOCKS), ""
    except ValueError as error:
        return None, str(error)


def _numbers(
    own: SharpeEstimate,
    lead: SharpeEstimate,
    search: Search,
    search_lead: Search,
    overfitting: Overfitting | None,
    judged: Mapping[int, Judged],
    per_year: float,
    reason: str,
) -> tuple[tuple[str, str, str], ...]:
    """(name, number, what it means)."""
    root = math.sqrt(per_year)
    effective = effective_trials(np.stack([j.returns for j in judged.values()], axis=1))
    days = own.n_returns / per_year * 365
    moments = f"skew {_text(own.skew, 2)}, kurtosis {_text(own.kurtosis, 1)}"
    track_record = _length(minimum_track_record_length(own), per_year)
    rows = (
        ("trials", f"{search.n_trials:.0f}", "completed and pruned: all that the best was chosen from"),
        ("effective trials", _text(effective, 1), f"independent ones that {len(judged)} comparable trials amount to; "
         "the number above is used, which claims least"),
        ("variance of trials", _text(search.sharpe_variance * per_year, 2), "of their annual Sharpe ratios"),
        ("Sharpe by luck", _text(expected_maximum_sharpe(search) * root, 2), "a year; of the best without skill"),
        ("Sharpe of the best", _text(own.sharpe * root, 2), f"a year; {moments}"),
        ("probabilistic Sharpe", _share(probabilistic_sharpe(own)), "that it is above 0, were it the only trial"),
        ("deflated Sharpe", _share(deflated_sharpe(own, search)), "the same after the search; 95 % is asked for"),
        ("deflated lead", _share(deflated_sharpe(lead, search_lead)), "the same for returns minus equal weight's"),
        ("minimum track record", track_record, f"until 95 %, were it the only trial; there are {days:,.0f} days"),
    )  # fmt: skip
    if overfitting is None:
        return (*rows, ("PBO", "undefined", reason))
    slope = "slope of the Sharpe on one half against the half it was chosen by; below 0, better there was worse here"
    loss = _share(overfitting.probability_of_loss, math.ceil)
    return (
        *rows,
        (
            "PBO",
            _share(overfitting.pbo, math.ceil),
            f"probability of backtest overfitting; {len(judged)} trials, {BLOCKS} blocks",
        ),
        ("loss out of sample", loss, "how often the choice on one half loses on the other"),
        ("degradation", _text(overfitting.degradation_slope, 2), slope),
    )


def _text(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "undefined"


def _share(value: float, rounding: Callable[[float], int] = math.floor) -> str:
    """Rounded against the winner, as the verdict does."""
    if not math.isfinite(value):
        return "undefined"
    return f"{rounding(round(value * 1000.0, 6)) / 10.0:.1f} %"


def _length(n_returns: float, per_year: float) -> str:
    if math.isnan(n_returns):
        return "undefined"
    return "never" if math.isinf(n_returns) else f"{n_returns / per_year * 365:,.0f} days"


# ------------------------------------------------------------------------------------------------------------- hold-out
def holdout_text(study: optuna.Study, scored: Mapping[str, Any], best: FrozenTrial | None) -> str:
    """What the bars that no trial saw say of the best trial."""
    if not scored:
        held = study.user_attrs.get(IDENTITY, {}).get("holdout", {})
        if not any(held.values()):
            return "No bars were held out, so nothing checks the best trial."
        bars = ", ".join(f"{about['bars']:,} of {name}" for name, about in held.items() if about)
        return (
            f"Not scored yet. The last bars of the data are kept from every trial ({bars}) for one look at the winner."
        )
    if scored.get("uuid") != study.user_attrs.get("uuid"):
        return "The file holdout.json belongs to another study, so it is not shown."
    if best is None or scored["trial"] != best.number:
        return (
            f"Spent on trial {scored['trial']}, the best at that time; the best now cannot be checked on the same "
            "bars, for that would be a choice by them."
        )
    about, mean, error = scored["holdout"], scored["mean_excess_sharpe"], scored["sharpe_standard_error"]
    span = f"{utc_text(about['first_time_s'])} to {utc_text(about['last_time_s'])} UTC"
    where = (
        f"{len(scored['policies'])} policies of trial {best.number} on {about['bars']:,} bars that no trial saw, {span}"
    )
    if mean is None:
        return f"{where}: the excess Sharpe of at least one of them is undefined, so their mean is too."
    found = _text(mean, 2) if mean < 0 else f"+{mean:.2f}"
    if abs(mean) < 2.0 * error:
        said = "which is within the chance error: neither skill nor its absence is shown"
    else:
        said = "above what chance explains" if mean > 0 else "clearly worse than equal weight"
    return f"{where}: mean excess Sharpe {found} a year, with a standard error of about {error:.1f}, {said}."
