"""Gradients by hand against torch's own, layer by layer and through whole updates."""

import copy
import itertools

import pytest
import torch
from torch import nn

from drl_agents.agents import AGENTS, AgentA2C, AgentPPO
from drl_agents.agents.AgentPPO import Samples
from drl_agents.agents.mlp_gradient import (
    BlasProducts,
    FlatGradients,
    MlpGradient,
    OneDnnProducts,
    has_onednn,
    products_for,
)
from drl_agents.agents.nets import gaussian_log_prob
from tests.agents.test_every_agent_learns import BUDGETS, Echo
from tests.agents.test_ppo import explored
from tests.support.agent_args import make_agent

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="oneDNN's products are taken on AVX-512 only")
HIDDEN = [(16,), (24, 8), (32, 16, 8)]


def network(hidden, width, outputs, dtype):
    torch.manual_seed(0)
    widths = [width, *hidden, outputs]
    modules = []
    for a, b in itertools.pairwise(widths):
        modules += [nn.Linear(a, b, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def compare(net, by_hand, flat, x, tolerance):
    """Outputs and gradients of one loss, both ways."""
    expected = net(x)
    direction = torch.randn_like(expected)
    net.zero_grad()
    (expected * direction).sum().backward()
    wanted = [p.grad.clone() for p in net.parameters()]
    result = by_hand.forward(x.to(by_hand.trunk_dtype))
    by_hand.backward(direction)
    flat.attach()
    for a, b in zip([result, *(p.grad for p in net.parameters())], [expected, *wanted], strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_gradients_by_hand_are_autograds(hidden, dtype, tolerance):
    net = network(hidden, 11, 3, dtype)
    flat = FlatGradients(list(net.parameters()))
    by_hand = MlpGradient(net, flat)
    for rows in (37, 36, 1):    # minibatches differ by one row
        compare(net, by_hand, flat, torch.randn(rows, 11, dtype=dtype), tolerance)


@needs_onednn
@pytest.mark.parametrize("rows", [64, 1, 63])
def test_onednns_products_are_the_same_numbers(rows, monkeypatch):
    monkeypatch.setattr(OneDnnProducts, "smallest", 0)
    net = network((40, 24), 33, 5, torch.float32)
    flat = FlatGradients(list(net.parameters()))
    by_hand = MlpGradient(net, flat)
    assert isinstance(by_hand.products, OneDnnProducts)
    compare(net, by_hand, flat, torch.randn(rows, 33), 1e-5)


def test_large_products_go_to_onednn_and_small_ones_do_not():
    assert type(products_for(torch.device("cpu"), torch.float64)) is BlasProducts
    assert type(products_for(torch.device("cpu"), torch.bfloat16)) is BlasProducts
    assert isinstance(products_for(torch.device("cpu"), torch.float32), OneDnnProducts) == has_onednn()


def test_bfloat16_gradients_point_the_same_way():
    net = network((64, 64), 20, 4, torch.float32)
    flat = FlatGradients(list(net.parameters()))
    by_hand = MlpGradient(net, flat, torch.bfloat16)
    compare(net, by_hand, flat, torch.randn(256, 20), 0.05)      # of the length: less than 3 degrees


def test_the_flat_buffer_is_clipped_as_torch_clips():
    net = network((8,), 4, 2, torch.float32)
    flat = FlatGradients(list(net.parameters()))
    flat.attach()
    for largest in (1e-3, 1e6):
        flat.flat.normal_()
        twin = copy.deepcopy(net)
        for p, q in zip(twin.parameters(), net.parameters(), strict=True):
            p.grad = q.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), largest)
        torch.testing.assert_close(flat.clip(largest), norm)
        for p, q in zip(twin.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("agent_class", [AgentPPO, AgentA2C])
@pytest.mark.parametrize(
    "settings", [{}, {"lambda_entropy": 0.1, "value_coef": 2.0}, {"target_kl": 1e-3}, {"clip_grad_norm": 1e-2},
                 {"batch_size": 7, "normalize_values": False}], ids=str,
)  # fmt: skip
def test_both_ways_learn_the_same(agent_class, settings):
    settings = {"batch_size": 8, "repeat_times": 3, "net_dims": (16, 8), **settings}
    agents = []
    for gradients in ("autograd", "by_hand"):
        agent, items = explored(agent_class, gradients=gradients, **settings)
        assert (agent.by_hand is None) == (gradients == "autograd")
        for _ in range(3):
            agent.update_net(items)
        agents.append(agent)
    plain, by_hand = agents
    assert plain.gradient_steps == by_hand.gradient_steps
    for p, q in zip(plain.trained_parameters, by_hand.trained_parameters, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5)
    assert by_hand.last_update.gradient_norm == pytest.approx(plain.last_update.gradient_norm, rel=1e-3)
    assert by_hand.last_update.approx_kl == pytest.approx(plain.last_update.approx_kl, rel=1e-3, abs=1e-6)


@needs_onednn
def test_a_large_gradient_step_is_the_same_both_ways():
    """Large enough for oneDNN's products in every hidden layer."""
    generator = torch.Generator().manual_seed(0)
    gradients = []
    for way in ("autograd", "by_hand"):
        env = Echo()
        env.state_dim, env.action_dim = 128, 3
        env.reset = lambda: torch.zeros(16, 128)
        agent = make_agent(AgentPPO, env, net_dims=(128, 128), gradients=way)
        rows = torch.randn(256, 128 + 3 + 3, generator=generator.manual_seed(0))
        samples = Samples(rows[:, :128], rows[:, 128:131], rows[:, 131] - 4.0, rows[:, 132], rows[:, 133])
        norm, _ = agent._gradients(samples) if way == "autograd" else agent._gradients_by_hand(samples)
        gradients.append([norm.detach(), *(p.grad.clone() for p in agent.trained_parameters)])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-5 * max(a.abs().max(), 1e-3)


def test_the_default_is_by_hand_on_the_cpu():
    assert explored()[0].by_hand is not None


@pytest.mark.parametrize("name", ["ppo", "a2c"])
def test_bfloat16_learns_what_float32_learns(name):
    rollouts, settings = BUDGETS[name]
    env = Echo()
    agent = make_agent(
        AGENTS[name], env, net_dims=(32, 32), gamma=0.5, matmul_precision="bf16", **settings
    )
    for _ in range(rollouts):
        agent.update_net(agent.explore_vec_env(env, 32))
    assert agent.by_hand[1].trunk_dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in agent.trained_parameters)
    states = torch.rand(500, 2, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    assert (agent.policy()(states) - states).square().mean().item() < 0.03     # as in float32


def test_the_first_ratio_of_a_rounded_network_is_one():
    # At a deviation of exp(-4) the rounding of a mean alone is worth whole clip ranges.
    env = Echo()
    settings = {"matmul_precision": "bf16", "action_std_init_log": -4.0, "learning_rate": 1e-2}
    agent = make_agent(AgentPPO, env, net_dims=(32, 32), **settings)
    for _ in range(5):      # until the means are no longer near 0
        agent.update_net(agent.explore_vec_env(env, 32))
    samples = agent._samples(*agent.explore_vec_env(env, 32))
    mean, log_std = agent.by_hand[1].forward(samples.states), agent.act.action_std_log.detach()
    logprob = gaussian_log_prob((samples.actions - mean) * (-log_std).exp(), log_std)
    torch.testing.assert_close(logprob, samples.logprobs, rtol=1e-5, atol=1e-5)


def test_a_network_with_other_layers_is_refused_by_hand():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    with pytest.raises(ValueError, match="ReLU"):
        MlpGradient(net, FlatGradients(list(net.parameters())))
