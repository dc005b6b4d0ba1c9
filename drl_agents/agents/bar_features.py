"""Observations that name their bar in place of its features: kept as they are, expanded or projected where needed.

Every account at a bar sees the same features there, so a rollout of bars is smaller by the width of a lookback, and a
first layer needs the features' part of its product once a bar instead of once an account. Networks keep their full
weights (W, S) and normalisers (S,): a saved policy does not tell how it was trained.

    full (S):     account | features of L bars | extras
    compact (C):  account | extras | bar
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # the same object or another one: tensors have no truth value
class BarFeatures:
    """The features of a market and where they stand in an observation. Shared memory with the environment's."""

    windows: Tensor  # (T - L + 1, L * F): row T - 1 - t is what an observation shows of bar t
    last_bar: int  # T - 1
    account: int  # columns in front of the features

    @classmethod
    def of(cls, env: Any) -> BarFeatures | None:
        """Those of an environment whose observations are compact; None for any other."""
        if not getattr(env, "compact", False):
            return None
        return cls(env.market.windows, len(env.market.price) - 1, 1 + env.action_dim)

    @property
    def width(self) -> int:
        """L * F."""
        return self.windows.shape[1]

    def compact_dim(self, state_dim: int) -> int:
        """S -> C."""
        return state_dim - self.width + 1

    def windows_at(self, bar: Tensor) -> Tensor:
        """Bars (M,) int64 -> features (M, L * F)."""
        return self.windows.index_select(0, self.last_bar - bar)

    def expand(self, rows: Tensor) -> Tensor:
        """Compact rows (..., C) -> full ones (..., S)."""
        flat = rows.reshape(-1, rows.shape[-1])
        tech = self.windows_at(flat[:, -1].long())
        full = torch.cat((flat[:, : self.account], tech, flat[:, self.account : -1]), dim=1)
        return full.view(*rows.shape[:-1], full.shape[1])

    def features_of(self, full: Tensor) -> Tensor:
        """(..., S) -> (..., L * F), a view."""
        return full[..., self.account : self.account + self.width]

    def account_of(self, full: Tensor) -> Tensor:
        """(..., S) -> account and extras (..., C - 1), a copy."""
        return torch.cat((full[..., : self.account], full[..., self.account + self.width :]), dim=-1)


@dataclass(frozen=True)
class SharedBars:
    """Normalised observations (B, S) in parts: B accounts at U bars. U is smaller than B, or full rows are cheaper."""

    account: Tensor  # (B, C - 1)
    features: Tensor  # (U, L * F)
    index: Tensor  # (B,) int64, row of `features` an account is at
    bars: BarFeatures

    def __len__(self) -> int:
        return len(self.account)

    def full(self) -> Tensor:
        """(B, S)."""
        account, tech = self.account, self.features.index_select(0, self.index)
        return torch.cat((account[:, : self.bars.account], tech, account[:, self.bars.account :]), dim=1)
