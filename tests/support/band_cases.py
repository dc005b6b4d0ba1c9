"""Band agents on small markets."""

from __future__ import annotations

from typing import Any

import torch

from drl_agents.agents import AgentBand
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized
from tests.support.agent_args import agent_args
from tests.support.markets import random_config

PARAMS = {"rules": "standard", "lookback": 2, "norm_action": 1.0}
SEGMENTS = [(0, 150), (160, 300)]
ENV_OPTIONS = ("start", "episode_bars", "seed", "compact", "native_step")


def band_env(
    env_class: type = VectorizedCryptoEnvAlpacaOptimized, n_envs: int = 20, n_assets: int = 2, n_bars: int = 300,
    env_params: dict[str, Any] | None = None, config: dict[str, Any] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """300 bars in two segments, in which accounts of an own smallest order restart after at most 60 bars."""
    if config is None:
        config = random_config(n_bars, n_assets, 3, segments=SEGMENTS)
    options = {"start": "random", "episode_bars": 60, "seed": 5} | options
    if env_class is VectorizedCryptoEnvAlpacaOptimized or "compact" in options:
        options = {"n_envs": n_envs, "device": "cpu", "compact": True} | options
    return env_class(config, PARAMS | (env_params or {}), **options)


def band_agent(env: Any, net_dims: tuple[int, ...] = (16, 16), prepared: bool = True, **settings: Any) -> AgentBand:
    """An agent at a fresh reset of `env`."""
    args = agent_args(AgentBand, env, **{"observe_account": env.params.observe_account, **settings})
    args.num_envs = getattr(env, "n_envs", 1)
    state_dim = getattr(env, "full_state_dim", env.state_dim)
    agent = AgentBand(net_dims, state_dim, env.action_dim, gpu_id=-1, args=args)
    if prepared:
        agent.prepare_for(env)
    state = torch.as_tensor(env.reset(), dtype=torch.float32)
    agent.last_state = state.reshape(args.num_envs, env.state_dim).clone()
    return agent
