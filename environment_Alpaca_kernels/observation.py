# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Observation of the numba step, as in the plain file."""

from __future__ import annotations

import numpy as np

from . import drop_in
from .memory import LANES, Record, copy_bytes, native, order_at, position_at, prefetch, store, where
from .tables import CHOICE

EQUITY_FLOOR, HELD_BARS_SCALE = drop_in.EQUITY_FLOOR, drop_in.HELD_BARS_SCALE


@native
def prefetch_windows(book: Record, p: Record) -> None:
    """Prefetch the features of a block's next bars. With thousands of accounts, they exceed the fastest caches."""
    for w in range(LANES):
        window = p.features + (p.n_bars - 2 - book.bar[w]) * p.feature_bytes
        for line in range(p.window_bytes // 64 + 1):
            prefetch(window + 64 * line)


@native
def observe(i: int, n: int, state: int, book: Record, coins: int, orders: int, p: Record) -> None:
    """Write the rows (S,) float32 of a block's accounts to the address `state`."""
    show_accounts(book, coins, orders, p)
    for w in range(n):
        observe_one(w, state + (i + w) * 4 * p.state_dim, book, coins, p)


@native
def show_accounts(book: Record, coins: int, orders: int, p: Record) -> None:
    """Set book.shown_cash and coin.shown."""
    norm_cash, norm_stocks, floor = p.norm_cash, p.norm_stocks, EQUITY_FLOOR * p.initial_capital
    is_absolute = p.observation == CHOICE.observation.absolute
    if is_absolute:
        for w in range(LANES):
            book.shown_cash[w] = book.cash[w] * norm_cash
    else:
        for w in range(LANES):
            book.shown_cash[w] = book.cash[w] / where(book.equity[w] > floor, book.equity[w], floor)
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        if is_absolute:
            for w in range(LANES):
                coin.shown[w] = coin.qty[w] * norm_stocks
        else:
            for w in range(LANES):
                equity = where(book.equity[w] > floor, book.equity[w], floor)
                coin.shown[w] = coin.qty[w] * order.price[w] / equity


@native
def observe_one(w: int, row: int, book: Record, coins: int, p: Record) -> None:
    """Write the row of lane w at the address `row`: account, L rows of features newest first, extras."""
    n_assets, bar = p.n_assets, book.bar[w]
    store(row, 0, book.shown_cash[w])
    for a in range(n_assets):
        store(row, 1 + a, position_at(coins, a).shown[w])
    row += 4 * (1 + n_assets)
    if not p.compact:
        copy_bytes(row, p.features + (p.n_bars - 1 - bar) * p.feature_bytes, p.window_bytes)
        row += p.window_bytes
    if p.observe_account:
        progress = (bar - book.first_bar[w]) / (book.last_bar[w] - book.first_bar[w])
        store(row, 0, np.float32(progress))
        store(row, 1, np.float32(1.0 - book.equity[w] / book.peak[w]))
        for a in range(n_assets):
            store(row, 2 + a, np.float32(position_at(coins, a).held_bars[w] * HELD_BARS_SCALE))
        row += 4 * (2 + n_assets)
    if p.compact:
        store(row, 0, np.float32(bar))
