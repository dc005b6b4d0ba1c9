"""elegantrl's Config as the agents read it."""

from __future__ import annotations

from typing import Any

from elegantrl.train.config import Config

from drl_agents.agents import AGENTS

# Agents that learn in any environment. The band follows the account, so it needs an environment of this repository.
REWARD_AGENTS = [name for name in AGENTS if name != "band"]


def agent_args(agent_class: type, env: Any, **settings: Any) -> Config:
    """Config for `env`, with `settings` put over elegantrl's defaults."""
    names = ("num_envs", "max_step", "state_dim", "action_dim", "if_discrete")
    args = Config(agent_class, None, {"env_name": "toy", **{name: getattr(env, name) for name in names}})
    for name, value in settings.items():
        setattr(args, name, value)
    return args


def make_agent(agent_class: type, env: Any, net_dims: tuple[int, ...] = (16, 16), **settings: Any) -> Any:
    """Agent on the CPU, its last_state set to a reset of `env`."""
    import torch

    args = agent_args(agent_class, env, **settings)
    agent = agent_class(net_dims, env.state_dim, env.action_dim, gpu_id=-1, args=args)
    state = torch.as_tensor(env.reset(), dtype=torch.float32)
    agent.last_state = state.reshape(env.num_envs, env.state_dim)
    return agent
