"""Laws that hold on every market, for both classes, on markets that hypothesis makes."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import params_of, random_config

CLASSES = (VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized)
RULES = ("finrl_crypto", "cappuccino", "standard")
GENERATED = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

markets = st.fixed_dictionaries(
    {
        "n_bars": st.integers(20, 60), "n_assets": st.integers(1, 6), "n_features": st.integers(1, 3),
        "seed": st.integers(0, 10_000), "volatility": st.sampled_from([0.0, 1e-3, 0.02, 0.5]),
    }
)  # fmt: skip
options = st.fixed_dictionaries(
    {
        "trailing_stop_pct": st.sampled_from([0.0, 0.01, 0.1]), "min_cash_reserve": st.sampled_from([0.0, 0.2]),
        "slippage_rate": st.sampled_from([0.0, 0.0005, 0.01]), "norm_action": st.sampled_from([0.5, 1.0, 4.0, 20.0]),
        "stale_bars": st.sampled_from([0, 3, 48]), "max_position_weight": st.sampled_from([0.0, 0.3]),
    }
)  # fmt: skip
action_kinds = st.sampled_from(["buy", "sell", "alternate", "random", "huge"])


def make_actions(kind, n_steps, n_envs, n_assets, seed):
    generator = torch.Generator().manual_seed(seed)
    actions = torch.rand(n_steps, n_envs, n_assets, generator=generator) * 2 - 1
    if kind == "buy":
        return torch.ones_like(actions)
    if kind == "sell":
        return -torch.ones_like(actions)
    if kind == "alternate":
        return torch.ones_like(actions) * (1 - 2 * (torch.arange(n_steps) % 2))[:, None, None]
    return actions * 1e12 if kind == "huge" else actions


def rollout(env, actions):
    """States, rewards, equities, final states of a rollout as stacked tensors."""
    states, rewards, equities = [env.reset().clone()], [], []
    for action in actions:
        state, reward, _, info = env.step(action)
        states.append(state.clone())
        rewards.append(reward.clone())
        equities.append(info["equity"].clone())
    return torch.stack(states), torch.stack(rewards), torch.stack(equities)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("env_class", CLASSES)
@GENERATED
@given(market=markets, option=options, kind=action_kinds)
def test_books_never_go_negative_and_equity_moves_only_by_prices_fees_and_slippage(
    env_class, rules, market, option, kind
):
    config = random_config(**market)
    env = env_class(config, params_of(rules, **option), 3, gpu_id=-1, as_numpy=False, start="random", episode_bars=15)
    env.reset()
    price = torch.as_tensor(config["price_array"])
    for action in make_actions(kind, 25, 3, market["n_assets"], market["seed"]):
        before, bar, qty = env.total_asset.clone(), env.time.clone(), env.stocks.clone()
        _, _, done, info = env.step(action)
        moved = (qty * (price[bar + 1] - price[bar])).sum(-1)
        expected = before + moved - info["fees"] - info["slippage"]
        scale = before.abs() + info["turnover"] + moved.abs()
        assert ((info["equity"] - expected).abs() <= 1e-11 * scale).all()
        assert (env.cash >= 0).all()
        assert (env.stocks >= 0).all()
        assert torch.isfinite(info["equity"]).all()
        assert (info["fees"] >= 0).all()
        assert ((info["trades"] > 0) == (info["turnover"] > 0)).all()
        if done.any():
            env.reset()


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("env_class", CLASSES)
@GENERATED
@given(market=markets, option=options)
def test_without_costs_trading_does_not_change_the_account_value(env_class, rules, market, option):
    config = random_config(**{**market, "volatility": 0.0})
    option = {**option, "slippage_rate": 0.0}
    costs = {"buy_cost_pct": 0.0, "sell_cost_pct": 0.0}
    env = env_class(config, params_of(rules, **option), 4, gpu_id=-1, episode_bars=12, **costs)
    _, _, equity = rollout(env, make_actions("random", 10, 4, market["n_assets"], market["seed"]))
    torch.testing.assert_close(equity, torch.full_like(equity, env.initial_total_asset), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("env_class", CLASSES)
@GENERATED
@given(market=markets, option=options)
def test_an_environment_does_not_depend_on_its_neighbours(env_class, rules, market, option):
    config, env_params = random_config(**market), params_of(rules, **option)
    actions = make_actions("random", 20, 5, market["n_assets"], market["seed"])
    disturbed = actions.clone()
    disturbed[:, :3] = -disturbed[:, :3]
    disturbed[::2, 4] = float("nan")
    made = [env_class(config, env_params, 5, gpu_id=-1, start="random", episode_bars=9, seed=3) for _ in range(2)]
    for one, other in zip(rollout(made[0], actions), rollout(made[1], disturbed), strict=True):
        assert torch.equal(one[:, 3], other[:, 3])


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("env_class", CLASSES)
@GENERATED
@given(market=markets, order=st.permutations(range(6)))
def test_permuting_environments_permutes_the_outputs(env_class, rules, market, order):
    config = random_config(**market)
    actions = make_actions("random", 12, 6, market["n_assets"], market["seed"])
    first = env_class(config, params_of(rules), 6, gpu_id=-1, start="first")
    second = env_class(config, params_of(rules), 6, gpu_id=-1, start="first")
    for one, other in zip(rollout(first, actions), rollout(second, actions[:, order]), strict=True):
        assert torch.equal(one[:, order], other)


def first_changed_bar(env_class, env_params, config, cut, leak=0):
    """Rollouts on `config` and on a copy scrambled after bar `cut`: the last step up to which they agree."""
    rng = np.random.default_rng(0)
    poisoned = {**config, "price_array": config["price_array"].copy(), "tech_array": config["tech_array"].copy()}
    poisoned["price_array"][cut + 1 :] *= rng.uniform(0.2, 5.0, poisoned["price_array"][cut + 1 :].shape)
    poisoned["tech_array"][cut + 1 :] += 10.0
    if leak:  # a planted leak: features that know the next bar
        config, poisoned = ({**c, "tech_array": np.roll(c["tech_array"], -leak, axis=0)} for c in (config, poisoned))
    actions = make_actions("random", 20, 2, config["price_array"].shape[1], 1)
    made = [env_class(c, env_params, 2, gpu_id=-1, start="first", as_numpy=False) for c in (config, poisoned)]
    (states, rewards, _), (other_states, other_rewards, _) = (rollout(env, actions) for env in made)
    first_bar = env_params["lookback"] - 1
    differs = ~(states == other_states).flatten(1).all(1)
    assert differs.any(), "the scrambled part must be reached"
    bar_of_state = first_bar + int(differs.nonzero()[0])
    bar_of_reward = first_bar + 1 + int((rewards != other_rewards).any(1).nonzero()[0])
    return bar_of_state, bar_of_reward


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("env_class", CLASSES)
@pytest.mark.parametrize("cut", [4, 9, 13])
def test_scrambling_later_bars_changes_nothing_earlier(env_class, rules, cut):
    bar_of_state, bar_of_reward = first_changed_bar(env_class, params_of(rules), random_config(60, seed=cut), cut)
    assert bar_of_state > cut
    assert bar_of_reward > cut


@pytest.mark.parametrize("env_class", CLASSES)
def test_a_planted_leak_of_one_bar_is_found(env_class):
    bar_of_state, _ = first_changed_bar(env_class, params_of("standard"), random_config(60, seed=1), 9, leak=1)
    assert bar_of_state == 9, "the state at the cut already shows the next bar's features"


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("env_class", CLASSES)
@GENERATED
@given(market=markets, option=options)
def test_a_second_episode_equals_a_first_one(env_class, rules, market, option):
    config, env_params = random_config(**market), params_of(rules, **option)
    env = env_class(config, env_params, 2, gpu_id=-1, start="first")
    actions = make_actions("random", 7, 2, market["n_assets"], market["seed"])
    first = rollout(env, actions)
    second = rollout(env, actions)  # reset in mid-episode
    env.reset()
    for _ in range(env.max_step):
        env.step(actions[0])  # ends the episode: the next one began in the same step
    states = [env.step(action)[0].clone() for action in actions]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.stack(states), first[0][1:])


@pytest.mark.parametrize("env_class", CLASSES)
def test_n_environments_equal_n_single_ones(env_class):
    config, env_params = random_config(80, n_assets=4, seed=8), params_of("standard", trailing_stop_pct=0.01)
    actions = make_actions("random", 30, 5, 4, 2)
    states, rewards, equity = rollout(env_class(config, env_params, 5, gpu_id=-1, start="first"), actions)
    for i in range(5):
        single = env_class(config, env_params, 1, gpu_id=-1, as_numpy=False, start="first")
        one = rollout(single, actions[:, i : i + 1])
        torch.testing.assert_close(one[0][:, 0], states[:, i], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(one[2][:, 0], equity[:, i], rtol=1e-12, atol=0)
        torch.testing.assert_close(one[1][:, 0], rewards[:, i], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("env_class", "rules"),
    [
        (VectorizedCryptoEnvAlpacaOptimized, "cappuccino"), (VectorizedCryptoEnvAlpacaOptimized, "standard"),
        pytest.param(VectorizedCryptoEnvAlpaca, "standard", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_seventy_thousand_steps_stay_with_the_float64_reference(env_class, rules):
    n_steps = 70_000
    rng = np.random.default_rng(0)
    config = random_config(n_steps + 20, n_assets=4, n_features=1, seed=6, volatility=1e-3)
    env_params = params_of(rules, norm_action=50.0, **({"stale_bars": 0} if rules == "standard" else {}))
    costs = {"buy_cost_pct": 1e-6, "sell_cost_pct": 1e-6}  # small, so that the account trades to the end
    scalar = CryptoEnvAlpaca(config, env_params, **costs, start="first")
    batch = env_class(config, env_params, 1, gpu_id=-1, as_numpy=False, **costs, start="first")
    scalar.reset()
    batch.reset()
    actions = rng.uniform(-1, 1, (1000, 1, 4)).astype(np.float32)
    on_device = torch.from_numpy(actions)
    for t in range(min(n_steps, scalar.max_step - 1)):
        scalar.step(actions[t % 1000, 0])
        batch.step(on_device[t % 1000])
    # 1e-4 is the promise; float64 books keep far more of it.
    assert float(batch.total_asset[0]) == pytest.approx(scalar.total_asset, rel=1e-8)
