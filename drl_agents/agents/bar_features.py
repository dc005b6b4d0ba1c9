"""Compact observations that contain a bar index instead of features, and are expanded or projected when needed.

All accounts at a bar share its features, so a rollout that stores bar indices saves the memory of the lookback windows.
The first layer computes the features' part of its product once per bar instead of once per account. Networks keep full
weights (W, S) and normalizers (S,), so a saved policy is the same for both kinds of observations.

    full (S):     account | features of L bars | extras
    compact (C):  account | extras | bar
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # compared by identity, because tensors have no truth value
class BarFeatures:
    """Features of a market and their position in an observation; shares the environment's memory."""

    windows: Tensor  # (T - L + 1, L * F): row T - 1 - t has the features of an observation at bar t
    last_bar: int  # T - 1
    account: int  # number of columns before the features

    @classmethod
    def of(cls, env: Any) -> BarFeatures | None:
        """Return the features of an environment with compact observations; None for any other environment."""
        if not getattr(env, "compact", False):
            return None
        return cls(env.market.windows, len(env.market.price) - 1, 1 + env.action_dim)

    @property
    def width(self) -> int:
        """L * F."""
        return self.windows.shape[1]

    def compact_dim(self, state_dim: int) -> int:
        """Return C for a given S."""
        return state_dim - self.width + 1

    def windows_at(self, bar: Tensor) -> Tensor:
        """Return features (M, L * F) at bars (M,) int64."""
        return self.windows.index_select(0, self.last_bar - bar)

    def expand(self, rows: Tensor) -> Tensor:
        """Return full observations (..., S) of compact ones (..., C)."""
        flat = rows.reshape(-1, rows.shape[-1])
        tech = self.windows_at(flat[:, -1].long())
        full = torch.cat((flat[:, : self.account], tech, flat[:, self.account : -1]), dim=1)
        return full.view(*rows.shape[:-1], full.shape[1])

    def features_of(self, full: Tensor) -> Tensor:
        """Return the features (..., L * F) of full observations (..., S), as a view."""
        return full[..., self.account : self.account + self.width]

    def account_of(self, full: Tensor) -> Tensor:
        """Return account and extras (..., C - 1) of full observations (..., S), as a copy."""
        return torch.cat((full[..., : self.account], full[..., self.account + self.width :]), dim=-1)


@dataclass(frozen=True)
class SharedBars:
    """Normalized observations (B, S) in parts: B accounts at U bars, with U < B. Otherwise, full rows are cheaper."""

    account: Tensor  # (B, C - 1)
    features: Tensor  # (U, L * F)
    index: Tensor  # (B,) int64, row of `features` for each account
    bars: BarFeatures

    def __len__(self) -> int:
        return len(self.account)

    def full(self) -> Tensor:
        """Return full rows (B, S)."""
        account, tech = self.account, self.features.index_select(0, self.index)
        return torch.cat((account[:, : self.bars.account], tech, account[:, self.bars.account :]), dim=1)
