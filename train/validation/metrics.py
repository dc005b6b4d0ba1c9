"""What an account did, as numbers: pure functions on per-bar equity and returns.

Axes: the LAST axis is time, anything in front of it is a batch (policies, splits). Returns are simple returns of one
bar. A figure that is not defined for the input (no returns, no variance, beyond float range) is nan and stays nan;
nothing is replaced by 0. Crypto trades every day, so a year is 365 days of `86_400 / bar_seconds` bars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

# Returns that differ by rounding only: their spread relative to the largest is this small, and its reciprocal would
# look like a magnificent Sharpe ratio.
LEAST_RELATIVE_SPREAD = 1e-9


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
    turnover: float  # traded notional over mean equity, all segments together
    fees: float  # paid, over mean equity, all segments together
    trades: int
    exposure: float = float("nan")  # mean share of equity in coins; nan where it was not kept


def bar_returns(equity: ArrayLike) -> np.ndarray:
    """(..., n) simple returns of (..., n + 1) equity."""
    value = np.asarray(equity, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return value[..., 1:] / value[..., :-1] - 1.0


def joined_returns(equities: Sequence[ArrayLike]) -> np.ndarray:
    """(n,) returns of several accounts one after the other; the step from one account to the next is no return."""
    return np.concatenate([bar_returns(equity) for equity in equities]) if equities else np.empty(0)


def total_return(returns: ArrayLike) -> np.ndarray:
    """Compounded return of the whole period; nan without returns."""
    r = np.asarray(returns, dtype=np.float64)
    return np.where(_length(r) > 0, np.prod(1.0 + r, axis=-1) - 1.0, np.nan)[()]


def annual_return(returns: ArrayLike, bars_per_year: float) -> np.ndarray:
    """Compounded return per year; nan without returns, when the account went negative, or beyond float range."""
    growth = 1.0 + total_return(returns)
    power = bars_per_year / max(_length(returns), 1)
    with np.errstate(invalid="ignore", over="ignore"):
        yearly = np.float_power(np.where(growth >= 0.0, growth, np.nan), power)
    return np.where(np.isfinite(yearly), yearly - 1.0, np.nan)[()]


def volatility(returns: ArrayLike, bars_per_year: float) -> np.ndarray:
    """Standard deviation (n - 1) per year; nan with fewer than 2 returns."""
    return _spread(returns) * np.sqrt(bars_per_year)


def sharpe(returns: ArrayLike, bars_per_year: float) -> np.ndarray:
    """Mean over standard deviation (n - 1), times sqrt(bars per year); nan where the returns do not vary."""
    r = np.asarray(returns, dtype=np.float64)
    if _length(r) < 2:
        return np.full(r.shape[:-1], np.nan)[()]
    spread = _spread(r)
    varies = spread > LEAST_RELATIVE_SPREAD * np.abs(r).max(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(varies, r.mean(axis=-1) / spread * np.sqrt(bars_per_year), np.nan)[()]


def sortino(returns: ArrayLike, bars_per_year: float) -> np.ndarray:
    """Mean over downside deviation (root mean square of the negative returns over ALL bars); nan without a loss."""
    r = np.asarray(returns, dtype=np.float64)
    if _length(r) < 1:
        return np.full(r.shape[:-1], np.nan)[()]
    downside = np.sqrt(np.mean(np.minimum(r, 0.0) ** 2, axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(downside > 0.0, r.mean(axis=-1) / downside * np.sqrt(bars_per_year), np.nan)[()]


def max_drawdown(returns: ArrayLike) -> np.ndarray:
    """Largest loss from a running maximum (the start included), as a positive fraction; nan without returns."""
    r = np.asarray(returns, dtype=np.float64)
    if _length(r) < 1:
        return np.full(r.shape[:-1], np.nan)[()]
    wealth = np.cumprod(1.0 + r, axis=-1)
    peak = np.maximum(np.maximum.accumulate(wealth, axis=-1), 1.0)
    return (1.0 - wealth / peak).max(axis=-1)[()]


def measure(
    equities: Sequence[ArrayLike],
    bars_per_year: float,
    *,
    turnover_notional: Sequence[ArrayLike] = (),
    fees_quote: Sequence[ArrayLike] = (),
    trades: Sequence[ArrayLike] = (),
    exposure: Sequence[ArrayLike] = (),
) -> Metrics:
    """All figures of an account that traded several segments, one entry per segment in each list.

    Args:
        equities: (n_i + 1,) quote, the first entry before the first trade.
        bars_per_year: from the real bar spacing.
        turnover_notional: (n_i,) quote traded on each bar.
        fees_quote: (n_i,) quote paid on each bar.
        trades: (n_i,) orders filled on each bar.
        exposure: (n_i + 1,) share of equity in coins.
    """
    r = joined_returns(equities)
    values = [np.asarray(equity, dtype=np.float64) for equity in equities]
    mean_equity = float(np.mean(np.concatenate(values))) if values else float("nan")
    return Metrics(
        bars=int(r.size),
        total_return=float(total_return(r)),
        annual_return=float(annual_return(r, bars_per_year)),
        volatility=float(volatility(r, bars_per_year)),
        sharpe=float(sharpe(r, bars_per_year)),
        sortino=float(sortino(r, bars_per_year)),
        max_drawdown=float(max_drawdown(r)),
        turnover=_ratio(_total(turnover_notional), mean_equity),
        fees=_ratio(_total(fees_quote), mean_equity),
        trades=int(_total(trades)),
        exposure=float(np.mean(np.concatenate([np.asarray(e, np.float64) for e in exposure]))) if exposure else np.nan,
    )


def _spread(returns: ArrayLike) -> np.ndarray:
    r = np.asarray(returns, dtype=np.float64)
    return np.std(r, axis=-1, ddof=1) if _length(r) > 1 else np.full(r.shape[:-1], np.nan)[()]


def _length(returns: ArrayLike) -> int:
    return np.asarray(returns).shape[-1]


def _total(columns: Sequence[ArrayLike]) -> float:
    return float(sum(np.sum(np.asarray(column, dtype=np.float64)) for column in columns))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else float("nan")
