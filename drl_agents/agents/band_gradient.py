"""Exact gradient of a rollout's summed rewards with respect to the band's edges.

The band agent cuts every held weight to its band, ``target = clamp(weight, lo, hi)``, and asks for the difference:
``action = target - weight``. Prices do not react to orders, so how the account follows from `lo` and `hi` is known, and
so is its derivative. This module follows a recorded rollout backwards, from the last bar to the first.

What is differentiated is the whole bar of docs/simulator.md: the order is chosen at bar t and sized with the equity of
bar t + 1, then the position cap, sells, proportional buys within the budget, valuation and reward. docs/band.md
has the formulas. The reference is `torch.autograd` through the `step` of `environment_Alpaca_vectorized.py`, with which
the tests compare all implementations: a loop over bars in torch for any device, a compiled one for the CPU (numba) and
one for GPUs (Triton).

Axes: H steps of the rollout, N accounts, A coins, T bars of the market. Money is in quote currency.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from drl_agents.policy import BAND_NEEDS

TARGET_WEIGHT = 0.40  # these three are the simulator's; a test compares them
EQUITY_FLOOR = 1e-6
INCREMENT_SLACK = 1e-9
DUST = 1e-9  # of the initial capital: what rounding leaves of the cash is no order
BACKENDS = {
    "numba": "drl_agents.agents.band_gradient_cpu", "torch": "drl_agents.agents.band_gradient_torch",
    "triton": "drl_agents.agents.band_gradient_gpu",
}  # fmt: skip


@dataclass(frozen=True)
class BandRecord:
    """What a rollout leaves behind. Step h is chosen at bar ``bar[h]`` and filled at the close of the next one.

    Tensors are on one device. `lo` and `hi` are either one band per step and account, or one per bar of the market.
    """

    cash: Tensor  # (N,) float64, quote, before the first step
    qty: Tensor  # (N, A) float64, coins, before the first step
    peak: Tensor  # (N,) float64, quote, highest equity of the running episode
    max_drawdown: Tensor  # (N,) float64, fraction, of the running episode
    bar: Tensor  # (H, N) int64, row of `price` at which the order was chosen
    lo: Tensor  # (H, N, A), or (T, A) by bar: float, lower edge, fraction of equity
    hi: Tensor  # of the same shape: float, upper edge, at least `lo`
    action: Tensor  # (H, N, A) float, what the environment was given; -1 also closes a target too small to hold
    filled: Tensor  # (H, N, A) float64, coins: bought positive, sold negative
    done: Tensor  # (H, N) bool, the step ended an episode; the next one begins with a fresh account
    price: Tensor  # (T, A) float64, close
    min_qty: Tensor  # (A,) float64, smallest order in coins
    qty_increment: Tensor  # (A,) float64, 0 where any quantity will do
    trades: Tensor | None = None  # (T, A), 0 where nobody traded the coin in the bar, so that no order filled


@dataclass(frozen=True)
class BandGradient:
    """Gradient of the objective, to be ascended, and how many touches led to no fill."""

    lo: Tensor  # of the shape and dtype of the record's `lo`, objective per unit of weight; by bar: summed over
    hi: Tensor  # the steps and accounts at that bar
    touched: Tensor  # () float64, share of steps and coins at which the weight was outside its band
    dropped: Tensor  # () float64, share of the touches without a fill; 0 without touches


class StepParams(Protocol):
    """The settings that the gradient reads; `environment_Alpaca_vectorized.EnvParams` has them all."""

    initial_capital: float
    buy_fee_rate: float
    sell_fee_rate: float
    slippage_rate: float
    min_order_notional: float
    cash_haircut: float
    reserve_base: str
    min_cash_reserve: float
    max_position_weight: float
    norm_reward: float
    growth_weight: float
    drawdown_penalty: float
    volatility_penalty: float
    concentration_penalty: float
    turnover_penalty: float


# Settings with which a step has the form that is differentiated here.
NEEDED: dict[str, Any] = {
    **BAND_NEEDS, "buys": "proportional", "reward": "weighted_terms", "final_reward": "plain",
    "trailing_stop_pct": 0.0, "stale_bars": 0, "benchmark_weight": 0.0, "whole_coins": False,
    "action_limit": math.inf,
}  # fmt: skip


class StepRules(NamedTuple):
    """Settings of a step as plain numbers, at the costs in force; a compiled function takes them as they are."""

    initial_capital: float
    equity_floor: float  # quote
    unit_cost: float  # quote paid for a coin, as a multiple of its price
    unit_proceeds: float  # quote received for a coin, as a multiple of its price
    min_order_notional: float  # quote
    dust: float  # quote
    cash_haircut: float
    reserve: float  # fraction of equity
    reserve_quote: float  # quote; one of the two is 0
    max_position_weight: float  # 0: off
    growth: float  # weights of the terms, norm_reward included
    volatility: float
    drawdown: float
    concentration: float
    turnover: float
    target_weight: float  # positions above it are called concentrated
    increment_slack: float


def rules_of(params: StepParams, cost_factor: float = 1.0) -> StepRules:
    """Settings of the step whose gradient is asked for.

    Args:
        params: of the environment.
        cost_factor: scale of fees and slippage during the rollout, as `env.cost_factor`.

    Raises:
        ValueError: for a setting under which the account is not the one that is differentiated here.
    """
    for name, needed in NEEDED.items():
        if (value := getattr(params, name)) != needed:
            raise ValueError(f"the band's gradient needs {name} = {needed!r}; received {value!r}")
    slippage_rate = params.slippage_rate * cost_factor
    of_equity = params.reserve_base == "equity"
    rules = StepRules(
        initial_capital=params.initial_capital,
        equity_floor=EQUITY_FLOOR * params.initial_capital,
        unit_cost=(1.0 + slippage_rate) * (1.0 + params.buy_fee_rate * cost_factor),
        unit_proceeds=(1.0 - slippage_rate) * (1.0 - params.sell_fee_rate * cost_factor),
        min_order_notional=params.min_order_notional,
        dust=DUST * params.initial_capital,
        cash_haircut=params.cash_haircut,
        reserve=params.min_cash_reserve if of_equity else 0.0,
        reserve_quote=0.0 if of_equity else params.min_cash_reserve * params.initial_capital,
        max_position_weight=params.max_position_weight,
        growth=params.norm_reward * params.growth_weight,
        volatility=params.norm_reward * params.volatility_penalty,
        drawdown=params.norm_reward * params.drawdown_penalty,
        concentration=params.norm_reward * params.concentration_penalty,
        turnover=params.norm_reward * params.turnover_penalty,
        target_weight=TARGET_WEIGHT,
        increment_slack=INCREMENT_SLACK,
    )
    return StepRules(*map(float, rules))  # an integer would be another type, and another compilation


def band_gradient(
    record: BandRecord, params: StepParams, *, cost_factor: float = 1.0, as_if_filled: bool = True,
    mean_return: Tensor | None = None, final_equity: Tensor | None = None, backend: str | None = None,
) -> BandGradient:  # fmt: skip
    """Gradient of the undiscounted sum of the recorded rewards with respect to both edges.

    The window's end is valued at the close, marked to market: what the account would earn or pay later counts for
    nothing, unless `final_equity` says otherwise. An episode's end cuts the gradient off; its successor starts afresh.

    Args:
        record: of the rollout.
        params: of the environment, see `NEEDED`.
        cost_factor: scale of fees and slippage that was in force.
        as_if_filled: what an order that was dropped because it was too small does. True: its edge gets the gradient of
            a venue without smallest order and increment, at the account that really was ("straight-through"); also
            where the action -1 closed a target too small to hold. False: nothing was traded, so nothing has a
            gradient; neither does a quantity that was rounded to an increment.
        mean_return: (A,) mean return per bar that is taken out of the objective: every bar counts its growth less
            ``growth_weight * norm_reward * sum_i weight_i * mean_return_i``, with the weights held over that bar.
        final_equity: (N,) derivative of the value of what comes after the rollout by the equity after its last step,
            per quote; None is 0. An account whose episode ended with the last step should have 0 here.
        backend: "numba", "torch" or "triton". None takes numba for a record on the CPU and triton for one on a GPU, and
            torch if that package is not installed.

    Raises:
        ValueError: for settings that are not differentiable in this form, or an unknown backend.
        ImportError: backend "numba" or "triton" without that package.
    """
    rules = rules_of(params, cost_factor)
    sweep = _sweep_of(backend or fastest_for(record.cash.device))
    return BandGradient(*sweep(record, rules, as_if_filled, mean_return, final_equity))


def fastest_for(device: torch.device) -> str:
    """The fastest backend for records on `device` whose package is installed."""
    name = {"cpu": "numba", "cuda": "triton"}.get(device.type, "torch")
    return name if is_installed(name) else "torch"


@functools.cache
def is_installed(package: str) -> bool:
    """Whether `package` can be imported."""
    return importlib.util.find_spec(package) is not None


def _sweep_of(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; received {backend!r}")
    return importlib.import_module(BACKENDS[backend]).sweep
