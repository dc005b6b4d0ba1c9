"""Law of `benchmarks.signal_markets.SignalMarket` with one coin, for the dual bound.

Value functions are solved on a chain of S signals and interpolated linearly between its points. Their mean one bar
later is exact for the Gaussian process, not for the chain. The result is therefore a valid bound for any grid, and a
coarse grid only makes it larger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from benchmarks.planted_markets import moving_costs
from benchmarks.signal_markets import SignalMarket
from train.validation.dual_bound import chain_law

SIGNALS, WEIGHTS = 121, 21
SETTLED_BARS = 500  # ten mean lifetimes of a signal: with more bars left, values differ by a constant
CASH = 0  # portfolio k holds k / (K - 1) of the account


@dataclass(frozen=True)
class SignalLaw:
    """Implementation of `train.validation.dual_bound.Law` whose signals are values (n,)."""

    points: np.ndarray  # (S,) ascending, evenly spaced
    persistence: float
    slope: np.ndarray  # (K,) expected gain per unit of signal
    drag: np.ndarray  # (K,) gain lost to variance
    move: np.ndarray  # (K, K)
    values: np.ndarray  # (M + 1, S, K) on the points, by the number of decisions left

    def gain(self, signal: np.ndarray) -> np.ndarray:
        """Return the expected log growth, (n, K)."""
        return np.asarray(signal)[:, None] * self.slope - self.drag

    def value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """Interpolate the value linearly, (n, K); it is constant beyond the last point."""
        width = self.points[1] - self.points[0]
        place = np.clip((np.asarray(signal) - self.points[0]) / width, 0.0, len(self.points) - 1.0)
        low = np.minimum(place.astype(np.int64), len(self.points) - 2)
        share = (place - low)[:, None]
        left = np.minimum(bars_left, len(self.values) - 1)
        return (1.0 - share) * self.values[left, low] + share * self.values[left, low + 1]

    def next_value(self, signal: np.ndarray, bars_left: np.ndarray) -> np.ndarray:
        """Return the exact mean of `value` at a Gaussian next signal, (n, K)."""
        chances, left = self._chances(np.asarray(signal)), np.minimum(bars_left, len(self.values) - 1)
        found = np.empty((len(chances), len(self.slope)))
        for number in np.unique(left):  # the value is the same for all but the last bars
            rows = left == number
            found[rows] = chances[rows] @ self.values[number]
        return found

    def _chances(self, signal: np.ndarray) -> np.ndarray:
        """Return the mean of each point's hat function, (n, S): 1 at the point, falling to 0 at its neighbors."""
        deviation, width = np.sqrt(1.0 - self.persistence**2), self.points[1] - self.points[0]
        z = (self.points - self.persistence * signal[:, None]) / deviation  # (n, S)
        # The second difference of the mean of max(point - x, 0) over the grid is the mean of the hat function.
        below = deviation * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2.0 * np.pi))
        rise = np.diff(below, axis=1) / width  # (n, S - 1)
        ends = np.zeros((len(z), 1)), np.ones((len(z), 1))  # constant beyond the grid
        return np.diff(np.hstack((ends[0], rise, ends[1])), axis=1)


def signal_law(market: SignalMarket, cost_rate: float) -> SignalLaw:
    """Solve one coin of the market; `cost_rate` is fee plus slippage per side."""
    points, switching = market.switching(SIGNALS)
    weights = np.linspace(0.0, 1.0, WEIGHTS)
    slope, drag = market.alpha * weights, market.volatility**2 / 2.0 * weights**2
    move = moving_costs(weights[:, None], cost_rate)
    chain = chain_law(switching, points[:, None] * slope - drag, move, SETTLED_BARS)
    return SignalLaw(points, market.persistence, slope, drag, move, chain.values)
