"""Gradients by hand against torch's own, layer by layer and through whole updates."""

import copy
import itertools

import pytest
import torch
from torch import nn

from drl_agents.agents import AGENTS, AgentA2C, AgentPPO
from drl_agents.agents.AgentPPO import Samples
from drl_agents.agents.flat_adam import FlatAdam
from drl_agents.agents.mlp_gradient import (
    PRODUCTS,
    BlasProducts,
    OneDnnProducts,
    TwinGradient,
    has_onednn,
    lying_order,
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


def twins(hidden, width, outputs, dtype=torch.float32, trunk_dtype=None):
    """Two networks of the same hidden widths, and their gradients by hand."""
    actor, critic = network(hidden, width, outputs, dtype), network(hidden, width, 1, dtype)
    order = lying_order(actor, critic)
    flat = FlatAdam(torch.optim.Adam(order, fused=True), order)
    return actor, critic, flat, TwinGradient(actor, critic, flat, trunk_dtype)


def compare(hidden, rows, width, outputs, dtype=torch.float32, tolerance=1e-5, trunk_dtype=None):
    """Outputs and gradients of one loss, both ways."""
    actor, critic, flat, by_hand = twins(hidden, width, outputs, dtype, trunk_dtype)
    parameters = [*actor.parameters(), *critic.parameters()]
    for n in rows:    # minibatches differ by one row
        x = torch.randn(n, width, dtype=dtype)
        expected = actor(x), critic(x)
        directions = [torch.randn_like(result) for result in expected]
        for p in parameters:
            p.grad = None
        sum((a * b).sum() for a, b in zip(expected, directions, strict=True)).backward()
        wanted = [p.grad.clone() for p in parameters]
        result = by_hand.forward(x.to(trunk_dtype or dtype))
        by_hand.backward(*directions)
        flat.attach()
        for a, b in zip([*result, *(p.grad for p in parameters)], [*expected, *wanted], strict=True):
            assert (a - b).norm() <= tolerance * b.norm()
        torch.testing.assert_close(by_hand.means(x.to(trunk_dtype or dtype)), result[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(by_hand.values(x.to(trunk_dtype or dtype)), result[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_gradients_by_hand_are_autograds(hidden, dtype, tolerance):
    compare(hidden, (37, 36, 1), 11, 3, dtype, tolerance)


@needs_onednn
@pytest.mark.parametrize("rows", [64, 1, 63])
def test_onednns_products_are_the_same_numbers(rows, monkeypatch):
    monkeypatch.setattr(OneDnnProducts, "smallest", 0)
    compare((40, 24), (rows,), 33, 5)


@needs_onednn
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_choice_of_products_has_the_same_numbers(name, monkeypatch):
    monkeypatch.setattr(OneDnnProducts, "smallest", 0)
    gradients = []
    for chosen in ("blas", name):
        *_, flat, by_hand = twins((40, 24), 33, 5)
        by_hand.use_products(chosen)
        torch.manual_seed(1)
        mean, value = by_hand.forward(torch.randn(50, 33))
        by_hand.backward(torch.randn_like(mean), torch.randn_like(value))
        gradients.append(flat.gradients.flat)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_large_products_go_to_onednn_and_small_ones_do_not():
    assert type(products_for(torch.device("cpu"), torch.float64)) is BlasProducts
    assert type(products_for(torch.device("cpu"), torch.bfloat16)) is BlasProducts
    assert isinstance(products_for(torch.device("cpu"), torch.float32), OneDnnProducts) == has_onednn()


def test_bfloat16_gradients_point_the_same_way():
    # Of the length: less than 3 degrees.
    compare((64, 64), (256,), 20, 4, tolerance=0.05, trunk_dtype=torch.bfloat16)


def test_the_flat_buffer_is_clipped_as_torch_clips():
    actor, critic, flat, _ = twins((8,), 4, 2)
    flat.attach()
    parameters = [*actor.parameters(), *critic.parameters()]
    for largest in (1e-3, 1e6):
        flat.gradients.flat.normal_()
        expected = [p.grad.clone() for p in parameters]
        twin = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
        for p, gradient in zip(twin, expected, strict=True):
            p.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(twin, largest)
        torch.testing.assert_close(flat.clip(largest), norm)
        for p, q in zip(twin, parameters, strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_flat_steps_are_adams_even_after_its_tensors_were_replaced():
    actor, critic, flat, _ = twins((8, 8), 4, 2)
    parameters = flat.parameters
    twin = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    plain = torch.optim.Adam(twin, fused=True)
    for k in range(6):
        if k == 3:      # as restoring a state does
            flat.optimizer.load_state_dict(copy.deepcopy(flat.optimizer.state_dict()))
            actor[0].weight.data = actor[0].weight.data.clone()
        flat.attach()
        flat.gradients.flat.normal_()
        for p, q in zip(twin, parameters, strict=True):
            p.grad = q.grad.clone()
        plain.step()
        flat.step()
        for p, q in zip(twin, parameters, strict=True):
            torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-8)
            for name in ("exp_avg", "exp_avg_sq", "step"):
                torch.testing.assert_close(flat.optimizer.state[q][name], plain.state[p][name])
    assert critic[0].weight.data_ptr() == flat.values.views[1].data_ptr()


@pytest.mark.parametrize("agent_class", [AgentPPO, AgentA2C])
@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_the_compiled_loss_is_the_plain_one(agent_class, spread):
    agent, _ = explored(agent_class, lambda_entropy=0.02, value_coef=0.7)
    assert agent.compiled_loss is not None
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    mean, value = rows[:, :2].clone(), rows[:, 2:3].clone()
    actions = mean + rows[:, 3:5] * agent.act.action_std_log.detach().exp()
    near = gaussian_log_prob(rows[:, 3:5], agent.act.action_std_log.detach()) + spread * rows[:, 5]
    samples = Samples(torch.zeros(200, 3), actions, near, rows[:, 6].contiguous(), rows[:, 7].contiguous())
    ours, stats = agent._output_gradients(mean, value, samples)
    agent.compiled_loss = None
    theirs, expected = agent._output_gradients(mean, value, samples)
    for a, b in zip([*ours, *stats], [*theirs, *expected], strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=2e-5, atol=1e-6)
    assert (0.1 < stats[4] < 0.9) == (spread == 1.0 and agent_class is AgentPPO)


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
        if agent.flat is not None:
            agent.flat.attach()
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
    assert agent.by_hand.trunk.trunk_dtype == torch.bfloat16
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
    mean, log_std = agent.by_hand.means(samples.states), agent.act.action_std_log.detach()
    logprob = gaussian_log_prob((samples.actions - mean) * (-log_std).exp(), log_std)
    torch.testing.assert_close(logprob, samples.logprobs, rtol=1e-5, atol=1e-5)


def test_a_network_with_other_layers_is_refused_by_hand():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    with pytest.raises(ValueError, match="ReLU"):
        lying_order(net, net)
