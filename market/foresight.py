"""Detection of look-ahead in feature columns that cannot be rebuilt, by their correlation with later bars.

Two slow series, such as a feature over the past week and the returns over the next week, always appear correlated. This
test therefore does not use returns over several bars. Each column is converted to changes: the mean of its last m
values minus the mean of the m values before, for each m in `SCALES`. The change at t is compared with single later bars
t + j for all j in 1 .. `MOST_LAGS` by FFT. A column that holds the return of the next k bars gains bar t + k when it
moves from t - 1 to t, so its changes reveal that bar at lag k.

There are two targets (`surprises`): the log return of a bar and its absolute value. Each is divided by the volatility
of earlier bars and clipped at `CLIP`. The part that a regression on earlier bars and the calendar predicts is then
subtracted. For a column computed from past bars, the products of its changes with later surprises are martingale
differences, however slow the column is. Correlation times sqrt(n) is then approximately standard normal. The limit uses
a Bonferroni correction with a false-alarm rate of `FALSE_ALARM` over ALL columns, coins, scales, lags and targets of
the dataset. Real bars are not perfectly unpredictable, so a correlation must also exceed `LEAST`.

docs/lookahead.md lists the detectable leaks by lag, noise and number of bars.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from msgspec import structs
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter
from scipy.special import ndtri

from market.dataset import NO_COIN, Dataset
from market.names import counted

FALSE_ALARM = 0.01  # probability that at least one column of a dataset without leaks is suspicious
MARGIN = 1.2  # multiplies the limit, because the size of a real surprise depends slightly on the past
SCALES = (1, 16, 128)  # bars
MOST_LAGS = 2_048  # bars ahead
NEAR_BARS = 5
TARGETS = ("return", "absolute return")
LEAST = {
    "return": (0.15, 0.03),
    "absolute return": (0.15, 0.1),
}  # minimum correlations up to NEAR_BARS ahead, and beyond
CLIP = 4.0
VOLATILITY_BARS = 48  # mean age of the squared returns in a volatility
LEAST_VOLATILITY = 0.1  # lower bound of the divisor, as a fraction of the coin's mean volatility
OWN_LAGS, TRAILING_BARS = range(1, 6), (12, 48, 288)  # regressors in addition to the calendar
CALENDAR_S, HARMONICS = (86_400, 604_800), range(1, 5)
LEAST_BARS = 100
COLUMNS_AT_ONCE = 8


@dataclass(frozen=True)
class Foresight:
    """Correlation of a column with a later bar."""

    column: str
    coin: str
    target: str  # one of TARGETS
    lag: int  # bars ahead
    scale: int  # one of SCALES, bars
    correlation: float
    limit: float  # suspicious if the absolute correlation is larger
    n_rows: int

    @property
    def excess(self) -> float:
        """Absolute correlation divided by its limit."""
        return abs(self.correlation) / self.limit

    @property
    def is_suspicious(self) -> bool:
        """True if chance and past bars cannot explain the correlation."""
        return self.excess > 1.0

    def __str__(self) -> str:
        """Describe the correlation in one line."""
        return (
            f"{self.column} correlates with the {self.target} of {self.coin} {counted(self.lag, 'bar')} later: "
            f"{self.correlation:+.3f}, limit {self.limit:.3f}, {self.n_rows:,} rows"
        )


def foresight(dataset: Dataset) -> list[Foresight]:
    """Return the correlation of each column that is largest relative to its limit, most suspicious first.

    A coin's column is compared with the targets of that coin. A column that belongs to no coin is compared with every
    coin.
    """
    n_bars = len(dataset.time)
    if n_bars < LEAST_BARS:
        return []
    n_lags, coins = lags_of(n_bars), np.asarray(dataset.feature_coins)
    own = [np.flatnonzero((coins == coin) | (coins == NO_COIN)) for coin in range(len(dataset.tickers))]
    limits = _limits(n_bars, n_lags, sum(map(len, own)) * len(SCALES) * len(TARGETS) * n_lags)
    length = int(next_fast_len(n_bars + n_lags, real=True) or 0)
    windows = np.stack([_spectrum(np.repeat(np.array([1.0, -1.0], np.float32), m), length) for m in SCALES])
    best: dict[int, Foresight] = {}
    for coin, ticker in enumerate(dataset.tickers):
        targets = _spectrum(surprises(dataset, coin), length)  # (targets, frequencies)
        for at in range(0, len(own[coin]), COLUMNS_AT_ONCE):
            columns = own[coin][at : at + COLUMNS_AT_ONCE]
            changes = _spectrum(_ranks(dataset.tech[:, columns]), length)[:, None] * windows
            for column, change in zip(columns.tolist(), changes, strict=True):
                correlations = _later_correlations(change, targets, length, n_lags)  # (scales, targets, lags)
                where = np.unravel_index(np.argmax(np.abs(correlations) / limits), correlations.shape)
                scale, target, lag = (int(i) for i in where)
                value, limit = float(correlations[where]), float(limits[target, lag])
                about = (dataset.feature_names[column], ticker, TARGETS[target], lag + 1, SCALES[scale])
                found = Foresight(*about, value, limit, n_bars)
                best[column] = max(found, best.get(column, found), key=lambda f: f.excess)
    return sorted(best.values(), key=lambda f: -f.excess)


def lags_of(n_bars: int) -> int:
    """Return the number of later bars with which a dataset of `n_bars` is compared."""
    return min(MOST_LAGS, n_bars // 2) if n_bars >= LEAST_BARS else 0


def tested(dataset: Dataset) -> tuple[Dataset, list[Foresight]]:
    """Return the dataset with suspicious columns in its record, and the result of `foresight`."""
    found = foresight(dataset)
    known = {"suspects": {f.column: str(f) for f in found if f.is_suspicious}, "lags": lags_of(len(dataset.time))}
    return replace(dataset, lookahead=structs.replace(dataset.record, **known).sealed()), found


def _limits(n_bars: int, n_lags: int, n_tests: int) -> np.ndarray:
    """Return the correlation limits, (targets, lags)."""
    by_chance = -MARGIN * float(ndtri(FALSE_ALARM / n_tests / 2.0)) / np.sqrt(n_bars)
    is_near = np.arange(1, n_lags + 1) <= NEAR_BARS
    return np.stack([np.maximum(by_chance, np.where(is_near, *LEAST[target])) for target in TARGETS])


def _later_correlations(changes: np.ndarray, targets: np.ndarray, length: int, n_lags: int) -> np.ndarray:
    """Return correlations of changes at t with targets at t + 1, t + 2, ..., (scales, targets, n_lags).

    Args:
        changes: (scales, frequencies) spectra of one column.
        targets: (targets, frequencies) spectra.
        length: length of the transformed series, including the zero padding.
        n_lags: number of lags, at most the number of padding zeros.
    """
    products = np.asarray(irfft(np.conj(changes)[:, None] * targets, length))[..., 1 : n_lags + 1]
    spread = np.sqrt(_energy(changes, length)[:, None] * _energy(targets, length))  # (scales, targets)
    return products / np.where(spread > 0.0, spread, np.inf)[..., None]


def _spectrum(values: np.ndarray, length: int) -> np.ndarray:
    """Return the spectrum of (..., n) float32 series, zero-padded to `length`, as (..., frequencies) complex64."""
    return np.asarray(rfft(values, length))


def _energy(spectrum: np.ndarray, length: int) -> np.ndarray:
    """Return the sum of squares of a series of `length` values from its spectrum (Parseval)."""
    power = np.abs(spectrum) ** 2
    doubled = power[..., 1 : (length + 1) // 2].sum(axis=-1)
    middle = power[..., -1] if length % 2 == 0 else 0.0
    return (power[..., 0] + 2.0 * doubled + middle) / length


def surprises(dataset: Dataset, coin: int) -> np.ndarray:
    """Return the unpredictable part of a coin's return, and of its size, at each bar, (targets, T) float32."""
    log_price = np.log(dataset.price[:, coin])
    returns = np.diff(log_price, prepend=log_price[0])
    returns[[first for first, _ in dataset.segments]] = 0.0  # no return over a gap
    keep = 1.0 - 1.0 / VOLATILITY_BARS
    mean = float(np.mean(returns**2))
    variance = lfilter([1.0 - keep], [1.0, -keep], returns**2, zi=[keep * mean])[0]
    variance = np.concatenate([[mean], variance[:-1]])  # variance of the previous bars
    spread = np.sqrt(np.maximum(variance, LEAST_VOLATILITY**2 * mean))
    scaled = np.clip(returns / np.where(spread > 0.0, spread, 1.0), -CLIP, CLIP)
    calendar = [
        turn(2.0 * np.pi * harmonic * (dataset.time % period) / period)
        for period in CALENDAR_S
        for harmonic in HARMONICS
        for turn in (np.sin, np.cos)
    ]
    return np.stack([_unforetold(target, calendar) for target in (scaled, np.abs(scaled))]).astype(np.float32)


def _unforetold(values: np.ndarray, calendar: list[np.ndarray]) -> np.ndarray:
    """Return the residual (T,) of a regression of `values` on their own past and the calendar."""
    values = values - values.mean()
    total = np.concatenate([[0.0], np.cumsum(values)])  # total[t]: sum of the values before t
    bar = np.arange(len(values))
    past = [np.concatenate([np.zeros(lag), values[:-lag]]) for lag in OWN_LAGS]
    past += [(total[bar] - total[np.maximum(bar - bars, 0)]) / bars for bars in TRAILING_BARS]
    known = np.stack([*past, *calendar], axis=1)  # (T, regressors)
    return values - known @ np.linalg.lstsq(known, values, rcond=None)[0]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return centered ranks of (n, columns) as (columns, n) float32. A constant column has ranks of 0."""
    ranks = pd.DataFrame(values).rank().to_numpy()
    return np.ascontiguousarray((ranks - ranks.mean(axis=0)).T, dtype=np.float32) / len(ranks)


def foresight_lines(found: list[Foresight], n_shown: int = 3) -> Iterator[str]:
    """Yield the suspicious columns, or those nearest to their limit, as lines for a terminal."""
    suspicious, n_lags = [f for f in found if f.is_suspicious], lags_of(found[0].n_rows if found else 0)
    yield (
        f"columns against later bars, up to {n_lags:,} ahead: {len(found)} columns, {len(suspicious)} suspicious "
        f"(false alarm in {FALSE_ALARM:.0%} of datasets)".replace("%", " %")
    )
    label = "" if suspicious else "nearest to its limit: "
    yield from (f"  {label}{f}" for f in (suspicious or found)[:n_shown])
