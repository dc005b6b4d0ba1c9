"""The step of `environment_Alpaca_vectorized.py` as one Triton kernel (one source for NVIDIA and AMD GPUs).

Imported lazily by VectorizedCryptoEnvAlpacaOptimized; without triton that class runs the plain torch step instead.
Phases, names and order are those of the plain file, so that the two can be read side by side. The kernel mutates the
account arrays in place and writes observation, reward and flags straight into the caller's storage: nothing is
allocated in a step and the host is not waited for, so that a step can be captured in a CUDA or HIP graph.

A program is BLOCK environments. A `Lane` holds one value an environment, (BLOCK,); a `Tile` one value an environment
and asset, (BLOCK, A padded to a power of two), whose padding has price 0 and is therefore never traded. Books of
coins are (N, A) in memory, so that a tile is one contiguous run. Choices of `EnvParams` are compiled in and phases
that are off vanish; its numbers are read from memory, so that changing a fee compiles nothing.
"""

# Compiled functions are Python in syntax only: their values have no types that a checker of Python could know.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

import environment_Alpaca_vectorized as drop_in

BLOCK = 16       # environments a program: small, because the observations' copy needs many programs to fill a GPU
N_WARPS = 4
TILE_WIDTH = 32  # features copied at a time: a wider tile costs registers, of which the kernel takes about 150
# Below this a launch is expected to take longer than the kernel runs (about 10 us of memory traffic). Not measured yet.
GRAPH_UP_TO_N_ENVS = 16_384
WARM_UPS = 3     # plain launches before a graph is captured: the first one compiles

# Rows of the packed arrays; `tensors` and `books_of` give them names.
COUNTS = ("bar", "first_bar", "last_bar", "segment", "trades", "episode", "rejected")
MONEY = ("cash", "equity", "benchmark", "peak", "max_drawdown", "discounted_return", *drop_in.COSTS)
COINS = ("qty", "high", "order_scale", "benchmark_qty")
REPORTED = ("equity", "benchmark", "episode_return", *drop_in.COSTS)

TARGET_WEIGHT = tl.constexpr(drop_in.TARGET_WEIGHT)
HELD_BARS_SCALE = tl.constexpr(drop_in.HELD_BARS_SCALE)
EQUITY_FLOOR = tl.constexpr(drop_in.EQUITY_FLOOR)
INCREMENT_SLACK = tl.constexpr(drop_in.INCREMENT_SLACK)

jit: Any = triton.jit
# Annotations of compiled functions may name nothing but Triton's own types and named tuples.
Lane = tl.tensor
Tile = tl.tensor
Number = tl.tensor   # one value for all environments
Pointer = tl.tensor  # a torch tensor where the kernel is launched


class Choices(NamedTuple):
    """What is compiled in: choices of `EnvParams`, phases that are on, sizes."""

    order_sizing: str
    reward: str
    start: str
    buys_sequentially: bool
    always_allow_close: bool
    release_unpriced: bool
    reserve_of_equity: bool
    truncates: bool
    discounts_final_reward: bool
    observes_absolute: bool
    benchmark_of_episode: bool
    benchmark_pays_fee: bool
    observe_account: bool
    compact: bool
    restarts: bool
    stops: bool
    caps_positions: bool
    releases_stale: bool
    has_increments: bool
    penalizes_concentration: bool
    n_assets: int
    n_columns: int   # assets, padded
    n_features: int
    window: int      # features of an observation, L * F
    state_dim: int
    block: int
    tile: int
    offset_type: tl.dtype  # of features: int32 unless there are more than 2**31


class Numbers(NamedTuple):
    """Float settings in the order of the array they are read from."""

    initial_capital: Number
    buy_fee_rate: Number
    sell_fee_rate: Number
    gamma: Number
    slippage_rate: Number
    min_order_notional: Number
    stale_fraction: Number
    cash_haircut: Number
    terminal_equity_fraction: Number
    norm_cash: Number
    norm_stocks: Number
    norm_reward: Number
    norm_action: Number
    min_cash_reserve: Number
    max_position_weight: Number
    trailing_stop_pct: Number
    time_decay_floor: Number
    growth_weight: Number
    benchmark_weight: Number
    drawdown_penalty: Number
    volatility_penalty: Number
    concentration_penalty: Number
    turnover_penalty: Number


class Whole(NamedTuple):
    """Whole settings in the order of the array they are read from; episode_bars 0 means to the end of the segment."""

    lookback: Number
    stale_bars: Number
    seed: Number
    episode_bars: Number
    n_starts: Number
    n_usable: Number
    n_segments: Number
    n_bars: Number


class Market(NamedTuple):
    """Shared by all environments, never written."""

    price: Pointer        # (T, A) float64
    windows: Pointer      # (T - L + 1, L * F) float32, rows F apart
    assets: Pointer       # (2, A) float64: min_qty, qty_increment
    segments: Pointer     # (6, G) int64: first, end, limit, first_start, starts_before, usable
    order_scale: Pointer  # (G, A) float64


class Memory(NamedTuple):
    """The books, rows of N environments."""

    counts: Pointer     # (7, N) int64
    money: Pointer      # (9, N) float64
    coins: Pointer      # (4, N, A) float64
    held_bars: Pointer  # (N, A) int64


class Outputs(NamedTuple):
    """What a step reports."""

    state: Pointer        # (N, S) float32
    reward: Pointer       # (N,) float32
    done: Pointer         # (N,) bool
    final_state: Pointer  # (N, S) float32, written where done
    truncated: Pointer    # (N,) bool
    trades: Pointer       # (N,) int64
    money: Pointer        # (6, N) float64
    terms: Pointer        # (K, N) float64


class Books(NamedTuple):
    """`Portfolio` as pointers to row 0 of each field."""

    bar: Pointer
    first_bar: Pointer
    last_bar: Pointer
    segment: Pointer
    trades: Pointer
    episode: Pointer
    rejected: Pointer
    cash: Pointer
    equity: Pointer
    benchmark: Pointer
    peak: Pointer
    max_drawdown: Pointer
    discounted_return: Pointer
    fees: Pointer
    slippage: Pointer
    turnover: Pointer
    qty: Pointer
    high: Pointer
    order_scale: Pointer
    benchmark_qty: Pointer
    held_bars: Pointer


class Lanes(NamedTuple):
    """Which environments and cells this program works on."""

    lane: Lane       # int32, 0 to BLOCK - 1: offset from the program's first environment
    env: Lane        # int64, number of the environment
    is_real: Lane    # False beyond the last environment
    column: Lane     # (1, A padded)
    is_column: Lane  # (1, A padded), False beyond the last asset
    cell: Tile       # int32, offset in an (N, A) array from the program's first environment
    is_cell: Tile
    first: Number    # int64, the program's first environment
    n_envs: Number   # int64


class Venue(NamedTuple):
    """Rows (1, A padded) of the smallest orders."""

    min_qty: Lane
    qty_increment: Lane


class Account(NamedTuple):
    """What trading changes."""

    cash: Lane
    qty: Tile
    held_bars: Tile
    high: Tile
    trades: Lane
    fees: Lane
    slippage: Lane
    turnover: Lane


class Clock(NamedTuple):
    """Where an episode stands."""

    bar: Lane
    first_bar: Lane
    last_bar: Lane


class Marks(NamedTuple):
    """Values at one bar."""

    equity: Lane
    benchmark: Lane
    peak: Lane
    max_drawdown: Lane


# ---------------------------------------------------------------------------------------------- memory
@jit
def numbers_at(at: Pointer) -> Numbers:
    """Read the float settings; what a compiled kernel does not use is not read."""
    return Numbers(
        tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5),
        tl.load(at + 6), tl.load(at + 7), tl.load(at + 8), tl.load(at + 9), tl.load(at + 10), tl.load(at + 11),
        tl.load(at + 12), tl.load(at + 13), tl.load(at + 14), tl.load(at + 15), tl.load(at + 16), tl.load(at + 17),
        tl.load(at + 18), tl.load(at + 19), tl.load(at + 20), tl.load(at + 21), tl.load(at + 22),
    )  # fmt: skip


@jit
def whole_at(at: Pointer) -> Whole:
    """Read the whole settings."""
    return Whole(
        tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5),
        tl.load(at + 6), tl.load(at + 7),
    )  # fmt: skip


@jit
def books_of(memory: Memory, lanes: Lanes, c: tl.constexpr) -> Books:
    """The rows of `memory` by name, from the program's first environment on."""
    n, cells, first_cell = lanes.n_envs, lanes.n_envs * c.n_assets, lanes.first * c.n_assets
    k, d, q = memory.counts + lanes.first, memory.money + lanes.first, memory.coins + first_cell
    return Books(
        k, k + n, k + 2 * n, k + 3 * n, k + 4 * n, k + 5 * n, k + 6 * n,
        d, d + n, d + 2 * n, d + 3 * n, d + 4 * n, d + 5 * n, d + 6 * n, d + 7 * n, d + 8 * n,
        q, q + cells, q + 2 * cells, q + 3 * cells, memory.held_bars + first_cell,
    )  # fmt: skip


@jit
def outputs_of(out: Outputs, lanes: Lanes, c: tl.constexpr) -> Outputs:
    """The outputs from the program's first environment on."""
    first, first_row = lanes.first, lanes.first * c.state_dim
    return Outputs(
        out.state + first_row, out.reward + first, out.done + first, out.final_state + first_row, out.truncated + first,
        out.trades + first, out.money + first, out.terms + first,
    )  # fmt: skip


@jit
def lanes_of(n_envs: Number, c: tl.constexpr) -> Lanes:
    """The environments of this program."""
    first = tl.program_id(0).to(tl.int64) * c.block
    lane, column = tl.arange(0, c.block), tl.arange(0, c.n_columns)[None, :]
    is_real, is_column = first + lane < n_envs, column < c.n_assets
    cell = lane[:, None] * c.n_assets + column
    return Lanes(
        lane, first + lane, is_real, column, is_column, cell, is_real[:, None] & is_column, first, n_envs
    )  # fmt: skip


@jit
def any_of(flags: Lane) -> Number:
    """Whether one of this program's environments has the flag."""
    return tl.max(flags.to(tl.int32), 0) > 0


@jit
def close_at(bar: Lane, is_wanted: Lane, m: Market, lanes: Lanes, c: tl.constexpr) -> Tile:
    """Closes of the bars given, 0 where not wanted."""
    at = m.price + bar[:, None] * c.n_assets + lanes.column
    return tl.load(at, mask=is_wanted[:, None] & lanes.is_column, other=0.0)


@jit
def load_account(b: Books, lanes: Lanes) -> Account:
    """The accounts before the bar: held_bars counts it, nothing is traded yet."""
    qty = tl.load(b.qty + lanes.cell, mask=lanes.is_cell, other=0.0)
    held_bars = tl.load(b.held_bars + lanes.cell, mask=lanes.is_cell, other=0) + (qty > 0).to(tl.int64)
    high = tl.load(b.high + lanes.cell, mask=lanes.is_cell, other=0.0)
    cash = tl.load(b.cash + lanes.lane, mask=lanes.is_real, other=0.0)
    nothing = cash * 0.0
    return Account(cash, qty, held_bars, high, lanes.env * 0, nothing, nothing, nothing)


@jit
def load_marks(b: Books, lanes: Lanes) -> Marks:
    """The values of the bar before; 1 beyond the last environment, so that nothing divides by 0 there."""
    return Marks(
        tl.load(b.equity + lanes.lane, mask=lanes.is_real, other=1.0),
        tl.load(b.benchmark + lanes.lane, mask=lanes.is_real, other=1.0),
        tl.load(b.peak + lanes.lane, mask=lanes.is_real, other=1.0),
        tl.load(b.max_drawdown + lanes.lane, mask=lanes.is_real, other=0.0),
    )


@jit
def store_books(account: Account, marks: Marks, bar: Lane, b: Books, lanes: Lanes) -> None:
    """Write back what every step changes."""
    tl.store(b.qty + lanes.cell, account.qty, mask=lanes.is_cell)
    tl.store(b.held_bars + lanes.cell, account.held_bars, mask=lanes.is_cell)
    tl.store(b.high + lanes.cell, account.high, mask=lanes.is_cell)
    tl.store(b.cash + lanes.lane, account.cash, mask=lanes.is_real)
    tl.store(b.bar + lanes.lane, bar, mask=lanes.is_real)
    tl.store(b.equity + lanes.lane, marks.equity, mask=lanes.is_real)
    tl.store(b.benchmark + lanes.lane, marks.benchmark, mask=lanes.is_real)
    tl.store(b.peak + lanes.lane, marks.peak, mask=lanes.is_real)
    tl.store(b.max_drawdown + lanes.lane, marks.max_drawdown, mask=lanes.is_real)
    tl.store(b.trades + lanes.lane, account.trades, mask=lanes.is_real)
    tl.store(b.fees + lanes.lane, account.fees, mask=lanes.is_real)
    tl.store(b.slippage + lanes.lane, account.slippage, mask=lanes.is_real)
    tl.store(b.turnover + lanes.lane, account.turnover, mask=lanes.is_real)


@jit
def store_reports(account: Account, marks: Marks, out: Outputs, p: Numbers, lanes: Lanes) -> None:
    """Report the episode that this bar belongs to, whether or not it is over."""
    money, n = out.money + lanes.lane, lanes.n_envs
    tl.store(money, marks.equity, mask=lanes.is_real)
    tl.store(money + n, marks.benchmark, mask=lanes.is_real)
    tl.store(money + 2 * n, marks.equity / p.initial_capital, mask=lanes.is_real)
    tl.store(money + 3 * n, account.fees, mask=lanes.is_real)
    tl.store(money + 4 * n, account.slippage, mask=lanes.is_real)
    tl.store(money + 5 * n, account.turnover, mask=lanes.is_real)
    tl.store(out.trades + lanes.lane, account.trades, mask=lanes.is_real)


# ---------------------------------------------------------------------------------------------- orders
@jit
def order_quantities(
    action: Pointer, price: Tile, equity: Lane, b: Books, p: Numbers, lanes: Lanes, c: tl.constexpr
) -> Tile:  # fmt: skip
    """Coins asked for: positive to buy, negative to sell; a non-finite action is a hold, counted in b.rejected."""
    wish = tl.load(action + lanes.first * c.n_assets + lanes.cell, mask=lanes.is_cell, other=0.0)  # float32
    is_finite = tl.abs(wish) < float("inf")
    is_rejected = tl.sum((~is_finite).to(tl.int32), 1) > 0
    tl.atomic_add(b.rejected + lanes.lane, 1, mask=is_rejected)
    wish = tl.where(is_rejected[:, None], 0.0, wish)
    if c.order_sizing == "equity":
        is_priced = price > 0
        per_unit = equity[:, None] / (tl.where(is_priced, price, 1.0) * p.norm_action)
        order_qty = tl.where(is_priced, wish.to(tl.float64) * per_unit, 0.0)
    else:
        scale = tl.load(b.order_scale + lanes.cell, mask=lanes.is_cell, other=0.0)
        if c.order_sizing == "price_magnitude":
            order_qty = wish.to(tl.float64) * scale
        else:  # in float32, as the host computes it
            order_qty = (wish * scale.to(tl.float32)).to(tl.float64)
    return order_qty


@jit
def cap_positions(order_qty: Tile, account: Account, price: Tile, equity: Lane, p: Numbers) -> Tile:
    """Cut every buy so that the position would not exceed max_position_weight of the account."""
    is_priced = price > 0
    limit_qty = p.max_position_weight * equity[:, None] / tl.where(is_priced, price, 1.0)
    room = tl.where(is_priced, tl.maximum(limit_qty - account.qty, 0.0), 0.0)
    return tl.minimum(order_qty, room)


@jit
def whole_increments(quantity: Tile, venue: Venue, c: tl.constexpr) -> Tile:
    """Quantity cut to the venue's step; a huge order stays as it is."""
    if c.has_increments:
        step = venue.qty_increment
        whole = tl.floor(quantity / tl.where(step > 0, step, 1.0) + INCREMENT_SLACK) * step
        quantity = tl.where((step > 0) & (tl.abs(quantity) < float("inf")), whole, quantity)
    return quantity


@jit
def is_large_enough(quantity: Tile, price: Tile, venue: Venue, p: Numbers) -> Tile:
    """Whether the venue takes an order of this size."""
    return (quantity > venue.min_qty) & (quantity * price >= p.min_order_notional)


@jit
def execute_trailing_stops(account: Account, price: Tile, p: Numbers) -> Account:
    """Sell whole positions whose price fell by more than trailing_stop_pct from its high since the purchase."""
    is_held = account.qty > 0
    high = tl.where(is_held, tl.maximum(account.high, price), account.high)
    is_stopped = is_held & (price > 0) & (price < high * (1.0 - p.trailing_stop_pct))
    account = Account(
        account.cash, account.qty, account.held_bars, high, account.trades, account.fees, account.slippage,
        account.turnover,
    )  # fmt: skip
    return execute_sales(account, tl.where(is_stopped, account.qty, 0.0), price, p)


@jit
def execute_sells(
    account: Account, order_qty: Tile, price: Tile, venue: Venue, p: Numbers, c: tl.constexpr
) -> Account:  # fmt: skip
    """Sell what the orders ask for, at most the position."""
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
    """Sell stale_fraction of every position held for stale_bars or longer, or all where the venue wants more."""
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
    """Take sold coins out at the close less slippage and fee; a position's clock starts again."""
    fill = price * (1.0 - p.slippage_rate)
    qty = account.qty - sold
    is_sold = sold > 0
    cash = account.cash + tl.sum(sold * fill * (1.0 - p.sell_fee_rate), 1)
    held_bars = tl.where(is_sold, 0, account.held_bars)
    high = tl.where(is_sold & (qty == 0), 0.0, account.high)
    account = Account(
        cash, qty, held_bars, high, account.trades, account.fees, account.slippage, account.turnover
    )  # fmt: skip
    return book_trades(account, sold, price, fill * p.sell_fee_rate, p)


@jit
def execute_buys(
    account: Account, order_qty: Tile, price: Tile, equity: Lane, venue: Venue, p: Numbers, lanes: Lanes,
    c: tl.constexpr,
) -> Account:  # fmt: skip
    """Buy what the orders ask for and the cash allows; equity is this bar's, before trading."""
    wanted = whole_increments(order_qty, venue, c)
    wanted = tl.where((price > 0) & is_large_enough(wanted, price, venue, p), wanted, 0.0)
    unit_cost = price * (1.0 + p.slippage_rate) * (1.0 + p.buy_fee_rate)  # quote a coin, all included
    if c.buys_sequentially:
        # Assets stay a loop: each buy spends cash the next one sees. Columns are filled in order.
        per_coin = tl.where(price > 0, unit_cost, 1.0)
        for a in range(c.n_assets):
            affordable = spendable_cash(account.cash, equity, p, c)[:, None] / per_coin
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
    """Add filled coins, except where what the cash left of an order is below the minimum."""
    is_kept = (filled > 0) & (filled >= venue.min_qty) & (filled * price >= p.min_order_notional)
    bought = tl.where(is_kept, filled, 0.0)
    cash = tl.maximum(account.cash - tl.sum(bought * unit_cost, 1), 0.0)  # maximum: rounding only
    high = tl.where(is_kept & (account.qty == 0), price, account.high)
    account = Account(
        cash, account.qty + bought, account.held_bars, high, account.trades, account.fees, account.slippage,
        account.turnover,
    )  # fmt: skip
    return book_trades(account, bought, price, price * (1.0 + p.slippage_rate) * p.buy_fee_rate, p)


@jit
def spendable_cash(cash: Lane, equity: Lane, p: Numbers, c: tl.constexpr) -> Lane:
    """Quote that buys may use, reserve kept."""
    base = equity if c.reserve_of_equity else p.initial_capital
    reserve = p.min_cash_reserve * base
    return tl.maximum(cash - reserve, 0.0) * p.cash_haircut


@jit
def book_trades(account: Account, quantity: Tile, price: Tile, fee_per_coin: Tile, p: Numbers) -> Account:
    """Count fills in the step's totals."""
    notional = tl.sum(quantity * price, 1)
    trades = account.trades + tl.sum((quantity > 0).to(tl.int64), 1)
    fees = account.fees + tl.sum(quantity * fee_per_coin, 1)
    slippage = account.slippage + notional * p.slippage_rate
    return Account(
        account.cash, account.qty, account.held_bars, account.high, trades, fees, slippage,
        account.turnover + notional,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- valuation and reward
@jit
def account_value(account: Account, price: Tile) -> Lane:
    """Cash plus positions at the close, quote."""
    return account.cash + tl.sum(account.qty * price, 1)


@jit
def mark_to_market(account: Account, before: Marks, price: Tile, b: Books, lanes: Lanes) -> Marks:
    """Value account and benchmark at this bar and carry the running peak and largest drawdown on."""
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
        reward = keep_term(gain * p.norm_reward, 0, terms, lanes)
    elif c.reward == "cappuccino":
        decay = time_decay(bar, m, b, p, w, lanes)
        reward = cappuccino_terms(before, marks, account, price, decay, p, terms, lanes, c)
    else:
        reward = weighted_terms(before, marks, account, price, p, terms, lanes)
    return reward


@jit
def keep_term(value: Lane, row: tl.constexpr, terms: Pointer, lanes: Lanes) -> Lane:
    """Store one named term and pass it on."""
    tl.store(terms + row * lanes.n_envs + lanes.lane, value, mask=lanes.is_real)
    return value


@jit
def weights_of(account: Account, equity: Lane, price: Tile) -> Tile:
    """Positions as shares of the account."""
    is_solvent = equity > 0
    return tl.where(is_solvent[:, None], account.qty * price / tl.where(is_solvent, equity, 1.0)[:, None], 0.0)


@jit
def weighted_terms(
    before: Marks, marks: Marks, account: Account, price: Tile, p: Numbers, terms: Pointer, lanes: Lanes
) -> Lane:  # fmt: skip
    """Terms of the standard reward."""
    floor = EQUITY_FLOOR * p.initial_capital
    growth = tl.log(tl.maximum(marks.equity, floor) / tl.maximum(before.equity, floor))
    tracked = tl.log(tl.maximum(marks.benchmark, floor) / tl.maximum(before.benchmark, floor))
    excess = tl.maximum(tl.max(weights_of(account, marks.equity, price), 1) - TARGET_WEIGHT, 0.0)
    drawdown = -p.drawdown_penalty * (marks.max_drawdown - before.max_drawdown)
    turnover = -p.turnover_penalty * account.turnover / tl.maximum(marks.equity, floor)
    reward = keep_term(p.norm_reward * (p.growth_weight * growth), 0, terms, lanes)
    reward += keep_term(p.norm_reward * (-p.benchmark_weight * tracked), 1, terms, lanes)
    reward += keep_term(p.norm_reward * drawdown, 2, terms, lanes)
    reward += keep_term(p.norm_reward * (-p.volatility_penalty * (growth * growth)), 3, terms, lanes)
    reward += keep_term(p.norm_reward * (-p.concentration_penalty * excess), 4, terms, lanes)
    reward += keep_term(p.norm_reward * turnover, 5, terms, lanes)
    return reward


@jit
def cappuccino_terms(
    before: Marks, marks: Marks, account: Account, price: Tile, decay: Lane, p: Numbers, terms: Pointer, lanes: Lanes,
    c: tl.constexpr,
) -> Lane:  # fmt: skip
    """Terms of the Cappuccino reward."""
    gain, benchmark_gain = marks.equity - before.equity, marks.benchmark - before.benchmark
    had_benchmark, is_solvent = before.benchmark > 0, marks.equity > 0
    market_return = tl.where(had_benchmark, benchmark_gain / tl.where(had_benchmark, before.benchmark, 1.0), 0.0)
    cash_share = tl.where(is_solvent, account.cash / tl.where(is_solvent, marks.equity, 1.0), 0.0)
    earns_bonus = (market_return < 0) & (cash_share > 0.1)
    bonus = tl.where(earns_bonus, 0.02 * tl.abs(market_return) * cash_share * p.norm_reward, 0.0)
    shortfall = tl.maximum(p.min_cash_reserve * p.initial_capital - account.cash, 0.0)
    reward = keep_term(0.5 * (gain - benchmark_gain) * p.norm_reward * decay, 0, terms, lanes)
    reward += keep_term(0.3 * gain / p.initial_capital * p.norm_reward * decay, 1, terms, lanes)
    reward += keep_term(bonus, 2, terms, lanes)
    reward += keep_term(-shortfall / p.initial_capital * p.norm_reward * 0.5, 3, terms, lanes)
    concentration = gain * 0.0
    if c.penalizes_concentration:
        weights = weights_of(account, marks.equity, price)
        value = cappuccino_concentration(weights, p.concentration_penalty, lanes, c)
        concentration = tl.where(is_solvent, value, 0.0)
    reward += keep_term(concentration, 4, terms, lanes)
    return reward


@jit
def time_decay(bar: Lane, m: Market, b: Books, p: Numbers, w: Whole, lanes: Lanes) -> Lane:
    """Factor that falls over the segment."""
    at = m.segments + tl.load(b.segment + lanes.lane, mask=lanes.is_real, other=0)
    first = tl.load(at, mask=lanes.is_real, other=0) + w.lookback - 1
    last = tl.load(at + w.n_segments, mask=lanes.is_real, other=0) - w.lookback - 1
    progress = (bar - first).to(tl.float64) / tl.maximum(last - first, 1).to(tl.float64)
    return tl.maximum(1.0 - tl.minimum(tl.maximum(progress, 0.0), 1.0), p.time_decay_floor)


@jit
def cappuccino_concentration(weights: Tile, penalty: Number, lanes: Lanes, c: tl.constexpr) -> Lane:
    """Penalty for one large position and for few, bonus for evenly spread ones (Gini coefficient by ranks)."""
    is_held = weights > 0.01
    held = tl.where(is_held, weights, 0.0)
    n_held = tl.sum(is_held.to(tl.int32), 1).to(tl.float64)
    rank = held * 0.0  # 1 for the smallest held weight; ties go by column
    for a in range(c.n_assets):
        other = tl.sum(tl.where(lanes.column == a, held, 0.0), 1)[:, None]
        is_before = (other > 0) & ((other < held) | ((other == held) & (lanes.column >= a)))
        rank += is_before.to(tl.float64)
    n, total = tl.maximum(n_held, 1.0), tl.sum(held, 1)
    gini = 2.0 * tl.sum(rank * held, 1) / (n * tl.where(total > 0, total, 1.0)) - (n + 1.0) / n
    large = -penalty * tl.maximum(tl.max(weights, 1) - TARGET_WEIGHT, 0.0)
    even = 0.1 * penalty * tl.maximum(0.4 - gini, 0.0)
    return large + tl.where(n_held < 3, -0.5 * penalty * (3.0 - n_held), even)


# ---------------------------------------------------------------------------------------------- the bar
@jit(do_not_specialize=["n_envs"])
def step(
    action: Pointer, m: Market, memory: Memory, out: Outputs, numbers: Pointer, whole: Pointer, n_envs: Number,
    c: tl.constexpr,
) -> None:  # fmt: skip
    """Advance every environment one bar: stops, sells, releases, buys, then mark to market."""
    lanes = lanes_of(n_envs.to(tl.int64), c)
    p, w = numbers_at(numbers), whole_at(whole)
    b, out = books_of(memory, lanes, c), outputs_of(out, lanes, c)
    account, before = load_account(b, lanes), load_marks(b, lanes)
    bar = tl.load(b.bar + lanes.lane, mask=lanes.is_real, other=0) + 1
    first_bar = tl.load(b.first_bar + lanes.lane, mask=lanes.is_real, other=0)
    last_bar = tl.load(b.last_bar + lanes.lane, mask=lanes.is_real, other=1)
    min_qty = tl.load(m.assets + lanes.column, mask=lanes.is_column, other=0.0)
    venue = Venue(min_qty, tl.load(m.assets + c.n_assets + lanes.column, mask=lanes.is_column, other=0.0))
    price = close_at(bar, lanes.is_real, m, lanes, c)
    equity = account_value(account, price)  # before any trade of this bar

    if c.stops:
        account = execute_trailing_stops(account, price, p)
    order_qty = order_quantities(action, price, equity, b, p, lanes, c)
    if c.caps_positions:
        order_qty = cap_positions(order_qty, account, price, equity, p)
    account = execute_sells(account, order_qty, price, venue, p, c)
    if c.releases_stale:
        account = release_stale(account, price, venue, p, w, c)
    account = execute_buys(account, order_qty, price, equity, venue, p, lanes, c)

    marks = mark_to_market(account, before, price, b, lanes)
    reward = reward_terms(before, marks, account, price, bar, m, b, p, w, out.terms, lanes, c)

    at_end = bar >= last_bar
    done, truncated = at_end, at_end & False
    if c.truncates:
        is_ruined = marks.equity <= p.terminal_equity_fraction * p.initial_capital
        done, truncated = at_end | is_ruined, at_end & ~is_ruined
    done = done & lanes.is_real
    discounted = equity * 0.0
    if c.discounts_final_reward:
        discounted = p.gamma * tl.load(b.discounted_return + lanes.lane, mask=lanes.is_real, other=0.0) + reward
        reward = tl.where(done, discounted, reward)
    episode = tl.load(b.episode + lanes.lane, mask=done, other=0)
    # Several threads may have loaded the same value, and one of them stores it: none may store before all have loaded.
    tl.debug_barrier()
    tl.store(out.reward + lanes.lane, reward.to(tl.float32), mask=lanes.is_real)
    tl.store(out.done + lanes.lane, done, mask=lanes.is_real)
    tl.store(out.truncated + lanes.lane, truncated, mask=lanes.is_real)
    store_reports(account, marks, out, p, lanes)

    clock = Clock(bar, first_bar, last_bar)
    if c.restarts:
        if any_of(done):
            observe(out.final_state, done, account, clock, marks, price, m, p, w, lanes, c)
            clock, benchmark = open_portfolio(done, episode + 1, clock, marks.benchmark, m, b, p, w, lanes, c)
            account = empty_account(done, account, p)
            marks = opening_marks(done, marks, benchmark, p)
        discounted = tl.where(done, 0.0, discounted)
    store_books(account, marks, clock.bar, b, lanes)
    if c.discounts_final_reward:
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
    if c.observes_absolute:
        cash, coins = account.cash * p.norm_cash, account.qty * p.norm_stocks
    else:  # an account that has just restarted holds nothing, so that its old price does not matter
        equity = tl.maximum(marks.equity, EQUITY_FLOOR * p.initial_capital)
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
    """Copy the lookback of each environment's bar, one contiguous run, to rows that are state_dim apart."""
    # Offsets of 32 bits from one pointer take half the registers of a pointer for each element.
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
    """As the plain hash32; int64 products wrap around, their low 32 bits are exact."""
    x = scramble(env * 0 + seed)
    x = scramble(x + env)
    return scramble(x + episode)


@jit
def scramble(x: Lane) -> Lane:
    """One round of hash32."""
    x = (x + 0x9E3779B9) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


@jit
def draw_starts(
    episode: Lane, is_over: Lane, m: Market, w: Whole, lanes: Lanes, c: tl.constexpr
) -> tuple[Lane, Lane]:  # fmt: skip
    """Segment and first bar of every environment's episode number."""
    n = w.n_segments
    if c.start == "first":  # environment i begins with segment i and takes the next one after every episode
        turn = (lanes.env + episode) % w.n_usable
        segment = tl.load(m.segments + 5 * n + turn, mask=is_over, other=0)
        first_bar = tl.load(m.segments + 3 * n + segment, mask=is_over, other=0)
    else:
        low, width = lanes.env * 0, lanes.env * 0 + w.n_starts
        if c.start == "stratified":  # environment i draws from the i-th of N equal shares of all starts
            low = lanes.env * w.n_starts // lanes.n_envs
            width = tl.maximum((lanes.env + 1) * w.n_starts // lanes.n_envs - low, 1)
        k = low + ((hash32(w.seed, lanes.env, episode) * width) >> 32)
        segment = lanes.env * 0
        for g in range(1, n):  # segments are few
            segment += (tl.load(m.segments + 4 * n + g) <= k).to(tl.int64)
        starts_before = tl.load(m.segments + 4 * n + segment, mask=is_over, other=0)
        first_bar = tl.load(m.segments + 3 * n + segment, mask=is_over, other=0) + k - starts_before
    return segment, first_bar


@jit
def open_portfolio(
    is_over: Lane, episode: Lane, clock: Clock, benchmark: Lane, m: Market, b: Books, p: Numbers, w: Whole,
    lanes: Lanes, c: tl.constexpr,
) -> tuple[Clock, Lane]:  # fmt: skip
    """Begin episode number `episode` where is_over -> clock and value of the benchmark, the running ones elsewhere."""
    segment, first_bar = draw_starts(episode, is_over, m, w, lanes, c)
    last_bar = tl.load(m.segments + 2 * w.n_segments + segment, mask=is_over, other=0)
    if w.episode_bars > 0:
        last_bar = tl.minimum(last_bar, first_bar + w.episode_bars)
    first_price = close_at(first_bar, is_over, m, lanes, c)
    base_price = first_price
    if not c.benchmark_of_episode:
        segment_first = tl.load(m.segments + segment, mask=is_over, other=0)
        base_price = close_at(segment_first, is_over, m, lanes, c)
    is_priced = base_price > 0
    fee = p.buy_fee_rate * 0.0 + 1.0
    if c.benchmark_pays_fee:
        fee = 1.0 + p.buy_fee_rate
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
    """Cash only where is_over, the running account elsewhere."""
    is_fresh = is_over[:, None]
    return Account(
        tl.where(is_over, p.initial_capital, account.cash), tl.where(is_fresh, 0.0, account.qty),
        tl.where(is_fresh, 0, account.held_bars), tl.where(is_fresh, 0.0, account.high),
        tl.where(is_over, 0, account.trades), tl.where(is_over, 0.0, account.fees),
        tl.where(is_over, 0.0, account.slippage), tl.where(is_over, 0.0, account.turnover),
    )  # fmt: skip


@jit
def opening_marks(is_over: Lane, marks: Marks, benchmark: Lane, p: Numbers) -> Marks:
    """Values at the first bar where is_over, the running ones elsewhere."""
    return Marks(
        tl.where(is_over, p.initial_capital, marks.equity), benchmark,
        tl.where(is_over, p.initial_capital, marks.peak), tl.where(is_over, 0.0, marks.max_drawdown),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the host's side
class Rules:
    """Float settings by name, on the device; assigning one takes effect with the next step."""

    def __init__(self, values: dict[str, float], device: torch.device) -> None:
        """Values in the order of `Numbers`."""
        self.values = torch.tensor([values[name] for name in Numbers._fields], dtype=torch.float64, device=device)

    def __setitem__(self, name: str, value: float) -> None:
        """Change one setting; whether a phase is on stays as compiled."""
        self.values[Numbers._fields.index(name)] = value


class GpuStep:
    """The kernel bound to one environment's memory; calling it advances that environment in place."""

    def __init__(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, n_terms: int) -> None:
        """Allocate the books on the device of `env` and view its market, which is not copied."""
        n, n_assets, self.device = env.n_envs, env.action_dim, env.device

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=env.device)

        self.market, self.whole = market_of(env)
        self.memory = Memory(
            zeros(len(COUNTS), n, dtype=torch.int64), zeros(len(MONEY), n), zeros(len(COINS), n, n_assets),
            zeros(n, n_assets, dtype=torch.int64),
        )  # fmt: skip
        own = {name: env._slots[name] for name in Outputs._fields[:5]}
        reports = {"trades": zeros(n, dtype=torch.int64), "money": zeros(len(REPORTED), n), "terms": zeros(n_terms, n)}
        self.outputs = Outputs(**own, **reports)
        self.rules = Rules(vars(env.params), env.device)
        self.choices = choices_of(env)
        self.n_envs = n
        self.graph: GraphedStep | None = None
        if env.device.type == "cuda" and n <= GRAPH_UP_TO_N_ENVS:
            buffer = zeros(n, n_assets, dtype=torch.float32)
            self.graph = GraphedStep(self.launch, buffer, capture_on_gpu, warm_up_on_gpu)

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Books and reports by name: (N,), (N, A), and terms (K, N), views of the memory that the kernel mutates."""
        memory: Any = self.memory
        out: Any = self.outputs
        books = {**dict(zip(COUNTS, memory.counts, strict=True)), **dict(zip(MONEY, memory.money, strict=True))}
        books |= {**dict(zip(COINS, memory.coins, strict=True)), "held_bars": memory.held_bars}
        return books, {**dict(zip(REPORTED, out.money, strict=True)), "trades": out.trades, "terms": out.terms}

    def __call__(self, action: torch.Tensor, callers_slots: dict[str, torch.Tensor]) -> None:
        """Advance one bar; action (N, A) float32 on the device. callers_slots replace state, reward and done."""
        on_gpu = self.device.type == "cuda"
        with torch.cuda.device(self.device) if on_gpu else contextlib.nullcontext():
            is_captured = on_gpu and torch.cuda.is_current_stream_capturing()  # by the caller, who gets a bare launch
            if self.graph is None or callers_slots or is_captured:
                self.launch(action, callers_slots)
            else:
                self.graph(action)

    def launch(self, action: torch.Tensor, callers_slots: dict[str, torch.Tensor]) -> None:
        """Put one step on the current stream."""
        out = self.outputs._replace(**callers_slots) if callers_slots else self.outputs
        step[(triton.cdiv(self.n_envs, self.choices.block),)](
            action.contiguous(), self.market, self.memory, out, self.rules.values, self.whole, self.n_envs,
            self.choices, num_warps=N_WARPS,
            enable_fp_fusion=False,  # a fused multiply-add rounds otherwise than the plain step
        )  # fmt: skip


def market_of(env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> tuple[Market, torch.Tensor]:
    """The kernel's view of the market, and the whole settings (8,) int64 in the order of `Whole`."""
    m, n_segments = env.market, len(env.market.segment_first)
    usable = torch.zeros_like(m.segment_first)
    usable[: len(m.usable_segment)] = m.usable_segment
    rows = (m.segment_first, m.segment_end, m.episode_limit, m.first_start, m.start_offset[:-1], usable)
    scale = drop_in.order_scale(m.price[m.segment_first], env.params)
    assets = torch.stack((m.min_qty, m.qty_increment))
    whole = Whole(
        lookback=env.params.lookback, stale_bars=env.params.stale_bars, seed=env.seed,
        episode_bars=env.episode_bars or 0, n_starts=int(m.start_offset[-1]), n_usable=len(m.usable_segment),
        n_segments=n_segments, n_bars=len(m.price),
    )  # fmt: skip
    # Closes keep the order in memory of the caller's array, which may be by column: only then are they copied.
    view = Market(m.price.contiguous(), m.windows, assets, torch.stack(rows), scale.contiguous())
    return view, torch.tensor(whole, dtype=torch.int64, device=env.device)


def choices_of(env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> Choices:
    """What the kernel is compiled for."""
    p, n_assets, window = env.params, env.action_dim, env.market.windows.shape[1]
    return Choices(
        order_sizing=p.order_sizing, reward=p.reward, start=env.start, buys_sequentially=p.buys == "sequential",
        always_allow_close=bool(p.always_allow_close), release_unpriced=bool(p.release_unpriced),
        reserve_of_equity=p.reserve_base == "equity", truncates=bool(p.truncates),
        discounts_final_reward=p.final_reward == "discounted_return", observes_absolute=p.observation == "absolute",
        benchmark_of_episode=p.benchmark_base == "episode", benchmark_pays_fee=bool(p.benchmark_pays_fee),
        observe_account=bool(p.observe_account), compact=bool(env.compact), restarts=not env.as_numpy,
        stops=p.trailing_stop_pct > 0, caps_positions=p.max_position_weight > 0, releases_stale=p.stale_bars > 0,
        has_increments=bool((env.market.qty_increment > 0).any()), penalizes_concentration=p.concentration_penalty > 0,
        n_assets=n_assets, n_columns=triton.next_power_of_2(n_assets), n_features=window // p.lookback, window=window,
        state_dim=env.state_dim, block=BLOCK, tile=min(TILE_WIDTH, triton.next_power_of_2(max(window, 1))),
        offset_type=tl.int32 if len(env.market.price) * (window // p.lookback) < 2**31 else tl.int64,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- CUDA and HIP graphs
Launch = Callable[[torch.Tensor, dict[str, torch.Tensor]], None]


class GraphedStep:
    """Replays a captured launch: at small N the host needs longer for a launch than the GPU for the kernel.

    The graph reads its action from a buffer of its own and writes to the environment's own buffers. The first WARM_UPS
    calls are plain launches, each a real step, on a side stream as torch asks for; then one launch is captured, which
    does not run it, and replayed from there on. Where no graph can be captured every call stays a plain launch.
    """

    def __init__(
        self, launch: Launch, action: torch.Tensor, capture: Callable[[Callable[[], None]], Callable[[], None]],
        warm_up: Callable[[Callable[[], None]], None],
    ) -> None:  # fmt: skip
        """`capture` records a closure and returns its replay, or raises RuntimeError; `warm_up` runs one."""
        self.launch, self.action, self.capture, self.warm_up = launch, action, capture, warm_up
        self.n_warm_ups = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, action: torch.Tensor) -> None:
        """Advance one bar; action (N, A) float32 is copied."""
        self.action.copy_(action)
        if self.n_warm_ups < WARM_UPS:
            self.n_warm_ups += 1
            self.warm_up(self.plain)
            return
        if self.replay is None:
            try:
                self.replay = self.capture(self.plain)
            except RuntimeError:  # torch's answer where the driver or the caller's own capture forbids it
                self.replay = self.plain
        self.replay()

    def plain(self) -> None:
        """One launch on the buffer's action."""
        self.launch(self.action, {})


def capture_on_gpu(launch: Callable[[], None]) -> Callable[[], None]:
    """Record a launch in a CUDA or HIP graph. Waits for the GPU, once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return graph.replay


def warm_up_on_gpu(launch: Callable[[], None]) -> None:
    """Run a launch on a side stream, in order with the current one."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        launch()
    current.wait_stream(side)
