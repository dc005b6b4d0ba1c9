"""What a data set can show at all: the edge that pays the costs, and the smallest edge that would be noticed."""

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
    """Rates are fractions, 0.0001 is 1 bp."""

    n_bars: int
    volatility: float  # standard deviation of one bar's return
    round_trip: float  # cost of buying and selling once, of what is traded
    bars_per_year: float
    smallest: float  # mean excess return per bar that would be noticed

    @property
    def per_year(self) -> float:
        """The smallest noticeable mean, summed over a year."""
        return self.smallest * self.bars_per_year

    @property
    def sharpe(self) -> float:
        """The smallest noticeable mean as an annualised Sharpe ratio of the excess returns; volatility cancels."""
        return self.smallest / self.volatility * math.sqrt(self.bars_per_year) if self.volatility > 0.0 else math.nan

    def gross_per_bar(self, bars_held: float) -> float:
        """The edge before costs that a trader needs who holds each position for `bars_held` bars."""
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
    """The smallest mean excess return per bar that a one-sided test on `n_bars` returns would find.

    The mean of n independent returns has the standard error sigma / sqrt(n). A test at level 1 - confidence rejects "no
    edge" above z_confidence standard errors, and does so with the probability `power` if the true mean is

        (z_confidence + z_power) * sigma / sqrt(n)

    (Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, section 2.4; z are normal quantiles, 1.645 and
    0.842). Nothing is corrected for a choice among many trials, which needs more. Returns that cluster need more, too.

    Args:
        n_bars: returns that test, trained on by nobody who is tested.
        volatility: standard deviation of the excess return of one bar, as a fraction.
        cost_per_side: fee and slippage, as a fraction of notional.
        bars_per_year: from the real bar spacing.
        confidence: one minus the level of the test.
        power: probability that the edge is found.
    """
    if n_bars < 1 or not volatility >= 0.0:
        raise ValueError(f"at least 1 bar and a volatility of 0 or more are needed; received {n_bars} and {volatility}")
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(power)
    return DetectableEdge(n_bars, volatility, 2.0 * cost_per_side, bars_per_year, z * volatility / math.sqrt(n_bars))


def market_volatility(closes: list[np.ndarray]) -> float:
    """Standard deviation of one bar's return of holding all coins alike, over several segments (n_i + 1, A).

    That is the excess return over cash of an account that is in the market, and minus the excess return over equal
    weight of one that is not. A coin counts where it has a price on both bars.
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
    """One line for the log.

    Args:
        edge: as found.
        cost_text: what one side of a trade costs, and of what parts.
        bars_held: example of a holding time, in bars.
    """

    def bp(value: float) -> str:
        return f"{value * BASIS_POINTS:.3g} bp"

    return (
        f"a round trip costs {bp(edge.round_trip)} ({cost_text} on each side). Smallest detectable edge over "
        f"{edge.n_bars:,} bars: {bp(edge.smallest)} per bar after costs (Sharpe ratio {edge.sharpe:.1f}), "
        f"{bp(edge.gross_per_bar(bars_held))} per bar before costs if held {bars_held:,.0f} bars"
    )
