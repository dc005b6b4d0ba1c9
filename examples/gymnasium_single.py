"""How do I trade one account through Gymnasium? Run: python -m examples.gymnasium_single."""

import gymnasium
import numpy as np

import adapters  # noqa: F401 - registers CryptoAlpaca-v0

trend = np.sign(np.sin(np.arange(4000) / 20.0))[:, None]  # +1 in a rising market, -1 in a falling one
price = 100.0 * np.exp(np.cumsum(0.002 * trend + np.random.default_rng(0).normal(0.0, 0.005, (4000, 3)), axis=0))
config, env_params = {"price_array": price, "tech_array": trend}, {"rules": "standard", "lookback": 1}
env = gymnasium.make("CryptoAlpaca-v0", config=config, env_params=env_params, episode_bars=100)
observation, info = env.reset(seed=0)
is_over = False
while not is_over:
    action = np.repeat(np.sign(observation[-1:]), 3)  # buy in a rising market, sell in a falling one
    observation, reward, terminated, truncated, info = env.step(action)
    is_over = terminated or truncated
print(f"account value {info['episode_return']:.3f} times the initial capital")
