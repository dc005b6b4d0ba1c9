"""Feature sets: which columns a dataset has, and how many bars of a segment they need before they can be trusted.

`default` is stationary and scaled: every column is a ratio, centred near 0 with a spread near 1, and clipped to
[-CLIP, CLIP], so it is safe in float32 from PEPE to BTC. The spreads that divide it were measured on the sample market
(`market.sample`), never on real bars: no number of a market that is traded enters its own features. What is left of
scaling is the agent's running normaliser, which sees training bars only and is stored in the policy file.

`host` is what the public FinRL_Crypto family feeds its network: raw dollars, coins and points, 14 columns a coin in
their order. Three columns differ from theirs, each where theirs is wrong (data/README.md).

Row t is a function of bars <= t of the same coin and segment; columns of the calendar (`time:...`) are shared.
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
CALENDAR = "time"  # owner of the columns that belong to no coin


@dataclass(frozen=True)
class Feature:
    """One column of a coin."""

    compute: Callable[[CoinBars], np.ndarray]  # (T,) float64
    spread: float = 1.0  # divides the values: their usual standard deviation
    clip: float = CLIP


@dataclass(frozen=True)
class FeatureSet:
    """The columns a dataset has: each coin's, coin by coin, then the calendar's."""

    columns: Mapping[str, Feature]
    warmup_bars: int = WARMUP_BARS  # first rows of a segment that are not to be used
    has_calendar: bool = field(default=False)

    def names(self, tickers: Sequence[str], bar_seconds: int) -> tuple[str, ...]:
        """F column names, `BTC:rsi_14` and `time:day_sin`."""
        calendar = calendar_cycles(bar_seconds) if self.has_calendar else {}
        own = [f"{ticker}:{name}" for ticker in tickers for name in self.columns]
        return (*own, *(f"{CALENDAR}:{name}" for name in calendar))

    def coins(self, n_assets: int, bar_seconds: int) -> tuple[int, ...]:
        """F places of the coins whose columns `names` names, -1 for the calendar's."""
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
    """The feature set of that name."""
    if name not in FEATURE_SETS:
        raise BarsError(f"unknown feature set {name!r}; choose one of {', '.join(FEATURE_SETS)}")
    return FEATURE_SETS[name]


def calendar_cycles(bar_seconds: int) -> dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]]:
    """Name -> (period in seconds, sin or cos) of the calendar columns that vary at this bar length.

    With one bar a day (or week) the phase never changes; with two it is only ever at 0 and half a turn, where the sine
    is 0.
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
    """Time of day and of the week (UTC, weeks from Thursday as 1970 began) at the bar's close, as points on a circle.

    Args:
        close_s: (T,) UTC seconds of the bars' closes.
        bar_seconds: length of a bar.

    Returns:
        (T, 0 to 4) float32, each column with a spread of 1.
    """
    cycles = calendar_cycles(bar_seconds).values()
    columns = [np.sqrt(2.0) * turn(2.0 * np.pi * (close_s % period) / period) for period, turn in cycles]
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.empty((len(close_s), 0), np.float32)


def coin_features(bars: CoinBars, columns: Mapping[str, Feature]) -> np.ndarray:
    """(T, len(columns)) float32 of one coin in one segment; rows of the warm-up hold NaN or unsettled values.

    A value beyond float32 becomes infinite, which no dataset takes.
    """
    out = np.empty((len(bars.close), len(columns)), dtype=np.float32)
    with np.errstate(over="ignore"):
        for i, feature in enumerate(columns.values()):
            out[:, i] = np.clip(feature.compute(bars) / feature.spread, -feature.clip, feature.clip)
    return out


def segment_features(bars: BarGrid, features: FeatureSet) -> np.ndarray:
    """Features of one contiguous segment without missing bars, warm-up rows removed.

    Args:
        bars: T bars of A coins.
        features: which columns.

    Returns:
        (T - warmup_bars, F) float32; row i belongs to bar i + warmup_bars.
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
