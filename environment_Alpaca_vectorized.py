# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""VectorizedCryptoEnvAlpaca: N trading accounts on one market, stepped together as torch tensors.

Copy this file next to a host's ``environment_Alpaca.py``. It requires only torch and numpy. docs/simulator.md defines a
step. ``environment_Alpaca.py`` in this repository implements the same step as plain loops, and the tests compare the
classes of both files in every field at every step.

Read this file from top to bottom: settings and state, the phases of a bar in the order in which they run, the pure
`step`, and the two classes that hold the state.

The functions of a bar share their arguments: `book` holds the accounts, `price` (N, A) the closes of the current bar,
`equity` (N,) the account values before the orders, `market` the market data, `p` the settings and `costs` the trading
costs of the step.

Axes: N environments, A assets, T bars, F features, L lookback, G segments, S state width. Money is in quote currency
and quantities are in coins. ``*_rate`` and ``*_pct`` are fractions. Account state is float64 on every device.
Observations are float32.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import math
import os
import pickle
import sys
import threading
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)
VERSION = "2026.12"  # must equal the version of environment_Alpaca_kernels, otherwise the plain step runs

# A rule set is a row of settings. env_params can override each setting separately.
_HOST_RULES: dict[str, Any] = {
    "slippage_rate": 0.0, "min_order_notional": 0.0, "always_allow_close": False,
    "stale_bars": 48, "stale_fraction": 0.05, "buys": "sequential", "reserve_base": "initial_capital",
    "start": "first", "ends_lookback_early": True, "truncates": False, "terminal_equity_fraction": 0.0,
    "final_reward": "discounted_return", "observation": "absolute", "benchmark_base": "segment",
}  # fmt: skip
_FINRL_CRYPTO: dict[str, Any] = _HOST_RULES | {
    "initial_capital": 1_000_000.0, "fee_rate": 0.003, "order_sizing": "price_magnitude", "cash_haircut": 0.9,
    "release_unpriced": True, "reward": "benchmark_difference", "benchmark_pays_fee": False,
}  # fmt: skip
_FINRL: dict[str, Any] = _HOST_RULES | {
    "initial_capital": 1_000_000.0, "fee_rate": 0.001, "order_sizing": "price_digits", "cash_haircut": 1.0,
    "stale_bars": 0, "release_unpriced": False, "whole_coins": True, "reward": "profit", "benchmark_pays_fee": False,
    "lookback": 1, "norm_cash": 2.0**-18, "norm_stocks": 2.0**-3, "norm_tech": 2.0**-15, "norm_reward": 2.0**-16,
    "norm_action": 1.0}  # fmt: skip
RULES: dict[str, dict[str, Any]] = {
    "finrl_crypto": _FINRL_CRYPTO,                                  # CryptoEnvAlpaca of FinRL_Crypto
    "ccxt": _FINRL_CRYPTO | {"fee_rate": 0.001, "cash_haircut": 0.95, "stale_bars": 24},  # its CryptoEnvCCXT
    "cappuccino": _HOST_RULES | {                                   # CryptoEnvAlpaca of Cappuccino
        "initial_capital": 500.0, "fee_rate": 0.0025, "order_sizing": "initial_capital", "cash_haircut": 0.99,
        "release_unpriced": True, "reward": "cappuccino", "benchmark_pays_fee": True, "action_limit": 1000.0},
    "finrl": _FINRL, "finrl_meta": _FINRL | {"order_sizing": "price_magnitude", "norm_action": 10_000.0},
    "standard": {"initial_capital": 10_000.0, "fee_rate": 0.0025, "slippage_rate": 0.0005, "order_sizing": "equity",
        "min_order_notional": 10.0, "always_allow_close": True, "stale_bars": 0, "stale_fraction": 0.05,
        "release_unpriced": False, "buys": "proportional", "cash_haircut": 1.0, "reserve_base": "equity",
        "start": "random", "ends_lookback_early": False, "truncates": True, "terminal_equity_fraction": 0.01,
        "reward": "weighted_terms", "final_reward": "plain", "observation": "relative", "benchmark_base": "episode",
        "benchmark_pays_fee": True},
}  # fmt: skip
TERM_NAMES = {
    "benchmark_difference": ("alpha",), "profit": ("profit",),
    "cappuccino": ("alpha", "absolute", "cash_bonus", "cash_reserve", "concentration"),
    "weighted_terms": ("growth", "benchmark", "drawdown", "volatility", "concentration", "turnover"),
}  # fmt: skip
COSTS = ("fees", "slippage", "turnover")
REPORTED = ("equity", "benchmark_equity", "episode_return", *COSTS)  # account fields in `info`, float64
COUNTED = ("rejected_actions", "trades")  # int64
OPTIONS = ("n_envs", "seed", "episode_bars", "gpu_id")  # constructor arguments that env_params may also contain
NORMS = ("norm_cash", "norm_stocks", "norm_tech", "norm_reward", "norm_action")

# Smallest orders of the hosts in coins, before the factor of 1.1: by column, or by ticker in column order.
COLUMN_LIMITS: dict[str, tuple[float, ...]] = {
    "finrl_crypto": (0.01, 0.10, 0.0001, 0.1, 0.1, 0.001, 0.01, 10.0, 0.1, 0.01),
    "ccxt": (0.0001, 0.001, 0.01, 0.1, 0.1, 1.0, 0.1, 0.01, 0.1, 0.001)}  # fmt: skip
CAPPUCCINO_LIMITS = {
    "AAVE": 0.005, "AVAX": 0.03, "BTC": 0.00001, "LINK": 0.1, "ETH": 0.0003, "LTC": 0.01, "UNI": 0.15}  # fmt: skip
# Currencies that a ticker without a separator may end with; the last three only after one of the coins above.
CASH = ("EUR", "GBP", "JPY", "TRY", "BRL", "BTC", "ETH", "BNB")

TARGET_WEIGHT = 0.40  # a position above this weight is concentrated
HELD_BARS_SCALE = 0.01  # scale of held_bars in observe_account
EQUITY_FLOOR = 1e-6  # lower bound of equity in logarithms and ratios, as a fraction of the initial capital
INCREMENT_SLACK = 1e-9  # a quantity below a whole increment by at most this fraction is rounded up to it


CHOICES: dict[str, tuple[str, ...]] = {
    "order_sizing": ("price_magnitude", "price_digits", "initial_capital", "equity"),
    "buys": ("sequential", "proportional"), "reserve_base": ("initial_capital", "equity"),
    "start": ("first", "random", "stratified"), "reward": tuple(TERM_NAMES),
    "final_reward": ("discounted_return", "plain"), "observation": ("absolute", "relative"),
    "benchmark_base": ("segment", "episode"),
}  # fmt: skip
RANGES = {
    "cash_haircut": (0.0, 1.0), "stale_fraction": (1e-12, 1.0), "max_position_weight": (0.0, 1e300),
    "concentration_penalty": (0.0, 1e300), "min_order_notional": (0.0, 1e300), "gamma": (0.0, 1.0),
    "terminal_equity_fraction": (0.0, 1.0), "action_limit": (1e-300, float("inf")), "lookback": (1, float("inf")),
    "initial_capital": (1e-12, float("inf")), "norm_action": (1e-300, float("inf")), "stale_bars": (0, float("inf")),
}  # fmt: skip


Terms = dict[str, Tensor]  # reward term -> (N,) float64


# ---------------------------------------------------------------------------------------------- settings and state
class Costs(NamedTuple):
    """Trading costs of a step, as fractions of notional.

    Each cost is a float, or a () float64 tensor on the device of the accounts.

    Attributes:
        buy_fee_rate: fee on a purchase.
        sell_fee_rate: fee on a sale.
        slippage_rate: fraction that buyers pay more, and sellers receive less, than the close.
    """

    buy_fee_rate: Any
    sell_fee_rate: Any
    slippage_rate: Any


@dataclass(frozen=True)
class EnvParams:
    """Settings of one simulator: a rule set with the caller's overrides.

    docs/simulator.md describes the rule sets. In the list below, "off" means that the phase is skipped.

    Attributes:
        rules: name of the rule set, a key of `RULES`.
        lookback: number of bars of features in an observation, L.
        initial_capital: cash of a fresh account, quote currency.
        buy_fee_rate: fee on a purchase, fraction of notional.
        sell_fee_rate: fee on a sale, fraction of notional.
        gamma: discount factor of the host presets' final reward.
        slippage_rate: fraction that buyers pay more, and sellers receive less, than the close.
        order_sizing: conversion of an action to coins: "price_magnitude", "price_digits", "initial_capital" or
            "equity".
        min_order_notional: smallest order, quote currency.
        always_allow_close: if True, a sale of the whole position may be below the smallest order.
        stale_bars: number of bars after which a position is stale and partly sold; 0 is off.
        stale_fraction: fraction of a stale position that is sold per bar.
        release_unpriced: if True, stale positions of coins without a price are sold too.
        buys: "sequential" (column by column) or "proportional" (together, scaled by one factor if cash is short).
        cash_haircut: fraction of the spendable cash that buys may use.
        reserve_base: base of `min_cash_reserve`: "initial_capital" or "equity".
        start: first bar of an episode: "first", "random" or "stratified".
        ends_lookback_early: if True, an episode ends L bars before the end of its segment.
        truncates: if True, the end of a window is a time limit and not a terminal state.
        terminal_equity_fraction: an account with at most this fraction of its initial capital is ruined, and its
            episode ends. Applied only if `truncates` is True.
        reward: "benchmark_difference", "profit", "cappuccino" or "weighted_terms".
        final_reward: "discounted_return" (the last reward is the discounted return of the episode) or "plain".
        observation: "absolute" (cash and coins) or "relative" (fractions of equity).
        benchmark_base: bar at which the equal-weight benchmark is bought: the first of the "segment" or of the
            "episode".
        benchmark_pays_fee: if True, the benchmark pays `buy_fee_rate` when it is bought.
        whole_coins: if True, cash buys whole coins only.
        action_limit: actions are clamped to [-action_limit, action_limit].
        norm_cash: scale of cash in an "absolute" observation.
        norm_stocks: scale of coins in an "absolute" observation.
        norm_tech: scale of the features.
        norm_reward: scale of the reward.
        norm_action: scale of an order; with order_sizing "equity", action 1 trades equity / norm_action.
        min_cash_reserve: fraction of `reserve_base` that buys leave in cash.
        max_position_weight: largest weight of a position after a buy; 0 is off.
        trailing_stop_pct: fraction by which a price must fall from its high for the position to be sold; 0 is off.
        time_decay_floor: smallest time factor of the "cappuccino" reward.
        growth_weight: weight of log growth in the "weighted_terms" reward.
        benchmark_weight: weight of the benchmark's log growth, which is subtracted.
        drawdown_penalty: weight of the increase in maximum drawdown.
        volatility_penalty: weight of the squared log growth.
        concentration_penalty: weight of the part of the largest position above `TARGET_WEIGHT`; also scales the
            "cappuccino" term.
        turnover_penalty: weight of turnover, as a multiple of equity.
        observe_account: if True, observations also hold progress, drawdown and held bars.
    """

    rules: str
    lookback: int
    initial_capital: float
    buy_fee_rate: float
    sell_fee_rate: float
    gamma: float
    slippage_rate: float
    order_sizing: str
    min_order_notional: float
    always_allow_close: bool
    stale_bars: int
    stale_fraction: float
    release_unpriced: bool
    buys: str
    cash_haircut: float
    reserve_base: str
    start: str
    ends_lookback_early: bool
    truncates: bool
    terminal_equity_fraction: float
    reward: str
    final_reward: str
    observation: str
    benchmark_base: str
    benchmark_pays_fee: bool
    whole_coins: bool = False
    action_limit: float = float("inf")
    norm_cash: float = 1.0
    norm_stocks: float = 1.0
    norm_tech: float = 1.0
    norm_reward: float = 100.0
    norm_action: float = 4.0
    min_cash_reserve: float = 0.0
    max_position_weight: float = 0.0
    trailing_stop_pct: float = 0.0
    time_decay_floor: float = 0.0
    growth_weight: float = 1.0
    benchmark_weight: float = 0.0
    drawdown_penalty: float = 0.0
    volatility_penalty: float = 0.0
    concentration_penalty: float = 0.0
    turnover_penalty: float = 0.0
    observe_account: bool = False

    @classmethod
    def from_mapping(
        cls, env_params: Mapping[str, Any], initial_capital: float | None = None, buy_fee_rate: float | None = None,
        sell_fee_rate: float | None = None, gamma: float = 0.99,
    ) -> EnvParams:  # fmt: skip
        """Combine a rule set with a caller's overrides.

        Args:
            env_params: `rules`, `lookback` and any other attribute of this class. `fee_rate` sets both fees.
            initial_capital: overrides the capital, quote currency.
            buy_fee_rate: overrides the fee on a purchase, fraction of notional.
            sell_fee_rate: overrides the fee on a sale, fraction of notional.
            gamma: discount factor of the host presets' final reward.

        Returns:
            The complete settings.

        Raises:
            ValueError: the rule set is missing or unknown, a host preset lacks its norms, "standard" has an unknown
                key, or a value is out of range. Host presets ignore unknown keys, because host trainers keep unrelated
                keys there.
        """
        name = env_params.get("rules")
        if name not in RULES:
            raise ValueError(f'env_params["rules"] must be one of {", ".join(RULES)}; received {name!r}')
        is_host = name != "standard"
        known = env_params.keys() | RULES[name].keys()
        missing = [key for key in ("lookback", *(NORMS if is_host else ())) if key not in known]
        if missing:
            raise ValueError(f"env_params lacks {', '.join(missing)}, which the {name} rules require")
        own = {field.name for field in fields(cls)} - {"gamma"}
        unknown = sorted(set(env_params) - own - {"fee_rate", *OPTIONS})
        if unknown and not is_host:
            raise ValueError(f"env_params has unknown keys {', '.join(unknown)}; known are {', '.join(sorted(own))}")
        row = RULES[name] | {"rules": name} | {k: v for k, v in env_params.items() if k in own | {"fee_rate"}}
        fee_rate = row.pop("fee_rate")
        row["buy_fee_rate"] = row.get("buy_fee_rate", fee_rate) if buy_fee_rate is None else buy_fee_rate
        row["sell_fee_rate"] = row.get("sell_fee_rate", fee_rate) if sell_fee_rate is None else sell_fee_rate
        row["initial_capital"] = float(row["initial_capital"] if initial_capital is None else initial_capital)
        if int(row["lookback"]) != row["lookback"]:
            raise ValueError(f"lookback must be a whole number of bars; received {row['lookback']!r}")
        return cls(**{**row, "lookback": int(row["lookback"])}, gamma=gamma)

    def costs(self, factor: float = 1.0) -> Costs:
        """Return the trading costs of a step, scaled by a factor.

        Args:
            factor: multiplies both fees and the slippage. A factor of 1 leaves them bit-identical.

        Returns:
            The scaled costs, fractions of notional.
        """
        return Costs(self.buy_fee_rate * factor, self.sell_fee_rate * factor, self.slippage_rate * factor)

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: a value is out of range, not finite, or not one of its choices.
        """
        for name in (*Costs._fields, "min_cash_reserve", "trailing_stop_pct"):
            if not 0.0 <= (fraction := getattr(self, name)) < 1.0:
                raise ValueError(f"{name} must be a fraction from 0 to below 1 (0.0025 is 0.25 %); received {fraction}")
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be at least {least} and at most {most}; received {getattr(self, name)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; received {getattr(self, name)!r}")
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value) and name != "action_limit":
                raise ValueError(f"{name} must be a finite number; received {value}")
        if int(self.stale_bars) != self.stale_bars:
            raise ValueError(f"stale_bars must be a whole number of bars; received {self.stale_bars!r}")


@dataclass(frozen=True)
class Market:
    """Market data that all accounts share and no step changes.

    A deep copy of an environment keeps the same Market.

    Attributes:
        price: (T, A) float64, closes, quote currency.
        windows: (T - L + 1, L * F) float32, features times norm_tech. Row T - 1 - t is the lookback window of bar t.
        min_qty: (A,) float64, smallest order in coins.
        qty_increment: (A,) float64, lot size in coins; 0 if the venue does not round.
        segment_first: (G,) int64, first bar of each segment.
        segment_end: (G,) int64, bar after the last one of each segment.
        order_scale: (G, A) float64, coins per unit of action; host presets only.
        episode_limit: (G,) int64, last bar that an episode may reach.
        first_start: (G,) int64, first bar at which an episode may start.
        start_offset: (G + 1,) int64, number of possible starts in all previous segments.
        usable_segment: (at most G,) int64, segments with at least one possible start.
        trades: (T, A) float32, 0 if nobody traded the coin in the bar and 1 otherwise; None if every coin traded in
            every bar.
    """

    price: Tensor
    windows: Tensor
    min_qty: Tensor
    qty_increment: Tensor
    segment_first: Tensor
    segment_end: Tensor
    order_scale: Tensor
    episode_limit: Tensor
    first_start: Tensor
    start_offset: Tensor
    usable_segment: Tensor
    trades: Tensor | None

    def __deepcopy__(self, memo: dict[int, Any]) -> Market:
        """Return the same object."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by value: torch would send memory descriptors, and descriptors of temporary tensors clash."""
        return _market_of, (pickle.dumps(vars(self)),)


def _market_of(packed: bytes) -> Market:
    return Market(**pickle.loads(packed))


@dataclass(frozen=True)
class Portfolio:
    """State of N accounts: everything that a step changes.

    Only `open_portfolio` creates a new one, so no field survives a reset by accident.

    Attributes:
        bar: (N,) int64, current row of `Market.price`.
        first_bar: (N,) int64, bar of the episode's first observation.
        last_bar: (N,) int64, bar at which the episode ends.
        segment: (N,) int64, index of the segment.
        cash: (N,) float64, quote currency.
        qty: (N, A) float64, coins.
        held_bars: (N, A) int64, bars since the position was opened or last partly sold.
        high: (N, A) float64, highest price while the position was held, quote currency.
        order_scale: (N, A) float64, coins per unit of action in the current segment; host presets only.
        benchmark_qty: (N, A) float64, coins of the equal-weight benchmark.
        equity: (N,) float64, account value, quote currency.
        benchmark: (N,) float64, value of the equal-weight benchmark, quote currency.
        peak: (N,) float64, highest equity of the episode, quote currency.
        max_drawdown: (N,) float64, largest drawdown of the episode, fraction.
        discounted_return: (N,) float64, G = gamma * G + r; host presets only.
        trades: (N,) int64, number of fills in the last step.
        fees: (N,) float64, fees of the last step, quote currency.
        slippage: (N,) float64, slippage of the last step, quote currency.
        turnover: (N,) float64, sum of |quantity| * close over the fills of the last step, quote currency.
        filled: (N, A) float64, coins bought minus coins sold in the last step, including stops and releases.
    """

    bar: Tensor
    first_bar: Tensor
    last_bar: Tensor
    segment: Tensor
    cash: Tensor
    qty: Tensor
    held_bars: Tensor
    high: Tensor
    order_scale: Tensor
    benchmark_qty: Tensor
    equity: Tensor
    benchmark: Tensor
    peak: Tensor
    max_drawdown: Tensor
    discounted_return: Tensor
    trades: Tensor
    fees: Tensor
    slippage: Tensor
    turnover: Tensor
    filled: Tensor


@dataclass(frozen=True)
class Outcome:
    """Result of a step, in addition to the new portfolio.

    Attributes:
        reward: (N,) float64.
        terms: named reward terms, each (N,) float64. Their sum is the reward before the hosts' final reward replaces
            it.
        done: (N,) bool, True if the episode has ended.
        truncated: (N,) bool, True if only a time limit ended the episode.
    """

    reward: Tensor
    terms: Terms
    done: Tensor
    truncated: Tensor


# ---------------------------------------------------------------------------------------------- orders
def order_quantities(action: Tensor, book: Portfolio, price: Tensor, equity: Tensor, p: EnvParams) -> Tensor:
    """Return the coins that each action orders, (N, A) float64: positive buys, negative sells.

    Args:
        action: (N, A) float32.
        book: accounts before the orders.
        price: (N, A) closes at which the orders fill, quote currency.
        equity: (N,) account values before the orders, quote currency.
        p: settings.
    """
    if p.action_limit < float("inf"):
        action = action.clamp(-p.action_limit, p.action_limit)
    if p.order_sizing in ("price_magnitude", "price_digits"):
        return action.double() * book.order_scale
    if p.order_sizing == "initial_capital":  # in float32, like the host
        return (action * book.order_scale.float()).double()
    is_priced = price > 0
    per_unit = equity[:, None] / (torch.where(is_priced, price, 1.0) * p.norm_action)
    return torch.where(is_priced, action.double() * per_unit, 0.0)


def cap_positions(order_qty: Tensor, book: Portfolio, price: Tensor, equity: Tensor, p: EnvParams) -> Tensor:
    """Reduce every buy (N, A) so that its position stays within `max_position_weight` of equity."""
    is_priced = price > 0
    limit_qty = p.max_position_weight * equity[:, None] / torch.where(is_priced, price, 1.0)
    room = torch.where(is_priced, (limit_qty - book.qty).clamp(min=0.0), 0.0)
    return torch.minimum(order_qty, room)


def whole_increments(quantity: Tensor, market: Market) -> Tensor:
    """Return quantities (N, A) rounded down to the lot size. Non-finite quantities are unchanged."""
    step = market.qty_increment
    whole = torch.floor(quantity / torch.where(step > 0, step, 1.0) + INCREMENT_SLACK) * step
    return torch.where((step > 0) & quantity.isfinite(), whole, quantity)


def is_large_enough(quantity: Tensor, price: Tensor, market: Market, p: EnvParams) -> Tensor:
    """Return True if an order has at least the venue's smallest size, (N, A) bool."""
    return (quantity > market.min_qty) & (quantity * price >= p.min_order_notional)


def execute_trailing_stops(book: Portfolio, price: Tensor, p: EnvParams, costs: Costs) -> Portfolio:
    """Sell every position whose price has fallen by more than `trailing_stop_pct` from its high since the purchase."""
    is_held = book.qty > 0
    high = torch.where(is_held, torch.maximum(book.high, price), book.high)
    is_stopped = is_held & (price > 0) & (price < high * (1.0 - p.trailing_stop_pct))
    return execute_sales(replace(book, high=high), torch.where(is_stopped, book.qty, 0.0), price, costs)


def execute_sells(
    book: Portfolio, order_qty: Tensor, price: Tensor, market: Market, p: EnvParams, costs: Costs
) -> Portfolio:
    """Fill the sell orders in order_qty (N, A), each limited to its position."""
    wanted = whole_increments(-order_qty, market)
    is_large = is_large_enough(wanted, price, market, p)
    closes = (-order_qty >= book.qty) & p.always_allow_close
    is_sold = (order_qty < 0) & (book.qty > 0) & (price > 0) & (is_large | closes)
    sold = torch.where(closes, book.qty, torch.minimum(book.qty, wanted))
    return execute_sales(book, torch.where(is_sold, sold, 0.0), price, costs)


def release_stale(book: Portfolio, price: Tensor, market: Market, p: EnvParams, costs: Costs) -> Portfolio:
    """Sell stale_fraction of each position held for at least stale_bars, or all of it if the venue requires more."""
    is_stale = (book.held_bars >= p.stale_bars) & ((price > 0) | p.release_unpriced)
    released = book.qty * p.stale_fraction
    if p.always_allow_close:
        released = whole_increments(released, market)
        released = torch.where(is_large_enough(released, price, market, p), released, book.qty)
    return execute_sales(book, torch.where(is_stale, released, 0.0), price, costs)


def execute_sales(book: Portfolio, sold: Tensor, price: Tensor, costs: Costs) -> Portfolio:
    """Sell `sold` (N, A) coins at the close minus slippage and fee. The holding time of each position sold restarts."""
    fill = price * (1.0 - costs.slippage_rate)
    qty = book.qty - sold
    is_sold = sold > 0
    cash = book.cash + (sold * fill * (1.0 - costs.sell_fee_rate)).sum(-1)
    held_bars = torch.where(is_sold, 0, book.held_bars)
    high = torch.where(is_sold & (qty == 0), 0.0, book.high)
    book = replace(book, qty=qty, cash=cash, held_bars=held_bars, high=high, filled=book.filled - sold)
    return book_trades(book, sold, price, fill * costs.sell_fee_rate, costs)


def execute_buys(
    book: Portfolio, order_qty: Tensor, price: Tensor, equity: Tensor, market: Market, p: EnvParams, costs: Costs
) -> Portfolio:
    """Fill the buy orders in order_qty (N, A) as far as cash allows. `equity` (N,) is the value before the orders."""
    wanted = whole_increments(order_qty, market)
    wanted = torch.where((price > 0) & is_large_enough(wanted, price, market, p), wanted, 0.0)
    unit_cost = price * (1.0 + costs.slippage_rate) * (1.0 + costs.buy_fee_rate)  # (N, A) quote per coin
    if p.buys == "sequential":
        # Assets are processed in a loop, because each buy reduces the cash for the next one. A is about ten; N is the
        # batch.
        for i in range(price.shape[1]):
            per_coin = torch.where(price[:, i] > 0, unit_cost[:, i], 1.0)
            affordable = coins_for(spendable_cash(book, equity, p), per_coin, p)
            filled = torch.zeros_like(wanted)
            filled[:, i] = torch.minimum(wanted[:, i], affordable)
            book = execute_purchases(book, filled, price, unit_cost, market, p, costs)
        return book
    cost = (wanted * unit_cost).sum(-1)
    scale = (spendable_cash(book, equity, p) / torch.where(cost > 0, cost, 1.0)).clamp(max=1.0)
    filled = whole_increments(wanted * scale[:, None], market)
    return execute_purchases(book, filled, price, unit_cost, market, p, costs)


def execute_purchases(
    book: Portfolio, filled: Tensor, price: Tensor, unit_cost: Tensor, market: Market, p: EnvParams, costs: Costs
) -> Portfolio:
    """Buy `filled` (N, A) coins. Orders that fall below the minimum because cash is short are dropped."""
    is_kept = (filled > 0) & (filled >= market.min_qty) & (filled * price >= p.min_order_notional)
    bought = torch.where(is_kept, filled, 0.0)
    cash = (book.cash - (bought * unit_cost).sum(-1)).clamp(min=0.0)  # clamp removes a rounding error of a few ulp
    high = torch.where(is_kept & (book.qty == 0), price, book.high)
    book = replace(book, qty=book.qty + bought, cash=cash, high=high, filled=book.filled + bought)
    return book_trades(book, bought, price, price * (1.0 + costs.slippage_rate) * costs.buy_fee_rate, costs)


def coins_for(budget: Tensor, unit_cost: Tensor, p: EnvParams) -> Tensor:
    """Return the coins (N,) that a budget buys. Whole coins are rounded like Python's ``//``."""
    return torch.div(budget, unit_cost, rounding_mode="floor" if p.whole_coins else None)


def spendable_cash(book: Portfolio, equity: Tensor, p: EnvParams) -> Tensor:
    """Return the cash (N,) that buys may use after the reserve, quote currency."""
    base = equity if p.reserve_base == "equity" else p.initial_capital
    return (book.cash - p.min_cash_reserve * base).clamp(min=0.0) * p.cash_haircut


def book_trades(book: Portfolio, quantity: Tensor, price: Tensor, fee_per_coin: Tensor, costs: Costs) -> Portfolio:
    """Add fills of `quantity` (N, A) coins to the totals of the step."""
    notional = (quantity * price).sum(-1)
    trades = book.trades + (quantity > 0).sum(-1)
    fees = book.fees + (quantity * fee_per_coin).sum(-1)
    slippage = book.slippage + notional * costs.slippage_rate
    return replace(book, trades=trades, fees=fees, slippage=slippage, turnover=book.turnover + notional)


# ---------------------------------------------------------------------------------------------- valuation and reward
def account_value(book: Portfolio, price: Tensor) -> Tensor:
    """Return cash plus positions at the close, (N,) quote currency."""
    return book.cash + (book.qty * price).sum(-1)


def mark_to_market(book: Portfolio, price: Tensor) -> Portfolio:
    """Value accounts and benchmark at this bar, and update peak and maximum drawdown."""
    equity = account_value(book, price)
    peak = torch.maximum(book.peak, equity)
    max_drawdown = torch.maximum(book.max_drawdown, 1.0 - equity / peak)
    benchmark = (book.benchmark_qty * price).sum(-1)
    return replace(book, equity=equity, benchmark=benchmark, peak=peak, max_drawdown=max_drawdown)


def reward_terms(before: Portfolio, book: Portfolio, price: Tensor, market: Market, p: EnvParams) -> Terms:
    """Return the named reward terms (N,), whose sum is the reward. The two portfolios are one bar apart."""
    if p.reward == "benchmark_difference":
        gain = (book.equity - before.equity) - (book.benchmark - before.benchmark)
        return {"alpha": gain * p.norm_reward}
    if p.reward == "profit":
        return {"profit": (book.equity - before.equity) * p.norm_reward}
    if p.reward == "cappuccino":
        return cappuccino_terms(before, book, weights_of(book, price), market, p)
    return weighted_terms(before, book, weights_of(book, price), p)


def weights_of(book: Portfolio, price: Tensor) -> Tensor:
    """Return the positions as fractions of equity, (N, A)."""
    return torch.where(book.equity[:, None] > 0, book.qty * price / book.equity[:, None], 0.0)


def weighted_terms(before: Portfolio, book: Portfolio, weights: Tensor, p: EnvParams) -> Terms:
    """Return the terms of the standard reward, each (N,)."""
    floor = EQUITY_FLOOR * p.initial_capital
    growth = torch.log(book.equity.clamp(min=floor) / before.equity.clamp(min=floor))
    tracked = torch.log(book.benchmark.clamp(min=floor) / before.benchmark.clamp(min=floor))
    terms = {
        "growth": p.growth_weight * growth,
        "benchmark": -p.benchmark_weight * tracked,
        "drawdown": -p.drawdown_penalty * (book.max_drawdown - before.max_drawdown),
        "volatility": -p.volatility_penalty * growth.square(),
        "concentration": -p.concentration_penalty * (weights.amax(-1) - TARGET_WEIGHT).clamp(min=0.0),
        "turnover": -p.turnover_penalty * book.turnover / book.equity.clamp(min=floor)}  # fmt: skip
    return {name: p.norm_reward * value for name, value in terms.items()}


def cappuccino_terms(before: Portfolio, book: Portfolio, weights: Tensor, market: Market, p: EnvParams) -> Terms:
    """Return the terms of the Cappuccino reward, each (N,)."""
    gain, benchmark_gain = book.equity - before.equity, book.benchmark - before.benchmark
    decay = time_decay(book, market, p)
    market_return = torch.where(before.benchmark > 0, benchmark_gain / before.benchmark, 0.0)
    cash_share = torch.where(book.equity > 0, book.cash / book.equity, 0.0)
    earns_bonus = (market_return < 0) & (cash_share > 0.1)
    reserve = p.min_cash_reserve * p.initial_capital
    return {
        "alpha": 0.5 * (gain - benchmark_gain) * p.norm_reward * decay,
        "absolute": 0.3 * gain / p.initial_capital * p.norm_reward * decay,
        "cash_bonus": torch.where(earns_bonus, 0.02 * market_return.abs() * cash_share * p.norm_reward, 0.0),
        "cash_reserve": -(reserve - book.cash).clamp(min=0.0) / p.initial_capital * p.norm_reward * 0.5,
        "concentration": cappuccino_concentration(weights, p.concentration_penalty) * (book.equity > 0)}  # fmt: skip


def time_decay(book: Portfolio, market: Market, p: EnvParams) -> Tensor:
    """Return a factor (N,) that falls from 1 to `time_decay_floor` over the segment."""
    first = market.segment_first[book.segment] + p.lookback - 1
    last = market.segment_end[book.segment] - p.lookback - 1
    progress = ((book.bar - first).double() / (last - first).clamp(min=1)).clamp(0.0, 1.0)
    return (1.0 - progress).clamp(min=p.time_decay_floor)


def cappuccino_concentration(weights: Tensor, penalty: float) -> Tensor:
    """Return the concentration term (N,): a penalty for one large or few positions, and a bonus for even weights.

    Args:
        weights: (N, A) fractions of equity.
        penalty: scale of the term.
    """
    is_held = weights > 0.01
    n_held = is_held.sum(-1)
    held = torch.where(is_held, weights, 0.0).sort(-1).values  # ascending; zeros of coins not held come first
    rank = torch.arange(1, weights.shape[1] + 1, device=weights.device) - (weights.shape[1] - n_held[:, None])
    n, total = n_held.clamp(min=1).double(), held.sum(-1)
    gini = 2.0 * (rank * held).sum(-1) / (n * torch.where(total > 0, total, 1.0)) - (n + 1.0) / n
    large = -penalty * (weights.amax(-1) - TARGET_WEIGHT).clamp(min=0.0)
    even = 0.1 * penalty * (0.4 - gini).clamp(min=0.0)
    return large + torch.where(n_held < 3, -0.5 * penalty * (3.0 - n_held.double()), even)


# ---------------------------------------------------------------------------------------------- the bar
def step(
    book: Portfolio, action: Tensor, market: Market, p: EnvParams, costs: Costs | None = None
) -> tuple[Portfolio, Outcome]:
    """Advance every environment one bar: stops, sells, releases, buys, valuation.

    Args:
        book: accounts after the previous bar.
        action: (N, A) float32, finite; chosen at the previous bar and filled at the close of this one.
        market: market data.
        p: settings.
        costs: trading costs of this step; None uses the full costs of `p`.

    Returns:
        The new accounts, and the reward and end flags of the step. Gradients flow through `action` and `costs`.
    """
    before, costs = book, costs or p.costs()
    book = begin_bar(book, market)
    price = market.price[book.bar]  # (N, A)

    if p.trailing_stop_pct > 0:
        book = execute_trailing_stops(book, price, p, costs)
    equity_at_fill = account_value(book, price)  # before the orders of this bar
    order_qty = order_quantities(action, book, price, equity_at_fill, p)
    if p.max_position_weight > 0:
        order_qty = cap_positions(order_qty, book, price, equity_at_fill, p)
    book = execute_sells(book, order_qty, price, market, p, costs)
    if p.stale_bars > 0:
        book = release_stale(book, price, market, p, costs)
    book = execute_buys(book, order_qty, price, equity_at_fill, market, p, costs)

    book = mark_to_market(book, price)
    return end_bar(book, reward_terms(before, book, price, market, p), p)


def begin_bar(book: Portfolio, market: Market) -> Portfolio:
    """Advance to the next bar and clear the totals of the step. Nothing trades yet."""
    bar = (book.bar + 1).clamp(max=len(market.price) - 1)  # after its episode, an account waits here
    return replace(book, bar=bar, held_bars=book.held_bars + (book.qty > 0), trades=torch.zeros_like(book.trades),
                   filled=torch.zeros_like(book.qty), **dict.fromkeys(COSTS, torch.zeros_like(book.cash)))  # fmt: skip


def end_bar(book: Portfolio, terms: Terms, p: EnvParams) -> tuple[Portfolio, Outcome]:
    """Sum the reward terms and mark the episodes that end."""
    reward = torch.stack(tuple(terms.values())).sum(0)

    is_ruined = (book.equity <= p.terminal_equity_fraction * p.initial_capital) & p.truncates
    at_end = book.bar >= book.last_bar
    done = at_end | is_ruined
    if p.final_reward == "discounted_return":
        book = replace(book, discounted_return=p.gamma * book.discounted_return + reward)
        reward = torch.where(done, book.discounted_return, reward)
    return book, Outcome(reward, terms, done, at_end & ~is_ruined & p.truncates)


# ---------------------------------------------------------------------------------------------- observation
def observation_layout(
    env_params: Mapping[str, Any] | EnvParams, n_assets: int, n_features: int
) -> tuple[tuple[str, int], ...]:
    """Return (name, width) of each part of an observation, in order. The widths add up to S.

    Args:
        env_params: settings, or a mapping accepted by `EnvParams.from_mapping`.
        n_assets: number of assets A.
        n_features: number of features F.
    """
    p = env_params if isinstance(env_params, EnvParams) else EnvParams.from_mapping(env_params)
    cash, coins = ("cash", "qty") if p.observation == "absolute" else ("cash_weight", "weight")
    extra = (("progress", 1), ("drawdown", 1), ("held_bars", n_assets)) if p.observe_account else ()
    return ((cash, 1), (coins, n_assets), ("tech", p.lookback * n_features), *extra)


def observe(book: Portfolio, market: Market, p: EnvParams, compact: bool = False) -> Tensor:
    """Return the observations, (N, S) float32, in the order of `observation_layout`.

    An observation holds the account, L rows of features with the newest first, and the fields of `observe_account`.

    Args:
        book: accounts.
        market: market data.
        p: settings.
        compact: if True, return (N, C): account, extra fields, and the bar index instead of its features. `expand`
            inserts the features.
    """
    if p.observation == "absolute":
        account = (book.cash[:, None] * p.norm_cash, book.qty * p.norm_stocks)
    else:
        equity = book.equity.clamp(min=EQUITY_FLOOR * p.initial_capital)[:, None]
        account = (book.cash[:, None] / equity, book.qty * market.price[book.bar] / equity)
    extras: tuple[Tensor, ...] = ()
    if p.observe_account:
        progress = (book.bar - book.first_bar).double() / (book.last_bar - book.first_bar)
        drawdown, held_bars = 1.0 - book.equity / book.peak, book.held_bars.double() * HELD_BARS_SCALE
        extras = (progress[:, None], drawdown[:, None], held_bars)
    blocks = (*account, *extras, book.bar[:, None]) if compact else (*account, _windows_at(book.bar, market), *extras)
    return torch.cat([block.float() for block in blocks], dim=1)


def _windows_at(bar: Tensor, market: Market) -> Tensor:
    return market.windows[len(market.price) - 1 - bar]  # (..., L * F)


def expand(compact: Tensor, market: Market) -> Tensor:
    """Return full observations (..., S) for compact ones (..., C)."""
    n = 1 + market.price.shape[1]  # cash and coins
    return torch.cat((compact[..., :n], _windows_at(compact[..., -1].long(), market), compact[..., n:-1]), dim=-1)


# ---------------------------------------------------------------------------------------------- episodes
def hash32(seed: int, env: Tensor, episode: Tensor) -> Tensor:
    """Return a hash of the arguments, (N,) int64 in [0, 2**32); the finalizer is C. Wellons' `lowbias32`.

    A hash replaces a random generator: environment i does not depend on environment j, every device draws the same
    numbers, and a captured GPU graph needs no generator state. The products wrap around in int64, but their low 32 bits
    are exact.
    """
    x = torch.zeros_like(env)
    for word in (seed, env, episode):
        x = (x + word + 0x9E3779B9) & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        x = x ^ (x >> 16)
    return x


def draw_starts(episode: Tensor, n_starts: int, mode: str, seed: int, market: Market) -> tuple[Tensor, Tensor]:
    """Return the segment (N,) and the first bar (N,) of the next episodes.

    Args:
        episode: (N,) int64, index of each environment's episode.
        n_starts: number of possible starts in the market.
        mode: "first", "random" or "stratified".
        seed: seed of the random starts.
        market: market data.
    """
    env = torch.arange(len(episode), device=episode.device)
    if mode == "first":  # environment i starts in segment i and moves to the next one after each episode
        segment = market.usable_segment[(env + episode) % len(market.usable_segment)]
        return segment, market.first_start[segment]
    low, width = 0, n_starts
    if mode == "stratified":  # environment i draws from the i-th of N equal parts of all starts
        low = env * n_starts // len(episode)
        width = ((env + 1) * n_starts // len(episode) - low).clamp(min=1)
    k = low + ((hash32(seed, env, episode) * width) >> 32)
    segment = torch.searchsorted(market.start_offset, k, right=True) - 1
    return segment, market.first_start[segment] + k - market.start_offset[segment]


def open_portfolio(
    segment: Tensor, first_bar: Tensor, episode_bars: int | None, market: Market, p: EnvParams
) -> Portfolio:
    """Return fresh accounts that hold only cash.

    Args:
        segment: (N,) int64, segment of each episode.
        first_bar: (N,) int64, first bar of each episode.
        episode_bars: maximum episode length in steps; None ends episodes at the end of their segment.
        market: market data.
        p: settings.
    """
    last_bar = market.episode_limit[segment]
    if episode_bars is not None:
        last_bar = torch.minimum(last_bar, first_bar + episode_bars)
    base_price = market.price[market.segment_first[segment] if p.benchmark_base == "segment" else first_bar]  # (N, A)
    is_priced = base_price > 0
    fee = 1.0 + p.buy_fee_rate * p.benchmark_pays_fee  # the full fee, regardless of the costs of a step
    share = p.initial_capital / is_priced.sum(-1, keepdim=True).clamp(min=1).double()
    benchmark_qty = torch.where(is_priced, share / (base_price * fee), 0.0)
    none, zero = torch.zeros_like(base_price), torch.zeros_like(base_price[:, 0])
    count, capital = torch.zeros_like(first_bar), torch.full_like(zero, p.initial_capital)
    return Portfolio(
        bar=first_bar, first_bar=first_bar, last_bar=last_bar, segment=segment, cash=capital,
        qty=none, held_bars=none.long(), high=none, filled=none, order_scale=market.order_scale[segment],
        benchmark_qty=benchmark_qty, benchmark=(benchmark_qty * market.price[first_bar]).sum(-1), equity=capital,
        peak=capital, max_drawdown=zero, discounted_return=zero, trades=count, fees=zero, slippage=zero, turnover=zero,
    )  # fmt: skip


def order_scale(price: np.number, p: EnvParams) -> float:
    """Return coins per unit of action in the host presets.

    Args:
        price: first price of the coin in a segment, in the caller's dtype.
        p: settings.
    """
    if not price > 0 or p.order_sizing == "equity":
        return 0.0
    if p.order_sizing == "initial_capital":
        return p.initial_capital / (float(price) * p.norm_action)
    if p.order_sizing == "price_digits":  # as in FinRL: the number of characters of the printed price
        return p.norm_action / 10.0 ** (len(str(price)) - 7)
    return p.norm_action / 10.0 ** math.floor(math.log(price, 10))


def restart(is_over: Tensor, fresh: Portfolio, book: Portfolio) -> Portfolio:
    """Return the accounts of `fresh` if is_over (N,) is True, and those of `book` otherwise."""
    where = {1: is_over, 2: is_over[:, None]}  # by number of axes
    return Portfolio(**{k: torch.where(where[new.ndim], new, getattr(book, k)) for k, new in vars(fresh).items()})


def build_market(config: Mapping[str, Any], p: EnvParams, episode_bars: int | None, device: torch.device) -> Market:
    """Check a caller's arrays and copy them to the device. The caller's arrays are never modified.

    On a CPU, float32 features that are stored newest first and need no scaling are not copied, so processes share them.

    Args:
        config: arrays and segments, described in `VectorizedCryptoEnvAlpaca`.
        p: settings.
        episode_bars: maximum episode length in steps; None ends episodes at the end of their segment.
        device: torch device of the result.

    Raises:
        ValueError: the arrays cannot be traded; the message names the array and the bar, and suggests a fix.
    """
    price, tech = np.asarray(config["price_array"]), np.asarray(config["tech_array"])
    check_arrays(price, tech, p.rules, p.norm_tech, config.get("tickers"))
    n_bars, n_assets = price.shape
    filled = np.broadcast_to(np.asarray(config.get("filled_array", False), dtype=bool), price.shape)
    given = config.get("segments")
    segments = [(int(a), int(b)) for a, b in ([(0, n_bars)] if given is None or len(given) == 0 else given)]
    if any(a < 0 or b > n_bars or a >= b for a, b in segments):
        raise ValueError(f"segments must be (first, last_exclusive) pairs within {n_bars} bars; received {segments}")
    limit = [b - 1 - (p.lookback if p.ends_lookback_early else 0) for _, b in segments]
    first_start = [a + p.lookback - 1 for a, _ in segments]
    room = [last - first for first, last in zip(first_start, limit, strict=True)]
    n_starts = [max(steps - min(episode_bars or 1, max(steps, 1)) + 1, 0) for steps in room]
    if sum(n_starts) == 0:
        needed = p.lookback + 1 + (p.lookback if p.ends_lookback_early else 0)
        raise ValueError(f"lookback {p.lookback} requires a segment of at least {needed} bars; received {segments}")

    numbers = functools.partial(torch.tensor, dtype=torch.float64, device=device)
    integers = functools.partial(torch.tensor, dtype=torch.int64, device=device)

    return Market(
        price=numbers(np.ascontiguousarray(price, dtype=np.float64)),
        windows=lookback_windows(tech if p.norm_tech == 1 else tech.astype(float) * p.norm_tech, p.lookback, device),
        min_qty=numbers(np.full(n_assets, smallest_orders(p.rules, config, n_assets), dtype=np.float64)),
        qty_increment=numbers(np.full(n_assets, config.get("qty_increment", 0.0), dtype=np.float64)),
        order_scale=numbers([[order_scale(first_price, p) for first_price in price[a]] for a, _ in segments]),
        segment_first=integers([a for a, _ in segments]), segment_end=integers([b for _, b in segments]),
        episode_limit=integers(limit), first_start=integers(first_start),
        start_offset=integers(np.cumsum([0, *n_starts]).tolist()),
        usable_segment=integers([i for i, n in enumerate(n_starts) if n > 0]),
        trades=torch.tensor(~filled, dtype=torch.float32, device=device) if filled.any() else None,
    )  # fmt: skip


def lookback_windows(tech: np.ndarray, lookback: int, device: torch.device) -> Tensor:
    """Return the lookback windows of features (T, F) as (T - L + 1, L * F) float32.

    Row T - 1 - t holds bars t, t - 1, ..., t - L + 1. The result is an overlapping view: features are stored once,
    newest first, so each row is contiguous in memory and ordered like an observation.
    """
    n_bars, n_features = tech.shape
    backwards = torch.from_numpy(np.ascontiguousarray(tech[::-1], dtype=np.float32)).to(device).flatten()
    return backwards.as_strided((n_bars - lookback + 1, lookback * n_features), (n_features, 1))


def cash_of(ticker: str) -> str:
    """Return a ticker's cash currency: `BTC` for `ETH/BTC` and `ETHBTC`, `USD` for `BTC/USDT`, `BTCUSDC` and `BTC`."""
    coin, mark, cash = ticker.upper().replace("-", "/").replace("_", "/").partition("/")
    last, before = coin[-3:], coin[:-3].rpartition(":")[2]
    is_pair = before and (last in CASH[:5] or (last in CASH and before in CAPPUCCINO_LIMITS))
    cash = cash.replace(":", "/").partition("/")[0] if mark else last if is_pair else "USD"
    return "USD" if "USD" in cash else cash


def check_arrays(price: np.ndarray, tech: np.ndarray, rules: str = "", norm_tech: float = 1.0, names: Any = ()) -> None:
    """Check that arrays can be traded.

    Features times norm_tech must be representable in float32. Prices must not be negative; 0 means that the coin has no
    price. Under the "standard" rules prices must be 1e-100 to 1e100, so that quantities and values stay finite. All
    tickers must have the same cash currency.

    Args:
        price: (T, A) closes, quote currency.
        tech: (T, F) features.
        rules: name of the rule set; empty checks the weaker limits of host rules.
        norm_tech: scale of the features.
        names: A tickers, or empty if they are unknown.

    Raises:
        ValueError: a check failed; the message names the array, bar, column and value, and suggests a fix.
    """
    cash = {cash_of(str(ticker)): str(ticker) for ticker in (() if names is None else names)}
    if len(cash) > 1:
        raise ValueError(f"{', '.join(cash.values())} are in {', '.join(cash)}; an account has one cash currency")
    if (price.ndim, tech.ndim) != (2, 2) or len(price) != len(tech) or {price.dtype.kind, tech.dtype.kind} - {*"fiu"}:
        raise ValueError("price_array (T, A) and tech_array (T, F) must be numeric and have the same number of bars; "
                         f"received {price.dtype} {price.shape} and {tech.dtype} {tech.shape}")  # fmt: skip
    # np.float64, because a float32 array would cast a Python float, and the largest one would become infinite.
    prices = np.array((1e-100, 1e100) if rules == "standard" else (0.0, np.finfo(np.float64).max))
    largest = np.float64(np.finfo(np.float32).max) / max(abs(norm_tech), 1e-269)  # finite if norm_tech is 0
    for name, array, (least, most) in (("price_array", price, prices), ("tech_array", tech, (-largest, largest))):
        if array.size and not (array.min() >= least and array.max() <= most):  # False for NaN
            bad = np.argwhere(~((array >= least) & (array <= most)))
            found = f"{array[tuple(bad[0])]:g} at bar {bad[0][0]}, column {bad[0][1]} ({len(bad)} such values)"
            raise ValueError(f"{name} is {found}; it must be between {least:g} and {most:g}. Fix or remove these bars")


def smallest_orders(rules: str, config: Mapping[str, Any], n_assets: int) -> Sequence[float] | np.ndarray:
    """Return the smallest order of each coin, (A,) coins.

    A caller's `min_order_qty` is used unchanged. Otherwise, the limits are the host's limits times 1.1. "standard",
    "finrl" and "finrl_meta" have no limits.

    Raises:
        ValueError: the rule set has no limit for a coin.
    """
    given, tickers = config.get("min_order_qty"), config.get("tickers")
    if given is not None:
        return given
    if rules in ("standard", "finrl", "finrl_meta"):
        return [0.0] * n_assets
    if rules == "cappuccino" and tickers is not None:
        names = [str(ticker).upper().replace("/", "").removesuffix("USDT").removesuffix("USD") for ticker in tickers]
        unknown = [name for name in names if name not in CAPPUCCINO_LIMITS]
        if unknown:
            raise ValueError(f"no minimum order is known for {', '.join(unknown)}; pass config['min_order_qty'] (A,)")
        return [CAPPUCCINO_LIMITS[name] * 1.1 for name in names]
    limits = COLUMN_LIMITS.get(rules) or tuple(CAPPUCCINO_LIMITS.values())
    if n_assets > len(limits):
        known = f"the {rules} rules have a smallest order for {len(limits)} columns, but price_array has {n_assets}"
        raise ValueError(f"{known}; pass config['min_order_qty'] (A,) in coins")
    return [limit * 1.1 for limit in limits[:n_assets]]


# ---------------------------------------------------------------------------------------------- inside a host
# Names of the hosts' scalar classes, and the names in their code that distinguish their rules.
HOST_CLASSES = ("CryptoEnvAlpaca", "CryptoEnvCCXT", "CryptoEnv")
MARKS: dict[str, tuple[str, frozenset[str], frozenset[str]]] = {  # rules -> class, names it uses, names it does not use
    "cappuccino": ("CryptoEnvAlpaca", frozenset({"norm_action", "stocks_cooldown", "time_decay_floor"}), frozenset()),
    "finrl_crypto": (
        "CryptoEnvAlpaca", frozenset({"norm_action", "stocks_cooldown"}), frozenset({"time_decay_floor"})),
    "ccxt": ("CryptoEnvCCXT", frozenset({"norm_action", "stocks_cooldown"}), frozenset()),
    "finrl": ("CryptoEnv", frozenset({"max_stock", "action_norm_vector", "str"}), frozenset({"norm_action"})),
    "finrl_meta": ("CryptoEnv", frozenset({"max_stock", "action_norm_vector", "log"}), frozenset({"norm_action"})),
}  # fmt: skip
CONFIG_KEYS = frozenset({
    "price_array", "tech_array", "time_array", "tickers", "segments", "min_order_qty", "qty_increment", "filled_array",
    "ticker_list", "if_train", "turbulence_array",  # keys that hosts use and the simulation ignores
})  # fmt: skip


def words_of(host_class: type) -> tuple[frozenset[str], frozenset[str]]:
    """Return the (names, strings) in a class's code. Keys that it reads from config and env_params are strings."""
    names: set[str] = set()
    texts: set[str] = set()
    found: list[Any] = [f.__code__ for base in host_class.__mro__ for f in vars(base).values() if inspect.isfunction(f)]
    while found:
        each = found.pop()
        if inspect.iscode(each):
            names.update(each.co_names)
            each = each.co_consts
        if isinstance(each, tuple | frozenset):
            found.extend(each)
        elif isinstance(each, str):
            texts.add(each)
    return frozenset(names), frozenset(texts)


def rules_of(host_class: type) -> str | None:
    """Return the rule set of a host's scalar class, or None if the class is not recognized."""
    names = words_of(host_class)[0]
    for rules, (name, has, lacks) in MARKS.items():
        if host_class.__name__ == name and has <= names and not lacks & names:
            return rules
    return None


def imported_host_classes() -> list[type]:
    """Return the recognized scalar classes among the imported modules, without their base classes."""
    scopes = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
    named = {scope[name] for scope in scopes for name in HOST_CLASSES if isinstance(scope.get(name), type)}
    found = [each for each in named if not issubclass(each, VectorizedCryptoEnvAlpaca) and rules_of(each) is not None]
    derived = [each for each in found if not any(other is not each and issubclass(other, each) for other in found)]
    return sorted(derived, key=name_of)


def module_of(host_class: type) -> dict[str, Any]:
    """Return the globals of the module that defines a class."""
    return vars(sys.modules[host_class.__module__]) if host_class.__module__ in sys.modules else {}


def settings_of_host(host_class: type, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (env_params, config) of a host's scalar class: rules, capital, fees and smallest orders.

    Args:
        host_class: a class that `rules_of` recognizes.
        config: arrays of the environment; the number of assets is read from `price_array`.

    Raises:
        ValueError: the host's table of smallest orders has fewer coins than `price_array`.
    """
    module, n_assets = module_of(host_class), np.shape(config["price_array"])[-1]
    defaults = {name: p.default for name, p in inspect.signature(host_class.__init__).parameters.items()}
    capital = defaults.get("initial_capital") or getattr(module.get("TRADING"), "INITIAL_CAPITAL", None)
    found = {"initial_capital": capital, "buy_fee_rate": defaults.get("buy_cost_pct"),
             "sell_fee_rate": defaults.get("sell_cost_pct")}  # fmt: skip
    params: dict[str, Any] = {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
    params["rules"] = rules_of(host_class)
    limits: Any = module.get("CRYPTO_LIMITS" if host_class.__name__ == "CryptoEnvCCXT" else "ALPACA_LIMITS")
    if np.ndim(limits) != 1 or config.get("min_order_qty") is not None:
        return params, {}
    if len(limits) < n_assets:
        raise ValueError(f"{name_of(host_class)} has a smallest order for {len(limits)} coins, but price_array has "
                         f"{n_assets}; extend its table, or pass config['min_order_qty'] (A,) in coins")  # fmt: skip
    return params, {"min_order_qty": np.asarray(limits)[:n_assets] * 1.1}


def name_of(host_class: type) -> str:
    """Return the module and the name of a class."""
    return f"{host_class.__module__}.{host_class.__name__}"


def resolve_rules(
    config: Mapping[str, Any], env_params: Mapping[str, Any], picked: str | None = None
) -> tuple[Mapping[str, Any], dict[str, Any]]:  # fmt: skip
    """Return (config, env_params) with the rules that apply: the given ones, or those of the host's scalar class.

    Args:
        config: arrays and segments of the environment.
        env_params: settings, with or without `rules`.
        picked: rules of an environment class that is named after a host's class. They apply if no rules are given. The
            capital, fees and smallest orders are then those of the imported class that has the same rules.

    Raises:
        ValueError: no rules are given and there is not exactly one class to inherit from; the host's class reads a key
            that is not supported here; or a config key is unknown and no host class is imported.
    """
    hosts, rules = imported_host_classes(), env_params.get("rules")
    _refuse_unknown_keys(config, env_params, rules or picked, hosts)
    if rules is not None:
        _say_once(logging.INFO, f"rules {rules!r}, from env_params")
        return config, dict(env_params)
    hosts = [each for each in hosts if picked in (None, rules_of(each))]
    brought = {repr(settings_of_host(each, config)): each for each in hosts}
    if not hosts and picked is not None:
        _say_once(logging.INFO, f"rules {picked!r}, from the class of the environment")
        return config, {**env_params, "rules": picked}
    if len(brought) != 1:
        seen = ", ".join(f"{name_of(each)} ({rules_of(each)})" for each in hosts) or "none"
        raise ValueError(
            f'env_params["rules"] must be one of {", ".join(RULES)}. By default the rules are those of the scalar '
            f"class that the host has imported, if there is exactly one; imported: {seen}")  # fmt: skip
    inherited, limits = settings_of_host(hosts[0], config)
    if "fee_rate" in env_params:
        inherited = {name: value for name, value in inherited.items() if not name.endswith("fee_rate")}
    _say_once(logging.WARNING, f"rules {inherited['rules']!r}, inherited from {name_of(hosts[0])}")
    return {**config, **limits}, inherited | {k: v for k, v in env_params.items() if k != "rules"}


def _refuse_unknown_keys(
    config: Mapping[str, Any], env_params: Mapping[str, Any], rules: str | None, hosts: Sequence[type]
) -> None:  # fmt: skip
    texts = {each: words_of(each)[1] for each in hosts}
    for key in sorted(config.keys() - CONFIG_KEYS):
        if not hosts or any(key in read for read in texts.values()):
            raise ValueError(f"config[{key!r}] is not supported; known keys are {', '.join(sorted(CONFIG_KEYS))}. "
                             "Remove it if it has no effect in the host")  # fmt: skip
    known = {field.name for field in fields(EnvParams)} | {"fee_rate", *OPTIONS}
    for each, read in texts.items():
        unknown = sorted((env_params.keys() - known) & read) if rules in (None, rules_of(each)) else []
        if unknown:
            raise ValueError(f"{name_of(each)} reads env_params {', '.join(unknown)}, which is not supported")


def _lacks_fee_tiers() -> bool:
    return any(module_of(each).get("FEE_TIER_AVAILABLE") is False for each in imported_host_classes())


_say_once = functools.cache(log.log)  # level, message


def refuse_what_is_on(**options: Any) -> None:
    """Check that no unsupported host keyword is enabled.

    If Cappuccino cannot import its fee tiers, it ignores its fee and timeframe keywords. They are then ignored here
    too.

    Raises:
        ValueError: an enabled keyword cannot be simulated.
    """
    for name, value in options.items():
        if value and not (name != "use_sentiment" and _lacks_fee_tiers()):
            raise ValueError(f"{name} is not supported; received {value!r}. Disable it, or train with the "
                             "host's own class")  # fmt: skip


# ---------------------------------------------------------------------------------------------- the classes
class NoNativeStep(RuntimeError):  # noqa: N818 - not an error
    """The reason why no native step can be used here. The plain step runs instead."""


def _shows(field: str, meaning: str) -> property:
    return property(lambda env: env._out(env._shown(field).clone()), doc=meaning)


def _prices(env: VectorizedCryptoEnvAlpaca) -> Any:
    """Return the prices in separate storage, which can move to another process without the rest of the market."""
    price = env.market.price
    if env.as_numpy:
        price = price.cpu().numpy()
        price.flags.writeable = False
        return price
    return torch.from_numpy(price.numpy()) if env.device.type == "cpu" else price


def _sizes(meaning: str) -> property:
    return property(lambda env: env._n_envs, lambda env, n_envs: env._resize(n_envs), doc=meaning)


class VectorizedCryptoEnvAlpaca:
    """N long-only spot accounts on A coins, in plain torch: the readable reference for the optimized class.

    `reset()` returns the state. `step(action)` returns (state, reward, done, info). All of them are tensors on
    `device`: state (N, S) float32, reward (N,) float32, done (N,) bool, and info is a dict of tensors.

    When an episode ends, its environment restarts within the same step. The returned state is then the first of the new
    episode, and `info["final_state"]` holds the last state of the finished episode. `info["truncated"]` is True if only
    a time limit ended the episode; bootstrap the value from `final_state` in that case. `cash`, `stocks`, `time` and
    `total_asset` show the account at the end of its episode until the next step. `episode_return` shows the last
    finished episode until the next one ends.

    If n_envs is 1, the interface is the scalar one of the hosts: `reset` returns NumPy (S,), and `step` returns NumPy
    (S,), a float, a bool and a dict of Python numbers. The environment does not restart, because hosts read `cash` and
    `total_asset` after the last step and then call `reset()`. Use `as_numpy=False` to get the tensor interface for one
    environment.

    Args:
        config: a mapping with these keys. `price_array` (T, A): closes, quote currency. `tech_array` (T, F): features.
            Optional: `segments`, a list of (first, last_exclusive) bars that no episode crosses; `tickers` (A,), all in
            one cash currency; `min_order_qty` (A,) and `qty_increment` (A,), in coins; `filled_array` (T, A) bool, True
            for bars without trades of the coin, in which no order fills.
        env_params: `rules`, `lookback` and any other setting of `EnvParams`. It may also hold `n_envs`, `seed`,
            `episode_bars` and `gpu_id`; an argument with the same name overrides them. An `EnvParams` is used
            unchanged.
        n_envs: number of accounts N (default: 1). Assigning a new value to `env_num`, `n_envs` or `num_envs` allocates
            that many accounts, which start with the next `reset()`.
        rules: overrides `env_params["rules"]`. If neither is given, rules, capital, fees and smallest orders are those
            of the scalar class that the host has imported; see `imported_host_classes`.
        lookback: overrides `env_params["lookback"]`, bars.
        initial_capital: initial cash in quote currency; None uses the value of the rule set.
        buy_cost_pct: fee on a purchase, fraction of notional; None uses the value of the rule set.
        sell_cost_pct: fee on a sale, fraction of notional; None uses the value of the rule set.
        gamma: discount factor of the host presets' final reward.
        if_log: accepted for compatibility with hosts and ignored.
        device: torch device; None uses `cuda:gpu_id` if CUDA is available, and the CPU otherwise.
        gpu_id: index of the GPU; -1 is the CPU, None is 0.
        num_envs: ElegantRL's name for `n_envs`; takes precedence over it.
        seed: seed of the random starts; None is 0. Assigning `seed` later takes effect with the next episode.
        start: "first", "random" or "stratified"; None uses the value of the rule set.
        episode_bars: maximum episode length in steps; None ends episodes at the end of their segment.
        as_numpy: if True, use the scalar NumPy interface; None means n_envs == 1.
        autoreset: if True, `step` starts a new episode when one ends; None means not `as_numpy`. If False, the returned
            state is the last of the finished episode, and `reset(where=...)` starts the next one. Stepping an account
            after its episode has ended is safe, but the results are meaningless.
        compact: if True, the last column of an observation holds the bar index instead of its features. `expand`
            returns the full observation. Requires at most 2**24 bars, because float32 represents every integer only up
            to that number.
        native_step: if False, the optimized class runs the plain step. "always" runs the native step even if the
            measurement on its first use found it slower. A native step whose results differ from the plain step is
            never used.
        api: "elegantrl" is described above. With "gymnasium", `reset` returns (state, info), `step` returns (state,
            reward, terminated, truncated, info), and the environment has spaces and `close`. ElegantRL's master branch
            also requires "gymnasium".
        env_name: name of the environment.
        tickers: a label, ignored.
        sentiment_service: accepted for compatibility with hosts and ignored.
        use_sentiment: must be False if `sentiment_service` is given.
        use_dynamic_fees: must be False.
        fee_mode: ignored.
        fee_interval: ignored.
        use_timeframe_constraint: must be False.
        timeframe: ignored.
        data_interval: ignored.
        exchange_name: ignored.

    Attributes:
        params: the settings, an `EnvParams`.
        market: the market data, a `Market`.
        book: the accounts, a `Portfolio`.
        device: torch device of all tensors.
        action_dim: number of assets A.
        full_state_dim: width S of a full observation.
        max_step: largest number of steps in an episode.
        target_return: return at which a host may stop training.
        if_discrete: always False, because actions are continuous.

    Raises:
        ValueError: settings, arrays or sizes cannot be simulated.
        ImportError: api is "gymnasium" and the package is not installed.
    """

    default_rules: str | None = None  # set by classes named after a host's class; None: the imported class's rules
    _cost_factor = 1.0

    def __init__(
        self, config: Mapping[str, Any], env_params: Mapping[str, Any] | EnvParams | None = None,
        n_envs: int | None = None, *,
        rules: str | None = None, lookback: int | None = None, initial_capital: float | None = None,
        buy_cost_pct: float | None = None, sell_cost_pct: float | None = None, gamma: float = 0.99,
        if_log: bool = False, device: str | torch.device | None = None, gpu_id: int | None = None,
        num_envs: int | None = None, seed: int | None = None, start: str | None = None,
        episode_bars: int | None = None, as_numpy: bool | None = None, autoreset: bool | None = None,
        compact: bool = False, native_step: bool | str = True, api: str = "elegantrl",
        env_name: str = "VectorizedCryptoEnvAlpaca", tickers: Sequence[str] | None = None,
        sentiment_service: Any = None, use_sentiment: bool = False, use_dynamic_fees: bool = False,
        fee_mode: str | None = None, fee_interval: str | None = None, use_timeframe_constraint: bool = False,
        timeframe: str | None = None, data_interval: str | None = None, exchange_name: str | None = None,
    ) -> None:  # fmt: skip
        refuse_what_is_on(
            use_sentiment=use_sentiment and sentiment_service is not None, use_dynamic_fees=use_dynamic_fees,
            use_timeframe_constraint=use_timeframe_constraint)  # fmt: skip
        named = {"rules": rules, "lookback": lookback, "n_envs": n_envs if num_envs is None else num_envs,
                 "seed": seed, "episode_bars": episode_bars, "gpu_id": gpu_id}  # fmt: skip
        settled = env_params if isinstance(env_params, EnvParams) else None
        given: dict[str, Any] = {**(vars(settled) if settled is not None else env_params or {})}  # type: ignore[dict-item]
        given |= {name: value for name, value in named.items() if value is not None}
        if settled is None:
            config, given = resolve_rules(config, given, self.default_rules)
        n_envs, seed, episode_bars, gpu_id = (given.get(name) for name in OPTIONS)
        self.params = settled or EnvParams.from_mapping(given, initial_capital, buy_cost_pct, sell_cost_pct, gamma)
        self.start, self._seed, self.episode_bars = start or self.params.start, int(seed or 0), episode_bars
        self.target_return = TARGET_RETURNS.get(self.params.rules, 10.0)
        self._asked = {"as_numpy": as_numpy, "autoreset": autoreset, "native_step": native_step}
        self.compact, self.if_log, self.env_name, self.if_discrete = compact, if_log, env_name, False
        gpu_id = 0 if gpu_id is None else int(gpu_id)
        device = device or (f"cuda:{gpu_id}" if gpu_id >= 0 and torch.cuda.is_available() else "cpu")
        self.device = torch.empty(0, device=device).device  # with its index, as in `Tensor.device`
        if api not in ("elegantrl", "gymnasium"):
            raise ValueError(f'api must be "elegantrl" or "gymnasium"; received {api!r}')
        self.api = api
        shape = np.shape(config["price_array"]), np.shape(config["tech_array"])
        if compact and shape[0][0] > 2**24:
            raise ValueError(f"compact observations support at most 2**24 bars; price_array has {shape[0][0]}")
        self.action_dim = shape[0][-1]
        self.full_state_dim = sum(width for _, width in observation_layout(self.params, self.action_dim, shape[1][-1]))
        self._state_dim = self.full_state_dim - (self.params.lookback * shape[1][-1] - 1 if compact else 0)
        self._set_size(1 if n_envs is None else n_envs)

        self.market = build_market(config, self.params, episode_bars, self.device)
        self._n_starts = int(self.market.start_offset[-1])
        room = self.market.episode_limit - self.market.first_start
        self.max_step = min(int(room.max()), episode_bars or int(room.max()))
        self.initial_total_asset = self.initial_cash = self.params.initial_capital
        self._open_accounts()

    def _set_size(self, n_envs: int) -> None:
        if isinstance(n_envs, bool) or not isinstance(n_envs, int | np.integer) or n_envs < 1:
            raise ValueError(f"n_envs must be a whole number of at least 1; received {n_envs!r}")
        self._n_envs = int(n_envs)
        self.env_num = self._n_envs  # a host may have replaced the property of the class by a number
        self.as_numpy = self._n_envs == 1 if self._asked["as_numpy"] is None else self._asked["as_numpy"]
        self.autoreset = not self.as_numpy if self._asked["autoreset"] is None else self._asked["autoreset"]
        self._check_options()
        self._check_memory()
        if self.api == "gymnasium":
            self._describe()

    def _open_accounts(self) -> None:
        """Allocate N accounts, which start with the next reset."""
        self._needs_reset = True
        self._allocate()
        self.book = self._fresh_book(self._episode + 1)

    def _resize(self, n_envs: int) -> None:
        if n_envs == self._n_envs:
            return
        before = {name: vars(self)[name] for name in ("_n_envs", "as_numpy", "autoreset")}
        try:
            self._set_size(n_envs)
        except ValueError:  # keep the current accounts
            vars(self).update(before)
            raise
        self._open_accounts()

    def _allocate(self) -> None:
        self._episode = torch.full((self._n_envs,), -1, dtype=torch.int64, device=self.device)
        self._rejected = torch.zeros_like(self._episode)
        self._last_return = torch.full_like(self._rejected, torch.nan, dtype=torch.float64)
        self._over = torch.zeros_like(self._rejected, dtype=torch.bool)  # episode ended, not reset yet (no autoreset)
        self._ended: Portfolio | None = None  # accounts before the restarts of the last step, if any
        self._charged = torch.zeros(len(Costs._fields), dtype=torch.float64, device=self.device)  # `Costs` of a step
        self._pass_on()

    def _check_options(self) -> None:
        if self.start not in ("first", "random", "stratified"):
            raise ValueError(f'start must be "first", "random" or "stratified"; received {self.start!r}')
        if self.episode_bars is not None and self.episode_bars < 1:
            raise ValueError(f"episode_bars must be at least 1 step, or None; received {self.episode_bars!r}")
        if self.as_numpy and (self._n_envs != 1 or self.autoreset):
            raise ValueError(f"as_numpy requires n_envs == 1 and autoreset off; received n_envs = {self._n_envs}")

    def _check_memory(self) -> None:
        needed = self._n_envs * (5 * 4 * self.state_dim + 8 * (10 * self.action_dim + 20))
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:  # Windows has no sysconf, so its limit is unknown
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
        if needed > free:
            sizes = f"requires about {needed / 2**30:,.1f} GiB, but {self.device} has {free / 2**30:,.1f}"
            raise ValueError(f"n_envs = {self._n_envs} {sizes}; at most {self._n_envs * free // needed} fit")

    # Attributes that hosts read: tensors for a batch, NumPy arrays and Python numbers if as_numpy.
    n_envs, num_envs, env_num = _sizes("Number of accounts N."), _sizes("Same as n_envs."), _sizes("Same as n_envs.")
    cash = amount = _shows("cash", "(N,) cash of each account, quote currency.")
    stocks = _shows("qty", "(N, A) coins of each account.")
    filled = _shows("filled", "(N, A) coins bought minus coins sold in the last step, including stops and releases.")
    time = day = _shows("bar", "(N,) current row of price_array.")
    total_asset = _shows("equity", "(N,) equity of each account, quote currency.")
    price_array = price_ary = property(_prices, doc="(T, A) closes of the market, quote currency. Do not modify them.")

    @property
    def episode_return(self) -> Any:
        """(N,) account value divided by initial capital.

        It describes the last finished episode, or the running one if no episode has ended yet.
        """
        running, last = self._shown("equity") / self.params.initial_capital, self._ended_returns()
        return self._out(running if self.as_numpy else torch.where(last.isnan(), running, last))

    @property
    def state_dim(self) -> int:
        """Width of an observation: S, or C if `compact`. Assigning a different width raises ValueError."""
        return self._state_dim

    @state_dim.setter
    def state_dim(self, width: int) -> None:
        if width != self._state_dim:
            rest = self._state_dim - 1 - self.action_dim
            raise ValueError(f"state_dim is {self._state_dim}: cash, {self.action_dim} coins, {rest} features and "
                             f"extra fields. The host assigns {width}; fix it there")  # fmt: skip

    @property
    def seed(self) -> int:
        """Seed of the random starts. A new value takes effect with the next episode."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = int(seed)
        self._pass_on()

    @property
    def cost_factor(self) -> float:
        """Fraction of fees and slippage that steps charge, 0 to 1. A new value takes effect with the next step.

        Steps read the rates from memory on the device, so no step is rebuilt and a captured graph sees the new value.
        The equal-weight benchmark always pays its full entry fee.

        Raises:
            ValueError: the assigned value is not between 0 and 1.
        """
        return self._cost_factor

    @cost_factor.setter
    def cost_factor(self, factor: float) -> None:
        if not 0.0 <= factor <= 1.0:
            raise ValueError(f"cost_factor must be between 0 and 1; received {factor}")
        self._cost_factor = float(factor)
        self._pass_on()

    def _pass_on(self) -> None:
        """Copy values that may change between steps to the memory that the step reads. Do not wait for a GPU."""
        for i, rate in enumerate(self.params.costs(self._cost_factor)):
            self._charged[i].fill_(rate)

    def _read(self, field: str) -> Tensor:
        return getattr(self.book, field)

    def _shown(self, field: str) -> Tensor:
        return getattr(self._ended or self.book, field)

    def _ended_returns(self) -> Tensor:
        return self._last_return

    @torch.no_grad()
    def reset(self, where: Any = None, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Any:
        """Open fresh accounts and return their first observations.

        Args:
            where: (N,) bool, environments to open; None opens all. The others continue.
            seed: new seed of the random starts. Passing it also resets the episode counters.
            options: {"reset_mask": where}, as Gymnasium passes it.

        Returns:
            Observations, (N, S) float32, or NumPy (S,) if `as_numpy`. With api="gymnasium", (observations, {}).

        Raises:
            RuntimeError: `where` selects some environments before the first full reset.
        """
        return self._first_return(self._begin(where, seed, options))

    def _begin(self, where: Any, seed: int | None, options: Mapping[str, Any] | None) -> Tensor:
        where = (options or {}).get("reset_mask") if where is None else where
        if seed is not None:
            self.seed = seed
            self._episode.fill_(-1)
        if where is None:
            self._episode += 1
            self._rejected.zero_()
            self._over = torch.zeros_like(self._over)
            self.book = book = self._fresh_book(self._episode)
        else:
            is_opened = torch.as_tensor(where, dtype=torch.bool).to(self.device).reshape(self._n_envs)
            if self._needs_reset and not is_opened.all():
                raise RuntimeError("no episode is running: open all environments with reset() first")
            self._episode += is_opened
            self._rejected *= ~is_opened
            self._over = self._over & ~is_opened
            self.book = book = restart(is_opened, self._fresh_book(self._episode), self.book)
        self._needs_reset, self._ended = False, None
        return self._observe(book)

    def _first_return(self, state: Tensor) -> Any:
        return self._out(state) if self.api == "elegantrl" else (self._out(state), {})

    @torch.no_grad()
    def step(self, action: Any) -> tuple[Any, ...]:
        """Advance every environment one bar.

        Args:
            action: (N, A) in [-1, 1], or (A,) if `as_numpy`; positive buys, negative sells. It is converted to float32
                on `device` and never modified. A row with a non-finite entry is a hold, counted in
                `info["rejected_actions"]`.

        Returns:
            (state, reward, done, info), as described in the class docstring. With api="gymnasium", (state, reward,
            terminated, truncated, info).

        Raises:
            ValueError: the action has a wrong shape.
            RuntimeError: `reset` has not been called, or the episode of the only environment has ended.
        """
        action = self._fillable(self._accept(action))
        self.book, self._ended, state, reward, done, info = self._transition(self.book, action, self._rejected)
        self._last_return = torch.where(done & ~self._over, info["episode_return"], self._last_return)
        self._over = done & (not self.autoreset)
        self._needs_reset = self.as_numpy and bool(done)
        return self._step_return(state, reward, done, info)

    def _step_return(self, state: Tensor, reward: Tensor, done: Tensor, info: dict[str, Any]) -> tuple[Any, ...]:
        if self.api == "elegantrl":
            return self._out(state), self._out(reward), self._out(done), self._out(info)
        truncated = info["truncated"]
        if self.autoreset:  # names of Gymnasium's vector environments
            info = info | {"final_obs": info["final_state"], "_final_obs": done}
        return (*map(self._out, (state, reward, done & ~truncated, truncated)), self._out(info))

    def _transition(
        self, book: Portfolio, action: Tensor, rejected: Tensor
    ) -> tuple[Portfolio, Portfolio | None, Tensor, Tensor, Tensor, dict[str, Any]]:  # fmt: skip
        """Return (accounts, accounts before restarts or None, state, reward, done, info) one bar later."""
        is_valid = action.isfinite().all(-1, keepdim=True)
        rejected += ~is_valid[:, 0]
        book, outcome = step(book, torch.where(is_valid, action, 0.0), self.market, self.params, Costs(*self._charged))
        state = final_state = self._observe(book)
        info = {name: getattr(book, name).clone() for name in ("equity", "trades", *COSTS)} | {
            "episode_return": book.equity / self.params.initial_capital, "benchmark_equity": book.benchmark.clone(),
            "truncated": outcome.truncated, "final_state": final_state, "reward_terms": outcome.terms,
            "rejected_actions": rejected.clone(),
        }  # fmt: skip
        going_on = self._restart(outcome.done, book) if self.autoreset else book
        ended = None if going_on is book else book
        state = final_state if ended is None else self._observe(going_on)
        return going_on, ended, state, outcome.reward.float(), outcome.done, info

    def _observe(self, book: Portfolio) -> Tensor:
        return observe(book, self.market, self.params, self.compact)

    def expand(self, state: Tensor) -> Tensor:
        """Return full observations (..., full_state_dim) for observations (..., state_dim) of this environment."""
        return expand(torch.as_tensor(state), self.market) if self.compact else state

    def _restart(self, is_over: Tensor, book: Portfolio) -> Portfolio:
        self._episode += is_over
        if self.device.type == "cpu" and not is_over.any():  # not on a GPU: reading the flag would stall it
            return book
        return restart(is_over, self._fresh_book(self._episode), book)

    def _fresh_book(self, episode: Tensor) -> Portfolio:
        segment, first_bar = draw_starts(episode, self._n_starts, self.start, self._seed, self.market)
        return open_portfolio(segment, first_bar, self.episode_bars, self.market, self.params)

    def _accept(self, action: Any) -> Tensor:
        if self._needs_reset:
            raise RuntimeError("no episode is running: call reset() before step()")
        action = torch.as_tensor(action).detach().to(self.device, torch.float32)
        expected = (self.action_dim,) if self.as_numpy else (self._n_envs, self.action_dim)
        if action.shape != expected:
            raise ValueError(f"action must have shape {expected}; received {tuple(action.shape)}")
        return (action[None] if self.as_numpy else action).contiguous()

    def _fillable(self, action: Tensor) -> Tensor:
        trades = self.market.trades  # multiplication keeps non-finite actions, which are counted later
        return action if trades is None else action * trades[(self._read("bar") + 1).clamp(max=len(trades) - 1)]

    def _out(self, value: Any) -> Any:
        if not self.as_numpy:
            return value
        if isinstance(value, dict):
            return {name: self._out(item) for name, item in value.items()}
        row = value[0]
        return row.item() if row.ndim == 0 else row.cpu().numpy().copy()

    def _describe(self) -> None:
        """Set the attributes that Gymnasium requires: spaces of one account and of all accounts, and metadata."""
        try:
            gym = importlib.import_module("gymnasium")
        except ImportError as error:
            raise ImportError('api="gymnasium" requires the package gymnasium: pip install "gymnasium>=1.1"') from error
        box = functools.partial(gym.spaces.Box, dtype=np.float32)
        rows = () if self.as_numpy else (self._n_envs,)
        self.single_observation_space = box(-np.inf, np.inf, (self.state_dim,))
        self.single_action_space = box(-1.0, 1.0, (self.action_dim,))
        self.observation_space = box(-np.inf, np.inf, (*rows, self.state_dim))
        self.action_space = box(-1.0, 1.0, (*rows, self.action_dim))
        modes = gym.vector.AutoresetMode
        self.metadata = {"render_modes": [], "autoreset_mode": modes.SAME_STEP if self.autoreset else modes.DISABLED}

    def close(self) -> None:
        """Do nothing: the environment holds no open resources."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with tensors as bytes, so that each process owns its copy. Deep copies share the market."""
        state = vars(self) | {"book": self.book}
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor | Portfolio)}
        return {k: v for k, v in state.items() if k not in tensors} | {"packed": pickle.dumps(tensors)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        vars(self).update(state | pickle.loads(state.pop("packed")))


TARGET_RETURNS: dict[str, float] = dict.fromkeys(("finrl_crypto", "ccxt", "cappuccino"), 1e8)  # hosts stop there


class VectorizedCryptoEnvAlpacaOptimized(VectorizedCryptoEnvAlpaca):
    """The same environment with preallocated buffers and a native step. Its constructor and results are the same.

    `reset` returns a new tensor. `step` returns buffers of this object, including `info`. Two sets of buffers are used
    in turn, so the results of a step stay valid through the next step. The step after that may overwrite them. A loop
    may therefore still read the previous state after a step. Clone results to keep them longer, or pass your own
    storage: `step(action, out={"state": ..., "reward": ..., "done": ...})` writes into contiguous tensors on `device`
    and returns them. Rows of `info["final_state"]` are valid only if `done` is True. `book`, `cash`, `stocks` and the
    other attributes are copies.

    The native step is in the folder environment_Alpaca_kernels. It requires numba on the CPU and Triton on a GPU.
    Without it the plain step runs and returns new tensors.

    Attributes:
        stepped_by: "numba", "triton" or "torch".
        why_not_native: the reason if `stepped_by` is "torch", otherwise None.
    """

    stepped_by, why_not_native = "torch", None

    def _allocate(self) -> None:
        self._fast: Any = None
        rows = torch.Size((self._n_envs, self.state_dim))
        self._slot_kinds = {"state": (rows, torch.float32), "reward": (rows[:1], torch.float32)}
        self._slot_kinds["done"] = (rows[:1], torch.bool)
        self.is_capturable = False  # True if a caller may capture a step in a CUDA graph
        super()._allocate()
        kernel = self._native_kernel()
        if kernel is not None:
            self.stepped_by, self.why_not_native = kernel.name, None
            self._episode, self._rejected = kernel.episode.fill_(-1), kernel.rejected
            self._fast = kernels("buffers").FastStep(self, kernel)

    def _native_kernel(self) -> Any:
        """Return the native step of this device, or None after setting `why_not_native`."""
        try:
            if not self._asked["native_step"]:
                raise NoNativeStep("native_step is False")
            with _loading:  # threads of a study construct environments concurrently
                return kernels("cpu" if self.device.type == "cpu" else "gpu").NativeStep(self)
        except (ImportError, NoNativeStep) as reason:
            self.stepped_by, self.why_not_native = "torch", str(reason)
            if self._asked["native_step"]:
                _warn_once(f"the plain torch step runs instead of the native step: {reason}")
            return None

    @property
    def book(self) -> Portfolio:
        """State of the accounts. With a native step, this is a copy; assign a portfolio to load it into the kernel."""
        if self._fast is None:
            return self._book
        return Portfolio(**{field.name: self._read(field.name) for field in fields(Portfolio)})

    @book.setter
    def book(self, book: Portfolio) -> None:
        if self._fast is None:
            self._book = book
        else:
            self._fast.kernel.load(book)

    def _pass_on(self) -> None:
        super()._pass_on()
        if self._fast is not None:
            self._fast.kernel.adopt(self._seed, self.params.costs(self._cost_factor)._asdict())

    def _read(self, field: str) -> Tensor:
        return super()._read(field) if self._fast is None else self._fast.kernel.read(field)

    def _shown(self, field: str) -> Tensor:
        return super()._shown(field) if self._fast is None else self._fast.kernel.shown(field)

    def _ended_returns(self) -> Tensor:
        return super()._ended_returns() if self._fast is None else self._fast.kernel.read("last_return")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the native step. A copied or unpickled object allocates its own native step."""
        state = {name: value for name, value in super().__getstate__().items() if name not in ("_fast", "_book")}
        return state | {"ended": None if self._fast is None else pickle.dumps(self._fast.kernel.ended())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Allocate buffers and restore the state."""
        ended, values = state.pop("ended"), state | pickle.loads(state.pop("packed"))
        book, episode, rejected, _ = (values.pop(name, None) for name in ("book", "_episode", "_rejected", "_book"))
        vars(self).update(values)
        self._allocate()
        vars(self).update({name: values[name] for name in ("_ended", "_over", "_last_return")})
        self.book = book
        self._episode.copy_(episode)
        self._rejected.copy_(rejected)
        if self._fast is not None and ended is not None:
            self._fast.kernel.restore_ended(pickle.loads(ended))

    @torch.no_grad()
    def reset(
        self, where: Any = None, *, seed: int | None = None, options: Mapping[str, Any] | None = None,
        out_state: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Open fresh accounts and return their first observations in a new tensor, or in `out_state`.

        Args:
            where: (N,) bool, environments to open; None opens all. The others continue.
            seed: new seed of the random starts. Passing it also resets the episode counters.
            options: {"reset_mask": where}, as Gymnasium passes it.
            out_state: (N, S) float32, contiguous, on `device`; receives the observations.

        Returns:
            Observations, (N, S) float32, or NumPy (S,) if `as_numpy`. With api="gymnasium", (observations, {}).

        Raises:
            ValueError: `out_state` has a wrong shape, dtype or device, or the api is not "elegantrl".
            RuntimeError: `where` selects some environments before the first full reset.
        """
        self._check_slots({} if out_state is None else {"state": out_state})
        state = self._begin(where, seed, options)
        return self._first_return(state if out_state is None else out_state.copy_(state))

    def step(self, action: Any, out: dict[str, Tensor] | None = None) -> tuple[Any, ...]:
        """Advance every environment one bar.

        Args:
            action: (N, A) in [-1, 1], or (A,) if `as_numpy`, as in the plain class.
            out: optional storage for any of "state" (N, S) float32, "reward" (N,) float32 and "done" (N,) bool. The
                tensors must be contiguous and on `device`.

        Returns:
            (state, reward, done, info), as described in the plain class's docstring. With api="gymnasium", (state,
            reward, terminated, truncated, info).

        Raises:
            ValueError: the action or a tensor in `out` has a wrong shape, dtype or device, or `out` is given and the
                api is not "elegantrl".
            RuntimeError: `reset` has not been called, or the episode of the only environment has ended.
        """
        if out is not None:
            self._check_slots(out)
        if self._fast is not None:
            return self._fast.step(self, action, out)
        *values, info = super().step(action)
        for i, name in enumerate(("state", "reward", "done")):
            if out is not None and name in out:
                values[i] = out[name].copy_(values[i])
        return (*values, info)

    def _check_slots(self, out: Mapping[str, Tensor]) -> None:
        if out and self.api != "elegantrl":
            raise ValueError(f'out requires api="elegantrl"; this environment has {self.api!r}')
        for name, slot in out.items():
            shape, kind = self._slot_kinds.get(name, ((), torch.float32))
            if slot.shape != shape or slot.dtype != kind or slot.device != self.device or not slot.is_contiguous():
                wish = f"shape {tuple(shape)}, {kind}, {self.device}"
                found = f"shape {tuple(slot.shape)}, {slot.dtype}, {slot.device}"
                raise ValueError(f"out may hold state, reward, done; {name}: {wish}, contiguous; received {found}")


_loading = threading.RLock()


def kernels(where: str) -> Any:
    """Import a module of the folder environment_Alpaca_kernels, which must be next to this file.

    Args:
        where: name of the module, such as "cpu" or "gpu".

    Returns:
        The imported module.

    Raises:
        ImportError: the folder or a package that the module requires is missing.
        NoNativeStep: folder and file have different versions.
    """
    folder = Path(__file__).resolve().with_name("environment_Alpaca_kernels")
    name = f"{__package__}.{folder.name}" if __package__ else folder.name
    package = sys.modules.get(name)
    own = sys.modules[__name__]
    is_ours = package is not None and Path(package.__file__ or "").resolve().parent == folder
    if package is not None and not (is_ours and package.drop_in is own):
        name = f"{name}_{zlib.crc32(f'{folder} {__name__}'.encode()):x}"  # a different copy already has the usual name
        package = sys.modules.get(name)
    if package is None:
        if not (init := folder / "__init__.py").is_file():
            raise ImportError(f"the folder {folder.name} is not next to {Path(__file__).name}; copy it there for speed")
        spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(folder)])
        assert spec is not None
        assert spec.loader is not None
        package = sys.modules[name] = importlib.util.module_from_spec(spec)
        vars(package)["drop_in"] = own
        spec.loader.exec_module(package)
    if getattr(package, "VERSION", None) != VERSION:
        raise NoNativeStep(f"{folder.name} is version {getattr(package, 'VERSION', 'unknown')} and "
                           f"{Path(__file__).name} is {VERSION}; copy both from one checkout")  # fmt: skip
    return importlib.import_module(f"{name}.{where}")


_warn_once = functools.cache(functools.partial(warnings.warn, category=RuntimeWarning, stacklevel=5))


class VectorizedCryptoEnvFinRLCrypto(VectorizedCryptoEnvAlpacaOptimized):
    """The optimized class with the rules of FinRL_Crypto's CryptoEnvAlpaca."""

    default_rules = "finrl_crypto"


class VectorizedCryptoEnvCCXT(VectorizedCryptoEnvAlpacaOptimized):
    """The optimized class with the rules of FinRL_Crypto's CryptoEnvCCXT."""

    default_rules = "ccxt"


class VectorizedCryptoEnv(VectorizedCryptoEnvAlpacaOptimized):
    """The optimized class with the rules of FinRL's CryptoEnv."""

    default_rules = "finrl"


class VectorizedCryptoEnvMeta(VectorizedCryptoEnvAlpacaOptimized):
    """The optimized class with the rules of FinRL-Meta's CryptoEnv."""

    default_rules = "finrl_meta"


# ---------------------------------------------------------------------------------------------- next to a host
# Names of the settings in the scalar environments of the FinRL family.
HOST_NAMES = {
    "initial_capital": ("initial_capital", "initial_cash", "initial_total_asset"), "gamma": ("gamma",),
    "buy_cost_pct": ("buy_cost_pct", "buy_fee_rate"), "sell_cost_pct": ("sell_cost_pct", "sell_fee_rate"),
    "min_order_qty": ("minimum_qty_alpaca", "minimum_qty_crypto", "min_qty"),
    "cash_haircut": ("safety_factor_stock_buy",), "max_position_weight": ("max_position_pct",),
}  # fmt: skip
HOST_KEYS = (*NORMS, "lookback", "min_cash_reserve", "concentration_penalty", "trailing_stop_pct", "time_decay_floor")


def _host_value(env: object, name: str) -> Any:
    return next((getattr(env, host_name) for host_name in HOST_NAMES[name] if hasattr(env, host_name)), None)


def from_scalar_env(
    env: Any, n_envs: int = 8, env_class: type[VectorizedCryptoEnvAlpaca] = VectorizedCryptoEnvAlpaca,
    rules: str | None = None, **options: Any,
) -> VectorizedCryptoEnvAlpaca:  # fmt: skip
    """Return a vectorized environment with the data and settings of a host's scalar environment.

    Arrays, norms, fees, capital and smallest orders are read from the instance. If it has `params: EnvParams`, those
    settings are used.

    Args:
        env: a scalar environment.
        n_envs: number of accounts N.
        env_class: class of the result.
        rules: name of the rule set; None detects it from the class of `env`.
        options: other arguments of the constructor.

    Raises:
        ValueError: the class of `env` is not recognized and `rules` is None.
    """
    config = {"price_array": np.asarray(env.price_array), "tech_array": np.asarray(env.tech_array)}
    limits = _host_value(env, "min_order_qty")
    if limits is not None:
        config["min_order_qty"] = np.asarray(limits)[: config["price_array"].shape[1]]
    source = getattr(env, "params", env)
    if isinstance(source, EnvParams):
        given_apart = ("buy_fee_rate", "sell_fee_rate", "gamma")
        env_params = {f.name: getattr(source, f.name) for f in fields(EnvParams) if f.name not in given_apart}
        config |= {"segments": env.segments, "qty_increment": env.qty_increment, "filled_array": ~env.trades}
    else:
        rules = rules or rules_of(type(env))
        if rules is None:
            raise ValueError(f"{name_of(type(env))} is not recognized; pass rules, one of {', '.join(RULES)}")
        source, env_params = env, {name: getattr(env, name) for name in HOST_KEYS if hasattr(env, name)}
        apart = {name: _host_value(env, name) for name in ("cash_haircut", "max_position_weight")}
        env_params |= {"rules": rules} | {name: value for name, value in apart.items() if value is not None}
    for name in ("initial_capital", "buy_cost_pct", "sell_cost_pct", "gamma"):
        options.setdefault(name, _host_value(source, name))
    return env_class(config, env_params, n_envs, **{k: v for k, v in options.items() if v is not None})


def compare_with_scalar(
    scalar_env: Any, n_steps: int = 1000, seed: int = 0, n_envs: int = 8,
    env_class: type[VectorizedCryptoEnvAlpaca] = VectorizedCryptoEnvAlpaca,
) -> Any:  # fmt: skip
    """Step copies of a scalar environment and a vectorized one together. Return the first difference or None.

    `environment_Alpaca_kernels/compare.py` runs the comparison and lists the compared values.

    Args:
        scalar_env: a scalar environment.
        n_steps: number of steps.
        seed: seed of starts and actions.
        n_envs: number of accounts N.
        env_class: class of the vectorized environment.
    """
    return kernels("compare").compare_with_scalar(scalar_env, n_steps, seed, n_envs, env_class)


def main(argv: list[str] | None = None) -> int:
    """Compare this simulator with a host's scalar environment and return the exit code. `--help` lists the options."""
    try:
        program = kernels("compare").main
    except (ImportError, NoNativeStep) as error:
        sys.stderr.write(f"--compare requires the folder environment_Alpaca_kernels: copy it too. {error}\n")
        return 2
    return program(argv)


if __name__ == "__main__":  # import by name, so that these are the same classes that a host imports
    sys.exit(importlib.import_module(Path(__file__).stem).main())
