# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Orders and fills of the native step: order_quantities ... execute_buys, as in the plain file."""

from __future__ import annotations

import math

import numpy as np

from .memory import LANES, ORDER_SIZINGS, Array, Record, asset_at, load_f4, native, position_at, where

INITIAL_CAPITAL, EQUITY = ORDER_SIZINGS.index("initial_capital"), ORDER_SIZINGS.index("equity")


@native
def order_quantities(i: int, n: int, action_at: int, b: Record, coins: int, counts: Array, p: Record) -> None:
    """Fill coin.order_qty; a non-finite action is a hold."""
    n_assets = p.n_assets
    for w in range(n):
        row, is_valid = (i + w) * n_assets, True
        for a in range(n_assets):
            is_valid = is_valid and math.isfinite(load_f4(action_at, row + a))
        counts[1, i + w] += not is_valid
        for a in range(n_assets):
            position_at(coins, a).order_qty[w] = load_f4(action_at, row + a) if is_valid else np.float32(0.0)
    sizing, norm_action, limit = p.order_sizing, p.norm_action, float(np.float32(p.action_limit))
    if limit < np.inf:
        for a in range(n_assets):
            coin = position_at(coins, a)
            for w in range(LANES):
                cut = where(coin.order_qty[w] > limit, limit, coin.order_qty[w])
                coin.order_qty[w] = where(cut < -limit, -limit, cut)
    for a in range(n_assets):
        coin = position_at(coins, a)
        if sizing == EQUITY:
            for w in range(LANES):
                per_unit = b.equity_at_fill[w] / (coin.price[w] * norm_action)
                coin.order_qty[w] = where(coin.price[w] > 0, coin.order_qty[w] * per_unit, 0.0)
        elif sizing == INITIAL_CAPITAL:  # in float32, as the host computes it
            for w in range(LANES):
                coin.order_qty[w] = np.float32(coin.order_qty[w]) * np.float32(coin.order_scale[w])
        else:
            for w in range(LANES):
                coin.order_qty[w] = coin.order_qty[w] * coin.order_scale[w]


@native
def cap_positions(b: Record, coins: int, p: Record) -> None:
    """Cut buys to max_position_weight of the account."""
    max_weight = p.max_position_weight
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        for w in range(LANES):
            room = max_weight * b.equity_at_fill[w] / coin.price[w] - coin.qty[w]
            room = where((coin.price[w] > 0) & (room > 0), room, 0.0)
            coin.order_qty[w] = where(coin.order_qty[w] < room, coin.order_qty[w], room)


@native
def whole_increments(quantity: float, increment: float, slack: float) -> float:
    """Quantity cut to the venue's step; a huge order stays as it is."""
    if increment > 0:  # the same for all lanes: a branch, not a mask
        # np.floor: math.floor makes an int64 here, which 1e10 coins in steps of 1e-9 overflow.
        return where(abs(quantity) < np.inf, np.floor(quantity / increment + slack) * increment, quantity)
    return quantity


@native
def is_large_enough(quantity: float, price: float, min_qty: float, min_notional: float) -> bool:
    """Whether the venue takes an order of this size."""
    return (quantity > min_qty) & (quantity * price >= min_notional)


@native
def execute_trailing_stops(b: Record, coins: int, p: Record) -> None:
    """Sell whole positions that fell too far from their high."""
    kept, fee_rate, slippage_rate = 1.0 - p.trailing_stop_pct, p.sell_fee_rate, p.slippage_rate
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        for w in range(LANES):
            price, is_held = coin.price[w], coin.qty[w] > 0
            high = where(is_held & (price > coin.high[w]), price, coin.high[w])
            coin.high[w] = high
            is_stopped = is_held & (price > 0) & (price < high * kept)
            execute_sale(w, b, coin, where(is_stopped, coin.qty[w], 0.0), fee_rate, slippage_rate)


@native
def execute_sells(b: Record, coins: int, p: Record) -> None:
    """Sell what the orders ask for, at most the position."""
    fee_rate, slippage_rate, may_close = p.sell_fee_rate, p.slippage_rate, p.always_allow_close
    slack, min_notional = p.increment_slack, p.min_order_notional
    for a in range(p.n_assets):
        coin, asset = position_at(coins, a), asset_at(p.assets, a)
        min_qty, increment = asset.min_qty, asset.qty_increment
        for w in range(LANES):
            price, qty, order = coin.price[w], coin.qty[w], -coin.order_qty[w]
            wanted = whole_increments(order, increment, slack)
            closes = may_close & (order >= qty)
            is_large = is_large_enough(wanted, price, min_qty, min_notional)
            is_sold = (order > 0) & (qty > 0) & (price > 0) & (is_large | closes)
            sold = where(closes | (qty < wanted), qty, wanted)
            execute_sale(w, b, coin, where(is_sold, sold, 0.0), fee_rate, slippage_rate)


@native
def release_stale(b: Record, coins: int, p: Record) -> None:
    """Sell a fraction of every position held too long, or all where the venue wants more."""
    fee_rate, slippage_rate, obeys_venue = p.sell_fee_rate, p.slippage_rate, p.always_allow_close
    slack, min_notional = p.increment_slack, p.min_order_notional
    stale_bars, fraction, release_unpriced = p.stale_bars, p.stale_fraction, p.release_unpriced
    for a in range(p.n_assets):
        coin, asset = position_at(coins, a), asset_at(p.assets, a)
        min_qty, increment = asset.min_qty, asset.qty_increment
        for w in range(LANES):
            price, part = coin.price[w], coin.qty[w] * fraction
            whole = whole_increments(part, increment, slack)
            whole = where(is_large_enough(whole, price, min_qty, min_notional), whole, coin.qty[w])
            is_stale = (coin.held_bars[w] >= stale_bars) & ((price > 0) | release_unpriced)
            released = where(is_stale, where(obeys_venue, whole, part), 0.0)
            execute_sale(w, b, coin, released, fee_rate, slippage_rate)


@native
def execute_sale(w: int, b: Record, coin: Record, sold: float, fee_rate: float, slippage_rate: float) -> None:
    """Take `sold` coins out at the close less slippage and fee; a position's clock starts again."""
    is_sold, fill = sold > 0, coin.price[w] * (1.0 - slippage_rate)
    qty = coin.qty[w] - sold
    coin.qty[w] = qty
    coin.filled[w] -= sold
    b.cash[w] += sold * fill * (1.0 - fee_rate)
    coin.held_bars[w] = 0 if is_sold else coin.held_bars[w]
    coin.high[w] = where(is_sold & (qty == 0), 0.0, coin.high[w])
    book_trade(w, b, sold, coin.price[w], fill * fee_rate, slippage_rate)


@native
def book_trade(w: int, b: Record, quantity: float, price: float, fee_per_coin: float, slippage_rate: float) -> None:
    """Count one fill, or none where quantity is 0, in the step's totals."""
    notional = quantity * price
    b.trades[w] += 1 if quantity > 0 else 0
    b.fees[w] += quantity * fee_per_coin
    b.slippage[w] += notional * slippage_rate
    b.turnover[w] += notional


@native
def execute_buys(b: Record, coins: int, p: Record) -> None:
    """Asset by asset in the hosts' rules, all scaled together when cash is short in "standard"."""
    slack, min_notional = p.increment_slack, p.min_order_notional
    unit_rate = (1.0 + p.slippage_rate) * (1.0 + p.buy_fee_rate)
    for w in range(LANES):
        b.cost[w] = 0.0
    for a in range(p.n_assets):
        coin, asset = position_at(coins, a), asset_at(p.assets, a)
        min_qty, increment = asset.min_qty, asset.qty_increment
        for w in range(LANES):
            wanted = whole_increments(coin.order_qty[w], increment, slack)
            is_order = (coin.price[w] > 0) & is_large_enough(wanted, coin.price[w], min_qty, min_notional)
            coin.order_qty[w] = where(is_order, wanted, 0.0)
            b.cost[w] += coin.order_qty[w] * (coin.price[w] * unit_rate)
    if p.buys_sequentially:
        buy_in_turn(b, coins, unit_rate, p)
    else:
        buy_together(b, coins, p)


@native
def buy_in_turn(b: Record, coins: int, unit_rate: float, p: Record) -> None:
    """Each buy spends cash that the next one sees."""
    whole_coins = p.whole_coins
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        spendable_cash(b, p)
        for w in range(LANES):
            affordable = coins_for(b.budget[w], coin.price[w] * unit_rate, whole_coins)
            coin.order_qty[w] = where(affordable < coin.order_qty[w], affordable, coin.order_qty[w])
        execute_purchases(b, coin, asset_at(p.assets, a), p)


@native
def coins_for(budget: float, unit_cost: float, whole_coins: bool) -> float:
    """Coins that a budget pays for; whole ones as Python's // counts them."""
    if whole_coins:  # the same for all lanes: a branch, not a mask
        return budget // unit_cost
    return budget / unit_cost


@native
def buy_together(b: Record, coins: int, p: Record) -> None:
    """One factor for all buys of an account that is short of cash."""
    slack = p.increment_slack
    spendable_cash(b, p)
    for a in range(p.n_assets):
        coin, increment = position_at(coins, a), asset_at(p.assets, a).qty_increment
        for w in range(LANES):
            scale = where(b.budget[w] < b.cost[w], b.budget[w] / b.cost[w], 1.0)
            coin.order_qty[w] = whole_increments(coin.order_qty[w] * scale, increment, slack)
    for a in range(p.n_assets):
        execute_purchases(b, position_at(coins, a), asset_at(p.assets, a), p)


@native
def spendable_cash(b: Record, p: Record) -> None:
    """b.budget: quote that buys may use, reserve kept."""
    of_equity, initial_capital = p.reserve_of_equity, p.initial_capital
    reserve, haircut = p.min_cash_reserve, p.cash_haircut
    for w in range(LANES):
        budget = b.cash[w] - reserve * where(of_equity, b.equity_at_fill[w], initial_capital)
        b.budget[w] = where(budget > 0, budget, 0.0) * haircut


@native
def execute_purchases(b: Record, coin: Record, asset: Record, p: Record) -> None:
    """Add coin.order_qty, except where what the cash left of an order is below the minimum."""
    min_qty, min_notional = asset.min_qty, p.min_order_notional
    fee_rate, slippage_rate = p.buy_fee_rate, p.slippage_rate
    for w in range(LANES):
        filled, price, qty = coin.order_qty[w], coin.price[w], coin.qty[w]
        fill = price * (1.0 + slippage_rate)
        is_kept = (filled > 0) & (filled >= min_qty) & (filled * price >= min_notional)
        bought = where(is_kept, filled, 0.0)
        cash = b.cash[w] - bought * (fill * (1.0 + fee_rate))
        b.cash[w] = where(cash > 0, cash, 0.0)  # rounding only
        coin.high[w] = where(is_kept & (qty == 0), price, coin.high[w])
        coin.qty[w] = qty + bought
        coin.filled[w] += bought
        book_trade(w, b, bought, price, fill * fee_rate, slippage_rate)
