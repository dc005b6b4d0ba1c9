"""Replay memory of complete transitions."""

from __future__ import annotations

import torch
from torch import Tensor

from drl_agents.agents.rollout import Rollout


class Replay:
    """Ring buffer of the latest transitions, each with its own successor.

    elegantrl's buffer uses the next row as the successor. With autoreset, that row may belong to a different episode.
    At the seam of the ring, it is the oldest state. The end of a window is also treated as terminal. This buffer stores
    successor and terminal flag, so every row can be sampled.

    Args:
        capacity: number of transitions over all environments.
        device: device of the storage.
    """

    def __init__(self, capacity: int, n_envs: int, state_dim: int, action_dim: int, device: torch.device) -> None:
        n_rows = max(1, capacity // n_envs)
        self.n_rows, self.n_envs = n_rows, n_envs
        self.states = torch.empty((n_rows, n_envs, state_dim), device=device)
        self.next_states = torch.empty((n_rows, n_envs, state_dim), device=device)
        self.actions = torch.empty((n_rows, n_envs, action_dim), device=device)
        self.rewards = torch.empty((n_rows, n_envs), device=device)
        self.continues = torch.empty((n_rows, n_envs), device=device)  # 0 after a terminal step, otherwise 1
        self.cursor = self.filled = 0  # rows

    def __len__(self) -> int:
        return self.filled * self.n_envs

    def add(self, rollout: Rollout) -> None:
        """Append a rollout and overwrite the oldest rows; of a rollout longer than the ring, keep the last rows."""
        continues = (~rollout.terminal).float()
        fields = (rollout.states[:-1], rollout.next_states(), rollout.actions, rollout.rewards, continues)
        n_new = min(rollout.shape[0], self.n_rows)
        rows = (torch.arange(n_new, device=rollout.device) + self.cursor) % self.n_rows
        own = (self.states, self.next_states, self.actions, self.rewards, self.continues)
        for ring, field in zip(own, fields, strict=True):
            ring.index_copy_(0, rows, field[-n_new:])
        self.cursor = (self.cursor + n_new) % self.n_rows
        self.filled = min(self.filled + n_new, self.n_rows)

    def sample(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Sample `batch_size` transitions uniformly with replacement.

        Returns:
            states, actions, rewards, continues and next states.
        """
        picks = torch.randint(len(self), (batch_size,), generator=generator, device=self.states.device)
        fields = (self.states, self.actions, self.rewards, self.continues, self.next_states)
        return tuple(field.flatten(0, 1)[picks] for field in fields)
