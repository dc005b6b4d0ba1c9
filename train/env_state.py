"""State of an environment as tensors, which can be restored into a different environment of the same kind.

Random starts need no state, because they follow from the seed, the environment's index and the episode's number.
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
    """Raised if a state does not fit the environment. The message names the tensor."""


def has_known_state(env: Any) -> bool:
    """Return True if the complete state of `env` is known; False for a derived class, which may have more state."""
    return type(env) in (CryptoEnvAlpaca, *BATCHED)


def env_tensors(env: Any) -> dict[str, Tensor]:
    """Return CPU copies by name of every account field, the counters and the cost factor.

    Shapes are (N,) and (N, A) as in `Portfolio` for a batch, and () and (A,) for the scalar environment.
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
    """Raise EnvStateError unless `restore_env` can restore `stored` into `env`."""
    expected = {name: (tuple(value.shape), value.dtype) for name, value in env_tensors(env).items()}
    found = {name: (tuple(value.shape), value.dtype) for name, value in stored.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise EnvStateError(f"{name} of the environment is {found.get(name)}, expected {expected.get(name)}")
    is_scalar = isinstance(env, CryptoEnvAlpaca)
    bar, n_bars = stored["bar"], len(env.price_array if is_scalar else env.market.price)
    if int(bar.min()) < env.params.lookback - 1 or int(bar.max()) >= n_bars:
        raise EnvStateError(f"bar of the environment is {bar.tolist()}, but there are only {n_bars} bars")
    if not 0.0 <= (factor := float(stored["cost_factor"])) <= 1.0:
        raise EnvStateError(f"cost_factor of the environment is {factor}, expected 0 to 1")
    if is_scalar and _segment(stored) not in env.segments:
        raise EnvStateError(f"segment of the environment is {_segment(stored)}, which is not one of {env.segments}")


def restore_env(env: Any, stored: Mapping[str, Tensor]) -> None:
    """Restore the result of `env_tensors` into `env`, or raise EnvStateError without changing anything."""
    check_env_tensors(env, stored)
    env.cost_factor = float(stored["cost_factor"])
    if isinstance(env, CryptoEnvAlpaca):
        book: dict[str, Any] = {name: stored[name].tolist() for name in _scalar_book(env.account)}
        env.account = Account(**book, traded=Traded())  # the next step overwrites `traded` before reading it
        env._segment = _segment(stored)
        env.episode, env.rejected_actions = int(stored["episode"]), int(stored["rejected"])
        env.done = bool(stored["done"])
        return
    env.book = Portfolio(**{field.name: to_device(stored[field.name], env.device) for field in fields(Portfolio)})
    env._episode.copy_(stored["episode"])
    env._rejected.copy_(stored["rejected"])
    env._needs_reset = bool(stored["done"])


def use_plain_step(env: Any) -> None:
    """Switch a fast environment to the plain step. Its accounts restart on the same market."""
    env._asked = env._asked | {"native_step": False}
    env._open_accounts()


def _segment(stored: Mapping[str, Tensor]) -> tuple[int, int]:
    first, end = stored["segment"].tolist()
    return first, end


def _scalar_book(account: Account) -> dict[str, Any]:
    return {field.name: getattr(account, field.name) for field in fields(Account) if field.name != "traded"}


def _dtype(value: Any) -> torch.dtype:
    """Return int64 for counts and bars, and float64 for money and coins, as in the account."""
    first = value[0] if isinstance(value, list) else value
    return torch.int64 if isinstance(first, int) else torch.float64
