# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Orders and fills of the numba step, as in the plain file."""

from __future__ import annotations

import math

import numpy as np

from . import drop_in
from .memory import LANES, REJECTED, Array, Record, asset_at, load_f4, native, order_at, position_at, where
from .tables import CHOICE

INCREMENT_SLACK = drop_in.INCREMENT_SLACK


@native
def accept_actions(i: int, n: int, action: int, orders: int, counts: Array, p: Record) -> None:
    """Set order.action from (N, A) float32 at the address `action`; a row with a non-finite value becomes a hold."""
    n_assets = p.n_assets
    for w in range(n):
        row, is_valid = (i + w) * n_assets, True
        for a in range(n_assets):
            is_valid = is_valid and math.isfinite(load_f4(action, row + a))
        counts[REJECTED, i + w] += not is_valid
        for a in range(n_assets):
            order_at(orders, a).action[w] = load_f4(action, row + a) if is_valid else np.float32(0.0)


@native
def order_quantities(book: Record, coins: int, orders: int, p: Record) -> None:
    """Set order.order_qty: positive to buy, negative to sell."""
    order_sizing, norm_action, action_limit = p.order_sizing, p.norm_action, np.float32(p.action_limit)
    if action_limit < np.inf:
        for a in range(p.n_assets):
            order = order_at(orders, a)
            for w in range(LANES):
                action = where(order.action[w] > action_limit, action_limit, order.action[w])
                order.action[w] = where(action < -action_limit, -action_limit, action)
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        if order_sizing == CHOICE.order_sizing.equity:
            for w in range(LANES):
                per_unit = book.equity_at_fill[w] / (order.price[w] * norm_action)
                order.order_qty[w] = where(order.price[w] > 0, order.action[w] * per_unit, 0.0)
        elif order_sizing == CHOICE.order_sizing.initial_capital:  # in float32, as the host computes it
            for w in range(LANES):
                order.order_qty[w] = order.action[w] * np.float32(coin.order_scale[w])
        else:
            for w in range(LANES):
                order.order_qty[w] = order.action[w] * coin.order_scale[w]


@native
def cap_positions(book: Record, coins: int, orders: int, p: Record) -> None:
    """Reduce every buy so that the position does not exceed max_position_weight of the account."""
    max_position_weight = p.max_position_weight
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        for w in range(LANES):
            limit_qty = max_position_weight * book.equity_at_fill[w] / order.price[w]
            room = limit_qty - coin.qty[w]
            room = where((order.price[w] > 0) & (room > 0), room, 0.0)
            order.order_qty[w] = where(order.order_qty[w] < room, order.order_qty[w], room)


@native
def whole_increments(quantity: float, step: float) -> float:
    """Return the quantity rounded down to the lot size; a huge order is unchanged."""
    if step > 0:  # the same for all lanes, so a branch instead of a mask
        # math.floor would return an int64 here, which overflows for 1e10 coins with a lot size of 1e-9.
        return where(abs(quantity) < np.inf, np.floor(quantity / step + INCREMENT_SLACK) * step, quantity)
    return quantity


@native
def is_large_enough(quantity: float, price: float, min_qty: float, min_order_notional: float) -> bool:
    """Return True if the venue accepts an order of this size."""
    return (quantity > min_qty) & (quantity * price >= min_order_notional)


@native
def execute_trailing_stops(book: Record, coins: int, orders: int, p: Record) -> None:
    """Sell whole positions whose price fell by more than trailing_stop_pct from its high since the purchase."""
    kept, sell_fee_rate, slippage_rate = 1.0 - p.trailing_stop_pct, p.costs.sell_fee_rate, p.costs.slippage_rate
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        for w in range(LANES):
            price, is_held = order.price[w], coin.qty[w] > 0
            high = where(is_held & (price > coin.high[w]), price, coin.high[w])
            is_stopped = is_held & (price > 0) & (price < high * kept)
            coin.high[w] = high
            execute_sales(w, book, coin, where(is_stopped, coin.qty[w], 0.0), price, sell_fee_rate, slippage_rate)


@native
def execute_sells(book: Record, coins: int, orders: int, p: Record) -> None:
    """Execute the sell orders, limited to the position."""
    sell_fee_rate, slippage_rate = p.costs.sell_fee_rate, p.costs.slippage_rate
    min_order_notional, always_allow_close = p.min_order_notional, p.always_allow_close
    for a in range(p.n_assets):
        coin, order, asset = position_at(coins, a), order_at(orders, a), asset_at(p.assets, a)
        min_qty, step = asset.min_qty, asset.qty_increment
        for w in range(LANES):
            order_qty, qty, price = order.order_qty[w], coin.qty[w], order.price[w]
            wanted = whole_increments(-order_qty, step)
            is_large = is_large_enough(wanted, price, min_qty, min_order_notional)
            closes = (-order_qty >= qty) & always_allow_close
            is_sold = (order_qty < 0) & (qty > 0) & (price > 0) & (is_large | closes)
            sold = where(closes | (qty < wanted), qty, wanted)
            execute_sales(w, book, coin, where(is_sold, sold, 0.0), price, sell_fee_rate, slippage_rate)


@native
def release_stale(book: Record, coins: int, orders: int, p: Record) -> None:
    """Sell stale_fraction of positions held for stale_bars or longer, or all if the fraction is below the minimum."""
    sell_fee_rate, slippage_rate = p.costs.sell_fee_rate, p.costs.slippage_rate
    min_order_notional, always_allow_close = p.min_order_notional, p.always_allow_close
    stale_bars, stale_fraction, release_unpriced = p.stale_bars, p.stale_fraction, p.release_unpriced
    for a in range(p.n_assets):
        coin, order, asset = position_at(coins, a), order_at(orders, a), asset_at(p.assets, a)
        min_qty, step = asset.min_qty, asset.qty_increment
        for w in range(LANES):
            price, released = order.price[w], coin.qty[w] * stale_fraction
            is_stale = (coin.held_bars[w] >= stale_bars) & ((price > 0) | release_unpriced)
            whole = whole_increments(released, step)
            whole = where(is_large_enough(whole, price, min_qty, min_order_notional), whole, coin.qty[w])
            released = where(always_allow_close, whole, released)
            execute_sales(w, book, coin, where(is_stale, released, 0.0), price, sell_fee_rate, slippage_rate)


@native
def execute_sales(
    w: int, book: Record, coin: Record, sold: float, price: float, sell_fee_rate: float, slippage_rate: float
) -> None:  # fmt: skip
    """Remove `sold` coins at the close minus slippage and fee, and restart the position's clock."""
    fill = price * (1.0 - slippage_rate)
    qty, is_sold = coin.qty[w] - sold, sold > 0
    coin.qty[w] = qty
    coin.filled[w] -= sold
    book.cash[w] += sold * fill * (1.0 - sell_fee_rate)
    coin.held_bars[w] = 0 if is_sold else coin.held_bars[w]
    coin.high[w] = where(is_sold & (qty == 0), 0.0, coin.high[w])
    book_trades(w, book, sold, price, fill * sell_fee_rate, slippage_rate)


@native
def execute_buys(book: Record, coins: int, orders: int, p: Record) -> None:
    """Execute the buy orders within the available cash."""
    min_order_notional, whole_coins, is_sequential = (
        p.min_order_notional,
        p.whole_coins,
        p.buys == CHOICE.buys.sequential,
    )
    buy_fee_rate, slippage_rate = p.costs.buy_fee_rate, p.costs.slippage_rate
    unit_rate = (1.0 + slippage_rate) * (1.0 + buy_fee_rate)  # quote paid for coins worth one quote unit
    for w in range(LANES):
        book.cost[w] = 0.0
    for a in range(p.n_assets):
        order, asset = order_at(orders, a), asset_at(p.assets, a)
        min_qty, step = asset.min_qty, asset.qty_increment
        for w in range(LANES):
            price, wanted = order.price[w], whole_increments(order.order_qty[w], step)
            is_order = (price > 0) & is_large_enough(wanted, price, min_qty, min_order_notional)
            order.wanted[w] = where(is_order, wanted, 0.0)
            book.cost[w] += order.wanted[w] * (price * unit_rate)
    if not is_sequential:
        spendable_cash(book, p)
        for w in range(LANES):
            book.scale[w] = where(book.budget[w] < book.cost[w], book.budget[w] / book.cost[w], 1.0)
    for a in range(p.n_assets):
        coin, order, asset = position_at(coins, a), order_at(orders, a), asset_at(p.assets, a)
        min_qty, step = asset.min_qty, asset.qty_increment
        if is_sequential:  # each buy reduces the cash of the next one
            spendable_cash(book, p)
            for w in range(LANES):
                book.affordable[w] = coins_for(book.budget[w], order.price[w] * unit_rate, whole_coins)
            for w in range(LANES):
                price, wanted, affordable = order.price[w], order.wanted[w], book.affordable[w]
                filled = where(affordable < wanted, affordable, wanted)
                execute_purchases(
                    w, book, coin, filled, price, min_qty, min_order_notional, buy_fee_rate, slippage_rate
                )
        else:
            for w in range(LANES):
                filled, price = whole_increments(order.wanted[w] * book.scale[w], step), order.price[w]
                execute_purchases(
                    w, book, coin, filled, price, min_qty, min_order_notional, buy_fee_rate, slippage_rate
                )


@native
def execute_purchases(
    w: int, book: Record, coin: Record, filled: float, price: float, min_qty: float, min_order_notional: float,
    buy_fee_rate: float, slippage_rate: float,
) -> None:  # fmt: skip
    """Add `filled` coins, unless limited cash reduced the order below the minimum."""
    qty = coin.qty[w]
    is_kept = (filled > 0) & (filled >= min_qty) & (filled * price >= min_order_notional)
    bought, fill = where(is_kept, filled, 0.0), price * (1.0 + slippage_rate)
    cash = book.cash[w] - bought * (fill * (1.0 + buy_fee_rate))
    book.cash[w] = where(cash > 0, cash, 0.0)  # only removes rounding errors
    coin.high[w] = where(is_kept & (qty == 0), price, coin.high[w])
    coin.qty[w] = qty + bought
    coin.filled[w] += bought
    book_trades(w, book, bought, price, fill * buy_fee_rate, slippage_rate)


@native
def coins_for(budget: float, unit_cost: float, whole_coins: bool) -> float:
    """Return the coins that a budget buys; whole coins as in Python's //."""
    if whole_coins:  # the same for all lanes, so a branch instead of a mask
        return budget // unit_cost
    return budget / unit_cost


@native
def spendable_cash(book: Record, p: Record) -> None:
    """Set book.budget."""
    of_equity, initial_capital = p.reserve_base == CHOICE.reserve_base.equity, p.initial_capital
    min_cash_reserve, cash_haircut = p.min_cash_reserve, p.cash_haircut
    for w in range(LANES):
        base = where(of_equity, book.equity_at_fill[w], initial_capital)
        budget = book.cash[w] - min_cash_reserve * base
        book.budget[w] = where(budget > 0, budget, 0.0) * cash_haircut


@native
def book_trades(
    w: int, book: Record, quantity: float, price: float, fee_per_coin: float, slippage_rate: float
) -> None:  # fmt: skip
    """Add one fill to the step's totals; a quantity of 0 adds nothing."""
    notional = quantity * price
    book.trades[w] += 1 if quantity > 0 else 0
    book.fees[w] += quantity * fee_per_coin
    book.slippage[w] += notional * slippage_rate
    book.turnover[w] += notional
