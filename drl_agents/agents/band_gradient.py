"""Exact gradient of a rollout's summed rewards with respect to the band's edges.

The band agent clamps every held weight to its band, ``target = clamp(weight, lo, hi)``, and orders the difference:
``action = target - weight``. Prices do not react to orders, so the account is a known function of `lo` and `hi`, and so
is its derivative. This module traverses a recorded rollout backward, from the last bar to the first.

It differentiates the whole bar of docs/simulator.md: the order is chosen at bar t and sized with the equity of bar
t + 1, followed by the position cap, sells, proportional buys within the budget, valuation and reward. docs/band.md has
the formulas. The reference is `torch.autograd` through the `step` of `environment_Alpaca_vectorized.py`. The tests
compare three implementations with it: a torch loop over bars for any device, a compiled loop for the CPU (numba), and
one for GPUs (Triton).

Axes: H rollout steps, N accounts, A coins, T bars of the market. Money is in quote currency.
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

TARGET_WEIGHT = 0.40  # these three equal the simulator's; a test compares them
EQUITY_FLOOR = 1e-6
INCREMENT_SLACK = 1e-9
DUST = 1e-9  # fraction of the initial capital; smaller cash amounts are rounding errors
BACKENDS = {
    "numba": "drl_agents.agents.band_gradient_cpu", "torch": "drl_agents.agents.band_gradient_torch",
    "triton": "drl_agents.agents.band_gradient_gpu",
}  # fmt: skip


@dataclass(frozen=True)
class BandRecord:
    """Record of a rollout; step h is chosen at bar ``bar[h]`` and filled at the next close.

    All tensors are on one device. `lo` and `hi` hold one band per step and account, or one per bar of the market.
    """

    cash: Tensor  # (N,) float64, quote, before the first step
    qty: Tensor  # (N, A) float64, coins, before the first step
    peak: Tensor  # (N,) float64, quote, highest equity of the running episode
    max_drawdown: Tensor  # (N,) float64, fraction, of the running episode
    bar: Tensor  # (H, N) int64, row of `price` at which the order was chosen
    lo: Tensor  # (H, N, A), or (T, A) by bar: float, lower edge, fraction of equity
    hi: Tensor  # of the same shape: float, upper edge, at least `lo`
    action: Tensor  # (H, N, A) float, the environment's action; -1 also closes a target too small to hold
    filled: Tensor  # (H, N, A) float64, coins: bought positive, sold negative
    done: Tensor  # (H, N) bool, the step ended an episode; the next one begins with a fresh account
    price: Tensor  # (T, A) float64, close
    min_qty: Tensor  # (A,) float64, smallest order in coins
    qty_increment: Tensor  # (A,) float64, lot size, 0 if there is none
    trades: Tensor | None = None  # (T, A), 0 in bars without trades of the coin, in which no order fills


@dataclass(frozen=True)
class BandGradient:
    """Gradient of the objective (for ascent), and statistics of touched edges."""

    lo: Tensor  # of the shape and dtype of the record's `lo`, objective per unit of weight; by bar: summed over
    hi: Tensor  # the steps and accounts at that bar
    touched: Tensor  # () float64, share of steps and coins at which the weight was outside its band
    dropped: Tensor  # () float64, share of the touched edges without a fill; 0 if none was touched


class StepParams(Protocol):
    """Settings that the gradient reads; `environment_Alpaca_vectorized.EnvParams` has all of them."""

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


# Settings that the differentiated form of a step requires.
NEEDED: dict[str, Any] = {
    **BAND_NEEDS, "buys": "proportional", "reward": "weighted_terms", "final_reward": "plain",
    "trailing_stop_pct": 0.0, "stale_bars": 0, "benchmark_weight": 0.0, "whole_coins": False,
    "action_limit": math.inf,
}  # fmt: skip


class StepRules(NamedTuple):
    """Settings of a step as plain numbers, at the costs in force, in the form that compiled functions take."""

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
    growth: float  # weights of the terms, including norm_reward
    volatility: float
    drawdown: float
    concentration: float
    turnover: float
    target_weight: float  # larger positions count as concentrated
    increment_slack: float


def rules_of(params: StepParams, cost_factor: float = 1.0) -> StepRules:
    """Return the settings of the step to differentiate.

    Args:
        params: settings of the environment.
        cost_factor: scale of fees and slippage during the rollout, as `env.cost_factor`.

    Raises:
        ValueError: If a setting leads to an account that this module cannot differentiate.
    """
    for name, needed in NEEDED.items():
        if (value := getattr(params, name)) != needed:
            raise ValueError(f"the band gradient requires {name} = {needed!r}; received {value!r}")
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
    return StepRules(*map(float, rules))  # integers would cause a second compilation


def band_gradient(
    record: BandRecord, params: StepParams, *, cost_factor: float = 1.0, as_if_filled: bool = True,
    mean_return: Tensor | None = None, final_equity: Tensor | None = None, backend: str | None = None,
) -> BandGradient:  # fmt: skip
    """Return the gradient of the undiscounted sum of recorded rewards with respect to both edges.

    Positions open at the end of the rollout are marked to market at the last close. Gains and costs after that are not
    included, unless `final_equity` is given. The gradient stops at the end of an episode.

    Args:
        record: the recorded rollout.
        params: settings of the environment, see `NEEDED`.
        cost_factor: scale of fees and slippage during the rollout.
        as_if_filled: gradient of orders that were dropped because they were too small. If True, the edge receives the
            gradient of a venue without minimum order and lot size, at the recorded account ("straight-through"). This
            includes targets that were too small to hold and were closed by the action -1. If False, dropped orders and
            quantities rounded to the lot size have no gradient.
        mean_return: (A,) mean return per bar that is subtracted from the objective: every bar contributes its growth
            minus ``growth_weight * norm_reward * sum_i weight_i * mean_return_i``, with the weights held over that bar.
        final_equity: (N,) derivative of the value after the rollout with respect to the equity after its last step, per
            unit of quote currency; None means 0. Use 0 for an account whose episode ended with the last step.
        backend: "numba", "torch" or "triton". None selects numba for a record on the CPU, triton for one on a GPU, and
            torch if that package is not installed.

    Raises:
        ValueError: If a setting is not differentiable in this form, or the backend is unknown.
        ImportError: If the backend is "numba" or "triton" and that package is missing.
    """
    rules = rules_of(params, cost_factor)
    sweep = _sweep_of(backend or fastest_for(record.cash.device))
    return BandGradient(*sweep(record, rules, as_if_filled, mean_return, final_equity))


def fastest_for(device: torch.device) -> str:
    """Return the fastest installed backend for records on `device`."""
    name = {"cpu": "numba", "cuda": "triton"}.get(device.type, "torch")
    return name if is_installed(name) else "torch"


@functools.cache
def is_installed(package: str) -> bool:
    """Return True if `package` can be imported."""
    return importlib.util.find_spec(package) is not None


def _sweep_of(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; received {backend!r}")
    return importlib.import_module(BACKENDS[backend]).sweep
