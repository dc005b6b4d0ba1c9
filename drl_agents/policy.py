"""Inference-time policy: a plain function from observations to actions, independent of the training agent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from drl_agents.host_copies import to_device

Layers = Sequence[tuple[Tensor, Tensor]]  # (weight (out, in), bias (out,)) of each layer


def normalize(state: Tensor, average: Tensor, std: Tensor, clip: float) -> Tensor:
    """Return observations (N, S) in standard deviations from the running mean, clipped to +-`clip`."""
    return (state - average).div_(std).clamp_(-clip, clip)


def band_edges(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return lower and upper edge of every coin's band, (..., A) each, from outputs (..., 2 A); 0 < lo < hi < 1."""
    first, second = raw.chunk(2, dim=-1)
    lo = first.sigmoid()
    return lo, lo + (1.0 - lo) * second.sigmoid()


# Settings with which an action is a weight change and an observation contains the held weights.
BAND_NEEDS: dict[str, Any] = {"norm_action": 1.0, "order_sizing": "equity", "observation": "relative"}


def action_into_band(weight: Tensor, lo: Tensor, hi: Tensor, least_weight: Tensor) -> Tensor:
    """Return actions (..., A) that move held weights into their bands, for `norm_action` 1.

    The target is the weight clamped to [lo, hi], and the action is target - weight. A target below `least_weight` is
    smaller than the smallest order. The action is then -1, which closes the position in one order, whatever the price
    does before it fills. Without a position, this action places no order.

    Args:
        weight: (..., A) current weights.
        lo: (..., A) lower edges.
        hi: (..., A) upper edges.
        least_weight: (A,) weights of the smallest orders.
    """
    target = torch.minimum(torch.maximum(weight, lo), hi)
    return torch.where(target < least_weight, -1.0, target - weight)


def mlp(x: Tensor, layers: Layers) -> Tensor:
    """Apply linear layers with ReLU between them: (N, in) -> (N, out)."""
    for weight, bias in layers[:-1]:
        x = torch.nn.functional.linear(x, weight, bias).relu_()
    weight, bias = layers[-1]
    return torch.nn.functional.linear(x, weight, bias)


@dataclass(frozen=True)
class Policy:
    """A deterministic policy: normalization, clipping, ReLU layers, then a head.

    The head "orders" is a tanh: the network reads the whole observation and returns one action per coin. The head
    "band" maps the features, without the account, to a band of weights per coin. The action moves the held weight into
    its band (see `action_into_band`). Such a policy requires a "relative" observation: cash, A weights, features, and
    optional account columns, which it ignores.

    Attributes:
        state_avg: (S,) mean of the training observations; the head "band" uses only the features' columns.
        state_std: (S,) standard deviation of the training observations, 1 for constant columns.
        layers: weights and biases, first layer first.
        clip: bound on normalized observations.
        metadata: description of the training, see `drl_agents.policy_file.METADATA_KEYS`.
        head: "orders" or "band".
        least_weight: (A,) weights below which the head "band" closes a position; None with "orders".
    """

    state_avg: Tensor
    state_std: Tensor
    layers: Layers
    clip: float = 10.0
    metadata: dict[str, Any] = field(default_factory=dict)
    head: str = "orders"
    least_weight: Tensor | None = None

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Tensor:
        """Map observations (N, S) or (S,) to actions in [-1, 1], (N, A) or (A,).

        Raises:
            ValueError: If the observation has a different width.
        """
        if state.shape[-1] != self.state_dim:
            raise ValueError(f"the policy reads observations of {self.state_dim} columns; received {state.shape[-1]}")
        if self.head == "orders":
            return mlp(normalize(state, self.state_avg, self.state_std, self.clip), self.layers).tanh()
        assert self.least_weight is not None
        lo, hi = self.band(state[..., self.feature_columns])
        return action_into_band(state[..., 1 : 1 + self.action_dim], lo, hi, self.least_weight)

    @torch.no_grad()
    def band(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower and upper edges of the bands, (..., A) each, for features (..., L * F) as in the observation.

        Raises:
            ValueError: If the head is "orders".
        """
        if self.head != "band":
            raise ValueError(f'only a policy with the head "band" has bands; this one has "{self.head}"')
        columns = self.feature_columns
        x = normalize(features, self.state_avg[columns], self.state_std[columns], self.clip)
        return band_edges(mlp(x, self.layers))

    @property
    def feature_columns(self) -> slice:
        """Columns of an observation that the head "band" reads."""
        first = 1 + self.action_dim
        return slice(first, first + self.layers[0][0].shape[1])

    @property
    def state_dim(self) -> int:
        """Width S of the observation."""
        return self.state_avg.shape[0]

    @property
    def action_dim(self) -> int:
        """Number of assets A."""
        n_outputs = self.layers[-1][0].shape[0]
        return n_outputs // 2 if self.head == "band" else n_outputs

    @property
    def net_dims(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(weight.shape[0] for weight, _ in self.layers[:-1])

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.state_avg.device

    def to(self, device: torch.device | str) -> Policy:
        """Return the policy on a different device."""
        layers = tuple((to_device(weight, device), to_device(bias, device)) for weight, bias in self.layers)
        average, std = to_device(self.state_avg, device), to_device(self.state_std, device)
        least = None if self.least_weight is None else to_device(self.least_weight, device)
        return replace(self, state_avg=average, state_std=std, layers=layers, least_weight=least)
