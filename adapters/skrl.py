"""N accounts as a skrl environment whose tensors stay on the simulator's device; `wrap_env` would go through NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from skrl import config as skrl_config
from skrl.envs.wrappers.torch import Wrapper

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized


class CryptoWrapper(Wrapper):
    """N accounts that restart in the step in which their episode ends; a single one is reset by skrl's trainer.

    The observations are the simulator's buffers and stay valid through the next step; skrl's memories copy them.
    After a restart the returned observation is the new episode's first. `infos["final_observations"]` holds the last
    observation of each ended episode until the next step; `FinalObservations` passes it to an agent.

    Args:
        config: `price_array`, `tech_array` and the other keys of the simulator.
        env_params: `rules`, `lookback` and the other settings of the simulator.
        n_envs: number of accounts N.
        env: an existing batch to use in place of config, env_params and options.
        options: for `VectorizedCryptoEnvAlpacaOptimized`.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, env_params: Mapping[str, Any] | None = None, n_envs: int = 1, *,
        env: VectorizedCryptoEnvAlpaca | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if env is None and config is not None:
            options = {"as_numpy": False, "autoreset": n_envs > 1, **options}
            env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, n_envs, **options)
        if env is None or env.as_numpy or env.api != "elegantrl" or env.autoreset is not (env.n_envs > 1):
            raise ValueError('needs config, or an env with api="elegantrl", as_numpy=False, autoreset=n_envs > 1')
        super().__init__(env)
        self._observation_space = Box(-np.inf, np.inf, (env.state_dim,), np.float32)
        self._action_space = Box(-1.0, 1.0, (env.action_dim,), np.float32)
        self._next_seed: int | None = skrl_config.torch.key  # what skrl.utils.set_seed was given

    observation_space = property(lambda self: self._observation_space, doc="Box (S,) float32.")
    action_space = property(lambda self: self._action_space, doc="Box (A,) float32 in [-1, 1].")

    def reset(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """Open fresh accounts in all environments -> observations (N, S), no infos."""
        state = self._env.reset(seed=self._next_seed)
        self._next_seed = None
        return state, {}

    def step(
        self, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance one bar -> observations (N, S); reward, terminated and truncated (N, 1), the caller's own; infos."""
        state, reward, done, info = self._env.step(actions)
        truncated = info["truncated"].clone()[:, None]
        infos = {"final_observations": info["final_state"], "episode_return": info["episode_return"].clone()}
        return state, reward.clone()[:, None], done[:, None] & ~truncated, truncated, infos

    def state(self) -> None:
        """No state beside the observations."""

    def render(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to show."""

    def close(self) -> None:
        """Nothing to release."""


class FinalObservations:
    """Mixin that gives an agent the last observations of ended episodes as its next observations.

    Without it an agent that bootstraps truncated episodes takes the value of the *next* episode's first observation.
    For example `class FinalPPO(FinalObservations, PPO): pass`, with `time_limit_bootstrap=True` in `PPO_CFG`.
    """

    def record_transition(
        self, *, next_observations: torch.Tensor, terminated: torch.Tensor, truncated: torch.Tensor,
        infos: dict[str, Any], **transition: Any,
    ) -> None:  # fmt: skip
        """Record the transition with its true next observations."""
        done = terminated | truncated
        if done.device.type != "cpu" or done.any():  # a GPU is not asked: the answer would stall it
            next_observations = torch.where(done, infos["final_observations"], next_observations)
        flags = {"terminated": terminated, "truncated": truncated}
        super().record_transition(next_observations=next_observations, infos=infos, **flags, **transition)  # type: ignore[misc]
