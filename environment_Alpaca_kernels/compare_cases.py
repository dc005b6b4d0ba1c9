# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Cases of `--compare`: markets, settings, and eight kinds of actions.

A case is one market with one group of settings. In every case, each account takes a different kind of action (`KINDS`),
because no single kind reaches every rule. For example, positions become stale only without trading, and minimum orders
matter only for small orders.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from . import drop_in
from .compare_host import HostClass, UsageError

Array = np.ndarray
Behaviour = Generator[Array, "View", None]

LARGEST_ACTION = 2000.0  # above 1000, where some hosts clip
NORMS = {"norm_cash": 2.0**-12, "norm_stocks": 2.0**-8, "norm_tech": 2.0**-6, "norm_reward": 2.0**-10}
N_FEATURES = 3
FULL_LENGTH = 2  # number of planned cases with all bars, in which positions reach the greatest age
UNSCALED = ("initial_capital", "trailing_stop_pct")  # settings adapted to the market
UNIFORM_SHARE = 0.2  # share of the initial capital that an action of 1 trades


@dataclass(frozen=True)
class Case:
    """One market with one group of settings."""

    name: str
    config: dict[str, Array]
    settings: dict[str, Any]
    may_raise: bool = False  # prices of 0, which some hosts do not support
    low_cash: float | None = None  # quote, below the cash reserve


# ---------------------------------------------------------------------------------------------- markets
@dataclass(frozen=True)
class Scale:
    """A host's capital and minimum orders, from which prices and actions are scaled."""

    capital: float  # quote
    min_qty: Array  # (A,) coins


def first_prices(scale: Scale, source: np.random.Generator) -> Array:
    """Return prices (A,) at which the smallest orders are worth 0.05 to 1 % of the capital."""
    share = 10.0 ** source.uniform(-3.3, -2.0, len(scale.min_qty))
    without_minimum = scale.capital * share * 0.01
    return np.where(scale.min_qty > 0, scale.capital * share / np.maximum(scale.min_qty, 1e-300), without_minimum)


def made_prices(kind: str, n_bars: int, scale: Scale, source: np.random.Generator) -> Array:
    """Generate a market (T, A) of a kind in MARKETS."""
    first, n_assets = first_prices(scale, source), len(scale.min_qty)
    volatility, drift = MARKETS[kind]
    move = source.normal(drift, volatility, (n_bars, n_assets))
    if kind == "rising":  # a few coins become large positions in every account
        move += source.uniform(-0.004, 0.006, n_assets)
    if kind == "coarse":  # most bars have no price change
        move *= source.random((n_bars, 1)) < 0.3
    if kind == "powers of ten":
        digits = np.log10(first)
        first = 10.0 ** np.where(np.arange(n_assets) % 2, np.round(digits), 3 * np.round(digits / 3))
    move[0] = 0.0
    price = first * np.exp(np.cumsum(move, axis=0))
    if kind == "powers of ten":
        price[0] = [float(f"1e{int(np.rint(np.log10(x)))}") for x in first]
    if kind == "coarse":  # few binary digits, so prices and a fall of one eighth are exact in float32
        step = 2.0 ** np.floor(np.log2(first) - 4)
        price = np.maximum(np.round(price / step), 1.0) * step
    if kind == "missing prices":
        price[1:][source.random((n_bars - 1, n_assets)) < 0.02] = 0.0
        for asset in range(n_assets):
            hole = int(source.integers(1, max(n_bars - 70, 2)))
            price[hole : hole + int(source.integers(5, 70)), asset] = 0.0
    return price


# Name -> volatility and drift per bar, as fractions.
MARKETS: dict[str, tuple[float, float]] = {
    "calm": (0.004, 0.0), "falling": (0.012, -0.002), "rising": (0.006, 0.0), "missing prices": (0.006, 0.0),
    "powers of ten": (0.005, 0.0), "coarse": (0.04, 0.0),
}  # fmt: skip


def stop_level(price: Array) -> float:
    """Return a trailing stop that triggers occasionally: half the median coin's largest fall within 60 bars."""
    falls = [1.0 - price[t] / np.maximum(price[max(t - 60, 0) : t + 1].max(axis=0), 1e-300) for t in range(len(price))]
    largest = np.max(np.where(price > 0, falls, 0.0), axis=0)
    return round(min(max(0.5 * float(np.median(largest)), 0.002), 0.5), 4) + 0.0000137  # never reached exactly in cents


# ---------------------------------------------------------------------------------------------- settings
# Market, and settings that are used if the host supports them. "stop" is a level adapted to the market. Values of
# initial_capital are multiples of the host's capital. Values of norm_action are the share of the capital that an action
# of 1 trades.
PLAN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("calm", {}),
    ("falling", {"trailing_stop_pct": "stop"}),
    ("rising", {"concentration_penalty": 0.7, "min_cash_reserve": 0.13, "lookback": 2}),
    ("powers of ten", {"time_decay_floor": 0.35, "if_log": True}),
    ("missing prices", {"trailing_stop_pct": "stop", "concentration_penalty": 0.05, "min_cash_reserve": 0.07}),
    ("rising", {"max_position_pct": 0.3, "concentration_penalty": 0.3}),
    ("coarse", {"buy_cost_pct": 0.004, "sell_cost_pct": 0.0015, "lookback": 1, "trailing_stop_pct": 0.125}),
    ("calm", {"initial_capital": 0.01, "gamma": 0.9, "lookback": 13, "min_cash_reserve": 0.05,
              "norm_action": 0.0005}),
    ("falling", {"trailing_stop_pct": "stop", "max_position_pct": 0.2, "min_cash_reserve": 0.1,
                 "concentration_penalty": 0.05, "time_decay_floor": 0.2}),
)  # fmt: skip


@dataclass
class Cases:
    """Cases of one host in order: first the planned cases, then an endless sequence of random cases.

    The first FULL_LENGTH cases have `steps` bars; the others have half as many.
    """

    host: HostClass
    steps: int
    seed: int
    n_coins: int
    data: Mapping[str, Array] | None = None  # price_array (T, A), tech_array (T, F)
    plan: Sequence[tuple[str, dict[str, Any]]] = PLAN

    def __iter__(self) -> Iterator[Case]:
        """Yield an endless sequence of cases."""
        for number in itertools.count():
            source = np.random.default_rng([self.seed, number])
            market, switches = self.plan[number] if number < len(self.plan) else self._drawn(source)
            yield self._case(number, market, switches, source)

    def _drawn(self, source: np.random.Generator) -> tuple[str, dict[str, Any]]:
        every = {name: value for _, switches in self.plan for name, value in switches.items()}
        switched_on = {name: value for name, value in every.items() if source.random() < 0.5}
        return str(source.choice(list(MARKETS))), switched_on

    def _case(self, number: int, market: str, switches: dict[str, Any], source: np.random.Generator) -> Case:
        settings = self._settings(number, switches)
        n_bars = self.steps if number < FULL_LENGTH else (self.steps + 1) // 2
        n_bars += 2 * int(settings.get("lookback", 1))
        scale = self._scale(settings)
        if "initial_capital" in settings and "initial_capital" not in self.host.given:
            scale = replace(scale, capital=scale.capital * settings["initial_capital"])
            settings["initial_capital"] = scale.capital
        if self.data is None:
            price = made_prices(market, n_bars, scale, source)
            config = {"price_array": price, "tech_array": source.normal(0.0, 30.0, (n_bars, N_FEATURES))}
        else:
            config, market = self._window(n_bars, source)
        if settings.get("trailing_stop_pct") == "stop":
            settings["trailing_stop_pct"] = stop_level(config["price_array"])
        if "norm_action" in settings and "norm_action" not in self.host.given:
            value = switches.get("norm_action", UNIFORM_SHARE) * scale.capital
            settings["norm_action"] = self._norm_action(config, settings, value)
        numbers = {name: settings[name] for name in switches if name in settings and name != "if_log"}
        shown = [market, *(f"{name} {value:.4g}" for name, value in numbers.items())]
        if self.host.is_ours:
            shown.append(f"rules {settings['rules']}")
        reserve = settings.get("min_cash_reserve") or 0.0
        low_cash = 0.8 * reserve * scale.capital if reserve else None
        return Case(", ".join(shown), config, settings, market == "missing prices", low_cash)

    def _settings(self, number: int, switches: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that the host supports. Settings that the user has fixed are not changed."""
        settings = {"lookback": 5, **NORMS, "norm_action": 1.0, **switches}
        if self.data is not None:  # short data limits the length
            settings["lookback"] = min(settings["lookback"], max(len(self.data["price_array"]) // 4, 1))
        if self.host.is_ours:
            settings["rules"] = self.host.rules or list(drop_in.RULES)[number % len(drop_in.RULES)]
        return {name: value for name, value in settings.items() if self.host.knows(name)} | dict(self.host.given)

    def _scale(self, settings: Mapping[str, Any]) -> Scale:
        """Return the host's own capital and minimum orders."""
        n_bars = 2 * int(settings.get("lookback", 1)) + 20
        config = {"price_array": np.full((n_bars, self.n_coins), 100.0), "tech_array": np.zeros((n_bars, N_FEATURES))}
        if self.data is not None:
            config = self._window(n_bars, np.random.default_rng(0))[0]
        own = {name: value for name, value in settings.items() if name in self.host.given or name not in UNSCALED}
        env = self.host.batch(config, own, 1)
        return Scale(env.params.initial_capital, env.market.min_qty.numpy())

    def _window(self, n_bars: int, source: np.random.Generator) -> tuple[dict[str, Array], str]:
        """Return a window of the user's data that starts with positive prices, and the name of the window."""
        arrays = {name: np.asarray(value) for name, value in (self.data or {}).items()}
        total = len(arrays["price_array"])
        starts = np.flatnonzero((arrays["price_array"][: max(total - n_bars, 0) + 1] > 0).all(axis=1))
        if len(starts) == 0:
            raise UsageError("no bar of the data has positive prices for all coins, so no case can start")
        first = int(source.choice(starts))
        is_series = {name: value.ndim > 0 and len(value) == total for name, value in arrays.items()}
        cut = {name: value[first : first + n_bars] if is_series[name] else value for name, value in arrays.items()}
        return cut, f"bars {first} to {first + len(cut['price_array']) - 1}"

    def _norm_action(self, config: Mapping[str, Array], settings: dict[str, Any], value: float) -> float:
        """Return the norm_action with which an action of 1 trades this amount of the median coin."""
        one, two = (self.host.batch(config, settings | {"norm_action": n}, 1).market.order_scale[0] for n in (1.0, 2.0))
        if not (one > 0).all():
            return 1.0 / UNIFORM_SHARE
        power = float(np.log2(float(two[0] / one[0])))
        wanted = value / (one.numpy() * config["price_array"][0])
        return float(f"{float(np.median(wanted)) ** (1.0 / power):.3g}")


# ---------------------------------------------------------------------------------------------- actions
@dataclass(frozen=True)
class View:
    """One account and the effect of its orders at the bar that fills them."""

    cash: float  # quote
    qty: Array  # (A,) coins
    price: Array  # (A,) at which orders fill
    coins: Array  # (A,) coins that an action of 1 orders
    min_qty: Array  # (A,) smallest order, coins
    params: Any  # EnvParams

    @property
    def whole(self) -> Array:
        """Return actions (A,) that order coins worth the whole account."""
        equity = self.cash + float(self.qty @ self.price)
        value = self.price * self.coins
        return np.divide(equity, value, out=np.zeros_like(value), where=value > 0)

    def ordering(self, quantity: Array) -> Array:
        """Return actions (A,) that order `quantity` coins."""
        return np.divide(quantity, self.coins, out=np.zeros_like(self.coins), where=self.coins > 0)


def uniform(source: np.random.Generator) -> Behaviour:
    """Trade every coin in every bar."""
    view = yield np.empty(0)
    while True:
        view = yield source.uniform(-1.0, 1.0, len(view.qty))


def sparse(source: np.random.Generator) -> Behaviour:
    """Place single orders occasionally, so that positions become stale."""
    view = yield np.empty(0)
    while True:
        action = np.zeros(len(view.qty))
        if source.random() < 0.03:
            coin = int(source.integers(len(action)))
            sale = -source.uniform(0.1, 1.5) * view.ordering(view.qty)[coin]
            action[coin] = source.uniform(0.05, 0.5) * view.whole[coin] if source.random() < 0.75 else sale
        view = yield action


def patient(source: np.random.Generator) -> Behaviour:
    """Hold one basket for a long time, and buy a different one after it has been sold completely."""
    view = yield np.empty(0)
    while True:
        for _ in range(int(source.integers(1, 30))):
            view = yield np.zeros(len(view.qty))
        n_assets = len(view.qty)
        chosen = source.permutation(n_assets) < source.choice([1, 2, min(4, n_assets), n_assets])
        view = yield source.uniform(0.4, 1.2) / chosen.sum() * view.whole * chosen
        patience = int(source.integers(100, 600))
        while (view.qty > 0).any() and patience > 0:
            patience -= 1
            view = yield np.zeros(n_assets)
        view = yield -2.0 * view.ordering(view.qty)


def clustered(source: np.random.Generator) -> Behaviour:
    """Alternate between bursts of trading and long pauses."""
    view = yield np.empty(0)
    while True:
        for _ in range(int(source.integers(3, 15))):
            view = yield source.uniform(-1.0, 1.0, len(view.qty)) * source.choice([1.0, 3.0])
        for _ in range(int(source.integers(10, 120))):
            view = yield np.zeros(len(view.qty))


def round_trips(source: np.random.Generator) -> Behaviour:
    """Buy, sell the whole position one or a few bars later, then pause."""
    view = yield np.empty(0)
    while True:
        n_assets = len(view.qty)
        chosen = source.permutation(n_assets) < source.integers(1, 4)
        view = yield source.uniform(0.05, 0.9) * view.whole * chosen
        for _ in range(int(source.choice([0, 0, 1, 5]))):
            view = yield np.zeros(n_assets)
        view = yield -source.uniform(1.01, 3.0) * view.ordering(view.qty)
        for _ in range(int(source.integers(0, 6))):
            view = yield np.zeros(n_assets)


def extreme(source: np.random.Generator) -> Behaviour:
    """Order huge, tiny, minimum-size and whole-account quantities, and buys that cash reduces to about the minimum."""
    view = yield np.empty(0)
    while True:
        n = len(view.qty)
        sign = source.choice([-1.0, 1.0], n)
        least, out = view.ordering(view.min_qty) * _near(source, n), view.ordering(view.qty)
        table = (
            np.zeros(n), sign * least, -least, sign * view.whole * 10.0 ** source.uniform(-6.0, -3.0, n),
            sign * LARGEST_ACTION, view.whole * source.uniform(0.5, 1.2, n), -out * source.uniform(1.001, 3.0, n),
            -out * source.uniform(0.2, 0.999, n),
        )  # fmt: skip
        action = np.choose(source.integers(0, len(table), n), table)
        if source.random() < 0.5:
            action *= source.random(n) < 0.3
        view = yield brink(view, source) if source.random() < 0.4 else action


def brink(view: View, source: np.random.Generator) -> Array:
    """Sell just enough of one coin to pay for about the minimum order of a second coin, and order the second coin."""
    p, n = view.params, len(view.qty)
    action = np.zeros(n)
    sold, bought = source.permutation(n)[:2] if n > 1 else (0, 0)
    unit_cost = view.price * (1.0 + p.slippage_rate) * (1.0 + p.buy_fee_rate)
    budget = view.min_qty * _near(source, n) * unit_cost / p.cash_haircut + p.min_cash_reserve * p.initial_capital
    proceeds = view.price[sold] * (1.0 - p.slippage_rate) * (1.0 - p.sell_fee_rate)
    if proceeds > 0:
        quantity = np.zeros(n)
        quantity[sold] = min((budget[bought] - view.cash) / proceeds, view.qty[sold])
        action = -view.ordering(quantity)
    if sold != bought:
        action[bought] = view.whole[bought]
    return action


def _near(source: np.random.Generator, n: int) -> Array:
    """Return factors (n,) around 1, at distances from a millionth to a tenth."""
    return 1.0 + source.choice([-1.0, 1.0], n) * 10.0 ** source.uniform(-5.7, -1.0, n)


KINDS: tuple[Callable[[np.random.Generator], Behaviour], ...] = (
    uniform, sparse, patient, patient, clustered, extreme, extreme, round_trips,
)  # fmt: skip
