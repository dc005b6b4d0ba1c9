"""Gradient of the band in one compiled sweep over the bars (numba, CPU); see band_gradient.py.

Names and phases match band_gradient_torch.py, with branches instead of masks. Accounts are processed in blocks. Within
a bar the rows of a block are contiguous in memory, and the stored accounts of a block stay in the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from drl_agents.agents import band_gradient
from drl_agents.agents.band_gradient import BandRecord, StepRules
from drl_agents.numba_cache import cached, sources

Array = np.ndarray
BLOCK = 32  # accounts; 8, 16, 32 and 64 take 268, 222, 157 and 159 ns per account-bar of seven coins (AMD EPYC)

# Outcomes of a coin's order.
NOTHING, BUY, PARTIAL_SALE, CLOSING_SALE = range(4)


class Tape(NamedTuple):
    """Arrays of the record, see `BandRecord`; `trades` is empty if every coin trades in every bar."""

    bar: Array
    lo: Array  # (H, N, A), or (T, 1, A) by bar
    hi: Array
    action: Array
    filled: Array
    done: Array
    price: Array
    trades: Array
    min_qty: Array
    qty_increment: Array
    by_bar: bool
    drift: Array  # (A,) growth weight times mean return; empty if nothing is subtracted


class Room(NamedTuple):
    """Buffers of one block of B accounts; the first four hold the accounts before each step."""

    cash: Array  # (H, B)
    qty: Array  # (H, B, A)
    peak: Array  # (H, B)
    max_drawdown: Array  # (H, B)
    d_cash: Array  # (B,) this and the following d_ fields are adjoints
    d_qty: Array  # (B, A)
    d_peak: Array  # (B,)
    d_drawdown: Array  # (B,)
    action: Array  # (A,) action of the differentiated order
    order: Array  # (A,) coins bought, after the cap
    d_order: Array  # (A,)
    kind: Array  # (A,) int8
    edge: Array  # (A,) int8, 1: below the band, -1: above
    follows: Array  # (A,) bool, the order follows that edge
    is_capped: Array  # (A,) bool


class Values(NamedTuple):
    """Values of one account over one bar, in quote currency."""

    equity: float  # when the order was chosen
    at_fill: float  # at the next close, before any order
    after: float  # at the next close, after all orders
    cash_after_sells: float
    notional: float  # traded notional
    floored: float  # equity, at least the floor


native: Any = njit(_nrt=False, error_model="numpy", forceinline=True)  # pyright: ignore[reportCallIssue]


@native
def fresh_account(h: int, i: int, s: Room, r: StepRules) -> None:
    """Write the initial account of an episode before step h."""
    s.cash[h, i], s.peak[h, i], s.max_drawdown[h, i] = r.initial_capital, r.initial_capital, 0.0
    for a in range(s.qty.shape[2]):
        s.qty[h, i, a] = 0.0


@native
def follow_step(h: int, i: int, n: int, t: Tape, s: Room, r: StepRules) -> None:
    """Advance one account from step h to the next, using its recorded fills."""
    b = min(t.bar[h, n] + 1, len(t.price) - 1)
    sold, bought, coins = 0.0, 0.0, 0.0
    for a in range(t.price.shape[1]):
        filled, price = t.filled[h, n, a], t.price[b, a]
        sold += max(-filled, 0.0) * price
        bought += max(filled, 0.0) * price
        qty = s.qty[h, i, a] + filled
        s.qty[h + 1, i, a] = qty
        coins += qty * price
    cash = s.cash[h, i] + sold * r.unit_proceeds
    cash = max(cash - bought * r.unit_cost, 0.0)
    s.cash[h + 1, i] = cash
    if r.drawdown != 0:
        peak = max(s.peak[h, i], cash + coins)
        s.peak[h + 1, i] = peak
        s.max_drawdown[h + 1, i] = max(s.max_drawdown[h, i], 1.0 - (cash + coins) / peak)


@native
def follow(first: int, n_accounts: int, t: Tape, s: Room, r: StepRules) -> None:
    """Fill in the accounts before each step by summing the recorded fills; row 0 is given."""
    for h in range(len(t.bar) - 1):
        for i in range(n_accounts):
            if t.done[h, first + i]:
                fresh_account(h + 1, i, s, r)
            else:
                follow_step(h, i, first + i, t, s, r)


@native
def value_account(h: int, i: int, n: int, b: int, t: Tape, s: Room, r: StepRules) -> Values:
    """Value the account over bar b - 1 to b (or the last bar twice)."""
    cash, chosen_at = s.cash[h, i], t.bar[h, n]
    before, at_fill, coins, sold, bought = 0.0, 0.0, 0.0, 0.0, 0.0
    for a in range(t.price.shape[1]):
        qty, filled, price = s.qty[h, i, a], t.filled[h, n, a], t.price[b, a]
        before += qty * t.price[chosen_at, a]
        at_fill += qty * price
        coins += (qty + filled) * price
        sold += max(-filled, 0.0) * price
        bought += max(filled, 0.0) * price
    cash_after_sells = cash + sold * r.unit_proceeds
    after = max(cash_after_sells - bought * r.unit_cost, 0.0) + coins
    equity = cash + before
    return Values(equity, cash + at_fill, after, cash_after_sells, sold + bought, max(equity, r.equity_floor))


@native
def band_at(h: int, n: int, t: Tape) -> tuple[int, int]:
    """Return row and column of an account's band."""
    return (t.bar[h, n], 0) if t.by_bar else (h, n)


@native
def share_of_new(new: float, old: float) -> float:
    """Return the derivative of max(old, new) with respect to `new`; 1/2 at equality, as in autograd."""
    return 1.0 if new > old else (0.5 if new == old else 0.0)


@native
def drawdown_back(h: int, i: int, equity: float, s: Room, r: StepRules) -> float:
    """Backpropagate through peak and drawdown; return the derivative w.r.t. equity.

    s.d_peak and s.d_drawdown are updated.
    """
    if r.drawdown == 0:
        return 0.0
    peak = max(s.peak[h, i], equity)
    d_drawdown = s.d_drawdown[i] - r.drawdown
    of_new = share_of_new(1.0 - equity / peak, s.max_drawdown[h, i]) * d_drawdown
    d_peak = s.d_peak[i] + of_new * equity / peak**2
    of_peak = share_of_new(equity, s.peak[h, i]) * d_peak
    s.d_peak[i] = d_peak - of_peak
    s.d_drawdown[i] = d_drawdown - of_new + r.drawdown
    return of_peak - of_new / peak


@native
def concentration_back(h: int, i: int, n: int, b: int, equity: float, t: Tape, s: Room, r: StepRules) -> float:
    """Backpropagate through the largest weight; return the derivative w.r.t. equity.

    The derivative w.r.t. the coins is added to s.d_qty.
    """
    if r.concentration == 0 or equity <= 0:
        return 0.0
    n_assets, largest, n_largest = t.price.shape[1], 0.0, 0
    for a in range(n_assets):
        weight = (s.qty[h, i, a] + t.filled[h, n, a]) * t.price[b, a] / equity
        n_largest = 1 if weight > largest else n_largest + (weight == largest)
        largest = max(weight, largest)
    if largest < r.target_weight:
        return 0.0
    d_weight = -r.concentration / n_largest
    for a in range(n_assets):
        if (s.qty[h, i, a] + t.filled[h, n, a]) * t.price[b, a] / equity == largest:
            s.d_qty[i, a] += d_weight * t.price[b, a] / equity
    return r.concentration * largest / equity


@native
def choose_orders(
    h: int, i: int, n: int, b: int, v: Values, t: Tape, s: Room, r: StepRules, as_if_filled: bool, counts: Array
) -> float:
    """Fill in the orders of a bar, with the selected treatment of small orders; return the cost of the buys (quote)."""
    cost = 0.0
    for a in range(t.price.shape[1]):
        action, price, qty = float(t.action[h, n, a]), t.price[b, a], s.qty[h, i, a]
        is_replaced, of_band = False, action
        if action == -1.0:
            weight = qty * t.price[t.bar[h, n], a] / v.floored
            row, column = band_at(h, n, t)
            of_band = min(max(weight, float(t.lo[row, column, a])), float(t.hi[row, column, a])) - weight
            is_replaced = of_band != -1.0
        s.edge[a] = (of_band > 0) - (of_band < 0)
        counts[0] += s.edge[a] != 0
        counts[1] += (s.edge[a] != 0) & (t.filled[h, n, a] == 0)
        if as_if_filled:
            action = of_band
        is_traded = len(t.trades) == 0 or t.trades[b, a] != 0
        s.follows[a] = is_traded & (as_if_filled or not is_replaced)
        s.kind[a], s.is_capped[a], s.action[a] = NOTHING, False, action
        if action == 0 or price <= 0 or not is_traded:
            continue
        per_unit = v.at_fill / price
        order = action * per_unit
        if r.max_position_weight > 0:
            room = max(r.max_position_weight * per_unit - qty, 0.0)
            s.is_capped[a] = order > room
            order = min(order, room)
        s.order[a], s.kind[a] = classify(order, qty, price, t.filled[h, n, a], a, t, r, as_if_filled)
        if s.kind[a] == BUY:
            cost += s.order[a] * price * r.unit_cost
    return cost


@native
def classify(
    order: float, qty: float, price: float, filled: float, a: int, t: Tape, r: StepRules, as_if_filled: bool
) -> tuple[float, int]:
    """Return (order, kind) of one coin."""
    if as_if_filled:
        is_large = abs(order) * price >= r.dust
        if order > 0:
            return order, BUY if is_large else NOTHING
        if qty <= 0 or order == 0:
            return order, NOTHING
        if -order >= qty:
            return order, CLOSING_SALE
        return order, PARTIAL_SALE if is_large else NOTHING
    if filled < 0:
        return order, CLOSING_SALE if qty + filled == 0 else PARTIAL_SALE
    step = t.qty_increment[a]
    if step > 0:
        order = np.floor(order / step + r.increment_slack) * step
    is_large = order > t.min_qty[a] and order * price >= r.min_order_notional
    return order, BUY if is_large else NOTHING


@native
def buys_back(
    h: int, i: int, n: int, b: int, v: Values, cost: float, d_cash: float, d_notional: float, t: Tape, s: Room,
    r: StepRules, as_if_filled: bool,
) -> float:  # fmt: skip
    """Backpropagate through the proportional buys into s.d_order; return the derivative w.r.t. available cash."""
    if cost <= 0:
        return 0.0
    free = max(v.cash_after_sells - r.reserve * v.at_fill - r.reserve_quote, 0.0)
    ratio = free * r.cash_haircut / cost
    scale, d_ratio = min(ratio, 1.0), 0.0
    for a in range(t.price.shape[1]):
        if s.kind[a] == BUY:
            price = t.price[b, a]
            is_bought = s.order[a] * scale * price >= r.dust if as_if_filled else t.filled[h, n, a] > 0
            is_smooth = as_if_filled or t.qty_increment[a] == 0
            d_bought = s.d_qty[i, a] - d_cash * r.unit_cost * price + d_notional * price
            s.d_order[a] = d_bought if is_bought & is_smooth else 0.0
            d_ratio += s.d_order[a] * s.order[a]
    if ratio > 1.0:
        return 0.0
    for a in range(t.price.shape[1]):
        is_smooth = as_if_filled or t.qty_increment[a] == 0
        if s.kind[a] == BUY and is_smooth:
            s.d_order[a] = s.d_order[a] * scale - d_ratio * ratio / cost * t.price[b, a] * r.unit_cost
    return d_ratio / cost * r.cash_haircut


@native
def orders_back(
    h: int, i: int, n: int, b: int, v: Values, d_cash: float, d_notional: float, t: Tape, s: Room, r: StepRules,
    as_if_filled: bool, d_lo: Array, d_hi: Array,
) -> tuple[float, float]:  # fmt: skip
    """Backpropagate through sells, cap and sizing to the edges.

    Return the derivatives w.r.t. (equity at fill, equity before).
    """
    d_at_fill, d_equity = 0.0, 0.0
    for a in range(t.price.shape[1]):
        kind, price = s.kind[a], t.price[b, a]
        if kind == NOTHING:
            continue
        d_order = s.d_order[a]
        if kind != BUY:
            d_sold = d_cash * r.unit_proceeds * price - s.d_qty[i, a] + d_notional * price
            if kind == CLOSING_SALE:
                s.d_qty[i, a] += d_sold
                continue
            d_order = -d_sold if as_if_filled or t.qty_increment[a] == 0 else 0.0
        if s.is_capped[a]:
            s.d_qty[i, a] -= d_order
            d_at_fill += d_order * r.max_position_weight / price
            continue
        d_at_fill += d_order * s.action[a] / price
        if not s.follows[a] or s.edge[a] == 0:
            continue
        d_action = d_order * v.at_fill / price
        row, column = band_at(h, n, t)
        if s.edge[a] > 0:
            d_lo[row, column, a] += d_action
        else:
            d_hi[row, column, a] += d_action
        d_equity += weight_back(i, a, -d_action, s.qty[h, i, a], t.price[t.bar[h, n], a], v, s)
    return d_at_fill, d_equity


@native
def weight_back(i: int, a: int, d_weight: float, qty: float, price: float, v: Values, s: Room) -> float:
    """Backpropagate through weight = qty * price / equity into s.d_qty; return the derivative w.r.t. equity."""
    d_value = d_weight / v.floored
    s.d_qty[i, a] += d_value * price
    return -d_value * qty * price / v.floored if v.equity >= v.floored else 0.0


@native
def step_back(
    h: int, i: int, n: int, t: Tape, s: Room, r: StepRules, as_if_filled: bool, d_equity: float, d_lo: Array,
    d_hi: Array, counts: Array,
) -> None:  # fmt: skip
    """Propagate the adjoints of one account backwards over step h, and write the gradient of the edges."""
    n_assets, chosen_at = t.price.shape[1], t.bar[h, n]
    b = min(chosen_at + 1, len(t.price) - 1)
    v = value_account(h, i, n, b, t, s, r)
    floored = max(v.after, r.equity_floor)
    d_growth = r.growth
    if r.volatility != 0:
        d_growth -= 2.0 * r.volatility * np.log(floored / v.floored)
    total = d_equity
    if v.after >= r.equity_floor:
        total += (d_growth + r.turnover * v.notional / floored) / floored
    total += drawdown_back(h, i, v.after, s, r)
    total += concentration_back(h, i, n, b, v.after, t, s, r)
    d_notional, d_cash = -r.turnover / floored, s.d_cash[i] + total
    is_asked = False
    for a in range(n_assets):
        s.d_qty[i, a] += total * t.price[b, a]
        is_asked |= t.action[h, n, a] != 0

    d_before = -d_growth / v.floored if v.equity >= r.equity_floor else 0.0
    d_at_fill = 0.0
    if is_asked:
        cost = choose_orders(h, i, n, b, v, t, s, r, as_if_filled, counts)
        d_budget = buys_back(h, i, n, b, v, cost, d_cash, d_notional, t, s, r, as_if_filled)
        d_cash += d_budget
        by_fill, by_weight = orders_back(h, i, n, b, v, d_cash, d_notional, t, s, r, as_if_filled, d_lo, d_hi)
        d_at_fill += by_fill - r.reserve * d_budget
        d_before += by_weight
    for a in range(len(t.drift)):
        d_before += weight_back(i, a, -t.drift[a], s.qty[h, i, a], t.price[chosen_at, a], v, s)
    for a in range(n_assets):
        s.d_qty[i, a] += d_at_fill * t.price[b, a] + d_before * t.price[chosen_at, a]
    s.d_cash[i] = d_cash + d_at_fill + d_before


@native
def forget(i: int, s: Room) -> None:
    """Stop the gradient at the end of an episode."""
    s.d_cash[i], s.d_peak[i], s.d_drawdown[i] = 0.0, 0.0, 0.0
    for a in range(s.d_qty.shape[1]):
        s.d_qty[i, a] = 0.0


def sweep_of(version: int) -> Any:
    """Return the compiled sweep. If a cache folder is writable, the sweep is cached on disk by version."""

    def sweep_block(
        first: int, n_accounts: int, t: Tape, s: Room, r: StepRules, as_if_filled: bool, d_equity: Array, d_lo: Array,
        d_hi: Array, counts: Array,
    ) -> None:  # fmt: skip
        """Compute the gradient of accounts first .. first + n_accounts - 1; row 0 of the buffers' accounts is given."""
        _ = version  # captured, and therefore part of the disk cache key
        follow(first, n_accounts, t, s, r)
        s.d_cash[:], s.d_qty[:], s.d_peak[:], s.d_drawdown[:] = 0.0, 0.0, 0.0, 0.0
        n_steps = len(t.bar)
        for h in range(n_steps - 1, -1, -1):
            for i in range(n_accounts):
                n = first + i
                if t.done[h, n]:
                    forget(i, s)
                d_final = d_equity[n] if h == n_steps - 1 else 0.0
                step_back(h, i, n, t, s, r, as_if_filled, d_final, d_lo, d_hi, counts)

    return cached(sweep_block, nogil=True, error_model="numpy")


# numba checks one file for changes, but the field order of StepRules is in a different file.
sweep_block = sweep_of(sources(__file__, band_gradient.__file__))


def _room(n_steps: int, n_accounts: int, n_assets: int) -> Room:
    rows = (n_steps, n_accounts)
    return Room(
        cash=np.empty(rows), qty=np.empty((*rows, n_assets)), peak=np.empty(rows), max_drawdown=np.empty(rows),
        d_cash=np.empty(n_accounts), d_qty=np.empty((n_accounts, n_assets)), d_peak=np.empty(n_accounts),
        d_drawdown=np.empty(n_accounts), action=np.empty(n_assets), order=np.empty(n_assets),
        d_order=np.empty(n_assets), kind=np.empty(n_assets, np.int8), edge=np.empty(n_assets, np.int8),
        follows=np.empty(n_assets, np.bool_), is_capped=np.empty(n_assets, np.bool_),
    )  # fmt: skip


def _band(edge: Tensor) -> Array:
    return (edge[:, None] if edge.ndim == 2 else edge).contiguous().numpy()


def _tape(record: BandRecord, drift: Tensor | None) -> Tape:
    def array(x: Tensor | None, kind: Any = np.float64) -> Array:
        return np.ascontiguousarray(x.numpy(), kind) if x is not None else np.empty(0, kind)

    trades = np.empty((0, 0), np.bool_) if record.trades is None else record.trades.numpy() != 0
    return Tape(
        bar=array(record.bar, np.int64), lo=_band(record.lo), hi=_band(record.hi),
        action=np.ascontiguousarray(record.action.numpy()), filled=array(record.filled),
        done=array(record.done, np.bool_), price=array(record.price), trades=trades, min_qty=array(record.min_qty),
        qty_increment=array(record.qty_increment), by_bar=record.lo.ndim == 2, drift=array(drift),
    )  # fmt: skip


def sweep(
    record: BandRecord, rules: StepRules, as_if_filled: bool, mean_return: Tensor | None, final_equity: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (gradient w.r.t. lo, gradient w.r.t. hi, share of touched edges, share of those without a fill).

    The gradients have the shape of the edges.
    """
    n_steps, n_accounts, n_assets = record.filled.shape
    d_lo, d_hi = (torch.zeros(x.shape, dtype=x.dtype) for x in (record.lo, record.hi))
    counts = np.zeros(2, np.int64)
    tape = _tape(record, None if mean_return is None else rules.growth * mean_return)
    d_equity = np.zeros(n_accounts) if final_equity is None else final_equity.double().numpy()
    room = _room(n_steps, min(BLOCK, n_accounts), n_assets)
    for first in range(0, n_accounts, BLOCK):
        n = min(BLOCK, n_accounts - first)
        rows = slice(first, first + n)
        room.cash[0, :n], room.qty[0, :n] = record.cash[rows], record.qty[rows]
        room.peak[0, :n], room.max_drawdown[0, :n] = record.peak[rows], record.max_drawdown[rows]
        sweep_block(first, n, tape, room, rules, as_if_filled, d_equity, _band(d_lo), _band(d_hi), counts)
    touched, dropped = (torch.tensor(float(x), dtype=torch.float64) for x in counts)
    return d_lo, d_hi, touched / max(record.filled.numel(), 1), dropped / touched.clamp(min=1.0)
