"""The step of `environment_Alpaca_vectorized.py` as one native loop over environments (numba, CPU).

Imported lazily by VectorizedCryptoEnvAlpacaOptimized; without numba that class runs the plain torch step instead.
Phases, names and order are those of the plain file, so that the two can be read side by side; every test of the plain
class runs on this one too. The loop mutates the account arrays in place and writes observation, reward and flags
straight into the caller's storage: nothing is allocated in a step.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, prange

import environment_Alpaca_vectorized as drop_in

# Below this many environments the cost of waking a second thread exceeds its gain (benchmarks/bench_step.py).
PARALLEL_FROM_N_ENVS = 2048

ORDER_SIZINGS = ("price_magnitude", "initial_capital", "equity")
REWARDS = ("benchmark_difference", "cappuccino", "weighted_terms")
STARTS = ("first", "random", "stratified")


def columns(kind: str, names: str) -> list[tuple[str, str]]:
    """Fields of one kind of an array of records."""
    return [(name, kind) for name in names.split()]


# `EnvParams` as numbers, which is what a compiled function takes: choices are indices into the tuples above, and
# episode_bars 0 means to the end of the segment.
RULES = np.dtype(
    columns(
        "f8",
        "initial_capital buy_fee_rate sell_fee_rate gamma slippage_rate min_order_notional stale_fraction cash_haircut "
        "terminal_equity_fraction norm_cash norm_stocks norm_reward norm_action min_cash_reserve max_position_weight "
        "trailing_stop_pct time_decay_floor growth_weight benchmark_weight drawdown_penalty volatility_penalty "
        "concentration_penalty turnover_penalty target_weight held_bars_scale equity_floor increment_slack",
    )
    + columns("i8", "lookback stale_bars order_sizing reward start seed episode_bars n_envs n_starts n_usable")
    + columns("?", "always_allow_close release_unpriced buys_sequentially reserve_of_equity truncates restarts")
    + columns("?", "discounts_final_reward observes_absolute benchmark_of_episode benchmark_pays_fee observe_account compact"),
    align=True,
)
ASSET = np.dtype(columns("f8", "min_qty qty_increment"))
SEGMENT = np.dtype(columns("i8", "first end limit first_start starts_before usable"))
Record = Any  # one element of an array of records, its fields as attributes
Marks = tuple[float, float, float]  # equity, benchmark and largest drawdown at the bar before

# The arguments of the compiled step are few, because each costs a fraction of a microsecond a call, and their types do
# not depend on the number of assets or terms, so that one compiled version serves all. `Books` is `Portfolio` as rows
# of `Memory`, in this order.
COUNTS = ("bar", "first_bar", "last_bar", "segment", "trades", "episode", "rejected")
MONEY = ("cash", "equity", "benchmark", "peak", "max_drawdown", "discounted_return", *drop_in.COSTS)
COINS = ("qty", "high", "order_scale", "benchmark_qty", "order_qty")
REPORTED = ("equity", "benchmark", "episode_return", *drop_in.COSTS)
MarketArrays = namedtuple("MarketArrays", "price windows assets segments order_scale")
Memory = namedtuple("Memory", "counts money coins held_bars")  # (7, N), (9, N), (5, N, A), (N, A)
Books = namedtuple("Books", (*COUNTS, *MONEY, *COINS, "held_bars"))
Outputs = namedtuple("Outputs", "state reward done final_state truncated trades money terms")


# Without numba's reference counting (_nrt=False) nothing may be allocated in here, and nothing is. It counted 400
# times in a step: 2.9 us an environment step with it, 1.0 us without (2-core x86-64, standard rules, 7 assets).
native: Any = njit(_nrt=False, error_model="numpy")  # pyright: ignore[reportCallIssue]


@native
def books_of(memory: Memory) -> Books:
    """The rows of `memory` by name."""
    c, d, q = memory.counts, memory.money, memory.coins
    money = (d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7], d[8])
    coins = (q[0], q[1], q[2], q[3], q[4], memory.held_bars)
    return Books(c[0], c[1], c[2], c[3], c[4], c[5], c[6], *money, *coins)


@native
def value_of(qty: np.ndarray, price: np.ndarray) -> float:
    """Coins at the close, quote."""
    value = 0.0
    for a in range(price.shape[0]):
        value += qty[a] * price[a]
    return value


@native
def whole_increments(quantity: float, asset: Record, p: Record) -> float:
    """Quantity cut to the venue's step."""
    # np.floor: math.floor makes an int64 here, which 1e10 coins in steps of 1e-9 overflow.
    if asset.qty_increment > 0 and math.isfinite(quantity):
        return np.floor(quantity / asset.qty_increment + p.increment_slack) * asset.qty_increment
    return quantity


@native
def order_quantities(i: int, action: np.ndarray, price: np.ndarray, equity: float, b: Books, p: Record) -> None:
    """Fill b.order_qty[i]; a non-finite action is a hold."""
    is_valid = True
    for a in range(price.shape[0]):
        is_valid = is_valid and math.isfinite(action[i, a])
    b.rejected[i] += not is_valid
    for a in range(price.shape[0]):
        wish = action[i, a] if is_valid else np.float32(0.0)
        if p.order_sizing == 0:
            b.order_qty[i, a] = np.float64(wish) * b.order_scale[i, a]
        elif p.order_sizing == 1:  # in float32, as the host computes it
            b.order_qty[i, a] = np.float64(wish * np.float32(b.order_scale[i, a]))
        else:
            b.order_qty[i, a] = np.float64(wish) * (equity / (price[a] * p.norm_action)) if price[a] > 0 else 0.0


@native
def is_large_enough(quantity: float, price: float, asset: Record, p: Record) -> bool:
    """Whether the venue takes an order of this size."""
    return quantity > asset.min_qty and quantity * price >= p.min_order_notional


@native
def cap_positions(i: int, price: np.ndarray, equity: float, b: Books, p: Record) -> None:
    """Cut buys to max_position_weight of the account."""
    for a in range(price.shape[0]):
        room = max(p.max_position_weight * equity / price[a] - b.qty[i, a], 0.0) if price[a] > 0 else 0.0
        b.order_qty[i, a] = min(b.order_qty[i, a], room)


@native
def execute_sale(i: int, a: int, sold: float, price: float, b: Books, p: Record) -> None:
    """Take `sold` coins out at the close less slippage and fee."""
    if sold <= 0:
        return
    fill = price * (1.0 - p.slippage_rate)
    b.qty[i, a] -= sold
    b.cash[i] += sold * fill * (1.0 - p.sell_fee_rate)
    b.held_bars[i, a] = 0
    if b.qty[i, a] == 0.0:
        b.high[i, a] = 0.0
    book_trade(i, sold, price, fill * p.sell_fee_rate, b, p)


@native
def book_trade(i: int, quantity: float, price: float, fee_per_coin: float, b: Books, p: Record) -> None:
    """Count one fill in the step's totals."""
    b.trades[i] += 1
    b.fees[i] += quantity * fee_per_coin
    b.slippage[i] += quantity * price * p.slippage_rate
    b.turnover[i] += quantity * price


@native
def execute_trailing_stops(i: int, price: np.ndarray, b: Books, p: Record) -> None:
    """Sell whole positions that fell too far from their high."""
    for a in range(price.shape[0]):
        if b.qty[i, a] > 0:
            b.high[i, a] = max(b.high[i, a], price[a])
            if 0 < price[a] < b.high[i, a] * (1.0 - p.trailing_stop_pct):
                execute_sale(i, a, b.qty[i, a], price[a], b, p)


@native
def execute_sells(i: int, price: np.ndarray, m: MarketArrays, b: Books, p: Record) -> None:
    """Sell what the orders ask for, at most the position."""
    for a in range(price.shape[0]):
        order = -b.order_qty[i, a]
        if not (order > 0 and b.qty[i, a] > 0 and price[a] > 0):
            continue
        if p.always_allow_close and order >= b.qty[i, a]:
            execute_sale(i, a, b.qty[i, a], price[a], b, p)
            continue
        wanted = whole_increments(order, m.assets[a], p)
        if is_large_enough(wanted, price[a], m.assets[a], p):
            execute_sale(i, a, min(b.qty[i, a], wanted), price[a], b, p)


@native
def release_stale(i: int, price: np.ndarray, m: MarketArrays, b: Books, p: Record) -> None:
    """Sell a fraction of every position held too long, or all where the venue wants more."""
    for a in range(price.shape[0]):
        if b.held_bars[i, a] >= p.stale_bars and (price[a] > 0 or p.release_unpriced):
            released = b.qty[i, a] * p.stale_fraction
            if p.always_allow_close:
                released = whole_increments(released, m.assets[a], p)
                released = released if is_large_enough(released, price[a], m.assets[a], p) else b.qty[i, a]
            execute_sale(i, a, released, price[a], b, p)


@native
def spendable_cash(i: int, equity: float, b: Books, p: Record) -> float:
    """Quote that buys may use, reserve kept."""
    base = equity if p.reserve_of_equity else p.initial_capital
    return max(b.cash[i] - p.min_cash_reserve * base, 0.0) * p.cash_haircut


@native
def execute_purchase(i: int, a: int, bought: float, price: float, m: MarketArrays, b: Books, p: Record) -> None:
    """Add `bought` coins unless the order became too small."""
    if bought <= 0 or bought < m.assets[a].min_qty or bought * price < p.min_order_notional:
        return
    if b.qty[i, a] == 0.0:
        b.high[i, a] = price
    b.qty[i, a] += bought
    b.cash[i] = max(b.cash[i] - bought * unit_cost(price, p), 0.0)  # max: rounding only
    book_trade(i, bought, price, price * (1.0 + p.slippage_rate) * p.buy_fee_rate, b, p)


@native
def unit_cost(price: float, p: Record) -> float:
    """Quote paid per coin, slippage and fee included."""
    return price * (1.0 + p.slippage_rate) * (1.0 + p.buy_fee_rate)


@native
def execute_buys(i: int, price: np.ndarray, equity: float, m: MarketArrays, b: Books, p: Record) -> None:
    """Asset by asset in the hosts' rules, all scaled together when cash is short in "standard"."""
    order_qty = b.order_qty[i]
    cost = 0.0
    for a in range(price.shape[0]):
        wanted = whole_increments(order_qty[a], m.assets[a], p)
        is_order = price[a] > 0 and is_large_enough(wanted, price[a], m.assets[a], p)
        order_qty[a] = wanted if is_order else 0.0
        cost += order_qty[a] * unit_cost(price[a], p) if is_order else 0.0
    if not p.buys_sequentially:
        scale = min(1.0, spendable_cash(i, equity, b, p) / cost) if cost > 0 else 0.0
        for a in range(price.shape[0]):
            execute_purchase(i, a, whole_increments(order_qty[a] * scale, m.assets[a], p), price[a], m, b, p)
        return
    for a in range(price.shape[0]):
        if order_qty[a] > 0:
            affordable = spendable_cash(i, equity, b, p) / unit_cost(price[a], p)
            execute_purchase(i, a, min(order_qty[a], affordable), price[a], m, b, p)


@native
def mark_to_market(i: int, price: np.ndarray, b: Books) -> None:
    """Value account and benchmark; carry peak and drawdown on."""
    b.equity[i], b.benchmark[i] = b.cash[i] + value_of(b.qty[i], price), value_of(b.benchmark_qty[i], price)
    b.peak[i] = max(b.peak[i], b.equity[i])
    b.max_drawdown[i] = max(b.max_drawdown[i], 1.0 - b.equity[i] / b.peak[i])


@native
def largest_weight(i: int, price: np.ndarray, b: Books) -> float:
    """Share of the largest position."""
    largest = 0.0
    for a in range(price.shape[0]):
        largest = max(largest, b.qty[i, a] * price[a] / b.equity[i] if b.equity[i] > 0 else 0.0)
    return largest


@native
def weighted_terms(i: int, price: np.ndarray, before: Marks, b: Books, p: Record, terms: np.ndarray) -> None:
    """Fill the terms of the standard reward."""
    floor = p.equity_floor * p.initial_capital
    growth = math.log(max(b.equity[i], floor) / max(before[0], floor))
    tracked = math.log(max(b.benchmark[i], floor) / max(before[1], floor))
    terms[0, i] = p.norm_reward * p.growth_weight * growth
    terms[1, i] = -p.norm_reward * p.benchmark_weight * tracked
    terms[2, i] = -p.norm_reward * p.drawdown_penalty * (b.max_drawdown[i] - before[2])
    terms[3, i] = -p.norm_reward * p.volatility_penalty * growth**2
    terms[4, i] = -p.norm_reward * p.concentration_penalty * max(0.0, largest_weight(i, price, b) - p.target_weight)
    terms[5, i] = -p.norm_reward * p.turnover_penalty * b.turnover[i] / max(b.equity[i], floor)


@native
def cappuccino_terms(
    i: int, price: np.ndarray, before: Marks, m: MarketArrays, b: Books, p: Record, terms: np.ndarray
) -> None:
    """Fill the terms of the Cappuccino reward."""
    gain, benchmark_gain = b.equity[i] - before[0], b.benchmark[i] - before[1]
    decay = time_decay(i, m, b, p)
    market_return = benchmark_gain / before[1] if before[1] > 0 else 0.0
    cash_share = b.cash[i] / b.equity[i] if b.equity[i] > 0 else 0.0
    earns_bonus = market_return < 0 and cash_share > 0.1
    shortfall = max(p.min_cash_reserve * p.initial_capital - b.cash[i], 0.0)
    terms[0, i] = 0.5 * (gain - benchmark_gain) * p.norm_reward * decay
    terms[1, i] = 0.3 * gain / p.initial_capital * p.norm_reward * decay
    terms[2, i] = 0.02 * abs(market_return) * cash_share * p.norm_reward if earns_bonus else 0.0
    terms[3, i] = -shortfall / p.initial_capital * p.norm_reward * 0.5
    terms[4, i] = cappuccino_concentration(i, price, b, p)


@native
def time_decay(i: int, m: MarketArrays, b: Books, p: Record) -> float:
    """Factor that falls over the segment."""
    first = m.segments[b.segment[i]].first + p.lookback - 1
    last = m.segments[b.segment[i]].end - p.lookback - 1
    progress = min(max((b.bar[i] - first) / max(last - first, 1), 0.0), 1.0)
    return max(1.0 - progress, p.time_decay_floor)


@native
def cappuccino_concentration(i: int, price: np.ndarray, b: Books, p: Record) -> float:
    """Penalty for one large position and for few, bonus for evenly spread ones (Gini coefficient by ranks)."""
    if p.concentration_penalty <= 0 or b.equity[i] <= 0:
        return 0.0
    n_held, total, ranked = 0, 0.0, 0.0
    for a in range(price.shape[0]):
        weight = b.qty[i, a] * price[a] / b.equity[i]
        if weight > 0.01:
            n_held += 1
            total += weight
            ranked += weight * rank_among_held(i, a, weight, price, b)
    large = p.concentration_penalty * max(0.0, largest_weight(i, price, b) - p.target_weight)
    if n_held < 3:
        return -large - 0.5 * p.concentration_penalty * (3 - n_held)
    gini = 2.0 * ranked / (n_held * total) - (n_held + 1.0) / n_held
    return 0.1 * p.concentration_penalty * max(0.0, 0.4 - gini) - large


@native
def rank_among_held(i: int, a: int, weight: float, price: np.ndarray, b: Books) -> int:
    """1 for the smallest held weight; ties go by column."""
    rank = 1
    for other in range(price.shape[0]):
        other_weight = b.qty[i, other] * price[other] / b.equity[i]
        rank += 0.01 < other_weight < weight or (other_weight == weight and other < a)
    return rank


@native
def step_one(i: int, action: np.ndarray, m: MarketArrays, memory: Memory, p: Record, out: Outputs) -> None:
    """One environment, one bar: stops, sells, releases, buys, then mark to market."""
    b = books_of(memory)
    before = (b.equity[i], b.benchmark[i], b.max_drawdown[i])
    b.bar[i] += 1
    for a in range(action.shape[1]):
        b.held_bars[i, a] += b.qty[i, a] > 0
    b.trades[i], b.fees[i], b.slippage[i], b.turnover[i] = 0, 0.0, 0.0, 0.0
    price = m.price[b.bar[i]]
    equity = b.cash[i] + value_of(b.qty[i], price)  # before any trade of this bar

    if p.trailing_stop_pct > 0:
        execute_trailing_stops(i, price, b, p)
    order_quantities(i, action, price, equity, b, p)
    if p.max_position_weight > 0:
        cap_positions(i, price, equity, b, p)
    execute_sells(i, price, m, b, p)
    if p.stale_bars > 0:
        release_stale(i, price, m, b, p)
    execute_buys(i, price, equity, m, b, p)

    mark_to_market(i, price, b)
    reward = reward_of(i, price, before, m, b, p, out.terms)

    is_ruined = p.truncates and b.equity[i] <= p.terminal_equity_fraction * p.initial_capital
    at_end = b.bar[i] >= b.last_bar[i]
    done = at_end or is_ruined
    if p.discounts_final_reward:
        b.discounted_return[i] = p.gamma * b.discounted_return[i] + reward
        reward = b.discounted_return[i] if done else reward

    out.reward[i], out.done[i], out.truncated[i] = reward, done, at_end and not is_ruined and p.truncates
    out.money[0, i], out.money[1, i], out.money[2, i] = b.equity[i], b.benchmark[i], b.equity[i] / p.initial_capital
    out.money[3, i], out.money[4, i], out.money[5, i] = b.fees[i], b.slippage[i], b.turnover[i]
    out.trades[i] = b.trades[i]
    if done and p.restarts:
        observe(i, m, b, p, out.final_state[i])
        b.episode[i] += 1
        open_portfolio(i, m, b, p)
    observe(i, m, b, p, out.state[i])


@native
def reward_of(
    i: int, price: np.ndarray, before: Marks, m: MarketArrays, b: Books, p: Record, terms: np.ndarray
) -> float:
    """Fill the terms and return their sum."""
    if p.reward == 0:
        terms[0, i] = ((b.equity[i] - before[0]) - (b.benchmark[i] - before[1])) * p.norm_reward
    elif p.reward == 1:
        cappuccino_terms(i, price, before, m, b, p, terms)
    else:
        weighted_terms(i, price, before, b, p, terms)
    return terms[:, i].sum()


@native
def observe(i: int, m: MarketArrays, b: Books, p: Record, row: np.ndarray) -> None:
    """Write a row (S,) float32: account, L rows of features newest first, extras."""
    n_assets, bar = m.price.shape[1], b.bar[i]
    if p.observes_absolute:
        row[0] = b.cash[i] * p.norm_cash
        for a in range(n_assets):
            row[1 + a] = b.qty[i, a] * p.norm_stocks
    else:
        equity = max(b.equity[i], p.equity_floor * p.initial_capital)
        row[0] = b.cash[i] / equity
        for a in range(n_assets):
            row[1 + a] = b.qty[i, a] * m.price[bar, a] / equity
    at = 1 + n_assets
    if not p.compact:
        window = m.windows[m.price.shape[0] - 1 - bar]
        for f in range(window.shape[0]):
            row[at + f] = window[f]
        at += window.shape[0]
    if p.observe_account:
        row[at] = (bar - b.first_bar[i]) / (b.last_bar[i] - b.first_bar[i])
        row[at + 1] = 1.0 - b.equity[i] / b.peak[i]
        for a in range(n_assets):
            row[at + 2 + a] = b.held_bars[i, a] * p.held_bars_scale
    if p.compact:
        row[row.shape[0] - 1] = bar


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
def draw_start(i: int, m: MarketArrays, b: Books, p: Record) -> None:
    """Set b.segment[i] and b.first_bar[i] for episode number b.episode[i]."""
    if p.start == 0:
        b.segment[i] = m.segments[(i + b.episode[i]) % p.n_usable].usable
        b.first_bar[i] = m.segments[b.segment[i]].first_start
        return
    low, width = 0, p.n_starts
    if p.start == 2:
        low = i * p.n_starts // p.n_envs
        width = max((i + 1) * p.n_starts // p.n_envs - low, 1)
    k = low + ((hash32(p.seed, i, b.episode[i]) * width) >> 32)
    segment = 0
    while segment + 1 < m.segments.shape[0] and m.segments[segment + 1].starts_before <= k:
        segment += 1
    b.segment[i], b.first_bar[i] = segment, m.segments[segment].first_start + k - m.segments[segment].starts_before


@native
def open_portfolio(i: int, m: MarketArrays, b: Books, p: Record) -> None:
    """A fresh account at a new start, holding cash only."""
    draw_start(i, m, b, p)
    segment, first_bar = m.segments[b.segment[i]], b.first_bar[i]
    b.bar[i], b.last_bar[i] = first_bar, segment.limit
    if p.episode_bars > 0:
        b.last_bar[i] = min(segment.limit, first_bar + p.episode_bars)
    base_price = m.price[first_bar if p.benchmark_of_episode else segment.first]
    n_priced = 0
    for base in base_price:
        n_priced += base > 0
    share = p.initial_capital / max(n_priced, 1)
    fee = 1.0 + (p.buy_fee_rate if p.benchmark_pays_fee else 0.0)
    for a in range(base_price.shape[0]):
        b.qty[i, a], b.held_bars[i, a], b.high[i, a] = 0.0, 0, 0.0
        b.order_scale[i, a] = m.order_scale[b.segment[i], a]
        b.benchmark_qty[i, a] = share / (base_price[a] * fee) if base_price[a] > 0 else 0.0
    b.cash[i], b.equity[i], b.peak[i] = p.initial_capital, p.initial_capital, p.initial_capital
    b.benchmark[i] = value_of(b.benchmark_qty[i], m.price[first_bar])
    b.max_drawdown[i], b.discounted_return[i] = 0.0, 0.0


def compiled(step: Callable[..., None], **options: Any) -> Any:
    """Compiled code is kept on disk where there is a folder to write to, else compiled anew by each process."""
    try:
        return njit(cache=True, error_model="numpy", **options)(step)
    except RuntimeError:  # numba: no locator available
        return njit(error_model="numpy", **options)(step)


# Two functions and not one compiled twice: numba's cache on disk would take the one for the other.
def step_serially(action: np.ndarray, m: MarketArrays, memory: Memory, rules: np.ndarray, out: Outputs) -> None:
    """Advance every environment one bar; action (N, A) float32."""
    for i in range(action.shape[0]):
        step_one(i, action, m, memory, rules[0], out)


def step_in_parallel(action: np.ndarray, m: MarketArrays, memory: Memory, rules: np.ndarray, out: Outputs) -> None:
    """The same on all of numba's threads."""
    for i in prange(action.shape[0]):
        step_one(i, action, m, memory, rules[0], out)


step_serial, step_parallel = compiled(step_serially, _nrt=False), compiled(step_in_parallel, parallel=True)


class CpuStep:
    """The compiled step bound to one environment's memory; calling it advances that environment in place."""

    def __init__(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, n_terms: int) -> None:
        """Allocate the records and view the market of `env`; the market is not copied."""
        market = env.market
        assets = np.zeros(env.action_dim, ASSET)
        assets["min_qty"], assets["qty_increment"] = market.min_qty, market.qty_increment
        segments = np.zeros(len(market.segment_first), SEGMENT)
        segments["first"], segments["end"] = market.segment_first, market.segment_end
        segments["limit"], segments["first_start"] = market.episode_limit, market.first_start
        segments["starts_before"] = market.start_offset[:-1]
        segments["usable"][: len(market.usable_segment)] = market.usable_segment
        scale = drop_in.order_scale(market.price[market.segment_first], env.params).numpy()  # (G, A)
        self.market = MarketArrays(market.price.numpy(), market.windows.numpy(), assets, segments, scale)
        n, n_assets = env.n_envs, env.action_dim
        self.memory = Memory(
            np.zeros((len(COUNTS), n), np.int64), np.zeros((len(MONEY), n)), np.zeros((len(COINS), n, n_assets)),
            np.zeros((n, n_assets), np.int64),
        )  # fmt: skip
        own = [env._slots[name].numpy() for name in Outputs._fields[:5]]
        reports = (np.zeros(n, np.int64), np.zeros((len(REPORTED), n)), np.zeros((n_terms, n)))
        self.outputs = Outputs._make([*own, *reports])
        self.rules = rules_of(env)
        self.step = step_parallel if env.n_envs >= PARALLEL_FROM_N_ENVS else step_serial

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Books and reports by name, as tensors on this memory; the scratch row of orders is left out."""
        memory, out = self.memory, self.outputs
        rows = [*zip(COUNTS, memory.counts, strict=True), *zip(MONEY, memory.money, strict=True)]
        rows += [*zip(COINS[:-1], memory.coins, strict=False), ("held_bars", memory.held_bars)]
        reports = [*zip(REPORTED, out.money, strict=True), ("trades", out.trades), ("terms", out.terms)]
        return {name: torch.from_numpy(row) for name, row in rows}, {n: torch.from_numpy(row) for n, row in reports}

    def __call__(self, action: torch.Tensor, callers_slots: dict[str, torch.Tensor]) -> None:
        """Advance one bar; action (N, A) float32 on the CPU."""
        given = {name: slot.numpy() for name, slot in callers_slots.items()}
        out = self.outputs._replace(**given) if given else self.outputs
        self.step(action.contiguous().numpy(), self.market, self.memory, self.rules, out)


def rules_of(env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> np.ndarray:
    """(1,) record of `EnvParams` and the options of starts."""
    p = env.params
    own = {
        "order_sizing": ORDER_SIZINGS.index(p.order_sizing), "reward": REWARDS.index(p.reward),
        "buys_sequentially": p.buys == "sequential", "reserve_of_equity": p.reserve_base == "equity",
        "discounts_final_reward": p.final_reward == "discounted_return", "start": STARTS.index(env.start),
        "observes_absolute": p.observation == "absolute", "benchmark_of_episode": p.benchmark_base == "episode",
        "target_weight": drop_in.TARGET_WEIGHT, "held_bars_scale": drop_in.HELD_BARS_SCALE,
        "equity_floor": drop_in.EQUITY_FLOOR, "increment_slack": drop_in.INCREMENT_SLACK, "seed": env.seed,
        "episode_bars": env.episode_bars or 0, "restarts": not env.as_numpy, "compact": env.compact, "n_envs": env.n_envs,
        "n_starts": int(env.market.start_offset[-1]), "n_usable": len(env.market.usable_segment),
    }  # fmt: skip
    rules = np.zeros(1, RULES)
    for name in RULES.names or ():
        rules[name] = own[name] if name in own else getattr(p, name)
    return rules
