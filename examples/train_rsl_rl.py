"""How do I train with rsl_rl? Run: python -m examples.train_rsl_rl."""

import numpy as np
from rsl_rl.runners import OnPolicyRunner

from adapters.rsl_rl import CryptoVecEnv

trend = np.sign(np.sin(np.arange(4000) / 20.0))[:, None]  # +1 in a rising market, -1 in a falling one
price = 100.0 * np.exp(np.cumsum(0.002 * trend + np.random.default_rng(0).normal(0.0, 0.005, (4000, 3)), axis=0))
config, env_params = {"price_array": price, "tech_array": trend}, {"rules": "standard", "lookback": 1}
env = CryptoVecEnv(config, env_params, n_envs=64, episode_bars=100)
model = {"class_name": "MLPModel", "hidden_dims": [64, 64]}
cfg = {
    "num_steps_per_env": 32, "save_interval": 100, "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
    "algorithm": {"class_name": "PPO", "gamma": 0.9}, "critic": model,
    "actor": model | {"distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0}},
}  # fmt: skip
runner = OnPolicyRunner(env, cfg, device=str(env.device))
runner.learn(30)
print(f"mean account value {env.env.episode_return.mean():.3f} times the initial capital")
