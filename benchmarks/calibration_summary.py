"""What many judged studies say about the judgement: who is called skilful, how often, and how sure that rate is.

A table of studies has a row a study; the figures of its accounts are `account.sharpe` and so on, those of its returns
less beta times equal weight's are `lead.sharpe` and so on. Sharpe ratios are annual; what is undefined is nan, and
passes no rule.
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
HOLDOUT_ERRORS = 2.0  # standard errors above 0, as a study's report says "above what chance explains"
HOLDOUT_NOMINAL = 0.0228  # of a normal distribution above 2
COLUMNS = {"rule": "called skilful by", "nominal": "nominal"} | {kind: kind for kind in KINDS}

Rule = Callable[[pd.DataFrame], pd.Series]  # studies -> whether each one's winner is called skilful


def confident(figure: str) -> Rule:
    """The confidence is enough."""
    return lambda s: s[figure] >= LEAST_CONFIDENCE


def little_overfitting(figure: str) -> Rule:
    """PBO is low enough."""
    return lambda s: s[figure] <= LARGEST_PBO


def both(one: str, other: str) -> Rule:
    """A confidence and a PBO."""
    return lambda s: confident(one)(s) & little_overfitting(other)(s)


def passes_holdout(s: pd.DataFrame) -> pd.Series:
    """Excess Sharpe and lead on the bars held out."""
    is_above = s["holdout_excess_sharpe"] > HOLDOUT_ERRORS * s["holdout_error"]
    return is_above & (s["holdout_lead_errors"] > HOLDOUT_ERRORS)


def verdict(s: pd.DataFrame) -> pd.Series:
    """As `train.validation.overfitting.conclusion`: without a choice that PBO could test the hold-out decides."""
    has_choice = s["lead.choice_p_value"] < CHOICE_LEVEL
    passed = (has_choice & (s["lead.pbo"] <= LARGEST_PBO)) | (~has_choice & passes_holdout(s))
    return confident("lead.deflated")(s) & passed


DEFLATED, DEFLATED_LEAD = "deflated Sharpe, account", "deflated Sharpe, lead"
PBO, PBO_LEAD = "PBO, account", "PBO, lead"
BOTH, BOTH_LEAD = "both, account", "both, lead"
HOLDOUT, VERDICT = "hold-out: excess Sharpe and lead above 2 standard errors", "verdict of the report"
# Name: the rule, and the share of unskilled winners it may call skilful; none where it is shown to explain another.
RULES: dict[str, tuple[Rule, float | None]] = {
    "naive: best Sharpe, not deflated, account": (confident("account.best_probabilistic"), NOMINAL),
    "naive: best Sharpe, not deflated, lead": (confident("lead.best_probabilistic"), NOMINAL),
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
CHECKED_LEAD = (DEFLATED_LEAD, PBO_LEAD, BOTH_LEAD, VERDICT)  # where prices drift, an account that holds does earn
POWERFUL = (DEFLATED, DEFLATED_LEAD, VERDICT)  # PBO is not: equally good trials have any


def table_of(studies: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of studies."""
    table = pd.json_normalize(list(studies))
    return table.astype(dict.fromkeys(table.columns.drop("kind"), float))


def calls(studies: pd.DataFrame, rule: str) -> pd.Series:
    """Whether a rule of `RULES` calls each winner skilful."""
    return RULES[rule][0](studies)


def interval(k: int, n: int) -> tuple[float, float]:
    """Interval that holds the rate behind k of n 95 times in 100 (Clopper and Pearson 1934)."""
    low, high = binomtest(k, n).proportion_ci(0.95, method="exact")
    return float(low), float(high)


def rate_text(called: pd.Series) -> str:
    """`2 of 40: 5.0 % (0.6 to 16.9 %)`."""
    if called.empty:
        return "none judged"
    low, high = interval(int(called.sum()), len(called))
    share = f"{100 * called.mean():.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"
    return f"{called.sum()} of {len(called)}: {share}"


def studies_to_prove(rate: float) -> int:
    """Least n for which 0 of n has its whole interval at or under the rate."""
    return next(n for n in range(1, 100_000) if interval(0, n)[1] <= rate)


def of_kind(studies: pd.DataFrame, kind: str) -> pd.DataFrame:
    """The studies of a kind."""
    return studies[studies["kind"] == kind]


def summary(studies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Table, notes and targets. Judged is what has trials to compare, as on a study's page."""
    table = table_of(studies)
    is_judged = table["n_compared"] >= LEAST_COMPARED
    judged = table[is_judged]
    return {"rows": table_rows(judged), "notes": notes(judged, table[~is_judged]), "checks": checks(judged)}


def table_rows(studies: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a rule; `COLUMNS` are its columns."""
    rows = []
    for name, (rule, nominal) in RULES.items():
        row = {"rule": name, "nominal": "" if nominal is None else f"{100 * nominal:.1f} %"}
        rows.append(row | {kind: rate_text(rule(of_kind(studies, kind))) for kind in KINDS})
    return rows


def checks(studies: pd.DataFrame) -> list[dict[str, Any]]:
    """False positives at most nominal, true ones at least `LEAST_POWER`: observed shares, not their intervals."""

    def share(kind: str, rule: str) -> float | None:
        called = calls(of_kind(studies, kind), rule)
        return None if called.empty else float(called.mean())

    asked = [(NO_SIGNAL, rule) for rule in CHECKED] + [(DRIFTING, rule) for rule in CHECKED_LEAD]
    wrong = [check(f"{kind}, {rule}", share(kind, rule), most=RULES[rule][1]) for kind, rule in asked]
    return wrong + [check(f"{PLANTED}, {rule}", share(PLANTED, rule), least=LEAST_POWER) for rule in POWERFUL]


def notes(studies: pd.DataFrame, refused: pd.DataFrame) -> list[str]:
    """What the table does not show, one sentence a line."""
    lines = ["In brackets 95 % intervals of the rate (Clopper and Pearson)."]
    silent = of_kind(studies, NO_SIGNAL)
    if len(silent):
        low, high = interval(int(calls(silent, BOTH).sum()), len(silent))
        if low <= NOMINAL < high:
            lines.append(
                f"{len(silent)} studies without signal do not prove a rate under {100 * NOMINAL:.0f} %: the interval "
                f"for both reaches {100 * high:.1f} %. {studies_to_prove(NOMINAL)} without a false positive would."
            )
    for kind in KINDS:
        mine, n_refused = of_kind(studies, kind), len(of_kind(refused, kind))
        if len(mine):
            lines.append(f"{kind.capitalize()}: {medians(mine)}.")
        if len(mine) or n_refused:
            lines.append(f"{kind.capitalize()}: {few_text(mine, n_refused)}")
    for kind in (NO_SIGNAL, DRIFTING):  # nothing that a policy could know
        mine = of_kind(studies, kind)
        if len(mine):
            # The rule must be able to be wrong, or its silence would show nothing: here the winner is the only trial.
            alone, with_pbo = confident("lead.probabilistic")(mine), both("lead.probabilistic", "lead.pbo")(mine)
            lines.append(
                f"Negative control, {kind}: with luck put at 0 the lead of the winner would pass 95 % on "
                f"{rate_text(alone)}, and PBO as well on {rate_text(with_pbo)}. The naive rules above show it for the "
                "best Sharpe, not the winner's."
            )
    lines += spread_note(silent)
    passed = rate_text(confident("equal_weight_probabilistic")(silent))
    return [*lines, f"Equal weight itself, which chooses nothing, passes the naive rule of the account on {passed}."]


def trial_spread(studies: pd.DataFrame) -> pd.Series:
    """Standard deviation of the trials' annual Sharpe ratios, which the deflated Sharpe takes for luck."""
    luck = [expected_maximum_sharpe(Search(int(n), 1.0)) for n in studies["n_finished"]]
    return studies["account.luck_sharpe"] / np.array(luck)


def chance_spread(studies: pd.DataFrame) -> pd.Series:
    """Standard error of the winner's annual Sharpe, from its own confidence; nan where that is 0, 1/2 or 1."""
    z = pd.Series(ndtri(studies["account.probabilistic"]), studies.index)
    return studies["account.sharpe"] / z.where(np.isfinite(z) & (z != 0.0))


def spread_note(studies: pd.DataFrame) -> list[str]:
    """How much trials without a signal differ, beside what chance explains."""
    known = pd.concat([trial_spread(studies), chance_spread(studies)], axis=1).dropna()
    if known.empty:
        return []
    found, chance = known.median()
    return [
        f"Without signal the annual Sharpe ratios of a study's trials spread by {found:.3g} (median); chance gives "
        f"one trial an error of {chance:.3g}. What exceeds it are real differences, such as the fees of those that "
        "trade much; the deflated Sharpe takes all of it for luck, and asks the more of the winner."
    ]


def few_text(studies: pd.DataFrame, n_refused: int) -> str:
    """How many studies have few trials, and what is said of those."""
    few = studies[studies["n_compared"] < LEAST_TRIALS]
    deflated, pbo, both_ = (calls(few, rule).sum() for rule in (DEFLATED, PBO, BOTH))
    return (
        f"{n_refused} more studies have too few trials to compare and are not judged. {len(few)} of the judged have "
        f"under {LEAST_TRIALS}, where scripts/validation/5_pbo.py gives no answer; of these the deflated Sharpe calls "
        f"{deflated} skilful, PBO {pbo}, both {both_} (account)."
    )


def medians(studies: pd.DataFrame) -> str:
    """The figures of a kind."""
    of = studies.median(numeric_only=True).map("{:.3g}".format)
    return (
        f"medians: winner's annual Sharpe {of['account.sharpe']} where luck is put at {of['account.luck_sharpe']} "
        f"(lead {of['lead.sharpe']}, luck {of['lead.luck_sharpe']}); deflated Sharpe {of['account.deflated']} (lead "
        f"{of['lead.deflated']}); PBO {of['account.pbo']} (lead {of['lead.pbo']}); trials compared "
        f"{of['n_compared']}, effective {of['account.effective_trials']}; hold-out excess Sharpe "
        f"{of['holdout_excess_sharpe']} (standard error {of['holdout_error']})"
    )


# ------------------------------------------------------------------------------------------------------------- picture
COLOURS = {NO_SIGNAL: "tab:orange", DRIFTING: "tab:red", PLANTED: "tab:blue"}
CONFIDENCES = {
    "best, account,\nnot deflated": "account.best_probabilistic",
    "best, lead,\nnot deflated": "lead.best_probabilistic",
    "deflated,\naccount": "account.deflated",
    "deflated,\nlead": "lead.deflated",
}
OVERFITTING = {"account": "account.pbo", "lead": "lead.pbo", "account,\nbefore costs": "pbo_before_costs"}


def draw(part: Mapping[str, Any], path: Path) -> None:
    """One dot a study: confidences on the left, PBO on the right; shaded is where a winner is called skilful."""
    from matplotlib.figure import Figure

    table = table_of(part["studies"])
    studies = table[table["n_compared"] >= LEAST_COMPARED]
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    strips(left, studies, CONFIDENCES, (LEAST_CONFIDENCE, 1.03))
    left.set(ylabel="one minus the p-value of a true Sharpe of 0")
    left.set_title(f"Probabilistic and deflated Sharpe; shaded: {LEAST_CONFIDENCE:.0%} or more", fontsize=11)
    strips(right, studies, OVERFITTING, (-0.03, LARGEST_PBO))
    right.axhline(0.5, color="grey", lw=1, ls=":")
    right.set(ylabel="probability of backtest overfitting")
    right.set_title(f"PBO; shaded: {LARGEST_PBO:.0%} or less; dotted: one half", fontsize=11)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)


def strips(axes: Any, studies: pd.DataFrame, figures: Mapping[str, str], called: tuple[float, float]) -> None:
    """A strip of dots for each figure and kind; dots of a strip stand side by side in the order of their values."""
    for kind, shift in zip(KINDS, (-0.27, 0.0, 0.27), strict=True):
        mine = of_kind(studies, kind)
        beside = shift + 0.22 * ((np.arange(len(mine)) + 0.5) / max(len(mine), 1) - 0.5)
        for place, figure in enumerate(figures.values()):
            label = f"{kind}, {len(mine)} studies" if place == 0 else None
            dots = {"ms": 5, "mew": 0, "alpha": 0.7, "color": COLOURS[kind], "label": label}
            axes.plot(place + beside, np.sort(mine[figure]), "o", **dots)
    axes.axhspan(*called, color="tab:green", alpha=0.15, lw=0)
    axes.set_xticks(range(len(figures)), list(figures))
    axes.set(xlim=(-0.5, len(figures) - 0.5), ylim=(-0.03, 1.03))
    axes.grid(axis="y", alpha=0.3)
