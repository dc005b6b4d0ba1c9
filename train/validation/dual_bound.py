"""Dual bound: the most that can be earned without knowing the future, on a market with a known law.

The hindsight optimum of `train.validation.hindsight` is many times what any policy can earn. Here the trader with
hindsight pays a penalty on every bar for the unpredictable part of its gain (Brown, Smith and Sun 2010, Operations
Research 58; Brown and Smith 2011, Management Science 57, for portfolios with transaction costs). Let V(s, k, m) be any
function of the signal s, the held portfolio k and the number m of remaining bars. The penalty of bar t,

    gain_t(k) + V(s_(t+1), k, m) - E[gain_t(k) + V(s_(t+1), k, m) | s_t],

has mean 0 for every policy that does not know the future. On average, no such policy earns more than the penalized
trader. With the true value function, the bound equals the optimum. With any other function, it is higher but still
valid. The gain of the bar itself cancels, so the penalized trader receives the expected gain and needs only the signal:

    bound = max over k_0, k_1, ... of
            sum over t of  -cost(k_(t-1) -> k_t) + E[gain | s_t, k_t] + E[V | s_t, k_t] - V(s_(t+1), k_t)

The bound requires a law. The law of real prices is unknown, and a law without predictability would reject every
genuinely skilled policy.

The portfolios are a finite list of weights that are kept from bar to bar at no cost. A policy that holds weights
between two of them can exceed the bound because of concavity, by less than volatility^2 * spacing^2 / 8 per bar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import t as student_t

LEAST_SEGMENTS = 30
CONFIDENCE = 0.99


class Law(Protocol):
    """Law of a market with a Markov signal, for K portfolios and signals (n, ...), one per decision.

    The signal of a decision governs the bar after its fill: `gain` is the log growth between the close at which the
    order fills and the next close. An observation may contain more, but only the signal contains information about the
    future.
    """

    move: np.ndarray  # (K, K) log equity lost by trading portfolio i into j, 0 on the diagonal

    def gain(self, signal: np.ndarray) -> np.ndarray:
        """Return the expected log growth (n, K) of holding each portfolio over the bar that the signal governs."""
        ...

    def value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """Return the value (n, K) at a decision with this signal and `bars_left` (n,) decisions, including this one.

        The value is 0 with no decisions left, and defined up to a constant for each number of decisions, which cancels.
        """
        ...

    def next_value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """Return the exact mean (n, K) of `value(next signal, bars_left)` given the current signal.

        The bound is valid only if this mean is exact.
        """
        ...


@dataclass(frozen=True)
class ChainLaw:
    """Law of a signal with R states, a Markov chain; its value function is exact, so the bound is the optimum."""

    switching: np.ndarray  # (R, R) probabilities of the next state
    expected_gain: np.ndarray  # (R, K) expected log growth over the bar that a state governs
    move: np.ndarray  # (K, K)
    values: np.ndarray  # (M + 1, R, K) by number of decisions left, from 0; constant from M onward

    def gain(self, signal: np.ndarray) -> np.ndarray:
        """See `Law`; signals (n,) are state numbers."""
        return self.expected_gain[signal]

    def value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """See `Law`."""
        return self.values[np.minimum(bars_left, len(self.values) - 1), signal]

    def next_value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """See `Law`."""
        settled = np.minimum(bars_left, len(self.values) - 1)
        return np.einsum("nr,nrk->nk", self.switching[signal], self.values[settled])


def chain_law(switching: np.ndarray, expected_gain: np.ndarray, move: np.ndarray, most_bars: int) -> ChainLaw:
    """Solve a chain by backward value iteration, with values (most_bars + 1, R, K); other shapes as in `ChainLaw`."""
    values = np.zeros((most_bars + 1, *expected_gain.shape))
    for left in range(1, most_bars + 1):
        held = expected_gain + switching @ values[left - 1]  # (R, K) value of holding k over the bar
        values[left] = (held[:, None, :] - move[None]).max(axis=-1)  # (R, K) value of arriving with k
    return ChainLaw(switching, expected_gain, move, values)


# ---------------------------------------------------------------------------------------------------------------- bound
@dataclass(frozen=True)
class DualBound:
    """Bound on the log growth per segment, as a mean over segments."""

    growth: np.ndarray  # (S,) penalized hindsight growth of each segment

    def __post_init__(self) -> None:
        """Reject a mean over too few segments."""
        if len(self.growth) < LEAST_SEGMENTS:
            raise ValueError(
                f"the bound needs at least {LEAST_SEGMENTS} segments for a meaningful confidence interval; received "
                f"{len(self.growth)}"
            )

    @property
    def mean(self) -> float:
        """Mean log growth per segment."""
        return float(self.growth.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """99 % confidence interval of the mean (Student's t)."""
        return interval(self.growth)


def dual_bound(signals: Sequence[np.ndarray], law: Law, cash: int) -> DualBound:
    """Return the bound for accounts that start each segment in cash and are valued at the segment's last close.

    Args:
        signals: signals (n_i, ...) of each segment, for the decisions whose fill still has a bar to earn on. An account
            that is evaluated over bars b_0 .. b_n decides at b_0 .. b_(n-1). The last decision fills at the last close
            and earns nothing, so it is omitted: n_i = n - 1.
        law: law of the market.
        cash: index of the portfolio that is all cash.
    """
    return DualBound(np.array([penalised_hindsight(signal, law, cash) for signal in signals]))


def penalised_hindsight(signal: np.ndarray, law: Law, cash: int) -> float:
    """Return the log growth of the best hindsight plan on one segment, after the penalty."""
    n = len(signal)
    left = np.arange(n - 1, -1, -1)  # number of decisions after each one
    paid = law.gain(signal) + law.next_value(signal, left)  # (n, K)
    paid[:-1] -= law.value(signal[1:], left[:-1])
    paid[-1] -= law.next_value(signal[-1:], left[-1:])[0]  # no penalty after the last decision
    best = np.full(law.move.shape[0], -np.inf)
    best[cash] = 0.0
    for reward in paid:
        best = (best[:, None] - law.move).max(axis=0) + reward
    return float(best.max())


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the two-sided confidence interval of the mean of independent values (S,), by Student's t."""
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    reach = float(student_t.ppf(0.5 + confidence / 2.0, len(values) - 1)) * error
    return mean - reach, mean + reach


# ----------------------------------------------------------------------------------------------------------------- leak
@dataclass(frozen=True)
class AgainstBound:
    """A policy compared with the bound on the same segments."""

    growth: float  # mean log growth of the policy
    bound: DualBound
    difference: tuple[float, float]  # 99 % interval of the policy's mean minus the bound's, segment by segment

    @property
    def is_leak(self) -> bool:
        """True if the policy earns more than is possible without knowing the future."""
        return self.difference[0] > 0.0

    @property
    def share(self) -> float:
        """Fraction of the bound that the policy earned, or nan if nothing can be earned."""
        return self.growth / self.bound.mean if self.bound.mean > 0.0 else math.nan


def against_bound(growth: Sequence[float] | np.ndarray, bound: DualBound) -> AgainstBound:
    """Compare a policy's log growth (S,) with the bound, paired by segment."""
    own = np.asarray(growth, dtype=np.float64)
    if own.shape != bound.growth.shape:
        raise ValueError(f"growth must have shape ({len(bound.growth)},), one per segment; received {own.shape}")
    return AgainstBound(float(own.mean()), bound, interval(own - bound.growth))


def bound_text(found: AgainstBound) -> str:
    """Return the comparison in one sentence, with log growth in percent."""
    low, high = found.bound.interval
    text = (
        f"mean log growth {found.growth:.2%} per segment; without look-ahead at most {found.bound.mean:.2%} is "
        f"possible (dual bound over {len(found.bound.growth)} segments, 99 % interval {low:.2%} to {high:.2%})"
    )
    if found.is_leak:
        return f"LEAK: {text}; the policy exceeds the bound, so it uses future data"
    return f"{text}; the policy reaches {found.share:.0%} of the bound" if math.isfinite(found.share) else text
