"""Deployment gates: the checks that a candidate must pass. Each has a value, a threshold and a verdict.

The cheap gates run first. Only a candidate that passed them is evaluated on the hold-out. Each evaluation is a
statistical test, and tests on the same bars share one error budget: test number j passes at the level
alpha / (j (j + 1)). These levels sum to alpha, so the probability that any of the candidates passes without skill is at
most alpha, however many there are (Bonferroni's bound for a sequence of unknown length).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from market.dataset import Dataset
from market.foresight import tested
from market.lookahead_record import CLEAN, UNCHECKED
from market.names import counted
from train.deploy.scores import Scored, confidence
from train.findings.overfit import Assessment
from train.records.defaults import ALPHA, HOLDOUT_DRAWDOWN, LEAST_CONFIDENCE, MIN_IMPROVEMENT
from train.records.errors import StudyError
from train.study.folds import FoldedData
from train.study.objective import LEAST_EXPOSURE
from train.validation.overfitting import deflated_sharpe

IN_MARKET = f"at least one trade and a mean exposure of at least {LEAST_EXPOSURE:.0%}".replace("%", " %")
# Gates that --allow-unproven waives.
STATISTICAL = ("deflated lead", "evidence of skill", "hold-out return", "hold-out confidence")

LOOKAHEAD = "look-ahead"  # gate name
PASSED, FAILED, WAIVED, NOT_ASKED, NOT_LOOKED = "passed", "FAILED", "waived", "not asked", "not looked at"


@dataclass(frozen=True)
class Limits:
    """Thresholds of the gates."""

    alpha: float = ALPHA
    min_deflated_sharpe: float = LEAST_CONFIDENCE
    max_drawdown: float = HOLDOUT_DRAWDOWN
    min_improvement: float = MIN_IMPROVEMENT
    allow_unproven: bool = False
    allow_synthetic: bool = False
    allow_unverified: bool = False
    allow_unchecked: bool = False
    replace_other: bool = False

    def __post_init__(self) -> None:
        """Reject invalid values, naming the flag."""
        for flag, value, least, most in (
            ("--alpha", self.alpha, 0.0, 0.5),
            ("--min-deflated-sharpe", self.min_deflated_sharpe, 0.0, 1.0),
            ("--max-drawdown", self.max_drawdown, 0.0, 1.0),
            ("--min-improvement", self.min_improvement, 0.0, math.inf),
        ):
            if not least <= value <= most or not math.isfinite(value) or (flag == "--alpha" and value == 0.0):
                bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise StudyError(f"{flag} must be a number {bounds}; received {value:g}")

    @property
    def lowered(self) -> list[str]:
        """Flags that require less evidence than the defaults."""
        is_low = {
            f"--alpha {self.alpha:g}": self.alpha > ALPHA,
            f"--min-deflated-sharpe {self.min_deflated_sharpe:g}": self.min_deflated_sharpe < LEAST_CONFIDENCE,
        }
        return [flag for flag, low in is_low.items() if low]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values.

        The newer waivers are included only if used. Otherwise candidates that an earlier version judged would be judged
        again.
        """
        later = ("allow_unverified", "allow_unchecked")
        return {name: value for name, value in asdict(self).items() if name not in later or value}


@dataclass(frozen=True)
class Gate:
    """Result of one gate."""

    name: str
    figure: str
    threshold: str
    verdict: str
    value: float | None = None  # the figure as a number, if it is one

    @property
    def line(self) -> str:
        """Gate as a log line."""
        return f"{self.verdict:<13} {self.text}"

    @property
    def text(self) -> str:
        """Name, value and threshold as one line."""
        figure = f"{self.figure}; " if self.figure else ""
        return f"{self.name}: {figure}required: {self.threshold}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def has_failed(gates: Sequence[Gate]) -> bool:
    """Return True if a gate failed and was not waived."""
    return any(gate.verdict == FAILED for gate in gates)


def reason(gates: Sequence[Gate]) -> str:
    """Return the failed gates as one line."""
    return " | ".join(gate.text for gate in gates if gate.verdict == FAILED)


def waived_names(gates: Sequence[Gate], limits: Limits) -> list[str]:
    """Return the names of the waived gates and the flags with thresholds below the defaults."""
    return [gate.name for gate in gates if gate.verdict == WAIVED] + limits.lowered


def level_of_test(alpha: float, test: int) -> float:
    """Return the significance level of test number `test` (counted from 1) on the same bars."""
    return alpha / (test * (test + 1))


# --------------------------------------------------------------------------------------------------- before the look
def early_gates(
    best: FrozenTrial, data: FoldedData, found: Assessment | None, limits: Limits, n_unverified: int = 0
) -> list[Gate]:
    """Return the gates that do not need the held-out bars.

    Args:
        best: best trial of the study.
        data: data of the study.
        found: assessment of the best trial's alpha returns, or None if it is undefined.
        limits: thresholds.
        n_unverified: number of trials whose files have no hash in the database.
    """
    return [
        _trial_gate(best),
        _data_gate(data.dataset, limits),
        lookahead_gate(data.dataset, limits),
        _records_gate(n_unverified, limits),
        _holdout_gate(data),
        _deflated_gate(found, limits),
        _evidence_gate(found, limits),
    ]


def lookahead_gate(dataset: Dataset, limits: Limits) -> Gate:
    """Return the look-ahead gate, from the dataset's stored result or, if it has none, from a check of its columns."""
    record = dataset.record
    found = (dataset if record.cuts or record.suspects is not None else tested(dataset)[0]).standing
    threshold = "features do not depend on later bars; external columns are unsuspicious or declared"
    if found.kind == CLEAN:
        return Gate(LOOKAHEAD, found.text, threshold, PASSED)
    is_waived = found.kind == UNCHECKED and limits.allow_unchecked
    return Gate(LOOKAHEAD, f"{found.kind}: {found.text}", threshold, WAIVED if is_waived else FAILED)


def _records_gate(n_unverified: int, limits: Limits) -> Gate:
    name, threshold = "records", "files match the hashes in the database"
    if not n_unverified:
        return Gate(name, "all files match", threshold, PASSED)
    figure = f"{counted(n_unverified, 'trial')} unverified: older than the hashes in the database"
    verdict = WAIVED if limits.allow_unverified else FAILED
    return Gate(name, figure, f"{threshold}, or --allow-unverified", verdict)


def _evidence_gate(found: Assessment | None, limits: Limits) -> Gate:
    """Return the gate for the verdict of the study's report."""
    figure = found.conclusion.removesuffix(".") if found else "the study cannot be judged"
    if limits.min_deflated_sharpe < LEAST_CONFIDENCE:  # the deployment is then unproven (`Limits.lowered`)
        return Gate("evidence of skill", figure, "nothing, because --min-deflated-sharpe is lowered", NOT_ASKED)
    is_good = found is not None and found.is_evidence
    return _statistical("evidence of skill", figure, "evidence of skill in the report", float(is_good), 1.0, limits)


def _trial_gate(best: FrozenTrial) -> Gate:
    is_good = best.state == TrialState.COMPLETE and best.value is not None and math.isfinite(best.value)
    figure = f"trial {best.number} {best.state.name.lower()}, value {best.value or math.nan:+.3f}"
    return Gate("trial", figure, "completed on every split", PASSED if is_good else FAILED, best.value)


def _data_gate(dataset: Dataset, limits: Limits) -> Gate:
    kind = dataset.kind_text if dataset.synthetic else "real"
    figure = f"{kind} bars, sha256 {dataset.sha256[:12]} as in the study"
    threshold = "real bars" if not limits.allow_synthetic else "real bars, or generated ones with --allow-synthetic"
    return Gate("data", figure, threshold, FAILED if dataset.synthetic and not limits.allow_synthetic else PASSED)


def _holdout_gate(data: FoldedData) -> Gate:
    if data.holdout is None:
        return Gate("hold-out", "none, because the study ran with --holdout 0", "bars that no trial saw", FAILED)
    figure = f"{data.holdout.bars} bars, sha256 {data.holdout.sha256[:12]} as in the study"
    return Gate("hold-out", figure, "bars that no trial saw", PASSED)


def _deflated_gate(found: Assessment | None, limits: Limits) -> Gate:
    """Return the gate for the deflated Sharpe ratio of the winner's alpha returns."""
    value = deflated_sharpe(found.estimate, found.search) if found else math.nan
    figure = f"{_share(value)} after {found.search.n_trials:.0f} trials" if found else "undefined"
    if limits.min_deflated_sharpe == 0.0:
        return Gate("deflated lead", figure, "nothing, because of --min-deflated-sharpe 0", NOT_ASKED, _plain(value))
    threshold = f"deflated Sharpe ratio of at least {_share(limits.min_deflated_sharpe)}"
    return _statistical("deflated lead", figure, threshold, value, limits.min_deflated_sharpe, limits)


# ----------------------------------------------------------------------------------------------------- with the look
def unlooked_gates(limits: Limits, test: int) -> list[Gate]:
    """Return the gates that a dry run skips, because they need an evaluation on the hold-out."""
    level = level_of_test(limits.alpha, test)
    return [
        Gate("hold-out in the market", "", IN_MARKET, NOT_LOOKED),
        Gate("hold-out return", "", "above that of equal weight", NOT_LOOKED),
        Gate("hold-out confidence", "", _level_text(limits.alpha, test, level), NOT_LOOKED),
        Gate("hold-out drawdown", "", f"at most {_share(limits.max_drawdown)}", NOT_LOOKED),
        Gate("improvement", "", f"Sharpe ratio higher by at least {limits.min_improvement:g}", NOT_LOOKED),
    ]


def late_gates(scored: Scored, test: int, limits: Limits) -> list[Gate]:
    """Return the gates for the refitted policy on the held-out bars."""
    agent, level = scored.agent, level_of_test(limits.alpha, test)
    in_market = agent.trades > 0 and agent.exposure >= LEAST_EXPOSURE
    is_shallow = agent.max_drawdown <= limits.max_drawdown
    returns = f"{agent.total_return:+.2%} against {scored.equal_weight.total_return:+.2%}"
    excess = f"{scored.excess_return:+.2%} ({returns})".replace("%", " %")
    drawdown = f"{agent.max_drawdown:.2%} (equal weight {scored.equal_weight.max_drawdown:.2%})".replace("%", " %")
    return [
        Gate("hold-out in the market", f"{agent.trades} trades, mean exposure {_share(agent.exposure)}",
             IN_MARKET, PASSED if in_market else FAILED, _plain(agent.exposure)),
        _statistical("hold-out return", excess, "above that of equal weight", scored.excess_return, 0.0, limits,
                     strict=True),
        _statistical("hold-out confidence", _share(scored.confidence), _level_text(limits.alpha, test, level),
                     scored.confidence, 1.0 - level, limits),
        Gate("hold-out drawdown", drawdown, f"at most {_share(limits.max_drawdown)}",
             PASSED if is_shallow else FAILED, _plain(agent.max_drawdown)),
    ]  # fmt: skip


@dataclass(frozen=True)
class Present:
    """The deployed policy that a candidate would replace."""

    name: str
    proven: bool
    incomparable: str  # why it cannot be scored on these bars; empty if it was scored
    remark: str = ""
    scored: Scored | None = None


def improvement_gate(scored: Scored, present: Present | None, is_proven: bool, limits: Limits) -> Gate:
    """Return the gate that compares the candidate with the deployed policy on the same bars at the same costs."""
    name, least = "improvement", limits.min_improvement
    threshold = f"Sharpe ratio at least {least:g} above that of {present.name if present else 'the deployed policy'}"
    if present is None:
        return Gate(name, "nothing is deployed", threshold, NOT_ASKED)
    if present.scored is None:
        figure = f"{present.name} cannot be compared: {present.incomparable}"
        threshold = "a comparable deployment, or --replace-other"
        return Gate(name, figure, threshold, PASSED if limits.replace_other else FAILED)
    if present.proven and not is_proven:
        return Gate(name, f"{present.name} is proven", "a proven policy can only be replaced by a proven one", FAILED)
    value = scored.agent.sharpe - present.scored.agent.sharpe
    sure = confidence(scored.returns - present.scored.returns)
    returns = f"return {scored.agent.total_return:+.2%} against {present.scored.agent.total_return:+.2%}"
    figure = f"{value:+.2f} ({returns}; confidence {_share(sure)}){present.remark}"
    figure = re.sub(r"(?<=\d)%", " %", figure)
    if is_proven and not present.proven:
        return Gate(name, figure, "nothing, because the deployed policy is unproven", NOT_ASKED, _plain(value))
    if scored.weights_sha256 == present.scored.weights_sha256:
        return Gate(name, "these weights are already deployed", threshold, FAILED, 0.0)
    return Gate(name, figure, threshold, PASSED if value >= least else FAILED, _plain(value))


def _statistical(
    name: str, figure: str, threshold: str, value: float, least: float, limits: Limits, strict: bool = False
) -> Gate:
    """Return a gate about evidence, which can be waived. An undefined value does not pass."""
    assert name in STATISTICAL
    is_good = value > least if strict else value >= least
    bad = WAIVED if limits.allow_unproven else FAILED
    return Gate(name, figure, threshold, PASSED if is_good else bad, _plain(value))


def _level_text(alpha: float, test: int, level: float) -> str:
    return f"at least {_share(1.0 - level)} (test {test} on these bars, level {alpha:g} / {test * (test + 1)})"


def _share(value: float) -> str:
    """Return a percentage, rounded down so that it never looks better than the threshold it missed."""
    return "undefined" if math.isnan(value) else f"{math.floor(round(value * 1e4, 6)) / 100.0:.2f} %"


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
