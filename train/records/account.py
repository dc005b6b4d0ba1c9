"""Performance metrics of an account."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Smallest mean fraction of equity in coins. A Sharpe ratio does not depend on position size: without this limit, a
# profitable position of 10 dollars could outrank every invested account.
LEAST_EXPOSURE = 0.01


@dataclass(frozen=True)
class Metrics:
    """Performance metrics of one account over its traded bars. Rates are fractions: 0.01 is 1 %."""

    bars: int  # number of returns
    total_return: float
    annual_return: float
    volatility: float  # per year
    sharpe: float  # per year, no risk-free rate
    sortino: float  # per year, target 0
    max_drawdown: float  # fraction of the running maximum, 0 or more
    turnover: float = math.nan  # traded notional divided by mean equity, over all segments
    fees: float = math.nan  # fees paid divided by mean equity, over all segments
    trades: int | float = math.nan  # a count
    exposure: float = math.nan  # mean fraction of equity in coins; nan: not stored
    calmar: float = math.nan  # annual return divided by maximum drawdown
    max_drawdown_bars: float = math.nan  # longest run of bars below the running maximum
    value_at_risk: float = math.nan  # 5 % quantile of the returns per bar; a loss is negative
    conditional_value_at_risk: float = math.nan  # mean return of the worst 5 % of bars; a loss is negative
    hit_rate: float = math.nan  # fraction of positive returns among nonzero ones
