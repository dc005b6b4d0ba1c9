"""What changes in an environment while it is stepped, as tensors: read from one, put into another of the same making.

Random starts need nothing of their own: they follow from the seed, the environment's number and its episode's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from drl_agents.host_copies import to_device
from environment_Alpaca import Account, CryptoEnvAlpaca, Traded
from environment_Alpaca_vectorized import Portfolio, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized

BATCHED = (VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized)


class EnvStateError(ValueError):
    """A state that is not one of this environment. The message names the tensor."""


def has_known_state(env: Any) -> bool:
    """Whether all that changes in `env` is known. A class derived from ours may keep more, so it does not count."""
    return type(env) in (CryptoEnvAlpaca, *BATCHED)


def env_tensors(env: Any) -> dict[str, Tensor]:
    """Copies on the CPU, by name: every field of the accounts, the counters beside them, and the cost factor.

    Of a batch, (N,) and (N, A) as `Portfolio` says; of the scalar environment, () and (A,).
    """
    if isinstance(env, CryptoEnvAlpaca):
        book = {name: torch.tensor(value, dtype=_dtype(value)) for name, value in _scalar_book(env.account).items()}
        counters = {"segment": env._segment, "episode": env.episode, "rejected": env.rejected_actions}
        tensors = book | {name: torch.tensor(value) for name, value in counters.items()}
        tensors |= {"done": torch.tensor(env.done)}
    else:
        tensors = {field.name: getattr(env.book, field.name) for field in fields(Portfolio)}
        tensors |= {"episode": env._episode, "rejected": env._rejected, "done": torch.tensor(env._needs_reset)}
    tensors |= {"cost_factor": torch.tensor(env.cost_factor, dtype=torch.float64)}
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def check_env_tensors(env: Any, stored: Mapping[str, Tensor]) -> None:
    """Raise EnvStateError unless `restore_env` can put `stored` into `env`."""
    expected = {name: (tuple(value.shape), value.dtype) for name, value in env_tensors(env).items()}
    found = {name: (tuple(value.shape), value.dtype) for name, value in stored.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise EnvStateError(f"{name} of the environment is {found.get(name)}, expected {expected.get(name)}")
    is_scalar = isinstance(env, CryptoEnvAlpaca)
    bar, n_bars = stored["bar"], len(env.price_array if is_scalar else env.market.price)
    if int(bar.min()) < env.params.lookback - 1 or int(bar.max()) >= n_bars:
        raise EnvStateError(f"bar of the environment is {bar.tolist()}, and there are {n_bars} bars")
    if not 0.0 <= (factor := float(stored["cost_factor"])) <= 1.0:
        raise EnvStateError(f"cost_factor of the environment is {factor}, expected 0 to 1")
    if is_scalar and _segment(stored) not in env.segments:
        raise EnvStateError(f"segment of the environment is {_segment(stored)}, which is none of {env.segments}")


def restore_env(env: Any, stored: Mapping[str, Tensor]) -> None:
    """Put what `env_tensors` returned into `env`, or change nothing and raise EnvStateError."""
    check_env_tensors(env, stored)
    env.cost_factor = float(stored["cost_factor"])
    if isinstance(env, CryptoEnvAlpaca):
        book: dict[str, Any] = {name: stored[name].tolist() for name in _scalar_book(env.account)}
        env.account = Account(**book, traded=Traded())  # which the next step replaces before it reads it
        env._segment = _segment(stored)
        env.episode, env.rejected_actions = int(stored["episode"]), int(stored["rejected"])
        env.done = bool(stored["done"])
        return
    env.book = Portfolio(**{field.name: to_device(stored[field.name], env.device) for field in fields(Portfolio)})
    env._episode.copy_(stored["episode"])
    env._rejected.copy_(stored["rejected"])
    env._needs_reset = bool(stored["done"])


def use_plain_step(env: Any) -> None:
    """Let a fast environment of ours run the plain step; its accounts begin anew, on the same market."""
    env._asked = env._asked | {"native_step": False}
    env._open_accounts()


def _segment(stored: Mapping[str, Tensor]) -> tuple[int, int]:
    first, end = stored["segment"].tolist()
    return first, end


def _scalar_book(account: Account) -> dict[str, Any]:
    return {field.name: getattr(account, field.name) for field in fields(Account) if field.name != "traded"}


def _dtype(value: Any) -> torch.dtype:
    """Counts and bars are whole numbers, money and coins float64 as in the account."""
    first = value[0] if isinstance(value, list) else value
    return torch.int64 if isinstance(first, int) else torch.float64
