"""A study's trials as the page and the pictures show them."""

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
    """One trial."""

    number: int
    state: str  # complete, pruned, failed, running, waiting
    value: float | None  # of a complete one
    splits: Mapping[int, float]  # excess Sharpe of each split that was scored
    turnover: float | None  # mean over its splits, times equity
    fees: float | None  # mean over its splits, share of equity
    reason: str = ""  # why it cannot be the best: pruned, failed, or beyond a bound

    @property
    def is_scored(self) -> bool:
        """Whether it ended with a scored split and without a failure."""
        return bool(self.splits) and self.state in ("complete", "pruned")

    @property
    def has_costs(self) -> bool:
        """Whether its value and what trading cost it are known."""
        return self.state == "complete" and None not in (self.value, self.turnover, self.fees)


def trial_views(trials: Sequence[FrozenTrial]) -> tuple[TrialView, ...]:
    """The trials of a study, in any state."""
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
