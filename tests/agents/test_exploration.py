"""What the two exploration loops store, against environments whose every number is known."""

import numpy as np
import pytest
import torch

from drl_agents.agents import AGENTS, AgentPPO, AgentSAC
from drl_agents.agents.rollout import Rollout, writes_into_slots
from tests.support.agent_args import REWARD_AGENTS, make_agent
from tests.support.toy_envs import ToyBatch, ToyBatchWithSlots, ToySingle, count_readings


def test_states_rewards_and_ends_are_stored_in_time_order():
    agent = make_agent(AgentPPO, ToyBatchWithSlots())
    env = ToyBatchWithSlots()
    states, _, _, rewards, undones = agent.explore_vec_env(env, 8)
    assert states[:, 0, 1:].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [1, 3], [2, 0]]
    assert rewards[:, 0].tolist() == [0, 1, 2, 10, 11, 12, 13, 20]
    assert rewards[:, 1].tolist() == [100, 101, 102, 103, 104, 110, 111, 112]
    assert (undones[:, 0] == 0).nonzero().flatten().tolist() == [2, 6]
    assert agent.rollout.truncated[:, 0].nonzero().flatten().tolist() == [2]
    assert agent.rollout.final_states[2, 0].tolist() == [0, 0, 3]
    assert agent.last_state.tolist() == [[0, 2, 1], [1, 1, 3]]


def test_elegantrls_tuples():
    env = ToyBatch()
    states, actions, logprobs, rewards, undones = make_agent(AgentPPO, env).explore_vec_env(env, 6)
    assert [tuple(x.shape) for x in (states, actions, logprobs, rewards, undones)] == [
        (6, 2, 3), (6, 2, 2), (6, 2), (6, 2), (6, 2)
    ]  # fmt: skip
    assert undones.dtype == torch.float32
    assert len(make_agent(AgentSAC, env).explore_vec_env(env, 6, if_random=True)) == 4


@pytest.mark.parametrize("name", REWARD_AGENTS)
def test_slots_or_copies_make_no_difference(name):
    items = []
    for env_class in (ToyBatch, ToyBatchWithSlots):
        env = env_class()
        agent = make_agent(AGENTS[name], env)
        items.append((*agent.explore_vec_env(env, 8), agent.rollout.truncated))
    assert writes_into_slots(ToyBatchWithSlots(), torch.device("cpu"))
    assert not writes_into_slots(ToyBatch(), torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(*items, strict=True))


@pytest.mark.parametrize("name", REWARD_AGENTS)
def test_one_environment_alone_stores_what_a_batch_of_one_stores(name):
    single, batch = ToySingle(), ToyBatch([[3, 4]], [[True, False]])
    alone, batched = make_agent(AGENTS[name], single), make_agent(AGENTS[name], batch)
    for _ in range(2):
        for a, b in zip(alone.explore_one_env(single, 8), batched.explore_vec_env(batch, 8), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(alone.rollout.truncated, batched.rollout.truncated)
        ended = alone.rollout.done
        assert torch.equal(alone.rollout.final_states[ended], batched.rollout.final_states[ended])
        assert torch.equal(alone.last_state, batched.last_state)


def test_storage_is_allocated_once_and_rollouts_join_up():
    env = ToyBatchWithSlots()
    agent = make_agent(AgentPPO, env)
    first = agent.explore_vec_env(env, 5)
    end, address = agent.last_state.clone(), first[0].data_ptr()
    second = agent.explore_vec_env(env, 5)
    assert second[0].data_ptr() == address
    assert torch.equal(second[0][0], end)


def test_logprobs_are_those_of_the_stored_actions():
    env = ToyBatch()
    agent = make_agent(AgentPPO, env)
    states, actions, logprobs, _, _ = agent.explore_vec_env(env, 8)
    again, _ = agent.act.get_logprob_entropy(states.flatten(0, 1), actions.flatten(0, 1))
    torch.testing.assert_close(logprobs.flatten(), again, rtol=1e-5, atol=1e-5)
    executed = torch.stack(env.actions)
    assert torch.equal(executed, actions.tanh())


def test_off_policy_agents_store_the_executed_action():
    for name in ("sac", "td3", "ddpg"):
        env = ToyBatch()
        agent = make_agent(AGENTS[name], env)
        _, actions, _, _ = agent.explore_vec_env(env, 8)
        assert torch.equal(torch.stack(env.actions), actions)
        _, warm_up, _, _ = agent.explore_vec_env(env, 64, if_random=True)
        assert warm_up.abs().max() <= 1.0
        assert warm_up.std().item() == pytest.approx(1.0 / np.sqrt(3.0), rel=0.15)


def test_exploring_leaves_the_global_generators_alone():
    env = ToyBatch()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    agent = make_agent(AgentPPO, env)
    agent.update_net(agent.explore_vec_env(env, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_environment_that_names_no_truncation_ends_in_terminals():
    class Silent(ToyBatch):
        def step(self, action):
            state, reward, done, _ = super().step(action)
            return state, reward, done, {}

    env = Silent()
    agent = make_agent(AgentPPO, env)
    agent.explore_vec_env(env, 8)
    assert agent.rollout.done.any()
    assert not agent.rollout.truncated.any()


def test_a_missing_first_state_is_named():
    env = ToyBatch()
    agent = make_agent(AgentPPO, env)
    agent.last_state = None
    with pytest.raises(RuntimeError, match="last_state"):
        agent.explore_vec_env(env, 4)


@pytest.mark.parametrize("name", REWARD_AGENTS)
def test_a_first_state_may_be_numpy(name):
    single, batch = ToySingle(), ToyBatch()
    for env, explore in ((single, "explore_one_env"), (batch, "explore_vec_env")):
        given, expected = make_agent(AGENTS[name], env), make_agent(AGENTS[name], env)
        given.last_state = np.asarray(env.reset(), dtype=np.float64)
        start = expected.last_state.clone()
        assert torch.equal(getattr(given, explore)(env, 4)[0][0], start)


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_on_policy_agents_refuse_random_actions_before_anything_is_stepped(name):
    env = ToyBatch()
    agent = make_agent(AGENTS[name], env)
    with pytest.raises(ValueError, match="if_random=False"):
        agent.explore_vec_env(env, 4, if_random=True)
    assert env.actions == []


class Constant(ToyBatch):
    """Steps without looking at anything, as a simulator on a GPU does."""

    def __init__(self):
        super().__init__([[9], [9]], [[True], [True]])
        self.answer = (torch.rand(2, 3), torch.rand(2), torch.tensor([True, False]))
        self.info = {"truncated": torch.tensor([True, False]), "final_state": torch.rand(2, 3)}

    def step(self, action):
        return *self.answer, self.info


@pytest.mark.parametrize("name", REWARD_AGENTS)
def test_nothing_is_read_back_while_exploring(name, monkeypatch):
    agent = make_agent(AGENTS[name], Constant())
    agent.explore_vec_env(Constant(), 8)
    counted = count_readings(monkeypatch)
    agent.explore_vec_env(Constant(), 8)
    assert counted == []


def test_the_fields_of_a_rollout_do_not_overlap():
    rollout = Rollout(5, 2, 3, 2, torch.device("cpu"))
    fields = (rollout.states, rollout.final_states, rollout.actions, rollout.noise, rollout.rewards)
    for i, field in enumerate(fields):
        field.fill_(i + 1.0)
    assert [field.unique().tolist() for field in fields] == [[1.0], [2.0], [3.0], [4.0], [5.0]]
    copy = Rollout(5, 2, 3, 2, torch.device("cpu"))
    copy.copy_from(rollout)
    assert torch.equal(copy.actions, rollout.actions)
