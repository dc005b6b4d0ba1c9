"""Summarize judged studies: how often each rule calls the winner skilled, with confidence intervals.

The table has one row per study. Columns such as `account.sharpe` describe the account; columns such as `lead.sharpe`
describe its alpha returns. Sharpe ratios are annual. Undefined values are NaN and pass no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri
from scipy.stats import binomtest

from benchmarks.measuring import check
from train.records.defaults import LEAST_CONFIDENCE, LEAST_TRIALS
from train.validation.choice import CHOICE_LEVEL
from train.validation.overfitting import LARGEST_PBO, Search, expected_maximum_sharpe

NO_SIGNAL, DRIFTING, PLANTED = "no signal", "drifting", "planted signal"
KINDS = (NO_SIGNAL, DRIFTING, PLANTED)
NOMINAL = 1.0 - LEAST_CONFIDENCE
LEAST_POWER = 0.8
LEAST_COMPARED = 2
HOLDOUT_ERRORS = 2.0  # standard errors above 0, as in a study's report
HOLDOUT_NOMINAL = 0.0228  # probability that a standard normal variable exceeds 2
COLUMNS = {"rule": "rule", "nominal": "nominal rate"} | {kind: kind for kind in KINDS}

Rule = Callable[[pd.DataFrame], pd.Series]  # studies -> True per study whose winner is called skilled


def confident(figure: str) -> Rule:
    """Return a rule that requires enough confidence."""
    return lambda s: s[figure] >= LEAST_CONFIDENCE


def little_overfitting(figure: str) -> Rule:
    """Return a rule that requires a low PBO."""
    return lambda s: s[figure] <= LARGEST_PBO


def both(one: str, other: str) -> Rule:
    """Return a rule that requires enough confidence and a low PBO."""
    return lambda s: confident(one)(s) & little_overfitting(other)(s)


def passes_holdout(s: pd.DataFrame) -> pd.Series:
    """Return True per study if excess Sharpe ratio and alpha returns pass on the hold-out."""
    is_above = s["holdout_excess_sharpe"] > HOLDOUT_ERRORS * s["holdout_error"]
    return is_above & (s["holdout_lead_errors"] > HOLDOUT_ERRORS)


def verdict(s: pd.DataFrame) -> pd.Series:
    """Apply `train.validation.overfitting.conclusion`: without a choice that PBO could test, the hold-out decides."""
    has_choice = s["lead.choice_p_value"] < CHOICE_LEVEL
    passed = (has_choice & (s["lead.pbo"] <= LARGEST_PBO)) | (~has_choice & passes_holdout(s))
    return confident("lead.deflated")(s) & passed


DEFLATED, DEFLATED_LEAD = "deflated Sharpe, account", "deflated Sharpe, alpha returns"
PBO, PBO_LEAD = "PBO, account", "PBO, alpha returns"
BOTH, BOTH_LEAD = "deflated Sharpe and PBO, account", "deflated Sharpe and PBO, alpha returns"
HOLDOUT, VERDICT = "hold-out: excess Sharpe and alpha above 2 standard errors", "verdict of the report"
# Name -> the rule and its nominal false positive rate, or None if the rule only explains a different one.
RULES: dict[str, tuple[Rule, float | None]] = {
    "naive: best Sharpe without deflation, account": (confident("account.best_probabilistic"), NOMINAL),
    "naive: best Sharpe without deflation, alpha returns": (confident("lead.best_probabilistic"), NOMINAL),
    DEFLATED: (confident("account.deflated"), NOMINAL),
    DEFLATED_LEAD: (confident("lead.deflated"), NOMINAL),
    PBO: (little_overfitting("account.pbo"), LARGEST_PBO),
    PBO_LEAD: (little_overfitting("lead.pbo"), LARGEST_PBO),
    "PBO, account before costs": (little_overfitting("pbo_before_costs"), None),
    BOTH: (both("account.deflated", "account.pbo"), NOMINAL),
    BOTH_LEAD: (both("lead.deflated", "lead.pbo"), NOMINAL),
    HOLDOUT: (passes_holdout, HOLDOUT_NOMINAL),
    VERDICT: (verdict, NOMINAL),
}
CHECKED = (DEFLATED, DEFLATED_LEAD, PBO, PBO_LEAD, BOTH, BOTH_LEAD, VERDICT)
CHECKED_LEAD = (DEFLATED_LEAD, PBO_LEAD, BOTH_LEAD, VERDICT)  # with drift, exposure alone earns money
POWERFUL = (DEFLATED, DEFLATED_LEAD, VERDICT)  # without PBO, which is arbitrary among equally good trials


def table_of(studies: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return the table of studies."""
    table = pd.json_normalize(list(studies))
    return table.astype(dict.fromkeys(table.columns.drop("kind"), float))


def calls(studies: pd.DataFrame, rule: str) -> pd.Series:
    """Return True per study if a rule of `RULES` calls the winner skilled."""
    return RULES[rule][0](studies)


def interval(k: int, n: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of the rate for k of n (Clopper and Pearson 1934)."""
    low, high = binomtest(k, n).proportion_ci(0.95, method="exact")
    return float(low), float(high)


def rate_text(called: pd.Series) -> str:
    """Format a rate as `2 of 40: 5.0 % (0.6 to 16.9 %)`."""
    if called.empty:
        return "none judged"
    low, high = interval(int(called.sum()), len(called))
    share = f"{100 * called.mean():.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"
    return f"{called.sum()} of {len(called)}: {share}"


def studies_to_prove(rate: float) -> int:
    """Return the smallest n for which the interval for 0 of n lies at or below the rate."""
    return next(n for n in range(1, 100_000) if interval(0, n)[1] <= rate)


def of_kind(studies: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Return the studies of one kind."""
    return studies[studies["kind"] == kind]


def summary(studies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return table rows, notes and targets; only studies with enough comparable trials are judged."""
    table = table_of(studies)
    is_judged = table["n_compared"] >= LEAST_COMPARED
    judged = table[is_judged]
    return {"rows": table_rows(judged), "notes": notes(judged, table[~is_judged]), "checks": checks(judged)}


def table_rows(studies: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row per rule, with the columns of `COLUMNS`."""
    rows = []
    for name, (rule, nominal) in RULES.items():
        row = {"rule": name, "nominal": "" if nominal is None else f"{100 * nominal:.1f} %"}
        rows.append(row | {kind: rate_text(rule(of_kind(studies, kind))) for kind in KINDS})
    return rows


def checks(studies: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the targets: observed false positives at most nominal, observed true positives at least `LEAST_POWER`."""

    def share(kind: str, rule: str) -> float | None:
        called = calls(of_kind(studies, kind), rule)
        return None if called.empty else float(called.mean())

    silent = [(NO_SIGNAL, rule) for rule in CHECKED] + [(DRIFTING, rule) for rule in CHECKED_LEAD]
    wrong = [
        check(f"false positive rate ({kind}; {rule})", share(kind, rule), most=RULES[rule][1]) for kind, rule in silent
    ]
    return wrong + [
        check(f"detection rate ({PLANTED}; {rule})", share(PLANTED, rule), least=LEAST_POWER) for rule in POWERFUL
    ]


def notes(studies: pd.DataFrame, refused: pd.DataFrame) -> list[str]:
    """Return notes on what the table does not show, one per line."""
    lines = ["Parentheses contain the 95 % confidence interval of the rate (Clopper and Pearson)."]
    silent = of_kind(studies, NO_SIGNAL)
    if len(silent):
        low, high = interval(int(calls(silent, BOTH).sum()), len(silent))
        if low <= NOMINAL < high:
            lines.append(
                f"{len(silent)} studies without a signal do not prove a rate below {100 * NOMINAL:.0f} %: the interval "
                f"of the rule with deflated Sharpe and PBO reaches {100 * high:.1f} %. {studies_to_prove(NOMINAL)} "
                "studies without a false positive would."
            )
    for kind in KINDS:
        mine, n_refused = of_kind(studies, kind), len(of_kind(refused, kind))
        if len(mine):
            lines.append(f"{kind.capitalize()}, medians: {medians(mine)}.")
        if len(mine) or n_refused:
            lines.append(f"{kind.capitalize()}: {few_text(mine, n_refused)}")
    for kind in (NO_SIGNAL, DRIFTING):  # markets without a signal
        mine = of_kind(studies, kind)
        if len(mine):
            # The rule must be able to fail, or passing it proves nothing: here the winner is treated as the only trial.
            alone, with_pbo = confident("lead.probabilistic")(mine), both("lead.probabilistic", "lead.pbo")(mine)
            lines.append(
                f"Negative control, {kind}: without deflation, the winner's alpha returns would pass 95 % on "
                f"{rate_text(alone)}, and PBO as well on {rate_text(with_pbo)}. The naive rules above use the best "
                "Sharpe ratio instead of the winner's."
            )
    lines += spread_note(silent)
    passed = rate_text(confident("equal_weight_probabilistic")(silent))
    return [*lines, f"Equal weight, which makes no choice, passes the naive account rule on {passed}."]


def trial_spread(studies: pd.DataFrame) -> pd.Series:
    """Return the standard deviation of the trials' annual Sharpe ratios; the deflated Sharpe attributes it to luck."""
    luck = [expected_maximum_sharpe(Search(int(n), 1.0)) for n in studies["n_finished"]]
    return studies["account.luck_sharpe"] / np.array(luck)


def chance_spread(studies: pd.DataFrame) -> pd.Series:
    """Return the standard error of the winner's annual Sharpe, from its confidence; NaN if that is 0, 1/2 or 1."""
    z = pd.Series(ndtri(studies["account.probabilistic"]), studies.index)
    return studies["account.sharpe"] / z.where(np.isfinite(z) & (z != 0.0))


def spread_note(studies: pd.DataFrame) -> list[str]:
    """Compare the observed spread of trials without a signal with the spread due to chance."""
    known = pd.concat([trial_spread(studies), chance_spread(studies)], axis=1).dropna()
    if known.empty:
        return []
    found, chance = known.median()
    return [
        f"Without a signal, the annual Sharpe ratios of a study's trials have a median standard deviation of "
        f"{found:.3g}. Chance alone gives one trial a standard error of {chance:.3g}. A larger spread reflects real "
        "differences, such as the fees of trials that trade often. The deflated Sharpe attributes the whole spread to "
        "luck, which makes it stricter."
    ]


def few_text(studies: pd.DataFrame, n_refused: int) -> str:
    """Return how many studies have few trials, and how these studies are judged."""
    few = studies[studies["n_compared"] < LEAST_TRIALS]
    deflated, pbo, both_ = (calls(few, rule).sum() for rule in (DEFLATED, PBO, BOTH))
    return (
        f"{n_refused} more studies have too few comparable trials and are not judged. {len(few)} of the judged studies "
        f"have fewer than {LEAST_TRIALS} trials, for which scripts/validation/5_pbo.py reports no result. Among these, "
        f"the deflated Sharpe calls {deflated} winners skilled, PBO {pbo}, and both together {both_} (account)."
    )


def medians(studies: pd.DataFrame) -> str:
    """Return the median statistics of one kind of studies."""
    of = studies.median(numeric_only=True).map("{:.3g}".format)
    return (
        f"winner's annual Sharpe {of['account.sharpe']} ({of['account.luck_sharpe']} expected from luck), of alpha "
        f"returns {of['lead.sharpe']} ({of['lead.luck_sharpe']} expected from luck); deflated Sharpe "
        f"{of['account.deflated']} (alpha returns {of['lead.deflated']}); PBO {of['account.pbo']} (alpha returns "
        f"{of['lead.pbo']}); comparable trials "
        f"{of['n_compared']}, effective trials {of['account.effective_trials']}; hold-out excess Sharpe "
        f"{of['holdout_excess_sharpe']} (standard error {of['holdout_error']})"
    )


# ---------------------------------------------------------------------------------------------------------------- plot
# Okabe and Ito's colors, which color-blind readers can distinguish. Markers differ too.
COLOURS = {NO_SIGNAL: "#e69f00", DRIFTING: "#d55e00", PLANTED: "#0072b2"}
MARKERS = {NO_SIGNAL: "o", DRIFTING: "^", PLANTED: "s"}
CONFIDENCES = {
    "best, account,\nnot deflated": "account.best_probabilistic",
    "best, alpha,\nnot deflated": "lead.best_probabilistic",
    "deflated,\naccount": "account.deflated",
    "deflated,\nalpha": "lead.deflated",
}
OVERFITTING = {"account": "account.pbo", "alpha": "lead.pbo", "account,\nbefore costs": "pbo_before_costs"}


def draw(part: Mapping[str, Any], path: Path) -> None:
    """Draw one dot per study, confidences left and PBO right; winners in the shaded range are called skilled."""
    from matplotlib.figure import Figure

    table = table_of(part["studies"])
    studies = table[table["n_compared"] >= LEAST_COMPARED]
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    strips(left, studies, CONFIDENCES, (LEAST_CONFIDENCE, 1.03))
    left.set(ylabel="one minus the p-value of a true Sharpe of 0", xlabel="statistic of the best trial")
    left.set_title(f"Probabilistic and deflated Sharpe; shaded: {LEAST_CONFIDENCE:.0%} or more", fontsize=11)
    strips(right, studies, OVERFITTING, (-0.03, LARGEST_PBO))
    right.axhline(0.5, color="grey", lw=1, ls=":")
    right.set(ylabel="probability of backtest overfitting", xlabel="returns that are compared")
    right.set_title(f"PBO; shaded: {LARGEST_PBO:.0%} or less; dotted: one half", fontsize=11)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def strips(axes: Any, studies: pd.DataFrame, figures: Mapping[str, str], called: tuple[float, float]) -> None:
    """Draw a strip of dots for each statistic and kind; the dots of a strip are sorted by value."""
    for kind, shift in zip(KINDS, (-0.27, 0.0, 0.27), strict=True):
        mine = of_kind(studies, kind)
        beside = shift + 0.22 * ((np.arange(len(mine)) + 0.5) / max(len(mine), 1) - 0.5)
        for place, figure in enumerate(figures.values()):
            label = f"{kind}, {len(mine)} studies" if place == 0 else None
            dots = {"ms": 5, "mew": 0, "alpha": 0.7, "color": COLOURS[kind], "label": label}
            axes.plot(place + beside, np.sort(mine[figure]), MARKERS[kind], **dots)
    axes.axhspan(*called, color="#009e73", alpha=0.15, lw=0)
    axes.set_xticks(range(len(figures)), list(figures))
    axes.set(xlim=(-0.5, len(figures) - 0.5), ylim=(-0.03, 1.03))
    axes.grid(axis="y", alpha=0.3)
