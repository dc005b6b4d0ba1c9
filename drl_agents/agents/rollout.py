"""Rollout storage and the two loops that fill it; every agent explores through this file.

If possible, the environment writes state, reward and done of each step directly into the storage
(`step(action, out=...)`). The loops never synchronize with a GPU.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drl_agents.agents.mlp_gradient import has_onednn
from drl_agents.agents.products_choice import choose
from drl_agents.host_copies import Staging
from drl_agents.policy import Layers

LEAST_ASKED = 1 << 14  # numbers; copying 12 observations of 316 takes 2 us, as long as the check
Choose = Callable[["RolloutStep"], Tensor]
Take = Callable[[Sequence["RolloutStep"]], None]


@dataclass(frozen=True)
class RolloutStep:
    """Views of one time step's slots in a `Rollout`, created once."""

    state: Tensor  # (N, S) before the step
    next_state: Tensor  # (N, S) after the step, and after the restart if the episode ended
    final_state: Tensor  # (N, S) last observation of an episode that ended here; meaningless elsewhere
    action: Tensor  # (N, A) as the agent stores it
    noise: Tensor  # (N, A) drawn before the rollout
    reward: Tensor  # (N,)
    done: Tensor  # (N,) bool
    truncated: Tensor  # (N,) bool

    @cached_property
    def is_worth_asking(self) -> bool:
        """Return True if checking for ended episodes is cheaper than copying every last observation.

        It is cheaper for large batches on the CPU.
        """
        return self.final_state.device.type == "cpu" and self.final_state.numel() >= LEAST_ASKED

    @cached_property
    def out(self) -> dict[str, Tensor]:
        """Return the slots that an environment may write into."""
        return {"state": self.next_state, "reward": self.reward, "done": self.done}


class Rollout:
    """H steps of N environments; allocated once and overwritten by each exploration.

    All floats share one buffer, and all flags share a second one, so a rollout collected on the host reaches a GPU in
    two transfers.
    """

    def __init__(
        self, horizon_len: int, n_envs: int, state_dim: int, action_dim: int, device: torch.device,
        staging: Staging | None = None,
    ) -> None:  # fmt: skip
        """Allocate the storage; with `staging` it is a host buffer for asynchronous `copy_from`."""
        self.shape = (horizon_len, n_envs, state_dim, action_dim)
        self.device, self.staging = device, staging
        rows = horizon_len * n_envs
        sizes = [rows * state_dim + n_envs * state_dim, rows * state_dim, rows * action_dim, rows * action_dim, rows]
        where = {"device": device, "pin_memory": staging is not None and staging.pin_memory}
        self.floats = torch.zeros(sum(sizes), **where)
        self.flags = torch.zeros((2, horizon_len, n_envs), dtype=torch.bool, **where)
        states, finals, actions, noise, rewards = self.floats.split(sizes)
        self.states = states.view(horizon_len + 1, n_envs, state_dim)  # the next rollout starts from row H
        self.final_states = finals.view(horizon_len, n_envs, state_dim)
        self.actions = actions.view(horizon_len, n_envs, action_dim)
        self.noise = noise.view(horizon_len, n_envs, action_dim)
        self.rewards = rewards.view(horizon_len, n_envs)
        self.done, self.truncated = self.flags
        self.steps = tuple(self._step(t) for t in range(horizon_len))

    def _step(self, t: int) -> RolloutStep:
        return RolloutStep(
            self.states[t], self.states[t + 1], self.final_states[t], self.actions[t], self.noise[t],
            self.rewards[t], self.done[t], self.truncated[t],
        )  # fmt: skip

    @property
    def n_samples(self) -> int:
        """H * N."""
        return self.shape[0] * self.shape[1]

    @property
    def terminal(self) -> Tensor:
        """Return (H, N) bool, True if the episode ended and no future value remains."""
        return self.done & ~self.truncated

    def next_states(self) -> Tensor:
        """Return the true successors (H, N, S); at the end of an episode, its own last observation."""
        return torch.where(self.done[..., None], self.final_states, self.states[1:])

    def copy_from(self, other: Rollout) -> None:
        """Copy another rollout of the same shape in two transfers.

        Transfers from pinned memory are asynchronous. Later work on this device's current stream follows them. Call
        `wait` on `other` before writing to it again.
        """
        pairs = ((self.floats, other.floats), (self.flags, other.flags))
        if other.staging is not None:
            other.staging.send(pairs)
            return
        for target, source in pairs:
            target.copy_(source)

    def wait(self) -> None:
        """Wait until no transfer reads this rollout."""
        if self.staging is not None:
            self.staging.wait()


class Layer:
    """Linear layer over a fixed number of rows into its own buffer, with ReLU unless it is the last layer.

    Large weights are packed for oneDNN if a timing on this machine finds that faster; torch's `addmm` does not use
    oneDNN for float32. For 316-512-512-7, 12 rows took 136 us with `addmm` and 83 us packed, and 512 rows 4.2 ms and
    1.8 ms (2-core EPYC, one thread, torch 2.13). Packing takes 0.7 ms per rollout.
    """

    least_packed = 1 << 20  # multiply-adds: 12 rows through 316-128-128-7 took 25 us by `addmm` and 35 us packed

    def __init__(self, weight: Tensor, bias: Tensor, n_rows: int, device: torch.device, is_last: bool) -> None:
        self.source = (weight, bias)
        self.n_rows, self.is_last = n_rows, is_last
        self.weight, self.bias = weight.to(device), bias.to(device)  # shares the networks' memory on the same device
        self.output = torch.empty((n_rows, len(bias)), device=device, dtype=weight.dtype)
        is_large = n_rows * weight.numel() >= self.least_packed
        self.is_packed = is_large and device.type == "cpu" and weight.dtype == torch.float32 and has_onednn()
        self.refresh()
        if self.is_packed:
            self.is_packed = self._is_faster_packed()

    def _is_faster_packed(self) -> bool:
        x = self.weight.new_ones((self.n_rows, self.weight.shape[1]))

        def one_pass(is_packed: bool) -> None:
            self.is_packed = is_packed
            self(x)

        ways = {"addmm": functools.partial(one_pass, False), "packed": functools.partial(one_pass, True)}
        return choose(self.weight.shape[::-1], self.n_rows, ways) == "packed"

    def refresh(self) -> None:
        """Copy the networks' current weights."""
        if self.weight.device != self.source[0].device:
            self.weight.copy_(self.source[0])
            self.bias.copy_(self.source[1])
        if self.is_packed:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, self.n_rows)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, in) to (N, out), valid until the next call."""
        if self.is_packed:
            return torch.ops.mkldnn._linear_pointwise(
                x, self.packed, self.bias, "none" if self.is_last else "relu", [], ""
            )
        y = torch.addmm(self.bias, x, self.weight.t(), out=self.output)
        return y if self.is_last else y.relu_()


class PolicyForward:
    """Normalizer and layers of an actor over a fixed batch, with its own buffers.

    With preallocated outputs, 12 rows through 80-128-128-7 took 19 us instead of 36 us for the module (2-core EPYC, one
    thread, torch 2.13). At that size call overhead dominates.

    Its inputs stay at the same addresses, so a captured graph of it remains valid. Call `refresh` before a rollout.
    """

    def __init__(self, norm: tuple[Tensor, Tensor, float], layers: Layers, n_rows: int, device: torch.device) -> None:
        average, std, self.clip = norm
        self.source = (average, std)
        self.average, self.std = average.to(device), std.to(device)
        self.layers = [Layer(*layer, n_rows, device, is_last=layer is layers[-1]) for layer in layers]
        self.state = torch.empty((n_rows, average.shape[0]), device=device)

    def refresh(self) -> None:
        """Copy the networks' current weights and statistics."""
        if self.average.device != self.source[0].device:
            self.average.copy_(self.source[0])
            self.std.copy_(self.source[1])
        for layer in self.layers:
            layer.refresh()

    def __call__(self, state: Tensor) -> Tensor:
        """Map (N, S) to (N, out), a buffer that is valid until the next call."""
        torch.sub(state, self.average, out=self.state)
        x = self.state.div_(self.std).clamp_(-self.clip, self.clip)
        for layer in self.layers:
            x = layer(x)
        return x


def writes_into_slots(env: Any, device: torch.device) -> bool:
    """Return True if `env.step` accepts `out=` and its tensors are on the storage's device."""
    same_device = torch.device(getattr(env, "device", "cpu")) == device
    return same_device and "out" in inspect.signature(env.step).parameters


def explore_batch(env: Any, rollout: Rollout, choose: Choose, run: Callable[[Take], None] | None = None) -> None:
    """Fill `rollout` from a vectorized environment with autoreset.

    `choose` writes the step's stored action and returns the environment's action, (N, A). `run`, if given, is called
    with a function that takes steps of the rollout and only writes to memory at fixed addresses.
    """
    if writes_into_slots(env, rollout.device):

        def take(steps: Sequence[RolloutStep]) -> None:
            for slots in steps:
                *_, info = env.step(choose(slots), out=slots.out)
                _record_end(slots, info)

        if run is None:
            take(rollout.steps)
        else:
            run(take)
        return
    for slots in rollout.steps:
        state, reward, done, info = env.step(choose(slots))
        slots.next_state.copy_(state)
        slots.reward.copy_(reward)
        slots.done.copy_(done)
        _record_end(slots, info)


def _record_end(slots: RolloutStep, info: Any) -> None:
    """Record how episodes ended; without this information all ends are terminal."""
    if isinstance(info, dict) and "truncated" in info:
        slots.truncated.copy_(info["truncated"])
        if slots.is_worth_asking and not slots.done.any():
            return
        slots.final_state.copy_(info["final_state"])
    else:
        slots.truncated.zero_()


def explore_single(env: Any, rollout: Rollout, choose: Choose) -> None:
    """Fill a host `rollout` with N = 1 from a NumPy environment without autoreset."""
    states, finals = rollout.states[:, 0].numpy(), rollout.final_states[:, 0].numpy()  # (H + 1, S), (H, S)
    rewards, done = rollout.rewards[:, 0].numpy(), rollout.done[:, 0].numpy()  # (H,)
    truncated = rollout.truncated[:, 0].numpy()
    for t, slots in enumerate(rollout.steps):
        state, reward, is_done, info = env.step(choose(slots)[0].numpy())
        rewards[t], done[t] = reward, is_done
        truncated[t] = bool(is_done) and _is_truncated(info)
        if is_done:
            finals[t] = np.asarray(state)
            state = env.reset()
        states[t + 1] = np.asarray(state)


def _is_truncated(info: Any) -> bool:
    return isinstance(info, dict) and bool(info.get("truncated", False))
