"""Performance metrics of an account: pure functions of per-bar equity and returns.

The LAST axis is time; leading axes are a batch (policies, splits). Returns are simple one-bar returns. The mask
`counted` (..., n) marks real returns. The others are padding or steps between segments, and their values are ignored.
Crypto trades every day, so a year is 365 days of `86_400 / bar_seconds` bars.

A metric that is undefined for the input (no returns, no variance, beyond float range) is nan and is never replaced by
0. A counted return that is not finite makes all metrics of its account's returns nan. One case is defined although it
may not look so: an account that stays at 0 has lost everything and returns 0 from then on, so ruin is never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from train.records.account import Metrics

# Relative spread below which returns differ only by rounding and have no Sharpe ratio. A running maximum counts as
# reached again if wealth is this close to it.
LEAST_RELATIVE_SPREAD = 1e-9
TAIL = 0.05  # fraction of the worst bars in VaR and CVaR


@dataclass(frozen=True)
class MetricsBatch:
    """`Metrics` of many accounts, as arrays over the batch; `bars` and `trades` are int64."""

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
        """Return the metrics of one account as plain numbers."""
        return Metrics(**{field.name: getattr(self, field.name)[index].item() for field in fields(self)})


# ----------------------------------------------------------------------------------------------- from equity to returns
def bar_returns(equity: ArrayLike) -> np.ndarray:
    """Return simple returns (..., n) of equity (..., n + 1); 0 from 0 to 0, nan or infinite from 0 to anything else."""
    value = np.asarray(equity, dtype=np.float64)
    before, after = value[..., :-1], value[..., 1:]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where((before == 0.0) & (after == 0.0), 0.0, after / before - 1.0)


def joined_returns(equities: Sequence[ArrayLike]) -> np.ndarray:
    """Return the joined returns (n,) of several accounts, without the steps between accounts."""
    return np.concatenate([bar_returns(equity) for equity in equities]) if equities else np.empty(0)


def total_return(returns: ArrayLike, counted: ArrayLike | None = None) -> np.ndarray:
    """Return the compounded return of the whole period; nan without returns."""
    r, _, n = _counted(returns, counted)
    with np.errstate(over="ignore", invalid="ignore"):
        return _finite(np.prod(1.0 + r, axis=-1) - 1.0, n > 0)


def annual_return(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Return the compounded annual return; nan without returns, for negative equity, or beyond float range."""
    growth = 1.0 + total_return(returns, counted)
    n = _counted(returns, counted)[2]
    with np.errstate(invalid="ignore", over="ignore"):
        yearly = np.float_power(np.where(growth >= 0.0, growth, np.nan), bars_per_year / np.maximum(n, 1))
    return _finite(yearly - 1.0)


def volatility(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Return the annual standard deviation (n - 1); nan with fewer than 2 returns."""
    return _finite(_spread(*_counted(returns, counted)) * np.sqrt(bars_per_year))


def sharpe(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Return mean over standard deviation (n - 1), times sqrt(bars per year); nan for constant returns."""
    r, c, n = _counted(returns, counted)
    spread = _spread(r, c, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        varies = spread > LEAST_RELATIVE_SPREAD * np.abs(r).max(axis=-1, initial=0.0)
        return _finite(_mean(r, n) / spread * np.sqrt(bars_per_year), varies)


def sortino(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Return mean over downside deviation (root mean square of negative returns over ALL bars); nan without a loss."""
    r, _, n = _counted(returns, counted)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        downside = np.sqrt(_mean(np.minimum(r, 0.0) ** 2, n))
        return _finite(_mean(r, n) / downside * np.sqrt(bars_per_year), downside > 0.0)


# ---------------------------------------------------------------------------------------------------- drawdown and tail
def max_drawdown(returns: ArrayLike, counted: ArrayLike | None = None) -> np.ndarray:
    """Return the largest loss from a running maximum, including the start, as a positive fraction; nan without returns.

    The result is above 1 only if equity became negative.
    """
    r, _, n = _counted(returns, counted)
    wealth, peak = _wealth_and_peak(r)
    with np.errstate(invalid="ignore"):
        return _finite((1.0 - wealth / peak).max(axis=-1, initial=0.0), n > 0)


def max_drawdown_bars(returns: ArrayLike, counted: ArrayLike | None = None) -> np.ndarray:
    """Return the longest run of bars below the running maximum, including the start; nan without returns.

    A drawdown that lasts until the end of the data counts with its bars so far. The bar that reaches the old maximum
    again is not below it: one bar down and the next bar back is a run of 1.
    """
    r, c, n = _counted(returns, counted)
    wealth, peak = _wealth_and_peak(r)
    bar = np.cumsum(c, axis=-1)
    is_at_peak = wealth >= peak * (1.0 - LEAST_RELATIVE_SPREAD)
    last_peak = np.maximum.accumulate(np.where(is_at_peak, bar, 0), axis=-1)
    longest = (bar - last_peak).max(axis=-1, initial=0).astype(np.float64)
    return _finite(longest, (n > 0) & np.isfinite(wealth).all(axis=-1))


def calmar(returns: ArrayLike, bars_per_year: float, counted: ArrayLike | None = None) -> np.ndarray:
    """Return annual return over maximum drawdown; nan without a drawdown."""
    drawdown = max_drawdown(returns, counted)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return _finite(annual_return(returns, bars_per_year, counted) / drawdown, drawdown > 0.0)


def value_at_risk(returns: ArrayLike, tail: float = TAIL, counted: ArrayLike | None = None) -> np.ndarray:
    """Return the `tail` quantile of one-bar returns, linearly interpolated; losses are negative, as in empyrical.

    The quantile is historical, without an assumed distribution; nan without returns.
    """
    r, c, n = _counted(returns, counted)
    ordered = _ascending(r, c)
    place = (n - 1) * tail
    below = np.maximum(np.floor(place), 0).astype(np.int64)
    low, high = (_take(ordered, np.clip(i, 0, np.maximum(n - 1, 0))) for i in (below, below + 1))
    with np.errstate(invalid="ignore"):
        return _finite(low + (high - low) * (place - below), (n > 0) & ~np.isnan(r).any(axis=-1))


def conditional_value_at_risk(returns: ArrayLike, tail: float = TAIL, counted: ArrayLike | None = None) -> np.ndarray:
    """Return the mean of the `floor((n - 1) * tail) + 1` lowest one-bar returns, as in empyrical."""
    r, c, n = _counted(returns, counted)
    last = np.maximum((n - 1) * tail, 0.0).astype(np.int64)
    with np.errstate(invalid="ignore"):
        lowest = _take(np.cumsum(_ascending(r, c), axis=-1), last) / (last + 1)
    return _finite(lowest, (n > 0) & ~np.isnan(r).any(axis=-1))


def hit_rate(returns: ArrayLike, counted: ArrayLike | None = None) -> np.ndarray:
    """Return the fraction of positive returns among nonzero ones; nan if all are 0."""
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
    """Return all metrics of an account that traded several segments; each list has one entry per segment.

    Args:
        equities: equity (n_i + 1,) in quote currency; the first entry is before the first trade.
        bars_per_year: number of bars per year at the actual bar spacing.
        turnover_notional: notional (n_i,) in quote currency traded on each bar.
        fees_quote: fees (n_i,) in quote currency paid on each bar.
        trades: number of orders (n_i,) filled on each bar.
        exposure: fraction of equity in coins (n_i + 1,).
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
    """Return the metrics of many accounts at once, equal to `measure` of each, in arrays of the leading shape.

    About ten arrays of the size of `equity` are in memory at a time. `join_points`, `join_steps`, `segment_ids` and
    `pad_rows` build the arguments from lists of segments.

    Args:
        equity: equity (..., T) in quote currency at T points; the first point of a segment is before its first trade.
        bars_per_year: number of bars per year at the actual bar spacing.
        segment: segment number (T,) or (..., T) of each point, negative for padding; None means one segment per row. A
            return counts if both its ends belong to the same segment.
        turnover_notional: notional (..., T - 1) in quote currency traded up to each point except the first; default 0.
        fees_quote: fees (..., T - 1) paid, likewise.
        trades: number of orders (..., T - 1) filled, likewise.
        exposure: fraction of equity in coins (..., T).
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
    """Join arrays (..., n_i + 1) of an account's segments, such as equity or exposure, into one (..., T)."""
    return np.concatenate([np.asarray(c, np.float64) for c in columns], axis=-1) if columns else np.empty(0)


def join_steps(columns: Sequence[ArrayLike]) -> np.ndarray:
    """Join arrays (..., n_i) of segments, such as turnover or fees, into one (..., T - 1), with 0 in between."""
    spaced = [_with_seam(np.asarray(column, dtype=np.float64)) for column in columns]
    return np.concatenate(spaced, axis=-1)[..., :-1] if spaced else np.empty(0)


def segment_ids(lengths: Sequence[int]) -> np.ndarray:
    """Return the segment number (T,) of each joined point; `lengths` are in points."""
    return np.repeat(np.arange(len(lengths)), np.asarray(lengths, dtype=np.int64))


def pad_rows(rows: Sequence[ArrayLike], fill: float = np.nan) -> np.ndarray:
    """Return P rows of different lengths as one array (P, T), padded at their ends; pad segment numbers with -1."""
    arrays = [np.asarray(row) for row in rows]
    width = max((a.size for a in arrays), default=0)
    padded = [np.pad(a, (0, width - a.size), constant_values=fill) for a in arrays]
    return np.stack(padded) if padded else np.empty((0, 0))


def _with_seam(steps: np.ndarray) -> np.ndarray:
    return np.concatenate([steps, np.zeros((*steps.shape[:-1], 1))], axis=-1)


def _counted(returns: ArrayLike, counted: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the returns with uncounted ones set to 0 (..., n), the mask of counted ones (..., n), and their number."""
    r = np.asarray(returns, dtype=np.float64)
    c = np.ones(r.shape, dtype=bool) if counted is None else np.broadcast_to(np.asarray(counted, dtype=bool), r.shape)
    return np.where(c, np.where(np.isfinite(r), r, np.nan), 0.0), c, np.asarray(np.count_nonzero(c, axis=-1))


def _mean(values: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the sum divided by n; nan if n is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(values.sum(axis=-1) / n)


def _spread(r: np.ndarray, counted: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return the standard deviation (n - 1) of the counted returns; nan with fewer than 2."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        deviation = np.where(counted, r - _mean(r, n)[..., None], 0.0)
        return np.where(n > 1, np.sqrt((deviation**2).sum(axis=-1) / (n - 1)), np.nan)


def _wealth_and_peak(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the value (..., n) of an account that started at 1, and its running maximum, including the start."""
    with np.errstate(over="ignore", invalid="ignore"):
        wealth = np.cumprod(1.0 + r, axis=-1)
        return wealth, np.maximum(np.maximum.accumulate(wealth, axis=-1), 1.0)


def _ascending(r: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the counted returns in ascending order, followed by the others."""
    return np.sort(np.where(counted, r, np.inf), axis=-1)


def _take(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the entry at `index` (...) of each row; nan for empty rows."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    return np.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def _finite(values: np.ndarray, is_defined: np.ndarray | np.bool | bool = True) -> np.ndarray:
    return np.where(np.isfinite(values) & is_defined, values, np.nan)[()]


def _total(column: ArrayLike | None, is_step: np.ndarray) -> np.ndarray:
    """Return the sum of (..., T - 1) over the counted steps; 0 without a column."""
    if column is None:
        return np.zeros(is_step.shape[:-1])
    values = np.asarray(column, dtype=np.float64)
    if values.shape != is_step.shape:
        raise ValueError(f"the array must have one value per return, shape {is_step.shape}; received {values.shape}")
    return np.where(is_step, values, 0.0).sum(axis=-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(_finite(np.asarray(part / whole), whole > 0.0))
