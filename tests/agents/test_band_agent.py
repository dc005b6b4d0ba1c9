"""The band agent: what it trades, what it records, what it learns from, what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from drl_agents.agents import AgentBand, band_rollout
from drl_agents.agents.band_net import LEAST_SLOPE, logit_gradient
from drl_agents.policy import band_edges
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import RULES, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.agent_args import agent_args
from tests.support.band_cases import PARAMS, SEGMENTS, band_agent, band_env
from tests.support.markets import random_config
from tests.support.toy_envs import ToyBatch

RECORD = ("bar", "action", "filled", "reward", "done")


def weights_of(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.act.parameters()])


# ------------------------------------------------------------------------------------------------------- exploring
MARKETS = {
    "plain": {}, "increments": {"qty_increment": np.array([1e-3, 1e-2]), "min_order_qty": np.array([1e-3, 0.1])},
    "filled bars": {"filled_array": np.random.default_rng(1).random((300, 2)) < 0.3},
}  # fmt: skip


def both_loops(make_env, n_steps, edit=lambda _agent: None, n_rollouts=1, **settings):
    """(agent, environment) after rollouts by the compiled loop and by the plain one, whose records are the same."""
    runs = []
    for compiles in (True, False):
        env = make_env()
        agent = band_agent(env, **settings)
        agent.compiles = compiles
        edit(agent)
        for rollout in range(n_rollouts):
            if rollout > 0:
                agent.update_net()
            agent.explore_vec_env(env, n_steps)
        assert (agent.loop is not None) == compiles
        runs.append((agent, env))
    (fast, _), (plain, _) = runs
    for name in RECORD:
        ours, theirs = (getattr(agent.record, name) for agent in (fast, plain))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    return runs


@pytest.mark.parametrize("n_envs", [2, 16, 37])
@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize("observe_account", [False, True])
def test_the_compiled_loop_records_the_bits_of_the_plain_one(n_envs, market, observe_account):
    def make_env():
        config = random_config(300, 2, 3, segments=SEGMENTS, **MARKETS[market])
        env = band_env(n_envs=n_envs, config=config, env_params={"observe_account": observe_account})
        env.cost_factor = 0.5
        return env

    (fast, fast_env), (plain, plain_env) = both_loops(make_env, 130, n_rollouts=2)
    assert fast.record.done.any()
    assert torch.equal(fast.last_state, plain.last_state)
    for agent in (fast, plain):
        agent.update_net()
    assert torch.equal(weights_of(fast), weights_of(plain))
    for name in ("cash", "qty", "equity", "bar", "episode"):
        a, b = (getattr(env.book, name, env._episode) for env in (fast_env, plain_env))
        assert torch.equal(a, b), name


@pytest.mark.parametrize("seed", range(6))
def test_short_segments_are_explored_to_the_bit_alike(seed):
    """Accounts restart often, so each loop asks the network for bars in small parts of its own."""
    segments = [(first, first + 100) for first in range(0, 20_000, 100)]
    config = random_config(20_000, 2, 40, segments=segments, seed=seed)
    both_loops(lambda: band_env(n_envs=34, config=config, episode_bars=None, seed=seed), 97, net_dims=(64,))


def test_edges_that_are_no_numbers_hold_the_whole_account_in_both_loops():
    def spoil(agent):
        with torch.no_grad():
            agent.act.linears()[-1].bias[0] = torch.nan  # of the first coin alone

    (fast, _), _ = both_loops(lambda: band_env(n_envs=4), 30, spoil)
    assert fast.record.filled.eq(0.0).all()


def test_threads_share_the_blocks_without_changing_a_bit():
    records, n_threads = [], torch.get_num_threads()
    for threads in (1, 2):
        env = band_env(n_envs=70)
        agent = band_agent(env)
        torch.set_num_threads(threads)
        try:
            agent.explore_vec_env(env, 100)
        finally:
            torch.set_num_threads(n_threads)
        records.append(agent.record)
    assert all(torch.equal(getattr(records[0], name), getattr(records[1], name)) for name in RECORD)


@pytest.mark.parametrize(
    ("env_class", "options"),
    [
        (VectorizedCryptoEnvAlpaca, {"compact": True}), (VectorizedCryptoEnvAlpaca, {"compact": False}),
        (VectorizedCryptoEnvAlpacaOptimized, {"compact": False}),
        (VectorizedCryptoEnvAlpacaOptimized, {"native_step": False}),
    ],
)  # fmt: skip
def test_every_batched_class_is_traded_alike(env_class, options):
    records = []
    for env in (band_env(n_envs=12), band_env(env_class, n_envs=12, **options)):
        agent = band_agent(env)
        agent.explore_vec_env(env, 90)
        records.append(agent.record)
    assert torch.equal(records[0].bar, records[1].bar)
    for name in ("action", "filled", "reward"):
        torch.testing.assert_close(getattr(records[1], name), getattr(records[0], name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_the_scalar_environment_is_traded_like_the_first_account_of_a_batch(n_envs):
    batch, alone = band_env(n_envs=n_envs, as_numpy=False), band_env(CryptoEnvAlpaca)
    agents = [band_agent(batch), band_agent(alone)]
    for agent, env in zip(agents, (batch, alone), strict=True):
        explore = agent.explore_vec_env if env.env_num > 1 else agent.explore_one_env
        explore(env, 150)
    many, one = (agent.record for agent in agents)
    assert agents[0].loop is not None, "a batch of one account is traded by the compiled loop, too"
    assert one.done.any()
    assert torch.equal(one.bar[:, 0], many.bar[:, 0])
    assert torch.equal(one.done[:, 0], many.done[:, 0])
    close = {"action": (1e-4, 1e-5), "filled": (1e-4, 1e-5), "reward": (1e-4, 1e-5)}
    if n_envs == 1:  # the same bits go in
        close |= {"filled": (1e-5, 1e-9), "reward": (1e-5, 1e-6)}
    for name, (rtol, atol) in close.items():
        torch.testing.assert_close(getattr(one, name)[:, 0], getattr(many, name)[:, 0], rtol=rtol, atol=atol)
    for agent in agents:
        agent.update_net()
        assert agent.last_update.gradient_norm > 0.0


def test_an_account_is_moved_into_the_band_of_its_bar():
    env = band_env(n_envs=8, episode_bars=None, n_assets=1, config=random_config(300, 1, 3, min_order_qty=np.zeros(1)))
    agent = band_agent(env)
    states = agent.last_state.clone()
    agent.explore_vec_env(env, 1)
    features = agent.market.features.windows_at(states[:, -1].long())
    lo, hi = agent.policy().band(features)
    assert torch.allclose(agent.record.action[0], lo)  # from cash up to the lower edge
    weight = agent.last_state[:, 1:2]
    assert ((weight - lo).abs() < 0.01).all()  # but for the drift of a bar and the fee
    assert (hi > lo).all()


def test_accounts_carry_over_from_one_rollout_to_the_next():
    env = band_env(n_envs=8, episode_bars=None)
    agent = band_agent(env)
    agent.explore_vec_env(env, 40)
    bars, book = agent.record.bar[-1].clone(), env.book
    agent.explore_vec_env(env, 40)
    assert torch.equal(agent.record.bar[0], torch.where(agent.record.done[0] & False, bars, bars + 1))
    for name in ("cash", "qty", "peak", "max_drawdown"):
        assert torch.equal(agent.record.book[name], getattr(book, name))
    assert (book.qty > 0).any()


def test_the_network_runs_once_for_every_bar_that_is_met(monkeypatch):
    env = band_env(n_envs=64, episode_bars=None)
    agent = band_agent(env)
    monkeypatch.setattr(band_rollout, "FEWEST_BARS", 1)  # without repeated bars
    seen, project = [], AgentBand._project
    monkeypatch.setattr(AgentBand, "_project", lambda self, bars: seen.append(bars) or project(self, bars))
    agent.explore_vec_env(env, 200)
    bars = torch.cat(seen)
    assert len(bars) == len(bars.unique())
    assert set(agent.record.bar.unique().tolist()) <= set(bars.tolist())
    assert len(bars) <= 300


def test_there_is_no_noise_and_the_same_seed_gives_the_same_bits():
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 7)
        env = band_env()
        agent = band_agent(env, random_seed=seed, dropout=0.3)
        for _ in range(3):
            agent.update_net(agent.explore_vec_env(env, 100))
        runs.append((agent.record.action.clone(), weights_of(agent)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][1], runs[2][1])


# -------------------------------------------------------------------------------------------------------- learning
def rollout_reward(agent_settings, nudge=None, n_steps=120):
    """(agent, summed reward) of one rollout, with the logits' biases moved by `nudge`."""
    config = random_config(300, 2, 3, min_order_qty=np.zeros(2))
    env = band_env(n_envs=16, config=config, env_params={"min_order_notional": 0.0}, episode_bars=None)
    agent = band_agent(env, **agent_settings)
    agent.act.least_weight.zero_()
    with torch.no_grad():
        agent.act.linears()[-1].bias.copy_(torch.tensor([-1.0, -1.2, -1.0, -1.1]))
        if nudge is not None:
            agent.act.linears()[-1].bias += nudge
    agent.explore_vec_env(env, n_steps)
    return agent, agent.record.reward.double().sum().item()


def test_the_gradient_of_the_weights_is_the_slope_of_the_summed_rewards():
    agent, _ = rollout_reward({"remove_drift": False, "clip_grad_norm": 1e9, "learning_rate": 0.0})
    agent.update_net()
    scale = agent._unit()
    found = -agent.act.linears()[-1].bias.grad / scale
    step = 2e-3
    for i in range(4):
        nudge = torch.zeros(4)
        nudge[i] = step
        above, below = (rollout_reward({}, sign * nudge)[1] for sign in (1.0, -1.0))
        assert found[i].item() == pytest.approx((above - below) / (2 * step), rel=0.03, abs=0.02)


def test_the_mean_return_is_taken_out_of_the_objective_and_of_nothing_else():
    agents = [rollout_reward({"remove_drift": removes, "clip_grad_norm": 1e9})[0] for removes in (False, True)]
    kept, removed = agents
    for name in RECORD:
        assert torch.equal(getattr(kept.record, name), getattr(removed.record, name))
    assert torch.equal(kept.act.state_avg, removed.act.state_avg)
    assert torch.equal(kept.market.price, removed.market.price)
    price = random_config(300, 2, 3)["price_array"]
    mean = (price[2:] / price[1:-1] - 1.0).mean(0)  # lookback 2: the first bar is 1
    np.testing.assert_allclose(removed.mean_return.numpy(), mean, rtol=1e-12)
    losses = [agent.update_net()[0] for agent in agents]
    assert losses[0] == losses[1]  # what is reported is what was earned
    assert not torch.equal(weights_of(kept), weights_of(removed))


def test_drift_is_no_reason_to_hold_a_coin_once_it_is_taken_out():
    config = random_config(300, 1, 2, min_order_qty=np.zeros(1))
    config["price_array"] = 100.0 * np.exp(0.002 * np.arange(300.0))[:, None]
    slopes = []
    for removes in (False, True):
        env = band_env(n_envs=16, n_assets=1, config=config, episode_bars=None)
        env.cost_factor = 0.0
        agent = band_agent(env, remove_drift=removes, clip_grad_norm=1e9)
        agent.explore_vec_env(env, 100)
        agent.update_net()
        slopes.append(-agent.act.linears()[-1].bias.grad[0].item())
    assert slopes[0] > 0.0
    assert abs(slopes[1]) < 0.02 * slopes[0]


def test_features_are_scaled_by_the_training_bars_alone():
    clean = random_config(300, 2, 3, segments=[(0, 150)])
    poisoned = {**clean, "tech_array": clean["tech_array"].copy(), "price_array": clean["price_array"].copy()}
    poisoned["tech_array"][150:] += 1_000.0
    poisoned["price_array"][150:] *= 7.0
    clean_agent, other = (band_agent(band_env(config=config)) for config in (clean, poisoned))
    assert torch.equal(clean_agent.act.state_avg, other.act.state_avg)
    assert torch.equal(clean_agent.mean_return, other.mean_return)
    assert torch.equal(clean_agent.act.least_weight, other.act.least_weight)
    newest = clean_agent.act.state_avg[3:6].numpy()
    np.testing.assert_allclose(newest, clean["tech_array"][1:150].mean(0), rtol=1e-4, atol=1e-6)
    assert (clean_agent.act.state_avg[:3] == 0.0).all()
    assert (clean_agent.act.state_std[:3] == 1.0).all()


@pytest.mark.parametrize("env_class", [CryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized])
def test_the_features_of_a_bar_are_those_that_an_observation_shows(env_class):
    options = {"compact": False} if env_class is not CryptoEnvAlpaca else {}
    env = band_env(env_class, env_params={"lookback": 3, "norm_tech": 0.5}, **options)
    agent = band_agent(env)
    state = agent.last_state
    bar = torch.tensor([env.time]) if env_class is CryptoEnvAlpaca else env.time
    assert torch.equal(agent.market.features.windows_at(bar), state[:, agent.act.columns])


def test_a_band_at_its_end_keeps_a_slope_and_goes_no_further():
    raw = torch.tensor([[-7.0, 0.0], [9.0, 0.0], [-9.0, 0.0]])
    up = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    assert logit_gradient(raw, up)[:, 0].tolist() == pytest.approx([LEAST_SLOPE, 0.0, LEAST_SLOPE])
    assert logit_gradient(raw, -up)[:, 0].tolist() == pytest.approx([-LEAST_SLOPE, -LEAST_SLOPE, 0.0])


def test_between_the_ends_the_slopes_are_autograds():
    raw = torch.tensor([[0.3, -0.4, 0.2, -0.8]], requires_grad=True)
    by_edge = torch.tensor([[0.5, -1.0, 2.0, 0.7]])
    torch.cat(band_edges(raw), dim=1).backward(by_edge)
    torch.testing.assert_close(logit_gradient(raw.detach(), by_edge), raw.grad)


def test_weights_decay_and_biases_do_not():
    env = band_env()
    agent = band_agent(env, weight_decay=0.5, learning_rate=0.1, clip_grad_norm=1e-12)
    before = [(linear.weight.clone(), linear.bias.clone()) for linear in agent.act.linears()]
    agent.update_net(agent.explore_vec_env(env, 50))
    for linear, (weight, bias) in zip(agent.act.linears(), before, strict=True):
        torch.testing.assert_close(linear.weight, weight * 0.95, rtol=0.0, atol=2e-4)
        torch.testing.assert_close(linear.bias, bias, rtol=0.0, atol=2e-4)


def test_dropout_leaves_units_out_while_training_and_none_of_the_policy():
    env = band_env()
    agent = band_agent(env, dropout=0.5)
    agent.explore_vec_env(env, 20)
    masks = torch.cat(agent.masks)
    assert set(masks.tolist()) == {0.0, 2.0}
    bars = agent.record.bar[0]
    whole = torch.cat(agent.policy().band(agent.market.features.windows_at(bars)), dim=1)
    assert not torch.allclose(agent.table.edges[bars], whole)
    first = agent.masks
    agent.explore_vec_env(env, 20)
    assert not torch.equal(torch.cat(first), torch.cat(agent.masks))


# -------------------------------------------------------------------------------------------------------- refusing
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("norm_action", 4.0), ("trailing_stop_pct", 0.05), ("stale_bars", 48), ("order_sizing", "initial_capital"),
        ("observation", "absolute"), ("benchmark_weight", 0.5), ("reward", "profit"), ("buys", "sequential"),
        ("always_allow_close", False), ("action_limit", 0.2),
    ],
)  # fmt: skip
def test_a_setting_that_the_gradient_does_not_know_is_refused_by_name(setting, value):
    env = band_env(env_params={setting: value})
    with pytest.raises(ValueError, match=f'agent "band" requires {setting} .*received {value!r}'):
        band_agent(env)


@pytest.mark.parametrize("rules", [rules for rules in RULES if rules != "standard"])
def test_other_rule_sets_are_refused_by_name(rules):
    norms = {name: 1.0 for name in ("norm_cash", "norm_stocks", "norm_tech", "norm_reward", "norm_action")}
    env = VectorizedCryptoEnvAlpaca(random_config(300, 2, 3), {"rules": rules, "lookback": 2, **norms}, n_envs=2)
    with pytest.raises(ValueError, match=f"'standard' in env_params; received '{rules}'"):
        band_agent(env)


def test_a_class_that_is_not_ours_is_refused_by_name():
    env = ToyBatch()
    agent = AgentBand((8, 8), 9, 2, gpu_id=-1, args=agent_args(AgentBand, env))
    with pytest.raises(ValueError, match="ToyBatch has no params"):
        agent.prepare_for(env)


def test_an_unprepared_agent_prepares_itself_when_it_explores():
    env = band_env()
    agent = band_agent(env, prepared=False)
    agent.update_net(agent.explore_vec_env(env, 20))
    assert agent.gradient_steps == 1


def test_account_columns_that_were_not_announced_are_named():
    env = band_env(env_params={"observe_account": True})
    with pytest.raises(ValueError, match=r"set args\.observe_account to True"):
        band_agent(env, observe_account=False)


def test_another_market_is_refused():
    agent = band_agent(band_env())
    other = band_env(config=random_config(300, 2, 3, segments=SEGMENTS, seed=9))
    other.reset()
    with pytest.raises(ValueError, match="a different market"):
        agent.explore_vec_env(other, 5)


@pytest.mark.parametrize("changed", ["segments", "features", "increments", "a copy"])
def test_bars_are_told_apart_by_all_that_the_agent_takes_from_them(changed):
    config = random_config(300, 2, 3, segments=[(0, 120)])
    agent = band_agent(band_env(config=config))
    more = {"segments": {"segments": [(120, 300)]}, "features": {"tech_array": config["tech_array"] + 1.0},
            "increments": {"qty_increment": np.array([1e-3, 1e-3])}, "a copy": {}}[changed]  # fmt: skip
    other = band_env(config=config | more)
    agent.last_state = other.reset().clone()
    if changed == "a copy":
        agent.explore_vec_env(other, 20)
    else:
        with pytest.raises(ValueError, match="a different market"):
            agent.explore_vec_env(other, 20)


def test_other_settings_than_the_prepared_ones_are_refused_by_name():
    agent = band_agent(band_env())
    other = band_env(env_params={"fee_rate": 0.02})
    agent.last_state = other.reset().clone()
    with pytest.raises(ValueError, match=r"buy_fee_rate 0\.02, prepared for"):
        agent.explore_vec_env(other, 20)


@pytest.mark.parametrize(("option", "value"), [("autoreset", False), ("api", "gymnasium")])
def test_a_batch_that_restarts_nobody_or_speaks_otherwise_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=rf"{option}=.*received {value!r}"):
        band_agent(band_env()).prepare_for(band_env(**{option: value}))


def test_random_actions_and_a_missing_state_are_refused():
    env = band_env()
    agent = band_agent(env)
    with pytest.raises(ValueError, match="if_random=False"):
        agent.explore_vec_env(env, 5, if_random=True)
    agent.last_state = None
    with pytest.raises(RuntimeError, match="last_state"):
        agent.explore_vec_env(env, 5)
    with pytest.raises(RuntimeError, match="nothing to learn from"):
        band_agent(band_env()).update_net()


def test_penalties_cap_and_reserve_are_learned_with():
    params = {
        "min_cash_reserve": 0.1, "max_position_weight": 0.5, "drawdown_penalty": 0.2, "volatility_penalty": 0.5,
        "concentration_penalty": 0.1, "turnover_penalty": 0.01, "observe_account": True, "lookback": 3,
    }  # fmt: skip
    env = band_env(env_params=params)
    agent = band_agent(env)
    before = weights_of(agent)
    losses = agent.update_net(agent.explore_vec_env(env, 100))
    assert all(np.isfinite(losses))
    assert not torch.equal(weights_of(agent), before)


def test_the_constants_of_the_smallest_orders_are_theirs():
    config = random_config(300, 2, 3, min_order_qty=np.array([1e-9, 2.0]))
    agent = band_agent(band_env(config=config, env_params={"min_order_notional": 20.0}))
    mean_price = config["price_array"][1:, 1].mean()
    expected = [20.0 / 10_000.0, max(20.0, 2.0 * mean_price) / 10_000.0]
    assert agent.act.least_weight.tolist() == pytest.approx(expected, rel=1e-6)
    assert PARAMS["norm_action"] == 1.0


def test_a_network_whose_edges_are_no_numbers_has_diverged():
    env = band_env(n_envs=2)
    agent = band_agent(env)
    with torch.no_grad():
        agent.act.linears()[-1].bias.fill_(torch.nan)
    rollout = agent.explore_vec_env(env, 50)
    assert agent.record.reward.isfinite().all()  # nobody trades, so nothing else would tell
    assert math.isnan(agent.update_net(rollout)[0])
