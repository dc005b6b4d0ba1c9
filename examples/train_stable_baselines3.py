"""How do I train with Stable-Baselines3? Run: python -m examples.train_stable_baselines3."""

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from adapters.stable_baselines3 import CryptoVecEnv

trend = np.sign(np.sin(np.arange(4000) / 20.0))[:, None]  # +1 in a rising market, -1 in a falling one
price = 100.0 * np.exp(np.cumsum(0.002 * trend + np.random.default_rng(0).normal(0.0, 0.005, (4000, 3)), axis=0))
config, env_params = {"price_array": price, "tech_array": trend}, {"rules": "standard", "lookback": 1}
env = VecMonitor(CryptoVecEnv(config, env_params, n_envs=64, episode_bars=100))
model = PPO("MlpPolicy", env, n_steps=64, batch_size=1024, learning_rate=1e-3, gamma=0.9, seed=0, device="cpu")
before, _ = evaluate_policy(model, env, n_eval_episodes=64)
model.learn(50_000)
after, _ = evaluate_policy(model, env, n_eval_episodes=64)
print(f"mean sum of rewards: {before:.1f} before, {after:.1f} after training")
