"""Laws of the sample market, its optional planted signal, and the best policy for that signal.

`FAIR` is the plain sample market: given all past data, the mean simple return of the next bar is 0. The other two laws
are for demonstrations, and datasets store their names. `NO_SIGNAL` has the same bars as `FAIR`. `PLANTED` adds one
signal for the whole market:

    s      an AR(1) process with a mean life of `MEAN_LIFE_BARS` bars, centered over parts of `SIGNAL_PART_BARS` bars
           and scaled to variance 1
    drift  every coin's mean simple return in bar t + 2 is `STRENGTH` x the market's volatility per bar x s_t
    volume every coin's volume in bar t is multiplied by exp(VOLUME_GAIN s_t - VOLUME_GAIN^2 / 2)

An order decided after bar t fills at the close of bar t + 1, so it earns the return of bar t + 2 in full. Among the
default features, `volume_ratio` shows the signal. The returns, `rsi_14` and `macd` show it too, because a persistent
drift is a trend. A linear regression on all default features of seven coins has a correlation of 0.90 with s on
5-minute bars.

All coins have the same drift, so the best portfolio holds all of them or none. Among policies that observe the current
s, the best is a band: buy if s is above one threshold, and sell if s is below a second one (de Lataillade et al. 2012,
arXiv 1203.5957, for linear costs; solved by `best_rule`). On 5-minute bars at a cost of 30 bp the thresholds are 0.62
and -0.62, and log growth is 1.58 bp per bar. An agent observes features instead of s, so it cannot reach this growth.
Because s is centered, the equal-weight portfolio earns almost nothing over the sample. Centering also makes the rest of
a part slightly predictable from its past, which the band does not use.
"""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass
from enum import Enum
from functools import cache

import numpy as np
import pandas as pd
from scipy.special import ndtr

MARKET_VOLATILITY = 0.42  # per year
YEAR_SECONDS = 365.0 * 86_400.0
SIGNAL_PART_BARS = 1_000
MEAN_LIFE_BARS = 48.0
STRENGTH = 0.4  # drift at s = 1, relative to the market's volatility per bar
VOLUME_GAIN = 1.0
ORDER_BARS = 2  # bars from the signal to the return that it affects
START = "2024-01-01"  # start of every sample dataset, UTC
SIGNAL_POINTS, LARGEST_SIGNAL = 161, 4.5  # grid of the solver
VALUE_TOLERANCE = 1e-12


class Law(Enum):
    """Law of the returns in the sample market."""

    FAIR = "fair"
    NO_SIGNAL = "no signal"
    PLANTED = "planted signal"

    @property
    def has_recipe(self) -> bool:
        """True if a dataset's source and label name the law."""
        return self is not Law.FAIR


# -------------------------------------------------------------------------------------------------------------- recipe
@dataclass(frozen=True)
class Recipe:
    """Parameters of a demonstration market, sufficient to reproduce its signal."""

    law: Law
    seed: int
    n_bars: int  # per coin, including warm-up bars

    @property
    def text(self) -> str:
        """Text stored as the dataset's source."""
        return f"sample market, {self.law.value}, seed {self.seed}, {self.n_bars} bars"


def recipe_of(text: str) -> Recipe | None:
    """Parse the recipe at the end of a dataset's source or label. Return None if there is none."""
    laws = "|".join(law.value for law in Law if law.has_recipe)
    found = re.search(rf"\bsample market, ({laws}), seed (\d+), (\d+) bars$", text)
    return None if found is None else Recipe(Law(found[1]), int(found[2]), int(found[3]))


def synthetic_kind(source: str) -> str:
    """Return `SYNTHETIC`, followed by the law if the sample market was made for a demonstration."""
    recipe = recipe_of(source)
    return "SYNTHETIC" if recipe is None else f"SYNTHETIC, {recipe.law.value}"


# ---------------------------------------------------------------------------------------------------------- the signal
def generator(seed: int, name: str) -> np.random.Generator:
    """Return the random generator of one part of a sample market, independent of all other parts."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def planted_signal(n_bars: int, seed: int) -> np.ndarray:
    """Return the signal of each bar of a planted market, (n_bars,), in standard deviations."""
    series = autoregression(generator(seed, "signal"), n_bars, math.exp(-1.0 / MEAN_LIFE_BARS))
    share = MEAN_LIFE_BARS / SIGNAL_PART_BARS
    variance_of_means = 2.0 * share * (1.0 - share * -math.expm1(-1.0 / share))  # variance of the means of the parts
    return centred(series, SIGNAL_PART_BARS) / math.sqrt(1.0 - variance_of_means)


def signal_at(recipe: Recipe, close_s: np.ndarray, bar_seconds: int) -> np.ndarray:
    """Return the signal of the bars that close at given times, (T,).

    Args:
        recipe: recipe of a planted market.
        close_s: (T,) UTC seconds, from the dataset's time array.
        bar_seconds: length of a bar.
    """
    first = int(np.datetime64(START, "s").astype(np.int64)) // bar_seconds * bar_seconds
    return planted_signal(recipe.n_bars, recipe.seed)[(close_s - first) // bar_seconds - 1]


def drift_per_signal(bar_seconds: int) -> float:
    """Return the mean simple return of a bar at s = 1."""
    return STRENGTH * MARKET_VOLATILITY * math.sqrt(bar_seconds / YEAR_SECONDS)


def drifts(signal: np.ndarray, bar_seconds: int) -> np.ndarray:
    """Return the mean simple return of every bar, (T,), for a signal (T,)."""
    out = np.zeros_like(signal)
    out[ORDER_BARS:] = signal[: max(len(signal) - ORDER_BARS, 0)]
    return drift_per_signal(bar_seconds) * out


def log_volume_factor(signal: np.ndarray) -> np.ndarray:
    """Return the signal's addition to the log volume of every coin, (T,)."""
    return VOLUME_GAIN * signal - VOLUME_GAIN**2 / 2.0


def autoregression(rng: np.random.Generator, n_bars: int, keep: float) -> np.ndarray:
    """Return a stationary Gaussian AR(1) series of variance 1 with coefficient `keep`, (n_bars,)."""
    noise = rng.standard_normal(n_bars)
    inputs = np.concatenate([noise[:1], noise[1:] * np.sqrt(1.0 - keep**2)])
    scaled = np.concatenate([inputs[:1], inputs[1:] / (1.0 - keep)])
    return pd.Series(scaled).ewm(alpha=1.0 - keep, adjust=False).mean().to_numpy()


def centred(values: np.ndarray, part_bars: int) -> np.ndarray:
    """Return the values minus their mean over each of equal parts of about `part_bars` bars, (T,)."""
    edges = np.linspace(0, len(values), max(round(len(values) / part_bars), 1) + 1).astype(np.int64)
    length = np.diff(edges)
    return values - np.repeat(np.add.reduceat(values, edges[:-1]) / length, length)


# ----------------------------------------------------------------------------------------------------- the best policy
@dataclass(frozen=True)
class BandRule:
    """A rule that buys all coins if the signal is above one threshold, and sells them if it is below a second one."""

    buy_above: float
    sell_below: float
    growth: float  # long-run log growth per bar

    def holds(self, signal: np.ndarray) -> np.ndarray:
        """Return True for each bar after which the rule is invested, (T,) bool. It starts in cash."""
        events = np.where(signal > self.buy_above, 1, np.where(signal < self.sell_below, 0, -1))
        last = np.maximum.accumulate(np.where(events >= 0, np.arange(len(events)), -1))
        return np.where(last >= 0, events[last], 0).astype(bool)


@cache
def best_rule(bar_seconds: int, volatility: float, cost_rate: float) -> BandRule:
    """Return the band with the highest log growth, by relative value iteration over (signal, invested or not).

    Holding earns drift x s - volatility^2 / 2 per bar, and a switch costs `cost_rate` of the account.

    Args:
        bar_seconds: length of a bar.
        volatility: standard deviation of the portfolio's return per bar.
        cost_rate: fee and slippage of one order, fraction of notional.
    """
    points, chances = _signal_chain()
    gain = drift_per_signal(bar_seconds) * points - volatility**2 / 2.0  # (S,) growth of a bar that is held
    cash, held, growth = np.zeros_like(points), np.zeros_like(points), 0.0
    for _ in range(100_000):
        new_cash = chances @ np.maximum(cash, held - cost_rate)
        new_held = gain + chances @ np.maximum(held, cash - cost_rate)
        growth = float(new_cash[0] - cash[0])  # of an account that starts in cash
        is_settled = max(np.ptp(new_cash - cash), np.ptp(new_held - held)) < VALUE_TOLERANCE
        cash, held = new_cash - new_cash[0], new_held - new_cash[0]
        if is_settled:
            break
    worth = held - cash  # (S,) advantage of being invested, increases with the signal
    return BandRule(_crossing(points, worth - cost_rate), _crossing(points, worth + cost_rate), growth)


@cache
def _signal_chain() -> tuple[np.ndarray, np.ndarray]:
    """Return signal values (S,) and transition probabilities (S, S).

    The method is that of Tauchen (1986), with Sheppard's correction of the variance.
    """
    keep = math.exp(-1.0 / MEAN_LIFE_BARS)
    points, width = np.linspace(-LARGEST_SIGNAL, LARGEST_SIGNAL, SIGNAL_POINTS, retstep=True)
    edges = (points[1:] + points[:-1]) / 2.0
    below = ndtr((edges - keep * points[:, None]) / math.sqrt(1.0 - keep**2 - width**2 / 12.0))
    return points, np.diff(below, axis=1, prepend=0.0, append=1.0)


def _crossing(points: np.ndarray, rising: np.ndarray) -> float:
    """Return the zero of an increasing function on the points, infinite if it has none."""
    if not rising[0] < 0.0 < rising[-1]:
        return math.inf if rising[-1] <= 0.0 else -math.inf
    return float(np.interp(0.0, rising, points))
