"""What many judged studies say about the judgement: who is called skilful, how often, and how sure that rate is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.special import betaincinv, ndtri

from benchmarks.measuring import check
from train.records.defaults import LEAST_CONFIDENCE, LEAST_TRIALS
from train.validation.choice import CHOICE_LEVEL
from train.validation.overfitting import LARGEST_PBO, Search, expected_maximum_sharpe

NO_SIGNAL, DRIFTING, PLANTED = "no signal", "drifting", "planted signal"
KINDS = (NO_SIGNAL, DRIFTING, PLANTED)
WITHOUT_SKILL = (NO_SIGNAL, DRIFTING)  # nothing that a policy could know
NOMINAL = 1.0 - LEAST_CONFIDENCE
LEAST_POWER = 0.8
LEAST_COMPARED = 2
HOLDOUT_ERRORS = 2.0  # standard errors above 0, as a study's report says "above what chance explains"
HOLDOUT_NOMINAL = 0.0228  # of a normal distribution above 2
COLUMNS = {"rule": "called skilful by", "nominal": "nominal"} | {kind: kind for kind in KINDS}


@dataclass(frozen=True)
class Reading:
    """The judgement by one kind of returns. Sharpe ratios are annual; nan where a figure is undefined."""

    sharpe: float  # of the study's winner
    probabilistic: float  # the winner's confidence without deflation
    deflated: float
    pbo: float
    luck_sharpe: float  # of the best of so many trials without skill, by the spread of the trials found
    effective_trials: float
    best_sharpe: float  # the highest of the compared trials, which need not be the winner
    best_probabilistic: float  # its confidence, as if it were the only trial
    choice_p_value: float = 0.0  # of `train.validation.choice`; 0, a choice, in files from before it was kept


@dataclass(frozen=True)
class Study:
    """One study, judged."""

    kind: str  # of KINDS
    seed: int
    n_finished: int  # completed and pruned
    n_compared: int  # with returns on every test bar
    account: Reading
    lead: Reading  # of returns less beta times the equal-weight portfolio's
    pbo_before_costs: float  # of the accounts' returns with fees and slippage given back
    equal_weight_probabilistic: float  # the market's own path, had somebody judged it as a trial
    holdout_excess_sharpe: float  # annual; mean over the winner's policies
    holdout_error: float  # its standard error
    wall_s: float
    holdout_lead_errors: float = 1e9  # the lead's Sharpe there, in errors; huge in files from before it was kept


@dataclass(frozen=True)
class Rule:
    """A way to call a winner skilful."""

    name: str
    nominal: float | None  # share of unskilled winners it may call skilful; None: it is shown to explain another
    calls: Callable[[Study], bool]


def _is_confident(confidence: float) -> bool:
    return confidence >= LEAST_CONFIDENCE


def _by_both(reading: Reading) -> bool:
    return _is_confident(reading.deflated) and reading.pbo <= LARGEST_PBO


NAIVE = Rule(
    "naive: best Sharpe, not deflated, account", NOMINAL, lambda s: _is_confident(s.account.best_probabilistic)
)
NAIVE_LEAD = Rule("naive: best Sharpe, not deflated, lead", NOMINAL, lambda s: _is_confident(s.lead.best_probabilistic))
DEFLATED = Rule("deflated Sharpe, account", NOMINAL, lambda s: _is_confident(s.account.deflated))
DEFLATED_LEAD = Rule("deflated Sharpe, lead", NOMINAL, lambda s: _is_confident(s.lead.deflated))
PBO = Rule("PBO, account", LARGEST_PBO, lambda s: s.account.pbo <= LARGEST_PBO)
PBO_LEAD = Rule("PBO, lead", LARGEST_PBO, lambda s: s.lead.pbo <= LARGEST_PBO)
PBO_FREE = Rule("PBO, account before costs", None, lambda s: s.pbo_before_costs <= LARGEST_PBO)
BOTH = Rule("both, account", NOMINAL, lambda s: _by_both(s.account))
BOTH_LEAD = Rule("both, lead", NOMINAL, lambda s: _by_both(s.lead))


def _passes_holdout(s: Study) -> bool:
    return s.holdout_excess_sharpe > HOLDOUT_ERRORS * s.holdout_error and s.holdout_lead_errors > HOLDOUT_ERRORS


def _is_verdict(s: Study) -> bool:
    """As `train.validation.overfitting.conclusion`: without a choice that PBO could test the hold-out decides."""
    has_choice = s.lead.choice_p_value < CHOICE_LEVEL
    return _is_confident(s.lead.deflated) and (s.lead.pbo <= LARGEST_PBO if has_choice else _passes_holdout(s))


HOLDOUT = Rule("hold-out: excess Sharpe and lead above 2 standard errors", HOLDOUT_NOMINAL, _passes_holdout)
VERDICT = Rule("verdict of the report", NOMINAL, _is_verdict)
RULES = (NAIVE, NAIVE_LEAD, DEFLATED, DEFLATED_LEAD, PBO, PBO_LEAD, PBO_FREE, BOTH, BOTH_LEAD, HOLDOUT, VERDICT)
CHECKED = (DEFLATED, DEFLATED_LEAD, PBO, PBO_LEAD, BOTH, BOTH_LEAD, VERDICT)
CHECKED_LEAD = (DEFLATED_LEAD, PBO_LEAD, BOTH_LEAD, VERDICT)  # where prices drift, an account that holds does earn
POWERFUL = (DEFLATED, DEFLATED_LEAD, VERDICT)  # PBO is not: equally good trials have any
# What the same rule would say without the deflation: luck put at 0, as if the winner were the only trial.
NO_LUCK = Rule("", None, lambda s: _is_confident(s.lead.probabilistic) and s.lead.pbo <= LARGEST_PBO)
NO_LUCK_ALONE = Rule("", None, lambda s: _is_confident(s.lead.probabilistic))


@dataclass(frozen=True)
class Count:
    """k of n studies."""

    k: int
    n: int

    @property
    def share(self) -> float | None:
        """None of none."""
        return self.k / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float]:
        """Of the true rate."""
        return clopper_pearson(self.k, self.n)

    def text(self) -> str:
        """`2 of 40: 5.0 % (0.6 to 16.9 %)`."""
        if not self.n:
            return "none judged"
        low, high = self.interval
        return f"{self.k} of {self.n}: {100 * self.k / self.n:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval that holds the rate behind k of n at least that often (Clopper and Pearson 1934)."""
    if not 0 <= k <= n:
        raise ValueError(f"k of n needs 0 <= k <= n; received {k} of {n}")
    tail = (1.0 - confidence) / 2.0
    low = float(betaincinv(k, n - k + 1, tail)) if k > 0 else 0.0
    high = float(betaincinv(k + 1, n - k, 1.0 - tail)) if k < n else 1.0
    return low, high


def studies_to_prove(rate: float) -> int:
    """Least n for which 0 of n has its whole interval at or under the rate."""
    return next(n for n in range(1, 100_000) if clopper_pearson(0, n)[1] <= rate)


def is_judged(study: Study) -> bool:
    """Whether there are trials to compare: what the page of a study asks for (5_pbo.py asks for `LEAST_TRIALS`)."""
    return study.n_compared >= LEAST_COMPARED


def count(studies: Sequence[Study], kind: str, rule: Rule) -> Count:
    """Of the studies of a kind, those that a rule calls skilful; what is undefined is not called so."""
    mine = [study for study in studies if study.kind == kind]
    return Count(sum(rule.calls(study) for study in mine), len(mine))


def table_rows(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """One row a rule; `COLUMNS` are its columns."""
    return [
        {
            "rule": rule.name,
            "nominal": "" if rule.nominal is None else f"{100 * rule.nominal:.1f} %",
            **{kind: count(studies, kind, rule).text() for kind in KINDS},
        }
        for rule in RULES
    ]


def checks(studies: Sequence[Study]) -> list[dict[str, Any]]:
    """False positives at most nominal, true ones at least `LEAST_POWER`: observed shares, not their intervals."""
    asked = [(NO_SIGNAL, rule) for rule in CHECKED]
    if any(study.kind == DRIFTING for study in studies):  # files from before there were any have none
        asked += [(DRIFTING, rule) for rule in CHECKED_LEAD]
    wrong = [check(f"{kind}, {rule.name}", count(studies, kind, rule).share, most=rule.nominal) for kind, rule in asked]
    right = [
        check(f"{PLANTED}, {rule.name}", count(studies, PLANTED, rule).share, least=LEAST_POWER) for rule in POWERFUL
    ]
    return wrong + right


def notes(studies: Sequence[Study], refused: Sequence[Study]) -> list[str]:
    """What the table does not show, one sentence a line."""
    lines = ["In brackets 95 % intervals of the rate (Clopper and Pearson)."]
    clean = count(studies, NO_SIGNAL, BOTH)
    if clean.n and clean.interval[0] <= NOMINAL < clean.interval[1]:
        lines.append(
            f"{clean.n} studies without signal do not prove a rate under {100 * NOMINAL:.0f} %: the interval for "
            f"both reaches {100 * clean.interval[1]:.1f} %. {studies_to_prove(NOMINAL)} without a false positive would."
        )
    for kind in KINDS:
        mine = [study for study in studies if study.kind == kind]
        n_refused = sum(study.kind == kind for study in refused)
        if mine:
            lines.append(f"{kind.capitalize()}: {_medians(mine)}.")
        if mine or n_refused:
            lines.append(f"{kind.capitalize()}: {_few_text(mine, n_refused)}")
    for rule in CHECKED:
        found = count(studies, NO_SIGNAL, rule)
        if rule.nominal is not None and found.n and found.interval[0] > rule.nominal:
            lines.append(
                f"{rule.name}: the whole interval is above the nominal {100 * rule.nominal:.0f} %: on markets without "
                "signal the rule does call winners skilful more often than it promises."
            )
    lines += _no_luck_notes(studies)
    lines += _spread_note([study for study in studies if study.kind == NO_SIGNAL])
    path = Rule("", None, lambda s: _is_confident(s.equal_weight_probabilistic))
    passed = count(studies, NO_SIGNAL, path).text()
    lines.append(f"Equal weight itself, which chooses nothing, passes the naive rule of the account on {passed}.")
    return lines


def _no_luck_notes(studies: Sequence[Study]) -> list[str]:
    """The negative control: the rule must be able to be wrong, or its silence would show nothing."""
    found = {
        kind: (count(studies, kind, NO_LUCK_ALONE), count(studies, kind, NO_LUCK))
        for kind in WITHOUT_SKILL
        if count(studies, kind, NO_LUCK).n
    }
    return [
        f"Negative control, {kind}: with luck put at 0 the lead of the winner would pass 95 % on {alone.text()}, and "
        f"PBO as well on {both.text()}. The naive rules above show it for the best Sharpe, not the winner's."
        for kind, (alone, both) in found.items()
    ]


def trial_spread(study: Study) -> float:
    """Standard deviation of the trials' annual Sharpe ratios, which the deflated Sharpe takes for luck."""
    return study.account.luck_sharpe / expected_maximum_sharpe(Search(study.n_finished, 1.0))


def chance_spread(study: Study) -> float:
    """Standard error of the winner's annual Sharpe, from its own confidence; nan where that is 0, 1/2 or 1."""
    z = float(ndtri(study.account.probabilistic))
    return study.account.sharpe / z if math.isfinite(z) and z != 0.0 else math.nan


def _spread_note(studies: Sequence[Study]) -> list[str]:
    spreads = [(trial_spread(s), chance_spread(s)) for s in studies]
    known = [pair for pair in spreads if all(map(math.isfinite, pair))]
    if not known:
        return []
    found, chance = (statistics.median(column) for column in zip(*known, strict=True))
    return [
        f"Without signal the annual Sharpe ratios of a study's trials spread by {found:.3g} (median); chance gives "
        f"one trial an error of {chance:.3g}. What exceeds it are real differences, such as the fees of those that "
        "trade much; the deflated Sharpe takes all of it for luck, and asks the more of the winner."
    ]


def _few_text(studies: Sequence[Study], n_refused: int) -> str:
    few = [study for study in studies if study.n_compared < LEAST_TRIALS]
    called = [sum(rule.calls(study) for study in few) for rule in (DEFLATED, PBO, BOTH)]
    return (
        f"{n_refused} more studies have too few trials to compare and are not judged. {len(few)} of the judged have "
        f"under {LEAST_TRIALS}, where scripts/validation/5_pbo.py gives no answer; of these the deflated Sharpe calls "
        f"{called[0]} skilful, PBO {called[1]}, both {called[2]} (account)."
    )


def _medians(studies: Sequence[Study]) -> str:
    def of(figure: Callable[[Study], float]) -> str:
        return f"{statistics.median(figure(study) for study in studies):.3g}"

    return (
        f"medians: winner's annual Sharpe {of(lambda s: s.account.sharpe)} where luck is put at "
        f"{of(lambda s: s.account.luck_sharpe)} (lead {of(lambda s: s.lead.sharpe)}, luck "
        f"{of(lambda s: s.lead.luck_sharpe)}); deflated Sharpe {of(lambda s: s.account.deflated)} (lead "
        f"{of(lambda s: s.lead.deflated)}); PBO {of(lambda s: s.account.pbo)} (lead {of(lambda s: s.lead.pbo)}); "
        f"trials compared {of(lambda s: s.n_compared)}, effective {of(lambda s: s.account.effective_trials)}; hold-out "
        f"excess Sharpe {of(lambda s: s.holdout_excess_sharpe)} (standard error {of(lambda s: s.holdout_error)})"
    )


# ------------------------------------------------------------------------------------------------------------- picture
COLOURS = {NO_SIGNAL: "tab:orange", DRIFTING: "tab:red", PLANTED: "tab:blue"}
CONFIDENCES: tuple[tuple[str, Callable[[Study], float]], ...] = (
    ("best, account,\nnot deflated", lambda s: s.account.best_probabilistic),
    ("best, lead,\nnot deflated", lambda s: s.lead.best_probabilistic),
    ("deflated,\naccount", lambda s: s.account.deflated),
    ("deflated,\nlead", lambda s: s.lead.deflated),
)
OVERFITTING: tuple[tuple[str, Callable[[Study], float]], ...] = (
    ("account", lambda s: s.account.pbo),
    ("lead", lambda s: s.lead.pbo),
    ("account,\nbefore costs", lambda s: s.pbo_before_costs),
)


def draw(studies: Sequence[Study], path: Path) -> None:
    """One dot a study: confidences on the left, PBO on the right; shaded is where a winner is called skilful."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    _strips(left, studies, CONFIDENCES)
    left.axhspan(LEAST_CONFIDENCE, 1.03, color="tab:green", alpha=0.15, lw=0)
    left.axhline(LEAST_CONFIDENCE, color="tab:green", lw=1, ls="--")
    left.set(ylabel="one minus the p-value of a true Sharpe of 0", ylim=(-0.03, 1.03))
    left.set_title(f"Probabilistic and deflated Sharpe; shaded: {LEAST_CONFIDENCE:.0%} or more", fontsize=11)
    _strips(right, studies, OVERFITTING)
    right.axhspan(-0.03, LARGEST_PBO, color="tab:green", alpha=0.15, lw=0)
    right.axhline(LARGEST_PBO, color="tab:green", lw=1, ls="--")
    right.axhline(0.5, color="grey", lw=1, ls=":")
    right.set(ylabel="probability of backtest overfitting", ylim=(-0.03, 1.03))
    right.set_title(f"PBO; shaded: {LARGEST_PBO:.0%} or less; dotted: one half", fontsize=11)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _strips(axes: Any, studies: Sequence[Study], figures: Sequence[tuple[str, Callable[[Study], float]]]) -> None:
    """A strip of dots for each figure and kind; dots of a strip stand side by side in the order of their values."""
    for kind, shift in zip(KINDS, (-0.27, 0.0, 0.27), strict=True):
        mine = [study for study in studies if study.kind == kind]
        for place, (_, value_of) in enumerate(figures):
            values = sorted(value_of(study) for study in mine)
            xs = [place + shift + 0.22 * ((i + 0.5) / len(values) - 0.5) for i in range(len(values))]
            label = f"{kind}, {len(mine)} studies" if place == 0 else None
            axes.plot(xs, values, "o", ms=5, mew=0, alpha=0.7, color=COLOURS[kind], label=label)
    axes.set_xticks(range(len(figures)), [name for name, _ in figures])
    axes.set_xlim(-0.5, len(figures) - 0.5)
    axes.grid(axis="y", alpha=0.3)
