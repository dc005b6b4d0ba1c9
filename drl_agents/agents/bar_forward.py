"""Forward pass of a policy over compact observations during exploration."""

from __future__ import annotations

import torch
from torch import Tensor

from drl_agents.agents.bar_features import BarFeatures
from drl_agents.agents.mlp_gradient import products_for
from drl_agents.agents.rollout import Layer, PolicyForward
from drl_agents.policy import Layers

CHUNK_ROWS = 1 << 12  # bars projected at once: enough for a large product, few enough to stay in the cache


class ExpandedForward(PolicyForward):
    """Forward pass that expands full observations in every step, on any device."""

    def __init__(
        self, norm: tuple[Tensor, Tensor, float], layers: Layers, n_rows: int, device: torch.device, bars: BarFeatures
    ) -> None:
        super().__init__(norm, layers, n_rows, device)
        self.bars = bars

    def __call__(self, state: Tensor) -> Tensor:
        """Map compact observations (N, C) to outputs (N, out)."""
        return super().__call__(self.bars.expand(state))


class ProjectedForward:
    """Forward pass that computes the first layer's product with the features for many bars at once, on the CPU.

    Accounts advance one bar per step, so the bars of the next K steps are known and are projected together. If an
    account starts an episode elsewhere, its bar is outside this range. Such bars are projected when they occur.
    """

    def __init__(
        self, norm: tuple[Tensor, Tensor, float], layers: Layers, n_rows: int, device: torch.device, bars: BarFeatures,
        horizon_len: int,
    ) -> None:  # fmt: skip
        average, std, self.clip = norm
        self.sources = (average, std, *layers[0])
        self.bars, self.n_rows, self.device = bars, n_rows, device
        self.steps_ahead = min(max(1, CHUNK_ROWS // n_rows), horizon_len)
        self.offsets = torch.arange(self.steps_ahead)[:, None]  # (K, 1)
        self.slot = torch.full((bars.last_bar + 1,), -1, dtype=torch.int64)  # bar -> row of the table
        width = layers[0][0].shape[0]
        # A projection is replaced after its last step; until then, every step may add N unforeseen bars.
        self.table = torch.empty((self.steps_ahead * 2 * n_rows, width), device=device)
        self.hidden = torch.empty((n_rows, width), device=device)
        self.account = torch.empty((n_rows, bars.compact_dim(len(average)) - 1), device=device)
        self.known = self.slot[:0]  # bars in the table
        self.steps_left = 0
        self.products = products_for(device, average.dtype)
        self.later = [Layer(*layer, n_rows, device, is_last=layer is layers[-1]) for layer in layers[1:]]
        self.refresh()

    def refresh(self) -> None:
        """Copy the networks' current weights and discard all projections."""
        average, std, weight, bias = (source.to(self.device) for source in self.sources)
        bars = self.bars
        self.average, self.std = bars.account_of(average), bars.account_of(std)  # (C - 1,)
        self.tech_average, self.tech_std = bars.features_of(average), bars.features_of(std)
        self.account_weight = bars.account_of(weight).t()  # (C - 1, W)
        self.tech_weight, self.bias = bars.features_of(weight).contiguous(), bias  # (W, L * F), (W,)
        for layer in self.later:
            layer.refresh()
        self._forget()

    def _forget(self) -> None:
        self.slot[self.known] = -1
        self.known = self.slot[:0]
        self.steps_left = 0

    def _project(self, bar: Tensor) -> None:
        """Add distinct bars (U,) to the table."""
        first = len(self.known)
        for part in bar.split(CHUNK_ROWS):
            x = self.bars.windows_at(part)
            x.sub_(self.tech_average).div_(self.tech_std).clamp_(-self.clip, self.clip)
            self.table[first : first + len(part)] = self.products.affine(x, self.tech_weight, self.bias, is_last=True)
            first += len(part)
        self.slot[bar] = torch.arange(len(self.known), first)
        self.known = torch.cat((self.known, bar))

    def __call__(self, state: Tensor) -> Tensor:
        """Map compact observations (N, C) to outputs (N, out), a buffer that is valid until the next call."""
        bar = state[:, -1].long()
        if self.steps_left == 0:
            self._forget()
            self._project((bar + self.offsets).clamp_(max=self.bars.last_bar).unique())
            self.steps_left = self.steps_ahead
        self.steps_left -= 1
        rows = self.slot[bar]
        if rows.min() < 0:
            self._project(bar[rows < 0].unique())
            rows = self.slot[bar]
        torch.index_select(self.table, 0, rows, out=self.hidden)
        torch.sub(state[:, :-1], self.average, out=self.account)
        self.account.div_(self.std).clamp_(-self.clip, self.clip)
        x = self.hidden.addmm_(self.account, self.account_weight).relu_()
        for layer in self.later:
            x = layer(x)
        return x
