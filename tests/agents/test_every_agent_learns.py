"""Each agent on a task that takes seconds: say the number you are shown. And SAC's densities against torch's own."""

import pytest
import torch
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from benchmarks.planted_markets import AnnouncedMarket
from drl_agents.agents import AGENTS
from drl_agents.agents.nets import ActorSAC
from tests.support.agent_args import REWARD_AGENTS, make_agent
from train.config import TrainConfig
from train.evaluator import evaluate_policy, mean_growth
from train.run import train_policy


class Echo:
    """State (N, 2) uniform in [-0.8, 0.8]; reward is minus the squared distance of the action to the state's half.

    The reward is for the state before the step, and episodes are cut off after five steps.
    """

    if_discrete = False
    state_dim, action_dim, max_step, num_envs = 2, 2, 5, 16
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.clock = 0

    def reset(self):
        self.state = torch.rand(16, 2, generator=self.generator) * 1.6 - 0.8
        return self.state

    def step(self, action):
        reward = -(action - self.state).square().sum(1)
        self.clock += 1
        done = torch.full((16,), self.clock % 5 == 0)
        final = torch.rand(16, 2, generator=self.generator) * 1.6 - 0.8
        state = self.reset() if done[0] else final
        self.state = state
        return state, reward, done, {"truncated": done, "final_state": final}


BUDGETS = {
    "ppo": (50, {"batch_size": 128, "repeat_times": 8, "learning_rate": 2e-3, "lambda_entropy": 0.0}),
    "a2c": (100, {"batch_size": 128, "repeat_times": 2, "learning_rate": 2e-3, "lambda_entropy": 0.0}),
    "sac": (12, {"batch_size": 64, "repeat_times": 0.25, "learning_rate": 2e-3}),
    "td3": (12, {"batch_size": 64, "repeat_times": 0.25, "learning_rate": 2e-3, "explore_noise_std": 0.3}),
    "ddpg": (12, {"batch_size": 64, "repeat_times": 0.25, "learning_rate": 2e-3, "explore_noise_std": 0.3}),
}


@pytest.mark.parametrize("name", REWARD_AGENTS)
def test_it_learns_to_repeat_what_it_sees(name):
    rollouts, settings = BUDGETS[name]
    env = Echo()
    agent = make_agent(AGENTS[name], env, net_dims=(32, 32), gamma=0.5, soft_update_tau=0.02, **settings)
    if name in ("sac", "td3", "ddpg"):
        agent.explore_vec_env(env, 32, if_random=True)
    for _ in range(rollouts):
        agent.update_net(agent.explore_vec_env(env, 32))
    states = torch.rand(500, 2, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    error = (agent.policy()(states) - states).square().mean().item()
    assert error < 0.03  # saying nothing costs 0.21


def test_sacs_densities_are_those_of_a_squashed_gaussian():
    torch.manual_seed(0)
    actor = ActorSAC([8, 8], 3, 2)
    states, noise = torch.randn(50, 3), torch.randn(50, 2)
    action, logprob = actor.sample(states, noise)
    mean, log_std = actor.net_a(actor.net_s(states)).chunk(2, dim=1)
    theirs = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    torch.testing.assert_close(logprob, theirs.log_prob(action.clamp(-0.99999, 0.99999)).sum(1), rtol=1e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("rise", "volatility"), [(0.0015, 0.005), (0.0008, 0.005), (0.0004, 0.004)])
def test_the_band_learns_to_follow_an_announced_trend_through_its_fees(rise, volatility, tmp_path):
    """Costs are 30 bp a trade. Of the growth of the rule that is known to be best, on bars that it never saw."""
    market = AnnouncedMarket(rise=rise, fall=-rise, volatility=volatility, n_noise_features=4)
    train, validation, test = (market.config(*size) for size in ((10_000, 1), (1_500, 2), (3_000, 3)))
    settings = TrainConfig(
        agent="band", n_envs=8, total_env_steps=3_000_000, net_dims=(64, 64), learning_rate=3e-3, fee_ramp=0.5,
        weight_decay=0.3, eval_every_updates=60,
    )  # fmt: skip
    params = {"rules": "standard", "lookback": 2, "norm_action": 1.0}
    result = train_policy(settings, train, params, tmp_path, validation_config=validation)
    best, found = (mean_growth(evaluate_policy(act, test, params)) for act in (market.follow, result.best_policy))
    assert found > 0.9 * best > 0.0
