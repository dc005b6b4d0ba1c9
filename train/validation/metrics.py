"""What an account did, as numbers: pure functions on per-bar equity and returns.

Axes: the LAST axis is time, anything in front of it is a batch (policies, splits). Returns are simple returns of one
bar. `counted` (..., n) says which returns are real; the others are padding or the step from one segment to the next,
and whatever they hold is ignored. Crypto trades every day, so a year is 365 days of `86_400 / bar_seconds` bars.

A figure that is not defined for the input (no returns, no variance, beyond float range) is nan and stays nan; nothing
is replaced by 0. A counted return that is not finite makes every figure of its account's returns nan. One case looks
undefined and is not: an account at 0 that stays there has lost everything and goes on returning 0, so that ruin is
never left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from train.records.account import Metrics

# Returns that differ by rounding only: their spread relative to the largest is this small, and its reciprocal would
# look like a magnificent Sharpe ratio. A running maximum is reached again when wealth is this close to it.
LEAST_RELATIVE_SPREAD = 1e-9
TAIL = 0.05  # share of the worst bars in VaR and CVaR


@dataclass(frozen=True)
class MetricsBatch:
    """The figures of `Metrics`, each an array over the batch; `bars` and `trades` are int64."""

    bars: np.ndarray
    total_return: np.ndarray
    annual_return: np.ndarray
    volatility: np.ndarray
    sharpe: np.ndarray
    sortino: np.ndarray
    max_drawdown: np.ndarray
    turnover: np.ndarray
    fees: np.ndarray
    trades: np.ndarray
    exposure: np.ndarray
    calmar: np.ndarray
    max_drawdown_bars: np.ndarray
    value_at_risk: np.ndarray
    conditional_value_at_risk: np.ndarray
    hit_rate: np.ndarray

    def at(self, *index: int) -> Metrics:
        """One account's figures as plain numbers."""
        return Metrics(**{field.name: getattr(self, field.name)[index].item() for field in fields(self)})


# ----------------------------------------------------------------------------------------------- from equity to returns
def bar_returns(equity: ArrayLike) -> np.ndarray:
    """(..., n) simple returns of (..., n + 1) equity; 0 from 0 to 0, nan or infinite from 0 to anything else."""
    value = np.asarray(equity, dtype=np.float64)
    before, after = value[..., :-1], value[..., 1:]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where((before == 0.0) & (after == 0.0), 0.0, after / before - 1.0)


def joined_returns(equities: Sequence[ArrayLike]) -> np.ndarray:
    """(n,) returns of several accounts one after the other; the step from one account to the next is no return."""
    return np.concatenate([bar_returns(equity) for equity in equities]) if equities else np.empty(0)


def total_return(returns: ArrayLike, counted: ArrayLike | None = None) -> np.ndarray:
    """Compounded return of the whole period; nan without returns."""
    r, _, n = _counted(returns, counted)
    with np.errstate(over="ignore", invalid="ignore"):
        return _finite(np.prod(1.0 + r, axis=-1) - 1.0, n > 0)


def annual_return(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Compounded return per year; nan without returns, when the account went negative, or beyond float range."""
    growth = 1.0 + total_return(returns, counted)
    n = _counted(returns, counted)[2]
    with np.errstate(invalid="ignore", over="ignore"):
        yearly = np.float_power(np.where(growth >= 0.0, growth, np.nan), bars_per_year / np.maximum(n, 1))
    return _finite(yearly - 1.0)


def volatility(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Standard deviation (n - 1) per year; nan with fewer than 2 returns."""
    return _finite(_spread(*_counted(returns, counted)) * np.sqrt(bars_per_year))


def sharpe(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Mean over standard deviation (n - 1), times sqrt(bars per year); nan where the returns do not vary."""
    r, c, n = _counted(returns, counted)
    spread = _spread(r, c, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        varies = spread > LEAST_RELATIVE_SPREAD * np.abs(r).max(axis=-1, initial=0.0)
        return _finite(_mean(r, n) / spread * np.sqrt(bars_per_year), varies)


def sortino(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Mean over downside deviation (root mean square of the negative returns over ALL bars); nan without a loss."""
    r, _, n = _counted(returns, counted)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        downside = np.sqrt(_mean(np.minimum(r, 0.0) ** 2, n))
        return _finite(_mean(r, n) / downside * np.sqrt(bars_per_year), downside > 0.0)


# ---------------------------------------------------------------------------------------------------- drawdown and tail
def max_drawdown(returns: ArrayLike, counted: ArrayLike | None = None) -> np.ndarray:
    """Largest loss from a running maximum (the start included), as a positive fraction; nan without returns.

    Above 1 only for an account that went negative.
    """
    r, _, n = _counted(returns, counted)
    wealth, peak = _wealth_and_peak(r)
    with np.errstate(invalid="ignore"):
        return _finite((1.0 - wealth / peak).max(axis=-1, initial=0.0), n > 0)


def max_drawdown_bars(returns: ArrayLike, counted: ArrayLike | None = None) -> np.ndarray:
    """Longest run of bars whose close is below the running maximum (the start included); nan without returns.

    A drawdown that the data ends in counts with the bars it has lasted so far. The bar that reaches the old maximum
    again is not below it: down for one bar and back on the next is a run of 1.
    """
    r, c, n = _counted(returns, counted)
    wealth, peak = _wealth_and_peak(r)
    bar = np.cumsum(c, axis=-1)
    is_at_peak = wealth >= peak * (1.0 - LEAST_RELATIVE_SPREAD)
    last_peak = np.maximum.accumulate(np.where(is_at_peak, bar, 0), axis=-1)
    longest = (bar - last_peak).max(axis=-1, initial=0).astype(np.float64)
    return _finite(longest, (n > 0) & np.isfinite(wealth).all(axis=-1))


def calmar(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Annual return over maximum drawdown; nan without a drawdown."""
    drawdown = max_drawdown(returns, counted)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _finite(annual_return(returns, bars_per_year, counted) / drawdown, drawdown > 0.0)


def value_at_risk(returns: ArrayLike, tail: float = TAIL, counted: ArrayLike | None = None) -> np.ndarray:
    """The `tail` quantile of one bar's returns, interpolated linearly; a loss is negative, as in empyrical.

    Historical: no distribution is assumed. nan without returns.
    """
    r, c, n = _counted(returns, counted)
    ordered = _ascending(r, c)
    place = (n - 1) * tail
    below = np.maximum(np.floor(place), 0).astype(np.int64)
    low, high = (_take(ordered, np.clip(i, 0, np.maximum(n - 1, 0))) for i in (below, below + 1))
    with np.errstate(invalid="ignore"):
        return _finite(low + (high - low) * (place - below), (n > 0) & ~np.isnan(r).any(axis=-1))


def conditional_value_at_risk(returns: ArrayLike, tail: float = TAIL, counted: ArrayLike | None = None) -> np.ndarray:
    """Mean of the `floor((n - 1) * tail) + 1` lowest returns of one bar; a loss is negative, as in empyrical."""
    r, c, n = _counted(returns, counted)
    last = np.maximum((n - 1) * tail, 0.0).astype(np.int64)
    with np.errstate(invalid="ignore"):
        lowest = _take(np.cumsum(_ascending(r, c), axis=-1), last) / (last + 1)
    return _finite(lowest, (n > 0) & ~np.isnan(r).any(axis=-1))


def hit_rate(returns: ArrayLike, counted: ArrayLike | None = None) -> np.ndarray:
    """Positive returns among those that are not 0: bars out of the market count neither way; nan when all are."""
    r, _, _ = _counted(returns, counted)
    n_moves = np.count_nonzero(r, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _finite(np.count_nonzero(r > 0.0, axis=-1) / n_moves, ~np.isnan(r).any(axis=-1))


# ---------------------------------------------------------------------------------------------------------- all at once
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
    batch = measure_batch(
        join_points(equities),
        bars_per_year,
        segment=segment_ids([np.shape(equity)[-1] for equity in equities]),
        turnover_notional=join_steps(turnover_notional) if turnover_notional else None,
        fees_quote=join_steps(fees_quote) if fees_quote else None,
        trades=join_steps(trades) if trades else None,
        exposure=join_points(exposure) if exposure else None,
    )
    return batch.at()


def measure_batch(
    equity: ArrayLike,
    bars_per_year: float,
    *,
    segment: ArrayLike | None = None,
    turnover_notional: ArrayLike | None = None,
    fees_quote: ArrayLike | None = None,
    trades: ArrayLike | None = None,
    exposure: ArrayLike | None = None,
) -> MetricsBatch:
    """The figures of many accounts at once; the same numbers as `measure` of each, in arrays of the leading shape.

    Works on about ten arrays of equity's size at a time. `join_points`, `join_steps`, `segment_ids` and `pad_rows`
    build the arguments from lists of segments.

    Args:
        equity: (..., T) quote, T points in time; each segment's first point is before its first trade.
        bars_per_year: from the real bar spacing.
        segment: (T,) or (..., T) number of the segment a point belongs to, negative where a row is padded; without
            it every row is one segment. A return counts where both its ends belong to the same segment.
        turnover_notional: (..., T - 1) quote traded on the way to each point but the first; 0 where not given.
        fees_quote: (..., T - 1) quote paid, likewise.
        trades: (..., T - 1) orders filled, likewise.
        exposure: (..., T) share of equity in coins.
    """
    value = np.asarray(equity, dtype=np.float64)
    number = np.broadcast_to(0 if segment is None else np.asarray(segment), value.shape)
    is_point, is_step = number >= 0, (number[..., 1:] == number[..., :-1]) & (number[..., 1:] >= 0)
    r = bar_returns(value)
    n_points = np.count_nonzero(is_point, axis=-1)
    mean_equity = _mean(np.where(is_point, value, 0.0), n_points)
    known_exposure = np.full(value.shape, np.nan) if exposure is None else np.asarray(exposure, dtype=np.float64)
    return MetricsBatch(
        bars=np.asarray(np.count_nonzero(is_step, axis=-1)),
        total_return=total_return(r, is_step),
        annual_return=annual_return(r, bars_per_year, is_step),
        volatility=volatility(r, bars_per_year, is_step),
        sharpe=sharpe(r, bars_per_year, is_step),
        sortino=sortino(r, bars_per_year, is_step),
        max_drawdown=max_drawdown(r, is_step),
        turnover=_ratio(_total(turnover_notional, is_step), mean_equity),
        fees=_ratio(_total(fees_quote, is_step), mean_equity),
        trades=np.asarray(_total(trades, is_step)).astype(np.int64),
        exposure=_finite(_mean(np.where(is_point, known_exposure, 0.0), n_points)),
        calmar=calmar(r, bars_per_year, is_step),
        max_drawdown_bars=max_drawdown_bars(r, is_step),
        value_at_risk=value_at_risk(r, counted=is_step),
        conditional_value_at_risk=conditional_value_at_risk(r, counted=is_step),
        hit_rate=hit_rate(r, is_step),
    )


def join_points(columns: Sequence[ArrayLike]) -> np.ndarray:
    """(..., T) one after the other of (..., n_i + 1): equity or exposure of an account's segments."""
    return np.concatenate([np.asarray(c, np.float64) for c in columns], axis=-1) if columns else np.empty(0)


def join_steps(columns: Sequence[ArrayLike]) -> np.ndarray:
    """(..., T - 1) of (..., n_i): turnover, fees or trades of an account's segments, 0 from one to the next."""
    spaced = [_with_seam(np.asarray(column, dtype=np.float64)) for column in columns]
    return np.concatenate(spaced, axis=-1)[..., :-1] if spaced else np.empty(0)


def segment_ids(lengths: Sequence[int]) -> np.ndarray:
    """(T,) number of the segment each of the joined points belongs to; `lengths` in points."""
    return np.repeat(np.arange(len(lengths)), np.asarray(lengths, dtype=np.int64))


def pad_rows(rows: Sequence[ArrayLike], fill: float = np.nan) -> np.ndarray:
    """(P, T) of P rows of different lengths, filled up at their ends; pad segment numbers with -1."""
    arrays = [np.asarray(row) for row in rows]
    width = max((a.size for a in arrays), default=0)
    padded = [np.pad(a, (0, width - a.size), constant_values=fill) for a in arrays]
    return np.stack(padded) if padded else np.empty((0, 0))


def _with_seam(steps: np.ndarray) -> np.ndarray:
    return np.concatenate([steps, np.zeros((*steps.shape[:-1], 1))], axis=-1)


def _counted(returns: ArrayLike, counted: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns with 0 where they do not count, which ones count, both (..., n), and how many (...)."""
    r = np.asarray(returns, dtype=np.float64)
    c = np.ones(r.shape, dtype=bool) if counted is None else np.broadcast_to(np.asarray(counted, dtype=bool), r.shape)
    return np.where(c, np.where(np.isfinite(r), r, np.nan), 0.0), c, np.asarray(np.count_nonzero(c, axis=-1))


def _mean(values: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Sum over n; nan where n is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(values.sum(axis=-1) / n)


def _spread(r: np.ndarray, counted: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Standard deviation (n - 1) of the counted returns; nan with fewer than 2."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        deviation = np.where(counted, r - _mean(r, n)[..., None], 0.0)
        return np.where(n > 1, np.sqrt((deviation**2).sum(axis=-1) / (n - 1)), np.nan)


def _wealth_and_peak(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value (..., n) of an account that began with 1, and its maximum so far, the beginning included."""
    with np.errstate(over="ignore", invalid="ignore"):
        wealth = np.cumprod(1.0 + r, axis=-1)
        return wealth, np.maximum(np.maximum.accumulate(wealth, axis=-1), 1.0)


def _ascending(r: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Counted returns from the lowest up, the others behind them."""
    return np.sort(np.where(counted, r, np.inf), axis=-1)


def _take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The entry at `index` (...) of each row; nan where rows are empty."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    return np.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def _finite(values: np.ndarray, is_defined: np.ndarray | np.bool | bool = True) -> np.ndarray:
    return np.where(np.isfinite(values) & is_defined, values, np.nan)[()]


def _total(column: ArrayLike | None, is_step: np.ndarray) -> np.ndarray:
    """Sum of (..., T - 1) over the steps that count; 0 without a column."""
    if column is None:
        return np.zeros(is_step.shape[:-1])
    values = np.asarray(column, dtype=np.float64)
    if values.shape != is_step.shape:
        raise ValueError(f"one entry per return is expected, shape {is_step.shape}; received {values.shape}")
    return np.where(is_step, values, 0.0).sum(axis=-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(_finite(np.asarray(part / whole), whole > 0.0))
