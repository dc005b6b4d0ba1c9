# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Clock, observation, end and beginning of episodes of the native step, as in the plain file."""

from __future__ import annotations

import numpy as np

from .memory import (
    LANES,
    Array,
    Record,
    copy_bytes,
    native,
    position_at,
    prefetch,
    segment_at,
    store_f4,
    store_i8,
    store_u1,
    where,
)


@native
def begin_bar(n: int, b: Record, coins: int, price: Array, p: Record) -> None:
    """The clock goes on, the prices are the new bar's, nothing is traded yet."""
    for w in range(LANES):
        b.equity_before[w], b.benchmark_before[w] = b.equity[w], b.benchmark[w]
        b.drawdown_before[w] = b.max_drawdown[w]
        b.trades[w], b.fees[w], b.slippage[w], b.turnover[w] = 0, 0.0, 0.0, 0.0
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        for w in range(LANES):
            coin.held_bars[w] += 1 if coin.qty[w] > 0 else 0
            coin.filled[w] = 0.0
    last = p.n_bars - 1
    for w in range(n):
        b.bar[w] = min(b.bar[w] + 1, last)  # an account whose episode is over waits there for its reset
        for a in range(p.n_assets):
            position_at(coins, a).price[w] = price[b.bar[w], a]


@native
def show_accounts(b: Record, coins: int, p: Record) -> None:
    """b.shown_cash and coin.shown: the account's part of an observation."""
    is_absolute, norm_cash, norm_stocks, floor = p.observes_absolute, p.norm_cash, p.norm_stocks, p.equity_floor
    floor = floor * p.initial_capital
    if is_absolute:
        for w in range(LANES):
            b.shown_cash[w] = b.cash[w] * norm_cash
    else:
        for w in range(LANES):
            b.shown_cash[w] = b.cash[w] / where(b.equity[w] > floor, b.equity[w], floor)
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        if is_absolute:
            for w in range(LANES):
                coin.shown[w] = coin.qty[w] * norm_stocks
        else:
            for w in range(LANES):
                coin.shown[w] = coin.qty[w] * coin.price[w] / where(b.equity[w] > floor, b.equity[w], floor)


@native
def prefetch_windows(b: Record, p: Record) -> None:
    """Ask for the features that a block will see next: those of thousands of accounts leave the near caches."""
    for w in range(LANES):
        window = p.features + (p.n_bars - 2 - b.bar[w]) * p.feature_bytes
        for line in range(p.window_bytes // 64 + 1):
            prefetch(window + 64 * line)


@native
def observe(w: int, at: int, b: Record, coins: int, p: Record) -> None:
    """Write lane w's row (S,) float32 at the address `at`: account, L rows of features newest first, extras."""
    n_assets, bar = p.n_assets, b.bar[w]
    store_f4(at, 0, b.shown_cash[w])
    for a in range(n_assets):
        store_f4(at, 1 + a, position_at(coins, a).shown[w])
    at += 4 * (1 + n_assets)
    if not p.compact:
        copy_bytes(at, p.features + (p.n_bars - 1 - bar) * p.feature_bytes, p.window_bytes)
        at += p.window_bytes
    if p.observe_account:
        store_f4(at, 0, (bar - b.first_bar[w]) / (b.last_bar[w] - b.first_bar[w]))
        store_f4(at, 1, 1.0 - b.equity[w] / b.peak[w])
        for a in range(n_assets):
            store_f4(at, 2 + a, position_at(coins, a).held_bars[w] * p.held_bars_scale)
        at += 4 * (2 + n_assets)
    if p.compact:
        store_f4(at, 0, bar)


@native
def hash32(seed: int, env: int, episode: int) -> np.int64:
    """As the plain hash32, for one environment."""
    x = np.int64(0)
    for word in (np.int64(seed), np.int64(env), np.int64(episode)):
        x = (x + word + np.int64(0x9E3779B9)) & np.int64(0xFFFFFFFF)
        x = ((x ^ (x >> 16)) * np.int64(0x7FEB352D)) & np.int64(0xFFFFFFFF)
        x = ((x ^ (x >> 15)) * np.int64(0x846CA68B)) & np.int64(0xFFFFFFFF)
        x = x ^ (x >> 16)
    return x


@native
def draw_start(i: int, w: int, b: Record, counts: Array, p: Record) -> None:
    """Set b.segment and b.first_bar of lane w, environment i, for its episode's number."""
    episode = counts[0, i]
    if p.start == 0:
        b.segment[w] = segment_at(p.segments, (i + episode) % p.n_usable).usable
        b.first_bar[w] = segment_at(p.segments, b.segment[w]).first_start
        return
    low, width = 0, p.n_starts
    if p.start == 2:
        low = i * p.n_starts // p.n_envs
        width = max((i + 1) * p.n_starts // p.n_envs - low, 1)
    k = low + ((hash32(p.seed, i, episode) * width) >> 32)
    segment = 0
    while segment + 1 < p.n_segments and segment_at(p.segments, segment + 1).starts_before <= k:
        segment += 1
    chosen = segment_at(p.segments, segment)
    b.segment[w], b.first_bar[w] = segment, chosen.first_start + k - chosen.starts_before


@native
def open_portfolio(
    i: int, w: int, b: Record, coins: int, price: Array, scale: Array, counts: Array, p: Record
) -> None:
    """A fresh account in lane w at a new start, holding cash only."""
    draw_start(i, w, b, counts, p)
    segment, first_bar = segment_at(p.segments, b.segment[w]), b.first_bar[w]
    b.bar[w], b.last_bar[w] = first_bar, segment.limit
    if p.episode_bars > 0:
        b.last_bar[w] = min(segment.limit, first_bar + p.episode_bars)
    base_price = price[first_bar if p.benchmark_of_episode else segment.first]
    n_priced = 0
    for base in base_price:
        n_priced += base > 0
    share = p.initial_capital / max(n_priced, 1)
    fee = 1.0 + p.benchmark_fee_rate
    b.cash[w], b.equity[w], b.peak[w], b.benchmark[w] = p.initial_capital, p.initial_capital, p.initial_capital, 0.0
    b.max_drawdown[w], b.discounted_return[w] = 0.0, 0.0
    b.trades[w], b.fees[w], b.slippage[w], b.turnover[w] = 0, 0.0, 0.0, 0.0
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        coin.qty[w], coin.held_bars[w], coin.high[w], coin.filled[w] = 0.0, 0, 0.0, 0.0
        coin.price[w] = price[first_bar, a]
        coin.order_scale[w] = scale[b.segment[w], a]
        coin.benchmark_qty[w] = share / (base_price[a] * fee) if base_price[a] > 0 else 0.0
        b.benchmark[w] += coin.benchmark_qty[w] * coin.price[w]


@native
def report(i: int, b: Record, counts: Array, counted: int, money: Array, p: Record) -> None:
    """Copy what `info` shows before a restart overwrites it: COUNTED, and REPORTED, the first rows of money."""
    initial_capital, width = p.initial_capital, counts.shape[1]
    for w in range(LANES):
        money[0, i + w], money[1, i + w] = b.equity[w], b.benchmark[w]
        money[2, i + w] = b.equity[w] / initial_capital
    for w in range(LANES):
        money[3, i + w], money[4, i + w], money[5, i + w] = b.fees[w], b.slippage[w], b.turnover[w]
        store_i8(counted, i + w, counts[1, i + w])
        store_i8(counted, width + i + w, b.trades[w])


@native
def keep_ended(w: int, b: Record, coins: int, p: Record) -> None:
    """Keep what hosts read of an account after its last step."""
    b.final_cash[w], b.final_equity[w], b.final_bar[w] = b.cash[w], b.equity[w], b.bar[w]
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        coin.final_qty[w], coin.final_filled[w] = coin.qty[w], coin.filled[w]


@native
def finish(
    i: int, n: int, state: int, reward: int, done: int, final_state: int, truncated: int, b: Record, coins: int,
    price: Array, scale: Array, counts: Array, p: Record,
) -> None:  # fmt: skip
    """Tell how the bar ended, restart the accounts whose episode is over, and write what all of them see."""
    truncates, discounts, gamma = p.truncates, p.discounts_final_reward, p.gamma
    ruin = p.terminal_equity_fraction * p.initial_capital
    for w in range(LANES):
        is_ruined = truncates & (b.equity[w] <= ruin)
        at_end = b.bar[w] >= b.last_bar[w]
        b.was_over[w] = b.is_over[w]
        b.is_over[w] = 1 if at_end | is_ruined else 0
        b.is_truncated[w] = 1 if truncates & at_end & (not is_ruined) else 0
    if discounts:
        for w in range(LANES):
            b.discounted_return[w] = gamma * b.discounted_return[w] + b.reward[w]
            b.reward[w] = where(b.is_over[w] != 0, b.discounted_return[w], b.reward[w])
    n_over = 0
    for w in range(n):
        store_f4(reward, i + w, b.reward[w])
        store_u1(done, i + w, b.is_over[w])
        store_u1(truncated, i + w, b.is_truncated[w])
        n_over += b.is_over[w]
    row_bytes = 4 * p.state_dim
    show_accounts(b, coins, p)
    if n_over > 0:
        for w in range(n):
            if b.is_over[w] and (p.restarts or not b.was_over[w]):
                keep_ended(w, b, coins, p)
    if n_over > 0 and p.restarts:
        for w in range(n):
            if b.is_over[w]:
                observe(w, final_state + (i + w) * row_bytes, b, coins, p)
                counts[0, i + w] += 1
                open_portfolio(i + w, w, b, coins, price, scale, counts, p)
        show_accounts(b, coins, p)
    for w in range(n):
        observe(w, state + (i + w) * row_bytes, b, coins, p)
