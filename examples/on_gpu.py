"""Does the simulator use my GPU? Run: python -m examples.on_gpu."""

import numpy as np
import torch

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized

price = 100.0 * np.exp(np.cumsum(np.random.default_rng(0).normal(0.0, 0.003, (5_000, 7)), axis=0))
config = {"price_array": price, "tech_array": np.zeros((5_000, 14), np.float32)}
env = VectorizedCryptoEnvAlpacaOptimized(config, {"rules": "standard", "lookback": 4}, n_envs=4096, gpu_id=0)
equity = torch.zeros(env.n_envs, dtype=torch.float64, device=env.device)
env.reset()
for _ in range(100):
    action = torch.rand(env.n_envs, env.action_dim, device=env.device) * 2 - 1  # created on the GPU and used there
    state, reward, done, info = env.step(action)
    equity += info["equity"]  # reading a number here, for example with .item(), would wait for the GPU
mean = equity.mean().item() / 100
print(f"{env.n_envs} accounts on {env.device}, stepped by {env.stepped_by}: mean equity {mean:,.0f}")
if env.device.type == "cpu":
    print("torch found no GPU, so the accounts are on the CPU; see docs/installation.md")
