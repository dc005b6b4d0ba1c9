# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Phases of a bar as Triton functions: orders, fills, valuation, reward; called by gpu_step.py.

Names and order match environment_Alpaca_vectorized.py, so that both can be read side by side. A `Lane` holds one value
per environment, (BLOCK,). A `Tile` holds one value per environment and asset, (BLOCK, A padded to a power of two). The
padding has price 0 and is therefore never traded. The choices of `EnvParams` are compiled in, and inactive phases are
removed. The numbers of `EnvParams` are read from memory, so changing a fee needs no recompilation.
"""

# Compiled functions are Python only in syntax, so type checkers cannot infer their types.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportCallIssue=false

from __future__ import annotations

from collections import namedtuple
from dataclasses import fields
from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import drop_in

TARGET_WEIGHT = tl.constexpr(drop_in.TARGET_WEIGHT)
EQUITY_FLOOR = tl.constexpr(drop_in.EQUITY_FLOOR)
INCREMENT_SLACK = tl.constexpr(drop_in.INCREMENT_SLACK)

jit: Any = triton.jit
# Annotations of compiled functions may only use Triton's own types and named tuples.
Lane = tl.tensor  # (BLOCK,), one value per environment
Tile = tl.tensor  # (BLOCK, A padded to a power of two), one value per environment and asset
Number = tl.tensor  # one value for all environments
Pointer = tl.tensor  # a torch tensor at launch

# Compile-time values: choices and switches of `EnvParams`, active phases, rows by name, sizes. n_columns is n_assets
# padded, window is L * F, and offset_type is the type of feature offsets: int32 unless there are more than 2**31.
SWITCHES = (*drop_in.CHOICES, *(f.name for f in fields(drop_in.EnvParams) if f.type == "bool"))
Choices = namedtuple(
    "Choices",
    " ".join(SWITCHES) + " compact restarts limits_actions stops caps_positions releases_stale has_increments "
    "penalizes_concentration term report count segment n_assets n_columns n_features window state_dim block tile "
    "offset_type",
)
# Float settings in array order; costs are those of the next step.
Numbers = namedtuple(
    "Numbers", (*(f.name for f in fields(drop_in.EnvParams) if f.type == "float"), "benchmark_fee_rate")
)
# Integer settings in array order; if episode_bars is 0, episodes run to the end of the segment.
Whole = namedtuple("Whole", "lookback stale_bars seed episode_bars n_starts n_usable n_segments n_bars")
# `Portfolio` as rows of packed arrays; final_* belong to the last finished episode.
COUNTS = ("bar", "first_bar", "last_bar", "segment", "trades", "episode", "rejected", "final_bar", "is_over")
MONEY = (
    "cash", "equity", "benchmark", "peak", "max_drawdown", "discounted_return", *drop_in.COSTS,
    "final_cash", "final_equity",
)  # fmt: skip
COINS = ("qty", "high", "order_scale", "benchmark_qty", "filled", "final_qty", "final_filled")
# The same as pointers to each field of the program's first environment.
Books = namedtuple("Books", (*COUNTS, *MONEY, *COINS, "held_bars"))


class Market(NamedTuple):
    """Market shared by all environments, never written."""

    price: Any  # (T, A) float64
    windows: Any  # (T - L + 1, L * F) float32, rows F apart
    assets: Any  # (2, A) float64: min_qty, qty_increment
    segments: Any  # (6, G) int64, rows of SEGMENT
    order_scale: Any  # (G, A) float64


class Lanes(NamedTuple):
    """Environments and cells of this program."""

    lane: Lane  # int32, 0 to BLOCK - 1: offset from the program's first environment
    env: Lane  # int64, number of the environment
    is_real: Lane  # False beyond the last environment
    column: Lane  # (1, A padded)
    is_column: Lane  # (1, A padded), False beyond the last asset
    cell: Tile  # int32, offset in an (N, A) array from the program's first environment
    is_cell: Tile
    first: Number  # int64, the program's first environment
    n_envs: Number  # int64


class Venue(NamedTuple):
    """Smallest orders as rows (1, A padded)."""

    min_qty: Lane
    qty_increment: Lane


class Traded(NamedTuple):
    """Executed trades of this step."""

    trades: Lane
    fees: Lane
    slippage: Lane
    turnover: Lane


class Account(NamedTuple):
    """Account state that trading changes."""

    cash: Lane
    qty: Tile
    held_bars: Tile
    high: Tile
    filled: Tile  # bought minus sold in this step
    traded: Traded


class Marks(NamedTuple):
    """Values at one bar."""

    equity: Lane
    benchmark: Lane
    peak: Lane
    max_drawdown: Lane


# ---------------------------------------------------------------------------------------------- orders
@jit
def order_quantities(
    action: Pointer, price: Tile, equity: Lane, b: Books, p: Numbers, lanes: Lanes, c: tl.constexpr
) -> tuple[Tile, Lane]:  # fmt: skip
    """Return ordered coins (positive to buy, negative to sell), and a mask of environments with a non-finite action."""
    wish = tl.load(action + lanes.first * c.n_assets + lanes.cell, mask=lanes.is_cell, other=0.0)  # float32
    is_finite = tl.abs(wish) < float("inf")
    is_rejected = tl.sum((~is_finite).to(tl.int32), 1) > 0
    wish = tl.where(is_rejected[:, None], 0.0, wish)
    if c.limits_actions:
        limit = p.action_limit.to(tl.float32)
        wish = tl.minimum(tl.maximum(wish, -limit), limit)
    if c.order_sizing == "equity":
        is_priced = price > 0
        per_unit = equity[:, None] / (tl.where(is_priced, price, 1.0) * p.norm_action)
        order_qty = tl.where(is_priced, wish.to(tl.float64) * per_unit, 0.0)
    else:
        scale = tl.load(b.order_scale + lanes.cell, mask=lanes.is_cell, other=0.0)
        if c.order_sizing == "initial_capital":  # in float32, as the host computes it
            order_qty = (wish * scale.to(tl.float32)).to(tl.float64)
        else:
            order_qty = wish.to(tl.float64) * scale
    return order_qty, is_rejected


@jit
def cap_positions(order_qty: Tile, account: Account, price: Tile, equity: Lane, p: Numbers) -> Tile:
    """Reduce every buy so that the position does not exceed max_position_weight of the account."""
    is_priced = price > 0
    limit_qty = p.max_position_weight * equity[:, None] / tl.where(is_priced, price, 1.0)
    room = tl.where(is_priced, tl.maximum(limit_qty - account.qty, 0.0), 0.0)
    return tl.minimum(order_qty, room)


@jit
def whole_increments(quantity: Tile, venue: Venue, c: tl.constexpr) -> Tile:
    """Return the quantity rounded down to the lot size; a huge order is unchanged."""
    if c.has_increments:
        step = venue.qty_increment
        whole = tl.floor(quantity / tl.where(step > 0, step, 1.0) + INCREMENT_SLACK) * step
        quantity = tl.where((step > 0) & (tl.abs(quantity) < float("inf")), whole, quantity)
    return quantity


@jit
def is_large_enough(quantity: Tile, price: Tile, venue: Venue, p: Numbers) -> Tile:
    """Return True if the venue accepts an order of this size."""
    return (quantity > venue.min_qty) & (quantity * price >= p.min_order_notional)


@jit
def execute_trailing_stops(account: Account, price: Tile, p: Numbers) -> Account:
    """Sell whole positions whose price fell by more than trailing_stop_pct from its high since the purchase."""
    is_held = account.qty > 0
    high = tl.where(is_held, tl.maximum(account.high, price), account.high)
    is_stopped = is_held & (price > 0) & (price < high * (1.0 - p.trailing_stop_pct))
    account = Account(account.cash, account.qty, account.held_bars, high, account.filled, account.traded)
    return execute_sales(account, tl.where(is_stopped, account.qty, 0.0), price, p)


@jit
def execute_sells(
    account: Account, order_qty: Tile, price: Tile, venue: Venue, p: Numbers, c: tl.constexpr
) -> Account:  # fmt: skip
    """Execute the sell orders, limited to the position."""
    wanted = whole_increments(-order_qty, venue, c)
    is_taken = is_large_enough(wanted, price, venue, p)
    sold = tl.minimum(account.qty, wanted)
    if c.always_allow_close:
        closes = -order_qty >= account.qty
        is_taken = is_taken | closes
        sold = tl.where(closes, account.qty, sold)
    is_sold = (order_qty < 0) & (account.qty > 0) & (price > 0) & is_taken
    return execute_sales(account, tl.where(is_sold, sold, 0.0), price, p)


@jit
def release_stale(
    account: Account, price: Tile, venue: Venue, p: Numbers, w: Whole, c: tl.constexpr
) -> Account:  # fmt: skip
    """Sell stale_fraction of positions held for stale_bars or longer, or all if the fraction is below the minimum."""
    is_stale = account.held_bars >= w.stale_bars
    if not c.release_unpriced:
        is_stale = is_stale & (price > 0)
    released = account.qty * p.stale_fraction
    if c.always_allow_close:
        released = whole_increments(released, venue, c)
        released = tl.where(is_large_enough(released, price, venue, p), released, account.qty)
    return execute_sales(account, tl.where(is_stale, released, 0.0), price, p)


@jit
def execute_sales(account: Account, sold: Tile, price: Tile, p: Numbers) -> Account:
    """Remove sold coins at the close minus slippage and fee, and restart the position's clock."""
    fill = price * (1.0 - p.slippage_rate)
    qty = account.qty - sold
    is_sold = sold > 0
    cash = account.cash + tl.sum(sold * fill * (1.0 - p.sell_fee_rate), 1)
    held_bars = tl.where(is_sold, 0, account.held_bars)
    high = tl.where(is_sold & (qty == 0), 0.0, account.high)
    account = Account(cash, qty, held_bars, high, account.filled - sold, account.traded)
    return book_trades(account, sold, price, fill * p.sell_fee_rate, p)


@jit
def execute_buys(
    account: Account, order_qty: Tile, price: Tile, equity: Lane, venue: Venue, p: Numbers, lanes: Lanes,
    c: tl.constexpr,
) -> Account:  # fmt: skip
    """Execute the buy orders within the available cash; equity is this bar's before trading."""
    wanted = whole_increments(order_qty, venue, c)
    wanted = tl.where((price > 0) & is_large_enough(wanted, price, venue, p), wanted, 0.0)
    unit_cost = price * (1.0 + p.slippage_rate) * (1.0 + p.buy_fee_rate)  # quote per coin, including all costs
    if c.buys == "sequential":
        # Assets stay a loop, because each buy reduces the cash of the next one. Columns are filled in order.
        per_coin = tl.where(price > 0, unit_cost, 1.0)
        for a in range(c.n_assets):
            affordable = coins_for(spendable_cash(account.cash, equity, p, c)[:, None], per_coin, c)
            filled = tl.where(lanes.column == a, tl.minimum(wanted, affordable), 0.0)
            account = execute_purchases(account, filled, price, unit_cost, venue, p)
    else:
        cost = tl.sum(wanted * unit_cost, 1)
        scale = tl.minimum(spendable_cash(account.cash, equity, p, c) / tl.where(cost > 0, cost, 1.0), 1.0)
        filled = whole_increments(wanted * scale[:, None], venue, c)
        account = execute_purchases(account, filled, price, unit_cost, venue, p)
    return account


@jit
def execute_purchases(
    account: Account, filled: Tile, price: Tile, unit_cost: Tile, venue: Venue, p: Numbers
) -> Account:  # fmt: skip
    """Add filled coins, unless limited cash reduced the order below the minimum."""
    is_kept = (filled > 0) & (filled >= venue.min_qty) & (filled * price >= p.min_order_notional)
    bought = tl.where(is_kept, filled, 0.0)
    cash = tl.maximum(account.cash - tl.sum(bought * unit_cost, 1), 0.0)  # maximum() only removes rounding errors
    high = tl.where(is_kept & (account.qty == 0), price, account.high)
    account = Account(cash, account.qty + bought, account.held_bars, high, account.filled + bought, account.traded)
    return book_trades(account, bought, price, price * (1.0 + p.slippage_rate) * p.buy_fee_rate, p)


@jit
def coins_for(budget: Tile, unit_cost: Tile, c: tl.constexpr) -> Tile:
    """Return the coins that a budget buys; whole coins as in Python's //."""
    coins = budget / unit_cost
    if c.whole_coins:
        whole = tl.floor(coins)  # one coin too many if the quotient was rounded up
        exceeds = (budget - whole * unit_cost) - product_error(whole, unit_cost) < 0
        coins = tl.where(exceeds, whole - 1.0, whole)
    return coins


@jit
def product_error(x: Tile, y: Tile) -> Tile:
    """Return x * y minus its rounded value, exactly (T. J. Dekker, 1971): a remainder's sign without a division."""
    scaled_x, scaled_y = x * 134217729.0, y * 134217729.0  # 2**27 + 1
    high_x, high_y = scaled_x - (scaled_x - x), scaled_y - (scaled_y - y)
    low_x, low_y = x - high_x, y - high_y
    return ((high_x * high_y - x * y) + high_x * low_y + low_x * high_y) + low_x * low_y


@jit
def spendable_cash(cash: Lane, equity: Lane, p: Numbers, c: tl.constexpr) -> Lane:
    """Return the cash available for buys, in quote, after the reserve."""
    base = equity if c.reserve_base == "equity" else p.initial_capital
    reserve = p.min_cash_reserve * base
    return tl.maximum(cash - reserve, 0.0) * p.cash_haircut


@jit
def book_trades(account: Account, quantity: Tile, price: Tile, fee_per_coin: Tile, p: Numbers) -> Account:
    """Add fills to the step's totals."""
    traded, notional = account.traded, tl.sum(quantity * price, 1)
    trades = traded.trades + tl.sum((quantity > 0).to(tl.int64), 1)
    fees = traded.fees + tl.sum(quantity * fee_per_coin, 1)
    traded = Traded(trades, fees, traded.slippage + notional * p.slippage_rate, traded.turnover + notional)
    return Account(account.cash, account.qty, account.held_bars, account.high, account.filled, traded)


# ---------------------------------------------------------------------------------------------- valuation and reward
@jit
def account_value(account: Account, price: Tile) -> Lane:
    """Return cash plus positions at the close, in quote."""
    return account.cash + tl.sum(account.qty * price, 1)


@jit
def mark_to_market(account: Account, before: Marks, price: Tile, b: Books, lanes: Lanes) -> Marks:
    """Value account and benchmark at this bar, and update the running peak and largest drawdown."""
    equity = account_value(account, price)
    peak = tl.maximum(before.peak, equity)
    max_drawdown = tl.maximum(before.max_drawdown, 1.0 - equity / peak)
    benchmark_qty = tl.load(b.benchmark_qty + lanes.cell, mask=lanes.is_cell, other=0.0)
    return Marks(equity, tl.sum(benchmark_qty * price, 1), peak, max_drawdown)


@jit
def reward_terms(
    before: Marks, marks: Marks, account: Account, price: Tile, bar: Lane, m: Market, b: Books, p: Numbers, w: Whole,
    terms: Pointer, lanes: Lanes, c: tl.constexpr,
) -> Lane:  # fmt: skip
    """Store the named terms of the reward and return their sum."""
    if c.reward == "benchmark_difference":
        gain = (marks.equity - before.equity) - (marks.benchmark - before.benchmark)
        reward = keep_term(gain * p.norm_reward, c.term.alpha, terms, lanes)
    elif c.reward == "profit":
        reward = keep_term((marks.equity - before.equity) * p.norm_reward, c.term.profit, terms, lanes)
    elif c.reward == "cappuccino":
        decay = time_decay(bar, m, b, p, w, lanes, c)
        reward = cappuccino_terms(before, marks, account, price, decay, p, terms, lanes, c)
    else:
        reward = weighted_terms(before, marks, account, price, p, terms, lanes, c)
    return reward


@jit
def keep_term(value: Lane, row: tl.constexpr, terms: Pointer, lanes: Lanes) -> Lane:
    """Store one named term and return it."""
    tl.store(terms + row * lanes.n_envs + lanes.lane, value, mask=lanes.is_real)
    return value


@jit
def weights_of(account: Account, equity: Lane, price: Tile) -> Tile:
    """Return positions as fractions of the account."""
    is_solvent = equity > 0
    return tl.where(is_solvent[:, None], account.qty * price / tl.where(is_solvent, equity, 1.0)[:, None], 0.0)


@jit
def weighted_terms(
    before: Marks, marks: Marks, account: Account, price: Tile, p: Numbers, terms: Pointer, lanes: Lanes,
    c: tl.constexpr,
) -> Lane:  # fmt: skip
    """Return the terms of the standard reward."""
    floor = p.initial_capital * EQUITY_FLOOR
    growth = tl.log(tl.maximum(marks.equity, floor) / tl.maximum(before.equity, floor))
    tracked = tl.log(tl.maximum(marks.benchmark, floor) / tl.maximum(before.benchmark, floor))
    excess = tl.maximum(tl.max(weights_of(account, marks.equity, price), 1) - TARGET_WEIGHT, 0.0)
    drawdown = -p.drawdown_penalty * (marks.max_drawdown - before.max_drawdown)
    turnover = -p.turnover_penalty * account.traded.turnover / tl.maximum(marks.equity, floor)
    reward = keep_term(p.norm_reward * (p.growth_weight * growth), c.term.growth, terms, lanes)
    reward += keep_term(p.norm_reward * (-p.benchmark_weight * tracked), c.term.benchmark, terms, lanes)
    reward += keep_term(p.norm_reward * drawdown, c.term.drawdown, terms, lanes)
    reward += keep_term(p.norm_reward * (-p.volatility_penalty * (growth * growth)), c.term.volatility, terms, lanes)
    reward += keep_term(p.norm_reward * (-p.concentration_penalty * excess), c.term.concentration, terms, lanes)
    reward += keep_term(p.norm_reward * turnover, c.term.turnover, terms, lanes)
    return reward


@jit
def cappuccino_terms(
    before: Marks, marks: Marks, account: Account, price: Tile, decay: Lane, p: Numbers, terms: Pointer, lanes: Lanes,
    c: tl.constexpr,
) -> Lane:  # fmt: skip
    """Return the terms of the Cappuccino reward."""
    gain, benchmark_gain = marks.equity - before.equity, marks.benchmark - before.benchmark
    had_benchmark, is_solvent = before.benchmark > 0, marks.equity > 0
    market_return = tl.where(had_benchmark, benchmark_gain / tl.where(had_benchmark, before.benchmark, 1.0), 0.0)
    cash_share = tl.where(is_solvent, account.cash / tl.where(is_solvent, marks.equity, 1.0), 0.0)
    earns_bonus = (market_return < 0) & (cash_share > 0.1)
    bonus = tl.where(earns_bonus, 0.02 * tl.abs(market_return) * cash_share * p.norm_reward, 0.0)
    shortfall = tl.maximum(p.min_cash_reserve * p.initial_capital - account.cash, 0.0)
    reward = keep_term(0.5 * (gain - benchmark_gain) * p.norm_reward * decay, c.term.alpha, terms, lanes)
    reward += keep_term(0.3 * gain / p.initial_capital * p.norm_reward * decay, c.term.absolute, terms, lanes)
    reward += keep_term(bonus, c.term.cash_bonus, terms, lanes)
    reward += keep_term(-shortfall / p.initial_capital * p.norm_reward * 0.5, c.term.cash_reserve, terms, lanes)
    concentration = gain * 0.0
    if c.penalizes_concentration:
        weights = weights_of(account, marks.equity, price)
        value = cappuccino_concentration(weights, p.concentration_penalty, lanes, c)
        concentration = tl.where(is_solvent, value, 0.0)
    reward += keep_term(concentration, c.term.concentration, terms, lanes)
    return reward


@jit
def time_decay(
    bar: Lane, m: Market, b: Books, p: Numbers, w: Whole, lanes: Lanes, c: tl.constexpr
) -> Lane:  # fmt: skip
    """Return a factor that falls over the segment."""
    at = m.segments + tl.load(b.segment + lanes.lane, mask=lanes.is_real, other=0)
    first = tl.load(at + c.segment.segment_first * w.n_segments, mask=lanes.is_real, other=0) + w.lookback - 1
    last = tl.load(at + c.segment.segment_end * w.n_segments, mask=lanes.is_real, other=0) - w.lookback - 1
    progress = (bar - first).to(tl.float64) / tl.maximum(last - first, 1).to(tl.float64)
    return tl.maximum(1.0 - tl.minimum(tl.maximum(progress, 0.0), 1.0), p.time_decay_floor)


@jit
def cappuccino_concentration(weights: Tile, penalty: Number, lanes: Lanes, c: tl.constexpr) -> Lane:
    """Return a penalty for concentrated positions and a bonus for evenly spread ones (Gini coefficient by ranks)."""
    is_held = weights > 0.01
    held = tl.where(is_held, weights, 0.0)
    n_held = tl.sum(is_held.to(tl.int32), 1).to(tl.float64)
    rank = held * 0.0  # 1 for the smallest held weight; columns break ties
    for a in range(c.n_assets):
        other = tl.sum(tl.where(lanes.column == a, held, 0.0), 1)[:, None]
        is_before = (other > 0) & ((other < held) | ((other == held) & (lanes.column >= a)))
        rank += is_before.to(tl.float64)
    n, total = tl.maximum(n_held, 1.0), tl.sum(held, 1)
    gini = 2.0 * tl.sum(rank * held, 1) / (n * tl.where(total > 0, total, 1.0)) - (n + 1.0) / n
    large = -penalty * tl.maximum(tl.max(weights, 1) - TARGET_WEIGHT, 0.0)
    even = 0.1 * penalty * tl.maximum(0.4 - gini, 0.0)
    return large + tl.where(n_held < 3, -0.5 * penalty * (3.0 - n_held), even)
