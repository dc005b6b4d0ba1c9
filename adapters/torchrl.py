"""N accounts as a TorchRL `EnvBase`, with tensors on the simulator's device and masked resets through "_reset"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized, restart


class CryptoEnv(EnvBase):
    """A TorchRL environment with N accounts and batch_size (N,). All returned tensors are copies.

    After its episode has ended, an account keeps its last observation until TorchRL resets it, in
    `step_and_maybe_reset`, in collectors and in `rollout(break_when_any_done=False)`.

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
            options = {"as_numpy": False, "autoreset": False, **options}
            env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, n_envs, **options)
        if env is None or env.as_numpy or env.api != "elegantrl" or env.autoreset:
            raise ValueError('pass config, or an env with api="elegantrl", as_numpy=False, autoreset=False')
        super().__init__(device=env.device, batch_size=(env.n_envs,))
        self.env, n = env, env.n_envs
        self._next_seed: int | None = None
        column, flags = torch.Size((n, 1)), ("done", "terminated", "truncated")
        observation = Unbounded(torch.Size((n, env.state_dim)))
        self.observation_spec = Composite(observation=observation, shape=(n,), device=env.device)
        self.action_spec = Bounded(-1.0, 1.0, torch.Size((n, env.action_dim)), env.device, torch.float32)
        self.reward_spec = Unbounded(column, device=env.device)
        flag_specs = {name: Categorical(2, column, dtype=torch.bool) for name in flags}
        self.full_done_spec = Composite(flag_specs, shape=(n,), device=env.device)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        where = None if tensordict is None else tensordict.get("_reset", None)
        state = self.env.reset(where=None if where is None else where.reshape(-1), seed=self._next_seed)
        self._next_seed = None
        return TensorDict({"observation": state}, self.batch_size, self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        is_stepped = tensordict.get("_step", None)  # (N,) or (N, 1); the other accounts must not change
        before = None if is_stepped is None else self.env.book
        state, reward, done, info = self.env.step(tensordict["action"])
        out = {"observation": state.clone(), "reward": reward.clone()[:, None], "done": done.clone()[:, None]}
        out |= {"truncated": info["truncated"].clone()[:, None], "terminated": (done & ~info["truncated"])[:, None]}
        if is_stepped is not None and before is not None:
            is_held = ~is_stepped.reshape(-1, 1)
            self.env.book = restart(is_held[:, 0], before, self.env.book)
            out["reward"] = out["reward"].masked_fill(is_held, 0.0)
            for name in ("observation", "done", "terminated", "truncated"):
                out[name] = torch.where(is_held, tensordict[name], out[name])
        return TensorDict(out, self.batch_size, self.device)

    def to(self, device: torch.device | str) -> CryptoEnv:
        """Return this environment. It cannot move to a different device.

        Raises:
            ValueError: `device` is not the environment's device.
        """
        if torch.empty(0, device=device).device != self.device:
            raise ValueError(
                f"the simulator is on {self.device}; construct the environment with device={str(device)!r}"
            )
        return self

    def _set_seed(self, seed: int | None) -> None:
        self._next_seed = seed  # used by the next reset
