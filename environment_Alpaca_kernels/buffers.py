"""What the fast class returns: two sets of buffers, used in turn, and the kernel that is bound to each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import drop_in

SLOTS = ("state", "reward", "done")  # what a caller may give room for


class Buffers:
    """One set of what a step returns."""

    def __init__(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, kernel: Any) -> None:
        """Allocate on the device of `env` and bind the kernel."""
        n, terms = env.n_envs, drop_in.TERM_NAMES[env.params.reward]
        rows = torch.zeros((2, n, env.state_dim), device=env.device)
        flags = torch.zeros((2, n), dtype=torch.bool, device=env.device)
        self.slots = {"state": rows[0], "reward": torch.zeros(n, device=env.device), "done": flags[0]}
        self.slots |= {"final_state": rows[1], "truncated": flags[1], **kernel.reports()}
        money = self.slots["money"]
        named = zip((*drop_in.COUNTED, *drop_in.REPORTED), (*self.slots["counts"], *money), strict=False)
        self.info: dict[str, Any] = {**dict(named), "truncated": flags[1]}
        # Without restarts the last state of an episode is the state returned.
        self.info["final_state"] = self.slots["final_state" if env.autoreset else "state"]
        self.info["reward_terms"] = dict(zip(terms, money[len(drop_in.REPORTED) :], strict=True))
        self.returned = (*(self.slots[name] for name in SLOTS), self.info)
        self.advance: Callable[[Tensor], None] = kernel.bind(self.slots, is_own=True)


class FastStep:
    """`step` of one environment through its kernel; the environment is an argument, so that no reference is kept."""

    def __init__(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, kernel: Any) -> None:
        """Allocate both sets for the accounts of `env`."""
        self.kernel = kernel
        self.sets = [Buffers(env, kernel), Buffers(env, kernel)]  # the next one to be written first
        self.shape = None if env.as_numpy else torch.Size((env.n_envs, env.action_dim))  # of an action ready to use
        self.returns_buffers = not env.as_numpy and env.api == "elegantrl"

    def step(
        self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, action: Any, out: dict[str, Tensor] | None
    ) -> tuple[Any, ...]:
        """Advance every account one bar; `out` holds the caller's slots, checked already."""
        is_ready = type(action) is Tensor and action.dtype is torch.float32 and action.device == env.device
        if not is_ready or action.shape != self.shape or env._needs_reset or not action.is_contiguous():
            action = env._accept(action)
        action = env._fillable(action)
        buffers = self.sets[0]
        returned: tuple[Any, ...] = buffers.returned
        if out is None:
            buffers.advance(action)
        else:
            slots = {**buffers.slots, **out}
            self.kernel.bind(slots)(action)
            info = buffers.info if env.autoreset else {**buffers.info, "final_state": slots["state"]}
            returned = (*(slots[name] for name in SLOTS), info)
        self.sets.reverse()
        if self.returns_buffers:
            return returned
        if env.as_numpy:
            return self._one_account(env, buffers, returned)
        state, reward, done, info = returned
        return env._step_return(state, reward, done, info)

    def _one_account(
        self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, buffers: Buffers, returned: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """NumPy and Python numbers, each read once: hosts evaluate with one account, where this is half of a step."""
        (row,), (reward,), (done,) = returned[0].cpu().numpy(), returned[1].tolist(), returned[2].tolist()
        state, slots, terms = row.copy(), buffers.slots, buffers.info["reward_terms"]
        env._needs_reset = done
        money = slots["money"][:, 0].tolist()
        values = slots["counts"][:, 0].tolist() + money
        info: dict[str, Any] = dict(zip((*drop_in.COUNTED, *drop_in.REPORTED), values, strict=False))
        info |= {"truncated": slots["truncated"].item(), "final_state": state}
        info["reward_terms"] = dict(zip(terms, money[len(drop_in.REPORTED) :], strict=True))
        if env.api == "elegantrl":
            return state, reward, done, info
        return state, reward, done and not info["truncated"], info["truncated"], info
