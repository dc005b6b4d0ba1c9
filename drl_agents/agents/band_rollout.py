"""What the band agent records of a rollout, and the loops that fill it from an environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drl_agents.agents.band_market import bar_of
from drl_agents.policy import action_into_band

Project = Callable[[Tensor], Tensor]     # bars (U,) -> lower and upper edges (U, 2 A)
CHUNK_BARS = 1 << 12                     # bars that the network sees at once: their activations fit a cache


@dataclass
class BandRollout:
    """H steps of N accounts. What the account did is kept, not what the agent saw: that follows from the bars.

    Attributes:
        bar: (H, N) int64, the bar at which the action was chosen; it filled at the next one.
        action: (H, N, A) float32.
        filled: (H, N, A) float64 coins, bought positive and sold negative.
        reward: (H, N) float32.
        done: (H, N) bool, the account was replaced by a fresh one after this step.
        book: the accounts before the first step: see `drl_agents.agents.band_market.BOOK`.
        cost_factor: share of fees and slippage that every step paid.
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
        """Room for a rollout."""
        rows = (horizon_len, n_envs)
        return cls(
            bar=torch.zeros(rows, dtype=torch.int64, device=device),
            action=torch.zeros((*rows, n_assets), device=device),
            filled=torch.zeros((*rows, n_assets), dtype=torch.float64, device=device),
            reward=torch.zeros(rows, device=device),
            done=torch.zeros(rows, dtype=torch.bool, device=device), book={},
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int, int]:
        """H, N, A."""
        horizon_len, n_envs, n_assets = self.action.shape
        return horizon_len, n_envs, n_assets


class EdgeTable:
    """Edges of the bars that a rollout meets, with one set of weights; the network runs once per bar.

    On the CPU a bar is projected when an account is about to reach it. On a GPU, asking which bars those are would wait
    for the device, so every training bar is projected at once.
    """

    def __init__(self, n_bars: int, n_assets: int, device: torch.device) -> None:
        self.edges = torch.zeros((n_bars, 2 * n_assets), device=device)     # lower edges, upper edges
        self.is_known = torch.zeros(n_bars, dtype=torch.bool, device=device)

    def forget(self) -> None:
        """Before the weights change."""
        self.is_known.zero_()

    def project(self, bars: Tensor, project: Project) -> None:
        """Fill in the edges of `bars` (U,), distinct."""
        for part in bars.split(CHUNK_BARS):
            self.edges[part] = project(part)
        self.is_known[bars] = True

    def cover(self, bar: Tensor, n_steps: int, project: Project) -> None:
        """Fill in what accounts at `bar` (N,) can meet in `n_steps` steps, where it is not known yet."""
        n_bars = len(self.is_known)
        change = torch.zeros(n_bars + 1, dtype=torch.int32)
        ones = torch.ones(len(bar), dtype=torch.int32)
        change.index_add_(0, bar, ones)
        change.index_add_(0, (bar + n_steps).clamp(max=n_bars), -ones)
        is_met = change.cumsum(0)[:n_bars] > 0
        self.project((is_met & ~self.is_known).nonzero()[:, 0], project)


def explore_accounts(
    env: Any, state: Tensor, rollout: BandRollout, table: EdgeTable, project: Project, least_weight: Tensor
) -> Tensor:
    """Fill `rollout` from a batch of accounts, step by step -> the observation after the last step (N, C).

    This loop is the reference for any faster one.

    Args:
        env: steps N accounts and restarts them by itself.
        state: (N, C) observation before the first step.
        rollout: `book` is filled in already.
        table: edges, extended where accounts restart.
        project: of the network as it is.
        least_weight: (A,).
    """
    n_steps, _, n_assets = rollout.shape
    bar = bar_of(env, state.device)
    on_host = state.device.type == "cpu"
    for t in range(n_steps):
        lo, hi = table.edges[bar].chunk(2, dim=1)
        rollout.bar[t] = bar
        rollout.action[t] = action_into_band(state[:, 1 : 1 + n_assets], lo, hi, least_weight)
        state, rollout.reward[t], rollout.done[t], _ = env.step(rollout.action[t])
        rollout.filled[t] = filled_of(env)
        bar = bar + 1
        if not on_host:
            bar = bar_of(env, state.device)
        elif rollout.done[t].any():
            restarted = rollout.done[t].nonzero()[:, 0]
            bar = bar_of(env, state.device)
            table.cover(bar[restarted], n_steps - t - 1, project)
    return state


def explore_compiled(
    loop: Any, env: Any, state: Tensor, rollout: BandRollout, table: EdgeTable, project: Project, least_weight: Tensor
) -> Tensor:
    """The same as `explore_accounts`, in the compiled loop of the environment's step.

    A block of accounts that meets a bar without edges waits there until they are filled in.

    Args:
        loop: `environment_Alpaca_kernels.bands.BandLoop` of `env`.
        env: as above, and so are the other arguments.
        state: as above.
        rollout: as above.
        table: as above.
        project: as above.
        least_weight: as above.
    """
    n_steps, n_envs, n_assets = rollout.shape
    state = state.clone()
    trades = torch.zeros((0, n_assets)) if env.market.trades is None else env.market.trades
    record = [getattr(rollout, name).numpy() for name in ("bar", "action", "filled", "reward", "done")]
    progress = torch.zeros(loop.kernel.n_blocks, dtype=torch.int64)
    arrays = [x.numpy() for x in (state, table.edges, table.is_known, least_weight, trades)]
    loop.run(*arrays, record, progress.numpy(), n_steps)
    while (waiting := progress < n_steps).any():
        bar = bar_of(env, state.device)
        left = n_steps - progress.repeat_interleave(-(-n_envs // len(progress)))[:n_envs]
        table.cover(bar, int(left.max()), project)
        loop.run(*arrays, record, progress.numpy(), n_steps)
    return state
