"""How do I use my own reward? Run: python -m examples.own_reward."""

import numpy as np
import torch

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized


class LossAverse(VectorizedCryptoEnvAlpacaOptimized):
    """Environment with a reward that counts losses twice."""

    def step(self, action, out=None):  # noqa: ANN001, ANN201
        """Advance one bar and replace the reward (N,) in place, because the caller may own its storage."""
        state, reward, done, info = super().step(action, out)
        growth = info["reward_terms"]["growth"]  # (N,) log growth of the account, times norm_reward
        reward.copy_(torch.where(growth < 0.0, 2.0 * growth, growth))
        return state, reward, done, info


price = 100.0 * np.exp(np.cumsum(np.random.default_rng(0).normal(0.0, 0.005, (4000, 3)), axis=0))
config, env_params = {"price_array": price, "tech_array": np.zeros((4000, 1))}, {"rules": "standard", "lookback": 1}
torch.manual_seed(0)
actions = torch.rand(50, 64, 3) * 2.0 - 1.0
for env_class in (VectorizedCryptoEnvAlpacaOptimized, LossAverse):
    env = env_class(config, env_params, n_envs=64, gpu_id=-1)  # the adapters also accept it: CryptoVecEnv(env=env)
    env.reset()
    mean = torch.stack([env.step(action)[1].mean() for action in actions]).mean()
    print(f"{env_class.__name__}: mean reward {mean:+.4f}")
