"""Statistical power of a dataset: the edge that covers the costs, and the smallest edge that can be detected."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE, POWER = 0.95, 0.80
BASIS_POINTS = 1e4


@dataclass(frozen=True)
class DetectableEdge:
    """Smallest detectable edge and the costs it must cover; rates are fractions, so 0.0001 is 1 bp."""

    n_bars: int
    volatility: float  # standard deviation of one-bar returns
    round_trip: float  # cost of buying and selling once, as a fraction of notional
    bars_per_year: float
    smallest: float  # smallest mean excess return per bar that would be detected

    @property
    def per_year(self) -> float:
        """Smallest detectable mean excess return per year."""
        return self.smallest * self.bars_per_year

    @property
    def sharpe(self) -> float:
        """Smallest detectable annual Sharpe ratio of the excess returns, which does not depend on volatility."""
        return self.smallest / self.volatility * math.sqrt(self.bars_per_year) if self.volatility > 0.0 else math.nan

    def gross_per_bar(self, bars_held: float) -> float:
        """Return the required edge per bar before costs if each position is held for `bars_held` bars."""
        return self.smallest + self.round_trip / bars_held


def detectable_edge(
    n_bars: int,
    volatility: float,
    cost_per_side: float,
    bars_per_year: float,
    *,
    confidence: float = CONFIDENCE,
    power: float = POWER,
) -> DetectableEdge:
    """Return the smallest mean excess return per bar that a one-sided test on `n_bars` returns would detect.

    The mean of n independent returns has the standard error sigma / sqrt(n). A test at level 1 - confidence rejects the
    null hypothesis of no edge above z_confidence standard errors. It does so with probability `power` if the true mean
    is

        (z_confidence + z_power) * sigma / sqrt(n)

    (Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, section 2.4; z are normal quantiles, 1.645 and
    0.842). Selection among many trials and clustered returns are not corrected for. Both require a larger edge.

    Args:
        n_bars: number of test returns, on which no tested policy was trained.
        volatility: standard deviation of the one-bar excess return, as a fraction.
        cost_per_side: fee plus slippage, as a fraction of notional.
        bars_per_year: number of bars per year at the actual bar spacing.
        confidence: one minus the significance level of the test.
        power: probability that the edge is detected.
    """
    if n_bars < 1 or not volatility >= 0.0:
        raise ValueError(f"n_bars must be >= 1 and volatility >= 0; received {n_bars} and {volatility}")
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    return DetectableEdge(n_bars, volatility, 2.0 * cost_per_side, bars_per_year, z * volatility / math.sqrt(n_bars))


def market_volatility(closes: list[np.ndarray]) -> float:
    """Return the standard deviation of one-bar returns of equal weight over several segments (n_i + 1, A).

    This is the volatility of the excess return over cash for an account that is invested, and of the excess return over
    equal weight for an account that is not. A coin counts if it has a price on both bars.
    """
    found = [_mean_returns(close) for close in closes if len(close) > 1]
    every = np.concatenate(found) if found else np.empty(0)
    return float(every.std(ddof=1)) if every.size > 1 else math.nan


def _mean_returns(close: ArrayLike) -> np.ndarray:
    price = np.asarray(close, dtype=np.float64)
    is_known = (price[:-1] > 0.0) & (price[1:] > 0.0)
    simple = np.where(is_known, price[1:] / np.where(is_known, price[:-1], 1.0) - 1.0, 0.0)
    return simple.sum(axis=1) / np.maximum(is_known.sum(axis=1), 1)


def power_text(edge: DetectableEdge, cost_text: str, bars_held: float) -> str:
    """Return the result as one log line.

    Args:
        edge: result of `detectable_edge`.
        cost_text: cost of one side of a trade and its components.
        bars_held: example holding time in bars.
    """

    def bp(value: float) -> str:
        return f"{value * BASIS_POINTS:.3g} bp"

    return (
        f"a round trip costs {bp(edge.round_trip)} ({cost_text} on each side). Smallest detectable edge over "
        f"{edge.n_bars:,} bars: {bp(edge.smallest)} per bar after costs (Sharpe ratio {edge.sharpe:.1f}), "
        f"{bp(edge.gross_per_bar(bars_held))} per bar before costs if held {bars_held:,.0f} bars"
    )
