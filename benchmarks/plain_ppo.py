"""A straightforward PPO over the fast class: torch.autograd and fused Adam, without manual gradients.

It is the baseline of the agent's update and of a whole trial. Its preprocessing is the same: running normalization of
observations and returns, generalized advantage estimation, and bootstrapping at time limits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GAMMA, GAE_LAMBDA, CLIP, ENTROPY, VALUE_COEF, MAX_NORM = 0.99, 0.95, 0.25, 0.01, 0.5, 0.5


def network(n_inputs: int, width: int, n_outputs: int) -> nn.Sequential:
    """Return a network with two hidden layers."""
    layers = (nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_outputs))
    nn.init.orthogonal_(layers[-1].weight, 0.01)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


class Running:
    """Running mean and variance of all rows so far (Chan et al. 1979)."""

    def __init__(self, width: int) -> None:
        self.count, self.mean, self.var = 1e-4, torch.zeros(width), torch.ones(width)

    def update(self, x: Tensor) -> None:
        """Merge rows (M, width)."""
        var, mean = torch.var_mean(x, 0, correction=0)
        total, delta = self.count + len(x), mean - self.mean
        self.mean = self.mean + delta * len(x) / total
        self.var = (self.var * self.count + var * len(x) + delta**2 * self.count * len(x) / total) / total
        self.count = total

    def normalize(self, x: Tensor) -> Tensor:
        """Return the rows in standard deviations from the mean, clipped."""
        return ((x - self.mean) / (self.var.sqrt() + 1e-8)).clamp(-10.0, 10.0)


class PlainPPO:
    """Agent with the interface of elegantrl's agents, for N environments on the CPU."""

    def __init__(self, env: Any, width: int, batch_size: int, n_epochs: int, learning_rate: float) -> None:
        n_inputs, n_actions = env.state_dim, env.action_dim
        self.actor, self.critic = network(n_inputs, width, n_actions), network(n_inputs, width, 1)
        self.log_std = nn.Parameter(torch.full((n_actions,), -0.5))
        self.parameters = [*self.actor.parameters(), *self.critic.parameters(), self.log_std]
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate, eps=1e-5, fused=True)
        self.batch_size, self.n_epochs = batch_size, n_epochs
        self.seen, self.returns = Running(n_inputs), Running(1)
        self.last_state = env.reset().clone()

    def log_prob(self, action: Tensor, mean: Tensor) -> Tensor:
        """Return log-probabilities of actions, (B, A) -> (B,), up to a constant."""
        return -(0.5 * ((action - mean) * (-self.log_std).exp()).square() + self.log_std).sum(-1)

    def value(self, x: Tensor) -> Tensor:
        """Return values in reward units for normalized observations."""
        return self.critic(x).squeeze(-1) * (self.returns.var.sqrt() + 1e-8) + self.returns.mean

    @torch.no_grad()
    def explore_env(self, env: Any, horizon_len: int) -> tuple[Tensor, ...]:
        """Collect H steps: states (H + 1, N, S), actions, log-probabilities, rewards and dones."""
        n = env.n_envs
        states = torch.empty(horizon_len + 1, n, env.state_dim)
        actions, rewards = torch.empty(horizon_len, n, env.action_dim), torch.empty(horizon_len, n)
        logprobs, dones = torch.empty(horizon_len, n), torch.empty(horizon_len, n, dtype=torch.bool)
        states[0] = self.last_state
        for t in range(horizon_len):
            mean = self.actor(self.seen.normalize(states[t]))
            actions[t] = mean + self.log_std.exp() * torch.randn_like(mean)
            logprobs[t] = self.log_prob(actions[t], mean)
            slots = {"state": states[t + 1], "reward": rewards[t], "done": dones[t]}
            _, _, done, info = env.step(actions[t].tanh(), out=slots)
            if done.any():
                following = self.value(self.seen.normalize(info["final_state"]))
                rewards[t] += GAMMA * torch.where(info["truncated"], following, 0.0)
        self.last_state = states[-1].clone()
        return states, actions, logprobs, rewards, dones

    @torch.no_grad()
    def samples(
        self, states: Tensor, actions: Tensor, logprobs: Tensor, rewards: Tensor, dones: Tensor
    ) -> tuple[Tensor, ...]:
        """Return flat rows: normalized states, actions, log-probabilities, advantages and targets."""
        x = self.seen.normalize(states.flatten(0, 1))
        values = self.value(x).view(states.shape[:2])
        goes_on = 1.0 - dones.float()
        advantages, running = torch.empty_like(rewards), torch.zeros_like(rewards[0])
        for t in reversed(range(len(rewards))):
            delta = rewards[t] + GAMMA * goes_on[t] * values[t + 1] - values[t]
            advantages[t] = running = delta + GAMMA * GAE_LAMBDA * goes_on[t] * running
        returns = (advantages + values[:-1]).view(-1, 1)
        self.returns.update(returns)
        self.seen.update(states[:-1].flatten(0, 1))
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        rows = x[: len(returns)], actions.flatten(0, 1), logprobs.flatten(), advantages.flatten()
        return (*rows, self.returns.normalize(returns).squeeze(1))

    def update_net(self, items: tuple[Tensor, ...]) -> None:
        """Take gradient steps over all samples, reshuffled in every epoch."""
        fields = self.samples(*items)
        for _ in range(self.n_epochs):
            order = torch.randperm(len(fields[0]))
            shuffled = [field[order] for field in fields]
            for state, action, logprob, advantage, target in zip(
                *(field.split(self.batch_size) for field in shuffled), strict=True
            ):
                ratio = (self.log_prob(action, self.actor(state)) - logprob).exp()
                gain = torch.minimum(ratio * advantage, ratio.clamp(1.0 - CLIP, 1.0 + CLIP) * advantage).mean()
                error = (self.critic(state).squeeze(1) - target).square().mean()
                loss = VALUE_COEF * error - gain - ENTROPY * self.log_std.sum()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
                self.optimizer.step()
