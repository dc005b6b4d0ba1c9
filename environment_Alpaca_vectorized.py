# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""VectorizedCryptoEnvAlpaca: N trading accounts over one market, stepped together as torch tensors.

Copy this one file beside a host's ``environment_Alpaca.py``; it needs torch and numpy and nothing else. What one step
means is written in docs/simulator.md and, as plain loops, in this repository's ``environment_Alpaca.py``; the tests
compare the classes here with that one at every step and in every field.

Read it top to bottom: settings and state, then the phases of a bar in the order in which they happen, the pure `step`,
and the two classes that hold the state for a caller.

Axes: N environments, A assets, T bars, F features, L lookback, G segments, S state width. Money is in quote currency,
quantities in coins, ``*_rate`` and ``*_pct`` are fractions. Books are float64 on every device, observations float32.
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
VERSION = "2026.12"  # equal to environment_Alpaca_kernels', or the plain step runs instead

# A rule set is a row of settings, not a program: every one of them can be overridden alone through env_params.
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
    "finrl_crypto": _FINRL_CRYPTO,                                  # FinRL_Crypto's CryptoEnvAlpaca
    "ccxt": _FINRL_CRYPTO | {"fee_rate": 0.001, "cash_haircut": 0.95, "stale_bars": 24},  # its CryptoEnvCCXT
    "cappuccino": _HOST_RULES | {                                   # Cappuccino's CryptoEnvAlpaca
        "initial_capital": 500.0, "fee_rate": 0.0025, "order_sizing": "initial_capital", "cash_haircut": 0.99,
        "release_unpriced": True, "reward": "cappuccino", "benchmark_pays_fee": True, "action_limit": 1000.0},
    "finrl": _FINRL, "finrl_meta": _FINRL | {"order_sizing": "price_magnitude", "norm_action": 10_000.0},  # two more
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
REPORTED = ("equity", "benchmark_equity", "episode_return", *COSTS)  # what `info` has of the books, float64
COUNTED = ("rejected_actions", "trades")  # int64
OPTIONS = ("n_envs", "seed", "episode_bars", "gpu_id")  # constructor arguments that env_params may hold instead
NORMS = ("norm_cash", "norm_stocks", "norm_tech", "norm_reward", "norm_action")

# Smallest orders of the hosts, in coins, before their factor of 1.1: by column, and by ticker in that column order.
COLUMN_LIMITS: dict[str, tuple[float, ...]] = {
    "finrl_crypto": (0.01, 0.10, 0.0001, 0.1, 0.1, 0.001, 0.01, 10.0, 0.1, 0.01),
    "ccxt": (0.0001, 0.001, 0.01, 0.1, 0.1, 1.0, 0.1, 0.01, 0.1, 0.001)}  # fmt: skip
CAPPUCCINO_LIMITS = {
    "AAVE": 0.005, "AVAX": 0.03, "BTC": 0.00001, "LINK": 0.1, "ETH": 0.0003, "LTC": 0.01, "UNI": 0.15}  # fmt: skip
# Currencies that a ticker without a mark may end with, the last three only after one of the coins above.
CASH = ("EUR", "GBP", "JPY", "TRY", "BRL", "BTC", "ETH", "BNB")

TARGET_WEIGHT = 0.40  # a position above this share of the account is called concentrated
HELD_BARS_SCALE = 0.01  # observe_account shows held_bars in hundreds
EQUITY_FLOOR = 1e-6  # logarithms and ratios see at least this fraction of the initial capital
INCREMENT_SLACK = 1e-9  # a quantity this close below a whole increment counts as whole


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


Terms = dict[str, Tensor]  # name of a reward's term -> (N,) float64


# ---------------------------------------------------------------------------------------------- settings and state
class Costs(NamedTuple):
    """What trading costs in a step, fractions of notional: floats, or () float64 tensors on the accounts' device."""

    buy_fee_rate: Any
    sell_fee_rate: Any
    slippage_rate: Any


@dataclass(frozen=True)
class EnvParams:
    """Settings of one simulator; a rule set with the caller's overrides. Choices are listed in docs/simulator.md."""

    rules: str
    lookback: int  # bars of features in an observation
    initial_capital: float  # quote
    buy_fee_rate: float  # fraction of notional
    sell_fee_rate: float
    gamma: float  # of the host presets' final reward
    slippage_rate: float  # buys pay, sells receive this fraction less
    order_sizing: str  # "price_magnitude" | "price_digits" | "initial_capital" | "equity"
    min_order_notional: float  # quote
    always_allow_close: bool  # a sale of the whole position may be below the minimum
    stale_bars: int  # 0: off
    stale_fraction: float
    release_unpriced: bool
    buys: str  # "sequential" | "proportional"
    cash_haircut: float  # share of the spendable cash a buy may use
    reserve_base: str  # "initial_capital" | "equity"
    start: str  # "first" | "random" | "stratified"
    ends_lookback_early: bool
    truncates: bool  # the end of a window is a time limit, not a terminal state
    terminal_equity_fraction: float  # of initial capital
    reward: str  # "benchmark_difference" | "profit" | "cappuccino" | "weighted_terms"
    final_reward: str  # "discounted_return" | "plain"
    observation: str  # "absolute" | "relative"
    benchmark_base: str  # "segment" | "episode"
    benchmark_pays_fee: bool
    whole_coins: bool = False  # the cash of a buy is cut to what pays for whole coins
    action_limit: float = float("inf")  # actions beyond it are cut to it
    norm_cash: float = 1.0
    norm_stocks: float = 1.0
    norm_tech: float = 1.0
    norm_reward: float = 100.0
    norm_action: float = 4.0  # "equity": action 1 trades equity / norm_action
    min_cash_reserve: float = 0.0  # fraction of reserve_base
    max_position_weight: float = 0.0  # 0: off
    trailing_stop_pct: float = 0.0  # fraction, 0: off
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
        """Resolve a caller's env_params.

        Raises:
            ValueError: no rule set or an unknown one; a host preset without its norms; an unknown key in "standard"
                (host presets ignore those, because host trainers keep keys there that no environment reads); a value
                out of range.
        """
        name = env_params.get("rules")
        if name not in RULES:
            raise ValueError(f'env_params["rules"] must be one of {", ".join(RULES)}; received {name!r}')
        is_host = name != "standard"
        known = env_params.keys() | RULES[name].keys()
        missing = [key for key in ("lookback", *(NORMS if is_host else ())) if key not in known]
        if missing:
            raise ValueError(f"env_params lacks {', '.join(missing)}, which the {name} rules need")
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
            raise ValueError(f"lookback is a whole number of bars; received {row['lookback']!r}")
        return cls(**{**row, "lookback": int(row["lookback"])}, gamma=gamma)

    def costs(self, factor: float = 1.0) -> Costs:
        """What a step charges: the settings' costs times `factor`. 1 leaves their bits as they are."""
        return Costs(self.buy_fee_rate * factor, self.sell_fee_rate * factor, self.slippage_rate * factor)

    def __post_init__(self) -> None:
        """Refuse values with which no account can be simulated."""
        for name in (*Costs._fields, "min_cash_reserve", "trailing_stop_pct"):
            if not 0.0 <= (fraction := getattr(self, name)) < 1.0:
                raise ValueError(f"{name} is a fraction below 1, 0.0025 means 0.25 %; received {fraction}")
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
            raise ValueError(f"stale_bars is a whole number of bars; received {self.stale_bars!r}")


@dataclass(frozen=True)
class Market:
    """What all accounts share and no step changes; `copy.deepcopy` of an environment keeps the same Market."""

    price: Tensor  # (T, A) float64, close
    windows: Tensor  # (T - L + 1, L * F) float32, features times norm_tech; row T - 1 - t: lookback of bar t
    min_qty: Tensor  # (A,) float64, smallest order in coins
    qty_increment: Tensor  # (A,) float64, 0 where any quantity will do
    segment_first: Tensor  # (G,) int64, first bar
    segment_end: Tensor  # (G,) int64, bar after the last one
    order_scale: Tensor  # (G, A) float64, coins per unit of action; host presets only
    episode_limit: Tensor  # (G,) int64, last bar an episode may reach
    first_start: Tensor  # (G,) int64, first bar an episode may start at
    start_offset: Tensor  # (G + 1,) int64, number of starts in the segments before
    usable_segment: Tensor  # (<= G,) int64, segments with at least one start
    trades: Tensor | None  # (T, A) float32, 0 where nobody traded the coin in the bar; None: all trade in every bar

    def __deepcopy__(self, memo: dict[int, Any]) -> Market:
        """Shared, never copied."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """As bytes: torch passes descriptors of its memory to another process, and those of temporary tensors clash."""
        return _market_of, (pickle.dumps(vars(self)),)


def _market_of(packed: bytes) -> Market:
    return Market(**pickle.loads(packed))


@dataclass(frozen=True)
class Portfolio:
    """Everything that changes in a step. Only `open_portfolio` makes one, so nothing survives a reset by accident."""

    bar: Tensor  # (N,) int64, row of Market.price
    first_bar: Tensor  # (N,) int64, bar of the episode's first observation
    last_bar: Tensor  # (N,) int64, the episode is over here
    segment: Tensor  # (N,) int64
    cash: Tensor  # (N,) float64, quote
    qty: Tensor  # (N, A) float64, coins
    held_bars: Tensor  # (N, A) int64, bars since the position was opened or last sold from
    high: Tensor  # (N, A) float64, highest price while held, quote
    order_scale: Tensor  # (N, A) float64, of its segment
    benchmark_qty: Tensor  # (N, A) float64, coins of the equal-weight portfolio
    equity: Tensor  # (N,) float64, quote
    benchmark: Tensor  # (N,) float64, quote, value of the equal-weight portfolio
    peak: Tensor  # (N,) float64, quote, highest equity of the episode
    max_drawdown: Tensor  # (N,) float64, fraction
    discounted_return: Tensor  # (N,) float64, G = gamma * G + r
    trades: Tensor  # (N,) int64, fills of the last step
    fees: Tensor  # (N,) float64, quote, last step
    slippage: Tensor  # (N,) float64, quote, last step
    turnover: Tensor  # (N,) float64, quote, |quantity| * close, last step
    filled: Tensor  # (N, A) float64, coins bought less coins sold in the last step, stops and releases included


@dataclass(frozen=True)
class Outcome:
    """What a step reports beside the new portfolio."""

    reward: Tensor  # (N,) float64
    terms: Terms  # name -> (N,) float64; their sum is the reward before the hosts' final reward
    done: Tensor  # (N,) bool, terminal or truncated
    truncated: Tensor  # (N,) bool, ended by the clock alone


# ---------------------------------------------------------------------------------------------- orders
def order_quantities(action: Tensor, book: Portfolio, price: Tensor, equity: Tensor, p: EnvParams) -> Tensor:
    """action (N, A) float32 -> coins asked for (N, A) float64: positive to buy, negative to sell."""
    if p.action_limit < float("inf"):
        action = action.clamp(-p.action_limit, p.action_limit)
    if p.order_sizing in ("price_magnitude", "price_digits"):
        return action.double() * book.order_scale
    if p.order_sizing == "initial_capital":  # in float32, as the host computes it
        return (action * book.order_scale.float()).double()
    is_priced = price > 0
    per_unit = equity[:, None] / (torch.where(is_priced, price, 1.0) * p.norm_action)
    return torch.where(is_priced, action.double() * per_unit, 0.0)


def cap_positions(order_qty: Tensor, book: Portfolio, price: Tensor, equity: Tensor, p: EnvParams) -> Tensor:
    """Cut every buy (N, A) so that the position would not exceed max_position_weight of the account."""
    is_priced = price > 0
    limit_qty = p.max_position_weight * equity[:, None] / torch.where(is_priced, price, 1.0)
    room = torch.where(is_priced, (limit_qty - book.qty).clamp(min=0.0), 0.0)
    return torch.minimum(order_qty, room)


def whole_increments(quantity: Tensor, market: Market) -> Tensor:
    """Quantity (N, A) cut to the venue's step; a huge order stays as it is."""
    step = market.qty_increment
    whole = torch.floor(quantity / torch.where(step > 0, step, 1.0) + INCREMENT_SLACK) * step
    return torch.where((step > 0) & quantity.isfinite(), whole, quantity)


def is_large_enough(quantity: Tensor, price: Tensor, market: Market, p: EnvParams) -> Tensor:
    """(N, A) bool: whether the venue takes an order of this size."""
    return (quantity > market.min_qty) & (quantity * price >= p.min_order_notional)


def execute_trailing_stops(book: Portfolio, price: Tensor, p: EnvParams, costs: Costs) -> Portfolio:
    """Sell whole positions whose price fell by more than trailing_stop_pct from its high since the purchase."""
    is_held = book.qty > 0
    high = torch.where(is_held, torch.maximum(book.high, price), book.high)
    is_stopped = is_held & (price > 0) & (price < high * (1.0 - p.trailing_stop_pct))
    return execute_sales(replace(book, high=high), torch.where(is_stopped, book.qty, 0.0), price, costs)


def execute_sells(
    book: Portfolio, order_qty: Tensor, price: Tensor, market: Market, p: EnvParams, costs: Costs
) -> Portfolio:
    """Sell what the orders ask for, at most the position; order_qty (N, A)."""
    wanted = whole_increments(-order_qty, market)
    is_large = is_large_enough(wanted, price, market, p)
    closes = (-order_qty >= book.qty) & p.always_allow_close
    is_sold = (order_qty < 0) & (book.qty > 0) & (price > 0) & (is_large | closes)
    sold = torch.where(closes, book.qty, torch.minimum(book.qty, wanted))
    return execute_sales(book, torch.where(is_sold, sold, 0.0), price, costs)


def release_stale(book: Portfolio, price: Tensor, market: Market, p: EnvParams, costs: Costs) -> Portfolio:
    """Sell stale_fraction of every position held for stale_bars or longer, or all where the venue wants more."""
    is_stale = (book.held_bars >= p.stale_bars) & ((price > 0) | p.release_unpriced)
    released = book.qty * p.stale_fraction
    if p.always_allow_close:
        released = whole_increments(released, market)
        released = torch.where(is_large_enough(released, price, market, p), released, book.qty)
    return execute_sales(book, torch.where(is_stale, released, 0.0), price, costs)


def execute_sales(book: Portfolio, sold: Tensor, price: Tensor, costs: Costs) -> Portfolio:
    """Take sold (N, A) coins out at the close less slippage and fee; a position's clock starts again."""
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
    """Buy what the orders ask for and the cash allows; order_qty (N, A), equity (N,) at this bar before trading."""
    wanted = whole_increments(order_qty, market)
    wanted = torch.where((price > 0) & is_large_enough(wanted, price, market, p), wanted, 0.0)
    unit_cost = price * (1.0 + costs.slippage_rate) * (1.0 + costs.buy_fee_rate)  # (N, A) quote a coin, all included
    if p.buys == "sequential":
        # Assets stay a loop: each buy spends cash the next one sees. A is about ten, N is the batch.
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
    """Add filled (N, A) coins, except where what the cash left of an order is below the minimum."""
    is_kept = (filled > 0) & (filled >= market.min_qty) & (filled * price >= p.min_order_notional)
    bought = torch.where(is_kept, filled, 0.0)
    cash = (book.cash - (bought * unit_cost).sum(-1)).clamp(min=0.0)  # clamp: rounding only, at most a few ulp
    high = torch.where(is_kept & (book.qty == 0), price, book.high)
    book = replace(book, qty=book.qty + bought, cash=cash, high=high, filled=book.filled + bought)
    return book_trades(book, bought, price, price * (1.0 + costs.slippage_rate) * costs.buy_fee_rate, costs)


def coins_for(budget: Tensor, unit_cost: Tensor, p: EnvParams) -> Tensor:
    """Coins (N,) that a budget pays for; whole ones as Python's ``//`` counts them."""
    return torch.div(budget, unit_cost, rounding_mode="floor" if p.whole_coins else None)


def spendable_cash(book: Portfolio, equity: Tensor, p: EnvParams) -> Tensor:
    """Quote (N,) that buys may use, reserve kept."""
    base = equity if p.reserve_base == "equity" else p.initial_capital
    return (book.cash - p.min_cash_reserve * base).clamp(min=0.0) * p.cash_haircut


def book_trades(book: Portfolio, quantity: Tensor, price: Tensor, fee_per_coin: Tensor, costs: Costs) -> Portfolio:
    """Add fills of quantity (N, A) to the step's totals."""
    notional = (quantity * price).sum(-1)
    trades = book.trades + (quantity > 0).sum(-1)
    fees = book.fees + (quantity * fee_per_coin).sum(-1)
    slippage = book.slippage + notional * costs.slippage_rate
    return replace(book, trades=trades, fees=fees, slippage=slippage, turnover=book.turnover + notional)


# ---------------------------------------------------------------------------------------------- valuation and reward
def account_value(book: Portfolio, price: Tensor) -> Tensor:
    """Cash plus positions at the close, (N,) quote."""
    return book.cash + (book.qty * price).sum(-1)


def mark_to_market(book: Portfolio, price: Tensor) -> Portfolio:
    """Value account and benchmark at this bar and carry the running peak and largest drawdown on."""
    equity = account_value(book, price)
    peak = torch.maximum(book.peak, equity)
    max_drawdown = torch.maximum(book.max_drawdown, 1.0 - equity / peak)
    benchmark = (book.benchmark_qty * price).sum(-1)
    return replace(book, equity=equity, benchmark=benchmark, peak=peak, max_drawdown=max_drawdown)


def reward_terms(before: Portfolio, book: Portfolio, price: Tensor, market: Market, p: EnvParams) -> Terms:
    """Named terms (N,) whose sum is the reward; `before` and `book` are marked at consecutive bars."""
    if p.reward == "benchmark_difference":
        gain = (book.equity - before.equity) - (book.benchmark - before.benchmark)
        return {"alpha": gain * p.norm_reward}
    if p.reward == "profit":
        return {"profit": (book.equity - before.equity) * p.norm_reward}
    if p.reward == "cappuccino":
        return cappuccino_terms(before, book, weights_of(book, price), market, p)
    return weighted_terms(before, book, weights_of(book, price), p)


def weights_of(book: Portfolio, price: Tensor) -> Tensor:
    """Positions as shares of the account, (N, A)."""
    return torch.where(book.equity[:, None] > 0, book.qty * price / book.equity[:, None], 0.0)


def weighted_terms(before: Portfolio, book: Portfolio, weights: Tensor, p: EnvParams) -> Terms:
    """The terms of the standard reward."""
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
    """The terms of the Cappuccino reward."""
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
    """Factor (N,) that falls over the segment."""
    first = market.segment_first[book.segment] + p.lookback - 1
    last = market.segment_end[book.segment] - p.lookback - 1
    progress = ((book.bar - first).double() / (last - first).clamp(min=1)).clamp(0.0, 1.0)
    return (1.0 - progress).clamp(min=p.time_decay_floor)


def cappuccino_concentration(weights: Tensor, penalty: float) -> Tensor:
    """weights (N, A) -> (N,): penalty for one large position and for few, bonus for evenly spread ones."""
    is_held = weights > 0.01
    n_held = is_held.sum(-1)
    held = torch.where(is_held, weights, 0.0).sort(-1).values  # ascending, those not held are zeros in front
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
    """Advance every environment one bar: stops, sells, releases, buys, then mark to market.

    action (N, A) float32, finite, chosen at the bar before and filled at this bar's close. `costs` None are those of
    `p`, in full.
    """
    before, costs = book, costs or p.costs()
    book = begin_bar(book, market)
    price = market.price[book.bar]  # (N, A)

    if p.trailing_stop_pct > 0:
        book = execute_trailing_stops(book, price, p, costs)
    equity_at_fill = account_value(book, price)  # before any order of this bar
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
    """The clock goes on, nothing is traded yet."""
    bar = (book.bar + 1).clamp(max=len(market.price) - 1)  # one whose episode is over waits there for its reset
    return replace(book, bar=bar, held_bars=book.held_bars + (book.qty > 0), trades=torch.zeros_like(book.trades),
                   filled=torch.zeros_like(book.qty), **dict.fromkeys(COSTS, torch.zeros_like(book.cash)))  # fmt: skip


def end_bar(book: Portfolio, terms: Terms, p: EnvParams) -> tuple[Portfolio, Outcome]:
    """Sum the reward and decide which episodes are over."""
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
    """(name, width) of the blocks of an observation, in order. Their widths add up to S."""
    p = env_params if isinstance(env_params, EnvParams) else EnvParams.from_mapping(env_params)
    cash, coins = ("cash", "qty") if p.observation == "absolute" else ("cash_weight", "weight")
    extra = (("progress", 1), ("drawdown", 1), ("held_bars", n_assets)) if p.observe_account else ()
    return ((cash, 1), (coins, n_assets), ("tech", p.lookback * n_features), *extra)


def observe(book: Portfolio, market: Market, p: EnvParams, compact: bool = False) -> Tensor:
    """(N, S) float32 in the order of `observation_layout`: account, L rows of features newest first, extras.

    compact (N, C): account, extras, and the number of the bar in place of its features; `expand` puts them in.
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
    """Compact observations (..., C) -> the full ones (..., S)."""
    n = 1 + market.price.shape[1]  # cash and coins
    return torch.cat((compact[..., :n], _windows_at(compact[..., -1].long(), market), compact[..., n:-1]), dim=-1)


# ---------------------------------------------------------------------------------------------- episodes
def hash32(seed: int, env: Tensor, episode: Tensor) -> Tensor:
    """(N,) int64 in [0, 2**32) that depends on nothing but its arguments (finalizer of C. Wellons' `lowbias32`).

    A counter instead of a generator: environment i never depends on j, every device draws the same numbers, and a
    captured GPU graph needs no generator state. The products wrap around in int64; their low 32 bits are exact.
    """
    x = torch.zeros_like(env)
    for word in (seed, env, episode):
        x = (x + word + 0x9E3779B9) & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        x = x ^ (x >> 16)
    return x


def draw_starts(episode: Tensor, n_starts: int, mode: str, seed: int, market: Market) -> tuple[Tensor, Tensor]:
    """Segment (N,) and first bar (N,) of every environment's episode number `episode` (N,)."""
    env = torch.arange(len(episode), device=episode.device)
    if mode == "first":  # environment i begins with segment i and takes the next one after every episode
        segment = market.usable_segment[(env + episode) % len(market.usable_segment)]
        return segment, market.first_start[segment]
    low, width = 0, n_starts
    if mode == "stratified":  # environment i draws from the i-th of N equal shares of all starts
        low = env * n_starts // len(episode)
        width = ((env + 1) * n_starts // len(episode) - low).clamp(min=1)
    k = low + ((hash32(seed, env, episode) * width) >> 32)
    segment = torch.searchsorted(market.start_offset, k, right=True) - 1
    return segment, market.first_start[segment] + k - market.start_offset[segment]


def open_portfolio(
    segment: Tensor, first_bar: Tensor, episode_bars: int | None, market: Market, p: EnvParams
) -> Portfolio:
    """Fresh accounts at first_bar (N,), holding cash only."""
    last_bar = market.episode_limit[segment]
    if episode_bars is not None:
        last_bar = torch.minimum(last_bar, first_bar + episode_bars)
    base_price = market.price[market.segment_first[segment] if p.benchmark_base == "segment" else first_bar]  # (N, A)
    is_priced = base_price > 0
    fee = 1.0 + p.buy_fee_rate * p.benchmark_pays_fee  # in full, whatever a step's costs are
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
    """Coins per unit of action of the host presets, from a coin's first price in a segment as the caller gave it."""
    if not price > 0 or p.order_sizing == "equity":
        return 0.0
    if p.order_sizing == "initial_capital":
        return p.initial_capital / (float(price) * p.norm_action)
    if p.order_sizing == "price_digits":  # as FinRL writes it: how many characters the price prints as
        return p.norm_action / 10.0 ** (len(str(price)) - 7)
    return p.norm_action / 10.0 ** math.floor(math.log(price, 10))


def restart(is_over: Tensor, fresh: Portfolio, book: Portfolio) -> Portfolio:
    """`fresh` accounts where is_over (N,), the running ones elsewhere."""
    where = {1: is_over, 2: is_over[:, None]}  # by the number of a field's axes
    return Portfolio(**{k: torch.where(where[new.ndim], new, getattr(book, k)) for k, new in vars(fresh).items()})


def build_market(config: Mapping[str, Any], p: EnvParams, episode_bars: int | None, device: torch.device) -> Market:
    """Check a caller's arrays and put them on the device. The caller's arrays are copied, never written.

    Float32 features that lie in memory back in time and need no scaling are not copied on a CPU: processes share them.

    Raises:
        ValueError: for arrays that cannot be traded; the message names the array, the bar and what to do.
    """
    price, tech = np.asarray(config["price_array"]), np.asarray(config["tech_array"])
    check_arrays(price, tech, p.rules, p.norm_tech, config.get("tickers"))
    n_bars, n_assets = price.shape
    filled = np.broadcast_to(np.asarray(config.get("filled_array", False), dtype=bool), price.shape)
    given = config.get("segments")
    segments = [(int(a), int(b)) for a, b in ([(0, n_bars)] if given is None or len(given) == 0 else given)]
    if any(a < 0 or b > n_bars or a >= b for a, b in segments):
        raise ValueError(f"segments are (first, last_exclusive) within the {n_bars} bars given; received {segments}")
    limit = [b - 1 - (p.lookback if p.ends_lookback_early else 0) for _, b in segments]
    first_start = [a + p.lookback - 1 for a, _ in segments]
    room = [last - first for first, last in zip(first_start, limit, strict=True)]
    n_starts = [max(steps - min(episode_bars or 1, max(steps, 1)) + 1, 0) for steps in room]
    if sum(n_starts) == 0:
        needed = p.lookback + 1 + (p.lookback if p.ends_lookback_early else 0)
        raise ValueError(f"lookback {p.lookback} needs a segment of {needed} bars; received {segments}")

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
    """Features (T, F) -> (T - L + 1, L * F): row T - 1 - t holds bars t, t - 1, ... t - L + 1.

    An overlapping view: stored once and back in time, the rows of a lookback lie in memory as an observation has them.
    """
    n_bars, n_features = tech.shape
    backwards = torch.from_numpy(np.ascontiguousarray(tech[::-1], dtype=np.float32)).to(device).flatten()
    return backwards.as_strided((n_bars - lookback + 1, lookback * n_features), (n_features, 1))


def cash_of(ticker: str) -> str:
    """The currency of a ticker: `BTC` for `ETH/BTC` and `ETHBTC`, `USD` for `BTC/USDT`, `BTCUSDC`, `WBTC` and `BTC`."""
    coin, mark, cash = ticker.upper().replace("-", "/").replace("_", "/").partition("/")
    last, before = coin[-3:], coin[:-3].rpartition(":")[2]
    is_pair = before and (last in CASH[:5] or (last in CASH and before in CAPPUCCINO_LIMITS))
    cash = cash.replace(":", "/").partition("/")[0] if mark else last if is_pair else "USD"
    return "USD" if "USD" in cash else cash


def check_arrays(price: np.ndarray, tech: np.ndarray, rules: str = "", norm_tech: float = 1.0, names: Any = ()) -> None:
    """Refuse arrays that cannot be traded: features times norm_tech must fit float32, and prices be positive.

    The rules of hosts, and no rules, take a price of 0, which is a bar without a price. "standard" does not: its prices
    are 1e-100 to 1e100, so that quantities and values stay finite. Tickers, where they are known, have one currency.

    Raises:
        ValueError: the message names the array, the bar, the column, the value and what to do.
    """
    cash = {cash_of(str(ticker)): str(ticker) for ticker in (() if names is None else names)}
    if len(cash) > 1:
        raise ValueError(f"{', '.join(cash.values())} are in {', '.join(cash)}: an account has one cash; choose one")
    if (price.ndim, tech.ndim) != (2, 2) or len(price) != len(tech) or {price.dtype.kind, tech.dtype.kind} - {*"fiu"}:
        raise ValueError("price_array (T, A) and tech_array (T, F) must hold numbers, for the same number of bars; "
                         f"received {price.dtype} {price.shape} and {tech.dtype} {tech.shape}")  # fmt: skip
    # NumPy's float64: a Python float would be cast to a float32 array's type, where the largest ones are infinite.
    prices = np.array((1e-100, 1e100) if rules == "standard" else (0.0, np.finfo(np.float64).max))
    largest = np.float64(np.finfo(np.float32).max) / max(abs(norm_tech), 1e-269)  # finite where norm_tech is 0
    for name, array, (least, most) in (("price_array", price, prices), ("tech_array", tech, (-largest, largest))):
        if array.size and not (array.min() >= least and array.max() <= most):  # NaN is neither
            bad = np.argwhere(~((array >= least) & (array <= most)))
            found = f"{array[tuple(bad[0])]:g} at bar {bad[0][0]}, column {bad[0][1]} ({len(bad)} such values)"
            raise ValueError(f"{name} is {found}, expected {least:g} .. {most:g}; correct such bars or leave them out")


def smallest_orders(rules: str, config: Mapping[str, Any], n_assets: int) -> Sequence[float] | np.ndarray:
    """(A,) smallest order in coins: the caller's as given, else the host's limits times 1.1, else none."""
    given, tickers = config.get("min_order_qty"), config.get("tickers")
    if given is not None:
        return given
    if rules in ("standard", "finrl", "finrl_meta"):
        return [0.0] * n_assets
    if rules == "cappuccino" and tickers is not None:
        names = [str(ticker).upper().replace("/", "").removesuffix("USDT").removesuffix("USD") for ticker in tickers]
        unknown = [name for name in names if name not in CAPPUCCINO_LIMITS]
        if unknown:
            raise ValueError(f"no smallest order is known for {', '.join(unknown)}; give config['min_order_qty'] (A,)")
        return [CAPPUCCINO_LIMITS[name] * 1.1 for name in names]
    limits = COLUMN_LIMITS.get(rules) or tuple(CAPPUCCINO_LIMITS.values())
    if n_assets > len(limits):
        known = f"the {rules} rules know the smallest order of {len(limits)} columns, price_array has {n_assets}"
        raise ValueError(f"{known}; give config['min_order_qty'] (A,) in coins")
    return [limit * 1.1 for limit in limits[:n_assets]]


# ---------------------------------------------------------------------------------------------- inside a host
# What the family's scalar classes are called, and the names in their code that tell their rules apart.
HOST_CLASSES = ("CryptoEnvAlpaca", "CryptoEnvCCXT", "CryptoEnv")
MARKS: dict[str, tuple[str, frozenset[str], frozenset[str]]] = {  # rules -> class, names it has, names it lacks
    "cappuccino": ("CryptoEnvAlpaca", frozenset({"norm_action", "stocks_cooldown", "time_decay_floor"}), frozenset()),
    "finrl_crypto": (
        "CryptoEnvAlpaca", frozenset({"norm_action", "stocks_cooldown"}), frozenset({"time_decay_floor"})),
    "ccxt": ("CryptoEnvCCXT", frozenset({"norm_action", "stocks_cooldown"}), frozenset()),
    "finrl": ("CryptoEnv", frozenset({"max_stock", "action_norm_vector", "str"}), frozenset({"norm_action"})),
    "finrl_meta": ("CryptoEnv", frozenset({"max_stock", "action_norm_vector", "log"}), frozenset({"norm_action"})),
}  # fmt: skip
CONFIG_KEYS = frozenset({
    "price_array", "tech_array", "time_array", "tickers", "segments", "min_order_qty", "qty_increment", "filled_array",
    "ticker_list", "if_train", "turbulence_array",  # of hosts, without a meaning for the simulation
})  # fmt: skip


def words_of(host_class: type) -> tuple[frozenset[str], frozenset[str]]:
    """(names, texts) in the code of a class; keys that it reads from config and env_params are among the texts."""
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
    """The rule set of a host's scalar class by its marks; None for a class of another family."""
    names = words_of(host_class)[0]
    for rules, (name, has, lacks) in MARKS.items():
        if host_class.__name__ == name and has <= names and not lacks & names:
            return rules
    return None


def imported_host_classes() -> list[type]:
    """The family's scalar classes among the imported modules, without their bases; nothing is imported here."""
    scopes = [getattr(module, "__dict__", {}) for module in list(sys.modules.values())]
    named = {scope[name] for scope in scopes for name in HOST_CLASSES if isinstance(scope.get(name), type)}
    found = [each for each in named if not issubclass(each, VectorizedCryptoEnvAlpaca) and rules_of(each) is not None]
    derived = [each for each in found if not any(other is not each and issubclass(other, each) for other in found)]
    return sorted(derived, key=name_of)


def module_of(host_class: type) -> dict[str, Any]:
    """The globals of the module that a class is from."""
    return vars(sys.modules[host_class.__module__]) if host_class.__module__ in sys.modules else {}


def settings_of_host(host_class: type, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(env_params, config) that a scalar class brings along: rules, capital, fees and smallest orders of its host."""
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
        raise ValueError(f"{name_of(host_class)} knows the smallest order of {len(limits)} coins, price_array has "
                         f"{n_assets}; lengthen its table, or give config['min_order_qty'] (A,) in coins")  # fmt: skip
    return params, {"min_order_qty": np.asarray(limits)[:n_assets] * 1.1}


def name_of(host_class: type) -> str:
    """Module and class."""
    return f"{host_class.__module__}.{host_class.__name__}"


def resolve_rules(
    config: Mapping[str, Any], env_params: Mapping[str, Any], picked: str | None = None
) -> tuple[Mapping[str, Any], dict[str, Any]]:  # fmt: skip
    """(config, env_params) with the rules that hold: those given, else those of the host's scalar class.

    `picked` are the rules of a class that is named after a host's. They hold when none are given, with the capital,
    fees and smallest orders of the imported class that has them.

    Raises:
        ValueError: no rules given, and none or several to inherit; a key that the host's class reads and this
            simulator does not know; a config key that no imported class can tell to be harmless.
    """
    hosts, rules = imported_host_classes(), env_params.get("rules")
    _refuse_unknown_keys(config, env_params, rules or picked, hosts)
    if rules is not None:
        _say_once(logging.INFO, f"rules {rules!r}, as given")
        return config, dict(env_params)
    hosts = [each for each in hosts if picked in (None, rules_of(each))]
    brought = {repr(settings_of_host(each, config)): each for each in hosts}
    if not hosts and picked is not None:
        _say_once(logging.INFO, f"rules {picked!r}, of the class that was picked")
        return config, {**env_params, "rules": picked}
    if len(brought) != 1:
        seen = ", ".join(f"{name_of(each)} ({rules_of(each)})" for each in hosts) or "none"
        raise ValueError(
            f'env_params["rules"] must be one of {", ".join(RULES)}. Without it the rules are those of the scalar '
            f"class that the host has imported, if there is exactly one; imported here: {seen}")  # fmt: skip
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
            raise ValueError(f"config[{key!r}] is not simulated here; known keys are {', '.join(sorted(CONFIG_KEYS))}. "
                             "Leave it out if it changes nothing")  # fmt: skip
    known = {field.name for field in fields(EnvParams)} | {"fee_rate", *OPTIONS}
    for each, read in texts.items():
        unknown = sorted((env_params.keys() - known) & read) if rules in (None, rules_of(each)) else []
        if unknown:
            raise ValueError(f"{name_of(each)} reads env_params {', '.join(unknown)}, which is not simulated here")


def _lacks_fee_tiers() -> bool:
    return any(module_of(each).get("FEE_TIER_AVAILABLE") is False for each in imported_host_classes())


_say_once = functools.cache(log.log)  # level, message


def refuse_what_is_on(**options: Any) -> None:
    """Raise ValueError for host keywords that are switched on and cannot be simulated.

    Cappuccino's fee tiers and time limits are off, whatever was asked, where it could not import them.
    """
    for name, value in options.items():
        if value and not (name != "use_sentiment" and _lacks_fee_tiers()):
            raise ValueError(f"{name} is not simulated here; received {value!r}. Switch it off, or train with the "
                             "host's own class")  # fmt: skip


# ---------------------------------------------------------------------------------------------- the classes
class NoNativeStep(RuntimeError):  # noqa: N818 - a reason, not a failure
    """Why a native step cannot be used here, as a sentence; the plain step runs in its place."""


def _shows(field: str, meaning: str) -> property:
    return property(lambda env: env._out(env._shown(field).clone()), doc=meaning)


def _prices(env: VectorizedCryptoEnvAlpaca) -> Any:
    """The market's prices under a storage of their own, which may move to another process without the market's."""
    price = env.market.price
    if env.as_numpy:
        price = price.cpu().numpy()
        price.flags.writeable = False
        return price
    return torch.from_numpy(price.numpy()) if env.device.type == "cpu" else price


def _sizes(meaning: str) -> property:
    return property(lambda env: env._n_envs, lambda env, n_envs: env._resize(n_envs), doc=meaning)


class VectorizedCryptoEnvAlpaca:
    """N long-only spot accounts over A coins, in plain torch: the readable reference of the fast class.

    `reset() -> state` and `step(action) -> state, reward, done, info`, tensors on `device`: state (N, S) float32,
    reward (N,) float32, done (N,) bool, info a dict of tensors. An environment whose episode is over restarts in the
    same step: the returned state is the new episode's first, `info["final_state"]` holds the old one's last, and
    `info["truncated"]` says where the clock alone ended it (bootstrap the value from final_state there). What hosts
    read from the object (`cash`, `stocks`, `time`, `total_asset`) still shows the ended account until the next step,
    and `episode_return` the last ended episode until the next one ends.

    With n_envs = 1 the interface is the hosts' scalar one: NumPy (S,), float, bool, a dict of Python numbers, and no
    restart, because hosts read `cash` and `total_asset` after the last step and call `reset()` themselves. Stepping
    on raises RuntimeError. `as_numpy=False` gives the tensor interface for one environment too.

    Args:
        config: `price_array` (T, A), `tech_array` (T, F), optionally `segments` [(first, last_exclusive), ...] that no
            episode crosses, `tickers` (A) in one cash currency, `min_order_qty` (A,), `qty_increment` (A,), and
            `filled_array` (T, A) bool: bars in which nobody traded the coin, so that no order fills.
        env_params: `rules`, `lookback` and any setting of `EnvParams`; also `n_envs`, `seed`, `episode_bars` and
            `gpu_id`, which an argument of that name overrides. An `EnvParams` is taken as it is.
        n_envs: number of accounts N, 1 by default. `num_envs` is elegantrl's name for it and wins when given. Assigning
            `env_num` (or `n_envs`, `num_envs`) later makes that many accounts, which begin with the next `reset()`.
        rules: overrides `env_params["rules"]`. When neither is given, the rules, the capital, the fees and the smallest
            orders are those of the scalar class that the host has imported (`imported_host_classes`).
        lookback: overrides `env_params["lookback"]`.
        initial_capital: quote; None takes the rule set's.
        buy_cost_pct: fee fraction of a purchase; None takes the rule set's.
        sell_cost_pct: fee fraction of a sale; None takes the rule set's.
        gamma: discount of the host presets' final reward.
        if_log: kept for hosts, whose constructors pass it; this environment does not log.
        device: torch device; None takes `cuda:gpu_id` where there is one, else the CPU.
        gpu_id: -1 is the CPU; None is 0.
        num_envs: see n_envs.
        seed: of the random starts; None is 0. Assigning `seed` later takes effect with the next episode.
        start: "first", "random" or "stratified"; None takes the rule set's.
        episode_bars: steps of a window; None runs to the end of the segment.
        as_numpy: None means n_envs == 1.
        autoreset: whether `step` restarts what has ended; None means not `as_numpy`. With False the returned state is
            the ended episode's last one, and `reset(where=...)` opens the next. An account stepped on after its end
            stays within the data; what it returns then means nothing.
        compact: observations hold the number of their bar, as the last column, in place of its features; `expand`
            gives the full ones. Not for more than 2**24 bars: a float32 counts no further.
        native_step: False makes the fast class run the plain step. "always" runs the native step also where its first
            use showed that it is slower; one that differs from the plain step is never used.
        api: "elegantrl" as above, or "gymnasium": `reset() -> state, info`, `step() -> state, reward, terminated,
            truncated, info`, spaces, `close`; ElegantRL's git master wants that one too.
        env_name: a label.
        tickers, sentiment_service, use_sentiment, use_dynamic_fees, fee_mode, fee_interval, use_timeframe_constraint,
            timeframe, data_interval, exchange_name: keywords of host constructors. What is off or only a label is
            ignored; what is on is refused.

    Raises:
        ValueError: for settings, arrays or sizes that cannot be simulated.
        ImportError: api="gymnasium" without that package.
    """

    default_rules: str | None = None  # of classes named after a host's; None inherits
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
        self.device = torch.empty(0, device=device).device  # with its number, as tensors there have it
        if api not in ("elegantrl", "gymnasium"):
            raise ValueError(f'api must be "elegantrl" or "gymnasium"; received {api!r}')
        self.api = api
        shape = np.shape(config["price_array"]), np.shape(config["tech_array"])
        if compact and shape[0][0] > 2**24:
            raise ValueError(f"compact observations count bars up to 2**24; price_array has {shape[0][0]}")
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
            raise ValueError(f"n_envs is a whole number of environments >= 1; received {n_envs!r}")
        self._n_envs = int(n_envs)
        self.env_num = self._n_envs  # a host may have put a number in the place of the class's property
        self.as_numpy = self._n_envs == 1 if self._asked["as_numpy"] is None else self._asked["as_numpy"]
        self.autoreset = not self.as_numpy if self._asked["autoreset"] is None else self._asked["autoreset"]
        self._check_options()
        self._check_memory()
        if self.api == "gymnasium":
            self._describe()

    def _open_accounts(self) -> None:
        """Allocate what N accounts need; they begin with the next reset."""
        self._needs_reset = True
        self._allocate()
        self.book = self._fresh_book(self._episode + 1)

    def _resize(self, n_envs: int) -> None:
        if n_envs == self._n_envs:
            return
        before = {name: vars(self)[name] for name in ("_n_envs", "as_numpy", "autoreset")}
        try:
            self._set_size(n_envs)
        except ValueError:  # as it was: the accounts are still those
            vars(self).update(before)
            raise
        self._open_accounts()

    def _allocate(self) -> None:
        self._episode = torch.full((self._n_envs,), -1, dtype=torch.int64, device=self.device)
        self._rejected = torch.zeros_like(self._episode)
        self._last_return = torch.full_like(self._rejected, torch.nan, dtype=torch.float64)
        self._over = torch.zeros_like(self._rejected, dtype=torch.bool)  # ended and not reset, without autoreset
        self._ended: Portfolio | None = None  # the accounts before what has ended restarted, after a step with an end
        self._charged = torch.zeros(len(Costs._fields), dtype=torch.float64, device=self.device)  # `Costs` of a step
        self._pass_on()

    def _check_options(self) -> None:
        if self.start not in ("first", "random", "stratified"):
            raise ValueError(f'start must be "first", "random" or "stratified"; received {self.start!r}')
        if self.episode_bars is not None and self.episode_bars < 1:
            raise ValueError(f"episode_bars is a number of steps >= 1, or None; received {self.episode_bars!r}")
        if self.as_numpy and (self._n_envs != 1 or self.autoreset):
            raise ValueError(f"as_numpy needs n_envs == 1 and no autoreset; received n_envs = {self._n_envs}")

    def _check_memory(self) -> None:
        needed = self._n_envs * (5 * 4 * self.state_dim + 8 * (10 * self.action_dim + 20))
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:  # no such call on Windows: no limit is known there
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
        if needed > free:
            sizes = f"needs about {needed / 2**30:,.1f} GiB, {self.device} has {free / 2**30:,.1f}"
            raise ValueError(f"n_envs = {self._n_envs} {sizes}; at most {self._n_envs * free // needed} fit")

    # What hosts read: tensors for a batch, NumPy and Python numbers for one environment.
    n_envs, num_envs, env_num = _sizes("Number of accounts."), _sizes("See n_envs."), _sizes("See n_envs.")
    cash = amount = _shows("cash", "(N,) quote currency in the accounts.")
    stocks = _shows("qty", "(N, A) coins in the accounts.")
    filled = _shows("filled", "(N, A) coins bought less coins sold in the last step, stops and releases included.")
    time = day = _shows("bar", "(N,) row of price_array the accounts stand at.")
    total_asset = _shows("equity", "(N,) account values, quote.")
    price_array = price_ary = property(_prices, doc="(T, A) closes of the market, not to be written to.")

    @property
    def episode_return(self) -> Any:
        """(N,) account value over initial capital: of the last ended episode, else of the running one."""
        running, last = self._shown("equity") / self.params.initial_capital, self._ended_returns()
        return self._out(running if self.as_numpy else torch.where(last.isnan(), running, last))

    @property
    def state_dim(self) -> int:
        """Width S of an observation."""
        return self._state_dim

    @state_dim.setter
    def state_dim(self, width: int) -> None:
        if width != self._state_dim:
            rest = self._state_dim - 1 - self.action_dim
            raise ValueError(f"state_dim is {self._state_dim}: cash, {self.action_dim} coins, {rest} features and "
                             f"extras. The host assigns {width}; correct it there")  # fmt: skip

    @property
    def seed(self) -> int:
        """Seed of the random starts; assigning one takes effect with the next episode."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = int(seed)
        self._pass_on()

    @property
    def cost_factor(self) -> float:
        """Share of fees and slippage that steps charge, 0 to 1; assigning one takes effect with the next step.

        The number that steps read lies on the device: no step is rebuilt, and a graph that holds one follows. The
        equal-weight benchmark pays its entry fee in full.
        """
        return self._cost_factor

    @cost_factor.setter
    def cost_factor(self, factor: float) -> None:
        if not 0.0 <= factor <= 1.0:
            raise ValueError(f"cost_factor is the share of fees and slippage charged, 0 to 1; received {factor}")
        self._cost_factor = float(factor)
        self._pass_on()

    def _pass_on(self) -> None:
        """Write what may be assigned between steps to where the step reads it; a GPU is not waited for."""
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
        """Open fresh accounts -> first observations (N, S), or NumPy (S,) for one environment.

        Args:
            where: (N,) bool, the environments to open; None is all of them. The others go on.
            seed: of the random starts from here on; episodes are counted anew.
            options: {"reset_mask": where}, as Gymnasium passes it.
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
            action: (N, A) in [-1, 1], or (A,) for one environment; positive buys, negative sells. Converted to
                float32 on `device`, never modified. A row with a non-finite entry is a hold, counted in
                `info["rejected_actions"]`.

        Returns:
            state, reward, done, info as the class says.

        Raises:
            ValueError: for a wrong shape.
            RuntimeError: before the first reset, and for one environment after the end of its episode.
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
        if self.autoreset:  # as Gymnasium's vector environments call it
            info = info | {"final_obs": info["final_state"], "_final_obs": done}
        return (*map(self._out, (state, reward, done & ~truncated, truncated)), self._out(info))

    def _transition(
        self, book: Portfolio, action: Tensor, rejected: Tensor
    ) -> tuple[Portfolio, Portfolio | None, Tensor, Tensor, Tensor, dict[str, Any]]:  # fmt: skip
        """(accounts, those before the restarts if any, state, reward, done, info) one bar later."""
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
        """Observations (..., state_dim) of this environment -> full ones (..., full_state_dim)."""
        return expand(torch.as_tensor(state), self.market) if self.compact else state

    def _restart(self, is_over: Tensor, book: Portfolio) -> Portfolio:
        self._episode += is_over
        if self.device.type == "cpu" and not is_over.any():  # a GPU is not asked: the answer would stall it
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
        trades = self.market.trades  # a product: what is not finite stays so, and is counted as that
        return action if trades is None else action * trades[(self._read("bar") + 1).clamp(max=len(trades) - 1)]

    def _out(self, value: Any) -> Any:
        if not self.as_numpy:
            return value
        if isinstance(value, dict):
            return {name: self._out(item) for name, item in value.items()}
        row = value[0]
        return row.item() if row.ndim == 0 else row.cpu().numpy().copy()

    def _describe(self) -> None:
        """Set what Gymnasium reads of an environment: spaces of one account and of what `step` takes and returns."""
        try:
            gym = importlib.import_module("gymnasium")
        except ImportError as error:
            raise ImportError('api="gymnasium" needs the package gymnasium: pip install "gymnasium>=1.1"') from error
        box = functools.partial(gym.spaces.Box, dtype=np.float32)
        rows = () if self.as_numpy else (self._n_envs,)
        self.single_observation_space = box(-np.inf, np.inf, (self.state_dim,))
        self.single_action_space = box(-1.0, 1.0, (self.action_dim,))
        self.observation_space = box(-np.inf, np.inf, (*rows, self.state_dim))
        self.action_space = box(-1.0, 1.0, (*rows, self.action_dim))
        modes = gym.vector.AutoresetMode
        self.metadata = {"render_modes": [], "autoreset_mode": modes.SAME_STEP if self.autoreset else modes.DISABLED}

    def close(self) -> None:
        """Nothing is held open."""

    def __getstate__(self) -> dict[str, Any]:
        """Tensors as bytes, so that another process owns what it receives; a deep copy shares the market."""
        state = vars(self) | {"book": self.book}
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor | Portfolio)}
        return {k: v for k, v in state.items() if k not in tensors} | {"packed": pickle.dumps(tensors)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the values."""
        vars(self).update(state | pickle.loads(state.pop("packed")))


TARGET_RETURNS: dict[str, float] = dict.fromkeys(("finrl_crypto", "ccxt", "cappuccino"), 1e8)  # hosts stop there


class VectorizedCryptoEnvAlpacaOptimized(VectorizedCryptoEnvAlpaca):
    """The same environment, same constructor and same numbers, with preallocated buffers and a native step.

    `reset` returns a new tensor. What `step` returns are this object's own buffers, `info` included. There are two sets
    of them, used in turn: what a step returned stays as it is through the next step, and may be overwritten by the one
    after it. So a loop may read the state it acted on after the step. Clone to keep longer, or hand the environment
    your own storage: `step(action, out={"state": ..., "reward": ..., "done": ...})` writes straight into those slots
    (contiguous, on `device`) and returns them. Rows of `info["final_state"]` are valid where `done`. `book` and what
    hosts read (`cash`, `stocks`, ...) are copies.

    The native step is in the folder environment_Alpaca_kernels and needs numba on the CPU, Triton on a GPU. Without
    it the plain step runs and returns new tensors; `stepped_by` is "numba", "triton" or "torch", `why_not_native` says
    why it is "torch".
    """

    stepped_by, why_not_native = "torch", None

    def _allocate(self) -> None:
        self._fast: Any = None
        rows = torch.Size((self._n_envs, self.state_dim))
        self._slot_kinds = {"state": (rows, torch.float32), "reward": (rows[:1], torch.float32)}
        self._slot_kinds["done"] = (rows[:1], torch.bool)
        self.is_capturable = False  # whether a step may be recorded in a graph of its device
        super()._allocate()
        kernel = self._native_kernel()
        if kernel is not None:
            self.stepped_by, self.why_not_native = kernel.name, None
            self._episode, self._rejected = kernel.episode.fill_(-1), kernel.rejected
            self._fast = kernels("buffers").FastStep(self, kernel)

    def _native_kernel(self) -> Any:
        """The native step of this device, or None with `why_not_native` set."""
        try:
            if not self._asked["native_step"]:
                raise NoNativeStep("native_step is False")
            with _loading:  # threads of a study build environments side by side
                return kernels("cpu" if self.device.type == "cpu" else "gpu").NativeStep(self)
        except (ImportError, NoNativeStep) as reason:
            self.stepped_by, self.why_not_native = "torch", str(reason)
            if self._asked["native_step"]:
                _warn_once(f"the plain torch step runs in place of the native one: {reason}")
            return None

    @property
    def book(self) -> Portfolio:
        """The accounts, a copy where a native step holds them; assigning some takes them over."""
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
        """Without the native step: a copy or an unpickled object allocates its own."""
        state = {name: value for name, value in super().__getstate__().items() if name not in ("_fast", "_book")}
        return state | {"ended": None if self._fast is None else pickle.dumps(self._fast.kernel.ended())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Allocate, then take over the values."""
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
        """As the plain class, in a new tensor; or written into out_state (N, S) when given."""
        self._check_slots({} if out_state is None else {"state": out_state})
        state = self._begin(where, seed, options)
        return self._first_return(state if out_state is None else out_state.copy_(state))

    def step(self, action: Any, out: dict[str, Tensor] | None = None) -> tuple[Any, ...]:
        """As the plain class; `out` maps "state", "reward" and "done", or some of them, to the caller's storage."""
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
            raise ValueError(f'out slots need api="elegantrl"; this environment has {self.api!r}')
        for name, slot in out.items():
            shape, kind = self._slot_kinds.get(name, ((), torch.float32))
            if slot.shape != shape or slot.dtype != kind or slot.device != self.device or not slot.is_contiguous():
                wish = f"shape {tuple(shape)}, {kind}, {self.device}"
                found = f"shape {tuple(slot.shape)}, {slot.dtype}, {slot.device}"
                raise ValueError(f"out slots are state, reward and done; {name}: {wish}, contiguous; received {found}")


_loading = threading.RLock()


def kernels(where: str) -> Any:
    """Module "cpu" or "gpu" of the folder environment_Alpaca_kernels next to this file, wherever the two lie.

    Raises:
        ImportError: the folder, or what its module needs, is missing.
        NoNativeStep: the folder is of another version than this file.
    """
    folder = Path(__file__).resolve().with_name("environment_Alpaca_kernels")
    name = f"{__package__}.{folder.name}" if __package__ else folder.name
    package = sys.modules.get(name)
    own = sys.modules[__name__]
    is_ours = package is not None and Path(package.__file__ or "").resolve().parent == folder
    if package is not None and not (is_ours and package.drop_in is own):
        name = f"{name}_{zlib.crc32(f'{folder} {__name__}'.encode()):x}"  # another copy has the usual name
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
    """The fast class with the rules of FinRL_Crypto's CryptoEnvAlpaca."""

    default_rules = "finrl_crypto"


class VectorizedCryptoEnvCCXT(VectorizedCryptoEnvAlpacaOptimized):
    """The fast class with the rules of FinRL_Crypto's CryptoEnvCCXT."""

    default_rules = "ccxt"


class VectorizedCryptoEnv(VectorizedCryptoEnvAlpacaOptimized):
    """The fast class with the rules of FinRL's CryptoEnv."""

    default_rules = "finrl"


class VectorizedCryptoEnvMeta(VectorizedCryptoEnvAlpacaOptimized):
    """The fast class with the rules of FinRL-Meta's CryptoEnv."""

    default_rules = "finrl_meta"


# ---------------------------------------------------------------------------------------------- beside a host
# What the settings are called in the scalar environments of the FinRL family.
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
    """A batched environment with the data and settings of a host's scalar one.

    Arrays, norms, fees, capital and smallest orders are read from the instance. `rules` names the rule set; None
    recognises it by the marks of the class. An instance with `params: EnvParams` brings its own. `options` go to the
    constructor.

    Raises:
        ValueError: the class is not recognised.
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
            raise ValueError(f"{name_of(type(env))} is not recognised; give rules, one of {', '.join(RULES)}")
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
    """Step copies of a scalar environment next to a batch with its settings -> the first difference, or None.

    `environment_Alpaca_kernels/compare.py` does the work and describes what is compared.
    """
    return kernels("compare").compare_with_scalar(scalar_env, n_steps, seed, n_envs, env_class)


def main(argv: list[str] | None = None) -> int:
    """Compare this simulator with a host's scalar environment: `--compare`; `--help` lists the options."""
    try:
        program = kernels("compare").main
    except (ImportError, NoNativeStep) as error:
        sys.stderr.write(f"--compare needs the folder environment_Alpaca_kernels: copy it too. {error}\n")
        return 2
    return program(argv)


if __name__ == "__main__":  # through the module's name, so that its classes are the ones a host imports
    sys.exit(importlib.import_module(Path(__file__).stem).main())
