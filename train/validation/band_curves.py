"""Curves of a band policy (edges, held weight and price of every coin), downsampled to the resolution of a chart.

These are pure functions on arrays. `train.report.band_picture` draws the curves, as SVG on the page and as a PNG file.

A chart has a few hundred columns, whereas a study has tens of thousands of bars, so each column stands for many bars.
It shows the mean of the edges, the mean and range of the weight, and the last price. Subsampling is not used, because
it would miss short trades and create aliasing patterns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

MOST_COLUMNS = 400
CLOSE_UP_BARS = 300


@dataclass(frozen=True)
class BandCurves:
    """One account of a band policy, or several joined. Weights are measured after the bar's orders."""

    tickers: tuple[str, ...]
    time_s: np.ndarray  # (M,) UTC, bar close
    segment: np.ndarray  # (M,) number of the account that a row belongs to; accounts start in cash
    price: np.ndarray  # (M, A) in quote currency
    lo: np.ndarray  # (M, A) lower edge targeted by the order filled at this bar; nan on an account's first bar
    hi: np.ndarray  # (M, A) upper edge
    weight: np.ndarray  # (M, A) fraction of equity in the coin
    best_lo: np.ndarray | None = None  # (M, A) edges of the best band, which is known only for a planted market
    best_hi: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Reject arrays whose shapes do not match."""
        expected = (len(self.time_s), len(self.tickers))
        for name in ("price", "lo", "hi", "weight", "best_lo", "best_hi"):
            values = getattr(self, name)
            if values is not None and values.shape != expected:
                raise ValueError(f"{name} must have shape {expected}, bars and coins; received {values.shape}")

    @property
    def starts(self) -> np.ndarray:
        """Rows at which an account starts."""
        return np.flatnonzero(np.diff(self.segment, prepend=self.segment[:1] - 1))

    def rows(self, rows: slice | np.ndarray) -> BandCurves:
        """Return the curves on these rows only."""
        names = ("time_s", "segment", "price", "lo", "hi", "weight", "best_lo", "best_hi")
        known = {name: getattr(self, name) for name in names}
        return replace(self, **{name: None if values is None else values[rows] for name, values in known.items()})


@dataclass(frozen=True)
class CoinColumns:
    """One coin in B columns of a chart."""

    row: np.ndarray  # (B,) last row of the column
    price: np.ndarray  # (B,) price on that row; nan if the coin has none
    lo: np.ndarray  # (B,) mean over the column's bars; nan if none is known
    hi: np.ndarray
    weight: np.ndarray  # (B,) mean over the column's bars
    weight_low: np.ndarray  # (B,) minimum over the column's bars
    weight_high: np.ndarray
    best_lo: np.ndarray | None = None  # also None if many bars share a column, because a mean of steps is not a band
    best_hi: np.ndarray | None = None


def coin_columns(curves: BandCurves, coin: int, most: int = MOST_COLUMNS) -> CoinColumns:
    """Reduce one coin's curves to at most `most` columns with nearly equal numbers of bars."""
    n = len(curves.time_s)
    first = np.unique(np.linspace(0, n, min(n, most), endpoint=False).astype(np.int64))
    last = np.append(first[1:], n) - 1
    weight, price = curves.weight[:, coin], curves.price[last, coin]

    def mean(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None or n > most else values[:, coin]

    return CoinColumns(
        row=last,
        price=np.where(price > 0.0, price, np.nan),
        lo=_mean_of_known(curves.lo[:, coin], first),
        hi=_mean_of_known(curves.hi[:, coin], first),
        weight=_mean_of_known(weight, first),
        weight_low=np.minimum.reduceat(weight, first),
        weight_high=np.maximum.reduceat(weight, first),
        best_lo=mean(curves.best_lo),
        best_hi=mean(curves.best_hi),
    )


def shown_coins(curves: BandCurves, most: int) -> list[int]:
    """Return the coins whose weights moved most, which are drawn, in their original order."""
    moved = np.abs(np.diff(curves.weight, axis=0)).sum(axis=0)
    return sorted(np.argsort(-moved, kind="stable")[:most].tolist())


def highest_share(curves: BandCurves, coin: int) -> float:
    """Return the upper axis limit for a coin's weight, which is the next multiple of 25 % above all drawn values."""
    drawn = (curves.hi, curves.weight, curves.best_hi)
    most = max(float(np.nanmax(values[:, coin], initial=0.0)) for values in drawn if values is not None)
    return min(max(math.ceil(most * 4.0 - 1e-9), 1) / 4.0, 1.0)


def close_up(curves: BandCurves, coin: int, n_bars: int = CLOSE_UP_BARS) -> slice:
    """Return the `n_bars` rows of one account in which the coin's weight moved most, or all rows if there are fewer."""
    best, most = slice(0, 0), -1.0
    ends = np.append(curves.starts[1:], len(curves.time_s))
    for start, end in zip(curves.starts.tolist(), ends.tolist(), strict=True):
        length = min(n_bars, end - start)
        weight = curves.weight[start:end, coin]
        total = np.append(0.0, np.cumsum(np.abs(np.diff(weight, prepend=weight[:1]))))  # (end - start + 1,)
        moved = total[length:] - total[:-length]
        if moved.max() > most:
            first = start + int(moved.argmax())
            best, most = slice(first, first + length), float(moved.max())
    return best


def _mean_of_known(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the mean (B,) of each run of rows, ignoring nan. `first` holds the starts; all-nan runs give nan."""
    is_known = np.isfinite(values)
    n_known = np.add.reduceat(is_known.astype(np.float64), first)
    total = np.add.reduceat(np.where(is_known, values, 0.0), first)
    return np.where(n_known > 0.0, total / np.maximum(n_known, 1.0), np.nan)
