"""PPO implementations that the benchmarks compare, over the environments of benchmarks/contenders.py.

All use the same settings: rollouts from 12 environments (or as many steps of one), the same epochs and the same batch
size. The learning rate is tiny, because a measurement repeats the update on one rollout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from elegantrl.agents.AgentPPO import AgentPPO as StockPPO
from elegantrl.train.config import Config
from torch import Tensor

from benchmarks import contenders as who
from environment_Alpaca import CryptoEnvAlpaca
from train.config import TrainConfig
from train.run import build_agent

N_ENVS, RULES, LEARNING_RATE = 12, "standard", 1e-6


def our_agent(env: Any, width: int, horizon_len: int, threads: int, batch_size: int = 512, n_epochs: int = 4) -> Any:
    """Return the repository's PPO for a vectorized environment, with a number of threads."""
    sizes = {"net_dims": (width, width), "n_epochs": n_epochs, "batch_size": batch_size, "horizon_len": horizon_len}
    budget = {"learning_rate": LEARNING_RATE, "total_env_steps": 10**9, "cpu_threads": threads}
    return build_agent(TrainConfig(n_envs=env.n_envs, **sizes, **budget), env)


def stock_agent(env: Any, n_envs: int, width: int, batch_size: int = 512, repeat_times: float = 4.0) -> StockPPO:
    """Return elegantrl 0.3.6's PPO, which takes `repeat_times` * horizon / `batch_size` gradient steps."""
    sizes = {"state_dim": env.state_dim, "action_dim": env.action_dim, "if_discrete": False}
    args = Config(StockPPO, None, {"env_name": "crypto", "num_envs": n_envs, **sizes})
    args.batch_size, args.repeat_times, args.learning_rate = batch_size, repeat_times, LEARNING_RATE
    agent = StockPPO([width, width], env.state_dim, env.action_dim, gpu_id=-1, args=args)
    state = torch.as_tensor(env.reset(), dtype=torch.float32)
    agent.last_state = state.reshape(n_envs, env.state_dim).clone()
    return agent


class ScalarLoop:
    """N scalar environments in a Python loop, with the tensor interface of elegantrl's vectorized environments."""

    def __init__(self, n_envs: int) -> None:
        self.envs = [who.scalar_env(RULES, seed) for seed in range(n_envs)]
        self.state_dim, self.action_dim = self.envs[0].state_dim, self.envs[0].action_dim

    def reset(self) -> Tensor:
        """Reset all environments and return the observations (N, S)."""
        return torch.from_numpy(np.stack([env.reset() for env in self.envs]))

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step with actions (N, A), reset ended environments, and return state, reward, done and info."""
        results = [step_and_restart(env, row) for env, row in zip(self.envs, action.numpy(), strict=True)]
        states, rewards, done = zip(*results, strict=True)
        return torch.from_numpy(np.stack(states)), torch.tensor(rewards), torch.tensor(done), {}


def step_and_restart(env: CryptoEnvAlpaca, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Step once; return the first state of the next episode if this one ended."""
    state, reward, done, _ = env.step(action)
    return env.reset() if done else state, reward, done


def gemm_flops(width: int) -> float:
    """Return the matrix-product FLOPs of one sample in one gradient step of actor and critic.

    They comprise the forward pass, the weight gradients, and the input gradients of all layers except the first.
    """
    total = 0
    for n_outputs in (who.N_ASSETS, 1):
        first, others = who.STATE_DIM * width, width * width + width * n_outputs
        total += 2 * (2 * first + 3 * others)
    return float(total)
