# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""One bar of the numba step: the phases of the plain `step` in the same order, for one block of accounts at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import drop_in
from .episodes import restart
from .memory import (
    LANES,
    ORDER_BYTES,
    POSITION_BYTES,
    REJECTED,
    Array,
    Record,
    account_at,
    cached,
    native,
    order_at,
    position_at,
    room_on_stack,
    rules_at,
    sources,
    store,
    where,
)
from .observation import observe, prefetch_windows
from .orders import (
    accept_actions,
    cap_positions,
    execute_buys,
    execute_sells,
    execute_trailing_stops,
    order_quantities,
    release_stale,
)
from .reward import account_value, mark_to_market, reward_terms
from .tables import CHOICE, COUNT, REPORT

N_REPORTED = len(drop_in.REPORTED)


def step_of(version: int) -> Any:
    """Return the compiled step. If a cache folder is writable, the step is cached on disk by version."""

    def step_blocks(
        first: int, end: int, action: int, state: int, reward: int, done: int, final_state: int, truncated: int,
        counted: int, money: Array, price: Array, scale: Array, counts: Array, rules: int,
    ) -> None:  # fmt: skip
        """Advance blocks first .. end - 1 one bar: stops, sells, releases, buys, then mark to market.

        action (N, A) float32, state and final_state (N, S) float32, reward (N,) float32, done and truncated (N,) bool
        are passed as addresses of tensors, and rules as the address of a RULES record. price is (T, A), scale (G, A).
        For B blocks, stored by rows: counted (COUNTED, 16 B) int64, passed by address; money (REPORTED and the terms,
        16 B); counts (2, 16 B) int64.
        """
        _ = version  # captured, and therefore part of the disk cache key
        p = rules_at(rules, 0)
        orders = room_on_stack(p.n_assets * ORDER_BYTES)
        for block in range(first, end):
            book, coins = account_at(p.accounts, block), p.positions + block * p.n_assets * POSITION_BYTES
            i = block * LANES
            n = min(LANES, p.n_envs - i)
            if block + 1 < end and not p.compact:
                prefetch_windows(account_at(p.accounts, block + 1), p)
            accept_actions(i, n, action, orders, counts, p)
            begin_bar(n, book, coins, orders, price, p)

            if p.trailing_stop_pct > 0:
                execute_trailing_stops(book, coins, orders, p)
            account_value(book, coins, orders, p)  # before any order of this bar
            order_quantities(book, coins, orders, p)
            if p.max_position_weight > 0:
                cap_positions(book, coins, orders, p)
            execute_sells(book, coins, orders, p)
            if p.stale_bars > 0:
                release_stale(book, coins, orders, p)
            execute_buys(book, coins, orders, p)

            mark_to_market(book, coins, orders, p)
            reward_terms(i, n, book, coins, orders, money[N_REPORTED:], p)
            end_bar(book, p)

            report(i, n, reward, done, truncated, counted, money, book, counts, p)
            restart(i, n, final_state, book, coins, orders, price, scale, counts, p)
            observe(i, n, state, book, coins, orders, p)

    return cached(step_blocks, _nrt=False, nogil=True, error_model="numpy")


@native
def begin_bar(n: int, book: Record, coins: int, orders: int, price: Array, p: Record) -> None:
    """Advance the clock, load the prices of the new bar, and reset the step's totals."""
    before = book.before
    for w in range(LANES):
        before.equity[w], before.benchmark[w] = book.equity[w], book.benchmark[w]
        before.max_drawdown[w] = book.max_drawdown[w]
        book.trades[w], book.fees[w], book.slippage[w], book.turnover[w] = 0, 0.0, 0.0, 0.0
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        for w in range(LANES):
            coin.held_bars[w] += 1 if coin.qty[w] > 0 else 0
            coin.filled[w] = 0.0
            order.price[w] = 0.0  # stays 0 in lanes without an account
    last = p.n_bars - 1
    for w in range(n):
        book.bar[w] = min(book.bar[w] + 1, last)  # an account whose episode has ended waits there for its reset
        for a in range(p.n_assets):
            order_at(orders, a).price[w] = price[book.bar[w], a]


@native
def end_bar(book: Record, p: Record) -> None:
    """Determine which episodes end, and set their final rewards."""
    truncates, restarts, gamma = p.truncates, p.restarts, p.gamma
    least = p.terminal_equity_fraction * p.initial_capital
    for w in range(LANES):
        is_ruined = (book.equity[w] <= least) & truncates
        at_end = book.bar[w] >= book.last_bar[w]
        is_over = at_end | is_ruined
        book.newly_over[w] = 1 if is_over & (restarts | (book.is_over[w] == 0)) else 0
        book.is_over[w] = 1 if is_over else 0
        book.truncated[w] = 1 if at_end & (not is_ruined) & truncates else 0
    if p.final_reward == CHOICE.final_reward.discounted_return:
        for w in range(LANES):
            book.discounted_return[w] = gamma * book.discounted_return[w] + book.reward[w]
            book.reward[w] = where(book.is_over[w] != 0, book.discounted_return[w], book.reward[w])


@native
def report(
    i: int, n: int, reward: int, done: int, truncated: int, counted: int, money: Array, book: Record, counts: Array,
    p: Record,
) -> None:  # fmt: skip
    """Write the results of a step other than the states, before a restart overwrites them."""
    initial_capital, width = p.initial_capital, counts.shape[1]
    for w in range(LANES):
        money[REPORT.equity, i + w], money[REPORT.benchmark_equity, i + w] = book.equity[w], book.benchmark[w]
        money[REPORT.episode_return, i + w] = book.equity[w] / initial_capital
    for w in range(LANES):
        money[REPORT.fees, i + w], money[REPORT.slippage, i + w] = book.fees[w], book.slippage[w]
        money[REPORT.turnover, i + w] = book.turnover[w]
        store(counted, COUNT.rejected_actions * width + i + w, counts[REJECTED, i + w])
        store(counted, COUNT.trades * width + i + w, book.trades[w])
    for w in range(n):
        store(reward, i + w, np.float32(book.reward[w]))
        store(done, i + w, book.is_over[w])
        store(truncated, i + w, book.truncated[w])


step = step_of(sources())
