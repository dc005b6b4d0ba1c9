# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Compiled loop over many bars of the native step, for policies given as a table of bands with one row per bar.

A step from Python costs about 20 microseconds of call overhead. The step of a block of 16 accounts takes less than one
microsecond. Choosing the orders inside the loop avoids the overhead.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from . import drop_in
from .bar import step
from .cpu import helpers, native_step_of
from .memory import LANES, POSITION_BYTES, Array, account_at, cached, position_at, rules_at, sources


def trade_of(version: int) -> Any:
    """Return the compiled loop. If a cache folder is writable, the loop is cached on disk by version."""

    def trade_block(
        block: int, first: int, last: int, edges: Array, is_known: Array, least: Array, trades: Array, state: Array,
        order: Array, bar: Array, action: Array, filled: Array, reward: Array, done: Array, addresses: Array,
        money: Array, price: Array, scale: Array, counts: Array, rules: int,
    ) -> int:  # fmt: skip
        """Trade one block of accounts from step `first` to step `last`, or until the edges of a bar are unknown.

        Return the step before which the loop stopped: `last`, or the first step without edges.

        edges (T, 2 A) float32 holds the lower edges, then the upper edges; is_known (T,) bool; least (A,) float32;
        trades (T, A) float32, or (0, A) if every coin trades in every bar. state (N, C) and order (N, A), both float32,
        are scratch buffers; state contains the observations before step `first`. bar, action, filled, reward and done
        are (H, N, ...) as in `drl_agents.agents.band_rollout.BandRollout`. addresses holds those of final_state,
        truncated and counted as in `step_blocks`. The arguments from money to rules are those of `step_blocks`.
        """
        _ = version  # captured, and therefore part of the disk cache key
        p = rules_at(rules, 0)
        n_assets, zero, one = p.n_assets, np.float32(0.0), np.float32(1.0)
        i = block * LANES
        n = min(LANES, p.n_envs - i)
        b, coins = account_at(p.accounts, block), p.positions + block * p.n_assets * POSITION_BYTES
        for t in range(first, last):
            for w in range(n):
                if not is_known[b.bar[w]]:
                    return t
            for w in range(n):
                now = b.bar[w]
                bar[t, i + w] = now
                for a in range(n_assets):
                    weight = state[i + w, 1 + a]
                    lo, hi = edges[now, a], edges[now, n_assets + a]
                    target = weight if weight > lo else lo  # NaN edges give a NaN action, which is a hold
                    target = target if target < hi else hi
                    wanted = -one if target < least[a] else target - weight
                    action[t, i + w, a] = wanted
                    is_traded = trades.shape[0] == 0 or trades[min(now + 1, p.n_bars - 1), a] != zero
                    order[i + w, a] = wanted if is_traded or wanted != wanted else zero
            step(block, block + 1, order.ctypes.data, state.ctypes.data, reward[t].ctypes.data, done[t].ctypes.data,
                 addresses[0], addresses[1], addresses[2], money, price, scale, counts, rules)  # fmt: skip
            for a in range(n_assets):
                coin = position_at(coins, a)
                for w in range(n):
                    filled[t, i + w, a] = coin.final_filled[w] if done[t, i + w] else coin.filled[w]
        return last

    return cached(trade_block, nogil=True, error_model="numpy")


trade = trade_of(sources())


class BandLoop:
    """Compiled loop over the accounts of one environment."""

    def __init__(self, kernel: Any) -> None:
        """Allocate the outputs of a step; `kernel` is the environment's `NativeStep`."""
        rules = kernel.rules
        rows, n_assets = kernel.n_envs, int(rules["n_assets"][0])
        n_terms = len(drop_in.TERM_NAMES["weighted_terms"])
        self.kernel, self.n_blocks, self.accounts_per_block = kernel, kernel.n_blocks, LANES
        self.state = np.zeros((rows, int(rules["state_dim"][0])), np.float32)
        self.order = np.zeros((rows, n_assets), np.float32)
        self.final_state, self.truncated = np.zeros_like(self.state), np.zeros(rows, np.bool_)
        self.counted = np.zeros((len(drop_in.COUNTED), kernel.width), np.int64)
        self.money = np.zeros((len(drop_in.REPORTED) + n_terms, kernel.width))
        reports = (self.final_state, self.truncated, self.counted)
        self.addresses = np.array([array.ctypes.data for array in reports])

    def run(self, state: Array, edges: Array, is_known: Array, least: Array, trades: Array, record: Any,
            progress: Array, n_steps: int) -> None:  # fmt: skip
        """Trade every block until the edges of a bar are unknown.

        Args:
            state: (N, C) observations, overwritten with the observations at the steps where the blocks stopped.
            edges: (T, 2 A) float32.
            is_known: (T,) bool, True for bars whose edges are filled in.
            least: (A,) float32.
            trades: (T, A) float32 or (0, A).
            record: bar, action, filled, reward and done, (H, N, ...) arrays.
            progress: (B,) int64, current step of each block, overwritten.
            n_steps: H.
        """
        kernel = self.kernel
        rest = (self.addresses, self.money, *kernel.market, kernel.counts, kernel.rules.ctypes.data)

        def advance(blocks: range) -> None:
            for block in blocks:
                progress[block] = trade(
                    block, progress[block], n_steps, edges, is_known, least, trades, state, self.order, *record, *rest
                )

        n_parts = min(torch.get_num_threads(), self.n_blocks)
        if n_parts == 1:
            advance(range(self.n_blocks))
        else:  # accounts are independent, and so are blocks
            parts = [range(k, self.n_blocks, n_parts) for k in range(n_parts)]
            list(helpers(os.getpid()).map(advance, parts))


def band_loop_of(env: Any) -> BandLoop | None:
    """Return the loop of an environment with the compiled step and autoreset, or None if it has neither or only one."""
    kernel = native_step_of(env)
    is_ours = kernel is not None and env.autoreset and env.params.reward == "weighted_terms"
    return BandLoop(kernel) if is_ours else None
