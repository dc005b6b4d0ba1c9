"""Stopping and going on: the whole training state, without pickles."""

import pytest
import torch

from drl_agents.agents import AGENTS
from drl_agents.agents.agent_state import AgentStateError
from drl_agents.agents.AgentBase import STATE_FILE
from tests.support.agent_args import make_agent
from tests.support.toy_envs import ToyBatch

LENGTHS, CUTS = [[3, 4], [5]], [[True, False], [False]]


def weights(agent):
    return torch.cat([p.detach().flatten() for net in (agent.act, agent.cri) for p in net.parameters()])


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_a_reloaded_agent_goes_on_as_the_old_one_would(name, tmp_path):
    env = ToyBatch(LENGTHS, CUTS)
    agent = make_agent(AGENTS[name], env, batch_size=8)
    for _ in range(2):
        agent.update_net(agent.explore_vec_env(env, 16))
    agent.save_or_load_agent(str(tmp_path), if_save=True)
    other_env = ToyBatch(LENGTHS, CUTS)
    other = make_agent(AGENTS[name], other_env, batch_size=8, random_seed=99)
    other.save_or_load_agent(str(tmp_path), if_save=False)
    other_env.episode, other_env.clock = list(env.episode), list(env.clock)
    other.last_state = env.reset()
    assert not (tmp_path / "act.pth").exists()
    for a, e in ((agent, env), (other, other_env)):
        a.update_net(a.explore_vec_env(e, 16))
    assert torch.equal(weights(agent), weights(other))
    assert other.gradient_steps == agent.gradient_steps


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg"])
def test_off_policy_networks_and_optimisers_come_back(name, tmp_path):
    env = ToyBatch(LENGTHS, CUTS)
    agent = make_agent(AGENTS[name], env, batch_size=8)
    agent.update_net(agent.explore_vec_env(env, 16))
    agent.save_or_load_agent(str(tmp_path), if_save=True)
    other = make_agent(AGENTS[name], ToyBatch(LENGTHS, CUTS), batch_size=8, random_seed=99)
    other.save_or_load_agent(str(tmp_path), if_save=False)
    assert torch.equal(weights(agent), weights(other))
    ours, theirs = agent.act_optimizer.state_dict()["state"], other.act_optimizer.state_dict()["state"]
    assert all(torch.equal(ours[i]["exp_avg"], theirs[i]["exp_avg"]) for i in ours)


def test_nothing_to_load_changes_nothing(tmp_path):
    agent = make_agent(AGENTS["ppo"], ToyBatch(LENGTHS, CUTS))
    before = weights(agent).clone()
    agent.save_or_load_agent(str(tmp_path), if_save=False)
    assert torch.equal(weights(agent), before)


def test_another_agents_state_is_refused_by_name(tmp_path):
    make_agent(AGENTS["ppo"], ToyBatch(LENGTHS, CUTS)).save_or_load_agent(str(tmp_path), if_save=True)
    other = make_agent(AGENTS["ppo"], ToyBatch(LENGTHS, CUTS), net_dims=(8, 8))
    with pytest.raises(AgentStateError, match=STATE_FILE):
        other.save_or_load_agent(str(tmp_path), if_save=False)
    (tmp_path / STATE_FILE).write_bytes(b"\x00" * 40)
    with pytest.raises(AgentStateError, match="not a whole"):
        other.save_or_load_agent(str(tmp_path), if_save=False)
