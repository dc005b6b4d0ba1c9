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
    """An rsl_rl environment with N accounts. When an episode ends, its account restarts within the same step.

    Observations have one group, "policy". They are the simulator's buffers and stay valid through the next step;
    rsl_rl's storage copies them. Rewards, dones and `extras` are new tensors.

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
        self.env, self.num_envs, self.num_actions, self.device = env, env.n_envs, env.action_dim, env.device
        self.max_episode_length, self.cfg = env.max_step, asdict(env.params)
        self._observations = self._group(env.reset())

    @property
    def episode_length_buf(self) -> torch.Tensor:  # type: ignore[override]
        """Bars since the start of each episode, (N,) int64. Assigned values shorten the episodes by as many bars.

        rsl_rl assigns random lengths with `init_at_random_ep_len`, so that episodes do not all end in the same step.
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
        """Return the current observations."""
        return self._observations

    def reset(self, seed: int | None = None) -> tuple[TensorDict, dict[str, Any]]:
        """Open fresh accounts in all environments."""
        self._observations = self._group(self.env.reset(seed=seed))
        return self._observations, {}

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance one bar and return observations, rewards (N,) float32, dones (N,) int64 and extras.

        `extras["time_outs"]` (N,) bool marks episodes that ended by a time limit. `extras["log"]` holds the mean of
        account value divided by initial capital.
        """
        state, reward, done, info = self.env.step(actions)
        self._observations = self._group(state)
        extras = {"time_outs": info["truncated"].clone(), "log": {"/account/value": info["episode_return"].mean()}}
        return self._observations, reward.clone(), done.long(), extras

    def _group(self, state: torch.Tensor) -> TensorDict:
        return TensorDict({"policy": state}, [self.num_envs], device=self.device)
