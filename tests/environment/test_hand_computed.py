"""Cases whose numbers are worked out by hand in the comments. Every class must give them."""

import math

import numpy as np
import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from tests.support.markets import ENV_CLASSES, HOST_NORMS

ALL = (CryptoEnvAlpaca, *ENV_CLASSES)
each_class = pytest.mark.parametrize("env_class", ALL)


def market(*columns):
    """One column of closes per coin; one feature that is the bar number."""
    price = np.array(columns, dtype=float).T
    return {"price_array": price, "tech_array": np.arange(len(price), dtype=float)[:, None], "min_order_qty": 0.0}


def make(env_class, config, **settings):
    env_params = {"rules": "standard", "lookback": 1, "slippage_rate": 0.0, "min_order_notional": 0.0, **settings}
    names = ("buy_cost_pct", "sell_cost_pct", "initial_capital")
    costs = {name: env_params.pop(name) for name in names if name in env_params}
    if env_params["rules"] != "standard":
        env_params = {**HOST_NORMS, **env_params}
    options = {} if env_class is CryptoEnvAlpaca else {"n_envs": 1, "gpu_id": -1}
    env = env_class(config, env_params, start="first", **costs, **options)
    env.reset()
    return env


@each_class
def test_a_buy_pays_slippage_and_fee_at_the_next_close(env_class):
    # 1000 USD at bar 0. Action 1, norm_action 4: a quarter of 1000 USD at bar 1's close 50, so 250 / 50 = 5 coins.
    # Fill 50 * 1.01 = 50.5; cost 5 * 50.5 * 1.02 = 257.55; cash 742.45. Equity 742.45 + 5 * 50 = 992.45.
    env = make(env_class, market([40, 50, 60]), initial_capital=1000, buy_cost_pct=0.02, slippage_rate=0.01)
    state, reward, _, info = env.step(np.array([1.0]))
    assert env.cash == pytest.approx(742.45, rel=1e-12)
    assert env.stocks[0] == pytest.approx(5.0, rel=1e-12)
    assert info["fees"] == pytest.approx(5 * 50.5 * 0.02)
    assert info["slippage"] == pytest.approx(2.5)
    assert info["turnover"] == pytest.approx(250.0)
    assert reward == pytest.approx(100 * math.log(0.99245), rel=1e-6)
    assert state == pytest.approx([742.45 / 992.45, 250 / 992.45, 1.0], rel=1e-6)


@each_class
def test_whole_coins_are_counted_as_python_divides(env_class):
    # 1e6 // 0.1 is 9 999 999: 0.1 is a little more than a tenth. The order asks for 2e7 coins.
    env = make(env_class, market([0.1, 0.1, 0.1, 0.1]), rules="finrl", norm_action=1.0, fee_rate=0.0)
    env.step(np.array([2000.0]))
    assert env.stocks[0] == 1e6 // 0.1 == 9_999_999


@each_class
def test_a_sale_receives_less_slippage_and_fee(env_class):
    # After the buy above without costs: 5 coins, 750 cash. At 60 the account is 1050; action -0.8 sells
    # 0.8 * 1050 / (60 * 4) = 3.5 coins at 60 * 0.99 = 59.4, less 3 %: 3.5 * 59.4 * 0.97 = 201.663.
    costs = {"buy_cost_pct": 0.0, "sell_cost_pct": 0.03, "slippage_rate": 0.01}
    env = make(env_class, market([40, 50, 60, 60]), initial_capital=1000, **costs)
    env.cost_factor = 0.0
    env.step(np.array([1.0]))
    env.cost_factor = 1.0
    env.step(np.array([-0.8]))
    assert env.stocks[0] == pytest.approx(1.5, rel=1e-6)
    assert env.cash == pytest.approx(750 + 201.663, rel=1e-6)


@each_class
def test_buys_share_short_cash_in_proportion(env_class):
    # norm_action 1: both coins ask for all 1000 USD; with fee 0.25 the two cost 2500, so each gets 0.4 of its order:
    # 400 USD of each, 1000 spent.
    env = make(env_class, market([10, 10, 10], [20, 20, 20]), initial_capital=1000, buy_cost_pct=0.25, norm_action=1.0)
    env.step(np.array([1.0, 1.0]))
    assert env.stocks == pytest.approx([40.0, 20.0])
    assert env.cash == pytest.approx(0.0, abs=1e-9)


@each_class
def test_a_host_buys_column_by_column_from_the_cash_left(env_class):
    # cappuccino, 1000 USD, norm_action 1: each order is 1000 USD. The first may use 1000 / 1.25 * 0.99 = 792 USD,
    # which costs 990; the second 10 / 1.25 * 0.99 = 7.92 USD.
    config = market(*[[10] * 6, [20] * 6])
    env = make(env_class, config, rules="cappuccino", norm_action=1.0, initial_capital=1000, buy_cost_pct=0.25)
    env.step(np.array([1.0, 1.0]))
    assert env.stocks == pytest.approx([79.2, 0.396], rel=1e-6)
    assert env.cash == pytest.approx(0.1, rel=1e-6)


@each_class
def test_a_buy_below_the_venue_minimum_is_dropped(env_class):
    # 1000 USD: 250 USD at 50 are 5 coins; the minimum is 6.
    config = {**market([50, 50, 50]), "min_order_qty": np.array([6.0])}
    env = make(env_class, config, initial_capital=1000)
    assert env.step(np.array([1.0]))[3]["trades"] == 0


@each_class
def test_no_order_fills_in_a_bar_in_which_nobody_trades_the_coin(env_class):
    # Bar 1 stands for a missing one: it repeats the close of bar 0. A quarter of 1000 USD is 5 coins at 50.
    config = {**market([50, 50, 50, 40, 40]), "filled_array": np.array([[False], [True], [False], [True], [False]])}
    env = make(env_class, config, initial_capital=1000, buy_cost_pct=0.0, sell_cost_pct=0.0)
    assert env.step(np.array([1.0]))[3]["trades"] == 0
    assert env.stocks == pytest.approx([0.0])
    assert env.step(np.array([1.0]))[3]["trades"] == 1
    assert env.stocks == pytest.approx([5.0])
    assert env.step(np.array([-1.0]))[3]["trades"] == 0  # the position is marked at 40 and cannot be sold
    assert env.total_asset == pytest.approx(950.0)
    assert env.step(np.array([-1.0]))[3]["trades"] == 1


@each_class
def test_what_is_not_finite_is_a_hold_beside_a_coin_that_does_not_trade(env_class):
    config = {**market([50] * 4, [50] * 4), "filled_array": np.array([[True, False]] * 4)}
    env = make(env_class, config, initial_capital=1000)
    info = env.step(np.array([np.nan, 1.0]))[3]
    assert (info["rejected_actions"], info["trades"]) == (1, 0)


@each_class
def test_a_buy_cut_below_the_minimum_by_short_cash_is_dropped(env_class):
    # Two orders of 1000 USD on 1000 USD leave 10 coins of each; the second's minimum is 12.
    config = {**market([50] * 3, [50] * 3), "min_order_qty": np.array([0.0, 12.0])}
    env = make(env_class, config, initial_capital=1000, norm_action=1.0, buy_cost_pct=0.0)
    env.step(np.array([1.0, 1.0]))
    assert env.stocks == pytest.approx([10.0, 0.0])


@each_class
def test_an_order_below_ten_dollars_is_dropped_but_a_position_may_always_be_closed(env_class):
    # 4000 USD, action 0.009 at norm_action 4: 9 USD is dropped; 0.012: 12 USD fills. At half the price the position is
    # worth 6 USD and closes; half of it does not.
    env = make(env_class, market([10, 10, 10, 5, 5]), initial_capital=4000, min_order_notional=10.0)
    assert env.step(np.array([0.009]))[3]["trades"] == 0
    assert env.step(np.array([0.012]))[3]["trades"] == 1
    assert env.step(np.array([-0.003]))[3]["trades"] == 0
    assert env.step(np.array([-0.01]))[3]["trades"] == 1
    assert env.stocks[0] == 0.0


@each_class
def test_quantities_are_cut_to_the_increment(env_class):
    # 250 USD at 30 are 8.33 coins: 8.25 in steps of 0.75.
    config = {**market([30] * 3), "qty_increment": np.array([0.75])}
    env = make(env_class, config, initial_capital=1000)
    env.step(np.array([1.0]))
    assert env.stocks[0] == pytest.approx(8.25)


@each_class
def test_a_trailing_stop_sells_everything_after_a_fall_from_the_high(env_class):
    # Bought at 50, high 100 at bar 2, stop 10 %: 91 holds, 89 sells all 5 coins at 89.
    env = make(
        env_class, market([50, 50, 100, 91, 89, 95]), initial_capital=1000, buy_cost_pct=0.0, sell_cost_pct=0.0,
        trailing_stop_pct=0.1,
    )  # fmt: skip
    env.step(np.array([1.0]))
    for _ in range(2):
        env.step(np.array([0.0]))
    assert env.stocks[0] == pytest.approx(5.0)
    env.step(np.array([0.0]))
    assert env.stocks[0] == 0.0
    assert env.cash == pytest.approx(750 + 5 * 89)


@each_class
def test_a_position_is_capped_to_its_share_of_the_account(env_class):
    # All 1000 USD asked for, at most 30 % allowed: 300 USD at 50 are 6 coins.
    settings = {"initial_capital": 1000, "norm_action": 1.0, "max_position_weight": 0.3, "buy_cost_pct": 0}
    env = make(env_class, market([50] * 4), **settings)
    for _ in range(2):
        env.step(np.array([1.0]))
    assert env.stocks[0] == pytest.approx(6.0)


@each_class
def test_a_stale_position_is_released_after_48_bars(env_class):
    # cappuccino: bought at bar 1; held_bars is 48 at bar 49, where 5 % is sold.
    env = make(env_class, market([50] * 60), rules="cappuccino", initial_capital=1000)
    env.step(np.array([1.0]))
    bought = env.stocks[0]
    for _ in range(47):
        env.step(np.array([0.0]))
    assert env.stocks[0] == bought
    env.step(np.array([0.0]))
    assert env.stocks[0] == pytest.approx(0.95 * bought)


@each_class
def test_a_release_below_the_venue_minimum_closes_the_position(env_class):
    # standard with stale_bars 2: 250 USD at 50 are 5 coins; half of them are 125 USD, above 100 USD: sold. Half of the
    # rest is 62.5 USD, below: the whole rest goes.
    settings = {"initial_capital": 1000, "buy_cost_pct": 0, "stale_bars": 2, "stale_fraction": 0.5}
    env = make(env_class, market([50] * 12), min_order_notional=100.0, **settings)
    env.step(np.array([1.0]))
    held = [env.stocks[0]]
    for _ in range(5):
        env.step(np.array([0.0]))
        held.append(env.stocks[0])
    assert held == pytest.approx([5.0, 5.0, 2.5, 2.5, 0.0, 0.0])


@each_class
def test_the_drawdown_term_adds_up_to_the_largest_drawdown(env_class):
    # Fully invested at 100: equity follows 100, 80, 90, 70, 120: the drawdown grows by 0.2, 0, 0.1, 0.
    env = make(
        env_class, market([100, 100, 80, 90, 70, 120]), initial_capital=1000, norm_action=1.0, buy_cost_pct=0,
        sell_cost_pct=0, growth_weight=0.0, drawdown_penalty=2.0, norm_reward=1.0,
    )  # fmt: skip
    env.step(np.array([1.0]))
    rewards = [env.step(np.array([0.0]))[1] for _ in range(4)]
    assert rewards == pytest.approx([-0.4, 0.0, -0.2, 0.0], abs=1e-6)


@each_class
def test_the_benchmark_holds_equal_weights_and_paid_its_fee(env_class):
    # 1000 USD: 400 USD of each coin after a fee of 0.25 (500 / 1.25), bought at bar 0: 40 and 4 coins.
    config = market([10, 11, 12], [100, 90, 110])
    env = make(env_class, config, initial_capital=1000, buy_cost_pct=0.25, benchmark_weight=1.0, growth_weight=0.0)
    _, reward, _, info = env.step(np.zeros(2))
    assert info["benchmark_equity"] == pytest.approx(40 * 11 + 4 * 90)
    assert reward == pytest.approx(-100 * math.log((440 + 360) / 800), abs=1e-6)


@each_class
def test_the_last_reward_of_a_host_episode_is_the_discounted_return(env_class):
    # finrl_crypto, flat account, benchmark 500 coins at 2 rising by 1, 2 and 3 USD a coin: rewards -500, -1000, -1500
    # times norm 0.001, of which the last is replaced by 0.9 * (0.9 * -0.5 - 1.0) - 1.5 = -2.805.
    config = market([2.0, 3.0, 5.0, 8.0, 9.0])
    env_params = {**HOST_NORMS, "rules": "finrl_crypto", "lookback": 1, "norm_reward": 0.001}
    options = {} if env_class is CryptoEnvAlpaca else {"n_envs": 1, "gpu_id": -1}
    env = env_class(config, env_params, initial_capital=1000, gamma=0.9, **options)
    env.reset()
    rewards = [env.step(np.zeros(1))[1] for _ in range(3)]
    assert rewards == pytest.approx([-0.5, -1.0, -2.805], rel=1e-6)


def test_observe_account_adds_progress_drawdown_and_held_bars():
    # Window of 4 steps; after 2 the account fell from 1000 to 900 and the position is 1 bar old.
    config = market([100, 100, 90, 90, 90])
    for env_class in ALL:
        env = make(env_class, config, initial_capital=1000, norm_action=1.0, buy_cost_pct=0, observe_account=True)
        env.step(np.array([1.0]))
        state = env.step(np.array([0.0]))[0]
        assert state[-3:] == pytest.approx([0.5, 0.1, 0.01])


def test_starts_are_the_same_hash_everywhere():
    from environment_Alpaca import hash32 as scalar_hash
    from environment_Alpaca_vectorized import hash32 as batched_hash

    env, episode = torch.arange(50), torch.arange(50) * 977
    batched = batched_hash(123, env, episode).tolist()
    assert batched == [scalar_hash(123, int(e), int(k)) for e, k in zip(env, episode, strict=True)]
    assert len(set(batched)) == 50
