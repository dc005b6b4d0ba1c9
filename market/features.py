"""The default features: eleven causal, scaled columns per coin.

Every feature is a ratio, so it has no unit and does not change when a price is quoted in other money; each is centred
near 0 with a spread near 1 and clipped to [-CLIP, CLIP], so it is safe in float32 from PEPE to BTC. Row t is a function
of bars <= t of the same coin and the same segment. `WARMUP_BARS` first rows of a segment are not to be used: the
slowest average (Wilder's over 14 bars, decay 13/14) keeps under 3e-4 of its start after that many.

Indicators are TA-Lib's (Wilder 1978 for RSI and the directional lines, Lambert 1980 for CCI, Appel for MACD).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import talib

WARMUP_BARS = 128
CLIP = 10.0
VOLATILITY_BARS = 96  # window of the returns' spread
CHANNEL_BARS = 20
TYPICAL_VOLATILITY = 0.8  # per year, of a large coin
LEAST_VOLATILITY = 1e-6  # per bar: a flat price divides by this
SECONDS_PER_YEAR = 365.0 * 86_400.0


@dataclass(frozen=True)
class CoinBars:
    """One coin's bars of one segment."""

    open: np.ndarray  # (T,) float64
    high: np.ndarray  # (T,) float64
    low: np.ndarray  # (T,) float64
    close: np.ndarray  # (T,) float64
    volume: np.ndarray  # (T,) float64, coins
    bar_seconds: int

    def log_return(self, n_bars: int) -> np.ndarray:
        """(T,) log of close over the close `n_bars` earlier."""
        log_close = np.log(self.close)
        out = np.full_like(log_close, np.nan)
        out[n_bars:] = log_close[n_bars:] - log_close[:-n_bars]
        return out

    def volatility(self) -> np.ndarray:
        """(T,) spread of one-bar log returns over the last VOLATILITY_BARS, per bar."""
        spread = pd.Series(self.log_return(1)).rolling(VOLATILITY_BARS).std().to_numpy()
        return np.maximum(spread, LEAST_VOLATILITY)


def scaled_return(bars: CoinBars, n_bars: int) -> np.ndarray:
    """(T,) log return over `n_bars` in units of its own expected spread."""
    return bars.log_return(n_bars) / (bars.volatility() * np.sqrt(n_bars))


def volatility_level(bars: CoinBars) -> np.ndarray:
    """(T,) log of the yearly volatility over a typical one: it says whether moves are large against fees."""
    return np.log(bars.volatility() * np.sqrt(SECONDS_PER_YEAR / bars.bar_seconds) / TYPICAL_VOLATILITY)


def high_low_range(bars: CoinBars) -> np.ndarray:
    """(T,) this bar's log range against its mean over VOLATILITY_BARS, in [-1, 1]; 0 when both are 0."""
    return _contrast(np.log(bars.high / bars.low), VOLATILITY_BARS, delay=0)


def volume_ratio(bars: CoinBars) -> np.ndarray:
    """(T,) this bar's volume against the mean of the PREVIOUS CHANNEL_BARS, in [-1, 1]; 0 when both are 0."""
    return _contrast(bars.volume, CHANNEL_BARS, delay=1)


def _contrast(value: np.ndarray, window: int, delay: int) -> np.ndarray:
    """(T,) (x - m) / (x + m), with m the mean of `window` values that end `delay` bars ago; x >= 0."""
    mean = np.full_like(value, np.nan)
    mean[delay:] = np.asarray(pd.Series(value).rolling(window).mean())[: len(value) - delay]
    mean = np.maximum(mean, 0.0)
    total = value + mean
    return np.divide(value - mean, total, out=np.where(np.isnan(total), np.nan, 0.0), where=total > 0)


def channel_position(bars: CoinBars) -> np.ndarray:
    """(T,) where the close lies between lowest low (-1) and highest high (1) of CHANNEL_BARS; 0 when they are equal."""
    top, bottom = talib.MAX(bars.high, CHANNEL_BARS), talib.MIN(bars.low, CHANNEL_BARS)
    width = top - bottom
    middle = 2.0 * bars.close - top - bottom
    return np.divide(middle, width, out=np.where(np.isnan(width), np.nan, 0.0), where=width > 0)


def rsi(bars: CoinBars) -> np.ndarray:
    """(T,) relative strength over 14 bars, moved to [-1, 1]; 0 while the price is flat."""
    strength = (talib.RSI(bars.close, 14) - 50.0) / 50.0
    is_flat = talib.MAX(bars.close, 15) == talib.MIN(bars.close, 15)
    return np.where(is_flat, 0.0, strength)


def macd_histogram(bars: CoinBars) -> np.ndarray:
    """(T,) MACD (12, 26) minus its signal line (9), in units of price times volatility."""
    histogram = talib.MACD(bars.close, 12, 26, 9)[2]
    return histogram / (bars.close * bars.volatility())


def cci(bars: CoinBars) -> np.ndarray:
    """(T,) commodity channel index over 20 bars, in units of 100."""
    return talib.CCI(bars.high, bars.low, bars.close, CHANNEL_BARS) / 100.0


def direction(bars: CoinBars) -> np.ndarray:
    """(T,) Wilder's directional index (DX) over 14 bars with its sign, (+DI - -DI) / (+DI + -DI)."""
    plus = talib.PLUS_DI(bars.high, bars.low, bars.close, 14)
    minus = talib.MINUS_DI(bars.high, bars.low, bars.close, 14)
    total = plus + minus
    return np.divide(plus - minus, total, out=np.where(np.isnan(total), np.nan, 0.0), where=total > 0)


@dataclass(frozen=True)
class Feature:
    """One column of the default set."""

    compute: Callable[[CoinBars], np.ndarray]  # (T,) float64
    spread: float = 1.0  # its standard deviation on seven coins' 5-minute bars of 2024, rounded; divides the values


FEATURES: dict[str, Feature] = {
    "log_return_1": Feature(lambda bars: scaled_return(bars, 1)),
    "log_return_12": Feature(lambda bars: scaled_return(bars, 12)),
    "log_return_48": Feature(lambda bars: scaled_return(bars, 48)),
    "volatility": Feature(volatility_level, spread=0.5),
    "high_low_range": Feature(high_low_range, spread=0.25),
    "channel_position": Feature(channel_position, spread=0.6),
    "volume_ratio": Feature(volume_ratio, spread=0.33),
    "rsi_14": Feature(rsi, spread=0.22),
    "macd_histogram": Feature(macd_histogram, spread=0.33),
    "cci_20": Feature(cci, spread=1.1),
    "direction_14": Feature(direction, spread=0.3),
}


def feature_names(tickers: Sequence[str]) -> tuple[str, ...]:
    """Column names coin by coin, `BTC:log_return_1`."""
    return tuple(f"{ticker}:{name}" for ticker in tickers for name in FEATURES)


def coin_features(bars: CoinBars) -> np.ndarray:
    """(T, 11) float32 of one coin in one segment; the first WARMUP_BARS rows hold NaN or unsettled values."""
    columns = [np.clip(feature.compute(bars) / feature.spread, -CLIP, CLIP) for feature in FEATURES.values()]
    return np.stack(columns, axis=1).astype(np.float32)


def segment_features(
    open_: np.ndarray, high: np.ndarray, low: np.ndarray, close: np.ndarray, volume: np.ndarray, bar_seconds: int
) -> np.ndarray:
    """Features of one contiguous segment without missing bars, warm-up rows removed.

    Args:
        open_: (T, A) quote per coin, as are high, low and close.
        high: (T, A).
        low: (T, A).
        close: (T, A).
        volume: (T, A) coins.
        bar_seconds: length of a bar.

    Returns:
        (T - WARMUP_BARS, 11 * A) float32, finite; row i belongs to bar i + WARMUP_BARS.
    """
    n_bars, n_assets = close.shape
    if n_bars <= WARMUP_BARS:
        return np.empty((0, n_assets * len(FEATURES)), dtype=np.float32)
    blocks = []
    for a in range(n_assets):
        columns = [np.ascontiguousarray(column[:, a]) for column in (open_, high, low, close, volume)]
        coin = CoinBars(*columns, bar_seconds=bar_seconds)
        blocks.append(coin_features(coin)[WARMUP_BARS:])
    return np.concatenate(blocks, axis=1)
