"""The laws of the sample market, and the signal that one of them carries, with the best policy for it.

`FAIR` is the sample market: whatever is known, the mean simple return of the next bar is 0. The two other laws are for
demonstrations, and datasets carry their names. `NO_SIGNAL` is that fair game, bar for bar. `PLANTED` adds one signal
for the whole market:

    s      an AR(1) process with a mean life of `MEAN_LIFE_BARS` bars, centred over parts of `SIGNAL_PART_BARS` bars and
           scaled to variance 1
    drift  every coin's mean simple return in bar t + 2 is `STRENGTH` x the market's volatility of a bar x s_t
    volume every coin's volume in bar t is multiplied by exp(VOLUME_GAIN s_t - VOLUME_GAIN^2 / 2)

An order decided after bar t is filled at the close of bar t + 1, so it earns bar t + 2: it arrives in time. Default
features that show the signal are `volume_ratio`, and, since a drift that lasts is a trend, the returns, `rsi_14` and
`macd`. A straight line through all default features of seven coins correlates with s at 0.90 on 5-minute bars.

All coins have the same drift, so the best portfolio holds all of them or none. Of the policies that see the present s,
the best is a band: buy when s is above one threshold, sell when it is below another (de Lataillade et al. 2012, arXiv
1203.5957, for linear costs; `best_rule` solves it). On 5-minute bars at a cost of 30 bp these are 0.62 and -0.62, and
the log growth is 1.58 bp a bar. An agent sees features and not s, so it cannot earn all of that. Centring s lets equal
weight earn next to nothing over the sample. It also makes the rest of a part a little predictable from its past, which
the band leaves unused.
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
STRENGTH = 0.4  # drift of s = 1, over the market's volatility of a bar
VOLUME_GAIN = 1.0
ORDER_BARS = 2  # from the bar that shows the signal to the bar that it governs
START = "2024-01-01"  # of every sample dataset, UTC
SIGNAL_POINTS, LARGEST_SIGNAL = 161, 4.5  # grid of the solver
VALUE_TOLERANCE = 1e-12


class Law(Enum):
    """What rules the returns of the sample market."""

    FAIR = "fair"
    NO_SIGNAL = "no signal"
    PLANTED = "planted signal"

    @property
    def has_recipe(self) -> bool:
        """Whether a dataset's source and label name the law."""
        return self is not Law.FAIR


# ---------------------------------------------------------------------------------------------------- where it is named
@dataclass(frozen=True)
class Recipe:
    """What a sample market of a demonstration was made with: enough to make its signal again."""

    law: Law
    seed: int
    n_bars: int  # per coin, the features' warm-up included

    @property
    def text(self) -> str:
        """The dataset's source."""
        return f"sample market, {self.law.value}, seed {self.seed}, {self.n_bars} bars"


def recipe_of(text: str) -> Recipe | None:
    """The recipe in a dataset's source, or in a label that ends with it; None if it names none."""
    laws = "|".join(law.value for law in Law if law.has_recipe)
    found = re.search(rf"\bsample market, ({laws}), seed (\d+), (\d+) bars$", text)
    return None if found is None else Recipe(Law(found[1]), int(found[2]), int(found[3]))


def synthetic_kind(source: str) -> str:
    """`SYNTHETIC`, with the law of a sample market that was made for a demonstration."""
    recipe = recipe_of(source)
    return "SYNTHETIC" if recipe is None else f"SYNTHETIC, {recipe.law.value}"


# ---------------------------------------------------------------------------------------------------------- the signal
def generator(seed: int, name: str) -> np.random.Generator:
    """The random numbers of one part of a sample market, independent of every other part."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def planted_signal(n_bars: int, seed: int) -> np.ndarray:
    """(n_bars,) signal of every bar of a planted market, in units of its standard deviation."""
    series = autoregression(generator(seed, "signal"), n_bars, math.exp(-1.0 / MEAN_LIFE_BARS))
    share = MEAN_LIFE_BARS / SIGNAL_PART_BARS
    variance_of_means = 2.0 * share * (1.0 - share * -math.expm1(-1.0 / share))  # of parts that long
    return centred(series, SIGNAL_PART_BARS) / math.sqrt(1.0 - variance_of_means)


def signal_at(recipe: Recipe, close_s: np.ndarray, bar_seconds: int) -> np.ndarray:
    """(T,) signal of the bars that close at those UTC seconds.

    Args:
        recipe: of a planted market.
        close_s: (T,) from the dataset's time array.
        bar_seconds: length of a bar.
    """
    first = int(np.datetime64(START, "s").astype(np.int64)) // bar_seconds * bar_seconds
    return planted_signal(recipe.n_bars, recipe.seed)[(close_s - first) // bar_seconds - 1]


def drift_per_signal(bar_seconds: int) -> float:
    """Mean simple return of a bar at s = 1."""
    return STRENGTH * MARKET_VOLATILITY * math.sqrt(bar_seconds / YEAR_SECONDS)


def drifts(signal: np.ndarray, bar_seconds: int) -> np.ndarray:
    """(T,) mean simple return of every bar, of (T,) signals."""
    out = np.zeros_like(signal)
    out[ORDER_BARS:] = signal[: max(len(signal) - ORDER_BARS, 0)]
    return drift_per_signal(bar_seconds) * out


def log_volume_factor(signal: np.ndarray) -> np.ndarray:
    """(T,) what the signal adds to the log of every coin's volume."""
    return VOLUME_GAIN * signal - VOLUME_GAIN**2 / 2.0


def autoregression(rng: np.random.Generator, n_bars: int, keep: float) -> np.ndarray:
    """(n_bars,) stationary Gaussian AR(1) series of variance 1 with the coefficient `keep`."""
    noise = rng.standard_normal(n_bars)
    inputs = np.concatenate([noise[:1], noise[1:] * np.sqrt(1.0 - keep**2)])
    scaled = np.concatenate([inputs[:1], inputs[1:] / (1.0 - keep)])
    return pd.Series(scaled).ewm(alpha=1.0 - keep, adjust=False).mean().to_numpy()


def centred(values: np.ndarray, part_bars: int) -> np.ndarray:
    """(T,) values minus their mean over each of equal parts of about `part_bars` bars."""
    edges = np.linspace(0, len(values), max(round(len(values) / part_bars), 1) + 1).astype(np.int64)
    length = np.diff(edges)
    return values - np.repeat(np.add.reduceat(values, edges[:-1]) / length, length)


# ----------------------------------------------------------------------------------------------------- the best policy
@dataclass(frozen=True)
class BandRule:
    """Buy everything when the signal rises above one threshold, sell everything when it falls below the other."""

    buy_above: float
    sell_below: float
    growth: float  # log growth of a bar, of following it for ever

    def holds(self, signal: np.ndarray) -> np.ndarray:
        """(T,) bool, whether the rule wants to be invested after each bar; it begins in cash."""
        events = np.where(signal > self.buy_above, 1, np.where(signal < self.sell_below, 0, -1))
        last = np.maximum.accumulate(np.where(events >= 0, np.arange(len(events)), -1))
        return np.where(last >= 0, events[last], 0).astype(bool)


@cache
def best_rule(bar_seconds: int, volatility: float, cost_rate: float) -> BandRule:
    """The band with the highest log growth, by relative value iteration over (signal, invested or not).

    Holding earns drift x s - volatility^2 / 2 a bar, and a switch costs `cost_rate` of the account.

    Args:
        bar_seconds: length of a bar.
        volatility: standard deviation of a bar's return of the portfolio that is held.
        cost_rate: fee and slippage of one order, a fraction of its notional.
    """
    points, chances = _signal_chain()
    gain = drift_per_signal(bar_seconds) * points - volatility**2 / 2.0  # (S,) of a bar that is held
    cash, held, growth = np.zeros_like(points), np.zeros_like(points), 0.0
    for _ in range(100_000):
        new_cash = chances @ np.maximum(cash, held - cost_rate)
        new_held = gain + chances @ np.maximum(held, cash - cost_rate)
        growth = float(new_cash[0] - cash[0])  # of an account that begins in cash, as every account does
        is_settled = max(np.ptp(new_cash - cash), np.ptp(new_held - held)) < VALUE_TOLERANCE
        cash, held = new_cash - new_cash[0], new_held - new_cash[0]
        if is_settled:
            break
    worth = held - cash  # (S,) of being invested, grows with the signal
    return BandRule(_crossing(points, worth - cost_rate), _crossing(points, worth + cost_rate), growth)


@cache
def _signal_chain() -> tuple[np.ndarray, np.ndarray]:
    """(S,) signals and (S, S) chances from one to the next (Tauchen 1986); its variance has Sheppard's correction."""
    keep = math.exp(-1.0 / MEAN_LIFE_BARS)
    points, width = np.linspace(-LARGEST_SIGNAL, LARGEST_SIGNAL, SIGNAL_POINTS, retstep=True)
    edges = (points[1:] + points[:-1]) / 2.0
    below = ndtr((edges - keep * points[:, None]) / math.sqrt(1.0 - keep**2 - width**2 / 12.0))
    return points, np.diff(below, axis=1, prepend=0.0, append=1.0)


def _crossing(points: np.ndarray, rising: np.ndarray) -> float:
    """Where an increasing function of the points passes 0; infinite if it does not."""
    if not rising[0] < 0.0 < rising[-1]:
        return math.inf if rising[-1] <= 0.0 else -math.inf
    return float(np.interp(0.0, rising, points))
