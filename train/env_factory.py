"""Construction of this project's and the hosts' environments, vectorized if the constructor allows it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import (
    EnvParams,
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
    observation_layout,
)

log = logging.getLogger(__name__)

# Options that a class may lack, because it has no random starts and runs on the host.
DROPPABLE = {"seed", "gpu_id", "device", "if_log", "as_numpy"}


def env_class_for(n_envs: int) -> type:
    """Return the single-account class for one environment and the fast vectorized class for several."""
    return CryptoEnvAlpaca if n_envs == 1 else VectorizedCryptoEnvAlpacaOptimized


def resolved_rules(env_params: Mapping[str, Any]) -> dict[str, Any]:
    """Return all rules that these env_params select, by name, including fees, slippage and capital."""
    return asdict(rules_of(env_params))


def rules_of(env_params: Mapping[str, Any]) -> EnvParams:
    """Return the rules that these env_params select."""
    return EnvParams.from_mapping(env_params)


@dataclass(frozen=True)
class Observation:
    """Structure of an environment's observation."""

    lookback: int  # number of bars whose features are observed
    layout: tuple[tuple[str, int], ...]  # (name, width) of each block


def observation_of(env: Any) -> Observation | None:
    """Return the observation structure of an environment that keeps its `EnvParams`, or None for other classes."""
    params = getattr(env, "params", None)
    if not isinstance(params, EnvParams):
        return None
    # Features take the width that the account columns leave.
    account = sum(width for _, width in observation_layout(params, env.action_dim, 0))
    n_features = (env.state_dim - account) // params.lookback
    return Observation(params.lookback, observation_layout(params, env.action_dim, n_features))


def step_name(env: Any) -> str:
    """Return the step implementation: "numba", "triton", "torch" or "scalar", or the name of a host's class."""
    if isinstance(env, VectorizedCryptoEnvAlpaca):
        return getattr(env, "stepped_by", "torch")  # the plain class has only the torch step
    return "scalar" if isinstance(env, CryptoEnvAlpaca) else type(env).__name__


def is_vectorized(env_class: type) -> bool:
    """Return True if the constructor has an `n_envs` parameter."""
    return "n_envs" in inspect.signature(env_class).parameters


def make_env(
    env_class: type, config: Mapping[str, Any], env_params: Mapping[str, Any], n_envs: int = 1, **options: Any
) -> Any:
    """Build an environment, vectorized if its class supports it.

    Args:
        env_class: class with the hosts' constructor, `env_class(config=..., env_params=..., ...)`.
        config: arrays, segments and names.
        env_params: rules and settings.
        n_envs: number of environments; must be 1 for a class that holds one account.
        options: additional named parameters of the constructor; None selects the default.

    Raises:
        ValueError: the class does not have an option that would change the simulation.
    """
    known = inspect.signature(env_class).parameters
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(set(given) - set(known) - DROPPABLE)
    if unknown:
        raise ValueError(f"{env_class.__name__} has no parameter {', '.join(unknown)}; it takes {', '.join(known)}")
    arguments = {name: value for name, value in given.items() if name in known}
    if "n_envs" in known:
        env = env_class(config=config, env_params=env_params, n_envs=n_envs, **arguments)
        log.info("Using Vectorized Environments: %d parallel envs", n_envs)
        why = getattr(env, "why_not_native", None)
        if why is not None:  # Python's warning appears once per process and not in the log
            log.warning("using the plain torch step instead of the native step: %s", why)
        return env
    if n_envs != 1:
        raise ValueError(f"n_envs must be 1 for {env_class.__name__}, which holds one account; received {n_envs}")
    return env_class(config=config, env_params=env_params, **arguments)
