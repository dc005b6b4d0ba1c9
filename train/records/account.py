"""The figures of an account."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Mean share of equity in coins. A Sharpe ratio does not see the size of positions: 10 dollars that rose would outrank
# every account that was really invested.
LEAST_EXPOSURE = 0.01


@dataclass(frozen=True)
class Metrics:
    """The figures of one account over the bars it traded; rates are fractions, 0.01 is 1 %."""

    bars: int  # returns counted
    total_return: float
    annual_return: float
    volatility: float  # per year
    sharpe: float  # per year, no risk-free rate
    sortino: float  # per year, target 0
    max_drawdown: float  # fraction of the running maximum, 0 or more
    turnover: float = math.nan  # traded notional over mean equity, all segments together
    fees: float = math.nan  # paid, over mean equity, all segments together
    trades: int | float = math.nan  # a count
    exposure: float = math.nan  # mean share of equity in coins; nan where it was not kept
    calmar: float = math.nan  # annual return over maximum drawdown
    max_drawdown_bars: float = math.nan  # a count: longest run of bars below the running maximum
    value_at_risk: float = math.nan  # return of one bar at the 5 % quantile: a loss is negative
    conditional_value_at_risk: float = math.nan  # mean return of the worst 5 % of bars: a loss is negative
    hit_rate: float = math.nan  # positive returns among those that are not 0
