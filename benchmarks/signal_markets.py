"""Markets in which each coin has a slowly changing signal, and the best growth after costs.

A coin's signal is an AR(1) process of unit variance. Its next return is `alpha` times the signal, plus noise. The
features show the signal of the return *after* the next fill: an order chosen at bar t fills at the close of bar t + 1,
and the feature of bar t is the signal of the return from t + 1 to t + 2. An order therefore fills in time.

The optimum of one coin comes from relative value iteration over (signal, held weight). That of two coins comes from
value iteration over (signal, signal, portfolio). More coins share one budget, so the problem does not separate. Their
reference is the best rule of a family, found by grid search on other bars.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numba as nb
import numpy as np
import torch
from scipy.signal import lfilter
from scipy.special import ndtr
from torch import Tensor

from benchmarks.planted_markets import env_config, moving_costs, portfolios, relative_values

LARGEST_SIGNAL = 4.5  # end of the signal grid; 7 bars in a million lie beyond it


@dataclass(frozen=True)
class SignalMarket:
    """Parameters of the market; rates are per bar."""

    n_assets: int = 1
    alpha: float = 1e-4  # expected simple return per unit of signal
    volatility: float = 0.0025  # standard deviation of the log return around it
    mean_life_bars: float = 48.0  # lifetime of a signal: its autocorrelation at lag k is exp(-k / mean_life_bars)
    n_noise_features: int = 2

    @property
    def persistence(self) -> float:
        """Autocorrelation of a signal from one bar to the next."""
        return math.exp(-1.0 / self.mean_life_bars)

    def signals(self, n_bars: int, rng: np.random.Generator) -> np.ndarray:
        """Return stationary AR(1) processes of unit variance, (T, A)."""
        keep = self.persistence
        shocks = rng.normal(size=(n_bars, self.n_assets)) * math.sqrt(1.0 - keep**2)
        before = rng.normal(size=(1, self.n_assets)) * keep
        return lfilter([1.0], [1.0, -keep], shocks, axis=0, zi=before)[0]

    def config(self, n_bars: int, seed: int | Sequence[int], mirrored: bool = False) -> dict[str, Any]:
        """Return the environment config of `n_bars` bars; a different seed gives an unseen stretch of the same market.

        Args:
            n_bars: length T.
            seed: seed of signals and noise.
            mirrored: flip the sign of the noise in the returns and change nothing else. The mean over a stretch and its
                mirror image has the same expectation and almost no noise.
        """
        rng = np.random.default_rng(seed)
        signal = self.signals(n_bars + 1, rng)  # (T + 1, A) rules t -> t + 1
        shocks = rng.normal(0.0, self.volatility, (n_bars, self.n_assets)) * (-1.0 if mirrored else 1.0)
        returns = self.alpha * signal[:-1] - self.volatility**2 / 2.0 + shocks  # log
        log_price = np.cumsum(returns, axis=0) - returns  # (T, A), bar 0 at 0
        noise = rng.normal(size=(n_bars, self.n_noise_features))
        return env_config(log_price, np.hstack((signal[1:], noise)))

    def switching(self, n_points: int) -> tuple[np.ndarray, np.ndarray]:
        """Return signals (S,) and transition probabilities (S, S); every point represents its cell (Tauchen 1986).

        Rounding to cells of width d adds d^2 / 12 to the variance of a step. This is subtracted from the shock's
        variance (Sheppard's correction), so that the chain keeps the variance of the process.
        """
        points, width = np.linspace(-LARGEST_SIGNAL, LARGEST_SIGNAL, n_points, retstep=True)
        edges = (points[1:] + points[:-1]) / 2.0
        deviation = math.sqrt(1.0 - self.persistence**2 - width**2 / 12.0)
        below = ndtr((edges - self.persistence * points[:, None]) / deviation)
        return points, np.diff(below, axis=1, prepend=0.0, append=1.0)


def joined(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one config that contains each given config as a segment."""
    ends = np.cumsum([0, *(len(config["price_array"]) for config in configs)]).tolist()
    rows = {name: np.concatenate([config[name] for config in configs]) for name in ("price_array", "tech_array")}
    return {**configs[0], **rows, "segments": list(pairwise(ends))}


# ------------------------------------------------------------------------------------------------------------ one coin
@dataclass(frozen=True)
class Optimum:
    """The best policy for one coin: keep the held weight between `lo` and `hi` at the signal's grid point."""

    growth: float  # long-run growth per bar
    signals: np.ndarray  # (S,)
    lo: np.ndarray  # (S,) weight below which the policy buys
    hi: np.ndarray  # (S,) weight above which the policy sells
    buy_above: float  # signal above which an account without a position buys
    sell_below: float  # signal below which a fully invested account sells

    def act(self, state: Tensor) -> Tensor:
        """Return orders for an environment with one coin, a `relative` observation and norm_action 1."""
        weight, signal = state[:, 1:2], state[:, 2:3].contiguous()
        place = torch.bucketize(signal, torch.as_tensor((self.signals[1:] + self.signals[:-1]) / 2.0).float())
        lo, hi = (torch.as_tensor(edge, dtype=state.dtype)[place] for edge in (self.lo, self.hi))
        order = torch.minimum(torch.maximum(weight, lo), hi) - weight
        return torch.where(hi == 0.0, -1.0, order)  # closes the position; a smaller order would leave dust


def solve_one_coin(
    market: SignalMarket, cost_rate: float, *, is_additive: bool = False, n_signals: int = 241, n_weights: int = 41
) -> Optimum:
    """Solve one coin by relative value iteration over (signal, held weight in [0, 1]).

    Trading costs `cost_rate` of the traded notional. Holding w earns w alpha s - w^2 volatility^2 / 2 per bar, which is
    log growth to second order; the variance reduces it. Third-order terms and the drift of a mixed weight between two
    bars are ignored.

    Args:
        market: the market; its `n_assets` is ignored.
        cost_rate: fee plus slippage as a fraction of notional.
        is_additive: omit the variance and maximize the sum of w alpha s minus costs, which has known closed forms. No
            compounding account can earn it.
        n_signals: number of grid points of the signal; an odd number includes 0.
        n_weights: number of grid points of the weight.
    """
    signals, chances = market.switching(n_signals)
    weights = np.linspace(0.0, 1.0, n_weights)
    drag = 0.0 if is_additive else market.volatility**2 / 2.0
    gain = market.alpha * signals[:, None] * weights - drag * weights**2  # (S, W)
    paid = cost_rate * weights

    def trade(future: np.ndarray) -> np.ndarray:
        """Return the best value (S, W) over target weights; a linear cost needs one sweep up and one down."""
        bought = np.maximum.accumulate((future - paid)[:, ::-1], axis=1)[:, ::-1] + paid
        sold = np.maximum.accumulate(future + paid, axis=1) - paid
        return np.maximum(bought, sold)

    growth, value = relative_values(gain, lambda value: chances @ value, trade)
    slope = np.diff(gain + chances @ value, axis=1) * (n_weights - 1)  # (S, W - 1) marginal value of weight
    lo, hi = ((slope > edge).sum(1) / (n_weights - 1) for edge in (cost_rate, -cost_rate))
    buy_above, sell_below = _crossing(signals, slope[:, 0] - cost_rate), _crossing(signals, slope[:, -1] + cost_rate)
    return Optimum(growth, signals, lo, hi, buy_above, sell_below)


def _crossing(points: np.ndarray, rising: np.ndarray) -> float:
    """Return the zero of an increasing function of the points, or infinity if it has none."""
    if not rising[0] < 0.0 < rising[-1]:
        return math.inf if rising[-1] <= 0.0 else -math.inf
    return float(np.interp(0.0, rising, points))


# ----------------------------------------------------------------------------------------------------------- two coins
def solve_two_coins(market: SignalMarket, cost_rate: float, n_signals: int = 61, parts: int = 2) -> float:
    """Return the best log growth per bar of two coins in one account.

    Portfolios are a grid of `parts` equal parts of equity. Together with the signals' grid there are
    n_signals^2 (parts + 1) (parts + 2) / 2 states.
    """
    signals, chances = market.switching(n_signals)
    weights = portfolios(2, parts)  # (K, 2)
    move = moving_costs(weights, cost_rate)  # (K, K)
    drift = market.alpha * (signals[:, None, None] * weights[:, 0] + signals[None, :, None] * weights[:, 1])
    gain = drift - market.volatility**2 / 2.0 * (weights**2).sum(1)  # (S, S, K)

    def expect(value: np.ndarray) -> np.ndarray:
        return np.einsum("ij,jlk->ilk", chances, np.einsum("lm,jmk->jlk", chances, value, optimize=True), optimize=True)

    def trade(future: np.ndarray) -> np.ndarray:
        return np.stack([(future - paid).max(-1) for paid in move], axis=-1)  # (S, S, K) best value, by held portfolio

    return relative_values(gain, expect, trade)[0]


# ---------------------------------------------------------------------------------------------------------- many coins
@dataclass(frozen=True)
class BestCoinRule:
    """Hold the coin with the highest signal, or cash; three thresholds decide when to buy, sell and switch."""

    n_assets: int
    buy_above: float
    sell_below: float
    switch_by: float  # switch coins if the best signal exceeds the held coin's by more than this
    growth: float = math.nan  # log growth per bar

    def act(self, state: Tensor) -> Tensor:
        """Return the rule's orders, (N, S) -> (N, A)."""
        weights, signals = state[:, 1 : 1 + self.n_assets], state[:, 1 + self.n_assets : 1 + 2 * self.n_assets]
        most, held = weights.max(1)
        best_signal, best = signals.max(1)
        own_signal = signals.gather(1, held[:, None])[:, 0]
        is_empty = most < 0.5
        is_kept = ~is_empty & (own_signal >= self.sell_below) & (best_signal - own_signal <= self.switch_by)
        is_bought = ~is_kept & (best_signal > self.buy_above)
        wanted = torch.where(is_kept, held, torch.where(is_bought, best, -1))
        return torch.where(torch.arange(self.n_assets) == wanted[:, None], 1.0, -1.0)


def find_rule(market: SignalMarket, cost_rate: float, n_bars: int = 200_000, seed: int = 90) -> BestCoinRule:
    """Find the best rule of the family by a coarse and a fine grid search, and estimate its growth on other bars."""
    signals, unseen = (market.signals(n, np.random.default_rng((seed, n))) for n in (n_bars, 10 * n_bars))

    def growth(rule: tuple[float, float, float], bars: np.ndarray = signals) -> float:
        return rule_growth(bars, *rule, market.alpha, market.volatility**2 / 2.0, cost_rate)

    best = max(product(np.linspace(0.0, 3.0, 9), np.linspace(-3.0, 1.0, 9), np.linspace(0.25, 4.25, 9)), key=growth)
    best = max(product(*(centre + np.linspace(-0.375, 0.375, 7) for centre in best)), key=growth)
    return BestCoinRule(market.n_assets, *map(float, best), growth=growth(best, unseen))


@nb.njit(cache=True)
def rule_growth(
    signals: np.ndarray, buy_above: float, sell_below: float, switch_by: float, alpha: float, drag: float, cost: float
) -> float:
    """Return the log growth per bar of a `BestCoinRule`, without the noise, whose mean is 0 for any holding."""
    held, total = -1, 0.0
    for t in range(signals.shape[0]):
        best = np.argmax(signals[t])
        wanted = best if signals[t, best] > buy_above else -1
        if held >= 0 and signals[t, held] >= sell_below and signals[t, best] - signals[t, held] <= switch_by:
            wanted = held
        if wanted != held:
            total -= cost * (1.0 if held < 0 or wanted < 0 else 2.0)
            held = wanted
        if held >= 0:
            total += alpha * signals[t, held] - drag
    return total / signals.shape[0]
