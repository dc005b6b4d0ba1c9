"""A host buffer is not written while a copy of it to the device is still under way."""

import sys

import pytest
import torch

from drl_agents import host_copies
from drl_agents.agents import AgentPPO
from drl_agents.host_copies import Staging, to_device
from tests.support.agent_args import make_agent
from tests.support.toy_envs import ToySingle


class SlowDevice:
    """Stands for a device's copy engine and its event: a copy runs when somebody waits for it, and not before."""

    def __init__(self):
        self.copies, self.n_recorded, self.n_waited = [], 0, 0

    def copy(self, target, source):
        self.copies.append((target, source))

    def record(self):
        self.n_recorded += 1

    def synchronize(self):
        self.n_waited += 1
        for target, source in self.copies:
            target.copy_(source)
        self.copies.clear()

    def staging(self):
        return Staging(self, self.copy, pin_memory=False)


@pytest.fixture(autouse=True)
def copies_are_plain_again():
    yield
    host_copies.use_asynchronous_copies(False)


def staged_agent(staging, monkeypatch):
    """An agent whose device is the CPU under another name, so that rollouts are staged on the host; its environment."""
    monkeypatch.setattr(sys.modules["drl_agents.agents.AgentBase"], "staging_for", lambda _device: staging)
    env = ToySingle()
    agent = make_agent(AgentPPO, env)
    agent.device = torch.device("cpu:0")
    return agent, env


def test_a_rollouts_host_buffer_is_written_again_only_after_its_copy_is_complete(monkeypatch):
    slow = SlowDevice()
    agent, env = staged_agent(slow.staging(), monkeypatch)
    agent.explore_one_env(env, 8)
    assert (slow.n_recorded, slow.n_waited, len(slow.copies)) == (1, 0, 2), "the copies were started, not awaited"
    first = agent.host_rollout.floats.clone()
    agent.last_state = agent.host_rollout.states[-1].clone()
    agent.explore_one_env(env, 8)
    assert (slow.n_recorded, slow.n_waited) == (2, 1)
    assert not torch.equal(agent.host_rollout.floats, first), "the second rollout must differ for the test to see it"
    assert torch.equal(agent.rollout.floats, first), "what arrived is the first rollout, whole"


def test_without_the_wait_the_second_rollout_overwrites_the_first(monkeypatch):
    slow = SlowDevice()
    staging = slow.staging()
    staging.wait = lambda: None
    agent, env = staged_agent(staging, monkeypatch)
    agent.explore_one_env(env, 8)
    first = agent.host_rollout.floats.clone()
    agent.last_state = agent.host_rollout.states[-1].clone()
    agent.explore_one_env(env, 8)
    slow.synchronize()
    assert not torch.equal(agent.rollout.floats, first)


def test_staged_plain_and_no_copies_give_the_same_rollout(monkeypatch):
    staged = Staging(SlowDevice(), host_copies.copy_without_waiting, pin_memory=False)
    items = []
    for staging, device in ((None, "cpu"), (None, "cpu:0"), (staged, "cpu:0")):
        agent, env = staged_agent(staging, monkeypatch)
        agent.device = torch.device(device)
        agent.explore_one_env(env, 8)
        again = agent.explore_one_env(env, 8)
        items.append([x.clone() for x in (*again, agent.rollout.truncated, agent.last_state)])
        assert (agent.host_rollout is None) == (device == "cpu")
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*items, strict=True))


def test_copies_are_plain_unless_a_program_asks_for_others():
    assert host_copies.staging_for(torch.device("cuda:0")) is None
    host_copies.use_asynchronous_copies(True)
    assert host_copies.staging_for(torch.device("cpu")) is None


def test_a_tensor_is_pinned_and_sent_without_waiting_only_where_copies_are_asynchronous(monkeypatch):
    calls = []

    class Recorded(torch.Tensor):
        def pin_memory(self):
            calls.append("pin")
            return self

        def to(self, target, non_blocking=False):
            calls.append((str(target), non_blocking))
            return self

    tensor = torch.ones(2).as_subclass(Recorded)
    to_device(tensor, "cuda:0")
    host_copies.use_asynchronous_copies(True)
    to_device(tensor, "cuda:0")
    to_device(tensor, "cpu")
    assert calls == [("cuda:0", False), "pin", ("cuda:0", True), ("cpu", False)]
