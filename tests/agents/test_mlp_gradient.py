"""Gradients by hand against torch's own, layer by layer and through whole updates."""

import copy
import importlib
import itertools

import pytest
import torch
from torch import nn

from drl_agents.agents import AgentA2C, AgentPPO, rollout
from drl_agents.agents.AgentPPO import AUTOGRAD, WAYS, Samples
from drl_agents.agents.flat_adam import FlatAdam
from drl_agents.agents.mlp_gradient import NetGradient, OneDnnProducts, Products, has_onednn, products_for
from drl_agents.agents.nets import gaussian_log_prob
from tests.agents.test_every_agent_learns import Echo
from tests.agents.test_ppo import explored
from tests.support.agent_args import make_agent

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="oneDNN's products are taken on AVX-512 only")
PPO_MODULE = importlib.import_module(AgentPPO.__module__)
HIDDEN = [(16,), (24, 8), (32, 16, 8)]


def network(hidden, width, outputs, dtype):
    torch.manual_seed(0)
    widths = [width, *hidden, outputs]
    modules = []
    for a, b in itertools.pairwise(widths):
        modules += [nn.Linear(a, b, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def flat_adam(*nets):
    parameters = [p for net in nets for p in net.parameters()]
    return parameters, FlatAdam(torch.optim.Adam(parameters, fused=True), parameters)


def compare(hidden, rows, width, outputs, dtype=torch.float32, tolerance=1e-5, products=Products):
    """Outputs and gradients of one loss, both ways."""
    net = network(hidden, width, outputs, dtype)
    parameters, flat = flat_adam(net)
    by_hand = NetGradient(net, flat)
    by_hand.products = products()
    for n in rows:  # minibatches differ by one row
        x = torch.randn(n, width, dtype=dtype)
        expected = net(x)
        direction = torch.randn_like(expected)
        wanted = torch.autograd.grad((expected * direction).sum(), parameters)
        result = by_hand.forward(x)
        by_hand.backward(direction)
        flat.attach()
        for a, b in zip([result, *(p.grad for p in parameters)], [expected, *wanted], strict=True):
            assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_gradients_by_hand_are_autograds(hidden, dtype, tolerance):
    compare(hidden, (37, 36, 1), 11, 3, dtype, tolerance)


@needs_onednn
def test_onednns_products_are_the_same_numbers(monkeypatch):
    monkeypatch.setattr(OneDnnProducts, "smallest", 0)
    compare((40, 24), (64, 1, 63), 33, 5, products=OneDnnProducts)


def test_float32_on_the_cpu_goes_to_onednn_and_all_else_does_not():
    assert type(products_for(torch.device("cpu"), torch.float64)) is Products
    assert isinstance(products_for(torch.device("cpu"), torch.float32), OneDnnProducts) == has_onednn()


def test_the_flat_buffer_is_clipped_as_torch_clips():
    parameters, flat = flat_adam(network((8,), 4, 2, torch.float32))
    flat.attach()
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
    net = network((8, 8), 4, 2, torch.float32)
    parameters, flat = flat_adam(net)
    twin = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    plain = torch.optim.Adam(twin, fused=True)
    for k in range(6):
        if k == 3:  # as restoring a state does
            flat.optimizer.load_state_dict(copy.deepcopy(flat.optimizer.state_dict()))
            net[0].weight.data = net[0].weight.data.clone()
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
    assert net[0].weight.data_ptr() == flat.values.views[0].data_ptr()


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
    for way in (AUTOGRAD, "blas"):
        agent, items = explored(agent_class, **settings)
        agent.take_way(way)
        for _ in range(3):
            agent.update_net(items)
        assert agent.works_by_hand == (way == "blas")
        agents.append(agent)
    plain, by_hand = agents
    assert plain.gradient_steps == by_hand.gradient_steps
    for p, q in zip(plain.trained_parameters, by_hand.trained_parameters, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-4, atol=1e-5)
    assert by_hand.last_update.gradient_norm == pytest.approx(plain.last_update.gradient_norm, rel=1e-3)
    assert by_hand.last_update.approx_kl == pytest.approx(plain.last_update.approx_kl, rel=1e-3, abs=1e-6)


@needs_onednn
def test_a_large_gradient_step_is_the_same_all_ways():
    """Large enough for oneDNN's products in every hidden layer."""
    env = Echo()
    env.state_dim, env.action_dim = 128, 3
    env.reset = lambda: torch.zeros(16, 128)
    agent = make_agent(AgentPPO, env, net_dims=(128, 128))
    rows = torch.randn(256, 128 + 3 + 3, generator=torch.Generator().manual_seed(0))
    samples = Samples(rows[:, :128], rows[:, 128:131], rows[:, 131] - 4.0, rows[:, 132], rows[:, 133])
    gradients = []
    for way in WAYS:
        agent.take_way(way)
        if agent.works_by_hand:
            agent.flat.attach()
        norm, _ = agent._gradients(samples.states, samples)
        gradients.append([norm.detach(), *(p.grad.clone() for p in agent.trained_parameters)])
    for plain, *others in zip(*reversed(gradients), strict=True):
        for other in others:
            assert (other - plain).abs().max() <= 1e-5 * max(plain.abs().max(), 1e-3)


@needs_onednn
@pytest.mark.parametrize("way", ["addmm", "packed"])
def test_a_large_layer_is_the_same_packed_or_not(way, monkeypatch):
    monkeypatch.setattr(rollout, "choose", lambda _sizes, _rows, ways: [run() for run in ways.values()] and way)
    weight, bias, x = torch.randn(512, 300), torch.randn(512), torch.randn(12, 300)
    layer = rollout.Layer(weight, bias, 12, torch.device("cpu"), is_last=False)
    assert layer.is_packed == (way == "packed")
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, bias).relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradients", ["auto", "by_hand", "autograd"])
def test_what_is_timed_follows_from_the_setting(gradients, monkeypatch):
    timed = []
    monkeypatch.setattr(PPO_MODULE, "choose", lambda _sizes, _rows, ways: timed.extend(ways) or "blas")
    agent, items = explored(gradients=gradients)
    agent.update_net(items)
    by_hand = ["blas"] + ["onednn"] * has_onednn()
    expected = {"auto": [*by_hand, AUTOGRAD], "by_hand": by_hand if has_onednn() else [], "autograd": []}
    assert timed == expected[gradients]
    assert agent.works_by_hand == (gradients != "autograd")


@pytest.mark.parametrize("way", ["blas", AUTOGRAD])
def test_timing_leaves_no_trace(way, monkeypatch):
    """The choice is timed in one process and read in the others, which learn the same bits."""

    def learned(n_timed):
        def choose(_sizes, _rows, ways):
            for run in n_timed * list(ways.values()):
                run()
            return way

        monkeypatch.setattr(PPO_MODULE, "choose", choose)
        agent, items = explored()
        agent.update_net(items)
        return torch.cat([p.detach().flatten() for p in agent.trained_parameters])

    assert torch.equal(learned(0), learned(2))


def test_a_network_with_other_layers_is_refused_by_hand():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    with pytest.raises(ValueError, match="ReLU"):
        NetGradient(net, flat_adam(net)[1])
