# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Start and restart of episodes in the numba step, as in the plain file."""

from __future__ import annotations

import numpy as np

from .memory import EPISODE, Array, Record, native, order_at, position_at, segment_at
from .observation import observe_one, show_accounts
from .tables import CHOICE


@native
def hash32(seed: int, env: int, episode: int) -> np.int64:
    """Return the plain hash32 for one environment."""
    x = np.int64(0)
    for word in (np.int64(seed), np.int64(env), np.int64(episode)):
        x = (x + word + np.int64(0x9E3779B9)) & np.int64(0xFFFFFFFF)
        x = ((x ^ (x >> 16)) * np.int64(0x7FEB352D)) & np.int64(0xFFFFFFFF)
        x = ((x ^ (x >> 15)) * np.int64(0x846CA68B)) & np.int64(0xFFFFFFFF)
        x = x ^ (x >> 16)
    return x


@native
def draw_starts(env: int, w: int, book: Record, counts: Array, p: Record) -> None:
    """Set book.segment and book.first_bar of lane w for its episode number."""
    episode = counts[EPISODE, env]
    if p.start == CHOICE.start.first:  # environment i starts in segment i and moves to the next one after each episode
        book.segment[w] = segment_at(p.segments, (env + episode) % p.n_usable).usable_segment
        book.first_bar[w] = segment_at(p.segments, book.segment[w]).first_start
        return
    low, width = 0, p.n_starts
    if p.start == CHOICE.start.stratified:  # environment i draws from the i-th of N equal parts of all starts
        low = env * p.n_starts // p.n_envs
        width = max((env + 1) * p.n_starts // p.n_envs - low, 1)
    k = low + ((hash32(p.seed, env, episode) * width) >> 32)
    segment = 0
    while segment + 1 < p.n_segments and segment_at(p.segments, segment + 1).start_offset <= k:
        segment += 1
    chosen = segment_at(p.segments, segment)
    book.segment[w], book.first_bar[w] = segment, chosen.first_start + k - chosen.start_offset


@native
def open_portfolio(w: int, book: Record, coins: int, orders: int, price: Array, scale: Array, p: Record) -> None:
    """Open a new account in lane w at its first_bar, with cash only."""
    segment, first_bar = segment_at(p.segments, book.segment[w]), book.first_bar[w]
    book.bar[w], book.last_bar[w] = first_bar, segment.episode_limit
    if p.episode_bars > 0:
        book.last_bar[w] = min(segment.episode_limit, first_bar + p.episode_bars)
    of_segment = p.benchmark_base == CHOICE.benchmark_base.segment
    base_price = price[segment.segment_first if of_segment else first_bar]
    n_priced = 0
    for base in base_price:
        n_priced += base > 0
    fee = 1.0 + p.buy_fee_rate * p.benchmark_pays_fee  # the full fee, independent of the step's costs
    share, capital = p.initial_capital / max(n_priced, 1), p.initial_capital
    book.cash[w], book.equity[w], book.peak[w], book.benchmark[w] = capital, capital, capital, 0.0
    book.max_drawdown[w], book.discounted_return[w] = 0.0, 0.0
    book.trades[w], book.fees[w], book.slippage[w], book.turnover[w] = 0, 0.0, 0.0, 0.0
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        coin.qty[w], coin.held_bars[w], coin.high[w], coin.filled[w] = 0.0, 0, 0.0, 0.0
        order.price[w], coin.order_scale[w] = price[first_bar, a], scale[book.segment[w], a]
        coin.benchmark_qty[w] = share / (base_price[a] * fee) if base_price[a] > 0 else 0.0
        book.benchmark[w] += coin.benchmark_qty[w] * order.price[w]


@native
def keep_ended(w: int, book: Record, coins: int, p: Record) -> None:
    """Store the values that hosts read from an account after its last step."""
    book.final_cash[w], book.final_equity[w], book.final_bar[w] = book.cash[w], book.equity[w], book.bar[w]
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        coin.final_qty[w], coin.final_filled[w] = coin.qty[w], coin.filled[w]


@native
def restart(
    i: int, n: int, final_state: int, book: Record, coins: int, orders: int, price: Array, scale: Array, counts: Array,
    p: Record,
) -> None:  # fmt: skip
    """Store the accounts whose episode just ended, output their last state, and open new accounts if p.restarts."""
    n_over = 0
    for w in range(n):
        n_over += book.newly_over[w]
    if n_over == 0:
        return
    show_accounts(book, coins, orders, p)
    for w in range(n):
        if book.newly_over[w]:
            keep_ended(w, book, coins, p)
            if p.restarts:
                observe_one(w, final_state + (i + w) * 4 * p.state_dim, book, coins, p)
                counts[EPISODE, i + w] += 1
                draw_starts(i + w, w, book, counts, p)
                open_portfolio(w, book, coins, orders, price, scale, p)
