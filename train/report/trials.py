"""Trials of a study, as shown on the report page and in the plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from train.study.eligibility import agents_of, why_ineligible

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class TrialView:
    """One trial as shown on the page."""

    number: int
    state: str  # complete, pruned, failed, running, waiting
    value: float | None  # None unless complete
    splits: Mapping[int, float]  # excess Sharpe ratio of each scored split
    turnover: float | None  # multiple of equity, mean over the splits
    fees: float | None  # fraction of equity, mean over the splits
    reason: str = ""  # why the trial is not eligible: pruned, failed, or a constraint is violated

    @property
    def is_scored(self) -> bool:
        """True if the trial completed or was pruned and has a scored split."""
        return bool(self.splits) and self.state in ("complete", "pruned")

    @property
    def has_costs(self) -> bool:
        """True if the trial is complete and its value, turnover and fees are known."""
        return self.state == "complete" and None not in (self.value, self.turnover, self.fees)


def trial_views(trials: Sequence[FrozenTrial]) -> tuple[TrialView, ...]:
    """Return the trials of a study, in any state."""
    return tuple(_trial_view(t) for t in trials)


def _trial_view(t: FrozenTrial) -> TrialView:
    agents = agents_of(t.user_attrs)

    def mean(name: str) -> float | None:
        values = [getattr(a, name) for a in agents if np.isfinite(getattr(a, name))]
        return float(np.mean(values)) if values else None

    return TrialView(
        number=t.number,
        state=STATES[t.state],
        value=t.value if t.state == TrialState.COMPLETE else None,
        splits={step: v for step, v in t.intermediate_values.items() if np.isfinite(v)},
        turnover=mean("turnover"),
        fees=mean("fees"),
        reason=why_ineligible(t) if t.state.is_finished() else "",
    )
