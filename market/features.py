"""Feature sets: the columns of a dataset and the number of warm-up bars that they require.

`default` is stationary and scaled. Every column is a ratio with mean near 0 and standard deviation near 1, clipped to
[-CLIP, CLIP]. float32 can represent every column for any coin, from PEPE to BTC. The scales were measured on the sample
market (`market.sample`), never on real bars, so no real market affects the scales of its own features. The agent's
running normalizer does the remaining scaling. It sees only training bars and is stored in the policy file.

`host` holds the features of the public FinRL_Crypto family: raw dollars, coins and points, with 14 columns per coin in
the same order. Three columns differ, because the originals are wrong (data/README.md).

Row t depends only on bars <= t of the same coin and segment. Calendar columns (`time:...`) belong to all coins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import talib

from market.bars.candles import BarGrid
from market.defaults import WARMUP_BARS
from market.errors import BarsError
from market.indicators import (
    WILDER_BARS,
    CoinBars,
    atr_regime,
    cci,
    channel_position,
    direction,
    high_low_range,
    macd_histogram,
    macd_line,
    range_breakout,
    raw_atr_regime_shift,
    raw_dx,
    raw_range_breakout,
    raw_rsi,
    rsi,
    scaled_return,
    trend_reacceleration,
    volatility_level,
    volume_ratio,
)

CLIP = 10.0
DAY_SECONDS, WEEK_SECONDS = 86_400, 604_800
CALENDAR = "time"  # prefix of columns that belong to all coins


@dataclass(frozen=True)
class Feature:
    """One feature column of a coin."""

    compute: Callable[[CoinBars], np.ndarray]  # (T,) float64
    spread: float = 1.0  # typical standard deviation, by which the values are divided
    clip: float = CLIP


@dataclass(frozen=True)
class FeatureSet:
    """Columns of a dataset: the features of each coin in turn, followed by the calendar features."""

    columns: Mapping[str, Feature]
    warmup_bars: int = WARMUP_BARS  # rows dropped at the start of a segment
    has_calendar: bool = field(default=False)

    def names(self, tickers: Sequence[str], bar_seconds: int) -> tuple[str, ...]:
        """Return the F column names, such as `BTC:rsi_14` and `time:day_sin`."""
        calendar = calendar_cycles(bar_seconds) if self.has_calendar else {}
        own = [f"{ticker}:{name}" for ticker in tickers for name in self.columns]
        return (*own, *(f"{CALENDAR}:{name}" for name in calendar))

    def coins(self, n_assets: int, bar_seconds: int) -> tuple[int, ...]:
        """Return the coin index of each of the F columns in `names`, -1 for calendar columns."""
        calendar = calendar_cycles(bar_seconds) if self.has_calendar else {}
        own = [coin for coin in range(n_assets) for _ in self.columns]
        return (*own, *(-1 for _ in calendar))


DEFAULT: dict[str, Feature] = {
    "log_return_1": Feature(lambda bars: scaled_return(bars, 1)),
    "log_return_12": Feature(lambda bars: scaled_return(bars, 12)),
    "log_return_48": Feature(lambda bars: scaled_return(bars, 48)),
    "volatility": Feature(volatility_level, spread=0.5),
    "high_low_range": Feature(high_low_range, spread=0.22),
    "atr_regime": Feature(atr_regime, spread=0.09),
    "channel_position": Feature(channel_position, spread=0.63),
    "range_breakout": Feature(range_breakout, spread=0.41),
    "volume_ratio": Feature(volume_ratio, spread=0.3),
    "rsi_14": Feature(rsi, spread=0.25),
    "macd": Feature(macd_line, spread=1.16),
    "macd_histogram": Feature(macd_histogram, spread=0.35),
    "cci_20": Feature(cci, spread=1.13),
    "direction_14": Feature(direction, spread=0.31),
    "trend_reacceleration": Feature(trend_reacceleration, spread=0.63),
}


def _raw(compute: Callable[[CoinBars], np.ndarray]) -> Feature:
    return Feature(compute, clip=np.inf)


HOST: dict[str, Feature] = {
    "open": _raw(lambda bars: bars.open),
    "high": _raw(lambda bars: bars.high),
    "low": _raw(lambda bars: bars.low),
    "close": _raw(lambda bars: bars.close),
    "volume": _raw(lambda bars: bars.volume),
    "macd": _raw(lambda bars: bars.macd()[0]),
    "macd_signal": _raw(lambda bars: bars.macd()[1]),
    "macd_hist": _raw(lambda bars: bars.macd()[2]),
    "rsi": _raw(raw_rsi),
    "cci": _raw(lambda bars: talib.CCI(bars.high, bars.low, bars.close, WILDER_BARS)),
    "dx": _raw(raw_dx),
    "atr_regime_shift": _raw(raw_atr_regime_shift),
    "range_breakout_volume": _raw(raw_range_breakout),
    "trend_reacceleration": _raw(trend_reacceleration),
}

FEATURE_SETS: dict[str, FeatureSet] = {
    "default": FeatureSet(DEFAULT, has_calendar=True),
    "host": FeatureSet(HOST),
}


def feature_set(name: str) -> FeatureSet:
    """Return the feature set with a name.

    Raises:
        BarsError: there is no feature set with that name.
    """
    if name not in FEATURE_SETS:
        raise BarsError(f"unknown feature set {name!r}; choose one of {', '.join(FEATURE_SETS)}")
    return FEATURE_SETS[name]


def calendar_cycles(bar_seconds: int) -> dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]]:
    """Return name -> (period in seconds, sin or cos) of the calendar columns that vary at this bar length.

    With one bar per day (or week) the phase is constant. With two bars the phase is 0 or half a cycle, so the sine is
    0.
    """
    cycles = {}
    for name, period in (("day", DAY_SECONDS), ("week", WEEK_SECONDS)):
        bars_a_turn = period / bar_seconds
        if bars_a_turn > 2:
            cycles[f"{name}_sin"] = (period, np.sin)
        if bars_a_turn > 1:
            cycles[f"{name}_cos"] = (period, np.cos)
    return cycles


def calendar_features(close_s: np.ndarray, bar_seconds: int) -> np.ndarray:
    """Return time of day and time of week (UTC) at the bar's close as sine and cosine. Weeks start on Thursday.

    Args:
        close_s: (T,) UTC seconds of the bars' closes.
        bar_seconds: length of a bar.

    Returns:
        (T, 0 to 4) float32, each column with a standard deviation of 1.
    """
    cycles = calendar_cycles(bar_seconds).values()
    columns = [np.sqrt(2.0) * turn(2.0 * np.pi * (close_s % period) / period) for period, turn in cycles]
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.empty((len(close_s), 0), np.float32)


def coin_features(bars: CoinBars, columns: Mapping[str, Feature]) -> np.ndarray:
    """Return the features of one coin in one segment, (T, len(columns)) float32.

    Warm-up rows hold NaN or inaccurate values. Values beyond float32 become infinite, and a dataset rejects them.
    """
    out = np.empty((len(bars.close), len(columns)), dtype=np.float32)
    with np.errstate(over="ignore"):
        for i, feature in enumerate(columns.values()):
            out[:, i] = np.clip(feature.compute(bars) / feature.spread, -feature.clip, feature.clip)
    return out


def segment_features(bars: BarGrid, features: FeatureSet) -> np.ndarray:
    """Return the features of one segment without missing bars, after dropping warm-up rows.

    Args:
        bars: T bars of A coins.
        features: feature set to compute.

    Returns:
        (T - warmup_bars, F) float32. Row i belongs to bar i + warmup_bars.
    """
    n_bars, n_assets = bars.close.shape
    warmup = features.warmup_bars
    names = features.names(bars.tickers, bars.bar_seconds)
    out = np.empty((max(n_bars - warmup, 0), len(names)), dtype=np.float32)
    if n_bars <= warmup:
        return out
    width = len(features.columns)
    for a in range(n_assets):
        prices = (bars.open, bars.high, bars.low, bars.close, bars.volume)
        coin = CoinBars(*(np.ascontiguousarray(column[:, a]) for column in prices), bar_seconds=bars.bar_seconds)
        out[:, a * width : (a + 1) * width] = coin_features(coin, features.columns)[warmup:]
    if features.has_calendar:
        out[:, n_assets * width :] = calendar_features(bars.time + bars.bar_seconds, bars.bar_seconds)[warmup:]
    return out
