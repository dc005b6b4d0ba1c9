"""elegantrl's networks with normalizer buffers, correct log-probabilities and independent twin critics.

elegantrl 0.3.6 stores the observation's mean and deviation as frozen parameters. It evaluates SAC's log-probability at
the mean of the distribution instead of at the sample. Names and call signatures stay the same, so elegantrl's training
loops accept these networks.
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
LOG_STD_RANGE = (-5.0, 2.0)  # range of SAC's state-dependent log deviation


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Return the log density of `mean + exp(log_std) * noise`, summed over actions: (..., A) -> (...)."""
    return -(0.5 * noise.square() + log_std + HALF_LOG_2PI).sum(-1)


def linear_layers(*nets: nn.Module) -> Layers:
    """Return (weight, bias) of every linear layer, without gradient, sharing the networks' memory."""
    linears = (m for net in nets for m in net.modules() if isinstance(m, nn.Linear))
    return tuple((m.weight.detach(), m.bias.detach()) for m in linears)


def init_orthogonal(nets: Iterable[nn.Module], last_gain: float) -> None:
    """Initialize orthogonal weights and zero biases; the gain is sqrt(2) before a ReLU, else `last_gain`."""
    for net in nets:
        linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
        for linear in linears:
            nn.init.orthogonal_(linear.weight, last_gain if linear is linears[-1] else math.sqrt(2.0))
            nn.init.zeros_(linear.bias)


class NormBuffers(nn.Module):
    """Mixin that turns elegantrl's frozen normalizer parameters into buffers, which optimizers ignore."""

    state_avg: Tensor
    state_std: Tensor
    observation_clip: float = OBSERVATION_CLIP  # inf without normalization
    nets_small_at_first: tuple[str, ...] = ()  # networks with orthogonal weights and a small last layer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Build elegantrl's network with buffers `state_avg`, `state_std` (S,), `value_avg` and `value_std` (1,)."""
        super().__init__(*args, **kwargs)
        for name in ("state_avg", "state_std", "value_avg", "value_std"):
            value = self._parameters.pop(name, None)
            if value is not None:
                self.register_buffer(name, value.detach().clone())
        init_orthogonal([getattr(self, name) for name in self.nets_small_at_first], last_gain=0.01)

    def set_state_norm(self, average: Tensor, std: Tensor) -> None:
        """Copy the running statistics, both (S,)."""
        self.state_avg.copy_(average)
        self.state_std.copy_(std)

    def state_norm(self, state: Tensor) -> Tensor:
        """Return clipped z-scores of observations, (N, S) -> (N, S)."""
        return normalize(state, self.state_avg, self.state_std, self.observation_clip)


class PolicyNet(NormBuffers):
    """Interface that the agents require of an actor."""

    def raw_layers(self) -> Layers:
        """Return the layers from the normalized observation to the distribution's parameters."""
        raise NotImplementedError

    def mean_layers(self) -> Layers:
        """Return the layers from the normalized observation to the action before its tanh."""
        return self.raw_layers()

    def to_policy(self) -> Policy:
        """Return a detached copy of the deterministic policy."""
        layers = tuple((weight.clone(), bias.clone()) for weight, bias in self.mean_layers())
        return Policy(self.state_avg.clone(), self.state_std.clone(), layers, self.observation_clip)


class ActorPPO(PolicyNet, StockActorPPO):
    """Gaussian actor before a tanh, with one learned deviation per asset."""

    # The first policy acts almost the same in every state and explores only through its noise.
    nets_small_at_first = ("net",)

    def raw_layers(self) -> Layers:
        """Return the layers up to the mean (N, A)."""
        return linear_layers(self.net)


class Actor(PolicyNet, StockActor):
    """Deterministic actor of TD3 and DDPG."""

    nets_small_at_first = ("net",)

    def raw_layers(self) -> Layers:
        """Return the layers up to the action before its tanh (N, A)."""
        return linear_layers(self.net)


class ActorSAC(PolicyNet, StockActorSAC):
    """Squashed Gaussian actor whose mean and deviation depend on the state (Haarnoja et al. 2018, appendix C)."""

    nets_small_at_first = ("net_a",)

    def raw_layers(self) -> Layers:
        """Return the layers up to the concatenated mean and log deviation (N, 2A)."""
        return linear_layers(self.net_s, self.net_a)

    def mean_layers(self) -> Layers:
        """Return the layers up to the mean (N, A)."""
        *hidden, (weight, bias) = self.raw_layers()
        return (*hidden, (weight[: self.action_dim], bias[: self.action_dim]))

    def forward(self, state: Tensor) -> Tensor:
        """Return the deterministic action (N, A) without gradient, with the same arithmetic as the saved policy."""
        return mlp(self.state_norm(state), self.mean_layers()).tanh()

    def sample(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (N, A) in (-1, 1) and their log-probabilities (N,) for standard normal `noise` (N, A)."""
        mean, log_std = self.net_a(self.net_s(self.state_norm(state))).chunk(2, dim=1)
        log_std = log_std.clamp(*LOG_STD_RANGE)
        before_tanh = mean + log_std.exp() * noise
        # log(1 - tanh(u)^2) without cancellation.
        log_slope = 2.0 * (math.log(2.0) - before_tanh - nn.functional.softplus(-2.0 * before_tanh))
        return before_tanh.tanh(), gaussian_log_prob(noise, log_std) - log_slope.sum(1)


class CriticPPO(NormBuffers, StockCriticPPO):
    """State value; the last layer predicts normalized returns, and `forward` returns values in reward units."""

    value_avg: Tensor
    value_std: Tensor
    net: nn.Sequential
    # A random guess on a different scale from the rewards would distort the first returns.
    nets_small_at_first = ("net",)

    def normalize_value(self, value: Tensor) -> Tensor:
        """Convert reward units to the units of the last layer."""
        return (value - self.value_avg) / self.value_std

    @torch.no_grad()
    def set_value_norm(self, average: Tensor, std: Tensor) -> None:
        """Copy the returns' statistics, both (1,); predictions change accordingly."""
        self.value_avg.copy_(average)
        self.value_std.copy_(std)

    @torch.no_grad()
    def rescale_values(self, average: Tensor, std: Tensor) -> None:
        """Change the value normalizer and correct the last layer so that all predictions stay the same.

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
        """Return the one estimate (N,)."""
        return (self(state, action),)

    def get_q_min(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the one estimate (N,); the name matches CriticTwin."""
        return self(state, action)


class CriticTwin(NormBuffers, StockCriticTwin):
    """Two independent action values; in elegantrl, both share all layers but the last, so their errors correlate."""

    def __init__(self, dims: list[int], state_dim: int, action_dim: int) -> None:
        super().__init__(dims=dims, state_dim=state_dim, action_dim=action_dim)
        self.net = build_mlp([state_dim + action_dim, *dims, 1])
        self.net2 = build_mlp([state_dim + action_dim, *dims, 1])

    def q_values(self, state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Return two estimates, each (N,)."""
        x = torch.cat((self.state_norm(state), action), dim=1)
        return self.net(x).squeeze(1), self.net2(x).squeeze(1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the mean of both estimates, (N,)."""
        first, second = self.q_values(state, action)
        return 0.5 * (first + second)

    def get_q_min(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the smaller of both estimates, (N,)."""
        return torch.minimum(*self.q_values(state, action))

    def get_q1_q2(self, state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Return `q_values` under elegantrl's name."""
        return self.q_values(state, action)
