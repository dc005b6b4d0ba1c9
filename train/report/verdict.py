"""Verdict on the best trial of a study in words, from `train.findings.overfit` and the hold-out."""

from __future__ import annotations

import math
from collections.abc import Callable

import optuna
from optuna.trial import FrozenTrial

from market.names import counted, timeframe_seconds
from market.times import utc_text
from train.findings.holdout import looks_text
from train.findings.overfit import Assessment, assess
from train.findings.returns import StudyReturns
from train.records.attributes import identity_in, uuid_in
from train.records.defaults import N_BLOCKS
from train.records.keys import HOLDOUT_BEGUN
from train.records.stored import HoldoutScore
from train.report.page import Verdict
from train.study.holdout_figures import error_of, found_text, idle_text
from train.validation.choice import CHOICE_LEVEL, Choice
from train.validation.lead import market_beta
from train.validation.overfitting import deflated_sharpe, expected_maximum_sharpe, probabilistic_sharpe

FEW_TRIALS = 10
ALPHA_SHARPE, DEFLATED_ALPHA = "Sharpe of alpha returns", "deflated Sharpe of alpha returns"
ALPHA_PBO, TRIALS_DIFFER = "PBO of alpha returns", "difference between trials"


def unjudged(reason: str) -> Verdict:
    """Return the verdict of a study that cannot be judged."""
    return Verdict((f"Not evidence of skill: the study cannot be judged: {reason}.",))


def judge(returns: StudyReturns, holdout: bool | None = None) -> Verdict:
    """Return the verdict on the best trial. Its first sentence is the conclusion, which is about alpha returns.

    Args:
        returns: returns of the study's trials.
        holdout: True if the best trial passed the hold-out, False if it failed, None if there is no hold-out verdict.
    """
    own, lead = assess(returns, "account"), assess(returns, "lead", holdout=holdout)
    beta = market_beta(returns.account[:, returns.winner], returns.equal_weight)
    sentences = [
        lead.conclusion,
        f"Alpha returns are the account's returns minus beta ({_text(beta, 2)}, by least squares) times the returns of "
        f"equal weight. {lead.finding}",
        f"{own.conclusion} {own.finding}",
    ]
    if lead.undefined:
        sentences.append(f"PBO is undefined: {lead.undefined}.")
    if returns.n_unverified:
        sentences.append(
            f"Unverified: the files of {counted(returns.n_unverified, 'trial')} were read without a check, because "
            "this study was made before hashes were stored in the database."
        )
    if returns.n_tried < FEW_TRIALS:
        count = counted(returns.n_tried, "trial")
        sentences.append(f"With only {count}, these figures are too rough to rely on.")
    days = len(returns.bars) * timeframe_seconds(returns.timeframe) / 86_400
    sentences.append(
        f"The judged account covers {len(returns.bars):,} bars ({days:,.0f} days). It is divided equally among the "
        "policies that tested each bar and rebalanced every bar at no cost. Only the trials of this study are counted, "
        "although earlier studies on the same bars were attempts as well."
    )
    return Verdict(tuple(sentences), _numbers(own, lead, beta, len(returns.numbers)))


def _numbers(own: Assessment, lead: Assessment, beta: float, n_compared: int) -> tuple[tuple[str, str, str], ...]:
    """Return (name, number, meaning) of each metric behind the verdict."""
    per_year, root = own.bars_per_year, math.sqrt(own.bars_per_year)
    estimate, search, found = own.estimate, own.search, own.overfitting
    days = estimate.n_returns / per_year * 365
    moments = f"skew {_text(estimate.skew, 2)}, kurtosis {_text(estimate.kurtosis, 1)}"
    rows = (
        ("beta", _text(beta, 2), "exposure of the best trial to the returns of equal weight; removed from alpha "
         "returns"),
        (ALPHA_SHARPE, _text(lead.estimate.sharpe * root, 2), "annual (the appraisal ratio); luck alone would give "
         f"about {_text(expected_maximum_sharpe(lead.search) * root, 2)}"),
        (DEFLATED_ALPHA, _share(deflated_sharpe(lead.estimate, lead.search)), "1 minus the p-value of the Sharpe ratio "
         "above, corrected for the number of trials; at least 95 % is needed"),
        (ALPHA_PBO, _share(lead.pbo, math.ceil), "probability of backtest overfitting; at most 5 % is allowed"
         + ("" if lead.choice is None or lead.choice.is_real else ", but it does not apply here")),
        (TRIALS_DIFFER, _p_text(lead.choice), "p-value of the gap between the best and the median Sharpe ratio of "
         f"alpha returns; if it is at least {CHOICE_LEVEL * 100.0:g} %, PBO does not apply and the hold-out decides"),
        ("trials", f"{search.n_trials:.0f}", "completed and pruned trials, from which the best was chosen"),
        ("effective trials", _text(own.effective_trials, 1), f"number of independent trials equivalent to the "
         f"{n_compared} comparable ones; the tests use the larger number above"),
        ("variance of trials", _text(search.sharpe_variance * per_year, 2), "variance of the trials' annual Sharpe "
         "ratios"),
        ("Sharpe by luck alone", _text(expected_maximum_sharpe(search) * root, 2), "annual Sharpe ratio to expect from "
         "the best of these trials if none had skill"),
        ("Sharpe of the best", _text(estimate.sharpe * root, 2), f"annual Sharpe ratio of the best account; {moments}"),
        ("probabilistic Sharpe", _share(probabilistic_sharpe(estimate)), "1 minus the p-value of this Sharpe ratio, if "
         "it were the only trial"),
        ("deflated Sharpe", _share(deflated_sharpe(estimate, search)), "1 minus the p-value, corrected for the number "
         "of trials; holding coins in a rising market may pass"),
        ("minimum track record", _length(own.minimum_length, per_year), "record length needed for 95 % confidence, if "
         f"it were the only trial; the record has {days:,.0f} days"),
    )  # fmt: skip
    if found is None:
        return (*rows, ("PBO", "undefined", own.undefined))
    slope = "slope of out-of-sample on in-sample Sharpe ratios; below 0, better in-sample means worse out-of-sample"
    return (
        *rows,
        ("PBO", _share(found.pbo, math.ceil), f"PBO of the accounts ({n_compared} trials, {N_BLOCKS} blocks of bars)"),
        ("loss out of sample", _share(found.probability_of_loss, math.ceil), "how often the best trial of one half of "
         "the bars loses money on the other half"),
        ("degradation", _text(found.degradation_slope, 2), slope),
    )  # fmt: skip


def _p_text(choice: Choice | None) -> str:
    return "undefined" if choice is None else f"p = {choice.p_value:.2g}"


def _text(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}") if math.isfinite(value) else "undefined"


def _share(value: float, rounding: Callable[[float], int] = math.floor) -> str:
    """Return a percentage, rounded against the winner as in the verdict."""
    if not math.isfinite(value):
        return "undefined"
    return f"{rounding(round(value * 1000.0, 6)) / 10.0:.1f} %"


def _length(n_returns: float, per_year: float) -> str:
    if math.isnan(n_returns):
        return "undefined"
    return "never" if math.isinf(n_returns) else f"{n_returns / per_year * 365:,.0f} days"


# ------------------------------------------------------------------------------------------------------------- hold-out
def holdout_text(
    study: optuna.Study, scored: HoldoutScore | None, best: FrozenTrial | None, has_file: bool = False
) -> str:
    """Return the hold-out result of the best trial in words; `has_file` is True if a holdout.json exists."""
    if scored is None and has_file:
        return "Unknown, because the file holdout.json is damaged."
    if scored is None:
        identity = identity_in(study.user_attrs)
        if identity is None or not identity.holds_out:
            return "No bars were held out, so there is no final check of the best trial."
        bars = ", ".join(f"{about.bars:,} of {name}" for name, about in identity.holdout.items() if about)
        if HOLDOUT_BEGUN in study.user_attrs:
            return "The evaluation was interrupted. Run the training command again to finish it for the same trial."
        return f"Not evaluated yet. The last bars of the dataset ({bars}) are kept for one evaluation of the winner."
    if scored.uuid != uuid_in(study.user_attrs):
        return "Not shown, because the file holdout.json belongs to another study."
    if best is None or scored.trial != best.number:
        return (
            f"Used up by trial {scored.trial}, which was the best at that time. The current best trial cannot be "
            "checked on the same bars, because that would be selection on the hold-out."
        )
    about, mean, error = scored.holdout, scored.mean_excess_sharpe, error_of(scored)
    span = f"{utc_text(about.first_time_s)} to {utc_text(about.last_time_s)} UTC"
    begin = f"{len(scored.policies)} policies of trial {best.number} were evaluated "
    begin += f"on {about.bars:,} bars that no trial saw, {span}. "
    if idle_text(scored):
        return f"{begin}There is no verdict: {idle_text(scored)}."
    if mean is None or error is None:
        return f"{begin}There is no verdict, because the excess Sharpe ratio of at least one policy is undefined."
    found = _text(mean, 2) if mean < 0 else f"+{mean:.2f}"
    said = found_text(scored, mean, error)
    looks = looks_text(scored)
    return (
        f"{begin}Their mean annual excess Sharpe ratio is {found} with a standard error of about {error:.1f}, {said}. "
        "The error assumes that the errors of all policies are fully correlated."
        + (f" {looks[0].upper()}{looks[1:]}." if looks else "")
    )
