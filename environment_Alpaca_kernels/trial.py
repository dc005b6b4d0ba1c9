# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Trials of a native step: accounts of the plain and the native class on the same generated market.

The market has the environment's coins, features, price levels and smallest orders. Its segments differ in length, so
that episodes end and restart from the first steps. Some segments are long enough to trigger a trailing stop and a stale
release.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import drop_in
from .first_use import Contender, Trial

N_ENVS = 37  # two full blocks of 16 and a partial one
N_STEPS = 300
ROOMS = (6, 9, 13, 17, 21, 26, 62)  # steps of the longest episode in each segment
EPISODE_BARS = 60
VOLATILITY = 0.02  # per bar
STALE_BARS, STOP = 6, 0.05  # upper limits, so that both rules trigger
LARGE_ORDERS = 20_000.0  # norm_action of hosts that scale orders by the magnitude of the price
SMALLEST_ORDER = 300.0  # quote: large enough that some orders are below it
EVERY_PHASE: dict[str, Any] = {
    "trailing_stop_pct": STOP, "min_cash_reserve": 0.1, "max_position_weight": 0.4, "stale_bars": STALE_BARS,
    "time_decay_floor": 0.2, "growth_weight": 0.7, "benchmark_weight": 0.5, "drawdown_penalty": 1.5,
    "volatility_penalty": 2.0, "concentration_penalty": 0.3, "turnover_penalty": 0.1, "observe_account": True,
}  # fmt: skip
SHOWN = ("cash", "stocks", "filled", "total_asset", "episode_return")
MakeKernel = Callable[[Any], Any]  # takes an environment


def like(env: Any, make_kernel: MakeKernel, n_steps: int = N_STEPS) -> Trial:
    """Return a trial with the rule set and choices of an environment."""
    p, price = env.params, env.market.price
    first_priced = (price > 0).to(torch.int8).argmax(0)
    level = price[first_priced, torch.arange(price.shape[1], device=price.device)].cpu().numpy()
    n_features = env.market.windows.shape[1] // p.lookback
    config = market(level, n_features, p) | {
        "min_order_qty": env.market.min_qty.cpu().numpy(), "qty_increment": env.market.qty_increment.cpu().numpy(),
    }  # fmt: skip
    settings = {field.name: getattr(p, field.name) for field in fields(p)}
    settings |= {"stale_bars": min(p.stale_bars, STALE_BARS), "trailing_stop_pct": min(p.trailing_stop_pct, STOP)}
    options = {
        "device": env.device, "start": env.start, "episode_bars": EPISODE_BARS if env.episode_bars else None,
        "autoreset": env.autoreset, "compact": env.compact,
    }  # fmt: skip
    return pair(config, drop_in.EnvParams(**settings), make_kernel, n_steps, **options)


def of_every_rule_set(make_kernel: MakeKernel, n_steps: int = N_STEPS) -> list[Callable[[], Trial]]:
    """Return trial builders for each rule set with every phase enabled, for a step compiled once for all settings."""
    return [functools.partial(_of_rule_set, rules, make_kernel, n_steps) for rules in drop_in.RULES]


def _of_rule_set(rules: str, make_kernel: MakeKernel, n_steps: int) -> Trial:
    own = dict.fromkeys(drop_in.NORMS, 2.0**-8) | {"norm_action": 4.0}
    if rules == "standard":
        own = {"min_order_notional": SMALLEST_ORDER}
    if drop_in.RULES[rules]["order_sizing"].startswith("price"):
        own["norm_action"] = LARGE_ORDERS
    p = drop_in.EnvParams.from_mapping({"rules": rules, "lookback": 3} | EVERY_PHASE | own)
    level = np.array([40_000.0, 2_500.0, 70.0, 0.4])
    smallest = 1e-3 / level
    config = market(level, 3, p) | {"min_order_qty": smallest, "qty_increment": smallest * [3.0, 0.0, 1.0, 0.0]}
    options = {"device": "cpu", "start": "random", "episode_bars": EPISODE_BARS}
    found = pair(config, p, make_kernel, n_steps, **options)
    return replace(found, label=f" (rules {rules})")


def market(level: np.ndarray, n_features: int, p: Any) -> dict[str, Any]:
    """Return prices (T, A) around `level` (A,) and features, in segments of ROOMS steps.

    Some bars have no price under the rules of hosts; "standard" rejects such bars.
    """
    rng = np.random.default_rng(1)
    before = p.lookback + (p.lookback if p.ends_lookback_early else 0)
    ends = np.cumsum([room + before for room in ROOMS])
    segments = list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
    level = np.where(level > 0, level, 1.0)
    moves = rng.normal(0.0, VOLATILITY, (int(ends[-1]), len(level)))
    price = level * np.exp(np.concatenate([np.cumsum(moves[a:b], axis=0) for a, b in segments]))
    if len(level) > 1 and p.rules != "standard":
        last = segments[-1][0] + p.lookback
        price[last + 8 : last + 11, -1] = 0.0
    tech = rng.normal(size=(len(price), n_features)).astype(np.float32)
    return {"price_array": price, "tech_array": tech, "segments": segments}


def pair(config: Mapping[str, Any], p: Any, make_kernel: MakeKernel, n_steps: int = N_STEPS, **options: Any) -> Trial:
    """Return two environments at their first observation, and actions for them."""
    options = {"as_numpy": False, "seed": 1, "api": "elegantrl"} | options

    class Native(drop_in.VectorizedCryptoEnvAlpacaOptimized):
        def _native_kernel(self) -> Any:
            return make_kernel(self)

    plain, native = (
        env_class(config, p, N_ENVS, **options) for env_class in (drop_in.VectorizedCryptoEnvAlpaca, Native)
    )
    plain.reset()
    native.reset()
    return Trial(contender(plain), contender(native), actions(n_steps, plain.action_dim, plain.device))


def actions(n_steps: int, n_assets: int, device: torch.device) -> Tensor:
    """Return random actions (T, N, A) float32, with whole-account orders in every fifth step and non-finite values."""
    rng = np.random.default_rng(2)
    values = rng.uniform(-1.0, 1.0, (n_steps, N_ENVS, n_assets)).astype(np.float32)
    values[::5] = np.sign(values[::5])
    values[3::7, 0, 0] = np.nan
    values[4::7, 1, -1] = np.inf
    return torch.from_numpy(values).to(device)


def contender(env: Any) -> Contender:
    """Return an environment as one side of a comparison; without autoreset, finished episodes are reset."""
    last: dict[str, Any] = {}

    def advance(action: Tensor) -> None:
        if not env.autoreset and last:
            env.reset(where=last["done"].clone())
        state, reward, done, info = env.step(action)
        last.update(state=state, reward=reward, done=done, info=info)

    def seen() -> dict[str, Tensor]:
        done, info, book = last["done"], last["info"], env.book
        found = {field.name: getattr(book, field.name) for field in fields(book)}  # first
        found |= {f"shown {name}": getattr(env, name) for name in SHOWN}
        found |= {f"reward term {name}": value for name, value in info["reward_terms"].items()}
        found |= {f"info {name}": value for name, value in info.items() if isinstance(value, Tensor)}
        found["info final_state"] = torch.where(done[:, None], info["final_state"], 0.0)
        return found | {"episode": env._episode} | {name: last[name] for name in ("reward", "done", "state")}

    return Contender(advance, seen)
