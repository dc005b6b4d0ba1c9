"""Indicators of one coin in one segment: arrays in, one column out, every row a function of the rows up to it.

Two families. The stationary ones are ratios: they have no unit and stay what they are when a price is quoted in other
money. The hosts' raw ones (`raw_...`) are in dollars, coins or points, as the public trading repositories compute them.

Indicators are TA-Lib's (Wilder 1978 for RSI, ATR and the directional lines, Lambert 1980 for CCI, Appel for MACD).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import talib

VOLATILITY_BARS = 96  # window of the returns' spread
CHANNEL_BARS = 20
ATR_MEAN_BARS = 50
WILDER_BARS = 14
TYPICAL_VOLATILITY = 0.8  # per year, of a large coin
LEAST_VOLATILITY = 1e-6  # per bar: a flat price divides by this
# Of the price: Wilder's averages never reach 0, so over a flat price their ratios say for ever how trading ended. What
# they are divided by is at least this, far below the range of bars in which anybody trades.
LEAST_RANGE = 1e-6
SECONDS_PER_YEAR = 365.0 * 86_400.0


@dataclass(frozen=True)
class CoinBars:
    """One coin's bars of one segment."""

    open: np.ndarray  # (T,) float64, quote per coin, as are high, low and close
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

    def macd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """MACD (12, 26), its signal line (9) and their difference, each (T,), quote per coin."""
        return talib.MACD(self.close, 12, 26, 9)

    def atr(self) -> np.ndarray:
        """(T,) Wilder's average true range over 14 bars, quote per coin."""
        return talib.ATR(self.high, self.low, self.close, WILDER_BARS)


# ------------------------------------------------------------------------------------------------------ stationary


def scaled_return(bars: CoinBars, n_bars: int) -> np.ndarray:
    """(T,) log return over `n_bars` in units of its own expected spread."""
    return bars.log_return(n_bars) / (bars.volatility() * np.sqrt(n_bars))


def volatility_level(bars: CoinBars) -> np.ndarray:
    """(T,) log of the yearly volatility over a typical one: it says whether moves are large against fees."""
    return np.log(bars.volatility() * np.sqrt(SECONDS_PER_YEAR / bars.bar_seconds) / TYPICAL_VOLATILITY)


def high_low_range(bars: CoinBars) -> np.ndarray:
    """(T,) this bar's log range against its mean over VOLATILITY_BARS, in [-1, 1]; 0 when both are 0."""
    return _against_its_mean(np.log(bars.high / bars.low), VOLATILITY_BARS, delay=0)


def volume_ratio(bars: CoinBars) -> np.ndarray:
    """(T,) this bar's volume against the mean of the PREVIOUS CHANNEL_BARS, in [-1, 1]; 0 when both are 0."""
    return _against_its_mean(bars.volume, CHANNEL_BARS, delay=1)


def atr_regime(bars: CoinBars) -> np.ndarray:
    """(T,) average true range (14) against its own mean over ATR_MEAN_BARS, in [-1, 1]; near 0 when both are."""
    atr = bars.atr()
    mean = _rolling_mean(atr, ATR_MEAN_BARS, delay=0)
    return _ratio(atr - mean, np.maximum(atr + mean, LEAST_RANGE * bars.close))


def range_breakout(bars: CoinBars) -> np.ndarray:
    """(T,) in [-2, 2]: +-2 v / (v + m) where the close leaves the range of the PREVIOUS CHANNEL_BARS, else 0.

    v is this bar's volume and m the mean of the previous CHANNEL_BARS: +-1 on usual volume, near +-2 on a surge, 0 on
    none. Above the range is positive. (A range that includes the bar itself can never be left: the feature is then 0
    for ever, which is what the hosts have.)
    """
    return _leaves_range(bars) * (1.0 + volume_ratio(bars))


def channel_position(bars: CoinBars) -> np.ndarray:
    """(T,) where the close lies between lowest low (-1) and highest high (1) of CHANNEL_BARS; 0 when they are equal."""
    top, bottom = talib.MAX(bars.high, CHANNEL_BARS), talib.MIN(bars.low, CHANNEL_BARS)
    return _ratio(2.0 * bars.close - top - bottom, top - bottom)


def rsi(bars: CoinBars) -> np.ndarray:
    """(T,) relative strength over 14 bars, moved to [-1, 1]; 0 while the price is flat."""
    strength = (talib.RSI(bars.close, WILDER_BARS) - 50.0) / 50.0
    is_flat = talib.MAX(bars.close, WILDER_BARS + 1) == talib.MIN(bars.close, WILDER_BARS + 1)
    return np.where(is_flat, 0.0, strength)


def macd_line(bars: CoinBars) -> np.ndarray:
    """(T,) MACD (12, 26), in units of price times volatility."""
    return bars.macd()[0] / (bars.close * bars.volatility())


def macd_histogram(bars: CoinBars) -> np.ndarray:
    """(T,) MACD minus its signal line (9), in units of price times volatility."""
    return bars.macd()[2] / (bars.close * bars.volatility())


def cci(bars: CoinBars) -> np.ndarray:
    """(T,) commodity channel index over CHANNEL_BARS, in units of 100."""
    return talib.CCI(bars.high, bars.low, bars.close, CHANNEL_BARS) / 100.0


def direction(bars: CoinBars) -> np.ndarray:
    """(T,) Wilder's directional index (DX) over 14 bars with its sign, (+DI - -DI) / (+DI + -DI); its size is DX.

    The true range cancels, so the directional movements (+DM, -DM) are compared; near 0 when both are.
    """
    plus = talib.PLUS_DM(bars.high, bars.low, WILDER_BARS) / WILDER_BARS
    minus = talib.MINUS_DM(bars.high, bars.low, WILDER_BARS) / WILDER_BARS
    return _ratio(plus - minus, np.maximum(plus + minus, LEAST_RANGE * bars.close))


def trend_reacceleration(bars: CoinBars) -> np.ndarray:
    """(T,) second difference of Wilder's ADX (14), in points: above 0 where a trend's strength gains pace.

    ADX is Wilder's average of DX, which is near 0 over a flat price, where TA-Lib's stays what it was.
    """
    index = pd.Series(100.0 * np.abs(direction(bars)))
    strength = index.ewm(alpha=1.0 / WILDER_BARS, adjust=False).mean().to_numpy()
    out = np.full_like(strength, np.nan)
    out[2:] = strength[2:] - 2.0 * strength[1:-1] + strength[:-2]
    return out


# ------------------------------------------------------------------------------------------------ the hosts' raw ones


def raw_atr_regime_shift(bars: CoinBars) -> np.ndarray:
    """(T,) average true range (14) over its mean of ATR_MEAN_BARS, minus 1; near 0 when both are."""
    atr = bars.atr()
    mean = _rolling_mean(atr, ATR_MEAN_BARS, delay=0)
    return _ratio(atr - mean, np.maximum(mean, LEAST_RANGE * bars.close))


def raw_rsi(bars: CoinBars) -> np.ndarray:
    """(T,) relative strength over 14 bars, 0 to 100; 50 while the price is flat."""
    return 50.0 + 50.0 * rsi(bars)


def raw_dx(bars: CoinBars) -> np.ndarray:
    """(T,) Wilder's directional index over 14 bars, 0 to 100; near 0 while the price is flat."""
    return 100.0 * np.abs(direction(bars))


def raw_range_breakout(bars: CoinBars) -> np.ndarray:
    """(T,) -1, 0 or 1 as in `range_breakout`, times volume over the mean of the PREVIOUS CHANNEL_BARS."""
    return _leaves_range(bars) * _ratio(bars.volume, _rolling_mean(bars.volume, CHANNEL_BARS, delay=1))


# -------------------------------------------------------------------------------------------------------------- parts


def _leaves_range(bars: CoinBars) -> np.ndarray:
    """(T,) 1 where the close is above every high of the previous CHANNEL_BARS, -1 below every low, else 0."""
    top, bottom = _delayed(talib.MAX(bars.high, CHANNEL_BARS)), _delayed(talib.MIN(bars.low, CHANNEL_BARS))
    signal = (bars.close > top).astype(np.float64) - (bars.close < bottom)
    return np.where(np.isnan(top), np.nan, signal)


def _delayed(column: np.ndarray) -> np.ndarray:
    """(T,) the column one bar later."""
    return np.concatenate([[np.nan], column[:-1]])


def _rolling_mean(value: np.ndarray, window: int, delay: int) -> np.ndarray:
    """(T,) mean of `window` values that end `delay` bars ago; value >= 0, and so is the mean."""
    mean = np.full_like(value, np.nan)
    mean[delay:] = np.asarray(pd.Series(value).rolling(window).mean())[: len(value) - delay]
    return np.maximum(mean, 0.0)


def _against_its_mean(value: np.ndarray, window: int, delay: int) -> np.ndarray:
    """(T,) (x - m) / (x + m), with m the mean of `window` values that end `delay` bars ago; x >= 0."""
    mean = _rolling_mean(value, window, delay)
    return _ratio(value - mean, value + mean)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(T,) part / whole, 0 where the whole is 0, NaN where it is not known yet."""
    return np.divide(part, whole, out=np.where(np.isnan(whole), np.nan, 0.0), where=whole > 0)
