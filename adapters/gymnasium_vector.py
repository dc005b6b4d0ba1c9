"""N accounts as a Gymnasium `VectorEnv`. After `import adapters`, use `gymnasium.make_vec("CryptoAlpaca-v0", ...)`.

All three autoreset modes behave like `gymnasium.vector.SyncVectorEnv`. The default is NEXT_STEP, as in Gymnasium.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized

if tuple(int(part) for part in gymnasium.__version__.split(".")[:2]) < (1, 4):
    # Older versions of RecordEpisodeStatistics and NormalizeReward lose the first step of SAME_STEP episodes.
    raise ImportError(
        f"adapters.gymnasium_vector requires gymnasium 1.4 or newer; {gymnasium.__version__} is installed"
    )


class CryptoVectorEnv(VectorEnv[Any, Any, Any]):
    """A Gymnasium vector environment with N accounts that are stepped together.

    Args:
        config: `price_array`, `tech_array` and the other keys of the simulator.
        env_params: `rules`, `lookback` and the other settings of the simulator.
        num_envs: number of accounts N.
        env: an existing vectorized environment, used instead of config, env_params and options.
        autoreset_mode: an `AutoresetMode` or its value. With DISABLED, call `reset(options={"reset_mask": mask})`.
        output: "numpy", or "torch" for tensors on the simulator's device. On a GPU, "torch" never waits for the device.
            Every SAME_STEP step therefore returns `final_obs` and `final_info`, with masks of the valid rows.
        copy: if False, observations are not copied and stay valid through the next step.
        info_keys: names of the simulator's infos (N,) to return, such as "episode_return", "equity", "fees" or
            "trades".
        options: options of `VectorizedCryptoEnvAlpacaOptimized`.

    Raises:
        ValueError: neither `config` nor a suitable `env` is given, or an option is not valid.
    """

    def __init__(
        self, config: Mapping[str, Any] | None = None, env_params: Mapping[str, Any] | None = None, num_envs: int = 1,
        *, env: VectorizedCryptoEnvAlpaca | None = None, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        output: str = "numpy", copy: bool = True, info_keys: Sequence[str] = ("episode_return",), **options: Any,
    ) -> None:  # fmt: skip
        self.mode, restarts = AutoresetMode(autoreset_mode), AutoresetMode(autoreset_mode) is AutoresetMode.SAME_STEP
        if env is None and config is not None:
            options = {"as_numpy": False, "autoreset": restarts, **options}
            env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, num_envs, **options)
        if env is None or env.as_numpy or env.api != "elegantrl" or env.autoreset is not restarts:
            wanted = f'api="elegantrl", as_numpy=False and autoreset={restarts}'
            raise ValueError(f"{self.mode}: pass config, or an env with {wanted}")
        if output not in ("numpy", "torch"):
            raise ValueError(f'output must be "numpy" or "torch"; received {output!r}')
        self.env, self.num_envs, self.copy, self.info_keys = env, env.n_envs, copy, tuple(info_keys)
        self.as_numpy, self.on_cpu = output == "numpy", env.device.type == "cpu"
        self.metadata = {"render_modes": [], "autoreset_mode": self.mode}
        self.single_observation_space = Box(-np.inf, np.inf, (env.state_dim,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (env.action_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._ended = self._own(torch.zeros(self.num_envs, dtype=torch.bool, device=env.device))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Open fresh accounts in all environments, or in those of `options["reset_mask"]`, (N,) bool.

        Raises:
            ValueError: the mask has a wrong shape or dtype.
        """
        super().reset(seed=seed)
        where = (options or {}).get("reset_mask")
        if where is not None:
            where = torch.as_tensor(where, device=self.env.device)
            if where.dtype is not torch.bool or where.shape != (self.num_envs,):
                wanted, got = f"({self.num_envs},) bool", f"{tuple(where.shape)} {where.dtype}"
                raise ValueError(f"reset_mask must be {wanted}; received {got}")
        state = self.env.reset(where=where, seed=seed)
        self._ended = self._ended & (False if where is None else ~self._view(where))
        return self._observations(state), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Advance every environment one bar. In NEXT_STEP mode, a finished environment is reset and ignores its action.

        Raises:
            RuntimeError: an episode has ended in DISABLED mode. Tensors on a GPU are not checked.
        """
        ended, looks = self._ended, self.as_numpy or self.on_cpu  # reading a flag would wait for the GPU
        if self.mode is AutoresetMode.DISABLED and looks and ended.any():
            raise RuntimeError('episodes have ended: call reset(options={"reset_mask": terminations | truncations})')
        state, *values, info = self.env.step(actions)
        reward, done, truncated = (self._own(value) for value in (*values, info["truncated"]))
        infos = {name: self._view(info[name]) for name in self.info_keys}
        if self.mode is AutoresetMode.NEXT_STEP and (not looks or ended.any()):
            state = self.env.reset(where=ended)
            reward, done, truncated = self._where(ended, 0.0, reward), done & ~ended, truncated & ~ended
        self._ended = done
        if self.mode is not AutoresetMode.SAME_STEP:
            return self._observations(state), reward, done & ~truncated, truncated, self._masked(infos, ~ended)
        masked = self._masked(infos, ~done)
        if not looks or done.any():
            masked |= {"final_obs": self._final(self._view(info["final_state"]), done), "_final_obs": done}
            masked |= {"final_info": self._masked(infos, done), "_final_info": done}
        return self._observations(state), reward, done & ~truncated, truncated, masked

    def _view(self, tensor: torch.Tensor) -> Any:
        return tensor.cpu().numpy() if self.as_numpy else tensor

    def _own(self, tensor: torch.Tensor) -> Any:
        if self.as_numpy and not self.on_cpu:  # a transfer from the GPU is already a copy
            return tensor.cpu().numpy()
        return tensor.numpy().copy() if self.as_numpy else tensor.clone()

    def _observations(self, state: torch.Tensor) -> Any:
        return self._own(state) if self.copy else self._view(state)

    def _where(self, mask: Any, chosen: Any, other: Any) -> Any:
        return np.where(mask, chosen, other) if self.as_numpy else torch.where(mask, chosen, other)

    def _masked(self, infos: Mapping[str, Any], is_valid: Any) -> dict[str, Any]:
        if (self.as_numpy or self.on_cpu) and not is_valid.any():  # Gymnasium omits infos that no environment has
            return {}
        values = {name: self._where(is_valid, value, 0) for name, value in infos.items()}
        return values | {f"_{name}": is_valid for name in infos}

    def _final(self, states: Any, done: Any) -> Any:
        if not self.as_numpy:
            return states.clone()
        rows = np.full(self.num_envs, None, dtype=object)  # as in Gymnasium
        for i in np.flatnonzero(done):
            rows[i] = states[i].copy()
        return rows
