"""elegantrl's networks with a running normaliser as buffers, correct log-probabilities and independent twin critics.

elegantrl 0.3.6 keeps the observation's mean and deviation as frozen parameters and scores SAC's samples at the mean
of the distribution instead of at the sample. Names and call signatures stay its own, so its loops can use these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from elegantrl.agents.net import Actor as StockActor
from elegantrl.agents.net import ActorPPO as StockActorPPO
from elegantrl.agents.net import ActorSAC as StockActorSAC
from elegantrl.agents.net import Critic as StockCritic
from elegantrl.agents.net import CriticPPO as StockCriticPPO
from elegantrl.agents.net import CriticTwin as StockCriticTwin
from elegantrl.agents.net import build_mlp
from torch import Tensor, nn

from drl_agents.policy import Layers, Policy, mlp, normalize

OBSERVATION_CLIP = 10.0  # standard deviations
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
LOG_STD_RANGE = (-5.0, 2.0)  # of SAC's state-dependent deviation


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Log density of `mean + exp(log_std) * noise`, summed over actions: (..., A) -> (...)."""
    return -(0.5 * noise.square() + log_std + HALF_LOG_2PI).sum(-1)


def linear_layers(*nets: nn.Module) -> Layers:
    """(weight, bias) of every linear layer, without gradient, sharing the networks' memory."""
    linears = (m for net in nets for m in net.modules() if isinstance(m, nn.Linear))
    return tuple((m.weight.detach(), m.bias.detach()) for m in linears)


def init_orthogonal(nets: Iterable[nn.Module], last_gain: float) -> None:
    """Orthogonal weights: gain sqrt(2) before a ReLU, `last_gain` for each network's last layer; zero biases."""
    for net in nets:
        linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
        for linear in linears:
            nn.init.orthogonal_(linear.weight, last_gain if linear is linears[-1] else math.sqrt(2.0))
            nn.init.zeros_(linear.bias)


class NormBuffers(nn.Module):
    """Turns elegantrl's frozen normaliser parameters into buffers, so that no optimiser ever sees them."""

    state_avg: Tensor
    state_std: Tensor
    observation_clip: float = OBSERVATION_CLIP  # inf where observations stay as they are
    nets_small_at_first: tuple[str, ...] = ()  # those whose weights are orthogonal, with a small last layer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make elegantrl's network, with `state_avg`, `state_std` (S,), `value_avg`, `value_std` (1,) as buffers."""
        super().__init__(*args, **kwargs)
        for name in ("state_avg", "state_std", "value_avg", "value_std"):
            value = self._parameters.pop(name, None)
            if value is not None:
                self.register_buffer(name, value.detach().clone())
        init_orthogonal([getattr(self, name) for name in self.nets_small_at_first], last_gain=0.01)

    def set_state_norm(self, average: Tensor, std: Tensor) -> None:
        """Take over the running statistics, both (S,)."""
        self.state_avg.copy_(average)
        self.state_std.copy_(std)

    def state_norm(self, state: Tensor) -> Tensor:
        """(N, S) -> (N, S) in standard deviations, clipped."""
        return normalize(state, self.state_avg, self.state_std, self.observation_clip)


class PolicyNet(NormBuffers):
    """What the agents ask of any actor."""

    def raw_layers(self) -> Layers:
        """Layers from the normalised observation to the distribution's parameters."""
        raise NotImplementedError

    def mean_layers(self) -> Layers:
        """Layers from the normalised observation to the action before its tanh."""
        return self.raw_layers()

    def to_policy(self) -> Policy:
        """A detached copy of the deterministic policy."""
        layers = tuple((weight.clone(), bias.clone()) for weight, bias in self.mean_layers())
        return Policy(self.state_avg.clone(), self.state_std.clone(), layers, self.observation_clip)


class ActorPPO(PolicyNet, StockActorPPO):
    """Gaussian before a tanh, with one learned deviation per asset."""

    # The first policy acts alike in every state and explores by its noise alone.
    nets_small_at_first = ("net",)

    def raw_layers(self) -> Layers:
        """Layers to the mean (N, A)."""
        return linear_layers(self.net)


class Actor(PolicyNet, StockActor):
    """Deterministic actor of TD3 and DDPG."""

    nets_small_at_first = ("net",)

    def raw_layers(self) -> Layers:
        """Layers to the action before its tanh (N, A)."""
        return linear_layers(self.net)


class ActorSAC(PolicyNet, StockActorSAC):
    """Squashed Gaussian whose mean and deviation both depend on the state (Haarnoja et al. 2018, appendix C)."""

    nets_small_at_first = ("net_a",)

    def raw_layers(self) -> Layers:
        """Layers to mean and log deviation side by side (N, 2A)."""
        return linear_layers(self.net_s, self.net_a)

    def mean_layers(self) -> Layers:
        """Layers to the mean (N, A)."""
        *hidden, (weight, bias) = self.raw_layers()
        return (*hidden, (weight[: self.action_dim], bias[: self.action_dim]))

    def forward(self, state: Tensor) -> Tensor:
        """Deterministic action (N, A), without gradient: the same arithmetic as the saved policy's."""
        return mlp(self.state_norm(state), self.mean_layers()).tanh()

    def sample(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action (N, A) in (-1, 1) and its log-probability (N,) for standard normal `noise` (N, A)."""
        mean, log_std = self.net_a(self.net_s(self.state_norm(state))).chunk(2, dim=1)
        log_std = log_std.clamp(*LOG_STD_RANGE)
        before_tanh = mean + log_std.exp() * noise
        # log(1 - tanh(u)^2) without cancellation.
        log_slope = 2.0 * (math.log(2.0) - before_tanh - nn.functional.softplus(-2.0 * before_tanh))
        return before_tanh.tanh(), gaussian_log_prob(noise, log_std) - log_slope.sum(1)


class CriticPPO(NormBuffers, StockCriticPPO):
    """State value. Its last layer works on normalised returns; `forward` gives values in reward units."""

    value_avg: Tensor
    value_std: Tensor
    net: nn.Sequential
    # A random guess of another scale than the rewards would pollute the first returns.
    nets_small_at_first = ("net",)

    def normalize_value(self, value: Tensor) -> Tensor:
        """Reward units -> what the last layer is trained on."""
        return (value - self.value_avg) / self.value_std

    @torch.no_grad()
    def set_value_norm(self, average: Tensor, std: Tensor) -> None:
        """Take over the returns' statistics, both (1,); predictions move with them."""
        self.value_avg.copy_(average)
        self.value_std.copy_(std)

    @torch.no_grad()
    def rescale_values(self, average: Tensor, std: Tensor) -> None:
        """Change the value normaliser and correct the last layer so that every prediction stays what it was.

        van Hasselt et al. 2016, "Learning values across many orders of magnitude", section 2.2.
        """
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(self.value_std / std)
        last.bias.copy_((last.bias * self.value_std + self.value_avg - average) / std)
        self.set_value_norm(average, std)


class Critic(NormBuffers, StockCritic):
    """Action value of DDPG."""

    def q_values(self, state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """One estimate (N,)."""
        return (self(state, action),)

    def get_q_min(self, state: Tensor, action: Tensor) -> Tensor:
        """The one estimate (N,), under the name its twin has."""
        return self(state, action)


class CriticTwin(NormBuffers, StockCriticTwin):
    """Two independent action values. elegantrl's pair shares all but the last row, so both err alike."""

    def __init__(self, dims: list[int], state_dim: int, action_dim: int) -> None:
        super().__init__(dims=dims, state_dim=state_dim, action_dim=action_dim)
        self.net = build_mlp([state_dim + action_dim, *dims, 1])
        self.net2 = build_mlp([state_dim + action_dim, *dims, 1])

    def q_values(self, state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Two estimates, each (N,)."""
        x = torch.cat((self.state_norm(state), action), dim=1)
        return self.net(x).squeeze(1), self.net2(x).squeeze(1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """Mean of the two, (N,)."""
        first, second = self.q_values(state, action)
        return 0.5 * (first + second)

    def get_q_min(self, state: Tensor, action: Tensor) -> Tensor:
        """The smaller of the two, (N,)."""
        return torch.minimum(*self.q_values(state, action))

    def get_q1_q2(self, state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """elegantrl's name for `q_values`."""
        return self.q_values(state, action)
