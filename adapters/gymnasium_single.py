"""One account as a `gymnasium.Env`. After `import adapters`, use `gymnasium.make("CryptoAlpaca-v0", ...)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized


class CryptoEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A Gymnasium environment with one account. For several accounts, `make_vec` is many times faster.

    Args:
        config: `price_array`, `tech_array` and the other keys of the simulator.
        env_params: `rules`, `lookback` and the other settings of the simulator.
        env: an existing environment with n_envs=1, used instead of config, env_params and options.
        info_keys: names of the simulator's infos to return, such as "episode_return", "equity", "fees" or "trades".
        options: options of `VectorizedCryptoEnvAlpacaOptimized`.

    Raises:
        ValueError: neither `config` nor a suitable `env` is given.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self, config: Mapping[str, Any] | None = None, env_params: Mapping[str, Any] | None = None, *,
        env: VectorizedCryptoEnvAlpaca | None = None, info_keys: Sequence[str] = ("episode_return",), **options: Any,
    ) -> None:  # fmt: skip
        if env is None and config is not None:
            options = {"as_numpy": False, "autoreset": False, **options}
            env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, 1, **options)
        if env is None or env.n_envs != 1 or env.as_numpy or env.api != "elegantrl" or env.autoreset:
            raise ValueError('pass config, or an env with n_envs=1, api="elegantrl", as_numpy=False, autoreset=False')
        self.env, self.info_keys, self._is_over = env, tuple(info_keys), False
        self.observation_space = Box(-np.inf, np.inf, (env.state_dim,), np.float32)
        self.action_space = Box(-1.0, 1.0, (env.action_dim,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Open a fresh account. `seed` determines the starts of this episode and of all following ones."""
        super().reset(seed=seed)
        self._is_over = False
        return self.env.reset(seed=seed)[0].cpu().numpy().copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance one bar.

        Raises:
            RuntimeError: the episode has ended.
        """
        if self._is_over:
            raise RuntimeError("the episode has ended: call reset() before step()")
        state, reward, done, info = self.env.step(np.asarray(action)[None])
        truncated, self._is_over = info["truncated"].item(), done.item()
        infos = {name: info[name].item() for name in self.info_keys}
        observation = state[0].cpu().numpy().copy()
        return observation, reward.item(), self._is_over and not truncated, truncated, infos
