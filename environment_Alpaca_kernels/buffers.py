# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Return buffers of the fast class: two sets that are used alternately, each with its own bound kernel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import drop_in

SLOTS = ("state", "reward", "done")  # outputs for which a caller may pass storage
ALIGNMENT = 64  # bytes: a cache line


class Accounts:
    """Account state that a native step keeps between steps; `read` and `write` are device-specific."""

    ENDED = ("is_over", "final_cash", "final_equity", "final_bar", "final_qty", "final_filled")
    read: Callable[[str], Tensor]
    write: Callable[[str, Tensor], None]
    restarts: bool

    def shown(self, name: str) -> Tensor:
        """Return cash, equity, bar, qty or filled as they were before the restarts of the last step."""
        running = self.read(name)
        if not self.restarts:
            return running
        is_over, ended = self.read("is_over") != 0, self.read(f"final_{name}")
        return torch.where(is_over if running.ndim == 1 else is_over[:, None], ended, running)

    def ended(self) -> dict[str, Tensor]:
        """Return the stored results of finished episodes, for a copy of this object."""
        return {name: self.read(name) for name in self.ENDED}

    def restore_ended(self, values: dict[str, Tensor]) -> None:
        """Restore the results that `ended` returned."""
        for name, value in values.items():
            self.write(name, value)


class Buffers:
    """One set of step outputs in a single block of memory.

    Sending a tensor to another process moves its memory in place to a shared address. All tensors of a set share one
    block, so one address comparison before a step shows whether the kernel must be bound again.
    """

    def __init__(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, kernel: Any) -> None:
        """Allocate on the device of `env` and bind the kernel."""
        n, rows, terms = env.n_envs, (env.n_envs, env.state_dim), drop_in.TERM_NAMES[env.params.reward]
        kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "money": ((len(drop_in.REPORTED) + len(terms), kernel.width), torch.float64),
            "counts": ((len(drop_in.COUNTED), kernel.width), torch.int64),
            "state": (rows, torch.float32), "final_state": (rows, torch.float32), "reward": ((n,), torch.float32),
            "done": ((n,), torch.bool), "truncated": ((n,), torch.bool),
        }  # fmt: skip
        sizes = [math.prod(shape) * kind.itemsize for shape, kind in kinds.values()]
        starts = [0, *itertools.accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]
        self.block = torch.zeros(starts[-1], dtype=torch.uint8, device=env.device)
        self.slots = {
            name: self.block[start : start + size].view(kind).view(shape)
            for (name, (shape, kind)), start, size in zip(kinds.items(), starts, sizes, strict=False)
        }
        for name in ("money", "counts"):
            self.slots[name] = self.slots[name][:, :n]
        named = zip((*drop_in.COUNTED, *drop_in.REPORTED), (*self.slots["counts"], *self.slots["money"]), strict=False)
        self.info: dict[str, Any] = {**dict(named), "truncated": self.slots["truncated"]}
        # Without autoreset the last state of an episode is the returned state.
        self.info["final_state"] = self.slots["final_state" if env.autoreset else "state"]
        self.terms = dict(zip(terms, self.slots["money"][len(drop_in.REPORTED) :], strict=True))
        self.tensors = tuple(self.slots[name] for name in SLOTS)
        self.bind(kernel)

    def bind(self, kernel: Any) -> None:
        """Bind the kernel to the current address of the memory."""
        self.address = self.block.data_ptr()
        self.advance: Callable[[Tensor], None] = kernel.bind(self.slots, is_own=True)


class FastStep:
    """`step` of one environment through its kernel; the environment is an argument, to avoid a reference cycle."""

    def __init__(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, kernel: Any) -> None:
        """Allocate both sets for the accounts of `env`."""
        self.kernel = kernel
        self.spare, self.latest = Buffers(env, kernel), Buffers(env, kernel)  # next to write, last written
        self.device, self.has_filled_bars = env.device, env.market.trades is not None
        self.shape = (
            None if env.as_numpy else torch.Size((env.n_envs, env.action_dim))
        )  # of an action that needs no conversion
        self.returns_buffers = not env.as_numpy and env.api == "elegantrl"

    def step(
        self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, action: Any, out: dict[str, Tensor] | None
    ) -> tuple[Any, ...]:
        """Advance every account one bar; `out` contains the caller's validated slots."""
        is_ready = type(action) is Tensor and action.dtype is torch.float32 and action.device == self.device
        if not is_ready or action.shape != self.shape or env._needs_reset or not action.is_contiguous():
            action = env._accept(action)
        if self.has_filled_bars:
            action = env._fillable(action)
        buffers, self.spare = self.spare, self.latest
        self.latest = buffers
        if buffers.block.data_ptr() != buffers.address:
            buffers.bind(self.kernel)
        info = {**buffers.info, "reward_terms": {**buffers.terms}}  # dicts that the caller may change
        if out is not None:
            return self._step_into(env, buffers, action, info, out)
        buffers.advance(action)
        returned = (*buffers.tensors, info)
        if self.returns_buffers:
            return returned
        if env.as_numpy:
            return self._one_account(env, buffers, returned)
        state, reward, done, info = returned
        return env._step_return(state, reward, done, info)

    def _step_into(
        self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, buffers: Buffers, action: Tensor, info: dict[str, Any],
        out: dict[str, Tensor],
    ) -> tuple[Any, ...]:  # fmt: skip
        slots = {**buffers.slots, **out}
        self.kernel.bind(slots)(action)
        if not env.autoreset:
            info["final_state"] = slots["state"]
        returned = (slots["state"], slots["reward"], slots["done"], info)
        return self._one_account(env, buffers, returned) if env.as_numpy else returned

    def _one_account(
        self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, buffers: Buffers, returned: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Return NumPy arrays and Python numbers, reading each tensor once.

        Hosts evaluate with one account, and this conversion then takes half the time of a step.
        """
        (row,), (reward,), (done,) = returned[0].cpu().numpy(), returned[1].tolist(), returned[2].tolist()
        state, slots, terms = row.copy(), buffers.slots, buffers.terms
        env._needs_reset = done
        money = slots["money"][:, 0].tolist()
        values = slots["counts"][:, 0].tolist() + money
        info: dict[str, Any] = dict(zip((*drop_in.COUNTED, *drop_in.REPORTED), values, strict=False))
        info |= {"truncated": slots["truncated"].item(), "final_state": state}
        info["reward_terms"] = dict(zip(terms, money[len(drop_in.REPORTED) :], strict=True))
        if env.api == "elegantrl":
            return state, reward, done, info
        return state, reward, done and not info["truncated"], info["truncated"], info
