"""The policy as it is used: a plain function from observations to actions, without the agent that trained it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from drl_agents.host_copies import to_device

Layers = Sequence[tuple[Tensor, Tensor]]   # (weight (out, in), bias (out,)) of each layer


def normalize(state: Tensor, average: Tensor, std: Tensor, clip: float) -> Tensor:
    """(N, S) observation in standard deviations from its running mean, clipped to +-`clip`."""
    return (state - average).div_(std).clamp_(-clip, clip)


def mlp(x: Tensor, layers: Layers) -> Tensor:
    """Linear layers with ReLU between them: (N, in) -> (N, out)."""
    for weight, bias in layers[:-1]:
        x = torch.nn.functional.linear(x, weight, bias).relu_()
    weight, bias = layers[-1]
    return torch.nn.functional.linear(x, weight, bias)


@dataclass(frozen=True)
class Policy:
    """A deterministic policy: normalise, clip, ReLU layers, tanh. Every agent here is one when it does not explore.

    Attributes:
        state_avg: (S,) running mean of the training observations.
        state_std: (S,) their standard deviation, 1 where a column never varied.
        layers: weights and biases, first layer first.
        clip: bound on normalised observations.
        metadata: what it was trained on: see `drl_agents.policy_file.METADATA_KEYS`.
    """

    state_avg: Tensor
    state_std: Tensor
    layers: Layers
    clip: float = 10.0
    metadata: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Tensor:
        """Observation (N, S) or (S,) -> actions in [-1, 1], (N, A) or (A,)."""
        return mlp(normalize(state, self.state_avg, self.state_std, self.clip), self.layers).tanh()

    @property
    def state_dim(self) -> int:
        """S."""
        return self.state_avg.shape[0]

    @property
    def action_dim(self) -> int:
        """A."""
        return self.layers[-1][0].shape[0]

    @property
    def net_dims(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(weight.shape[0] for weight, _ in self.layers[:-1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.state_avg.device

    def to(self, device: torch.device | str) -> Policy:
        """The same policy on another device."""
        layers = tuple((to_device(weight, device), to_device(bias, device)) for weight, bias in self.layers)
        average, std = to_device(self.state_avg, device), to_device(self.state_std, device)
        return replace(self, state_avg=average, state_std=std, layers=layers)

    def with_metadata(self, **values: Any) -> Policy:
        """The same policy with `values` added to its metadata."""
        return replace(self, metadata={**self.metadata, **values})
