"""Compiled loop that trades policies with the native step, bar by bar (numba, CPU).

`train.evaluator` uses this loop if possible and its own torch loop otherwise. Importing this module fails if numba or
the folder of the native steps is missing.

The first layer's product with the features is computed for a chunk of bars at a time, as one matrix product per
account. The loop then adds the part that depends on the account and steps. With the head "band" only the clamp depends
on the account. The matrix products of an account have the same rows whatever the other accounts trade, and the loop
computes each row separately. The records of a policy are therefore bit-identical whatever other policies trade.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba.core.errors import NumbaError

import environment_Alpaca_vectorized as drop_in
from drl_agents import compiled_mlp
from drl_agents.compiled_mlp import HEADS, compiled, feature_part, finish_row, into_band, network_of, squash
from drl_agents.numba_cache import cached
from drl_agents.policy import Policy

cpu, memory, buffers = (drop_in.kernels(name) for name in ("cpu", "memory", "buffers"))
step, LANES = cpu.step, memory.LANES
position_at, POSITION_BYTES = memory.position_at, memory.POSITION_BYTES
CHUNK_BARS = 512  # bars whose features are projected at once; another number changes rounding
EQUITY, BENCHMARK = (drop_in.REPORTED.index(name) for name in ("equity", "benchmark_equity"))
FEES, TURNOVER = (drop_in.REPORTED.index(name) for name in ("fees", "turnover"))
BAND = HEADS.index("band")
TRADES = drop_in.COUNTED.index("trades")
TRACKS: tuple[str, ...] = ("equity", "benchmark_equity", "fees", "turnover", "trades", "cash")
Array = np.ndarray


class Networks(NamedTuple):
    """Networks of the accounts, one per account."""

    heads: Array  # (N,) int64, indices into HEADS
    numbers: Array  # float32, `Network.numbers` of all policies, concatenated
    starts: Array  # (N,) int64, start of an account's network in `numbers`
    sizes: Array  # (N, layers + 1) int64, see `Network.sizes`
    n_layers: Array  # (N,) int64
    clips: Array  # (N,) float32
    account: Array  # (C,) int64, observation columns that are not features


class Seen(NamedTuple):
    """Buffers of the native step; `money` and `counted` have extra lanes after the last account."""

    state: Array  # (N, S) float32
    final_state: Array  # (N, S) float32
    action: Array  # (N, A) float32
    done: Array  # (N,) bool
    money: Array  # (rows, 16 B) float64
    counted: Array  # (rows, 16 B) int64


class Kept(NamedTuple):
    """Recorded values by time; TRACKS names the rows of `tracks`, and `cash` is the first observation column."""

    tracks: Array  # (6, T + 1, N) float64
    qty: Array  # (T + 1, N, A) float64, or empty
    ends: Array  # (N,) int64, steps to the end of the episode; 0 until it ends


class Scratch(NamedTuple):
    """Buffers for one row of a network, as wide as its widest layer."""

    y: Array  # float32
    x: Array  # float32
    rows: Array  # int64


def sources() -> int:
    """Return a number that changes with the source text of everything compiled into the loop."""
    texts = (Path(file).read_bytes() for file in (__file__, compiled_mlp.__file__))
    return zlib.crc32(b"".join(texts), memory.sources())


@compiled
def act(i: int, of_bar: Array, fillable: Array, networks: Networks, seen: Seen, scratch: Scratch) -> None:
    """Write the action of account i, given the feature part of its bar; fillable is (A,) float32 or empty."""
    y, action, numbers = scratch.y, seen.action[i], networks.numbers[networks.starts[i] :]
    if networks.heads[i] == BAND:
        into_band(seen.state[i], of_bar, numbers, action)
    else:
        for o in range(networks.sizes[i, 1]):
            y[o] = of_bar[o]
        u = finish_row(
            seen.state[i], networks.account, numbers, networks.sizes[i], networks.n_layers[i], networks.clips[i], y,
            scratch.x, scratch.rows,
        )  # fmt: skip
        squash(u, action)
    for a in range(len(fillable)):
        action[a] *= fillable[a]


@compiled
def keep(i: int, w: int, t: int, coins: int, seen: Seen, kept: Kept) -> None:
    """Record row t of account i, lane w, from the step's buffers; `coins` is the address of its block's positions."""
    is_over, tracks = seen.done[i], kept.tracks
    tracks[0, t, i], tracks[1, t, i] = seen.money[EQUITY, i], seen.money[BENCHMARK, i]
    tracks[2, t, i], tracks[3, t, i] = seen.money[FEES, i], seen.money[TURNOVER, i]
    tracks[4, t, i] = seen.counted[TRADES, i]
    tracks[5, t, i] = seen.final_state[i, 0] if is_over else seen.state[i, 0]
    if len(kept.qty) > 0:
        for a in range(seen.action.shape[1]):
            coin = position_at(coins, a)
            kept.qty[t, i, a] = coin.final_qty[w] if is_over else coin.qty[w]
    if is_over:
        kept.ends[i] = t
        seen.action[i] = 0.0


def loop_of(version: int) -> Any:
    """Return the compiled loop. It is cached on disk under its version if a cache folder is writable."""

    def trade_block(
        block: int, first_step: int, n_steps: int, hidden: Array, newest: Array, bars: Array, fillable: Array,
        coins: int, action_at: int, networks: Networks, seen: Seen, kept: Kept, scratch: Scratch,
        arguments: tuple[Any, ...],
    ) -> None:  # fmt: skip
        """Trade the accounts of one block for `n_steps` bars, at most to the end of each account's episode.

        hidden (LANES, K, W) float32: feature part of the first layer; newest (LANES,): row of the first bar, decreasing
        by one per bar. bars (N,): bar before the first step. fillable (T, A) float32, or (T, 0). coins: address of the
        block's positions. arguments: those of `step` after the address of the action.
        """
        _ = version  # captured, so that it is part of the key of the disk cache
        first = block * LANES
        n_lanes = min(LANES, len(seen.state) - first)
        for k in range(n_steps):
            n_running = 0
            for w in range(n_lanes):
                i = first + w
                if kept.ends[i] == 0:
                    act(i, hidden[w, newest[w] - k], fillable[bars[i] + k + 1], networks, seen, scratch)
                    n_running += 1
            if n_running == 0:
                break
            step(block, block + 1, action_at, *arguments)
            for w in range(n_lanes):
                if kept.ends[first + w] == 0:
                    keep(first + w, w, first_step + k + 1, coins, seen, kept)

    return cached(trade_block, nogil=True, error_model="numpy")


trade_block = loop_of(sources())


class Trader:
    """Policies that trade the accounts of one environment with its native step."""

    def __init__(self, policies: Sequence[Policy], n_rows: Sequence[int], env: Any, keep_qty: bool) -> None:
        """Allocate and compile without stepping.

        Args:
            policies: policies that own consecutive accounts; the first owns the first `n_rows[0]`, and so on.
            n_rows: number of accounts of each policy.
            env: environment with a native step on the CPU and complete observations.
            keep_qty: record the coins.
        """
        n_account, n_features = 1 + env.action_dim, env.market.windows.shape[1]
        features, n_steps = slice(n_account, n_account + n_features), env.max_step + 1
        owner = np.repeat(np.arange(len(policies)), n_rows)
        kernel = cpu.native_step_of(env)
        if kernel is None:
            raise drop_in.NoNativeStep("the environment does not use the compiled step")
        self.env, self.kernel = env, kernel
        self.networks = networks_of(policies, owner, np.delete(np.arange(env.state_dim), features))
        parts = [feature_part(policy, features) for policy in policies]
        self.parts = [parts[k] for k in owner]
        self.slots = buffers.Buffers(env, self.kernel).slots
        self.arguments = self.kernel.arguments(self.slots)
        self.seen = seen_of(self.slots, env.action_dim, self.kernel)
        kept_shape = (n_steps if keep_qty else 0, env.n_envs, env.action_dim)
        tracks = np.zeros((len(TRACKS), n_steps, env.n_envs))
        self.kept = Kept(tracks, np.zeros(kept_shape), np.zeros(env.n_envs, np.int64))
        self.hidden = np.empty((LANES, CHUNK_BARS, int(self.networks.sizes[:, 1].max())), np.float32)
        width = int(self.networks.sizes.max())
        self.scratch = Scratch(*(np.empty(width, kind) for kind in (np.float32, np.float32, np.int64)))
        self.newest, self.bars = np.zeros(LANES, np.int64), np.zeros(env.n_envs, np.int64)
        trades = env.market.trades
        self.fillable = np.empty((len(env.market.price), 0), np.float32) if trades is None else trades.numpy()
        try:
            self._run(0, 0, 0)  # compiles, or loads from the disk cache
        except NumbaError as error:
            raise drop_in.NoNativeStep(f"the loop cannot be compiled: {error}") from error

    def trade(self) -> tuple[Array, dict[str, Array], Array, Array]:
        """Trade every account once from the first bar of its segment to the end, like the evaluator's torch loop."""
        self.seen.state[:] = self.env.reset().numpy()
        book = self.env.book
        first_bars, last_bars = book.bar.numpy(), book.last_bar.numpy()
        self.kept.tracks[0, 0], self.kept.tracks[1, 0] = book.equity, book.benchmark
        for block in range(self.kernel.n_blocks):
            of_block = slice(block * LANES, min((block + 1) * LANES, len(first_bars)))
            for first_step in range(0, int((last_bars - first_bars)[of_block].max()), CHUNK_BARS):
                np.add(first_bars, first_step, out=self.bars)
                self._project(of_block, last_bars - self.bars)
                self._run(block, first_step, CHUNK_BARS)
                if self.kept.ends[of_block].all():
                    break
        tracks: dict[str, Array] = dict(zip(TRACKS, self.kept.tracks, strict=True))
        tracks["exposure"] = self._exposure(tracks.pop("cash"), tracks["equity"])
        if len(self.kept.qty):
            tracks["qty"] = self.kept.qty
        return first_bars, tracks, self.kept.ends, book.benchmark_qty.numpy()

    def _project(self, of_block: slice, steps_left: Array) -> None:
        """Compute the feature part of the first layer for the next bars of a block's accounts."""
        windows, last = self.env.market.windows, len(self.env.market.price) - 1
        for w, i in enumerate(range(of_block.start, of_block.stop)):
            n = min(int(steps_left[i]), CHUNK_BARS)
            if n <= 0 or self.kept.ends[i]:
                continue
            newest = last - int(self.bars[i]) - n + 1
            of_bars = self.parts[i](windows[newest : newest + n])
            self.hidden[w, :n, : of_bars.shape[1]] = of_bars.numpy()
            self.newest[w] = n - 1

    def _run(self, block: int, first_step: int, n_steps: int) -> None:
        positions = self.kernel.positions
        coins = positions.ctypes.data + block * positions.shape[1] * POSITION_BYTES
        trade_block(
            block, first_step, n_steps, self.hidden, self.newest, self.bars, self.fillable, coins,
            self.seen.action.ctypes.data, self.networks, self.seen, self.kept, self.scratch, self.arguments,
        )  # fmt: skip

    def _exposure(self, cash: Array, equity: Array) -> Array:
        """Return the exposure (T + 1, N), from the first column of the observations."""
        if self.env.params.observation == "relative":
            exposure = 1.0 - cash
        else:
            with np.errstate(invalid="ignore", divide="ignore"):  # rows after an end are 0 / 0
                exposure = 1.0 - cash / self.env.params.norm_cash / equity
        exposure[0] = 0.0
        return exposure


def networks_of(policies: Sequence[Policy], owner: Array, account: Array) -> Networks:
    """Return the networks of accounts, with policy `owner[i]` for account i; `account` (C,) are non-feature columns."""
    packed = [network_of(policy, account) for policy in policies]
    n_layers = np.array([len(network.sizes) - 1 for network in packed])
    sizes = np.zeros((len(packed), n_layers.max() + 1), np.int64)
    for row, network in zip(sizes, packed, strict=True):
        row[: len(network.sizes)] = network.sizes
    starts = np.cumsum([0, *(len(network.numbers) for network in packed)])[:-1]
    clips = np.array([network.clip for network in packed], np.float32)
    numbers = np.concatenate([network.numbers for network in packed])
    heads = np.array([network.head for network in packed])
    return Networks(heads[owner], numbers, starts[owner], sizes[owner], n_layers[owner], clips[owner], account)


def seen_of(slots: dict[str, Any], n_assets: int, kernel: Any) -> Seen:
    """Return NumPy views of the step's buffers, and a buffer for the actions."""
    state, final_state, done = (slots[name].numpy() for name in ("state", "final_state", "done"))
    action = np.zeros((len(state), n_assets), np.float32)
    money, counted = (kernel.padded_rows(slots[name]) for name in ("money", "counts"))
    return Seen(state, final_state, action, done, money, counted)
