"""The library that multiplies is timed once on a machine, and an agent keeps it with its state."""

import torch

from drl_agents.agents import AgentPPO, products_choice
from drl_agents.agents.agent_state import agent_tensors, restore_agent
from drl_agents.agents.AgentPPO import AUTOGRAD
from tests.agents.test_ppo import explored

SIZES = (9, 8, 4)


def choose_anew(monkeypatch, ways, sizes=SIZES):
    monkeypatch.setattr(products_choice, "_known", {})  # as another process
    return products_choice.choose(sizes, 64, ways)


def test_the_fastest_way_is_taken():
    time = iter([0.0, 5.0, 10.0, 12.0, 20.0, 25.0, 30.0, 31.0, 40.0, 45.0, 50.0, 53.0])
    assert products_choice.fastest({"a": lambda: None, "b": lambda: None}, lambda: next(time)) == "b"


def test_a_choice_is_timed_once_and_holds_for_every_process(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = []
    ways = {"a": lambda: runs.append("a"), "b": lambda: runs.append("b")}
    monkeypatch.setattr(products_choice, "fastest", lambda ways: [run() for run in ways.values()] and "b")
    assert choose_anew(monkeypatch, ways) == "b"
    monkeypatch.setattr(products_choice, "fastest", lambda ways: "a")
    assert choose_anew(monkeypatch, ways) == "b"
    assert choose_anew(monkeypatch, ways, sizes=(9, 8, 5)) == "a"
    assert runs == ["a", "b"]


def test_the_first_of_two_processes_chooses_for_both(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ways = {"a": lambda: None, "b": lambda: None}

    def overtaken(_):
        monkeypatch.setattr(products_choice, "fastest", lambda ways: "a")
        assert choose_anew(monkeypatch, ways) == "a"
        return "b"

    monkeypatch.setattr(products_choice, "fastest", overtaken)
    assert choose_anew(monkeypatch, ways) == "a"


def test_a_damaged_file_is_written_anew_and_no_folder_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ways = {"a": lambda: None, "b": lambda: None}
    chosen = choose_anew(monkeypatch, ways)
    (path,) = products_choice.folder().glob("*.txt")
    path.write_bytes(b"\xff\xfe")
    monkeypatch.setattr(products_choice, "fastest", lambda ways: "b" if chosen == "a" else "a")
    other = choose_anew(monkeypatch, ways)
    assert other != chosen
    assert path.read_text() == other
    assert sorted(products_choice.folder().iterdir()) == [path]
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file: nothing can be written below it
    assert choose_anew(monkeypatch, ways) in ways


def test_an_agent_resumes_with_the_way_that_it_began_with():
    agent, items = explored(AgentPPO)
    agent.update_net(items)
    agent.take_way(AUTOGRAD)
    state = agent_tensors(agent)
    other, items = explored(AgentPPO)
    restore_agent(other, state, "state")
    other.update_net(items)
    assert other.way == AUTOGRAD
    by_hand, _ = explored(AgentPPO, gradients="by_hand")
    restore_agent(by_hand, state, "state")
    assert by_hand.way != AUTOGRAD  # the setting wins over the state
    state["extra.products"] = torch.tensor(2)  # a way that is retired
    restore_agent(other, state, "state")
    assert other.way == ""
    del state["extra.products"]  # of an earlier version
    restore_agent(other, state, "state")
    assert other.way == ""
    assert torch.equal(other.act.net[0].weight, state["act.net.0.weight"])
