"""The replay memory holds true transitions, at ends of episodes and at its own seam."""

import pytest
import torch

from drl_agents.agents import AGENTS, AgentSAC
from drl_agents.agents.replay import Replay
from tests.support.agent_args import make_agent
from tests.support.toy_envs import CUTS, LENGTHS, ToyBatch, ToyBatchWithSlots, count_readings


def transitions(replay: Replay) -> dict[tuple, tuple]:
    """(environment, episode, clock) -> (successor, continues) of everything stored."""
    stored = {}
    for state, successor, go_on in zip(
        replay.states[: replay.filled].flatten(0, 1), replay.next_states[: replay.filled].flatten(0, 1),
        replay.continues[: replay.filled].flatten(), strict=True,
    ):  # fmt: skip
        stored[tuple(state.int().tolist())] = (tuple(successor.int().tolist()), bool(go_on))
    return stored


@pytest.mark.parametrize("env_class", [ToyBatch, ToyBatchWithSlots])
@pytest.mark.parametrize("capacity", [1000, 14])  # 14: the ring of 7 rows overflows twice
def test_every_successor_belongs_to_the_same_episode(env_class, capacity):
    env = env_class()
    agent = make_agent(AgentSAC, env, buffer_size=capacity)
    for _ in range(4):
        agent.explore_vec_env(env, 5)
    stored = transitions(agent.replay)
    assert len(stored) == min(capacity, 40)
    for (i, episode, clock), (successor, go_on) in stored.items():
        assert successor == (i, episode, clock + 1)
        length = LENGTHS[i][episode % len(LENGTHS[i])]
        is_terminal = clock + 1 == length and not CUTS[i][episode % len(CUTS[i])]
        assert go_on == (not is_terminal)


def test_the_ring_keeps_the_latest_rows():
    env = ToyBatch()
    agent = make_agent(AgentSAC, env, buffer_size=14)
    for _ in range(3):
        agent.explore_vec_env(env, 5)
    seen = {key for key in transitions(agent.replay) if key[0] == 1}
    everything = [(1, step // 5, step % 5) for step in range(15)]
    assert seen == set(everything[-7:])


def test_of_a_rollout_longer_than_the_ring_the_end_is_kept():
    env = ToyBatch()
    agent = make_agent(AgentSAC, env, buffer_size=8)
    agent.explore_vec_env(env, 10)
    assert {key for key in transitions(agent.replay) if key[0] == 1} == {(1, 1, clock) for clock in (1, 2, 3, 4)}


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
def test_target_networks_follow_by_their_fraction(name):
    env = ToyBatch([[50]], [[True]])
    agent = make_agent(AGENTS[name], env, batch_size=16, repeat_times=0.05, soft_update_tau=0.25, learning_rate=1e-2)
    agent.explore_vec_env(env, 20)
    before = [p.detach().clone() for p in agent.cri_target.parameters()]
    agent.update_net()  # one step
    for old, now, current in zip(before, agent.cri_target.parameters(), agent.cri.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.25 * (current - old))
    assert agent.gradient_steps == 1
    assert (agent.act_target is agent.act) == (name == "sac")


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
def test_critics_learn_the_bellman_targets_of_their_paper(name, monkeypatch):
    env = ToyBatch()
    agent = make_agent(AGENTS[name], env, gamma=0.9, batch_size=32)
    agent.explore_vec_env(env, 20)
    states, actions, rewards, continues, next_states = agent.replay.sample(32, torch.Generator().manual_seed(3))
    given = []
    monkeypatch.setattr(agent, "_learn_critic", lambda s, a, targets: given.append(targets) or torch.zeros(()))
    noise = torch.randn(32, 2, generator=torch.Generator().manual_seed(5))
    agent.generator.manual_seed(5)
    with torch.no_grad():
        if name == "sac":
            next_actions, logprob = agent.act.sample(next_states, noise)
            bonus = -agent.alpha_log.exp() * logprob
        else:
            smoothing = (noise * agent.policy_noise_std).clamp(-0.5, 0.5)
            next_actions, bonus = (agent.act_target(next_states) + smoothing).clamp(-1, 1), 0.0
        smaller = torch.stack(agent.cri_target.q_values(next_states, next_actions)).min(0).values
        expected = rewards + 0.9 * continues * (smaller + bonus)
    agent._gradient_step(0, states, actions, rewards, continues, next_states)
    torch.testing.assert_close(given[0], expected)
    assert (continues == 0).any()


def test_every_row_can_be_sampled():
    env = ToyBatch()
    agent = make_agent(AgentSAC, env, buffer_size=1000)
    agent.explore_vec_env(env, 6)
    states, *_ = agent.replay.sample(2000, torch.Generator().manual_seed(0))
    assert len(states.unique(dim=0)) == 12


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
def test_gradient_steps_follow_the_samples(name):
    for n_envs in (1, 4):
        env = ToyBatch([[50]] * n_envs, [[True]] * n_envs)
        agent = make_agent(AGENTS[name], env, batch_size=16, repeat_times=0.5)
        agent.explore_vec_env(env, 20, if_random=True)  # warm-up samples are not paid for
        agent.update_net(agent.explore_vec_env(env, 20))
        assert agent.gradient_steps == 20 * n_envs // 2


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
def test_fractions_of_a_gradient_step_are_owed_and_nothing_is_learned_for_less(name):
    env = ToyBatch([[50]] * 2, [[True]] * 2)
    agent = make_agent(AGENTS[name], env, batch_size=8, repeat_times=0.1)
    agent.explore_vec_env(env, 3)
    assert agent.update_net() == (0.0, 0.0, 0.0)  # 6 samples owe 0.6 steps
    assert agent.gradient_steps == 0
    steps, losses = [], []
    for _ in range(9):
        agent.explore_vec_env(env, 3)
        losses.append(agent.update_net())
        steps.append(agent.gradient_steps)
    assert steps == [int(0.6 * k + 1e-9) for k in range(2, 11)]
    assert losses[1] == losses[0] or steps[1] > steps[0]
    assert agent.update_net() == losses[-1]


@pytest.mark.parametrize("steps_per_update", [1, 3, 4])
def test_td3s_actor_moves_every_second_step_whatever_the_updates_are_cut_into(steps_per_update, monkeypatch):
    env = ToyBatch([[50]], [[True]])
    agent = make_agent(AGENTS["td3"], env, batch_size=8, repeat_times=1.0)
    objectives, moved, learn = [], [], agent._learn_actor
    monkeypatch.setattr(agent, "_learn_actor", lambda states: moved.append(learn(states)) or moved[-1])
    for _ in range(12 // steps_per_update):
        agent.explore_vec_env(env, steps_per_update)
        before = len(moved)
        objectives.append((agent.update_net()[1], moved[before:]))
    assert agent.gradient_steps == 12
    assert len(moved) == 6
    for reported, own in objectives:
        if own:
            assert reported == pytest.approx(torch.stack(own).mean().item(), rel=1e-5)
    if steps_per_update == 1:  # an update without an actor step repeats the last objective
        assert [value for value, _ in objectives[::2]] == [value for value, _ in objectives[1::2]]


def test_every_optimizer_of_sac_follows_the_schedule():
    env = ToyBatch([[50]], [[True]])
    agent = make_agent(AgentSAC, env, batch_size=8, learning_rate=1e-3, lr_schedule="linear", break_step=16)
    agent.explore_vec_env(env, 64, if_random=True)
    for share_left in (1.0, 0.5):
        agent.explore_vec_env(env, 8)
        agent.update_net()
        rates = [group["lr"] for optimizer in agent.optimizers().values() for group in optimizer.param_groups]
        assert rates == [pytest.approx(1e-3 * share_left)] * 3


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
def test_a_prioritized_replay_is_refused(name):
    with pytest.raises(ValueError, match="if_use_per must be False"):
        make_agent(AGENTS[name], ToyBatch(), if_use_per=True)


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
def test_an_update_reads_from_the_device_once(name, monkeypatch):
    env = ToyBatch()
    agent = make_agent(AGENTS[name], env, batch_size=8, repeat_times=1.0)
    agent.explore_vec_env(env, 8)
    counted = count_readings(monkeypatch)
    agent.update_net()
    assert agent.gradient_steps == 16
    assert len(counted) == 1
