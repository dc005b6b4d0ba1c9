"""Graphs of a rollout: what is recorded, when it is replayed, and that it is the eager loop. No GPU is needed."""

from typing import ClassVar

import pytest
import torch

from drl_agents.agents import AgentPPO
from drl_agents.agents.step_graphs import StepGraphs
from tests.support.agent_args import make_agent
from tests.support.toy_envs import ToyBatchWithSlots


class Recorded:
    """Keeps what it is to record, does it when it is replayed, and counts."""

    made: ClassVar[list] = []

    def __init__(self):
        self.replays = 0
        Recorded.made.append(self)

    def capture(self, work):
        self.work = work

    def replay(self):
        self.replays += 1
        self.work()


class Capturable(ToyBatchWithSlots):
    is_capturable = True


@pytest.fixture(autouse=True)
def _no_graphs():
    Recorded.made = []


def graphed(env_class=Capturable):
    env = env_class()
    agent = make_agent(AgentPPO, env, batch_size=8)
    agent.graphs = StepGraphs(Recorded)
    return env, agent


def rollouts(env, agent, n=4, horizon=8):
    found = []
    for _ in range(n):
        items = agent.explore_vec_env(env, horizon)
        rollout = agent.rollout
        found.append([x.clone() for x in (*items, rollout.truncated, rollout.done, agent.last_state)])
        agent.update_net(items)
    return found


@pytest.mark.parametrize("chunk_steps", [3, 8, 256])
def test_replayed_rollouts_are_the_eager_ones(chunk_steps, monkeypatch):
    monkeypatch.setattr("drl_agents.agents.step_graphs.CHUNK_STEPS", chunk_steps)
    env, agent = graphed()
    eager_env = Capturable()
    eager = make_agent(AgentPPO, eager_env, batch_size=8)
    assert eager.graphs is None
    for ours, theirs in zip(rollouts(env, agent), rollouts(eager_env, eager), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # The first rollout is eager; every later one replays the same graphs, with weights that updates changed.
    assert [graph.replays for graph in Recorded.made] == [3] * -(-8 // chunk_steps)


def test_an_environment_that_does_not_say_so_is_not_recorded():
    rollouts(*graphed(ToyBatchWithSlots))
    assert Recorded.made == []


def test_another_storage_environment_or_policy_is_recorded_anew():
    env, agent = graphed()
    rollouts(env, agent, 2)
    assert len(Recorded.made) == 1
    rollouts(env, agent, 2, horizon=6)
    assert len(Recorded.made) == 2
    rollouts(Capturable(), agent, 2, horizon=6)
    assert len(Recorded.made) == 3
    agent.act.net[0].weight.data = agent.act.net[0].weight.data.clone()  # other memory
    rollouts(env, agent, 3, horizon=6)  # the first update takes the weights back into the optimizer's buffer
    assert len(Recorded.made) == 4
    assert [graph.replays for graph in Recorded.made] == [1] * 4


def test_what_a_graph_reads_stays_where_it_is():
    env, agent = graphed()
    places = []
    for items in (agent.explore_vec_env(env, 8), agent.explore_vec_env(env, 8)):
        forward = agent.forward
        read = [forward.average, forward.std, forward.state]
        read += [agent.exploring_std, agent.env_action, agent.rollout.floats]
        read += [tensor for layer in forward.layers for tensor in (layer.weight, layer.bias, layer.output)]
        places.append([tensor.data_ptr() for tensor in read])
        agent.update_net(items)
    assert places[0] == places[1]


def test_random_warm_ups_are_not_recorded():
    from drl_agents.agents import AgentSAC

    env = Capturable()
    agent = make_agent(AgentSAC, env)
    agent.graphs = StepGraphs(Recorded)
    for _ in range(3):
        agent.explore_vec_env(env, 8, if_random=True)
    assert Recorded.made == []


class Refusing(Recorded):
    """Fails as a driver or a full memory does."""

    def capture(self, work):
        raise RuntimeError("operation not permitted when stream is capturing")


def test_rollouts_stay_eager_where_recording_fails():
    env, agent = graphed()
    agent.graphs = StepGraphs(Refusing)
    eager_env = Capturable()
    eager = make_agent(AgentPPO, eager_env, batch_size=8)
    for ours, theirs in zip(rollouts(env, agent), rollouts(eager_env, eager), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(Recorded.made) == 1, "asked once"
