"""Gradient of the band as a loop over bars of torch tensors, on any device; see band_gradient.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from drl_agents.agents.band_gradient import BandRecord, StepRules


@dataclass(frozen=True)
class Account:
    """State of the accounts before a step."""

    cash: Tensor  # (N,) quote
    qty: Tensor  # (N, A) coins
    peak: Tensor  # (N,) quote
    max_drawdown: Tensor  # (N,) fraction


@dataclass(frozen=True)
class Bar:
    """One recorded step, and the order to differentiate."""

    before: Account
    after: Account
    price: Tensor  # (N, A) quote, when the order was chosen
    fill_price: Tensor  # (N, A) quote, when it was filled
    equity: Tensor  # (N,) quote, at `price`
    equity_at_fill: Tensor  # (N,) quote, at `fill_price`, before any order
    equity_after: Tensor  # (N,) quote
    cash_after_sells: Tensor  # (N,) quote
    weight: Tensor  # (N, A) fraction of equity, at `price`
    filled: Tensor  # (N, A) coins
    is_low: Tensor  # (N, A) bool, the weight is below its band
    is_high: Tensor  # (N, A) bool, the weight is above its band
    follows: Tensor  # (N, A) bool, the order follows the edge that was touched
    action: Tensor  # (N, A) action of the order


@dataclass(frozen=True)
class Order:
    """Orders of a bar in coins, with the selected treatment of small orders."""

    qty: Tensor  # (N, A) after the position cap
    is_capped: Tensor  # (N, A) bool
    is_sold: Tensor  # (N, A) bool
    is_closed: Tensor  # (N, A) bool, the whole position is sold
    wanted: Tensor  # (N, A) coins of the buys that share the budget, else 0
    is_bought: Tensor  # (N, A) bool, the buys that are filled
    is_smooth: Tensor  # (A,) bool, quantities follow orders without steps


def sweep(
    record: BandRecord, rules: StepRules, as_if_filled: bool, mean_return: Tensor | None, final_equity: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (gradient w.r.t. lo, gradient w.r.t. hi, share of touched edges, share of those without a fill).

    The gradients have the shape of the edges.
    """
    n_steps = len(record.bar)
    path = _follow(record, rules)
    d_lo, d_hi = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (record.lo, record.hi))
    n_touched = torch.zeros_like(record.cash, dtype=torch.int64)
    n_dropped = torch.zeros_like(n_touched)
    zero = Account(*(torch.zeros_like(x) for x in vars(path[0][0]).values()))
    adjoint, d_equity = zero, final_equity
    drift = torch.zeros_like(record.min_qty) if mean_return is None else mean_return.to(record.min_qty)
    for h in reversed(range(n_steps)):
        adjoint = _where(record.done[h], zero, adjoint)
        bar = _bar(h, record, *path[h], rules, as_if_filled)
        d_action, adjoint = _step_back(bar, record, adjoint, d_equity, rules, as_if_filled, drift)
        for d_edge, is_touched in ((d_lo, bar.is_low), (d_hi, bar.is_high)):
            value = torch.where(is_touched, d_action, 0.0).to(d_edge.dtype)
            if d_edge.ndim == 2:
                d_edge.index_add_(0, record.bar[h], value)
            else:
                d_edge[h] = value
        d_equity = None
        is_touched = bar.is_low | bar.is_high
        n_touched += is_touched.sum(-1)
        n_dropped += (is_touched & (bar.filled == 0)).sum(-1)
    touched, dropped = n_touched.sum().double(), n_dropped.sum().double()
    return d_lo, d_hi, touched / max(record.filled.numel(), 1), dropped / touched.clamp(min=1.0)


def _where(mask: Tensor, chosen: Account, other: Account) -> Account:
    pairs = zip(vars(chosen).values(), vars(other).values(), strict=True)
    return Account(*(torch.where(mask if x.ndim == 1 else mask[:, None], x, y) for x, y in pairs))


def _prices(record: BandRecord, h: int) -> tuple[Tensor, Tensor]:
    bar = record.bar[h]
    return record.price[bar], record.price[(bar + 1).clamp(max=len(record.price) - 1)]


def _follow(record: BandRecord, rules: StepRules) -> list[tuple[Account, Account]]:
    """Return the accounts (before, after) every step by summing the recorded fills."""
    account = Account(record.cash, record.qty, record.peak, record.max_drawdown)
    capital = torch.full_like(record.cash, rules.initial_capital)
    fresh = Account(capital, torch.zeros_like(record.qty), capital, torch.zeros_like(record.cash))
    path = []
    for h in range(len(record.bar)):
        _, price = _prices(record, h)
        cash = _after_sells(account.cash, record.filled[h], price, rules)
        cash = (cash - (record.filled[h].clamp(min=0.0) * price).sum(-1) * rules.unit_cost).clamp(min=0.0)
        qty = account.qty + record.filled[h]
        equity = cash + (qty * price).sum(-1)
        peak = torch.maximum(account.peak, equity)
        after = Account(cash, qty, peak, torch.maximum(account.max_drawdown, 1.0 - equity / peak))
        path.append((account, after))
        account = _where(record.done[h], fresh, after)
    return path


def _after_sells(cash: Tensor, filled: Tensor, price: Tensor, rules: StepRules) -> Tensor:
    return cash + ((-filled).clamp(min=0.0) * price).sum(-1) * rules.unit_proceeds


def _bar(
    h: int, record: BandRecord, before: Account, after: Account, rules: StepRules, as_if_filled: bool
) -> Bar:  # fmt: skip
    price, fill_price = _prices(record, h)
    equity = before.cash + (before.qty * price).sum(-1)
    weight = before.qty * price / equity.clamp(min=rules.equity_floor)[:, None]
    of_step = record.bar[h] if record.lo.ndim == 2 else h
    action, lo, hi = record.action[h].double(), record.lo[of_step].double(), record.hi[of_step].double()
    of_band = torch.minimum(torch.maximum(weight, lo), hi) - weight
    # -1 replaced the band's order because the target was too small to hold; the recorded action does not show this.
    is_replaced = (action == -1.0) & (of_band != -1.0)
    sign = torch.where(is_replaced, of_band, action)
    if as_if_filled:
        action = torch.where(is_replaced, of_band, action)
    follows = ~is_replaced | as_if_filled
    if record.trades is not None:
        traded = record.trades[(record.bar[h] + 1).clamp(max=len(record.price) - 1)] != 0
        action, follows = torch.where(traded, action, 0.0), follows & traded
    return Bar(
        before=before, after=after, price=price, fill_price=fill_price, equity=equity,
        equity_at_fill=before.cash + (before.qty * fill_price).sum(-1),
        equity_after=after.cash + (after.qty * fill_price).sum(-1),
        cash_after_sells=_after_sells(before.cash, record.filled[h], fill_price, rules),
        weight=weight, filled=record.filled[h], is_low=sign > 0, is_high=sign < 0, follows=follows, action=action,
    )  # fmt: skip


def _orders(bar: Bar, record: BandRecord, rules: StepRules, as_if_filled: bool) -> Order:
    price, is_priced = bar.fill_price, bar.fill_price > 0
    per_unit = bar.equity_at_fill[:, None] / torch.where(is_priced, price, 1.0)
    qty = torch.where(is_priced, bar.action * per_unit, 0.0)
    is_capped = torch.zeros_like(is_priced)
    if rules.max_position_weight > 0:
        room = (rules.max_position_weight * per_unit - bar.before.qty).clamp(min=0.0)
        is_capped = is_priced & (qty > room)
        qty = torch.where(is_capped, room, qty)
    step = record.qty_increment
    if as_if_filled:
        is_closed = (-qty >= bar.before.qty) & (bar.before.qty > 0) & (qty < 0)
        is_large = qty.abs() * price >= rules.dust
        is_sold = (qty < 0) & (bar.before.qty > 0) & (is_large | is_closed)
        wanted = torch.where((qty > 0) & is_large, qty, 0.0)
        is_bought, is_smooth = wanted > 0, torch.ones_like(step, dtype=torch.bool)
        return Order(qty, is_capped, is_sold, is_closed, wanted, is_bought, is_smooth)
    whole = torch.floor(qty / torch.where(step > 0, step, 1.0) + rules.increment_slack) * step
    wanted = torch.where(step > 0, whole, qty)
    is_large = is_priced & (wanted > record.min_qty) & (wanted * price >= rules.min_order_notional)
    return Order(
        qty=qty, is_capped=is_capped, is_sold=bar.filled < 0, is_closed=(bar.filled < 0) & (bar.after.qty == 0),
        wanted=torch.where(is_large, wanted, 0.0), is_bought=bar.filled > 0, is_smooth=step == 0,
    )  # fmt: skip


def _step_back(
    bar: Bar, record: BandRecord, later: Account, d_equity: Tensor | None, rules: StepRules, as_if_filled: bool,
    drift: Tensor,
) -> tuple[Tensor, Account]:  # fmt: skip
    """Return (gradient w.r.t. the band's edge (N, A), adjoint before the step), given the adjoint after it."""
    order = _orders(bar, record, rules, as_if_filled)
    price = bar.fill_price
    after, d_equity_before, d_notional = _reward_back(bar, later, d_equity, rules)
    d_cash, d_wanted, d_equity_at_fill = _buys_back(bar, order, after, d_notional, rules, as_if_filled)
    d_sold = d_cash[:, None] * rules.unit_proceeds * price - after.qty + d_notional[:, None] * price
    d_sold = torch.where(order.is_sold, d_sold, 0.0)
    is_partial = order.is_sold & ~order.is_closed & order.is_smooth
    d_order = d_wanted - torch.where(is_partial, d_sold, 0.0)
    d_qty = after.qty + torch.where(order.is_closed & order.is_sold, d_sold, 0.0)

    safe_price = torch.where(price > 0, price, 1.0)
    d_cap = torch.where(order.is_capped, d_order, 0.0)  # distance to the cap
    d_qty = d_qty - d_cap
    d_order = torch.where(order.is_capped | (price <= 0), 0.0, d_order)
    per_equity = (d_cap * rules.max_position_weight + d_order * bar.action) / safe_price
    d_equity_at_fill = d_equity_at_fill + per_equity.sum(-1)
    d_action = torch.where(bar.follows, d_order * bar.equity_at_fill[:, None] / safe_price, 0.0)
    is_touched = bar.is_low | bar.is_high
    d_weight = -torch.where(is_touched, d_action, 0.0) - rules.growth * drift

    floored = bar.equity.clamp(min=rules.equity_floor)
    d_floored = -(d_weight * bar.weight).sum(-1) / floored
    d_equity_before = d_equity_before + torch.where(bar.equity >= rules.equity_floor, d_floored, 0.0)
    d_qty = d_qty + d_weight * bar.price / floored[:, None] + d_equity_before[:, None] * bar.price
    d_qty = d_qty + d_equity_at_fill[:, None] * price
    d_cash = d_cash + d_equity_at_fill + d_equity_before
    return d_action, Account(d_cash, d_qty, after.peak, after.max_drawdown)


def _share_of_new(new: Tensor, old: Tensor) -> Tensor:
    """Return the derivative of ``maximum(old, new)`` with respect to `new`; 1/2 at equality, as in autograd."""
    return (new > old).double() + 0.5 * (new == old).double()


def _reward_back(
    bar: Bar, later: Account, d_equity: Tensor | None, rules: StepRules
) -> tuple[Account, Tensor, Tensor]:  # fmt: skip
    """Backpropagate through reward and valuation.

    Returns:
        The adjoint of cash and coins after the trades, with that of peak and drawdown before the step; the adjoint of
        the equity before the step (N,); the adjoint of the traded notional (N,).
    """
    floor, equity, before = rules.equity_floor, bar.equity_after, bar.before
    floored, floored_before = equity.clamp(min=floor), bar.equity.clamp(min=floor)
    growth = torch.log(floored / floored_before)
    d_growth = rules.growth - 2.0 * rules.volatility * growth
    notional = (bar.filled.abs() * bar.fill_price).sum(-1)
    by_floored = d_growth / floored + rules.turnover * notional / floored**2
    total = torch.where(equity >= floor, by_floored, 0.0)
    if d_equity is not None:
        total = total + d_equity

    d_drawdown = later.max_drawdown - rules.drawdown
    of_new = _share_of_new(1.0 - equity / bar.after.peak, before.max_drawdown) * d_drawdown
    d_peak = later.peak + of_new * equity / bar.after.peak**2
    of_peak = _share_of_new(equity, before.peak) * d_peak
    total = total - of_new / bar.after.peak + of_peak

    d_qty = later.qty
    if rules.concentration != 0:
        positive = torch.where(equity > 0, equity, 1.0)[:, None]
        weight = torch.where(equity[:, None] > 0, bar.after.qty * bar.fill_price / positive, 0.0)
        largest = weight.amax(-1, keepdim=True)
        is_largest = (weight == largest) & (largest >= rules.target_weight)
        d_weight = -rules.concentration * is_largest.double() / is_largest.sum(-1, keepdim=True).clamp(min=1)
        d_qty = d_qty + d_weight * bar.fill_price / positive
        total = total - (d_weight * weight).sum(-1) / positive[:, 0]
    d_before = torch.where(bar.equity >= floor, -d_growth / floored_before, 0.0)
    after = Account(
        later.cash + total, d_qty + total[:, None] * bar.fill_price,
        d_peak - of_peak, d_drawdown - of_new + rules.drawdown,
    )  # fmt: skip
    return after, d_before, -rules.turnover / floored


def _buys_back(
    bar: Bar, order: Order, after: Account, d_notional: Tensor, rules: StepRules, as_if_filled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return adjoints of cash after the sells (N,), orders (N, A) and equity at fill (N,) of the proportional buys."""
    price = bar.fill_price
    unit_cost = price * rules.unit_cost
    cost = (order.wanted * unit_cost).sum(-1)
    free = bar.cash_after_sells - rules.reserve * bar.equity_at_fill - rules.reserve_quote
    ratio = free.clamp(min=0.0) * rules.cash_haircut / torch.where(cost > 0, cost, 1.0)
    scale = ratio.clamp(max=1.0)[:, None]
    is_bought = order.is_bought
    if as_if_filled:
        is_bought = is_bought & (order.wanted * scale * price >= rules.dust)
    d_bought = after.qty - after.cash[:, None] * unit_cost + d_notional[:, None] * price
    d_bought = torch.where(is_bought & order.is_smooth, d_bought, 0.0)
    d_ratio = torch.where(ratio <= 1.0, (d_bought * order.wanted).sum(-1), 0.0)
    safe_cost = torch.where(cost > 0, cost, 1.0)
    d_budget = torch.where(cost > 0, d_ratio / safe_cost, 0.0) * rules.cash_haircut
    d_cost = torch.where(cost > 0, -d_ratio * ratio / safe_cost, 0.0)
    d_wanted = d_bought * scale + d_cost[:, None] * unit_cost
    d_wanted = torch.where((order.wanted > 0) & order.is_smooth, d_wanted, 0.0)
    return after.cash + d_budget, d_wanted, -rules.reserve * d_budget
