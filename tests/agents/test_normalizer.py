"""Running statistics of observations."""

import math

import pytest
import torch

from drl_agents.agents import AGENTS, AgentPPO
from drl_agents.agents.normalizer import RunningNorm
from drl_agents.agents.rollout import PolicyForward
from drl_agents.policy_file import load_policy, save_policy
from tests.support.agent_args import REWARD_AGENTS, make_agent
from tests.support.toy_envs import ToyBatch

CPU = torch.device("cpu")


def test_batches_merge_to_the_statistics_of_all_rows():
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 1e-3]) + 7.0
    norm = RunningNorm(3, CPU)
    for part in rows.split([1, 9, 60, 30]):
        norm.update(part)
    torch.testing.assert_close(norm.mean, rows.double().mean(0))
    torch.testing.assert_close(norm.variance, rows.double().var(0, correction=0), rtol=1e-6, atol=1e-12)
    assert norm.count == 100


def test_a_constant_column_keeps_unit_scale():
    norm = RunningNorm(3, CPU)
    rows = torch.tensor([[1.0, 123456.7, 0.0], [2.0, 123456.7, 0.0], [3.0, 123456.7, 0.0]])
    norm.update(rows)
    norm.update(rows)
    assert norm.std()[1:].tolist() == [1.0, 1.0]
    assert norm.std()[0] < 1.0


def test_a_small_column_is_not_taken_for_constant():
    norm = RunningNorm(1, CPU)
    norm.update(torch.tensor([[1e-6], [3e-6]]))
    torch.testing.assert_close(norm.std(), torch.tensor([1e-6], dtype=torch.float64))


def test_normalised_observations_are_clipped_and_finite():
    env = ToyBatch([[5]], [[True]])
    agent = make_agent(AgentPPO, env)
    agent.update_net(agent.explore_vec_env(env, 20))
    far = agent.act.state_norm(torch.tensor([[1e9, -1e9, 0.0]]))
    assert far.abs().max() == 10.0


@pytest.mark.parametrize("name", REWARD_AGENTS)
def test_observations_that_are_not_normalised_are_not_clipped_either(name, tmp_path):
    env = ToyBatch([[5]], [[True]])
    agent = make_agent(AGENTS[name], env, normalize_observations=False, batch_size=8)
    agent.update_net(agent.explore_vec_env(env, 20))
    far = torch.tensor([[1e4, -1e4, 20.0], [1e4, -1e4, 30.0]])
    for net in (agent.act, agent.act_target, agent.cri, agent.cri_target):
        assert torch.equal(net.state_norm(far), far)
    policy = load_policy(save_policy(tmp_path / "p.safetensors", agent.policy()))
    assert policy.clip == math.inf
    with torch.no_grad():
        assert torch.equal(policy(far), agent.act(far))
    forward = PolicyForward((policy.state_avg, policy.state_std, policy.clip), policy.layers, 2, CPU)
    torch.testing.assert_close(forward(far).tanh(), policy(far))


def test_every_network_of_an_agent_normalises_alike_and_none_trains_it():
    env = ToyBatch([[5]], [[True]])
    agent = make_agent(AgentPPO, env)
    agent.update_net(agent.explore_vec_env(env, 20))
    assert torch.equal(agent.act.state_avg, agent.cri.state_avg)
    assert torch.equal(agent.act.state_std, agent.cri.state_std)
    assert agent.act.state_avg[2] != 0
    assert {"state_avg", "state_std"} <= set(dict(agent.act.named_buffers()))
    assert not {"state_avg", "state_std"} & set(dict(agent.act.named_parameters()))
