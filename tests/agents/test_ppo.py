"""One update of PPO, piece by piece."""

import math

import pytest
import torch

from drl_agents.agents import AgentA2C, AgentPPO
from drl_agents.agents.AgentPPO import Samples, standardize
from tests.support.agent_args import make_agent
from tests.support.toy_envs import CUTS, LENGTHS, ToyBatch, ToyBatchWithSlots, count_readings


def explored(agent_class=AgentPPO, horizon=16, lengths=LENGTHS, cuts=CUTS, **settings):
    env = ToyBatchWithSlots(lengths, cuts)
    agent = make_agent(agent_class, env, **settings)
    return agent, agent.explore_vec_env(env, horizon)


def numbered_samples(n: int) -> Samples:
    rows = torch.arange(n, dtype=torch.float32)
    return Samples(rows[:, None], rows[:, None], rows, rows, rows)


@pytest.mark.parametrize(("n", "parts"), [(12, 3), (13, 4), (5, 5), (7, 1)])
def test_an_epochs_minibatches_hold_every_sample_once(n, parts):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    batches = list(numbered_samples(n).minibatches(parts, order))
    assert len(batches) == parts
    assert sorted(torch.cat([b.targets for b in batches]).tolist()) == list(range(n))
    assert all(torch.equal(b.states[:, 0], b.targets) and torch.equal(b.logprobs, b.targets) for b in batches)
    assert max(len(b) for b in batches) - min(len(b) for b in batches) <= 1


def test_every_epoch_visits_every_sample_once_in_an_order_of_its_own(monkeypatch):
    agent, items = explored(batch_size=8, repeat_times=3)
    orders, minibatches = [], Samples.minibatches

    def watched(samples, n, order, room):
        orders.append(order)
        return minibatches(samples, n, order, room)

    monkeypatch.setattr(Samples, "minibatches", watched)
    agent.update_net(items)
    assert [sorted(order.tolist()) for order in orders] == [list(range(32))] * 3
    assert len({tuple(order.tolist()) for order in orders}) == 3


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize(("horizon", "batch_size", "epochs"), [(16, 8, 3), (15, 8, 1), (4, 64, 5)])
def test_gradient_steps_follow_the_samples(n_envs, horizon, batch_size, epochs):
    agent, items = explored(
        horizon=horizon, lengths=[[5]] * n_envs, cuts=[[True]] * n_envs, batch_size=batch_size, repeat_times=epochs
    )
    agent.update_net(items)
    assert agent.gradient_steps == epochs * math.ceil(horizon * n_envs / batch_size)
    assert agent.last_update.gradient_steps == agent.gradient_steps


def test_advantages_bootstrap_at_truncation_and_not_at_terminals():
    agent, (states, actions, logprobs, rewards, undones) = explored(
        normalize_observations=False, normalize_values=False, gamma=0.9, lambda_gae_adv=0.8, horizon=8
    )
    with torch.no_grad():
        for linear in agent.cri.net:  # a critic with opinions
            if isinstance(linear, torch.nn.Linear):
                torch.nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(1))
        samples = agent._samples(states, actions, logprobs, rewards, undones)
        value = agent.cri
        expected = torch.zeros(8, 2)
        for i in range(2):
            following = 0.0
            for t in reversed(range(8)):
                done, cut = undones[t, i] == 0, agent.rollout.truncated[t, i]
                next_state = agent.rollout.final_states[t, i] if done else agent.rollout.states[t + 1, i]
                next_value = 0.0 if done and not cut else value(next_state[None]).item()
                delta = rewards[t, i].item() + 0.9 * next_value - value(states[t, i][None]).item()
                following = delta + (0.0 if done else 0.9 * 0.8 * following)
                expected[t, i] = following
    torch.testing.assert_close(samples.advantages.view(8, 2), standardize(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("planted", ["ends ignored", "truncation as terminal", "next episode's state"])
def test_planted_mistakes_change_the_advantages(planted):
    agent, items = explored(horizon=8, normalize_observations=False, normalize_values=False)
    # By an early update the critic has an opinion on the states; a fresh one is near 0 everywhere.
    agent.update_net(items)
    right = agent._samples(*items).advantages
    if planted == "ends ignored":
        items = (*items[:4], torch.ones_like(items[4]))
    elif planted == "truncation as terminal":
        agent.rollout.truncated.zero_()
    else:
        agent.rollout.final_states.copy_(agent.rollout.states[1:])
    assert not torch.allclose(agent._samples(*items).advantages, right, atol=1e-6)


def test_a_foreign_buffer_ends_in_terminals():
    agent, items = explored(horizon=8, normalize_observations=False)
    copies = tuple(item.clone() for item in items)
    assert not agent._values(copies[0], copies[4] == 0)[3].any()
    assert agent._values(items[0], items[4] == 0)[3].any()


def test_the_ratio_is_one_before_the_first_step():
    agent, items = explored(horizon=16)
    for _ in range(2):
        samples = agent._samples(*items)
        mean, log_std = agent.act.net(samples.states), agent.act.action_std_log
        dist = torch.distributions.Normal(mean, log_std.exp())
        torch.testing.assert_close(dist.log_prob(samples.actions).sum(1), samples.logprobs, rtol=1e-4, atol=1e-4)
        agent.update_net(items)
        env = ToyBatch()
        items = agent.explore_vec_env(env, 16)


@pytest.mark.parametrize("target_kl", [None, 1e9])
def test_readings_from_the_device_do_not_grow_with_the_minibatches(monkeypatch, target_kl):
    def readings(batch_size):
        # By autograd, as on a device; gradients by hand are for the CPU.
        agent, items = explored(batch_size=batch_size, repeat_times=3, target_kl=target_kl, gradients="autograd")
        with monkeypatch.context() as patch:
            counted = count_readings(patch)
            agent.update_net(items)
        return len(counted)

    assert readings(4) == readings(32)
    # The truncated rows and the statistics; the divergence of each of 3 epochs.
    assert readings(4) == (2 if target_kl is None else 2 + 3)


def test_the_clipped_surrogate_by_hand():
    agent, _ = explored(ratio_clip=0.2)
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    samples = Samples(torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4), advantages, torch.zeros(4))
    loss, kl, clipped = agent._policy_loss(ratio.log(), samples)
    # min(ratio * adv, clip(ratio) * adv) = 1.2, -1.5, 0.5, -0.8
    assert loss.item() == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)
    assert kl.item() == pytest.approx((ratio - 1 - ratio.log()).mean().item())
    assert clipped.item() == 1.0


def test_a2c_follows_the_plain_policy_gradient():
    agent, _ = explored(AgentA2C)
    logprob = torch.tensor([0.3, -0.2], requires_grad=True)
    old_logprobs, advantages = torch.tensor([5.0, -5.0]), torch.tensor([2.0, -1.0])
    samples = Samples(torch.zeros(2, 3), torch.zeros(2, 2), old_logprobs, advantages, torch.zeros(2))
    agent._policy_loss(logprob, samples)[0].backward()
    assert logprob.grad.tolist() == [-1.0, 0.5]


def test_the_target_divergence_stops_the_epochs():
    agent, items = explored(repeat_times=10, target_kl=1e-9, learning_rate=1e-2, batch_size=8)
    agent.update_net(items)
    assert agent.last_update.epochs < 10
    patient, items = explored(repeat_times=10, target_kl=1e9, learning_rate=1e-2, batch_size=8)
    patient.update_net(items)
    assert patient.last_update.epochs == 10


def test_the_gradient_is_clipped_to_its_norm():
    agent, items = explored(clip_grad_norm=1e-3, batch_size=1000, repeat_times=1)
    agent.update_net(items)
    assert agent.last_update.gradient_norm > 1e-3
    total = torch.stack([p.grad.norm() for p in agent.trained_parameters]).norm()
    assert total.item() == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_falls_linearly():
    # What counts is what was spent before the rollout learned from; 4 rollouts of 16 steps are the budget of 64.
    agent, items = explored(lr_schedule="linear", learning_rate=1.0, break_step=64)
    rates = []
    for _ in range(5):  # elegantrl's loop goes one beyond
        agent.update_net(items)
        rates.append(agent.optimizer.param_groups[0]["lr"])
        items = agent.explore_vec_env(ToyBatch(), 16)
    assert rates == [1.0, 0.75, 0.5, 0.25, 0.0]


CHANGES = [
    {"gamma": 0.5}, {"lambda_gae_adv": 0.5}, {"ratio_clip": 0.001}, {"lambda_entropy": 0.5}, {"value_coef": 5.0},
    {"clip_grad_norm": 0.01}, {"repeat_times": 2}, {"batch_size": 4}, {"learning_rate": 1e-3}, {"adam_eps": 1e-2},
    {"action_std_init_log": -1.0}, {"random_seed": 1}, {"normalize_observations": False}, {"normalize_values": False},
]  # fmt: skip


def trained_weights(**settings):
    agent, items = explored(**{"batch_size": 8, **settings})
    agent.update_net(items)
    return torch.cat([p.detach().flatten() for p in agent.trained_parameters])


def test_the_same_settings_learn_the_same_bits():
    assert torch.equal(trained_weights(), trained_weights())


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_changes_what_is_learned(change):
    assert not torch.equal(trained_weights(), trained_weights(**change))


def test_the_entropy_bonus_widens_the_policy():
    def deviation(coefficient):
        agent, items = explored(lambda_entropy=coefficient, learning_rate=1e-2, repeat_times=5, batch_size=8)
        agent.update_net(items)
        return agent.act.action_std_log.mean().item()

    assert deviation(10.0) > deviation(0.0)
    assert deviation(10.0) > -0.5


def test_rescaling_the_value_normaliser_keeps_predictions():
    agent, items = explored()
    agent.update_net(items)
    states = torch.randn(10, 3)
    with torch.no_grad():
        before = agent.cri(states)
        agent.cri.rescale_values(torch.tensor([123.0]), torch.tensor([45.0]))
        torch.testing.assert_close(agent.cri(states), before, rtol=1e-4, atol=1e-3)


def test_constant_advantages_move_nothing():
    assert torch.equal(standardize(torch.full((4, 2), 3.0)), torch.zeros(4, 2))
