"""Markets with a known best policy: one with an announced trend, and one without a signal.

On the announced market, a hidden regime names one coin or none at every bar. The named coin drifts up and all others
drift down, with independent noise. The regime is a Markov chain. The features show the regime of the return *after* the
next fill, so an order based on them fills in time. Two additional features are noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from market.dataset import Dataset, make_dataset
from train.validation.dual_bound import ChainLaw, chain_law

TICKERS = ("BTC", "ETH", "LTC")
BAR_SECONDS, FIRST_CLOSE_S = 300, 1_704_067_500


def env_config(log_price: np.ndarray, features: np.ndarray) -> dict[str, Any]:
    """Return the environment config of log prices (T, A) and features (T, F), without a minimum order size."""
    n_assets = log_price.shape[1]
    config = {"price_array": 100.0 * np.exp(log_price), "tech_array": features.astype(np.float32)}
    return config | {"tickers": [f"COIN{i}" for i in range(n_assets)], "min_order_qty": np.zeros(n_assets)}


@dataclass(frozen=True)
class AnnouncedMarket:
    """Parameters of the market with a signal; rates are log returns per bar."""

    n_assets: int = 2
    rise: float = 0.003  # drift of the named coin
    fall: float = -0.002  # drift of every other coin
    volatility: float = 0.004
    mean_regime_bars: float = 25.0
    n_noise_features: int = 2

    @property
    def n_regimes(self) -> int:
        """Number of regimes: one per coin, and one that names no coin."""
        return self.n_assets + 1

    def switching(self) -> np.ndarray:
        """Return the transition probabilities (R, R) of the regime; all other regimes are equally likely."""
        leave = 1.0 / self.mean_regime_bars
        chances = np.full((self.n_regimes, self.n_regimes), leave / self.n_assets)
        np.fill_diagonal(chances, 1.0 - leave)
        return chances

    def drift(self) -> np.ndarray:
        """Return the log return per bar, (R, A); the last regime names no coin."""
        drift = np.full((self.n_regimes, self.n_assets), self.fall)
        np.fill_diagonal(drift, self.rise)
        return drift

    def config(self, n_bars: int, seed: int | Sequence[int], mirrored: bool = False) -> dict[str, Any]:
        """Return the environment config of `n_bars` bars; a different seed gives an unseen stretch of the same market.

        `mirrored` flips the sign of the noise in the returns and changes nothing else.
        """
        rng = np.random.default_rng(seed)
        is_leaving = rng.random(n_bars + 1) < 1.0 / self.mean_regime_bars
        step = rng.integers(1, self.n_regimes, n_bars + 1)
        regime = np.cumsum(np.where(is_leaving, step, 0)) % self.n_regimes  # (T + 1,) rules bar t -> t + 1
        shocks = rng.normal(0.0, self.volatility, (n_bars, self.n_assets)) * (-1.0 if mirrored else 1.0)
        returns = self.drift()[regime[:-1]] + shocks
        log_price = np.cumsum(returns, axis=0) - returns  # (T, A), bar 0 at 0
        shown = np.eye(self.n_regimes, self.n_assets)[regime[1:]]  # (T, A) one bar ahead
        noise = rng.normal(size=(n_bars, self.n_noise_features))
        return env_config(log_price, np.hstack((shown, noise)))

    def dataset(self, n_bars: int, seed: int) -> Dataset:
        """Return the same market as a dataset of five-minute bars."""
        config, tickers = self.config(n_bars, seed), TICKERS[: self.n_assets]
        names = [f"{ticker}:announced" for ticker in tickers]
        return make_dataset(
            price=config["price_array"],
            tech=config["tech_array"],
            time=FIRST_CLOSE_S + BAR_SECONDS * np.arange(n_bars),
            tickers=tickers,
            feature_names=names + [f"time:noise_{i}" for i in range(self.n_noise_features)],
            bar_seconds=BAR_SECONDS,
            segments=[(0, n_bars)],
            source=f"announced market, seed {seed}",
            synthetic=True,
        )

    def regime_shown(self, tech: np.ndarray) -> np.ndarray:
        """Return the regime (n,) that each feature row (n, F) shows: that of the bar after the next fill."""
        named = np.asarray(tech)[:, : self.n_assets]
        return np.where(named.any(axis=1), named.argmax(axis=1), self.n_assets)

    def follow(self, state: Tensor) -> Tensor:
        """Apply the rule that `solve_plan` finds, (N, S) -> (N, A): buy the named coin, sell all others."""
        first = 1 + self.n_assets  # after cash and weights
        return state[:, first : first + self.n_assets] * 2.0 - 1.0


def silent_config(n_bars: int, n_assets: int, seed: int, volatility: float = 0.004) -> dict[str, Any]:
    """Return a market without a signal: simple returns of mean 0 and noise features.

    No policy has positive mean growth.
    """
    rng = np.random.default_rng(seed)
    log_price = np.cumsum(rng.normal(-(volatility**2) / 2.0, volatility, (n_bars, n_assets)), axis=0)
    return env_config(log_price, rng.normal(size=(n_bars, 4)))


@dataclass(frozen=True)
class Plan:
    """Solution of the market: the portfolio to hold in every regime, whatever is held before."""

    weights: np.ndarray  # (K, A) portfolios considered, shares of equity
    target: np.ndarray  # (R, K) index of the portfolio to hold
    growth: float  # long-run log growth per bar


def solve_plan(market: AnnouncedMarket, cost_rate: float, parts: int = 10, tolerance: float = 1e-9) -> Plan:
    """Find the best long-run log growth by relative value iteration over regimes and portfolios.

    Portfolios are a grid of `parts` equal parts of equity. Trading costs `cost_rate` of the traded notional (fee plus
    slippage). The cost is paid from equity and reduces purchases that lack the cash, as in the environment with
    norm_action = 1, where one order can move the whole account. The drift of mixed weights within a bar is ignored.
    It has no effect here, because the plan holds one coin or none.
    """
    weights = portfolios(market.n_assets, parts)  # (K, A)
    move = moving_costs(weights, cost_rate)  # (K, K) log equity lost
    gain = _expected_log_growth(market, weights)  # (R, K)
    chances = market.switching()

    def options(future: np.ndarray) -> np.ndarray:
        return future[:, None, :] - move[None]  # (R, K held, K wanted)

    growth, value = relative_values(
        gain, lambda value: chances @ value, lambda future: options(future).max(-1), tolerance
    )
    return Plan(weights, options(gain + chances @ value).argmax(-1), growth)


def relative_values(
    gain: np.ndarray,
    expect: Callable[[np.ndarray], np.ndarray],
    trade: Callable[[np.ndarray], np.ndarray],
    tolerance: float = 1e-9,
) -> tuple[float, np.ndarray]:
    """Return the best long-run gain per bar and the relative values, by value iteration (Puterman 1994, section 8.5).

    Args:
        gain: (state, holding) expected gain of a bar with that holding.
        expect: maps the values of the next bar's states to their mean, by the current state.
        trade: maps the (state, holding) value to the best one after trading, by the holding before, net of costs.
        tolerance: in gain per bar; the error is at most half of it.
    """
    value = np.zeros_like(gain)
    while True:
        updated = trade(gain + expect(value))
        growth = updated - value
        if growth.max() - growth.min() < tolerance:
            return float((growth.max() + growth.min()) / 2.0), value
        value = updated - updated.flat[0]


def law_of(market: AnnouncedMarket, cost_rate: float, most_bars: int, parts: int = 10) -> ChainLaw:
    """Return the market's law for `train.validation.dual_bound`; signals are `regime_shown`, portfolio 0 is cash.

    Args:
        market: the market.
        cost_rate: fee plus slippage per side, as in `solve_plan`.
        most_bars: number of decisions in the longest segment.
        parts: number of parts in the portfolio grid.
    """
    weights = portfolios(market.n_assets, parts)
    gain = _expected_log_growth(market, weights)
    return chain_law(market.switching(), gain, moving_costs(weights, cost_rate), most_bars)


def portfolios(n_assets: int, parts: int) -> np.ndarray:
    """Return all portfolios (K, A) of equal parts of equity with the rest in cash; the first is all cash."""
    grid = [w for w in product(range(parts + 1), repeat=n_assets) if sum(w) <= parts]
    return np.array(grid) / parts


def moving_costs(weights: np.ndarray, cost_rate: float) -> np.ndarray:
    """Return the log equity (K, K) lost by trading from each portfolio into each other."""
    return np.array([[log_cost(old, new, cost_rate) for new in weights] for old in weights])


def log_cost(old: np.ndarray, new: np.ndarray, cost_rate: float) -> float:
    """Return the log equity lost by trading weights `old` into `new`, at cost rate c on everything sold and bought.

    A purchase that needs all cash is reduced until cost and coins fit. Equity is then the value of the coins.
    """
    sold, bought = np.maximum(old - new, 0.0).sum(), np.maximum(new - old, 0.0).sum()
    cash = 1.0 - old.sum() + sold * (1.0 - cost_rate)
    bought = min(bought, cash / (1.0 + cost_rate))
    return -float(np.log(1.0 - cost_rate * (sold + bought)))


def _expected_log_growth(market: AnnouncedMarket, weights: np.ndarray) -> np.ndarray:
    """Return the mean (R, K) of log(1 + sum w (e^r - 1)) over the noise, by Gauss-Hermite quadrature."""
    points, masses = np.polynomial.hermite_e.hermegauss(7)
    masses = masses / masses.sum()
    growth = np.zeros((market.n_regimes, len(weights)))
    for index in product(range(len(points)), repeat=market.n_assets):
        noise = market.volatility * points[list(index)]
        simple = np.exp(market.drift() + noise) - 1.0  # (R, A)
        growth += masses[list(index)].prod() * np.log1p(simple @ weights.T)
    return growth


def is_the_rule(plan: Plan) -> bool:
    """Return True if the plan equals `AnnouncedMarket.follow` from cash and from any single coin."""
    n_assets = plan.weights.shape[1]
    corners = [np.flatnonzero((plan.weights == corner).all(1))[0] for corner in np.eye(n_assets + 1, n_assets)]
    return all(plan.target[regime, held] == corners[regime] for regime in range(n_assets + 1) for held in corners)


def noisy(actor: torch.nn.Module, generator: torch.Generator) -> Any:
    """Return the exploring policy: tanh(mean + deviation * noise)."""

    def act(state: Tensor) -> Tensor:
        mean = actor.net(actor.state_norm(state))  # type: ignore[operator]
        return torch.tanh(mean + actor.action_std_log.exp() * torch.randn(mean.shape, generator=generator))

    return act
