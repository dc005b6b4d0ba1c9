"""Indicators of one coin in one segment. Each returns one column, and each row depends only on rows up to it.

There are two families. Stationary indicators are ratios without a unit, so they do not depend on the quote currency.
The hosts' raw indicators (`raw_...`) are in dollars, coins or points, as the public trading repositories compute them.

The base indicators are those of TA-Lib (Wilder 1978 for RSI, ATR and directional movement, Lambert 1980 for CCI, Appel
for MACD).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import talib

VOLATILITY_BARS = 96  # window of the volatility
CHANNEL_BARS = 20
ATR_MEAN_BARS = 50
WILDER_BARS = 14
TYPICAL_VOLATILITY = 0.8  # annual volatility of a large coin
LEAST_VOLATILITY = 1e-6  # per bar; lower bound of the divisor for a flat price
# Fraction of the price. Wilder's averages never reach 0, so their ratios over a flat price keep their last value. The
# divisor is at least this fraction, which is far below the range of a bar with trades.
LEAST_RANGE = 1e-6
SECONDS_PER_YEAR = 365.0 * 86_400.0


@dataclass(frozen=True)
class CoinBars:
    """Bars of one coin in one segment."""

    open: np.ndarray  # (T,) float64, quote per coin, as are high, low and close
    high: np.ndarray  # (T,) float64
    low: np.ndarray  # (T,) float64
    close: np.ndarray  # (T,) float64
    volume: np.ndarray  # (T,) float64, coins
    bar_seconds: int

    def log_return(self, n_bars: int) -> np.ndarray:
        """Return the log return over `n_bars`, (T,)."""
        log_close = np.log(self.close)
        out = np.full_like(log_close, np.nan)
        out[n_bars:] = log_close[n_bars:] - log_close[:-n_bars]
        return out

    def volatility(self) -> np.ndarray:
        """Return the standard deviation of one-bar log returns over VOLATILITY_BARS, (T,), per bar."""
        spread = pd.Series(self.log_return(1)).rolling(VOLATILITY_BARS).std().to_numpy()
        return np.maximum(spread, LEAST_VOLATILITY)

    def macd(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return MACD (12, 26), its signal line (9) and their difference, each (T,), quote per coin."""
        return talib.MACD(self.close, 12, 26, 9)

    def atr(self) -> np.ndarray:
        """Return Wilder's average true range over 14 bars, (T,), quote per coin."""
        return talib.ATR(self.high, self.low, self.close, WILDER_BARS)


# ------------------------------------------------------------------------------------------------------ stationary


def scaled_return(bars: CoinBars, n_bars: int) -> np.ndarray:
    """Return the log return over `n_bars`, divided by its expected standard deviation, (T,)."""
    return bars.log_return(n_bars) / (bars.volatility() * np.sqrt(n_bars))


def volatility_level(bars: CoinBars) -> np.ndarray:
    """Return the log of annual volatility relative to a typical one, (T,).

    It shows whether moves are large relative to fees.
    """
    return np.log(bars.volatility() * np.sqrt(SECONDS_PER_YEAR / bars.bar_seconds) / TYPICAL_VOLATILITY)


def high_low_range(bars: CoinBars) -> np.ndarray:
    """Return the bar's log range relative to its mean over VOLATILITY_BARS, (T,), in [-1, 1]; 0 if both are 0."""
    return _against_its_mean(np.log(bars.high / bars.low), VOLATILITY_BARS, delay=0)


def volume_ratio(bars: CoinBars) -> np.ndarray:
    """Return the volume relative to the mean of the PREVIOUS CHANNEL_BARS, (T,), in [-1, 1]; 0 if both are 0."""
    return _against_its_mean(bars.volume, CHANNEL_BARS, delay=1)


def atr_regime(bars: CoinBars) -> np.ndarray:
    """Return the ATR (14) relative to its mean over ATR_MEAN_BARS, (T,), in [-1, 1]; near 0 if both are near 0."""
    atr = bars.atr()
    mean = _rolling_mean(atr, ATR_MEAN_BARS, delay=0)
    return _ratio(atr - mean, np.maximum(atr + mean, LEAST_RANGE * bars.close))


def range_breakout(bars: CoinBars) -> np.ndarray:
    """Return +-2 v / (v + m) if the close leaves the range of the PREVIOUS CHANNEL_BARS, otherwise 0; (T,), in [-2, 2].

    v is the bar's volume and m the mean volume of the previous CHANNEL_BARS. The value is +-1 at average volume, near
    +-2 at very high volume, and 0 without volume. Positive means above the range. The hosts' range includes the bar
    itself, so their close can never leave it and their feature is always 0.
    """
    return _leaves_range(bars) * (1.0 + volume_ratio(bars))


def channel_position(bars: CoinBars) -> np.ndarray:
    """Return the close's position between lowest low (-1) and highest high (1) of CHANNEL_BARS, (T,); 0 if equal."""
    top, bottom = talib.MAX(bars.high, CHANNEL_BARS), talib.MIN(bars.low, CHANNEL_BARS)
    return _ratio(2.0 * bars.close - top - bottom, top - bottom)


def rsi(bars: CoinBars) -> np.ndarray:
    """Return the relative strength index over 14 bars, scaled to [-1, 1], (T,); 0 while the price is flat."""
    strength = (talib.RSI(bars.close, WILDER_BARS) - 50.0) / 50.0
    is_flat = talib.MAX(bars.close, WILDER_BARS + 1) == talib.MIN(bars.close, WILDER_BARS + 1)
    return np.where(is_flat, 0.0, strength)


def macd_line(bars: CoinBars) -> np.ndarray:
    """Return MACD (12, 26) in units of price times volatility, (T,)."""
    return bars.macd()[0] / (bars.close * bars.volatility())


def macd_histogram(bars: CoinBars) -> np.ndarray:
    """Return MACD minus its signal line (9) in units of price times volatility, (T,)."""
    return bars.macd()[2] / (bars.close * bars.volatility())


def cci(bars: CoinBars) -> np.ndarray:
    """Return the commodity channel index over CHANNEL_BARS in units of 100, (T,)."""
    return talib.CCI(bars.high, bars.low, bars.close, CHANNEL_BARS) / 100.0


def direction(bars: CoinBars) -> np.ndarray:
    """Return the signed directional index over 14 bars, (+DI - -DI) / (+DI + -DI), (T,). Its absolute value is DX.

    The true range cancels, so the formula uses the directional movements (+DM, -DM). It is near 0 if both are near 0.
    """
    plus = talib.PLUS_DM(bars.high, bars.low, WILDER_BARS) / WILDER_BARS
    minus = talib.MINUS_DM(bars.high, bars.low, WILDER_BARS) / WILDER_BARS
    return _ratio(plus - minus, np.maximum(plus + minus, LEAST_RANGE * bars.close))


def trend_reacceleration(bars: CoinBars) -> np.ndarray:
    """Return the second difference of Wilder's ADX (14) in points, (T,). Positive values mean an accelerating trend.

    ADX is Wilder's average of DX. Here DX falls to near 0 while the price is flat; TA-Lib's DX keeps its last value.
    """
    index = pd.Series(100.0 * np.abs(direction(bars)))
    strength = index.ewm(alpha=1.0 / WILDER_BARS, adjust=False).mean().to_numpy()
    out = np.full_like(strength, np.nan)
    out[2:] = strength[2:] - 2.0 * strength[1:-1] + strength[:-2]
    return out


# ------------------------------------------------------------------------------------------------ the hosts' raw
# indicators


def raw_atr_regime_shift(bars: CoinBars) -> np.ndarray:
    """Return the ATR (14) divided by its mean over ATR_MEAN_BARS, minus 1, (T,); near 0 if both are near 0."""
    atr = bars.atr()
    mean = _rolling_mean(atr, ATR_MEAN_BARS, delay=0)
    return _ratio(atr - mean, np.maximum(mean, LEAST_RANGE * bars.close))


def raw_rsi(bars: CoinBars) -> np.ndarray:
    """Return the relative strength index over 14 bars, 0 to 100, (T,); 50 while the price is flat."""
    return 50.0 + 50.0 * rsi(bars)


def raw_dx(bars: CoinBars) -> np.ndarray:
    """Return Wilder's directional index over 14 bars, 0 to 100, (T,); near 0 while the price is flat."""
    return 100.0 * np.abs(direction(bars))


def raw_range_breakout(bars: CoinBars) -> np.ndarray:
    """Return the breakout sign (-1, 0 or 1) times volume over the mean of the PREVIOUS CHANNEL_BARS, (T,)."""
    return _leaves_range(bars) * _ratio(bars.volume, _rolling_mean(bars.volume, CHANNEL_BARS, delay=1))


# -------------------------------------------------------------------------------------------------------------- parts


def _leaves_range(bars: CoinBars) -> np.ndarray:
    """Return 1 if the close is above all highs of the previous CHANNEL_BARS, -1 if below all lows, else 0; (T,)."""
    top, bottom = _delayed(talib.MAX(bars.high, CHANNEL_BARS)), _delayed(talib.MIN(bars.low, CHANNEL_BARS))
    signal = (bars.close > top).astype(np.float64) - (bars.close < bottom)
    return np.where(np.isnan(top), np.nan, signal)


def _delayed(column: np.ndarray) -> np.ndarray:
    """Return the column delayed by one bar, (T,)."""
    return np.concatenate([[np.nan], column[:-1]])


def _rolling_mean(value: np.ndarray, window: int, delay: int) -> np.ndarray:
    """Return the mean of `window` values that end `delay` bars ago, (T,), clamped to at least 0."""
    mean = np.full_like(value, np.nan)
    mean[delay:] = np.asarray(pd.Series(value).rolling(window).mean())[: len(value) - delay]
    return np.maximum(mean, 0.0)


def _against_its_mean(value: np.ndarray, window: int, delay: int) -> np.ndarray:
    """Return (x - m) / (x + m), (T,), where x >= 0 and m is the mean of `window` values that end `delay` bars ago."""
    mean = _rolling_mean(value, window, delay)
    return _ratio(value - mean, value + mean)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, (T,): 0 if the whole is 0, and NaN if it is not yet known."""
    return np.divide(part, whole, out=np.where(np.isnan(whole), np.nan, 0.0), where=whole > 0)
