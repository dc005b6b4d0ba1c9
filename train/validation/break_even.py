"""The break-even fee of an account: the cost of one side of a trade at which it earns as much as equal weight.

First order: the account is not traded again. Its orders stay what they were as shares of the account, and only what
they cost changes. A step then multiplies equity by its gross return and by one minus the cost of its orders:

    equity_(t+1) = equity_t * gross_t * (1 - cost * traded_t),    traded_t = turnover_t / (equity_(t+1) + paid_t)

with everything but `cost` known from the record: `paid` is fees and slippage. So log growth is exact in the cost as
long as the orders stay, as they nearly do under a policy that sees weights and sizes its orders by equity. Left out: at
another cost the weights differ by the costs paid, and an order near the venue's minimum may be filled or dropped.

Equal weight stays as it was recorded, its one entry fee included, so that the excess falls with the cost and is 0 once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_COST = 1.0  # of notional
LEAST_TURNOVER = 1e-9  # of equity: an account that trades less has no break-even fee


@dataclass(frozen=True)
class TradedSegment:
    """What the record of one segment says of its costs."""

    equity: np.ndarray  # (n + 1,) quote
    benchmark_equity: np.ndarray  # (n + 1,) quote, the first entry is not used: accounts begin with equity[0]
    turnover: np.ndarray  # (n,) quote, traded notional
    fees: np.ndarray  # (n,) quote


@dataclass(frozen=True)
class GrowthByCost:
    """Log growth of an account as a function of the cost of one side, its orders fixed."""

    gross: float  # log growth at no cost
    traded: np.ndarray  # (n,) notional over equity before costs, of the steps with orders
    benchmark: float  # log growth of equal weight, as recorded

    def at(self, cost: float) -> float:
        """Log growth at `cost`, a fraction of notional; -inf from where a step's costs take everything."""
        kept = 1.0 - cost * self.traded
        return self.gross + float(np.log(kept).sum()) if (kept > 0.0).all() else -math.inf

    def excess(self, cost: float) -> float:
        """The same, minus equal weight's."""
        return self.at(cost) - self.benchmark


def growth_by_cost(segments: Sequence[TradedSegment], slippage_rate: float) -> GrowthByCost:
    """From the records of all segments of an account; slippage is a fraction of notional, as the account paid it."""
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
    """The cost of one side, fee and slippage together, at which the excess log growth over equal weight is 0.

    Found by bisection. A fraction of notional: 0.003 is 30 bp. Below 0 where the account is behind equal weight even
    without costs: that much it would have to be paid. Cut to -1 .. 1, which accounts reach that hardly trade. nan where
    one did not trade, or lost everything.
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
