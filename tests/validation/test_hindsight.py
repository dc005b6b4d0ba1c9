"""The clairvoyant: never beaten, equal to trying everything, and earned by an account that follows its plan."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import params_of, random_config
from train.evaluator import evaluate_policy
from train.validation.benchmarks import Costs, buy_and_hold_each, random_orders
from train.validation.hindsight import CASH, clairvoyant, share_of_hindsight

CAPITAL, FEE, SLIPPAGE = 10_000.0, 0.0025, 0.0005
COSTS = Costs(CAPITAL, FEE, SLIPPAGE)
FREE = Costs(1.0, 0.0)


def growth_of(plan: tuple[int, ...], price: np.ndarray, can_trade: np.ndarray, costs: Costs) -> float:
    """Final equity of an account that holds `plan[t]` after bar t, by arithmetic; 0 if it cannot be traded."""
    cash, coins, held = 1.0, 0.0, CASH
    for t, wanted in enumerate(plan):
        if wanted == held:
            continue
        if held != CASH:
            if not can_trade[t, held]:
                return 0.0
            cash, coins = coins * price[t, held] * (1.0 - costs.slippage_rate) * (1.0 - costs.fee_rate), 0.0
        if wanted != CASH:
            if not can_trade[t, wanted]:
                return 0.0
            cash, coins = 0.0, cash / (price[t, wanted] * (1.0 + costs.slippage_rate) * (1.0 + costs.fee_rate))
        held = wanted
    return cash if held == CASH else coins * price[-1, held]


def best_by_trying(price: np.ndarray, can_trade: np.ndarray, costs: Costs) -> float:
    """The most that any sequence of coins and cash ends with."""
    states = range(CASH, price.shape[1])
    plans = ((CASH, *rest) for rest in product(states, repeat=len(price) - 1))
    return max(growth_of(plan, price, can_trade, costs) for plan in plans)


@st.composite
def small_markets(draw):
    """Closes of 2 to 6 bars of 1 or 2 coins, some without a price, some bars on which a coin does not trade."""
    n_points, n_assets = draw(st.integers(2, 6)), draw(st.integers(1, 2))
    cells = st.lists(st.sampled_from([0.0, 1.0, 1.004, 1.007, 1.1, 2.0]), min_size=n_assets, max_size=n_assets)
    price = np.array(draw(st.lists(cells, min_size=n_points, max_size=n_points)))
    flags = st.lists(st.booleans(), min_size=n_assets, max_size=n_assets)
    is_traded = np.array(draw(st.lists(flags, min_size=n_points, max_size=n_points)))
    return price, is_traded, draw(st.sampled_from([0.0, 0.0025, 0.05])), draw(st.sampled_from([0.0, 0.0005]))


@settings(max_examples=150, deadline=None)
@given(small_markets())
def test_nothing_better_is_found_by_trying_every_plan(market):
    price, is_traded, fee, slippage = market
    costs, can_trade = Costs(1.0, fee, slippage), is_traded & (price > 0.0)
    found = clairvoyant(price, costs, is_traded)
    assert found.growth == pytest.approx(np.log(best_by_trying(price, can_trade, costs)), abs=1e-12)
    plan = tuple(found.held.tolist())
    assert growth_of(plan, price, can_trade, costs) == pytest.approx(np.exp(found.growth), rel=1e-12)


def test_a_round_trip_pays_from_its_cost_on_and_not_before():
    # 30 bp on each side: the last close needs no sale, a fall after the rise does.
    needed = (1 + SLIPPAGE) * (1 + FEE) / ((1 - SLIPPAGE) * (1 - FEE))
    for factor, growth in ((0.9999, 0.0), (1.0001, np.log(1.0001))):
        price = np.array([[1.0], [1.0], [needed * factor], [0.5]])
        assert clairvoyant(price, COSTS).growth == pytest.approx(growth, abs=1e-12)


def test_the_first_bars_rise_is_missed_because_an_order_fills_a_bar_later():
    price = np.array([[1.0], [2.0], [3.0]])
    found = clairvoyant(price, FREE)
    assert found.held[:2].tolist() == [CASH, 0]
    assert found.growth == pytest.approx(np.log(1.5))
    assert clairvoyant(price, FREE, first_fill=0).growth == pytest.approx(np.log(3.0))


def test_coins_are_valued_at_the_last_close_without_selling():
    price = np.array([[1.0], [1.0], [2.0]])
    assert clairvoyant(price, COSTS).growth == pytest.approx(np.log(2.0 / ((1 + SLIPPAGE) * (1 + FEE))))


def test_a_bar_on_which_a_coin_does_not_trade_is_neither_bought_nor_sold_on():
    price = np.array([[1.0], [1.0], [1.0], [4.0], [1.0]])
    is_traded = np.array([[True], [True], [True], [False], [True]])
    assert clairvoyant(price, FREE).growth == pytest.approx(np.log(4.0))
    assert clairvoyant(price, FREE, is_traded).growth == 0.0
    is_traded[1:3], price[2:] = False, 3.0
    assert clairvoyant(price, FREE, is_traded).growth == 0.0  # the rise came between two bars without trade


def test_a_coin_that_ends_without_a_price_is_left_before():
    price = np.array([[1.0, 1.0], [1.0, 1.0], [2.0, 1.5], [0.0, 1.4]])
    found = clairvoyant(price, FREE)
    assert found.held[2] != 0
    assert found.growth == pytest.approx(np.log(2.0))
    assert clairvoyant(np.zeros((5, 2)), FREE).growth == 0.0


@pytest.mark.parametrize("env_class", [VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized])
@pytest.mark.parametrize("fee", [0.0, 0.0025])
def test_an_account_in_the_environment_that_follows_the_plan_earns_it(env_class, fee):
    lookback, n_bars = 3, 400
    config = random_config(n_bars, 3, seed=4, volatility=0.01, min_order_qty=np.zeros(3), qty_increment=np.zeros(3))
    config["filled_array"] = np.random.default_rng(5).random((n_bars, 3)) < 0.1
    config["filled_array"][:30, 1] = True  # not traded yet
    config["filled_array"][-1] = False
    params = params_of("standard", lookback=lookback, norm_action=1.0, fee_rate=fee, slippage_rate=SLIPPAGE,
                       min_order_notional=0.0)  # fmt: skip
    env = env_class(config, params, n_envs=2, start="first", as_numpy=False)
    first = lookback - 1
    plan = clairvoyant(config["price_array"][first:], Costs(CAPITAL, fee, SLIPPAGE), ~config["filled_array"][first:])
    assert np.count_nonzero(np.diff(plan.held)) > 20
    env.reset()
    equity, done = [CAPITAL], torch.zeros(2, dtype=torch.bool)
    for held in plan.held[1:]:  # decided at the bar before, filled at the bar whose plan it is
        action = torch.full((2, 3), -1.0)
        if held != CASH:
            action[:, held] = 1.0
        _, _, done, info = env.step(action)
        equity.append(float(info["equity"][0]))
    assert done.all()
    np.testing.assert_allclose(np.log(np.array(equity) / CAPITAL), plan.log_equity, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.0, 0.02), st.sampled_from([1.0, 4.0]), st.floats(0.0, 0.5))
def test_no_policy_earns_more_than_hindsight(seed, fee, norm_action, stop):
    config = random_config(80, 3, 4, seed=seed, volatility=0.02)
    config["filled_array"] = np.random.default_rng(seed).random((80, 3)) < 0.2
    params = params_of("standard", lookback=2, norm_action=norm_action, fee_rate=fee, trailing_stop_pct=stop)
    weights = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed % 1000))

    def act(state):
        return torch.tanh(3.0 * state @ weights[: state.shape[1]])

    (record,) = evaluate_policy(act, config, params)
    is_traded = None if stop else ~config["filled_array"][record.bars]
    bound = clairvoyant(config["price_array"][record.bars], Costs(CAPITAL, fee, 0.0005), is_traded)
    assert record.growth <= bound.growth + 1e-12


def test_no_random_account_and_no_coin_bought_a_bar_later_earns_more_than_hindsight():
    price = random_config(300, 3, seed=8)["price_array"]
    bound = clairvoyant(price, COSTS).growth
    draws = random_orders(price, np.full(299, 2000.0), COSTS, 50, np.random.default_rng(0))
    assert np.log(draws.equity[:, -1] / CAPITAL).max() < bound
    held = buy_and_hold_each(price[1:], COSTS).equity[:, -1]
    assert np.log(held / CAPITAL * (1 - SLIPPAGE)).max() < bound


def test_the_share_of_hindsight_is_of_log_growth_and_undefined_without_any():
    assert share_of_hindsight(0.1, 0.4) == 0.25
    assert share_of_hindsight(-0.1, 0.4) == -0.25
    assert np.isnan(share_of_hindsight(0.0, 0.0))
