"""How fast is the simulator on my machine? Run: python -m examples.steps_per_second."""

import time

import numpy as np
import torch

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized

price = 100.0 * np.exp(np.cumsum(np.random.default_rng(0).normal(0.0, 0.003, (20_000, 7)), axis=0))
config = {"price_array": price, "tech_array": np.zeros((20_000, 105), np.float32)}
for n_envs in (1, 12, 512, 4096):
    env = VectorizedCryptoEnvAlpacaOptimized(
        config, {"rules": "standard", "lookback": 4}, n_envs=n_envs, gpu_id=-1, as_numpy=False
    )
    env.reset()
    actions = torch.rand(64, n_envs, env.action_dim) * 2 - 1
    n_steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < 0.5:
        env.step(actions[n_steps % 64])
        n_steps += 1
    per_second = n_steps * n_envs / (time.perf_counter() - started)
    print(f"{n_envs:>5} environments: {per_second:>12,.0f} environment steps per second ({env.stepped_by})")
