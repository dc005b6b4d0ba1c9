"""How host repositories drive an environment, in our own words: loops, an evaluator, a factory, a prediction.

Each function does what a family of hosts does with the object and nothing else, so that a test can hand it either of
our classes.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Act = Callable[[Any], Any]  # a state, one or a batch -> actions of the same kind


def record_after_the_step(env: Any, state: Any, act: Act, n_steps: int) -> tuple[list[tuple[Tensor, ...]], Any]:
    """The loops of 2022: they keep the state that they acted on only when the step has been made."""
    rows = []
    for _ in range(n_steps):
        action = act(state)
        following, reward, done, _ = env.step(action)
        rows.append((state.clone(), reward.clone(), done.clone(), action))
        state = following
    return rows, state


def record_before_the_step(env: Any, state: Any, act: Act, n_steps: int) -> tuple[list[tuple[Tensor, ...]], Any]:
    """elegantrl 0.3.6: the state goes into its storage before the step, the rest after it."""
    rows = []
    for _ in range(n_steps):
        kept, action = state.clone(), act(state)
        state, reward, done, _ = env.step(action)
        rows.append((kept, reward.clone(), done.clone(), action))
    return rows, state


def record_one_account(env: Any, act: Act, n_steps: int) -> list[tuple[Any, ...]]:
    """One account: rows share memory with the arrays returned and are stacked at the end of the rollout."""
    rows, state = [], env.reset()
    while len(rows) < n_steps:
        shared = torch.as_tensor(state)
        action = act(state)
        state, reward, done, _ = env.step(action)
        rows.append((shared, reward, done, action))
        state = env.reset() if done else state
    return rows


def episode_return_and_steps(env: Any, act: Act) -> tuple[Any, int]:
    """The family's evaluator: up to max_step steps, then what the object says the ended episode returned."""
    state, total, n_steps = env.reset(), 0.0, 0
    for _ in range(env.max_step):
        state, reward, done, _ = env.step(act(state))
        total, n_steps = total + reward, n_steps + 1
        if done.any() if isinstance(done, Tensor) else done:
            break
    return getattr(env, "episode_return", total), n_steps


def factory(env_class: type, config: dict[str, Any], env_params: dict[str, Any], n_envs: int | None = 1) -> Any:
    """FinRL_Crypto's: one object is built, told how many accounts it holds, and never stepped itself."""
    env = env_class(config=config, env_params=env_params, if_log=True)
    if n_envs is not None:
        env.env_num = n_envs
    return env


def copies_for_training_and_evaluation(env: Any, evaluates_one: bool) -> tuple[Any, Any]:
    """Both work on deep copies of the factory's object."""
    training, evaluation = copy.deepcopy(env), copy.deepcopy(env)
    if evaluates_one:
        evaluation.env_num = 1
    return training, evaluation


def predict(env: Any, act: Act) -> list[float]:
    """The account's value from step to step, computed by the host from cash, prices and coins."""
    env.env_num = 1
    state, values = env.reset(), [env.initial_total_asset]
    for _ in range(env.max_step):
        state, _, done, _ = env.step(act(state))
        values.append(env.cash + (env.price_array[env.time] * env.stocks).sum())
        if done:
            break
    return values


# ---------------------------------------------------------------- scalar classes that only have to be recognized
SCALAR_CLASS = """
class CLASS_NAME:
    def __init__(self, config, env_params, initial_capital=CAPITAL, buy_cost_pct=FEE, sell_cost_pct=FEE, gamma=0.99):
        self.norm_action = env_params["norm_action"]
        self.stocks_cooldown = None
        EXTRA

    def reset(self): ...
    def step(self, actions): ...
"""


def imported_host(
    monkeypatch: Any, name: str, class_name: str = "CryptoEnvAlpaca", capital: float = 1e6, fee: float = 0.003,
    extra: str = "pass", limits: Any = None, source: str = SCALAR_CLASS,
) -> type:  # fmt: skip
    """A module with a scalar class of the family's marks, among the imported ones until the test ends."""
    module = types.ModuleType(name)
    for word, value in (("CLASS_NAME", class_name), ("CAPITAL", repr(capital)), ("FEE", repr(fee)), ("EXTRA", extra)):
        source = source.replace(word, value)
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    if limits is not None:
        vars(module)["CRYPTO_LIMITS" if class_name == "CryptoEnvCCXT" else "ALPACA_LIMITS"] = np.asarray(limits)
    monkeypatch.setitem(sys.modules, name, module)
    return vars(module)[class_name]
