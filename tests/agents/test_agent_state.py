"""Stopping and going on: the whole training state, without pickles."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from drl_agents.agents import AGENTS
from drl_agents.agents.agent_state import AgentStateError, _tensors
from drl_agents.agents.AgentBase import STATE_FILE
from tests.support.agent_args import make_agent
from tests.support.toy_envs import ToyBatch


def weights(agent):
    return torch.cat([p.detach().flatten() for net in (agent.act, agent.cri) for p in net.parameters()])


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_a_reloaded_agent_goes_on_as_the_old_one_would(name, tmp_path):
    env = ToyBatch()
    agent = make_agent(AGENTS[name], env, batch_size=8)
    for _ in range(2):
        agent.update_net(agent.explore_vec_env(env, 16))
    agent.save_or_load_agent(str(tmp_path), if_save=True)
    other_env = ToyBatch()
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
    env = ToyBatch()
    agent = make_agent(AGENTS[name], env, batch_size=8)
    agent.repeat_times = 0.08  # 2.56 steps: a fraction stays owed
    agent.update_net(agent.explore_vec_env(env, 16))
    agent.save_or_load_agent(str(tmp_path), if_save=True)
    other = make_agent(AGENTS[name], ToyBatch(), batch_size=8, random_seed=99)
    other.save_or_load_agent(str(tmp_path), if_save=False)
    assert torch.equal(weights(agent), weights(other))
    ours, theirs = agent.act_optimizer.state_dict()["state"], other.act_optimizer.state_dict()["state"]
    assert all(torch.equal(ours[i]["exp_avg"], theirs[i]["exp_avg"]) for i in ours)
    assert other.owed_steps == agent.owed_steps


def test_nothing_to_load_changes_nothing(tmp_path):
    agent = make_agent(AGENTS["ppo"], ToyBatch())
    before = weights(agent).clone()
    agent.save_or_load_agent(str(tmp_path), if_save=False)
    assert torch.equal(weights(agent), before)


def test_another_agents_state_is_refused_by_name(tmp_path):
    make_agent(AGENTS["ppo"], ToyBatch()).save_or_load_agent(str(tmp_path), if_save=True)
    other = make_agent(AGENTS["ppo"], ToyBatch(), net_dims=(8, 8))
    with pytest.raises(AgentStateError, match=STATE_FILE):
        other.save_or_load_agent(str(tmp_path), if_save=False)
    (tmp_path / STATE_FILE).write_bytes(b"\x00" * 40)
    with pytest.raises(AgentStateError, match="not a complete"):
        other.save_or_load_agent(str(tmp_path), if_save=False)


def everything(agent):
    return {name: value.detach().clone() for name, value in _tensors(agent).items()}


SPOILT = {
    "another agent's name": (None, None),
    "act.net.0.weight": ("missing", "act.net.0.weight"),
    "an unknown tensor": ("unknown", "optimizer.optimizer.99.exp_avg"),
    "a moment missing": ("missing", "optimizer.optimizer.0.exp_avg"),
    "a step missing": ("missing", "optimizer.optimizer.0.step"),
    "a moment of another shape": (lambda x: x[:-1], "optimizer.optimizer.0.exp_avg_sq"),
    "a moment of another type": (lambda x: x.double(), "optimizer.optimizer.0.exp_avg"),
    "a moment that is not finite": (lambda x: x * torch.nan, "optimizer.optimizer.0.exp_avg"),
    "a negative second moment": (lambda x: x - 1.0, "optimizer.optimizer.0.exp_avg_sq"),
    "weights of another type": (lambda x: x.half(), "act.net.0.weight"),
    "weights that are not finite": (lambda x: x + torch.inf, "cri.net.0.weight"),
    "a negative counter": (lambda x: x - 1000, "counter.gradient_steps"),
    "a negative count": (lambda x: -x, "obs_norm.count"),
    "a generator of another length": (lambda x: x[:-1], "generator"),
    "a generator's state that is none": (lambda x: torch.full_like(x, 255), "host_generator"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_state_that_cannot_be_used_changes_nothing(fault, tmp_path):
    how, key = SPOILT[fault]
    env = ToyBatch()
    agent = make_agent(AGENTS["ppo"], env, batch_size=8)
    agent.update_net(agent.explore_vec_env(env, 16))
    agent.save_or_load_agent(str(tmp_path), if_save=True)
    path = tmp_path / STATE_FILE
    tensors = load_file(path)
    if how == "missing":
        del tensors[key]
    elif how == "unknown":
        tensors[key] = torch.zeros(3)
    elif how is not None:
        tensors[key] = how(tensors[key]).contiguous()
    save_file(tensors, path, {"agent": "AgentA2C" if how is None else "AgentPPO"})
    other = make_agent(AGENTS["ppo"], ToyBatch(), batch_size=8, random_seed=99)
    before = everything(other)
    with pytest.raises(AgentStateError, match=key or "AgentA2C"):
        other.save_or_load_agent(str(tmp_path), if_save=False)
    after = everything(other)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_agent_that_never_learned_comes_back(tmp_path):
    make_agent(AGENTS["sac"], ToyBatch()).save_or_load_agent(str(tmp_path), if_save=True)
    other = make_agent(AGENTS["sac"], ToyBatch(), random_seed=99)
    other.save_or_load_agent(str(tmp_path), if_save=False)
    assert torch.equal(weights(other), weights(make_agent(AGENTS["sac"], ToyBatch())))
