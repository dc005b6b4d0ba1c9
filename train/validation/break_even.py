"""Break-even cost of an account: the cost per side at which it earns as much as equal weight.

This is a first-order estimate that does not trade again. The orders keep their size relative to equity, and only their
cost changes. A step then multiplies equity by its gross return and by one minus the cost of its orders:

    equity_(t+1) = equity_t * gross_t * (1 - cost * traded_t),    traded_t = turnover_t / (equity_(t+1) + paid_t)

Everything except `cost` is known from the record; `paid` is fees plus slippage. The log growth is exact in the cost as
long as the orders stay the same. This nearly holds for a policy that observes weights and sizes its orders relative to
equity. Two effects are ignored: at a different cost, the weights differ by the costs paid, and an order near the
venue's minimum may be filled instead of dropped, or vice versa.

Equal weight stays as recorded, including its single entry fee. The excess therefore falls with the cost and has one
zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_COST = 1.0  # largest cost, as a fraction of notional
LEAST_TURNOVER = 1e-9  # multiple of equity; an account that trades less has no break-even cost


@dataclass(frozen=True)
class TradedSegment:
    """Recorded equity, turnover and fees of one segment."""

    equity: np.ndarray  # (n + 1,) quote
    benchmark_equity: np.ndarray  # (n + 1,) quote; the first value is not used, because accounts start with equity[0]
    turnover: np.ndarray  # (n,) quote, traded notional
    fees: np.ndarray  # (n,) quote


@dataclass(frozen=True)
class GrowthByCost:
    """Log growth of an account as a function of the cost per side, with fixed orders."""

    gross: float  # log growth at no cost
    traded: np.ndarray  # (n,) notional over equity before costs, for the steps with orders
    benchmark: float  # log growth of equal weight, as recorded

    def at(self, cost: float) -> float:
        """Return the log growth at `cost`, a fraction of notional; -inf if the costs of a step consume all equity."""
        kept = 1.0 - cost * self.traded
        return self.gross + float(np.log(kept).sum()) if (kept > 0.0).all() else -math.inf

    def excess(self, cost: float) -> float:
        """Return the log growth at `cost` minus that of equal weight."""
        return self.at(cost) - self.benchmark


def growth_by_cost(segments: Sequence[TradedSegment], slippage_rate: float) -> GrowthByCost:
    """Return the growth function of an account from its segments; slippage is a fraction of notional."""
    gross, benchmark, traded = 0.0, 0.0, []
    for s in segments:
        before_costs = s.equity[1:] + s.fees + slippage_rate * s.turnover
        is_alive = (s.equity[:-1] > 0.0) & (before_costs > 0.0)
        gross += float(np.log(before_costs[is_alive] / s.equity[:-1][is_alive]).sum())
        benchmark += math.log(max(float(s.benchmark_equity[-1]), 1e-12) / float(s.equity[0]))
        traded.append(s.turnover[is_alive] / before_costs[is_alive])
    every = np.concatenate(traded) if traded else np.empty(0)
    return GrowthByCost(gross, every[every > 0.0], benchmark)


def break_even_cost(segments: Sequence[TradedSegment], slippage_rate: float) -> float:
    """Return the cost per side, fee plus slippage, at which the excess log growth over equal weight is 0.

    The cost is found by bisection and is a fraction of notional: 0.003 is 30 bp. It is negative if the account is
    behind equal weight even without costs. It is clipped to [-1, 1]. Accounts that rarely trade can reach these limits.
    It is nan if the account did not trade or lost everything.
    """
    growth = growth_by_cost(segments, slippage_rate)
    if not (growth.traded.sum() > LEAST_TURNOVER and math.isfinite(growth.excess(0.0))):
        return math.nan
    low, high = -MOST_COST, MOST_COST
    if growth.excess(low) <= 0.0 or growth.excess(high) >= 0.0:
        return low if growth.excess(low) <= 0.0 else high
    while (middle := 0.5 * (low + high)) not in (low, high):
        low, high = (middle, high) if growth.excess(middle) > 0.0 else (low, middle)
    return middle
