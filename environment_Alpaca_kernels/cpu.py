# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Step of `environment_Alpaca_vectorized.py` as one native loop over blocks of accounts (numba, CPU).

VectorizedCryptoEnvAlpacaOptimized imports this file lazily. Without numba that class runs the plain torch step.

Each section of the plain file is a separate file here: orders.py, reward.py, bar.py, observation.py and episodes.py.
Phases, names and order match the plain file, so that both can be read side by side. As in the plain file, each phase
runs the same arithmetic for all accounts, with masks instead of branches. memory.py defines the records, and this file
binds them to an environment. Every test of the plain class also runs with this implementation.
"""

from __future__ import annotations

import functools
import itertools
import os
import platform
import warnings
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import fields
from typing import Any

import numpy as np
import torch

try:
    import llvmlite.binding
    import numba
    from numba.core.errors import NumbaError
except ImportError as error:
    warnings.warn(f"numba cannot be imported ({error}); the much slower plain step runs instead", stacklevel=2)
    raise

from . import drop_in, first_use, trial
from .bar import step
from .buffers import Accounts
from .memory import ACCOUNTS, ASSET, LANES, POSITIONS, SEGMENTS, Array, rules_of
from .tables import segments_of

# With at least this many environments, torch's threads share the blocks. Dispatching to a second thread takes about 20
# us.
PARALLEL_FROM_N_ENVS = 1024
MOST_COINS = 1000  # a call of the step uses about a hundred bytes of stack per coin
N_TRIED_STEPS = 40  # number of compared steps per rule set on first use
COMPILE_ERRORS = (*first_use.LAUNCH_ERRORS, NumbaError)


@functools.cache
def processor_name() -> str:
    """Return the architecture and the LLVM name of this processor, for which numba compiles."""
    return f"{platform.machine()} {llvmlite.binding.get_host_cpu_name()}"


@functools.cache
def processor_features() -> str:
    """Return a short text that identifies the instruction sets that numba may use on this processor."""
    return f"{zlib.crc32(llvmlite.binding.get_host_cpu_features().flatten().encode()):08x}"


@functools.lru_cache(maxsize=1)
def helpers(_process: int) -> ThreadPoolExecutor:
    """Return the threads that share the blocks of large batches. A forked process creates its own threads."""
    return ThreadPoolExecutor(thread_name_prefix="environment_step")


class NativeStep(Accounts):
    """Compiled step bound to one environment's memory; a call advances that environment in place."""

    name = "numba"

    def __init__(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized, checked: bool = True) -> None:
        """Allocate the records and view the market of `env`, which is not copied.

        Args:
            env: the environment to step.
            checked: True to compare the step with the plain one on its first use on a processor.

        Raises:
            NoNativeStep: If the step does not support this processor or this number of coins.
        """
        if env.action_dim > MOST_COINS:
            limit = f"the native step supports at most {MOST_COINS} coins"
            raise drop_in.NoNativeStep(f"{limit}; received {env.action_dim}")
        if checked:
            self.check(env)
        market = env.market
        assets = np.zeros(env.action_dim, ASSET)
        assets["min_qty"], assets["qty_increment"] = market.min_qty, market.qty_increment
        segments = np.ascontiguousarray(segments_of(market).numpy().T).view(SEGMENTS)
        n_features = market.windows.shape[1] // env.params.lookback
        self.n_envs, self.n_blocks = env.n_envs, -(-env.n_envs // LANES)
        self.width, self.device = self.n_blocks * LANES, env.device  # width of an output row
        self.accounts = np.zeros(self.n_blocks, ACCOUNTS)
        self.accounts["final_equity"] = np.nan
        self.positions = np.zeros((self.n_blocks, env.action_dim), POSITIONS)
        self.counts = np.zeros((2, self.width), np.int64)  # rows EPISODE and REJECTED
        self.episode, self.rejected = torch.from_numpy(self.counts)[:, : self.n_envs]
        self.rules, self.restarts = rules_of(env), env.autoreset
        self.rules["feature_bytes"], self.rules["window_bytes"] = 4 * n_features, 4 * market.windows.shape[1]
        self.rules["features"] = market.windows.data_ptr()
        # This object keeps references to the arrays, because it uses their addresses.
        self.addressed = {"assets": assets, "segments": segments}
        self.addressed |= {"accounts": self.accounts, "positions": self.positions}
        for name, array in self.addressed.items():
            self.rules[name] = array.ctypes.data
        self.market = (market.price.numpy(), market.order_scale.numpy())
        self.padded: dict[int, Array] = {}  # full output rows, by their address

    def check(self, env: drop_in.VectorizedCryptoEnvAlpacaOptimized) -> None:
        """Raise NoNativeStep unless the compiled step was correct and fast on its first use on this processor.

        One function is compiled for all settings, so one comparison over every rule set covers all environments.
        """

        def unchecked(other: Any) -> NativeStep:
            return type(self)(other, checked=False)

        trials = trial.of_every_rule_set(unchecked, N_TRIED_STEPS)
        is_asked_for = env._asked["native_step"] == "always"
        key = {"numba": numba.__version__, "features": processor_features()}
        first_use.admit(self.name, processor_name(), key, trials, is_asked_for=is_asked_for, errors=COMPILE_ERRORS)

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of one field of `Portfolio`, (N,) or (N, A).

        "last_return" is the return of the last finished episode, or NaN.
        """
        if name == "last_return":
            return self.read("final_equity") / float(self.rules["initial_capital"][0])
        if name in (ACCOUNTS.names or ()):
            return torch.from_numpy(self.accounts[name].reshape(-1)[: self.n_envs].copy())
        rows = self.positions[name].transpose(0, 2, 1).reshape(-1, self.positions.shape[1])  # (16 B, A)
        return torch.from_numpy(rows[: self.n_envs].copy())

    def adopt(self, seed: int, rates: Mapping[str, float]) -> None:
        """Use this seed for the starts of future episodes, and these `drop_in.Costs` from the next step on."""
        self.rules["seed"] = seed
        for name, rate in rates.items():
            self.rules["costs"][name] = rate

    def load(self, book: drop_in.Portfolio) -> None:
        """Load a portfolio and check its bars, because the compiled loop does not check bounds."""
        lookback, n_bars = int(self.rules["lookback"][0]), int(self.rules["n_bars"][0])
        if len(book.bar) != self.n_envs or int(book.bar.min()) < lookback - 1 or int(book.bar.max()) >= n_bars:
            raise ValueError(f"book must hold {self.n_envs} accounts at bars {lookback - 1} to {n_bars - 1}")
        self.accounts["is_over"] = 0
        for field in fields(book):
            self.write(field.name, getattr(book, field.name))

    def write(self, name: str, values: torch.Tensor) -> None:
        """Set one field, (N,) or (N, A)."""
        value = values.numpy()
        rows = np.zeros((self.n_blocks * LANES, *value.shape[1:]), value.dtype)
        rows[: self.n_envs] = value
        blocks = rows.reshape(self.n_blocks, LANES, *value.shape[1:])
        records = self.accounts if value.ndim == 1 else self.positions
        records[name] = blocks if value.ndim == 1 else blocks.transpose(0, 2, 1)

    def bind(self, slots: dict[str, torch.Tensor], is_own: bool = False) -> Callable[[torch.Tensor], None]:
        """Return a function of the action (N, A) that advances one bar and writes into `slots`."""
        rest = self.arguments(slots)
        if self.n_envs >= PARALLEL_FROM_N_ENVS:
            return lambda action, _kept=slots: self._share(action.data_ptr(), *rest)
        n_blocks = self.n_blocks  # the closure also keeps the memory behind the addresses alive
        return lambda action, _kept=(self, slots): step(0, n_blocks, action.data_ptr(), *rest)

    def arguments(self, slots: dict[str, torch.Tensor]) -> tuple[Any, ...]:
        """Return the arguments of `step` after the action's address, valid while this object and `slots` exist."""
        names = ("state", "reward", "done", "final_state", "truncated", "counts")
        slots_at = (slots[name].data_ptr() for name in names)
        return (*slots_at, self.padded_rows(slots["money"]), *self.market, self.counts, self.rules.ctypes.data)

    def padded_rows(self, slot: torch.Tensor) -> Array:
        """Return the full rows of an output slot, including the lanes after the last account."""
        found = self.padded.get(slot.data_ptr())
        if found is None:
            found = self.padded[slot.data_ptr()] = slot.as_strided((len(slot), self.width), (self.width, 1)).numpy()
        return found

    def _share(self, *arguments: Any) -> None:
        """Step the blocks on up to as many threads as torch may use."""
        n_threads = torch.get_num_threads()
        ends = [k * self.n_blocks // n_threads for k in range(n_threads + 1)]
        submit = helpers(os.getpid()).submit
        others = [submit(step, first, end, *arguments) for first, end in itertools.pairwise(ends[1:])]
        try:
            step(ends[0], ends[1], *arguments)
        finally:  # no thread may write to these addresses after this call, even if it fails
            wait(others)
        for other in others:
            other.result()


def native_step_of(env: Any) -> NativeStep | None:
    """Return an environment's compiled step with its current accounts, or None if it has no compiled step."""
    kernel = getattr(getattr(env, "_fast", None), "kernel", None)
    return kernel if isinstance(kernel, NativeStep) else None
