"""Is the best trial of a study skilled? What `train.findings.overfit` finds, in words, and what the hold-out says."""

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


def unjudged(reason: str) -> Verdict:
    """What is said where nothing can be judged."""
    return Verdict((f"Not evidence of skill: the study cannot be judged: {reason}.",))


def judge(returns: StudyReturns, holdout: bool | None = None) -> Verdict:
    """The verdict on the best trial; its first sentence is the one conclusion, which is about the lead.

    Args:
        returns: of the study's trials.
        holdout: whether the best trial passed the hold-out; None without a verdict.
    """
    own, lead = assess(returns, "account"), assess(returns, "lead", holdout=holdout)
    beta = market_beta(returns.account[:, returns.winner], returns.equal_weight)
    sentences = [
        lead.conclusion,
        f"The lead is what is left of its returns without its exposure to the market: less {_text(beta, 2)} (beta, by "
        f"least squares) times equal weight's. {lead.finding}",
        f"The account itself: {own.conclusion} {own.finding}",
    ]
    if lead.undefined:
        sentences.append(f"PBO is undefined: {lead.undefined}.")
    if returns.n_unverified:
        sentences.append(
            f"Unverified: the files of {counted(returns.n_unverified, 'trial')} are read as they are, because this "
            "study is from before the database kept their hashes."
        )
    if returns.n_tried < FEW_TRIALS:
        sentences.append(f"With only {returns.n_tried} trials these figures are crude: read them as examples.")
    days = len(returns.bars) * timeframe_seconds(returns.timeframe) / 86_400
    sentences.append(
        f"Judged is one account divided equally among the policies that tested each bar, and made equal again every "
        f"bar at no cost: {len(returns.bars):,} bars, {days:,.0f} days. Counted are this study's trials only: earlier "
        "studies of the same bars were tries too."
    )
    return Verdict(tuple(sentences), _numbers(own, lead, beta, len(returns.numbers)))


def _numbers(own: Assessment, lead: Assessment, beta: float, n_compared: int) -> tuple[tuple[str, str, str], ...]:
    """(name, number, what it means)."""
    per_year, root = own.bars_per_year, math.sqrt(own.bars_per_year)
    estimate, search, found = own.estimate, own.search, own.overfitting
    days = estimate.n_returns / per_year * 365
    moments = f"skew {_text(estimate.skew, 2)}, kurtosis {_text(estimate.kurtosis, 1)}"
    rows = (
        ("beta", _text(beta, 2), "exposure of the best to equal weight's returns; taken out of the lead"),
        ("Sharpe of the lead", _text(lead.estimate.sharpe * root, 2), "a year (appraisal ratio); luck would show "
         f"{_text(expected_maximum_sharpe(lead.search) * root, 2)}"),
        ("deflated lead", _share(deflated_sharpe(lead.estimate, lead.search)), "one minus the p-value of that after "
         "the search; 95 % is asked for"),
        ("PBO of the lead", _share(lead.pbo, math.ceil), "probability of backtest overfitting; at most 5 % is asked "
         "for" + ("" if lead.choice is None or lead.choice.is_real else ", but here it has nothing to test")),
        ("difference of trials", _p_text(lead.choice), "p-value of the best lead's distance from the median one, were "
         f"all trials equally good; from {CHOICE_LEVEL * 100.0:g} % on PBO has nothing to test and the hold-out must "
         "decide"),
        ("trials", f"{search.n_trials:.0f}", "completed and pruned: all that the best was chosen from"),
        ("effective trials", _text(own.effective_trials, 1), f"independent ones that {n_compared} comparable trials "
         "amount to; the number above is used, which claims least"),
        ("variance of trials", _text(search.sharpe_variance * per_year, 2), "of their accounts' annual Sharpe ratios"),
        ("Sharpe by luck", _text(expected_maximum_sharpe(search) * root, 2), "a year; of the best of accounts at zero"),
        ("Sharpe of the best", _text(estimate.sharpe * root, 2), f"a year, of the account; {moments}"),
        ("probabilistic Sharpe", _share(probabilistic_sharpe(estimate)), "one minus the p-value of the account's "
         "Sharpe, were it the only trial"),
        ("deflated Sharpe", _share(deflated_sharpe(estimate, search)), "the same after the search; holding coins that "
         "rise may pass"),
        ("minimum track record", _length(own.minimum_length, per_year), "until 95 %, were it the only trial; there are "
         f"{days:,.0f} days"),
    )  # fmt: skip
    if found is None:
        return (*rows, ("PBO", "undefined", own.undefined))
    slope = "slope of the Sharpe on one half against the half it was chosen by; below 0, better there was worse here"
    return (
        *rows,
        ("PBO", _share(found.pbo, math.ceil), f"of the accounts; {n_compared} trials, {N_BLOCKS} blocks"),
        ("loss out of sample", _share(found.probability_of_loss, math.ceil), "how often the choice on one half loses "
         "on the other"),
        ("degradation", _text(found.degradation_slope, 2), slope),
    )  # fmt: skip


def _p_text(choice: Choice | None) -> str:
    return "undefined" if choice is None else f"p = {choice.p_value:.2g}"


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
def holdout_text(
    study: optuna.Study, scored: HoldoutScore | None, best: FrozenTrial | None, has_file: bool = False
) -> str:
    """What the bars that no trial saw say of the best trial; `has_file`: whether there is a holdout.json at all."""
    if scored is None and has_file:
        return "The file holdout.json is damaged, so whether the held-out bars were scored is not known."
    if scored is None:
        identity = identity_in(study.user_attrs)
        if identity is None or not identity.holds_out:
            return "No bars were held out, so nothing checks the best trial."
        bars = ", ".join(f"{about.bars:,} of {name}" for name, about in identity.holdout.items() if about)
        if HOLDOUT_BEGUN in study.user_attrs:
            return "Begun and not finished: the process ended. The trainer's command finishes it for the same trial."
        return (
            f"Not scored yet. The last bars of the data are kept from every trial ({bars}) for one look at the winner."
        )
    if scored.uuid != uuid_in(study.user_attrs):
        return "The file holdout.json belongs to another study, so it is not shown."
    if best is None or scored.trial != best.number:
        return (
            f"Spent on trial {scored.trial}, the best at that time; the best now cannot be checked on the same "
            "bars, for that would be a choice by them."
        )
    about, mean, error = scored.holdout, scored.mean_excess_sharpe, error_of(scored)
    span = f"{utc_text(about.first_time_s)} to {utc_text(about.last_time_s)} UTC"
    where = f"{len(scored.policies)} policies of trial {best.number} on {about.bars:,} bars that no trial saw, {span}"
    if idle_text(scored):
        return f"{where}: hardly traded, so there is no verdict. {idle_text(scored)}."
    if mean is None or error is None:
        return f"{where}: the excess Sharpe of at least one of them is undefined, so their mean is too."
    found = _text(mean, 2) if mean < 0 else f"+{mean:.2f}"
    said = found_text(scored, mean, error)
    looks = looks_text(scored)
    return (
        f"{where}: mean excess Sharpe {found} a year, with a standard error of about {error:.1f} (of a difference of "
        f"two ratios on the same bars, as if all policies erred together), {said}."
        + (f" {looks[0].upper()}{looks[1:]}." if looks else "")
    )
