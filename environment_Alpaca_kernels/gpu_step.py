# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""One step as a Triton kernel: memory, the bar, observation, episodes; launched by gpu.py.

A program handles `block` environments, and lanes after the last environment are masked. Coin arrays are (N, A) in
memory, so that a tile is contiguous. Memory is addressed by 32-bit offsets from the program's first environment.
"""

# Compiled functions are Python only in syntax, so type checkers cannot infer their types.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any, NamedTuple

import triton.language as tl

from . import drop_in
from .gpu_rules import (
    COINS,
    COUNTS,
    EQUITY_FLOOR,
    MONEY,
    Account,
    Books,
    Lane,
    Lanes,
    Market,
    Marks,
    Number,
    Numbers,
    Pointer,
    Tile,
    Traded,
    Venue,
    Whole,
    account_value,
    cap_positions,
    execute_buys,
    execute_sells,
    execute_trailing_stops,
    jit,
    mark_to_market,
    order_quantities,
    release_stale,
    reward_terms,
)

HELD_BARS_SCALE = tl.constexpr(drop_in.HELD_BARS_SCALE)
N_REPORTED = tl.constexpr(len(drop_in.REPORTED))
N_NUMBERS, N_WHOLE = tl.constexpr(len(Numbers._fields)), tl.constexpr(len(Whole._fields))
N_COUNTS, N_MONEY, N_COINS = tl.constexpr(len(COUNTS)), tl.constexpr(len(MONEY)), tl.constexpr(len(COINS))


class Memory(NamedTuple):
    """Account state as rows of N environments."""

    counts: Any  # rows of COUNTS, N int64
    money: Any  # rows of MONEY, N float64
    coins: Any  # rows of COINS, (N, A) float64
    held_bars: Any  # (N, A) int64


class Outputs(NamedTuple):
    """Outputs of a step."""

    state: Any  # (N, S) float32
    reward: Any  # (N,) float32
    done: Any  # (N,) bool
    final_state: Any  # (N, S) float32, written where done
    truncated: Any  # (N,) bool
    counts: Any  # rows of COUNTED, N int64
    money: Any  # rows of REPORTED, then terms of the reward, N float64


class Clock(NamedTuple):
    """Position of an episode in time."""

    bar: Lane
    first_bar: Lane
    last_bar: Lane


# ---------------------------------------------------------------------------------------------- memory
@jit
def loaded(at: Pointer, n: tl.constexpr) -> tuple[Number, ...]:
    """Load n settings from an address; the compiler removes unused loads."""
    values = ()
    for k in tl.static_range(n):
        values = values + (tl.load(at + k),)  # noqa: RUF005 - Triton's tuples are added
    return values


@jit
def rows_at(first: Pointer, width: Number, n: tl.constexpr) -> tuple[Pointer, ...]:
    """Return pointers to n rows with a stride of `width` numbers."""
    rows = ()
    for k in tl.static_range(n):
        rows = rows + (first + k * width,)  # noqa: RUF005
    return rows


@jit
def books_of(memory: Memory, lanes: Lanes, c: tl.constexpr) -> Books:
    """Return the rows of `memory` by name, starting at the program's first environment."""
    n, cells, first_cell = lanes.n_envs, lanes.n_envs * c.n_assets, lanes.first * c.n_assets
    return Books(
        *rows_at(memory.counts + lanes.first, n, N_COUNTS), *rows_at(memory.money + lanes.first, n, N_MONEY),
        *rows_at(memory.coins + first_cell, cells, N_COINS), memory.held_bars + first_cell,
    )  # fmt: skip


@jit
def outputs_of(out: Outputs, lanes: Lanes, c: tl.constexpr) -> Outputs:
    """Return the outputs, starting at the program's first environment."""
    first, first_row = lanes.first, lanes.first * c.state_dim
    return Outputs(
        out.state + first_row, out.reward + first, out.done + first, out.final_state + first_row, out.truncated + first,
        out.counts + first, out.money + first,
    )  # fmt: skip


@jit
def lanes_of(n_envs: Number, c: tl.constexpr) -> Lanes:
    """Return the environments of this program."""
    first = tl.program_id(0).to(tl.int64) * c.block
    lane, column = tl.arange(0, c.block), tl.arange(0, c.n_columns)[None, :]
    is_real, is_column = first + lane < n_envs, column < c.n_assets
    cell = lane[:, None] * c.n_assets + column
    return Lanes(
        lane, first + lane, is_real, column, is_column, cell, is_real[:, None] & is_column, first, n_envs
    )  # fmt: skip


@jit
def any_of(flags: Lane) -> Number:
    """Return True if any environment of this program has the flag."""
    return tl.max(flags.to(tl.int32), 0) > 0


@jit
def close_at(bar: Lane, is_wanted: Lane, m: Market, lanes: Lanes, c: tl.constexpr) -> Tile:
    """Return closes at the given bars, 0 where masked out."""
    at = m.price + bar[:, None] * c.n_assets + lanes.column
    return tl.load(at, mask=is_wanted[:, None] & lanes.is_column, other=0.0)


@jit
def load_account(b: Books, lanes: Lanes) -> Account:
    """Load the accounts before the bar; held_bars includes the bar, and nothing is traded yet."""
    qty = tl.load(b.qty + lanes.cell, mask=lanes.is_cell, other=0.0)
    held_bars = tl.load(b.held_bars + lanes.cell, mask=lanes.is_cell, other=0) + (qty > 0).to(tl.int64)
    high = tl.load(b.high + lanes.cell, mask=lanes.is_cell, other=0.0)
    cash = tl.load(b.cash + lanes.lane, mask=lanes.is_real, other=0.0)
    nothing = cash * 0.0
    return Account(cash, qty, held_bars, high, qty * 0.0, Traded(lanes.env * 0, nothing, nothing, nothing))


@jit
def load_marks(b: Books, lanes: Lanes) -> Marks:
    """Load the values of the previous bar; 1 after the last environment, to avoid a division by 0."""
    return Marks(
        tl.load(b.equity + lanes.lane, mask=lanes.is_real, other=1.0),
        tl.load(b.benchmark + lanes.lane, mask=lanes.is_real, other=1.0),
        tl.load(b.peak + lanes.lane, mask=lanes.is_real, other=1.0),
        tl.load(b.max_drawdown + lanes.lane, mask=lanes.is_real, other=0.0),
    )


@jit
def store_books(account: Account, marks: Marks, bar: Lane, b: Books, lanes: Lanes) -> None:
    """Store the account state that every step changes."""
    tl.store(b.qty + lanes.cell, account.qty, mask=lanes.is_cell)
    tl.store(b.held_bars + lanes.cell, account.held_bars, mask=lanes.is_cell)
    tl.store(b.high + lanes.cell, account.high, mask=lanes.is_cell)
    tl.store(b.filled + lanes.cell, account.filled, mask=lanes.is_cell)
    tl.store(b.cash + lanes.lane, account.cash, mask=lanes.is_real)
    tl.store(b.bar + lanes.lane, bar, mask=lanes.is_real)
    tl.store(b.equity + lanes.lane, marks.equity, mask=lanes.is_real)
    tl.store(b.benchmark + lanes.lane, marks.benchmark, mask=lanes.is_real)
    tl.store(b.peak + lanes.lane, marks.peak, mask=lanes.is_real)
    tl.store(b.max_drawdown + lanes.lane, marks.max_drawdown, mask=lanes.is_real)
    tl.store(b.trades + lanes.lane, account.traded.trades, mask=lanes.is_real)
    tl.store(b.fees + lanes.lane, account.traded.fees, mask=lanes.is_real)
    tl.store(b.slippage + lanes.lane, account.traded.slippage, mask=lanes.is_real)
    tl.store(b.turnover + lanes.lane, account.traded.turnover, mask=lanes.is_real)


@jit
def store_reports(
    account: Account, marks: Marks, rejected: Lane, out: Outputs, p: Numbers, lanes: Lanes, c: tl.constexpr
) -> None:  # fmt: skip
    """Store the report on this bar's episode, whether or not the episode ended."""
    money, counts, n = out.money + lanes.lane, out.counts + lanes.lane, lanes.n_envs
    tl.store(money + c.report.equity * n, marks.equity, mask=lanes.is_real)
    tl.store(money + c.report.benchmark_equity * n, marks.benchmark, mask=lanes.is_real)
    tl.store(money + c.report.episode_return * n, marks.equity / p.initial_capital, mask=lanes.is_real)
    tl.store(money + c.report.fees * n, account.traded.fees, mask=lanes.is_real)
    tl.store(money + c.report.slippage * n, account.traded.slippage, mask=lanes.is_real)
    tl.store(money + c.report.turnover * n, account.traded.turnover, mask=lanes.is_real)
    tl.store(counts + c.count.rejected_actions * n, rejected, mask=lanes.is_real)
    tl.store(counts + c.count.trades * n, account.traded.trades, mask=lanes.is_real)


@jit
def keep_ended(
    account: Account, marks: Marks, bar: Lane, is_over: Lane, done: Lane, b: Books, lanes: Lanes
) -> None:  # fmt: skip
    """Store the values that hosts read from the accounts that are `done` after their last step."""
    tl.store(b.is_over + lanes.lane, is_over.to(tl.int64), mask=lanes.is_real)
    tl.store(b.final_cash + lanes.lane, account.cash, mask=done)
    tl.store(b.final_equity + lanes.lane, marks.equity, mask=done)
    tl.store(b.final_bar + lanes.lane, bar, mask=done)
    tl.store(b.final_qty + lanes.cell, account.qty, mask=done[:, None] & lanes.is_column)
    tl.store(b.final_filled + lanes.cell, account.filled, mask=done[:, None] & lanes.is_column)


# ---------------------------------------------------------------------------------------------- the bar
@jit(do_not_specialize=["n_envs"])
def step(
    action: Pointer, m: Market, memory: Memory, out: Outputs, numbers: Pointer, whole: Pointer, n_envs: Number,
    c: tl.constexpr,
) -> None:  # fmt: skip
    """Advance every environment one bar: stops, sells, releases, buys, then mark to market."""
    lanes = lanes_of(n_envs.to(tl.int64), c)
    p, w = Numbers(*loaded(numbers, N_NUMBERS)), Whole(*loaded(whole, N_WHOLE))
    b, out = books_of(memory, lanes, c), outputs_of(out, lanes, c)
    account, before = load_account(b, lanes), load_marks(b, lanes)
    # An account whose episode has ended waits at the last bar for its reset.
    bar = tl.minimum(tl.load(b.bar + lanes.lane, mask=lanes.is_real, other=0) + 1, w.n_bars - 1)
    first_bar = tl.load(b.first_bar + lanes.lane, mask=lanes.is_real, other=0)
    last_bar = tl.load(b.last_bar + lanes.lane, mask=lanes.is_real, other=1)
    min_qty = tl.load(m.assets + lanes.column, mask=lanes.is_column, other=0.0)
    venue = Venue(min_qty, tl.load(m.assets + c.n_assets + lanes.column, mask=lanes.is_column, other=0.0))
    price, terms = close_at(bar, lanes.is_real, m, lanes, c), out.money + N_REPORTED * lanes.n_envs

    if c.stops:
        account = execute_trailing_stops(account, price, p)
    equity_at_fill = account_value(account, price)  # before any order of this bar
    order_qty, is_rejected = order_quantities(action, price, equity_at_fill, b, p, lanes, c)
    rejected = tl.load(b.rejected + lanes.lane, mask=lanes.is_real, other=0) + is_rejected.to(tl.int64)
    if c.caps_positions:
        order_qty = cap_positions(order_qty, account, price, equity_at_fill, p)
    account = execute_sells(account, order_qty, price, venue, p, c)
    if c.releases_stale:
        account = release_stale(account, price, venue, p, w, c)
    account = execute_buys(account, order_qty, price, equity_at_fill, venue, p, lanes, c)

    marks = mark_to_market(account, before, price, b, lanes)
    reward = reward_terms(before, marks, account, price, bar, m, b, p, w, terms, lanes, c)

    at_end = bar >= last_bar
    done, truncated = at_end, at_end & False
    if c.truncates:
        is_ruined = marks.equity <= p.terminal_equity_fraction * p.initial_capital
        done, truncated = at_end | is_ruined, at_end & ~is_ruined
    done = done & lanes.is_real
    discounted = reward * 0.0
    if c.final_reward == "discounted_return":
        discounted = p.gamma * tl.load(b.discounted_return + lanes.lane, mask=lanes.is_real, other=0.0) + reward
        reward = tl.where(done, discounted, reward)
    episode = tl.load(b.episode + lanes.lane, mask=done, other=0)
    newly_over = done
    if not c.restarts:
        newly_over = done & (tl.load(b.is_over + lanes.lane, mask=lanes.is_real, other=0) == 0)
    # Several threads may load a value that one of them stores, so all loads must precede any store.
    tl.debug_barrier()
    tl.store(out.reward + lanes.lane, reward.to(tl.float32), mask=lanes.is_real)
    tl.store(out.done + lanes.lane, done, mask=lanes.is_real)
    tl.store(out.truncated + lanes.lane, truncated, mask=lanes.is_real)
    tl.store(b.rejected + lanes.lane, rejected, mask=lanes.is_real)
    store_reports(account, marks, rejected, out, p, lanes, c)
    keep_ended(account, marks, bar, done, newly_over, b, lanes)

    clock = Clock(bar, first_bar, last_bar)
    if c.restarts:
        if any_of(done):
            observe(out.final_state, done, account, clock, marks, price, m, p, w, lanes, c)
            clock, benchmark = open_portfolio(done, episode + 1, clock, marks.benchmark, m, b, p, w, lanes, c)
            account = empty_account(done, account, p)
            marks = opening_marks(done, marks, benchmark, p)
        discounted = tl.where(done, 0.0, discounted)
    store_books(account, marks, clock.bar, b, lanes)
    if c.final_reward == "discounted_return":
        tl.store(b.discounted_return + lanes.lane, discounted, mask=lanes.is_real)
    observe(out.state, lanes.is_real, account, clock, marks, price, m, p, w, lanes, c)


# ---------------------------------------------------------------------------------------------- observation
@jit
def observe(
    rows: Pointer, is_seen: Lane, account: Account, clock: Clock, marks: Marks, price: Tile, m: Market, p: Numbers,
    w: Whole, lanes: Lanes, c: tl.constexpr,
) -> None:  # fmt: skip
    """Write rows (N, S) float32 where is_seen: account, L rows of features newest first, extras."""
    row = rows + lanes.lane * c.state_dim
    cells = row[:, None] + lanes.column
    is_cell = is_seen[:, None] & lanes.is_column
    if c.observation == "absolute":
        cash, coins = account.cash * p.norm_cash, account.qty * p.norm_stocks
    else:  # a restarted account holds no coins, so its old prices do not matter
        equity = tl.maximum(marks.equity, p.initial_capital * EQUITY_FLOOR)
        cash, coins = account.cash / equity, account.qty * price / equity[:, None]
    tl.store(row, cash.to(tl.float32), mask=is_seen)
    tl.store(cells + 1, coins.to(tl.float32), mask=is_cell)
    at: tl.constexpr = 1 + c.n_assets
    if c.compact:
        tl.store(row + (c.state_dim - 1), clock.bar.to(tl.float32), mask=is_seen)
    else:
        copy_windows(rows + at, is_seen, clock.bar, m, w, lanes, c)
    if c.observe_account:
        extras: tl.constexpr = at if c.compact else at + c.window
        progress = (clock.bar - clock.first_bar).to(tl.float64) / (clock.last_bar - clock.first_bar).to(tl.float64)
        tl.store(row + extras, progress.to(tl.float32), mask=is_seen)
        tl.store(row + (extras + 1), (1.0 - marks.equity / marks.peak).to(tl.float32), mask=is_seen)
        held_bars = (account.held_bars.to(tl.float64) * HELD_BARS_SCALE).to(tl.float32)
        tl.store(cells + (extras + 2), held_bars, mask=is_cell)


@jit
def copy_windows(
    rows: Pointer, is_seen: Lane, bar: Lane, m: Market, w: Whole, lanes: Lanes, c: tl.constexpr
) -> None:  # fmt: skip
    """Copy each environment's lookback, a contiguous run, to rows with a stride of state_dim."""
    # 32-bit offsets from one pointer need half as many registers as one pointer per element.
    source = ((w.n_bars - 1 - bar) * c.n_features).to(c.offset_type)
    target = lanes.lane * c.state_dim
    for first in range(0, c.window, c.tile):
        column = first + tl.arange(0, c.tile)[None, :]
        is_inside = is_seen[:, None] & (column < c.window)
        features = tl.load(m.windows + (source[:, None] + column), mask=is_inside)
        tl.store(rows + (target[:, None] + column), features, mask=is_inside)


# ---------------------------------------------------------------------------------------------- episodes
@jit
def hash32(seed: Number, env: Lane, episode: Lane) -> Lane:
    """Return the plain hash32; int64 products wrap around, but their low 32 bits are exact."""
    x = scramble(env * 0 + seed)
    x = scramble(x + env)
    return scramble(x + episode)


@jit
def scramble(x: Lane) -> Lane:
    """Apply one round of hash32."""
    x = (x + 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


@jit
def draw_starts(
    episode: Lane, is_over: Lane, m: Market, w: Whole, lanes: Lanes, c: tl.constexpr
) -> tuple[Lane, Lane]:  # fmt: skip
    """Return segment and first bar for every environment's episode number."""
    n = w.n_segments
    if c.start == "first":  # environment i starts with segment i and moves to the next one after every episode
        turn = (lanes.env + episode) % w.n_usable
        segment = tl.load(m.segments + c.segment.usable_segment * n + turn, mask=is_over, other=0)
        first_bar = tl.load(m.segments + c.segment.first_start * n + segment, mask=is_over, other=0)
    else:
        low, width = lanes.env * 0, lanes.env * 0 + w.n_starts
        if c.start == "stratified":  # environment i draws from the i-th of N equal parts of all starts
            low = lanes.env * w.n_starts // lanes.n_envs
            width = tl.maximum((lanes.env + 1) * w.n_starts // lanes.n_envs - low, 1)
        k = low + ((hash32(w.seed, lanes.env, episode) * width) >> 32)
        segment = lanes.env * 0
        for g in range(1, n):  # there are few segments
            segment += (tl.load(m.segments + c.segment.start_offset * n + g) <= k).to(tl.int64)
        start_offset = tl.load(m.segments + c.segment.start_offset * n + segment, mask=is_over, other=0)
        first_start = tl.load(m.segments + c.segment.first_start * n + segment, mask=is_over, other=0)
        first_bar = first_start + k - start_offset
    return segment, first_bar


@jit
def open_portfolio(
    is_over: Lane, episode: Lane, clock: Clock, benchmark: Lane, m: Market, b: Books, p: Numbers, w: Whole,
    lanes: Lanes, c: tl.constexpr,
) -> tuple[Clock, Lane]:  # fmt: skip
    """Start episode number `episode` if is_over, otherwise change nothing; return the clock and the benchmark value."""
    segment, first_bar = draw_starts(episode, is_over, m, w, lanes, c)
    last_bar = tl.load(m.segments + c.segment.episode_limit * w.n_segments + segment, mask=is_over, other=0)
    if w.episode_bars > 0:
        last_bar = tl.minimum(last_bar, first_bar + w.episode_bars)
    first_price = close_at(first_bar, is_over, m, lanes, c)
    base_price = first_price
    if c.benchmark_base == "segment":
        segment_first = tl.load(m.segments + c.segment.segment_first * w.n_segments + segment, mask=is_over, other=0)
        base_price = close_at(segment_first, is_over, m, lanes, c)
    is_priced = base_price > 0
    fee = 1.0 + p.benchmark_fee_rate
    share = p.initial_capital / tl.maximum(tl.sum(is_priced.to(tl.int32), 1), 1).to(tl.float64)
    benchmark_qty = tl.where(is_priced, share[:, None] / (tl.where(is_priced, base_price, 1.0) * fee), 0.0)

    is_fresh = is_over[:, None] & lanes.is_column
    scale = tl.load(m.order_scale + segment[:, None] * c.n_assets + lanes.column, mask=is_fresh, other=0.0)
    tl.store(b.order_scale + lanes.cell, scale, mask=is_fresh)
    tl.store(b.benchmark_qty + lanes.cell, benchmark_qty, mask=is_fresh)
    tl.store(b.episode + lanes.lane, episode, mask=is_over)
    tl.store(b.segment + lanes.lane, segment, mask=is_over)
    tl.store(b.first_bar + lanes.lane, first_bar, mask=is_over)
    tl.store(b.last_bar + lanes.lane, last_bar, mask=is_over)
    value = tl.sum(benchmark_qty * first_price, 1)
    opened = Clock(
        tl.where(is_over, first_bar, clock.bar), tl.where(is_over, first_bar, clock.first_bar),
        tl.where(is_over, last_bar, clock.last_bar),
    )  # fmt: skip
    return opened, tl.where(is_over, value, benchmark)


@jit
def empty_account(is_over: Lane, account: Account, p: Numbers) -> Account:
    """Return an account with only cash if is_over, otherwise the running account."""
    is_fresh, traded = is_over[:, None], account.traded
    return Account(
        tl.where(is_over, p.initial_capital, account.cash), tl.where(is_fresh, 0.0, account.qty),
        tl.where(is_fresh, 0, account.held_bars), tl.where(is_fresh, 0.0, account.high),
        tl.where(is_fresh, 0.0, account.filled),
        Traded(tl.where(is_over, 0, traded.trades), tl.where(is_over, 0.0, traded.fees),
               tl.where(is_over, 0.0, traded.slippage), tl.where(is_over, 0.0, traded.turnover)),
    )  # fmt: skip


@jit
def opening_marks(is_over: Lane, marks: Marks, benchmark: Lane, p: Numbers) -> Marks:
    """Return the values at the first bar if is_over, otherwise the running values."""
    return Marks(
        tl.where(is_over, p.initial_capital, marks.equity), benchmark,
        tl.where(is_over, p.initial_capital, marks.peak), tl.where(is_over, 0.0, marks.max_drawdown),
    )  # fmt: skip
