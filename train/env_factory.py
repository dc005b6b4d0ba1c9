"""Builds environments, ours and the hosts'. The constructor's signature tells one account from a batch."""

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

# Options without meaning for a class that does not name them: it has no random starts and lives on the host.
DROPPABLE = {"seed", "gpu_id", "device", "if_log", "as_numpy"}


def env_class_for(n_envs: int) -> type:
    """The scalar class for one environment, the fast vectorized one for several."""
    return CryptoEnvAlpaca if n_envs == 1 else VectorizedCryptoEnvAlpacaOptimized


def resolved_rules(env_params: Mapping[str, Any]) -> dict[str, Any]:
    """Every rule that these env_params come to, by name: fees, slippage and capital included."""
    return asdict(rules_of(env_params))


def rules_of(env_params: Mapping[str, Any]) -> EnvParams:
    """The rules that these env_params come to."""
    return EnvParams.from_mapping(env_params)


@dataclass(frozen=True)
class Observation:
    """What an environment shows."""

    lookback: int  # bars of features
    layout: tuple[tuple[str, int], ...]  # blocks by name and width


def observation_of(env: Any) -> Observation | None:
    """Lookback and blocks of an environment of ours that keeps its `EnvParams`; None for any other."""
    params = getattr(env, "params", None)
    if not isinstance(params, EnvParams):
        return None
    # The features are what the account leaves of the width.
    account = sum(width for _, width in observation_layout(params, env.action_dim, 0))
    n_features = (env.state_dim - account) // params.lookback
    return Observation(params.lookback, observation_layout(params, env.action_dim, n_features))


def step_name(env: Any) -> str:
    """What steps an environment: "numba", "triton" or "torch"; "scalar"; or the name of a class that is not ours."""
    if isinstance(env, VectorizedCryptoEnvAlpaca):
        return getattr(env, "stepped_by", "torch")  # the plain class has no choice
    return "scalar" if isinstance(env, CryptoEnvAlpaca) else type(env).__name__


def is_vectorized(env_class: type) -> bool:
    """Whether the constructor has an `n_envs` parameter."""
    return "n_envs" in inspect.signature(env_class).parameters


def make_env(
    env_class: type, config: Mapping[str, Any], env_params: Mapping[str, Any], n_envs: int = 1, **options: Any
) -> Any:
    """Build an environment, vectorized when its class can be.

    Args:
        env_class: any class with the hosts' constructor, `env_class(config=..., env_params=..., ...)`.
        config: arrays, segments and names.
        env_params: rules and settings.
        n_envs: environments; must be 1 for a class that cannot hold more.
        options: further named parameters of the constructor. None means its default.

    Raises:
        ValueError: for an option that the class does not know and that would change the simulation.
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
        if why is not None:  # Python's warning comes once a process and not to the log
            log.warning("the plain torch step runs in place of the native one: %s", why)
        return env
    if n_envs != 1:
        raise ValueError(f"{env_class.__name__} has no n_envs parameter and holds one account; received {n_envs}")
    return env_class(config=config, env_params=env_params, **arguments)
