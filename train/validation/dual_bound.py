"""The most that can be earned without knowing the future, on a market whose law is known: a dual bound.

The clairvoyant of `train.validation.hindsight` earns many times what can be earned. Here hindsight is charged for what
it knows: every bar it pays the part of its luck that could not be foreseen (Brown, Smith and Sun 2010, Operations
Research 58; Brown and Smith 2011, Management Science 57, for portfolios with transaction costs). Let V(s, k, m) be
any function of the signal s, the portfolio k that is held, and the m bars that are left. The penalty of bar t,

    gain_t(k) + V(s_(t+1), k, m) - E[gain_t(k) + V(s_(t+1), k, m) | s_t],

has mean 0 for whoever does not know the future, so no honest policy earns more on average than the penalised hindsight
does. With the true value function the bound is the optimum; with any other it is higher, but still a bound. The gain of
the bar itself cancels, so the penalised trader is paid the expected gain, and all that is left to know is the signal:

    bound = max over k_0, k_1, ... of
            sum over t of  -cost(k_(t-1) -> k_t) + E[gain | s_t, k_t] + E[V | s_t, k_t] - V(s_(t+1), k_t)

Needed is a law: of real prices it is not known, and a law that assumes no predictability would call every honest
skilful policy a cheat.

The portfolios are a finite list of weights, kept from bar to bar at no cost. A policy that holds weights between two of
them can beat the bound by what concavity gives there: less than volatility^2 * spacing^2 / 8 a bar.
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
    """What is known of a market with a Markov signal. K portfolios; signals (n, ...), one for each decision.

    The signal of a decision rules the bar after its fill: `gain` is the log growth between the close at which the order
    fills and the next one. An observation may hold more; only the signal says anything of what comes.
    """

    move: np.ndarray  # (K, K) log equity lost by trading portfolio i into j, 0 on the diagonal

    def gain(self, signal: np.ndarray) -> np.ndarray:
        """(n, K) expected log growth of holding each portfolio over the bar that the signal rules."""
        ...

    def value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """(n, K) value of arriving at a decision with this signal and `bars_left` (n,) decisions to make, this one too.

        0 with none left. Up to a constant for each number of bars left, which cancels.
        """
        ...

    def next_value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """(n, K) exact mean of `value(next signal, bars_left)` given the signal of now; else it is no bound."""
        ...


@dataclass(frozen=True)
class ChainLaw:
    """The law of a signal with R states: a Markov chain. Its value function is exact, so the bound is the optimum."""

    switching: np.ndarray  # (R, R) probabilities of the next state
    expected_gain: np.ndarray  # (R, K) expected log growth of the bar that a state rules
    move: np.ndarray  # (K, K)
    values: np.ndarray  # (M + 1, R, K) by the number of decisions left, 0 first; settled from M on

    def gain(self, signal: np.ndarray) -> np.ndarray:
        """As in `Law`; signals (n,) are numbers of states."""
        return self.expected_gain[signal]

    def value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """As in `Law`."""
        return self.values[np.minimum(bars_left, len(self.values) - 1), signal]

    def next_value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """As in `Law`."""
        settled = np.minimum(bars_left, len(self.values) - 1)
        return np.einsum("nr,nrk->nk", self.switching[signal], self.values[settled])


def chain_law(switching: np.ndarray, expected_gain: np.ndarray, move: np.ndarray, most_bars: int) -> ChainLaw:
    """Solve a chain by value iteration from its end: values (most_bars + 1, R, K); shapes as in `ChainLaw`."""
    values = np.zeros((most_bars + 1, *expected_gain.shape))
    for left in range(1, most_bars + 1):
        held = expected_gain + switching @ values[left - 1]  # (R, K) of holding k over the bar
        values[left] = (held[:, None, :] - move[None]).max(axis=-1)  # (R, K) of arriving with k
    return ChainLaw(switching, expected_gain, move, values)


# ---------------------------------------------------------------------------------------------------------------- bound
@dataclass(frozen=True)
class DualBound:
    """The bound on the mean log growth of a segment, as a mean over segments."""

    growth: np.ndarray  # (S,) penalised hindsight of each segment

    def __post_init__(self) -> None:
        """Refuse a mean over too few."""
        if len(self.growth) < LEAST_SEGMENTS:
            raise ValueError(
                f"the bound is a mean over at least {LEAST_SEGMENTS} segments, so that its interval means something; "
                f"received {len(self.growth)}"
            )

    @property
    def mean(self) -> float:
        """Log growth of a segment."""
        return float(self.growth.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """99 % interval of the mean (Student's t)."""
        return interval(self.growth)


def dual_bound(signals: Sequence[np.ndarray], law: Law, cash: int) -> DualBound:
    """The bound for accounts that begin each segment in cash and are valued at its last close.

    Args:
        signals: of each segment, (n_i, ...): those of the decisions whose fill still has a bar to earn on. An account
            that is evaluated over bars b_0 .. b_n decides at b_0 .. b_(n-1); the last of these fills at the last close
            and earns nothing, so it is left out: n_i = n - 1.
        law: of the market.
        cash: which of its portfolios is all cash.
    """
    return DualBound(np.array([penalised_hindsight(signal, law, cash) for signal in signals]))


def penalised_hindsight(signal: np.ndarray, law: Law, cash: int) -> float:
    """The best that hindsight does on one segment when it pays for what could not be foreseen; log growth."""
    n = len(signal)
    left = np.arange(n - 1, -1, -1)  # decisions that follow each one
    paid = law.gain(signal) + law.next_value(signal, left)  # (n, K)
    paid[:-1] -= law.value(signal[1:], left[:-1])
    paid[-1] -= law.next_value(signal[-1:], left[-1:])[0]  # nothing follows the last: no penalty, whatever `value` says
    best = np.full(law.move.shape[0], -np.inf)
    best[cash] = 0.0
    for reward in paid:
        best = (best[:, None] - law.move).max(axis=0) + reward
    return float(best.max())


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Two-sided interval of the mean of independent values (S,), by Student's t."""
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    reach = float(student_t.ppf(0.5 + confidence / 2.0, len(values) - 1)) * error
    return mean - reach, mean + reach


# ----------------------------------------------------------------------------------------------------------------- leak
@dataclass(frozen=True)
class AgainstBound:
    """A policy beside the bound, on the same segments."""

    growth: float  # mean log growth of the policy
    bound: DualBound
    difference: tuple[float, float]  # 99 % interval of the policy's mean minus the bound's, segment by segment

    @property
    def is_leak(self) -> bool:
        """Whether the policy earns more than anybody can who does not know the future."""
        return self.difference[0] > 0.0

    @property
    def share(self) -> float:
        """Of the bound that the policy earned; nan where nothing can be earned."""
        return self.growth / self.bound.mean if self.bound.mean > 0.0 else math.nan


def against_bound(growth: Sequence[float] | np.ndarray, bound: DualBound) -> AgainstBound:
    """Compare a policy's log growth (S,) on the bound's segments, paired."""
    own = np.asarray(growth, dtype=np.float64)
    if own.shape != bound.growth.shape:
        raise ValueError(f"one growth for each of the {len(bound.growth)} segments is expected; received {own.shape}")
    return AgainstBound(float(own.mean()), bound, interval(own - bound.growth))


def bound_text(found: AgainstBound) -> str:
    """One sentence for a log or a page; log growth as a percentage."""
    low, high = found.bound.interval
    text = (
        f"mean log growth {found.growth:.2%} per segment; without knowing the future at most {found.bound.mean:.2%} "
        f"can be earned (dual bound over {len(found.bound.growth)} segments, 99 % interval {low:.2%} to {high:.2%})"
    )
    if found.is_leak:
        return f"LEAK: {text}; the policy is above that, so it sees the future"
    return f"{text}: {found.share:.0%} of it" if math.isfinite(found.share) else text
