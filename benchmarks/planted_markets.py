"""Markets whose best policy is known: one with an announced trend, one with nothing to know.

The announced market: at every bar a hidden regime names one coin, or none. The named coin drifts up, all others drift
down, around independent noise. The regime is a Markov chain, and the features show the regime that rules the return
*after* the coming fill, so an order placed on it arrives in time. Two further features are noise.
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
    """Environment config of (T, A) log prices and (T, F) features; orders may be as small as they like."""
    n_assets = log_price.shape[1]
    config = {"price_array": 100.0 * np.exp(log_price), "tech_array": features.astype(np.float32)}
    return config | {"tickers": [f"COIN{i}" for i in range(n_assets)], "min_order_qty": np.zeros(n_assets)}


@dataclass(frozen=True)
class AnnouncedMarket:
    """Parameters of the market with a signal. Rates are log returns per bar."""

    n_assets: int = 2
    rise: float = 0.003  # of the named coin
    fall: float = -0.002  # of every other coin
    volatility: float = 0.004
    mean_regime_bars: float = 25.0
    n_noise_features: int = 2

    @property
    def n_regimes(self) -> int:
        """One for each coin, and one for none."""
        return self.n_assets + 1

    def switching(self) -> np.ndarray:
        """(R, R) probabilities of the next bar's regime: stay, or go to any other alike."""
        leave = 1.0 / self.mean_regime_bars
        chances = np.full((self.n_regimes, self.n_regimes), leave / self.n_assets)
        np.fill_diagonal(chances, 1.0 - leave)
        return chances

    def drift(self) -> np.ndarray:
        """(R, A) log return per bar; the last regime names no coin."""
        drift = np.full((self.n_regimes, self.n_assets), self.fall)
        np.fill_diagonal(drift, self.rise)
        return drift

    def config(self, n_bars: int, seed: int | Sequence[int], mirrored: bool = False) -> dict[str, Any]:
        """Environment config of `n_bars` bars. Another seed is another, unseen stretch of the same market.

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
        """The same as a dataset of five-minute bars."""
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
        """(n,) regime that each row of features (n, F) shows: the one that rules the bar after the coming fill."""
        named = np.asarray(tech)[:, : self.n_assets]
        return np.where(named.any(axis=1), named.argmax(axis=1), self.n_assets)

    def follow(self, state: Tensor) -> Tensor:
        """The rule `solve_plan` finds: everything into the named coin, out of all others. (N, S) -> (N, A)."""
        first = 1 + self.n_assets  # after cash and weights
        return state[:, first : first + self.n_assets] * 2.0 - 1.0


def silent_config(n_bars: int, n_assets: int, seed: int, volatility: float = 0.004) -> dict[str, Any]:
    """A market without signal: simple returns of mean 0, features of noise. No policy has a positive mean growth."""
    rng = np.random.default_rng(seed)
    log_price = np.cumsum(rng.normal(-(volatility**2) / 2.0, volatility, (n_bars, n_assets)), axis=0)
    return env_config(log_price, rng.normal(size=(n_bars, 4)))


@dataclass(frozen=True)
class Plan:
    """The solved market: what to hold in every regime, whatever is held now."""

    weights: np.ndarray  # (K, A) portfolios considered, shares of equity
    target: np.ndarray  # (R, K) index of the portfolio to hold
    growth: float  # log growth per bar of following it for ever


def solve_plan(market: AnnouncedMarket, cost_rate: float, parts: int = 10, tolerance: float = 1e-9) -> Plan:
    """Best long-run log growth by relative value iteration over regimes and portfolios.

    Portfolios are a grid of `parts` equal parts of equity. Trading costs `cost_rate` of the traded notional (fee and
    slippage), is paid from equity and shrinks a purchase that lacks the cash, as in the environment with
    norm_action = 1, where one order can move the whole account. Ignored: drift of mixed weights within a bar, which
    cannot matter where, as here, the plan holds one coin or none.
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
    """Best gain per bar in the long run, and relative values, by value iteration (Puterman 1994, section 8.5).

    Args:
        gain: (state, holding) expected gain of a bar with that holding.
        expect: values of the next bar's states -> their mean, by this bar's state.
        trade: (state, holding) worth of having it -> the best, by what is held before the trade, costs paid.
        tolerance: in gain per bar; the result is at most half of it off.
    """
    value = np.zeros_like(gain)
    while True:
        updated = trade(gain + expect(value))
        growth = updated - value
        if growth.max() - growth.min() < tolerance:
            return float((growth.max() + growth.min()) / 2.0), value
        value = updated - updated.flat[0]


def law_of(market: AnnouncedMarket, cost_rate: float, most_bars: int, parts: int = 10) -> ChainLaw:
    """The market's law for `train.validation.dual_bound`: signals are `regime_shown`, portfolio 0 is cash.

    Args:
        market: whose law it is.
        cost_rate: of one side, fee and slippage, as in `solve_plan`.
        most_bars: decisions of the longest segment.
        parts: of the grid of portfolios.
    """
    weights = portfolios(market.n_assets, parts)
    gain = _expected_log_growth(market, weights)
    return chain_law(market.switching(), gain, moving_costs(weights, cost_rate), most_bars)


def portfolios(n_assets: int, parts: int) -> np.ndarray:
    """(K, A) all weights of equal parts of equity, the rest in cash; the first is all cash."""
    grid = [w for w in product(range(parts + 1), repeat=n_assets) if sum(w) <= parts]
    return np.array(grid) / parts


def moving_costs(weights: np.ndarray, cost_rate: float) -> np.ndarray:
    """(K, K) log equity lost by trading each portfolio into each."""
    return np.array([[log_cost(old, new, cost_rate) for new in weights] for old in weights])


def log_cost(old: np.ndarray, new: np.ndarray, cost_rate: float) -> float:
    """Log equity lost by trading weights `old` into `new`: c of all that is sold and bought, bought from what is left.

    A full purchase is cut so that cost and coins fit the cash; equity then is what the coins are worth.
    """
    sold, bought = np.maximum(old - new, 0.0).sum(), np.maximum(new - old, 0.0).sum()
    cash = 1.0 - old.sum() + sold * (1.0 - cost_rate)
    bought = min(bought, cash / (1.0 + cost_rate))
    return -float(np.log(1.0 - cost_rate * (sold + bought)))


def _expected_log_growth(market: AnnouncedMarket, weights: np.ndarray) -> np.ndarray:
    """(R, K) mean of log(1 + sum w (e^r - 1)) over the noise, by Gauss-Hermite quadrature."""
    points, masses = np.polynomial.hermite_e.hermegauss(7)
    masses = masses / masses.sum()
    growth = np.zeros((market.n_regimes, len(weights)))
    for index in product(range(len(points)), repeat=market.n_assets):
        noise = market.volatility * points[list(index)]
        simple = np.exp(market.drift() + noise) - 1.0  # (R, A)
        growth += masses[list(index)].prod() * np.log1p(simple @ weights.T)
    return growth


def is_the_rule(plan: Plan) -> bool:
    """Whether the plan, from cash and from any single coin, is `AnnouncedMarket.follow`: the named coin or nothing."""
    n_assets = plan.weights.shape[1]
    corners = [np.flatnonzero((plan.weights == corner).all(1))[0] for corner in np.eye(n_assets + 1, n_assets)]
    return all(plan.target[regime, held] == corners[regime] for regime in range(n_assets + 1) for held in corners)


def noisy(actor: torch.nn.Module, generator: torch.Generator) -> Any:
    """The policy as it explores: tanh(mean + deviation * noise)."""

    def act(state: Tensor) -> Tensor:
        mean = actor.net(actor.state_norm(state))  # type: ignore[operator]
        return torch.tanh(mean + actor.action_std_log.exp() * torch.randn(mean.shape, generator=generator))

    return act
