"""What the adapters are compared with: scalar environments in a loop, restarted where the tested batch restarted."""

from __future__ import annotations

from typing import Any

import numpy as np

from environment_Alpaca import CryptoEnvAlpaca
from tests.support.markets import params_of, random_config

N_ENVS = 5
CONFIG = random_config(n_bars=120, n_assets=3, n_features=4, volatility=0.02)
# Some accounts fall below 98.5 % of their capital before the clock ends the episode: both kinds of end occur.
STANDARD = params_of("standard", terminal_equity_fraction=0.985)
OPTIONS = {"episode_bars": 7, "seed": 3}


def drawn_actions(n_steps: int, n_envs: int = N_ENVS, seed: int = 0) -> np.ndarray:
    """(T, N, A) float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1.0, 1.0, (n_steps, n_envs, CONFIG["price_array"].shape[1])).astype(np.float32)


class ScalarAccounts:
    """N scalar environments. `batch` is the simulator of the adapter; only its bars are read.

    Bars tell where an episode began, because the starts are random; everything else is computed here.
    """

    def __init__(self, batch: Any, config: Any = CONFIG, env_params: Any = STANDARD, **options: Any) -> None:
        options = {"episode_bars": OPTIONS["episode_bars"]} | options
        self.batch = batch
        self.envs = [CryptoEnvAlpaca(config, env_params, **options) for _ in range(batch.n_envs)]
        self.sums = np.zeros(batch.n_envs)  # of the rewards of the running episodes
        self.ended_sums: list[float] = []  # of the episodes that ended, in their order

    def open(self, where: np.ndarray | None = None) -> dict[int, np.ndarray]:
        """Begin episodes at the batch's bars: number of the environment -> first observation."""
        where = np.ones(len(self.envs), dtype=bool) if where is None else where
        bars = self.batch.book.bar.tolist()
        self.sums[where] = 0.0
        return {int(i): self.envs[i].reset(bar=bars[i]) for i in np.flatnonzero(where)}

    def step(self, actions: np.ndarray, where: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """One bar of the environments `where`; the others report zeros."""
        n, width = len(self.envs), self.envs[0].state_dim
        out = {"state": np.zeros((n, width), np.float32), "reward": np.zeros(n), "episode_return": np.zeros(n)}
        out |= {name: np.zeros(n, dtype=bool) for name in ("done", "terminated", "truncated")}
        for i in range(n) if where is None else np.flatnonzero(where):
            state, reward, done, info = self.envs[i].step(actions[i])
            out["state"][i], out["reward"][i], out["done"][i] = state, reward, done
            out["truncated"][i], out["terminated"][i] = info["truncated"], done and not info["truncated"]
            out["episode_return"][i] = info["episode_return"]
            self.sums[i] += reward
        self.ended_sums += self.sums[out["done"]].tolist()
        return out

    def restart(self, out: dict[str, np.ndarray]) -> np.ndarray:
        """(N, S) observations after a same-step restart of the environments that are done."""
        states = out["state"].copy()
        for i, first in self.open(out["done"]).items():
            states[i] = first
        return states


def assert_same(received: Any, expected: Any) -> None:
    """Equal up to the rounding of float32."""
    np.testing.assert_allclose(np.asarray(received), np.asarray(expected), rtol=1e-5, atol=1e-6)


class Recorder:
    """Keeps what was returned together with a copy made at once, so that a reused buffer shows."""

    def __init__(self) -> None:
        self.kept: list[tuple[Any, np.ndarray]] = []

    def keep(self, value: Any) -> None:
        """Remember an array or tensor."""
        self.kept.append((value, np.asarray(value).copy()))

    def assert_unchanged(self) -> None:
        """Nothing that was returned has changed since."""
        assert len(self.kept) > 1
        for value, copied in self.kept:
            np.testing.assert_array_equal(np.asarray(value), copied)
