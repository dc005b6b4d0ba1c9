"""Environments small enough to follow by hand: a clock, one action, ends that are planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Methods of a tensor that wait for its device.
READINGS = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__float__", "__int__")
LENGTHS, CUTS = [[3, 4], [5]], [[True, False], [False]]


def count_readings(patch: Any) -> list[int]:
    """A list that grows by one entry with every reading from the device; `patch` is a MonkeyPatch."""
    counted: list[int] = []
    for method in READINGS:
        original = getattr(Tensor, method)
        patch.setattr(Tensor, method, lambda *a, f=original, **k: counted.append(1) or f(*a, **k))
    return counted


class ToyBatch:
    """N clocks. Environment i ends its e-th episode after `lengths[i][e]` steps, by truncation where `cuts[i][e]`.

    State (N, 3): environment, episode, clock. Reward: 100 * environment + 10 * episode + clock before the step.
    Same-step restart as in the contract; `final_state` is NaN where no episode ended.
    """

    if_discrete = False
    state_dim, action_dim = 3, 2
    device = torch.device("cpu")

    def __init__(self, lengths: list[list[int]] = LENGTHS, cuts: list[list[bool]] = CUTS) -> None:
        self.n_envs = self.num_envs = self.env_num = len(lengths)
        self.lengths, self.cuts = lengths, cuts
        self.max_step = max(max(row) for row in lengths)
        self.actions: list[Tensor] = []
        self.episode = [0] * self.n_envs
        self.clock = [0] * self.n_envs

    def reset(self) -> Tensor:
        return self._states()

    def _states(self) -> Tensor:
        rows = [[i, e, c] for i, (e, c) in enumerate(zip(self.episode, self.clock, strict=True))]
        return torch.tensor(rows, dtype=torch.float32)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        self.actions.append(action.clone())
        before = self._states()
        reward = before @ torch.tensor([100.0, 10.0, 1.0])
        done, truncated = torch.zeros(self.n_envs, dtype=torch.bool), torch.zeros(self.n_envs, dtype=torch.bool)
        final = torch.full_like(before, torch.nan)
        for i in range(self.n_envs):
            self.clock[i] += 1
            length = self.lengths[i][self.episode[i] % len(self.lengths[i])]
            if self.clock[i] == length:
                done[i], truncated[i] = True, self.cuts[i][self.episode[i] % len(self.cuts[i])]
                final[i] = torch.tensor([i, self.episode[i], self.clock[i]], dtype=torch.float32)
                self.episode[i], self.clock[i] = self.episode[i] + 1, 0
        return self._states(), reward, done, {"truncated": truncated, "final_state": final}


class ToyBatchWithSlots(ToyBatch):
    """The same, writing into the caller's storage."""

    def step(self, action: Tensor, out: dict[str, Tensor] | None = None):
        state, reward, done, info = super().step(action)
        if out is None:
            return state, reward, done, info
        for name, value in (("state", state), ("reward", reward), ("done", done)):
            out[name].copy_(value)
        return out["state"], out["reward"], out["done"], info


class ToySingle:
    """Environment 0 of a ToyBatch in NumPy, reset by its caller."""

    if_discrete = False
    state_dim, action_dim, num_envs, env_num = 3, 2, 1, 1

    def __init__(self, lengths: list[int] = LENGTHS[0], cuts: list[bool] = CUTS[0]) -> None:
        self.batch = ToyBatch([lengths], [cuts])
        self.max_step = self.batch.max_step
        self.running = False

    def reset(self) -> np.ndarray:
        self.running = True
        return self.batch.reset()[0].numpy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        assert self.running, "step after the end"
        state, reward, done, info = self.batch.step(torch.from_numpy(action)[None])
        self.running = not bool(done[0])
        state = info["final_state"][0] if done[0] else state[0]
        return state.numpy(), float(reward[0]), bool(done[0]), {"truncated": bool(info["truncated"][0])}
