"""The compiled loop trades as the loop in torch does, up to float32 rounding, and to the bit whatever trades beside."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
import torch

import environment_Alpaca_vectorized as drop_in
from drl_agents.agents import AGENTS
from drl_agents.compiled_mlp import FeatureProduct, feature_part, finish_row, for_one_row, network_of, squash
from drl_agents.policy import Policy
from tests.support.markets import params_of, random_config
from train import evaluator, messages, policy_loop
from train.config import TrainConfig
from train.evaluator import evaluate_policies, evaluate_policy
from train.run import build_agent

TRACKS = ("equity", "benchmark_equity", "turnover", "fees", "exposure", "qty")
SEGMENTS = [(0, 700), (650, 1200), (1100, 1290)]
RULES = tuple(drop_in.RULES)


def market(**more):
    return random_config(1300, 3, 4, volatility=0.004, **more)


def make_policy(state_dim, widths=(16, 16), n_assets=3, seed=0, clip=10.0, scale=1.5):
    """Random weights, large enough to trade a lot, and a normaliser that does something."""
    generator = torch.Generator().manual_seed(seed)
    layers = tuple(
        (scale * torch.randn((out, into), generator=generator) / into**0.5, 0.1 * torch.randn(out, generator=generator))
        for into, out in pairwise((state_dim, *widths, n_assets))
    )
    average, std = 0.1 * torch.randn(state_dim, generator=generator), 0.5 + torch.rand(state_dim, generator=generator)
    return Policy(average, std, layers, clip)


def make_band_policy(state_dim, lookback, n_assets=3, n_features=4, seed=2):
    """Bands that move a lot; the least weights close some positions."""
    orders = make_policy(lookback * n_features, (16, 8), 2 * n_assets, seed, scale=1.5)
    average, std = 0.1 * torch.ones(state_dim), 0.2 * torch.ones(state_dim)
    least = torch.tensor([0.05, 0.2, 0.3])[:n_assets]
    return Policy(average, std, orders.layers, head="band", least_weight=least)


def state_dim_of(env_params, config):
    n_assets, n_features = config["price_array"].shape[1], config["tech_array"].shape[1]
    extras = 2 + n_assets if env_params.get("observe_account") else 0
    return 1 + n_assets + env_params["lookback"] * n_features + extras


class RowByRow(FeatureProduct):
    """The features' product of every row alone: its bits do not depend on the rows beside it."""

    def __call__(self, features):
        return torch.stack([super(RowByRow, self).__call__(row[None])[0] for row in features])


class SameArithmetic:
    """The network as the compiled loop computes it, for the loop in torch."""

    def __init__(self, policy, n_assets, n_features):
        features = slice(1 + n_assets, 1 + n_assets + n_features)
        self.account = np.delete(np.arange(policy.state_dim), features)
        self.network, self.product = network_of(policy, self.account), RowByRow(policy, features)
        self.features = features
        width = self.network.sizes.max()
        self.scratch = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.int64)

    def __call__(self, state):
        hidden = self.product(state[:, self.features]).numpy()
        return torch.from_numpy(np.stack([self.row(*pair) for pair in zip(state.numpy(), hidden, strict=True)]))

    def row(self, state, hidden):
        sizes = self.network.sizes
        self.scratch[0][: sizes[1]] = hidden
        clip = np.float32(self.network.clip)
        u = finish_row(state, self.account, self.network.numbers, sizes, len(sizes) - 1, clip, *self.scratch)
        action = np.empty_like(u)
        squash(u, action)
        return action


def in_torch(policy):
    """A function that is no policy of ours, so that the loop in torch trades it."""
    return lambda state: policy(state)


def assert_close(ours, theirs, config):
    """Within 1e-6 of the account, and the same orders."""
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert (one.segment, one.stepped_by) == (other.segment, other.stepped_by)
        np.testing.assert_array_equal(one.bars, other.bars)
        np.testing.assert_array_equal(one.trades, other.trades)
        account = np.abs(other.equity).max()
        price = config["price_array"][one.bars]
        for name in TRACKS:
            received, expected = getattr(one, name), getattr(other, name)
            if name == "qty":  # as quote
                received, expected = received * price, expected * price
            scale = 1.0 if name == "exposure" else account
            np.testing.assert_allclose(received, expected, rtol=1e-6, atol=1e-6 * scale, err_msg=name)


def assert_same_bits(ours, theirs):
    """The same numbers, but for the last coins, which the loop in torch reads off a float32 observation."""
    for one, other in zip(ours, theirs, strict=True):
        for name in ("bars", "trades", *TRACKS[:-1]):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        np.testing.assert_allclose(one.qty, other.qty, rtol=1e-6)


def both_ways(policies, segments, config, env_params):
    ours = evaluate_policies(policies, segments, config, env_params, keep_qty=True)
    theirs = evaluate_policies([in_torch(policy) for policy in policies], segments, config, env_params, keep_qty=True)
    return ours, theirs


@pytest.fixture
def compiled_only(monkeypatch):
    """The loop in torch must not be what trades."""

    def refuse(*_):
        raise AssertionError("the loop in torch traded")

    monkeypatch.setattr(evaluator, "_trade_plainly", refuse)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("observe_account", [False, True])
def test_with_the_same_actions_every_rule_set_trades_to_the_bit_as_in_torch(rules, observe_account, monkeypatch):
    """The loops differ in rounding, which whole coins and empty purses make large: so both get the same network."""
    monkeypatch.setattr(policy_loop, "feature_part", RowByRow)
    monkeypatch.setattr(policy_loop, "CHUNK_BARS", 100)
    config = market(filled_array=np.random.default_rng(0).random((1300, 3)) < 0.1)
    env_params = params_of(rules, observe_account=observe_account, terminal_equity_fraction=0.9)
    policies = [make_policy(state_dim_of(env_params, config), seed=seed) for seed in range(2)]
    same = [SameArithmetic(policy, 3, env_params["lookback"] * 4) for policy in policies]
    segments = [SEGMENTS, SEGMENTS[1:]]
    found = (evaluate_policies(acts, segments, config, env_params, keep_qty=True) for acts in (policies, same))
    for ours, theirs in zip(*found, strict=True):
        assert_same_bits(ours, theirs)
        assert sum(record.trades.sum() for record in ours) > 20


@pytest.mark.parametrize("widths", [(), (5,), (24, 8, 16), (128, 128)], ids=str)
@pytest.mark.parametrize("clip", [0.5, 10.0, float("inf")])
def test_the_compiled_network_is_as_close_to_the_exact_one_as_torchs(widths, clip):
    policy = make_policy(60, widths, n_assets=3, clip=clip)
    state = 3.0 * torch.randn((200, 60), generator=torch.Generator().manual_seed(1))
    layers = tuple((weight.double(), bias.double()) for weight, bias in policy.layers)
    exact = Policy(policy.state_avg.double(), policy.state_std.double(), layers, clip)(state.double())
    ours, torchs = ((action - exact).abs().max() for action in (SameArithmetic(policy, 3, 50)(state), policy(state)))
    assert ours <= 3.0 * torchs
    assert ours < 1e-5


@pytest.mark.parametrize("widths", [(), (24, 8, 16), (128, 128)], ids=str)
def test_a_single_rows_action_is_the_policys(widths):
    policy = make_policy(60, widths, n_assets=3)
    state = 3.0 * torch.randn((100, 60), generator=torch.Generator().manual_seed(1))
    act = for_one_row(policy)
    received = torch.from_numpy(np.stack([act(row) for row in state.numpy()]))
    torch.testing.assert_close(received, policy(state), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lookback", [1, 7])
def test_every_lookback_trades_as_in_torch(lookback):
    config, env_params = market(), {"rules": "standard", "lookback": lookback}
    (ours,), (theirs,) = both_ways([make_policy(state_dim_of(env_params, config))], [SEGMENTS], config, env_params)
    assert_close(ours, theirs, config)


@pytest.mark.parametrize("observe_account", [False, True])
def test_bands_trade_to_the_bit_as_in_torch_when_every_row_is_multiplied_alone(observe_account, monkeypatch):
    def row_by_row(policy, features):
        whole = feature_part(policy, features)
        return lambda rows: torch.cat([whole(row[None]) for row in rows])

    monkeypatch.setattr(policy_loop, "feature_part", row_by_row)
    config, env_params = market(), params_of("standard", observe_account=observe_account, norm_action=1.0)
    policy = make_band_policy(state_dim_of(env_params, config), env_params["lookback"])
    (ours,) = evaluate_policies([policy], [SEGMENTS], config, env_params, keep_qty=True)
    alone = [lambda state: torch.cat([policy(row[None]) for row in state])]
    (theirs,) = evaluate_policies(alone, [SEGMENTS], config, env_params, keep_qty=True)
    assert_same_bits(ours, theirs)
    assert sum(record.trades.sum() for record in ours) > 100


def test_bars_without_a_trade_fill_nothing_in_either_loop():
    config = market(filled_array=np.random.default_rng(0).random((1300, 3)) < 0.3)
    env_params = params_of("standard")
    (ours,), (theirs,) = both_ways([make_policy(state_dim_of(env_params, config))], [SEGMENTS], config, env_params)
    assert_close(ours, theirs, config)
    for record in ours:
        moved = np.diff(record.qty, axis=0) != 0.0
        assert moved.any()
        assert not (moved & config["filled_array"][record.bars[1:]])[:-1].any()


def test_ruin_ends_an_account_at_the_same_bar():
    config, env_params = market(), params_of("standard", terminal_equity_fraction=0.98, fee_rate=0.01)
    (ours,), (theirs,) = both_ways([make_policy(state_dim_of(env_params, config))], [SEGMENTS], config, env_params)
    assert_close(ours, theirs, config)
    assert all(record.equity[-1] == record.equity[-100] for record in ours)


@pytest.mark.parametrize("name", [name for name in AGENTS if name != "band"])
def test_an_agents_actor_is_traded_compiled_and_as_in_torch(name, monkeypatch):
    config, env_params = market(), params_of("standard")
    env = drop_in.VectorizedCryptoEnvAlpacaOptimized(config, env_params, 4, gpu_id=-1, as_numpy=False)
    actor = build_agent(TrainConfig(agent=name, n_envs=4, net_dims=(16, 16)), env).act
    for parameter in actor.parameters():  # its first policy holds still
        parameter.data.mul_(3.0 if parameter.ndim > 1 else 1.0)
    theirs = evaluate_policies([in_torch(actor)], [SEGMENTS], config, env_params, keep_qty=True)[0]
    monkeypatch.setattr(evaluator, "_trade_plainly", None)
    assert_close(evaluate_policies([actor], [SEGMENTS], config, env_params, keep_qty=True)[0], theirs, config)


@pytest.mark.usefixtures("compiled_only")
def test_company_and_chunks_that_others_do_not_fill_change_no_bit(monkeypatch):
    """22 accounts of four networks fill two blocks; their segments end in different chunks."""
    monkeypatch.setattr(policy_loop, "CHUNK_BARS", 64)
    config, env_params = market(), params_of("standard") | {"norm_action": 1.0}
    n = state_dim_of(env_params, config)
    policies = [make_policy(n, widths, seed=len(widths)) for widths in ((16,), (40, 8), (8, 8, 8))]
    policies.append(make_band_policy(n, env_params["lookback"]))
    segments = [[(30 * k, 30 * k + 300) for k in range(9)], [(0, 1290), (5, 90)], [(20 * k, 500) for k in range(9)]]
    segments.append([(0, 800), (200, 400)])
    together = evaluate_policies(policies, segments, config, env_params, keep_qty=True)
    for policy, mine, records in zip(policies, segments, together, strict=True):
        for segment, record in zip(mine, records, strict=True):
            (alone,) = evaluate_policies([policy], [[segment]], config, env_params, keep_qty=True)[0]
            for name in ("bars", "trades", *TRACKS):
                np.testing.assert_array_equal(getattr(record, name), getattr(alone, name), err_msg=name)
            assert alone.trades.sum() > 20


def test_weights_that_are_not_numbers_hold_in_both_loops():
    config, env_params = market(), params_of("standard")
    policy = make_policy(state_dim_of(env_params, config))
    policy.layers[1][0][3] = float("nan")
    for records in both_ways([policy], [SEGMENTS[:1]], config, env_params):
        assert records[0][0].trades.sum() == 0


def test_a_policy_for_another_observation_is_refused_as_before():
    config, env_params = market(), params_of("standard")
    with pytest.raises(ValueError, match=r"observations of 17 columns .* these settings give 16"):
        evaluate_policy(make_policy(state_dim_of(env_params, config) + 1), config, env_params)
    with pytest.raises(ValueError, match="for 2 coins"):
        evaluate_policy(make_policy(state_dim_of(env_params, config), n_assets=2), config, env_params)


def test_a_loop_that_does_not_compile_gives_way_to_torch(monkeypatch, caplog):
    config, env_params = market(), params_of("standard")
    policy = make_policy(state_dim_of(env_params, config))

    def broken(*_):
        raise policy_loop.NumbaError("no such instruction")

    monkeypatch.setattr(policy_loop, "trade_block", broken)
    messages.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        ours = evaluate_policies([policy], [SEGMENTS], config, env_params, keep_qty=True)[0]
    assert "the much slower torch loop" in caplog.text
    assert "no such instruction" in caplog.text
    theirs = evaluate_policies([in_torch(policy)], [SEGMENTS], config, env_params, keep_qty=True)[0]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.equity, other.equity)


def test_a_band_is_refused_where_its_actions_mean_something_else():
    config, env_params = market(), params_of("standard")
    policy = make_band_policy(state_dim_of(env_params, config), env_params["lookback"])
    with pytest.raises(ValueError, match=r"norm_action must be 1\.0 for a band policy; received 4\.0"):
        evaluate_policy(policy, config, env_params | {"norm_action": 4.0})
