"""N accounts as an rsl_rl `VecEnv`: `OnPolicyRunner(CryptoVecEnv(config, env_params, n_envs=4096), cfg, ...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from rsl_rl.env import VecEnv
from tensordict import TensorDict

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized


class CryptoVecEnv(VecEnv):
    """N accounts that restart in the step in which their episode ends; observations are the group "policy".

    The observations are the simulator's buffers and stay valid through the next step; rsl_rl's storage copies them.
    Rewards, dones and `extras` belong to the caller.

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
            options = {"as_numpy": False, "autoreset": True, **options}
            env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, n_envs, **options)
        if env is None or env.as_numpy or env.api != "elegantrl" or not env.autoreset:
            raise ValueError('needs config, or an env with api="elegantrl", as_numpy=False, autoreset=True')
        self.env, self.num_envs, self.num_actions, self.device = env, env.n_envs, env.action_dim, env.device
        self.max_episode_length, self.cfg = env.max_step, asdict(env.params)
        self._observations = self._group(env.reset())

    @property
    def episode_length_buf(self) -> torch.Tensor:  # type: ignore[override]
        """(N,) int64, bars since the start of each episode; assigning makes the episodes end that many bars earlier.

        rsl_rl assigns random lengths with `init_at_random_ep_len`, so that the episodes do not all end in one step.
        """
        book = self.env.book
        return book.bar - book.first_bar

    @episode_length_buf.setter
    def episode_length_buf(self, length: torch.Tensor) -> None:
        book = self.env.book
        left = (self.max_episode_length - length).clamp(min=1)
        last_bar = torch.minimum(book.last_bar, book.bar + left)
        self.env.book = replace(book, first_bar=book.bar - length, last_bar=last_bar)

    def get_observations(self) -> TensorDict:
        """The current observations."""
        return self._observations

    def reset(self, seed: int | None = None) -> tuple[TensorDict, dict[str, Any]]:
        """Open fresh accounts in all environments."""
        self._observations = self._group(self.env.reset(seed=seed))
        return self._observations, {}

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance one bar -> observations, rewards (N,) float32, dones (N,) int64, extras.

        `extras["time_outs"]` (N,) bool marks the episodes that a time limit ended. `extras["log"]` has the mean account
        value over initial capital.
        """
        state, reward, done, info = self.env.step(actions)
        self._observations = self._group(state)
        extras = {"time_outs": info["truncated"].clone(), "log": {"/account/value": info["episode_return"].mean()}}
        return self._observations, reward.clone(), done.long(), extras

    def _group(self, state: torch.Tensor) -> TensorDict:
        return TensorDict({"policy": state}, [self.num_envs], device=self.device)
