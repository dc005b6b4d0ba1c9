"""Policies on disk: nothing lost, nothing foreign accepted."""

import json
import math
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from drl_agents.agents import AGENTS
from drl_agents.policy import Policy
from drl_agents.policy_file import (
    FORMAT,
    METADATA_KEYS,
    PolicyFileError,
    _digest,
    load_policy,
    save_policy,
    weights_sha256,
)
from tests.support.agent_args import REWARD_AGENTS, make_agent
from tests.support.band_cases import band_agent, band_env
from tests.support.killed_writes import killed_at_every_moment
from tests.support.markets import random_config
from tests.support.toy_envs import ToyBatch

METADATA = {
    "agent": "ppo", "env_params": {"rules": "standard"}, "observation_layout": [["cash", 1], ["tech", 2]],
    "tickers": ["BTC", "ETH"], "feature_names": ["rsi"], "data_sha256": "ab" * 32, "seed": 3, "code_version": "1.0",
    "fee": np.float64(0.0025), "weights": np.arange(3),
}  # fmt: skip


def trained(name="ppo"):
    env = ToyBatch()
    agent = make_agent(AGENTS[name], env, batch_size=8)
    agent.update_net(agent.explore_vec_env(env, 20))
    return agent


@pytest.fixture
def stored(tmp_path):
    return save_policy(tmp_path / "policy.safetensors", trained().policy(), METADATA)


def refusal(path, **expected):
    with pytest.raises(PolicyFileError) as error:
        load_policy(path, **expected)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", REWARD_AGENTS)
def test_a_saved_policy_acts_as_the_agent_did(name, tmp_path):
    agent = trained(name)
    policy = load_policy(save_policy(tmp_path / "p.safetensors", agent.policy(), METADATA))
    states = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5
    with torch.no_grad():
        assert torch.equal(policy(states), agent.act(states))
    assert policy(states).abs().max() <= 1.0
    torch.testing.assert_close(policy(states[0]), policy(states)[0])
    assert (policy.state_dim, policy.action_dim, policy.net_dims) == (3, 2, (16, 16))


def test_without_its_normaliser_a_policy_would_act_differently(stored):
    policy = load_policy(stored)
    bare = type(policy)(torch.zeros(3), torch.ones(3), policy.layers, policy.clip)
    states = torch.randn(50, 3)
    assert not torch.equal(policy(states), bare(states))


def test_the_metadata_comes_back(stored):
    metadata = load_policy(stored).metadata
    assert set(METADATA_KEYS) <= set(metadata)
    assert metadata["tickers"] == ["BTC", "ETH"]
    assert metadata["fee"] == 0.0025
    assert metadata["weights"] == [0, 1, 2]
    assert metadata["bar_seconds"] is None


def test_truncated_files_are_refused_at_any_length(stored, tmp_path):
    content = stored.read_bytes()
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        cut = tmp_path / f"cut{length}"
        cut.write_bytes(content[:length])
        assert "safetensors" in refusal(cut)


def test_a_flipped_bit_is_refused(stored):
    content = bytearray(stored.read_bytes())
    content[-20] ^= 1
    stored.write_bytes(content)
    assert "checksum" in refusal(stored)


def test_foreign_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    assert "not a policy" in refusal(foreign)
    foreign.write_bytes(b"hello world, this is text" * 10)
    refusal(foreign)
    assert "does not exist" in refusal(tmp_path / "nothing")
    refusal(tmp_path)


def test_code_in_a_file_never_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "policy.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    refusal(path)
    torch.save({"x": Bomb()}, path)
    refusal(path)
    assert not (tmp_path / "exploded").exists()


def test_mismatches_are_named(stored):
    assert "state_dim is 3, expected 4" in refusal(stored, state_dim=4)
    assert "action_dim is 2, expected 5" in refusal(stored, action_dim=5)
    assert "net_dims is (16, 16), expected (64, 64)" in refusal(stored, net_dims=[64, 64])
    assert load_policy(stored, state_dim=3, action_dim=2, net_dims=[16, 16]).state_dim == 3


@pytest.mark.parametrize("wrong", [{"tickers": ["BTC"]}, {"observation_layout": [["cash", 1]]}], ids=str)
def test_a_description_that_does_not_fit_the_weights_is_refused(tmp_path, wrong):
    assert "inconsistent" in refusal(save_policy(tmp_path / "p", trained().policy(), {**METADATA, **wrong}))


def test_another_format_version_is_refused(stored, monkeypatch):
    monkeypatch.setattr("drl_agents.policy_file.FORMAT_VERSION", 99)
    assert "format 2; this code reads 99" in refusal(stored)


def header_of(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[FORMAT])


def rewritten(path, tensors=None, reseal=True, **header):
    """The file with other tensors (None drops one) and header entries, under a checksum of its own."""
    described = header_of(path) | header
    kept = {name: value for name, value in (load_file(path) | (tensors or {})).items() if value is not None}
    if reseal:
        described["sha256"] = _digest(kept, described)
    path.write_bytes(save(kept, {FORMAT: json.dumps(described)}))
    return path


@pytest.mark.parametrize("change", [{"clip": 3.0}, {"metadata": {**METADATA, "fee": 0.5, "weights": []}}], ids=str)
def test_a_changed_header_is_refused(stored, change):
    assert "checksum" in refusal(rewritten(stored, reseal=False, **change))


@pytest.mark.parametrize(
    ("tensors", "header", "reason"),
    [
        ({"state_std": torch.ones(2)}, {}, "state_std"),
        ({"state_std": torch.tensor([1.0, 0.0, 1.0])}, {}, "state_std must be above 0"),
        ({"state_std": torch.tensor([1.0, -1.0, 1.0])}, {}, "state_std must be above 0"),
        ({"state_avg": torch.tensor(0.0), "state_std": torch.tensor(1.0)}, {}, "state_avg"),
        ({"layer1.weight": torch.zeros(16, 15)}, {}, "layer 1"),
        ({"layer1.weight": torch.zeros(16)}, {}, "layer 1"),
        ({"layer1.bias": torch.zeros(3)}, {}, "layer 1"),
        ({"layer1.bias": None}, {}, "layer1.bias"),
        ({"layer9.bias": torch.zeros(3)}, {}, "tensors"),
        ({}, {"clip": 0.0}, "clip"),
        ({}, {"clip": float("nan")}, "clip"),
        ({}, {"clip": "wide"}, "wide"),
        ({}, {"clip": []}, "float"),
        ({}, {"n_layers": 0}, "layers"),
        ({}, {"n_layers": 2}, "tensors"),
        ({}, {"n_layers": "3"}, "integer"),
        ({}, {"metadata": None}, "not iterable"),
        ({}, {"metadata": 3}, "not iterable"),
        ({}, {"metadata": {"tickers": 3}}, "int"),
        ({}, {"metadata": {"observation_layout": [["cash"]]}}, "unpack"),
        ({}, {"metadata": {"observation_layout": [["cash", "3"]]}}, "int"),
    ],
    ids=str,
)
def test_what_cannot_be_a_policy_is_refused_even_under_a_right_checksum(stored, tensors, header, reason):
    assert reason in refusal(rewritten(stored, tensors, **header))


def test_weights_of_another_type_are_refused(stored):
    assert "float64" in refusal(rewritten(stored, {"state_avg": torch.zeros(3, dtype=torch.float64)}))
    assert "bfloat16" in refusal(rewritten(stored, {"state_avg": torch.zeros(3).bfloat16()}, reseal=False))


@pytest.mark.parametrize("header", [[], 3, None, {}, {"format_version": 2}], ids=str)
def test_a_header_of_another_form_is_refused(stored, header):
    stored.write_bytes(save(load_file(stored), {FORMAT: json.dumps(header)}))
    assert "header" in refusal(stored)


def test_no_clip_and_keys_that_are_not_text_come_back(tmp_path):
    policy = replace(trained().policy(), clip=math.inf)
    back = load_policy(save_policy(tmp_path / "p", policy, {"by_rank": {10: "a", 9: "b"}, "score": float("nan")}))
    assert back.clip == math.inf
    assert back.metadata["by_rank"] == {"10": "a", "9": "b"}


def test_diverged_weights_are_never_stored(stored):
    before = stored.read_bytes()
    policy = trained().policy()
    policy.layers[0][0][0, 0] = float("nan")
    with pytest.raises(PolicyFileError, match=r"layer0\.weight"):
        save_policy(stored, policy)
    assert stored.read_bytes() == before


def test_metadata_that_is_not_json_is_refused_before_writing(tmp_path):
    with pytest.raises(TypeError, match="metadata must be JSON"):
        save_policy(tmp_path / "p", trained().policy(), {"env": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
def test_a_failure_while_writing_leaves_the_old_file(stored, monkeypatch, moment):
    before = stored.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(moment, fail)
    with pytest.raises(OSError, match="disk full"):
        save_policy(stored, trained().policy(), METADATA)
    monkeypatch.undo()
    assert stored.read_bytes() == before
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]


def test_a_kill_between_any_two_writes_leaves_the_old_policy_or_the_new_one(tmp_path):
    def save_turn(folder, turn):
        layers = ((torch.full((4, 4), float(turn)), torch.zeros(4)),)
        save_policy(folder / "policy.safetensors", Policy(torch.zeros(4), torch.ones(4), layers), {"seed": turn})

    save_turn(tmp_path / "start", 1)
    folders = killed_at_every_moment(
        lambda folder: save_turn(folder, 2), lambda n: shutil.copytree(tmp_path / "start", tmp_path / str(n))
    )
    policies = [load_policy(folder / "policy.safetensors") for folder in folders]
    assert {policy.metadata["seed"] for policy in policies} == {1, 2}
    assert all(torch.all(policy.layers[0][0] == policy.metadata["seed"]) for policy in policies)
    assert any(len(list(folder.iterdir())) > 1 for folder in folders)  # killed in the middle


def test_the_header_is_plain_json(stored):
    length = int.from_bytes(stored.read_bytes()[:8], "little")
    header = json.loads(stored.read_bytes()[8 : 8 + length])
    assert json.loads(header["__metadata__"][FORMAT])["metadata"]["seed"] == 3


# ------------------------------------------------------------------------------------------------------------- bands
def band_policy(n_assets=2, n_extras=0):
    env = band_env(n_assets=n_assets, config=random_config(300, n_assets, 3), n_envs=2,
                   env_params={"observe_account": n_extras > 0})  # fmt: skip
    return band_agent(env), env


@pytest.mark.parametrize("n_extras", [0, 4])
def test_a_saved_band_acts_as_the_agent_did(n_extras, tmp_path):
    agent, env = band_policy(n_extras=n_extras)
    agent.update_net(agent.explore_vec_env(env, 50))
    path = save_policy(tmp_path / "p.safetensors", agent.policy(), METADATA | {"observation_layout": None})
    policy = load_policy(path)
    states = torch.rand(50, agent.state_dim, generator=torch.Generator().manual_seed(0))
    assert torch.equal(policy(states), agent.act(states))
    assert torch.equal(policy(states[0]), agent.act(states[:1])[0])
    assert (policy.state_dim, policy.action_dim, policy.net_dims, policy.head) == (9 + n_extras, 2, (16, 16), "band")
    lo, hi = policy.band(states[:, policy.feature_columns])
    assert lo.shape == hi.shape == (50, 2)
    assert ((lo > 0) & (lo < hi) & (hi < 1)).all()
    if n_extras:  # the network does not see the account's further columns
        elsewhere = states.clone()
        elsewhere[:, -n_extras:] += 1.0
        assert torch.equal(policy(elsewhere), policy(states))
    assert weights_sha256(policy) == weights_sha256(agent.policy())


def bands(lo, hi, least):
    """A policy whose edges are constants."""
    raw = [math.log(x / (1 - x)) for x in (lo, (hi - lo) / (1 - lo))]
    layers = ((torch.zeros(2, 3), torch.tensor(raw)),)
    return Policy(torch.zeros(5), torch.ones(5), layers, head="band", least_weight=torch.tensor([least]))


@pytest.mark.parametrize(
    ("lo", "hi", "held", "action"),
    [
        (0.2, 0.6, 0.0, 0.2), (0.2, 0.6, 0.4, 0.0), (0.2, 0.6, 0.9, -0.3),
        (1e-5, 1e-4, 0.5, -1.0),    # the target is worth less than the smallest order: one order closes the position
        (1e-5, 0.6, 1e-4, -1.0), (1e-5, 0.6, 0.0, -1.0), (2e-3, 0.6, 0.0, 2e-3),
    ],
)  # fmt: skip
def test_an_action_moves_the_held_weight_into_its_band(lo, hi, held, action):
    policy = bands(lo, hi, least=1e-3)
    assert policy(torch.tensor([1.0 - held, held, 7.0, 8.0, 9.0])).tolist() == pytest.approx([action], abs=1e-6)


def test_orders_are_written_as_ever_and_code_that_knows_orders_only_refuses_a_band_by_its_format(stored, tmp_path):
    band = save_policy(tmp_path / "band.safetensors", band_policy()[0].policy())
    headers = [header_of(path) for path in (stored, band)]
    assert [header["format_version"] for header in headers] == [2, 3]
    assert sorted(headers[0]) == ["clip", "format_version", "metadata", "n_layers", "sha256"]
    assert headers[1]["head"] == "band"


def test_only_a_band_has_bands(stored):
    with pytest.raises(ValueError, match='"orders"'):
        load_policy(stored).band(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("tensors", "header", "reason"),
    [
        ({}, {"head": "targets"}, "head 'targets'"),
        ({}, {"format_version": 4}, "format 4; this code reads 2 and 3"),
        ({"least_weight": None}, {}, "least_weight"),
        ({"least_weight": torch.zeros(3)}, {}, "least_weight must be 2 weights"),
        ({"least_weight": torch.tensor([-1.0, 0.0])}, {}, "least_weight must be 2 weights"),
        ({"state_avg": torch.zeros(7), "state_std": torch.ones(7)}, {}, "features up to column 9"),
        ({"layer2.weight": torch.zeros(3, 16), "layer2.bias": torch.zeros(3)}, {}, "two outputs per coin"),
        ({"layer2.weight": torch.zeros(0, 16), "layer2.bias": torch.zeros(0), "least_weight": torch.zeros(0)}, {},
         "two outputs per coin"),
        ({}, {"format_version": 2}, "format 2 has no head"),
        ({}, {"metadata": {"observation_layout": [["cash_weight", 1], ["weight", 2], ["tech", 4], ["x", 2]]}},
         "takes 6 features, and observation_layout has 4"),
    ],
    ids=["unknown head", "newer", "no constant", "too many", "negative", "features outside", "odd outputs", "no coins",
         "older", "fewer features"],
)  # fmt: skip
def test_a_band_that_does_not_fit_together_is_refused(tensors, header, reason, tmp_path):
    path = save_policy(tmp_path / "band.safetensors", band_policy()[0].policy())
    load_policy(path)
    assert reason in refusal(rewritten(path, tensors, **header))
