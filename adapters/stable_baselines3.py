"""N accounts as a Stable-Baselines3 `VecEnv`: `PPO("MlpPolicy", CryptoVecEnv(config, env_params, n_envs=64))`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
from torch import Tensor

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized


class CryptoVecEnv(VecEnv):
    """A Stable-Baselines3 environment with N accounts. When an episode ends, its account restarts within the same step.

    The info of a finished episode holds `terminal_observation`, `TimeLimit.truncated` and `episode_return` (account
    value divided by initial capital). Other infos are empty. `VecMonitor(env)` adds the sum of rewards and the episode
    length.

    Args:
        config: `price_array`, `tech_array` and the other keys of the simulator.
        env_params: `rules`, `lookback` and the other settings of the simulator.
        n_envs: number of accounts N.
        env: an existing vectorized environment, used instead of config, env_params and options.
        options: options of `VectorizedCryptoEnvAlpacaOptimized`.

    Raises:
        ValueError: neither `config` nor a suitable `env` is given.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, env_params: Mapping[str, Any] | None = None, n_envs: int = 1, *,
        env: VectorizedCryptoEnvAlpaca | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if env is None and config is not None:
            options = {"as_numpy": False, "autoreset": True, **options}
            env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, n_envs, **options)
        if env is None or env.as_numpy or env.api != "elegantrl" or not env.autoreset:
            raise ValueError('pass config, or an env with api="elegantrl", as_numpy=False, autoreset=True')
        self.env, self.render_mode, self._actions = env, None, np.zeros((env.n_envs, env.action_dim), np.float32)
        observations = Box(-np.inf, np.inf, (env.state_dim,), np.float32)
        super().__init__(env.n_envs, observations, Box(-1.0, 1.0, (env.action_dim,), np.float32))

    def reset(self) -> np.ndarray:
        """Open fresh accounts in all environments. The first seed passed to `seed()` determines all starts."""
        state = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        return _own(state)

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions (N, A) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Advance every environment one bar. All returned arrays are copies."""
        state, reward, done, info = self.env.step(self._actions)
        dones, infos = _own(done), [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones)
        if len(ended):
            finals = info["final_state"][done].cpu().numpy()  # indexing copies
            truncated, returns = info["truncated"][done].tolist(), info["episode_return"][done].tolist()
            for i, final, is_truncated, value in zip(ended, finals, truncated, returns, strict=True):
                infos[i] = {"TimeLimit.truncated": is_truncated, "terminal_observation": final, "episode_return": value}
        return _own(state), _own(reward), dones, infos

    def close(self) -> None:
        """Do nothing: there are no resources to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the simulator: each account's row of a tensor (N, ...), or the shared value."""
        value = getattr(self if attr_name == "render_mode" else self.env, attr_name)
        if isinstance(value, Tensor) and value.shape[:1] == (self.env.n_envs,):
            return [value[i].cpu().numpy()[()] for i in self._get_indices(indices)]
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the simulator, which all accounts share.

        Raises:
            ValueError: `indices` is not None.
        """
        if indices is not None:
            raise ValueError(f"all accounts share {attr_name}: indices must be None; received {indices!r}")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the simulator once and return its result for every index."""
        result = getattr(self.env, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return False for every index, because there are no single environments to wrap."""
        return [False for _ in self._get_indices(indices)]


def _own(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().copy() if tensor.device.type == "cpu" else tensor.cpu().numpy()
