"""PPO over the fast class in one file, written to be read from top to bottom.

    python -m examples.ppo_single_file
    python -m examples.ppo_single_file --gpu 0 --n-envs 4096

Two details depend on the environment. First, it writes observations, rewards and dones directly into the rollout's
storage (`out=`). Second, every episode ends by a time limit, so its last reward is bootstrapped with the value of
`final_state`; the observation after that step already belongs to the next episode.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized

# The generated market: every coin has its own trend and one noisy feature that shows the trend.
N_BARS, N_ASSETS, TREND, VOLATILITY, SWITCH_PROBABILITY = 20_000, 3, 0.002, 0.005, 0.01
TRAINING_SHARE = 0.75  # fraction of the bars; the test uses the rest
ENV_PARAMS = {"rules": "standard", "lookback": 4}
EPISODE_BARS = 250

HIDDEN = 64
LEARNING_RATE, MAX_GRADIENT_NORM = 1e-3, 0.5
GAMMA, GAE_LAMBDA, CLIP = 0.95, 0.95, 0.2
EPOCHS, MINIBATCHES = 4, 4


def make_market(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (training, test) configs: consecutive bars of one random walk whose drift changes sign occasionally."""
    rng = np.random.default_rng(seed)
    switches = rng.random((N_BARS, N_ASSETS)) < SWITCH_PROBABILITY
    trend = np.where(np.cumsum(switches, axis=0) % 2 == 0, 1.0, -1.0)
    price = 100.0 * np.exp(np.cumsum(TREND * trend + rng.normal(0.0, VOLATILITY, trend.shape), axis=0))
    feature = (trend + rng.normal(0.0, 1.0, trend.shape)).astype(np.float32)
    split = int(TRAINING_SHARE * N_BARS)
    parts = (slice(None, split), slice(split, None))
    training, test = ({"price_array": price[part], "tech_array": feature[part]} for part in parts)
    return training, test


def make_env(config: dict[str, Any], args: argparse.Namespace) -> VectorizedCryptoEnvAlpacaOptimized:
    """Return N accounts that start at random bars, with episodes of EPISODE_BARS steps."""
    return VectorizedCryptoEnvAlpacaOptimized(
        config, ENV_PARAMS, args.n_envs, seed=args.seed, episode_bars=EPISODE_BARS, gpu_id=args.gpu, as_numpy=False
    )


class Agent(nn.Module):
    """A Gaussian policy with a state-independent standard deviation, and a value function."""

    def __init__(self, state_dim: int, action_dim: int) -> None:
        super().__init__()
        self.mean, self.critic = self._mlp(state_dim, action_dim, 0.01), self._mlp(state_dim, 1, 1.0)
        self.log_std = nn.Parameter(torch.full((action_dim,), -0.5))

    @staticmethod
    def _mlp(n_inputs: int, n_outputs: int, last_gain: float) -> nn.Sequential:
        sizes, gains = (n_inputs, HIDDEN, HIDDEN, n_outputs), (2**0.5, 2**0.5, last_gain)
        layers: list[nn.Module] = []
        for size, next_size, gain in zip(sizes[:-1], sizes[1:], gains, strict=True):
            linear = nn.Linear(size, next_size)
            nn.init.orthogonal_(linear.weight, gain)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.Tanh()]
        return nn.Sequential(*layers[:-1])

    def policy(self, state: Tensor) -> torch.distributions.Independent:
        """Return the distribution of the actions (..., A)."""
        normal = torch.distributions.Normal(self.mean(state), self.log_std.exp(), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)

    def value(self, state: Tensor) -> Tensor:
        """Return the values (...) of states (..., S)."""
        return self.critic(state).squeeze(-1)


class Rollout:
    """T steps of N accounts, time first; `state` has one additional row, the state after the last step."""

    def __init__(self, env: VectorizedCryptoEnvAlpacaOptimized, horizon: int) -> None:
        n, device = env.n_envs, env.device
        self.state = torch.zeros((horizon + 1, n, env.state_dim), device=device)
        self.action = torch.zeros((horizon, n, env.action_dim), device=device)
        self.log_prob, self.reward = torch.zeros((2, horizon, n), device=device)
        self.done = torch.zeros((horizon, n), dtype=torch.bool, device=device)
        self.ended = torch.zeros(2, dtype=torch.float64, device=device)  # number of episodes, sum of their returns
        self.state[0] = env.reset()

    @torch.no_grad()
    def collect(self, env: VectorizedCryptoEnvAlpacaOptimized, agent: Agent) -> None:
        """Collect T steps, continuing from the last state."""
        for t in range(len(self.action)):
            policy = agent.policy(self.state[t])
            action = self.action[t] = policy.sample()
            self.log_prob[t] = policy.log_prob(action)
            slots = {"state": self.state[t + 1], "reward": self.reward[t], "done": self.done[t]}
            _, _, done, info = env.step(action.clamp(-1.0, 1.0), out=slots)
            if env.device.type != "cpu" or done.any():  # on a GPU, reading `done` would stall the device
                value = torch.where(info["truncated"], agent.value(info["final_state"]), 0.0)
                self.reward[t] += GAMMA * value
                self.ended += torch.stack((done.sum(), torch.where(done, info["episode_return"], 0.0).sum()))

    @torch.no_grad()
    def advantages(self, agent: Agent) -> tuple[Tensor, Tensor]:
        """Return GAE advantages (T, N) and value targets (T, N)."""
        value = agent.value(self.state)
        goes_on = 1.0 - self.done.float()
        delta = self.reward + GAMMA * value[1:] * goes_on - value[:-1]
        advantage, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
        for t in reversed(range(len(delta))):
            running = delta[t] + GAMMA * GAE_LAMBDA * goes_on[t] * running
            advantage[t] = running
        return advantage, advantage + value[:-1]


def update(agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    """Minimize PPO's clipped objective and the squared error of the value function."""
    advantage, target = (x.flatten() for x in rollout.advantages(agent))
    state, action = rollout.state[:-1].flatten(0, 1), rollout.action.flatten(0, 1)
    log_prob = rollout.log_prob.flatten()
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(state), device=state.device).chunk(MINIBATCHES):
            ratio = (agent.policy(state[rows]).log_prob(action[rows]) - log_prob[rows]).exp()
            gain = torch.minimum(ratio * advantage[rows], ratio.clamp(1.0 - CLIP, 1.0 + CLIP) * advantage[rows])
            loss = 0.5 * (agent.value(state[rows]) - target[rows]).square().mean() - gain.mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()


@torch.no_grad()
def evaluate(env: VectorizedCryptoEnvAlpacaOptimized, agent: Agent) -> tuple[float, float]:
    """Return mean account value over initial capital after one episode, for the mean action and for equal weight."""
    state, info = env.reset(), {}
    for _ in range(EPISODE_BARS):
        state, _, _, info = env.step(agent.policy(state).mean.clamp(-1.0, 1.0))
    benchmark = info["benchmark_equity"] / env.initial_total_asset
    return float(info["episode_return"].mean()), float(benchmark.mean())


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="PPO in one file over the fast class, on a generated market.")
    parser.add_argument("--updates", type=int, default=40, metavar="N", help="number of rollouts (default: 40)")
    parser.add_argument("--n-envs", type=int, default=64, metavar="N", help="number of accounts (default: 64)")
    parser.add_argument("--horizon", type=int, default=64, metavar="N", help="steps per rollout (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default: 0)")
    parser.add_argument("--gpu", type=int, default=-1, metavar="N", help="GPU index; -1 selects the CPU (default: -1)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, report after every tenth update, and test on unseen bars."""
    args = parse_arguments(argv)
    torch.manual_seed(args.seed)
    training, test = make_market(args.seed)
    env = make_env(training, args)
    agent = Agent(env.state_dim, env.action_dim).to(env.device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE)
    rollout, started = Rollout(env, args.horizon), time.perf_counter()
    for number in range(1, args.updates + 1):
        rollout.collect(env, agent)
        update(agent, optimizer, rollout)
        rollout.state[0] = rollout.state[-1]
        if number % 10 == 0 or number == args.updates:
            count, total = rollout.ended.tolist()
            rollout.ended.zero_()
            steps_per_s = number * args.horizon * args.n_envs / (time.perf_counter() - started)
            mean = f"mean account value {total / count:.3f}" if count else "no account value"
            print(f"update {number}: {count:.0f} episodes ended, {mean}, {steps_per_s:,.0f} steps/s")
    value, benchmark = evaluate(make_env(test, args), agent)
    print(f"test: mean account value {value:.3f} times the initial capital, equal-weight portfolio {benchmark:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
