"""The band's gradient by torch.autograd through the drop-in's own `step`, and the record of that rollout."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import environment_Alpaca_vectorized as drop_in
from drl_agents.agents.band_gradient import DUST, BandRecord
from environment_Alpaca_vectorized import Costs, EnvParams, Market, Portfolio, VectorizedCryptoEnvAlpaca
from tests.support.markets import random_config

EVERYTHING = {
    "min_cash_reserve": 0.1, "max_position_weight": 0.4, "drawdown_penalty": 0.5, "volatility_penalty": 2.0,
    "concentration_penalty": 0.3, "turnover_penalty": 0.01, "norm_reward": 1.0,
}  # fmt: skip


@dataclass
class Rollout:
    """A rollout of bands through the pure step, float64 throughout, with its autograd graph."""

    record: BandRecord
    params: EnvParams
    cost_factor: float
    objective: Tensor  # (N,)
    lo: Tensor  # (H, N, A), leaf
    hi: Tensor  # (H, N, A), leaf
    asked: Tensor  # (H, N, A) coins that the actions ask for

    @functools.cached_property
    def gradient(self) -> tuple[Tensor, Tensor]:
        """(H, N, A) by lo and by hi."""
        if not self.objective.requires_grad:  # nothing was traded
            return torch.zeros_like(self.lo), torch.zeros_like(self.hi)
        lo, hi = torch.autograd.grad(self.objective.sum(), (self.lo, self.hi), materialize_grads=True)
        return lo, hi

    def pattern(self) -> Tensor:
        """Which edges are touched, what is filled, and what is filled differently from what was asked for."""
        filled = self.record.filled
        is_cut = (filled - self.asked).abs() > 1e-9 * self.asked.abs()
        return torch.stack((self.record.action.sign(), filled.sign(), is_cut.double()))


def band_params(**more: Any) -> dict[str, Any]:
    return {"rules": "standard", "lookback": 2, "norm_action": 1.0, "start": "random"} | more


def random_band(n_steps: int, n_envs: int, n_assets: int, seed: int, kind: str = "noise") -> tuple[Tensor, Tensor]:
    """Edges (H, N, A): new every bar ("noise"), moving slowly ("slow"), high ("greedy"), often next to 0 ("empty")."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(2, n_steps, n_envs, n_assets))
    if kind == "slow":
        u = np.cumsum(u * 0.1, axis=1) + rng.normal(size=(2, 1, n_envs, n_assets))
    lo = 1.0 / (1.0 + np.exp(-u[0] + (1.0 if kind != "greedy" else -1.0)))
    hi = lo + (1.0 - lo) / (1.0 + np.exp(-u[1]))
    if kind == "empty":  # flat from time to time, down to what is too small to hold
        scale = np.where(rng.random((n_steps, n_envs, n_assets)) < 0.4, 1e-4, 1.0)
        lo, hi = lo * scale, hi * scale
    return torch.tensor(lo), torch.tensor(hi)


def roll_out(
    config: dict[str, Any], env_params: dict[str, Any], lo: Tensor, hi: Tensor, *, seed: int = 0,
    episode_bars: int | None = None, cost_factor: float = 1.0, as_if_filled: bool = False, invested: bool = False,
    mean_return: Tensor | None = None, final_equity: Tensor | None = None,
) -> Rollout:  # fmt: skip
    """Step the bands from fresh accounts, or from ones with coins, a past peak and a past drawdown."""
    n_steps, n_envs, _ = lo.shape
    env = VectorizedCryptoEnvAlpaca(
        config, env_params, n_envs, gpu_id=-1, as_numpy=False, seed=seed, episode_bars=episode_bars
    )
    market, p = env.market, env.params
    lo, hi = lo.clone().requires_grad_(), hi.clone().requires_grad_()
    env.reset()
    start = book = _invested(env.book, market, p, seed) if invested else env.book
    objective = torch.zeros(n_envs, dtype=torch.float64)
    floor = drop_in.EQUITY_FLOOR * p.initial_capital
    rows: dict[str, list[Tensor]] = {name: [] for name in ("bar", "action", "filled", "done", "asked")}
    for h in range(n_steps):
        weight = book.qty * market.price[book.bar] / book.equity.clamp(min=floor)[:, None]
        target = torch.minimum(torch.maximum(weight, lo[h]), hi[h])
        least = torch.maximum(market.min_qty * market.price[book.bar], torch.tensor(p.min_order_notional))
        order = target - weight
        action = torch.where(target * book.equity[:, None] < least, -1.0, order)
        traded = 1.0 if market.trades is None else market.trades[book.bar + 1].double()
        context = straight_through(order * traded, market, p) if as_if_filled else nullcontext()
        with context:
            after, outcome = drop_in.step(book, action * traded, market, p, p.costs(cost_factor))
        objective = objective + outcome.reward
        if mean_return is not None:
            objective = objective - p.norm_reward * p.growth_weight * (weight * mean_return).sum(-1)
        if final_equity is not None and h == n_steps - 1:
            objective = objective + final_equity * after.equity
        price = market.price[after.bar]
        asked = action * traded * drop_in.account_value(book, price)[:, None] / price.clamp(min=1e-12)
        row = {"bar": book.bar, "action": action, "filled": after.filled, "done": outcome.done, "asked": asked}
        for name, value in row.items():
            rows[name].append(value.detach())
        env._episode += outcome.done
        book = drop_in.restart(outcome.done, env._fresh_book(env._episode), after)
    stacked = {name: torch.stack(values) for name, values in rows.items()}
    asked = stacked.pop("asked")
    record = BandRecord(
        cash=start.cash,
        qty=start.qty,
        peak=start.peak,
        max_drawdown=start.max_drawdown,
        lo=lo.detach(),
        hi=hi.detach(),
        price=market.price,
        min_qty=market.min_qty,
        qty_increment=market.qty_increment,
        trades=market.trades,
        **stacked,
    )
    return Rollout(record, p, cost_factor, objective, lo, hi, asked)


def _invested(book: Portfolio, market: Market, p: EnvParams, seed: int) -> Portfolio:
    rng = np.random.default_rng(seed)
    price = market.price[book.bar]
    share = torch.tensor(rng.dirichlet(np.ones(price.shape[1] + 1), size=len(price)))
    qty = torch.where(price > 0, share[:, 1:] * p.initial_capital / price.clamp(min=1e-9), 0.0)
    cash = share[:, 0] * p.initial_capital
    equity = cash + (qty * price).sum(-1)
    peak = equity * torch.tensor(rng.uniform(1.0, 1.01, len(price)))
    return replace(book, cash=cash, qty=qty, equity=equity, peak=peak, max_drawdown=1.0 - equity / peak)


def _blend(real: Portfolio, smooth: Portfolio) -> Portfolio:
    """Values of `real` to the bit, derivatives of `smooth`."""
    changed = {}
    for field in fields(real):
        value, twin = getattr(real, field.name), getattr(smooth, field.name)
        changed[field.name] = value.detach() + (twin - twin.detach()) if value.is_floating_point() else value
    return Portfolio(**changed)


@contextmanager
def straight_through(order: Tensor, market: Market, p: EnvParams) -> Iterator[None]:
    """Inside, each phase of `step` keeps its values and has the derivative that it has without smallest order.

    order (N, A): what the band asks for, where the action may be -1 in its place.
    """
    free = replace(market, min_qty=torch.zeros_like(market.min_qty), qty_increment=torch.zeros_like(market.min_qty))
    free_p = replace(p, min_order_notional=DUST * p.initial_capital)
    phases = ("order_quantities", "cap_positions", "execute_sells", "execute_buys")
    real = {name: getattr(drop_in, name) for name in phases}
    twin: dict[str, Tensor] = {}

    def order_quantities(action: Tensor, book: Portfolio, price: Tensor, equity: Tensor, p: EnvParams) -> Tensor:
        twin["order"] = real["order_quantities"](order, book, price, equity, p)
        return real["order_quantities"](action, book, price, equity, p)

    def cap_positions(order_qty: Tensor, *rest: Any) -> Tensor:
        twin["order"] = real["cap_positions"](twin["order"], *rest)
        return real["cap_positions"](order_qty, *rest)

    def execute_sells(
        book: Portfolio, order_qty: Tensor, price: Tensor, market: Market, p: EnvParams, costs: Costs
    ) -> Portfolio:
        smooth = real["execute_sells"](book, twin["order"], price, free, free_p, costs)
        return _blend(real["execute_sells"](book, order_qty, price, market, p, costs), smooth)

    def execute_buys(
        book: Portfolio, order_qty: Tensor, price: Tensor, equity: Tensor, market: Market, p: EnvParams, costs: Costs
    ) -> Portfolio:
        smooth = real["execute_buys"](book, twin["order"], price, equity, free, free_p, costs)
        return _blend(real["execute_buys"](book, order_qty, price, equity, market, p, costs), smooth)

    with mock.patch.multiple(drop_in, order_quantities=order_quantities, cap_positions=cap_positions,
                             execute_sells=execute_sells, execute_buys=execute_buys):  # fmt: skip
        yield


def made_market(n_bars: int, n_assets: int, seed: int, volatility: float = 0.02, **more: Any) -> dict[str, Any]:
    """A generated market; `gaps` has bars without a trade, `worthless` a coin that falls to almost 0 and comes back."""
    gaps, worthless = more.pop("gaps", False), more.pop("worthless", False)
    config = random_config(n_bars, n_assets, 1, seed, volatility, **more)
    rng = np.random.default_rng(seed + 1)
    if worthless:
        config["price_array"][n_bars // 2 : n_bars // 2 + 3, 0] = 1e-9
    if gaps:
        config["filled_array"] = rng.random((n_bars, n_assets)) < 0.2
    return config
