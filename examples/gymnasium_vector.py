"""How do I trade 64 accounts through Gymnasium's vector interface? Run: python -m examples.gymnasium_vector."""

import gymnasium
import numpy as np

import adapters  # noqa: F401 - registers CryptoAlpaca-v0

trend = np.sign(np.sin(np.arange(4000) / 20.0))[:, None]  # +1 in a rising market, -1 in a falling one
price = 100.0 * np.exp(np.cumsum(0.002 * trend + np.random.default_rng(0).normal(0.0, 0.005, (4000, 3)), axis=0))
envs = gymnasium.make_vec(
    "CryptoAlpaca-v0", num_envs=64, vectorization_mode="vector_entry_point", episode_bars=100,
    config={"price_array": price, "tech_array": trend}, env_params={"rules": "standard", "lookback": 1},
)  # fmt: skip
envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
observations, infos = envs.reset(seed=0)
for _ in range(1000):
    actions = np.repeat(np.sign(observations[:, -1:]), 3, axis=1)  # buy in a rising market, sell in a falling one
    observations, rewards, terminations, truncations, infos = envs.step(actions)
print(f"{envs.episode_count} episodes, mean sum of rewards {np.mean(envs.return_queue):.1f}")
