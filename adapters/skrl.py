"""N accounts as a skrl environment. Tensors stay on the simulator's device; `wrap_env` would copy them to NumPy."""

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
    """A skrl environment with N accounts. When an episode ends, its account restarts within the same step.

    If N is 1, skrl's trainer resets the account instead.

    The observations are the simulator's buffers and stay valid through the next step; skrl's memories copy them.
    After a restart, the returned observation is the first of the new episode. `infos["final_observations"]` holds the
    last observation of each finished episode until the next step, and `FinalObservations` passes it to an agent.

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
            options = {"as_numpy": False, "autoreset": n_envs > 1, **options}
            env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, n_envs, **options)
        if env is None or env.as_numpy or env.api != "elegantrl" or env.autoreset is not (env.n_envs > 1):
            raise ValueError('pass config, or an env with api="elegantrl", as_numpy=False, autoreset=n_envs > 1')
        super().__init__(env)
        self._observation_space = Box(-np.inf, np.inf, (env.state_dim,), np.float32)
        self._action_space = Box(-1.0, 1.0, (env.action_dim,), np.float32)
        self._next_seed: int | None = skrl_config.torch.key  # the seed passed to skrl.utils.set_seed

    observation_space = property(
        lambda self: self._observation_space, doc="Observations of one account: Box (S,) float32."
    )
    action_space = property(lambda self: self._action_space, doc="Actions of one account: Box (A,) float32 in [-1, 1].")

    def reset(self) -> tuple[torch.Tensor, dict[str, Any]]:
        """Open fresh accounts in all environments and return observations (N, S) and empty infos."""
        state = self._env.reset(seed=self._next_seed)
        self._next_seed = None
        return state, {}

    def step(
        self, actions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance one bar and return observations (N, S), reward, terminated and truncated (N, 1), and infos.

        Only reward, terminated and truncated are new tensors.
        """
        state, reward, done, info = self._env.step(actions)
        truncated = info["truncated"].clone()[:, None]
        infos = {"final_observations": info["final_state"], "episode_return": info["episode_return"].clone()}
        return state, reward.clone()[:, None], done[:, None] & ~truncated, truncated, infos

    def state(self) -> None:
        """Return None: there is no state in addition to the observations."""

    def render(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: rendering is not supported."""

    def close(self) -> None:
        """Do nothing: there are no resources to release."""


class FinalObservations:
    """Mixin that passes the last observations of finished episodes to an agent as its next observations.

    Without it, an agent that bootstraps truncated episodes uses the value of the *next* episode's first observation.
    Example: `class FinalPPO(FinalObservations, PPO): pass`, with `time_limit_bootstrap=True` in `PPO_CFG`.
    """

    def record_transition(
        self, *, next_observations: torch.Tensor, terminated: torch.Tensor, truncated: torch.Tensor,
        infos: dict[str, Any], **transition: Any,
    ) -> None:  # fmt: skip
        """Record the transition with the last observations of finished episodes."""
        done = terminated | truncated
        if done.device.type != "cpu" or done.any():  # reading the flag would wait for the GPU
            next_observations = torch.where(done, infos["final_observations"], next_observations)
        flags = {"terminated": terminated, "truncated": truncated}
        super().record_transition(next_observations=next_observations, infos=infos, **flags, **transition)  # type: ignore[misc]
