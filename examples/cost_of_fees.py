"""How much do fees cost? Run: python -m examples.cost_of_fees."""

import numpy as np
import torch

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized

N_BARS, N_ENVS = 288 * 30, 256  # a month of 5-minute bars, 256 accounts
price = 100.0 * np.exp(np.cumsum(np.random.default_rng(0).normal(0.0, 0.001, (N_BARS + 2, 1)), axis=0))
config = {"price_array": price, "tech_array": np.zeros((N_BARS + 2, 1), np.float32)}
print("a coin toss between all coins and all cash, at a fee of 25 bp and a slippage of 5 bp per trade")
for pause in (1, 12, 288, N_BARS):
    env_params = {"rules": "standard", "lookback": 1, "norm_action": 1.0, "start": "first"}
    env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, N_ENVS, gpu_id=-1, autoreset=False)
    torch.manual_seed(0)
    env.reset()
    fees, end = torch.zeros(N_ENVS, dtype=torch.float64), {}
    for bar in range(N_BARS):
        toss = torch.randint(0, 2, (N_ENVS, 1)) * 2.0 - 1.0
        end = env.step(toss if bar % pause == 0 else torch.zeros(N_ENVS, 1))[3]
        fees += end["fees"]
    print(f"one toss per {pause:>4} bars: fees {fees.mean() / 1e4:6.1%} of the capital, "
          f"equity {end['episode_return'].mean():.3f} times the capital")  # fmt: skip
