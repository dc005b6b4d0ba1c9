"""Network of the band agent, which maps a bar's features to a band of weights for each coin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from elegantrl.agents.net import build_mlp
from torch import Tensor, nn

from drl_agents.agents.nets import OBSERVATION_CLIP, PolicyNet, init_orthogonal, linear_layers
from drl_agents.policy import Layers, Policy, action_into_band, band_edges, mlp, normalize

LAST_GAIN = 0.1
LEAST_SLOPE = 0.05
LARGEST_LOGIT = 8.0  # 0.03 % of the account's equity, less than the smallest order
FIRST_LO, FIRST_WIDTH = 0.5, 0.05  # initial bands: sum of lower edges; width as a share of the rest


class ActorBand(PolicyNet):
    """Policy network that reads only features, so its edges do not depend on the account.

    Args:
        dims: widths of the hidden layers.
        state_dim: S of the observation: cash, A weights, features, and `n_extras` further columns of the account.
        action_dim: A.
        n_extras: number of columns after the features.
    """

    least_weight: Tensor  # (A,)

    def __init__(self, dims: Sequence[int], state_dim: int, action_dim: int, n_extras: int = 0) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.columns = slice(1 + action_dim, state_dim - n_extras)
        self.observation_clip = OBSERVATION_CLIP
        self.net = build_mlp([self.columns.stop - self.columns.start, *dims, 2 * action_dim])
        for name, value in (("state_avg", 0.0), ("state_std", 1.0)):
            self.register_buffer(name, torch.full((state_dim,), value))
        self.register_buffer("least_weight", torch.zeros(action_dim))
        init_orthogonal([self.net], last_gain=LAST_GAIN)
        with torch.no_grad():
            lo = FIRST_LO / action_dim
            bias = self.linears()[-1].bias
            bias[:action_dim] = _logit(lo)
            bias[action_dim:] = _logit(FIRST_WIDTH)

    def linears(self) -> list[nn.Linear]:
        """Return the linear layers, first layer first."""
        return [module for module in self.net if isinstance(module, nn.Linear)]

    def raw_layers(self) -> Layers:
        """Return the layers from normalized features to the edges' logits (N, 2 A)."""
        return linear_layers(self.net)

    def normalized(self, features: Tensor) -> Tensor:
        """Return clipped z-scores of features (M, L * F)."""
        return normalize(features, self.state_avg[self.columns], self.state_std[self.columns], self.observation_clip)

    def raw(self, features: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """Return the edges' logits (M, 2 A) of features (M, L * F); see `drl_agents.policy.band_edges`.

        Args:
            features: as in the observation.
            masks: factors (width,) for the units of each hidden layer; None keeps all units.
        """
        x = self.normalized(features)
        if masks is None:
            return mlp(x, [(linear.weight, linear.bias) for linear in self.linears()])
        *hidden, last = self.linears()
        for linear, mask in zip(hidden, masks, strict=True):
            x = nn.functional.linear(x, linear.weight, linear.bias).relu() * mask
        return nn.functional.linear(x, last.weight, last.bias)

    @torch.no_grad()
    def forward(self, state: Tensor) -> Tensor:
        """Return actions (N, A) for observations (N, S), with the same arithmetic as the saved policy."""
        lo, hi = band_edges(mlp(self.normalized(state[..., self.columns]), self.raw_layers()))
        return action_into_band(state[..., 1 : 1 + self.action_dim], lo, hi, self.least_weight)

    def to_policy(self) -> Policy:
        """Return a detached copy of the policy."""
        layers = tuple((weight.clone(), bias.clone()) for weight, bias in self.raw_layers())
        average, std, least = self.state_avg.clone(), self.state_std.clone(), self.least_weight.clone()
        return Policy(average, std, layers, self.observation_clip, head="band", least_weight=least)


def logit_gradient(raw: Tensor, by_edge: Tensor) -> Tensor:
    """Convert the gradient w.r.t. the edges (M, 2 A), lower then upper, into one w.r.t. their logits (M, 2 A).

    The sigmoids' slopes are at least LEAST_SLOPE. Otherwise an edge that reached 0 or 1 while trading was free would
    stay there once trading has a cost. No logit moves beyond LARGEST_LOGIT.
    """
    first, second = raw.sigmoid().chunk(2, dim=1)
    by_lo, by_hi = by_edge.chunk(2, dim=1)
    by_first = (by_lo + by_hi * (1.0 - second)) * (first * (1.0 - first)).clamp(min=LEAST_SLOPE)
    by_second = by_hi * (1.0 - first) * (second * (1.0 - second)).clamp(min=LEAST_SLOPE)
    gradient = torch.cat((by_first, by_second), dim=1)
    is_outward = (raw.abs() > LARGEST_LOGIT) & (raw * gradient > 0.0)
    return torch.where(is_outward, 0.0, gradient)


def _logit(share: float) -> float:
    return math.log(share / (1.0 - share))
