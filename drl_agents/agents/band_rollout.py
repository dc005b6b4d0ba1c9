"""The band agent's rollout record, and the loops that fill it from an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drl_agents.host_copies import HOST
from drl_agents.policy import action_into_band

Project = Callable[[Tensor], Tensor]  # bars (U,) -> lower and upper edges (U, 2 A)
CHUNK_BARS = 1 << 12  # maximum number of bars per network call, so that their activations fit in the cache
FEWEST_BARS = 16  # minimum number of bars per network call
BOOK = ("cash", "qty", "peak", "max_drawdown")


@dataclass
class BandRollout:
    """H steps of N accounts. It stores what the accounts did; their observations can be derived from the bars.

    Attributes:
        bar: (H, N) int64, the bar at which the action was chosen; it filled at the next bar.
        action: (H, N, A) float32.
        filled: (H, N, A) float64 coins, bought positive and sold negative.
        reward: (H, N) float32.
        done: (H, N) bool, a new account replaced this one after the step.
        book: state of the accounts before the first step, (N,) and qty (N, A) float64, with the names in BOOK.
        cost_factor: fraction of fees and slippage charged in every step.
    """

    bar: Tensor
    action: Tensor
    filled: Tensor
    reward: Tensor
    done: Tensor
    book: dict[str, Tensor]
    cost_factor: float = 1.0

    @classmethod
    def allocate(cls, horizon_len: int, n_envs: int, n_assets: int, device: torch.device) -> BandRollout:
        """Allocate a rollout."""
        rows, coins = (horizon_len, n_envs), (horizon_len, n_envs, n_assets)
        return cls(
            bar=torch.zeros(rows, dtype=torch.int64, device=device), action=torch.zeros(coins, device=device),
            filled=torch.zeros(coins, dtype=torch.float64, device=device), reward=torch.zeros(rows, device=device),
            done=torch.zeros(rows, dtype=torch.bool, device=device), book={},
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, N, A."""
        horizon_len, n_envs, n_assets = self.action.shape
        return horizon_len, n_envs, n_assets

    def begin(self, env: Any) -> None:
        """Record the accounts of `env` and their cost factor before the first step."""
        device = self.action.device
        source = env.book if hasattr(env, "book") else env.account
        values = {name: torch.as_tensor(getattr(source, name), dtype=torch.float64, device=device) for name in BOOK}
        is_one = not hasattr(env, "book")
        self.book = {name: value[None] if is_one else value.clone() for name, value in values.items()}
        self.cost_factor = float(env.cost_factor)

    def to(self, device: torch.device) -> BandRollout:
        """Return the rollout on a different device."""
        book = {name: value.to(device) for name, value in self.book.items()}
        return BandRollout(
            self.bar.to(device), self.action.to(device), self.filled.to(device), self.reward.to(device),
            self.done.to(device), book, self.cost_factor,
        )  # fmt: skip


class EdgeTable:
    """Edges of the bars in a rollout for one set of weights; the network runs once per bar.

    On the CPU, bars are projected when an account may reach them. On a GPU, finding these bars would synchronize with
    the device, so all training bars are projected at once.
    """

    def __init__(self, n_bars: int, n_assets: int, training_bars: Tensor) -> None:
        device = training_bars.device
        self.edges = torch.zeros((n_bars, 2 * n_assets), device=device)  # lower edges, then upper edges
        self.is_known = torch.zeros(n_bars, dtype=torch.bool, device=device)
        self.training_bars = training_bars  # (B,) int64
        self.is_training = torch.zeros_like(self.is_known)
        self.is_training[training_bars] = True
        self.project: Project = _no_network

    def begin(self, project: Project, bar: Tensor, n_steps: int) -> None:
        """Clear all edges, then fill in those that accounts at `bar` (N,) can reach in `n_steps` steps."""
        self.project = project
        self.is_known.zero_()
        if self.edges.device == HOST:
            self.cover(bar, torch.full_like(bar, n_steps))
        else:
            self._fill(self.training_bars)

    def cover(self, bar: Tensor, n_steps: Tensor) -> int:
        """Fill in edges that accounts at `bar` (M,) can reach in `n_steps` (M,) steps; return the count of new bars."""
        n_bars = len(self.is_known)
        change = torch.zeros(n_bars + 1, dtype=torch.int64)
        ones = torch.ones_like(bar)
        change.index_add_(0, bar, ones)
        change.index_add_(0, (bar + n_steps).clamp(max=n_bars), -ones)
        is_met = change.cumsum(0)[:n_bars] > 0
        bars = (is_met & self.is_training & ~self.is_known).nonzero()[:, 0]
        self._fill(bars)
        return len(bars)

    def _fill(self, bars: Tensor) -> None:
        for part in bars.split(CHUNK_BARS):
            # Matrix products of few rows sum in a different order, and the loops request different subsets of bars.
            n_missing = FEWEST_BARS - len(part)
            padded = torch.cat((part, part[-1:].expand(n_missing))) if len(part) > 0 and n_missing > 0 else part
            self.edges[part] = self.project(padded)[: len(part)]
        self.is_known[bars] = True

    def on_host(self) -> EdgeTable:
        """Return a host copy of a device's table, which has the edges of every training bar."""
        table = EdgeTable(len(self.edges), self.edges.shape[1] // 2, self.training_bars.to(HOST))
        table.edges.copy_(self.edges)
        table.is_known.copy_(self.is_known)
        return table

    def lookup(self, bar: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower and upper edges (..., A) at bars (...)."""
        lo, hi = self.edges[bar].chunk(2, dim=-1)
        return lo, hi


def _no_network(_bars: Tensor) -> Tensor:
    raise RuntimeError("EdgeTable.begin gives the network")


def bar_of(env: Any, state: Tensor) -> Tensor:
    """Return the bars (N,) int64 of accounts with observations `state` (N, C)."""
    if getattr(env, "compact", False):
        return state[:, -1].long()
    if hasattr(env, "book"):
        return env.book.bar.to(state.device)
    return torch.tensor([env.account.bar], device=state.device)


def explore_accounts(env: Any, state: Tensor, rollout: BandRollout, table: EdgeTable, least_weight: Tensor) -> Tensor:
    """Fill `rollout` from a batch of accounts, step by step.

    This loop is the reference for the compiled one.

    Args:
        env: environment with N accounts and autoreset.
        state: (N, C) observations before the first step.
        rollout: a rollout after `begin`.
        table: edges, extended when accounts restart.
        least_weight: (A,) see `drl_agents.policy.action_into_band`.

    Returns:
        Observations after the last step, (N, C).
    """
    n_steps, n_envs, n_assets = rollout.shape
    on_host = state.device == HOST
    for t in range(n_steps):
        bar = rollout.bar[t] = bar_of(env, state)
        action = action_into_band(state[:, 1 : 1 + n_assets], *table.lookup(bar), least_weight)
        state, rollout.reward[t], rollout.done[t], _ = env.step(action)
        rollout.action[t], rollout.filled[t] = action, env.filled
        if on_host and rollout.done[t].any():
            table.cover(bar_of(env, state), torch.full((n_envs,), n_steps - t - 1))
    return state.clone()


def explore_one_account(
    env: Any, state: Tensor, rollout: BandRollout, table: EdgeTable, least_weight: Tensor
) -> Tensor:
    """Fill `rollout` from one NumPy account without autoreset; all tensors are on the host."""
    n_steps, _, n_assets = rollout.shape
    for t in range(n_steps):
        bar = rollout.bar[t] = bar_of(env, state)
        action = action_into_band(state[:, 1 : 1 + n_assets], *table.lookup(bar), least_weight)
        observation, reward, done, _ = env.step(action[0].numpy())
        rollout.reward[t], rollout.done[t] = float(reward), bool(done)
        rollout.action[t], rollout.filled[t] = action, torch.from_numpy(np.asarray(env.filled))
        state = torch.from_numpy(np.asarray(env.reset() if done else observation))[None]
        if done:
            table.cover(bar_of(env, state), torch.tensor([n_steps - t - 1]))
    return state.clone()


def explore_compiled(
    loop: Any, env: Any, state: Tensor, rollout: BandRollout, table: EdgeTable, least_weight: Tensor
) -> Tensor:
    """Fill `rollout` with the compiled loop over the environment's step, bit-identical to `explore_accounts`.

    A block of accounts that reaches a bar without edges waits there until the edges are filled in.

    Args:
        loop: `environment_Alpaca_kernels.bands.BandLoop` of `env`.
        env: as in `explore_accounts`.
        state: as in `explore_accounts`.
        rollout: as in `explore_accounts`.
        table: as in `explore_accounts`.
        least_weight: as in `explore_accounts`.
    """
    n_steps, n_envs, n_assets = rollout.shape
    state = state.clone()
    trades = torch.zeros((0, n_assets)) if env.market.trades is None else env.market.trades
    record = [getattr(rollout, name).numpy() for name in ("bar", "action", "filled", "reward", "done")]
    arrays = [x.numpy() for x in (state, table.edges, table.is_known, least_weight, trades)]
    progress = torch.zeros(loop.n_blocks, dtype=torch.int64)
    while (progress < n_steps).any():
        loop.run(*arrays, record, progress.numpy(), n_steps)
        left = n_steps - progress.repeat_interleave(loop.accounts_per_block)[:n_envs]
        if left.any() and not table.cover(bar_of(env, state), left):
            raise RuntimeError("accounts are at bars outside the segments passed to prepare_for")
    return state
