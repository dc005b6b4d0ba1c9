"""Gradient of the band as two Triton kernels that loop over the bars (NVIDIA and AMD GPUs); see band_gradient.py.

Phases and names match band_gradient_torch.py, which launches about a hundred small kernels per bar. Here one program
takes `BLOCK` accounts through all bars: first forward to sum the recorded fills, then backward.
"""

# Compiled functions are Python only in syntax, so type checkers cannot infer their types.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from drl_agents.agents.band_gradient import BandRecord, StepRules

BLOCK = 4  # accounts per program; few, because a rollout has few accounts and a GPU has many processors

jit: Any = triton.jit
Lane = tl.tensor  # (BLOCK,), one value per account
Tile = tl.tensor  # (BLOCK, A padded to a power of two); padding has price 0 and is never traded
Pointer = tl.tensor

Numbers = namedtuple("Numbers", StepRules._fields)
Tape = namedtuple("Tape", "bar lo hi action filled done price trades min_qty qty_increment drift")
Path = namedtuple("Path", "cash qty peak max_drawdown")  # (H, N) or (H, N, A), before each step
Sizes = namedtuple("Sizes", "n_steps n_accounts n_bars")
# Compile-time choices; n_columns is n_assets padded.
Choices = namedtuple("Choices", "as_if_filled by_bar has_trades has_drift caps_positions n_assets n_columns block")
Bar = namedtuple(  # one step, as band_gradient_torch.Bar
    "Bar", "cash qty peak max_drawdown price fill_price filled equity at_fill after cash_after_sells notional"
)
Order = namedtuple("Order", "qty is_capped is_sold is_closed wanted is_bought is_smooth")
Touch = namedtuple("Touch", "weight edge action follows")
Adjoint = namedtuple("Adjoint", "cash qty peak max_drawdown")


@jit
def numbers_at(at: Pointer) -> Numbers:
    """Load the settings; the compiler removes unused loads."""
    return Numbers(
        tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4), tl.load(at + 5),
        tl.load(at + 6), tl.load(at + 7), tl.load(at + 8), tl.load(at + 9), tl.load(at + 10), tl.load(at + 11),
        tl.load(at + 12), tl.load(at + 13), tl.load(at + 14), tl.load(at + 15), tl.load(at + 16),
    )  # fmt: skip


@jit
def lanes_of(s: Sizes, c: tl.constexpr) -> tuple[Lane, Tile, Lane, Tile]:
    """Return (account indices, column indices, masks of both)."""
    n = tl.program_id(0) * c.block + tl.arange(0, c.block)
    a = tl.arange(0, c.n_columns)
    is_lane = n < s.n_accounts
    return n.to(tl.int64), a, is_lane, is_lane[:, None] & (a < c.n_assets)[None, :]


@jit
def fill_bar(chosen_at: Lane, s: Sizes) -> Lane:
    """Return the row of the fill price."""
    return tl.minimum(chosen_at + 1, s.n_bars - 1)


@jit
def rows(at: Pointer, row: Lane, a: Tile, mask: Tile, c: tl.constexpr) -> Tile:
    """Load a tile of a table (rows, A) as float64."""
    return tl.load(at + row[:, None] * c.n_assets + a[None, :], mask=mask, other=0.0).to(tl.float64)


@jit
def follow(t: Tape, path: Path, rules: Pointer, s: Sizes, c: tl.constexpr) -> None:
    """Fill in the accounts before each step by summing the recorded fills; row 0 is given."""
    n, a, is_lane, is_tile = lanes_of(s, c)
    r = numbers_at(rules)
    cash, qty = tl.load(path.cash + n, mask=is_lane, other=1.0), rows(path.qty, n, a, is_tile, c)
    peak = tl.load(path.peak + n, mask=is_lane, other=1.0)
    max_drawdown = tl.load(path.max_drawdown + n, mask=is_lane, other=0.0)
    for h in range(s.n_steps - 1):
        at = h * s.n_accounts + n
        price = rows(t.price, fill_bar(tl.load(t.bar + at, mask=is_lane, other=0), s), a, is_tile, c)
        filled = rows(t.filled, at, a, is_tile, c)
        cash += tl.sum(tl.maximum(-filled, 0.0) * price, 1) * r.unit_proceeds
        cash = tl.maximum(cash - tl.sum(tl.maximum(filled, 0.0) * price, 1) * r.unit_cost, 0.0)
        qty += filled
        equity = cash + tl.sum(qty * price, 1)
        peak = tl.maximum(peak, equity)
        max_drawdown = tl.maximum(max_drawdown, 1.0 - equity / peak)
        is_over = tl.load(t.done + at, mask=is_lane, other=0) != 0
        cash, peak = tl.where(is_over, r.initial_capital, cash), tl.where(is_over, r.initial_capital, peak)
        qty, max_drawdown = tl.where(is_over[:, None], 0.0, qty), tl.where(is_over, 0.0, max_drawdown)
        at += s.n_accounts
        tl.store(path.cash + at, cash, mask=is_lane)
        tl.store(path.peak + at, peak, mask=is_lane)
        tl.store(path.max_drawdown + at, max_drawdown, mask=is_lane)
        tl.store(path.qty + at[:, None] * c.n_assets + a[None, :], qty, mask=is_tile)


@jit
def bar_of(
    at: Lane, a: Tile, is_lane: Lane, is_tile: Tile, t: Tape, path: Path, r: Numbers, s: Sizes, c: tl.constexpr
) -> Bar:  # fmt: skip
    """Return the recorded step at row `at`."""
    chosen_at = tl.load(t.bar + at, mask=is_lane, other=0)
    price, fill_price = rows(t.price, chosen_at, a, is_tile, c), rows(t.price, fill_bar(chosen_at, s), a, is_tile, c)
    filled, qty = rows(t.filled, at, a, is_tile, c), rows(path.qty, at, a, is_tile, c)
    cash = tl.load(path.cash + at, mask=is_lane, other=1.0)
    sold = tl.sum(tl.maximum(-filled, 0.0) * fill_price, 1)
    bought = tl.sum(tl.maximum(filled, 0.0) * fill_price, 1)
    cash_after_sells = cash + sold * r.unit_proceeds
    after = tl.maximum(cash_after_sells - bought * r.unit_cost, 0.0) + tl.sum((qty + filled) * fill_price, 1)
    return Bar(
        cash, qty, tl.load(path.peak + at, mask=is_lane, other=1.0),
        tl.load(path.max_drawdown + at, mask=is_lane, other=0.0), price, fill_price, filled,
        cash + tl.sum(qty * price, 1), cash + tl.sum(qty * fill_price, 1), after, cash_after_sells, sold + bought,
    )  # fmt: skip


@jit
def touch_of(
    at: Lane, a: Tile, is_lane: Lane, is_tile: Tile, b: Bar, t: Tape, r: Numbers, s: Sizes, c: tl.constexpr
) -> Touch:  # fmt: skip
    """Return which edge was touched, and the action to differentiate."""
    weight = b.qty * b.price / tl.maximum(b.equity, r.equity_floor)[:, None]
    action = rows(t.action, at, a, is_tile, c)
    chosen_at = tl.load(t.bar + at, mask=is_lane, other=0)
    of_band_at = chosen_at if c.by_bar else at
    lo, hi = rows(t.lo, of_band_at, a, is_tile, c), rows(t.hi, of_band_at, a, is_tile, c)
    of_band = tl.minimum(tl.maximum(weight, lo), hi) - weight
    is_replaced = (action == -1.0) & (of_band != -1.0)
    sign = tl.where(is_replaced, of_band, action)
    edge = (sign > 0).to(tl.int32) - (sign < 0).to(tl.int32)
    follows = is_tile
    if c.as_if_filled:
        action = sign
    else:
        follows = follows & (is_replaced == 0)
    if c.has_trades:
        is_traded = rows(t.trades, fill_bar(chosen_at, s), a, is_tile, c) != 0
        action, follows = tl.where(is_traded, action, 0.0), follows & is_traded
    return Touch(weight, edge, action, follows)


@jit
def order_of(a: Tile, b: Bar, action: Tile, t: Tape, r: Numbers, c: tl.constexpr) -> Order:
    """Return the orders in coins, with the selected treatment of small orders."""
    is_priced = b.fill_price > 0
    per_unit = b.at_fill[:, None] / tl.where(is_priced, b.fill_price, 1.0)
    qty = tl.where(is_priced, action * per_unit, 0.0)
    is_capped = qty != qty
    if c.caps_positions:
        room = tl.maximum(r.max_position_weight * per_unit - b.qty, 0.0)
        is_capped = is_priced & (qty > room)
        qty = tl.where(is_capped, room, qty)
    step = tl.load(t.qty_increment + a, mask=a < c.n_assets, other=0.0)[None, :]
    if c.as_if_filled:
        is_large = tl.abs(qty) * b.fill_price >= r.dust
        is_closed = (-qty >= b.qty) & (b.qty > 0) & (qty < 0)
        is_sold = (qty < 0) & (b.qty > 0) & (is_large | is_closed)
        wanted = tl.where((qty > 0) & is_large, qty, 0.0)
        return Order(qty, is_capped, is_sold, is_closed, wanted, wanted > 0, step == step)
    whole = tl.floor(qty / tl.where(step > 0, step, 1.0) + r.increment_slack) * step
    wanted = tl.where(step > 0, whole, qty)
    min_qty = tl.load(t.min_qty + a, mask=a < c.n_assets, other=0.0)[None, :]
    is_large = is_priced & (wanted > min_qty) & (wanted * b.fill_price >= r.min_order_notional)
    is_closed = (b.filled < 0) & (b.qty + b.filled == 0)
    return Order(qty, is_capped, b.filled < 0, is_closed, tl.where(is_large, wanted, 0.0), b.filled > 0, step == 0)


@jit
def share_of_new(new: Lane, old: Lane) -> Lane:
    """Return the derivative of maximum(old, new) with respect to `new`; 1/2 at equality, as in autograd."""
    return tl.where(new > old, 1.0, tl.where(new == old, 0.5, 0.0)).to(tl.float64)


@jit
def reward_back(b: Bar, later: Adjoint, d_equity: Lane, r: Numbers) -> tuple[Adjoint, Lane, Lane]:
    """Backpropagate through reward and valuation.

    Return the adjoints after the trades, of the equity before (N,), and of the notional (N,).
    """
    floored, floored_before = tl.maximum(b.after, r.equity_floor), tl.maximum(b.equity, r.equity_floor)
    d_growth = r.growth - 2.0 * r.volatility * tl.log(floored / floored_before)
    by_floored = d_growth / floored + r.turnover * b.notional / (floored * floored)
    total = d_equity + tl.where(b.after >= r.equity_floor, by_floored, 0.0)

    peak, d_drawdown = tl.maximum(b.peak, b.after), later.max_drawdown - r.drawdown
    of_new = share_of_new(1.0 - b.after / peak, b.max_drawdown) * d_drawdown
    d_peak = later.peak + of_new * b.after / (peak * peak)
    of_peak = share_of_new(b.after, b.peak) * d_peak
    total += of_peak - of_new / peak

    positive = tl.where(b.after > 0, b.after, 1.0)[:, None]
    weight = tl.where(b.after[:, None] > 0, (b.qty + b.filled) * b.fill_price / positive, 0.0)
    largest = tl.max(weight, 1)[:, None]
    is_largest = (weight == largest) & (largest >= r.target_weight)
    n_largest = tl.maximum(tl.sum(is_largest.to(tl.float64), 1), 1.0)[:, None]
    d_weight = tl.where(is_largest, -r.concentration / n_largest, 0.0)
    total -= tl.sum(d_weight * weight / positive, 1)
    d_qty = later.qty + (d_weight / positive + total[:, None]) * b.fill_price
    after = Adjoint(later.cash + total, d_qty, d_peak - of_peak, d_drawdown - of_new + r.drawdown)
    return after, tl.where(b.equity >= r.equity_floor, -d_growth / floored_before, 0.0), -r.turnover / floored


@jit
def buys_back(b: Bar, o: Order, after: Adjoint, d_notional: Lane, r: Numbers, c: tl.constexpr) -> tuple[Lane, Tile]:
    """Backpropagate through the proportional buys; return derivatives w.r.t. (budget (N,), orders (N, A))."""
    unit_cost = b.fill_price * r.unit_cost
    cost = tl.sum(o.wanted * unit_cost, 1)
    safe_cost = tl.where(cost > 0, cost, 1.0)
    free = tl.maximum(b.cash_after_sells - r.reserve * b.at_fill - r.reserve_quote, 0.0)
    ratio = free * r.cash_haircut / safe_cost
    scale = tl.minimum(ratio, 1.0)[:, None]
    is_bought = o.is_bought
    if c.as_if_filled:
        is_bought = is_bought & (o.wanted * scale * b.fill_price >= r.dust)
    d_bought = after.qty - after.cash[:, None] * unit_cost + d_notional[:, None] * b.fill_price
    d_bought = tl.where(is_bought & o.is_smooth, d_bought, 0.0)
    d_ratio = tl.where((ratio <= 1.0) & (cost > 0), tl.sum(d_bought * o.wanted, 1), 0.0)
    d_wanted = d_bought * scale - (d_ratio * ratio / safe_cost)[:, None] * unit_cost
    return d_ratio / safe_cost * r.cash_haircut, tl.where((o.wanted > 0) & o.is_smooth, d_wanted, 0.0)


@jit
def step_back(
    b: Bar, touch: Touch, o: Order, later: Adjoint, d_equity: Lane, drift: Tile, r: Numbers, c: tl.constexpr
) -> tuple[Tile, Adjoint]:  # fmt: skip
    """Return (gradient w.r.t. the touched edge (N, A), adjoint before the step), given the adjoint after it."""
    after, d_before, d_notional = reward_back(b, later, d_equity, r)
    d_budget, d_wanted = buys_back(b, o, after, d_notional, r, c)
    d_cash, price = after.cash + d_budget, b.fill_price
    d_sold = d_cash[:, None] * r.unit_proceeds * price - after.qty + d_notional[:, None] * price
    d_sold = tl.where(o.is_sold, d_sold, 0.0)
    is_closed = o.is_sold & o.is_closed
    d_order = d_wanted - tl.where(o.is_sold & (is_closed == 0) & o.is_smooth, d_sold, 0.0)
    d_cap = tl.where(o.is_capped, d_order, 0.0)
    d_qty = after.qty + tl.where(is_closed, d_sold, 0.0) - d_cap
    safe_price = tl.where(price > 0, price, 1.0)
    d_order = tl.where(o.is_capped | (price <= 0), 0.0, d_order)
    per_equity = (d_cap * r.max_position_weight + d_order * touch.action) / safe_price
    d_at_fill = tl.sum(per_equity, 1) - r.reserve * d_budget
    d_action = tl.where(touch.follows & (touch.edge != 0), d_order * b.at_fill[:, None] / safe_price, 0.0)
    d_weight = -d_action - drift
    floored = tl.maximum(b.equity, r.equity_floor)
    d_floored = -tl.sum(d_weight * touch.weight, 1) / floored
    d_before += tl.where(b.equity >= r.equity_floor, d_floored, 0.0)
    d_qty += (d_weight / floored[:, None] + d_before[:, None]) * b.price + d_at_fill[:, None] * price
    return d_action, Adjoint(d_cash + d_at_fill + d_before, d_qty, after.peak, after.max_drawdown)


@jit
def sweep_back(
    t: Tape,
    path: Path,
    d_final: Pointer,
    d_lo: Pointer,
    d_hi: Pointer,
    counts: Pointer,
    rules: Pointer,
    s: Sizes,
    c: tl.constexpr,
) -> None:
    """Write both edges' gradients (H, N, A), and the counts (2, N) of touched coins and of dropped orders."""
    n, a, is_lane, is_tile = lanes_of(s, c)
    r = numbers_at(rules)
    drift = tl.zeros((c.block, c.n_columns), tl.float64)
    if c.has_drift:
        drift += tl.load(t.drift + a, mask=a < c.n_assets, other=0.0)[None, :]
    none, zero = tl.zeros((c.block,), tl.float64), tl.zeros((c.block, c.n_columns), tl.float64)
    d_equity = tl.load(d_final + n, mask=is_lane, other=0.0)
    cash, qty, peak, max_drawdown = none, zero, none, none
    n_touched, n_dropped = tl.zeros((c.block,), tl.int64), tl.zeros((c.block,), tl.int64)
    for k in range(s.n_steps):
        at = (s.n_steps - 1 - k) * s.n_accounts + n
        is_over = tl.load(t.done + at, mask=is_lane, other=0) != 0
        later = Adjoint(tl.where(is_over, 0.0, cash), tl.where(is_over[:, None], 0.0, qty),
                        tl.where(is_over, 0.0, peak), tl.where(is_over, 0.0, max_drawdown))  # fmt: skip
        b = bar_of(at, a, is_lane, is_tile, t, path, r, s, c)
        touch = touch_of(at, a, is_lane, is_tile, b, t, r, s, c)
        o = order_of(a, b, touch.action, t, r, c)
        d_action, before = step_back(b, touch, o, later, d_equity, drift, r, c)
        cell = at[:, None] * c.n_assets + a[None, :]
        tl.store(d_lo + cell, tl.where(touch.edge > 0, d_action, 0.0), mask=is_tile)
        tl.store(d_hi + cell, tl.where(touch.edge < 0, d_action, 0.0), mask=is_tile)
        is_touched = (touch.edge != 0) & is_tile
        n_touched += tl.sum(is_touched.to(tl.int64), 1)
        n_dropped += tl.sum((is_touched & (b.filled == 0)).to(tl.int64), 1)
        cash, qty, peak, max_drawdown = before.cash, before.qty, before.peak, before.max_drawdown
        d_equity = none
    tl.store(counts + n, n_touched, mask=is_lane)
    tl.store(counts + s.n_accounts + n, n_dropped, mask=is_lane)


def _tape(record: BandRecord, drift: Tensor | None) -> Tape:
    absent = record.min_qty  # placeholder pointer that is never read
    return Tape(
        record.bar.long().contiguous(), record.lo.contiguous(), record.hi.contiguous(), record.action.contiguous(),
        record.filled.contiguous(), record.done.to(torch.uint8).contiguous(), record.price.contiguous(),
        absent if record.trades is None else record.trades.to(torch.uint8).contiguous(),
        record.min_qty.contiguous(), record.qty_increment.contiguous(), absent if drift is None else drift,
    )  # fmt: skip


def _path(record: BandRecord) -> Path:
    rows, of = record.filled.shape, record.filled
    path = Path(of.new_empty(rows[:2]), of.new_empty(rows), of.new_empty(rows[:2]), of.new_empty(rows[:2]))
    for name, column in zip(Path._fields, path, strict=True):
        column[0] = getattr(record, name)
    return path


def sweep(
    record: BandRecord, rules: StepRules, as_if_filled: bool, mean_return: Tensor | None, final_equity: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (gradient w.r.t. lo, gradient w.r.t. hi, share of touched edges, share of those without a fill).

    The gradients have the shape of the edges.
    """
    n_steps, n_accounts, n_assets = record.filled.shape
    drift = None if mean_return is None else (rules.growth * mean_return).to(record.min_qty)
    by_bar = record.lo.ndim == 2
    choices = Choices(
        as_if_filled, by_bar, record.trades is not None, drift is not None, rules.max_position_weight > 0, n_assets,
        triton.next_power_of_2(n_assets), BLOCK)  # fmt: skip
    tape, path, sizes = _tape(record, drift), _path(record), Sizes(n_steps, n_accounts, len(record.price))
    numbers = torch.tensor(rules, dtype=torch.float64, device=record.cash.device)
    d_final = torch.zeros_like(record.cash) if final_equity is None else final_equity.to(record.cash)
    d_lo, d_hi = (torch.empty_like(record.filled, memory_format=torch.contiguous_format) for _ in range(2))
    counts = torch.zeros((2, n_accounts), dtype=torch.int64, device=record.cash.device)
    grid = (triton.cdiv(n_accounts, BLOCK),)
    options = {"num_warps": 1, "enable_fp_fusion": False}
    follow[grid](tape, path, numbers, sizes, choices, **options)
    sweep_back[grid](tape, path, d_final, d_lo, d_hi, counts, numbers, sizes, choices, **options)
    if by_bar:
        d_lo, d_hi = (_summed_by_bar(x, record) for x in (d_lo, d_hi))
    touched, dropped = counts.sum(1).double()
    share = touched / max(record.filled.numel(), 1)
    return d_lo.to(record.lo.dtype), d_hi.to(record.hi.dtype), share, dropped / touched.clamp(min=1.0)


def _summed_by_bar(by_step: Tensor, record: BandRecord) -> Tensor:
    """Sum (H, N, A) by bar into (T, A)."""
    total = torch.zeros_like(record.price)
    return total.index_add_(0, record.bar.flatten(), by_step.flatten(0, 1))
