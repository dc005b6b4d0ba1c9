"""It learns: against a policy proved best where there is a signal, and to keep still where there is none."""

from dataclasses import replace

import numpy as np
import pytest

import benchmarks.learning
from benchmarks.learning import COST_RATE, MARKET, SIGNAL_PARAMS, TEST_BARS, TEST_SEED, run_signal, run_silent
from benchmarks.planted_markets import AnnouncedMarket, is_the_rule, silent_config, solve_plan
from train.evaluator import evaluate_policy, mean_growth


def test_dynamic_programming_finds_the_rule():
    assert is_the_rule(solve_plan(MARKET, COST_RATE))


def test_where_costs_exceed_the_trend_the_plan_is_to_stay_out():
    plan = solve_plan(AnnouncedMarket(rise=0.0001, fall=-0.0001), COST_RATE)
    cash = int(np.flatnonzero((plan.weights == 0).all(1))[0])
    assert plan.growth == pytest.approx(0.0, abs=1e-9)
    assert all(plan.target[regime, cash] == cash for regime in range(MARKET.n_regimes))


def test_the_rule_earns_in_the_environment_what_the_plan_promises():
    growths = [
        mean_growth(evaluate_policy(MARKET.follow, MARKET.config(3000, seed), SIGNAL_PARAMS)) / 3000
        for seed in range(100, 108)
    ]
    promised = solve_plan(MARKET, COST_RATE).growth
    assert np.mean(growths) == pytest.approx(promised, abs=3 * np.std(growths) / np.sqrt(len(growths)))


def test_no_nearby_rule_earns_more_than_the_rule():
    config = MARKET.config(TEST_BARS, TEST_SEED)
    best = mean_growth(evaluate_policy(MARKET.follow, config, SIGNAL_PARAMS))

    def timid(state):
        return MARKET.follow(state) * 0.5

    def late(state):  # follows the second block of the lookback: the regime one bar ago
        width = MARKET.n_assets + MARKET.n_noise_features
        first = 1 + MARKET.n_assets + width
        return state[:, first : first + MARKET.n_assets] * 2.0 - 1.0

    for rule in (timid, late, lambda state: MARKET.follow(state) * 0.0 + 1.0, lambda state: -MARKET.follow(state)):
        assert mean_growth(evaluate_policy(rule, config, SIGNAL_PARAMS)) < best


def test_the_silent_market_pays_nothing_for_holding():
    # Volatile enough that a symmetric log return, which pays volatility^2 / 2 a bar, would be seen.
    price = silent_config(100_000, 3, 0, volatility=0.04)["price_array"]
    steps = price[1:] / price[:-1] - 1.0
    assert np.all(np.abs(steps.mean(0)) < 3 * steps.std(0) / np.sqrt(len(steps)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_earns_at_least_four_fifths_of_the_best_on_unseen_bars(seed):
    assert run_signal(seed).test_share_of_best >= 0.8


@pytest.mark.slow
def test_bars_in_place_of_rows_learn_it_too(monkeypatch):
    made = benchmarks.learning.settings
    monkeypatch.setattr(benchmarks.learning, "settings", lambda *args: replace(made(*args), observation_store="bars"))
    assert run_signal(0).test_share_of_best >= 0.8


@pytest.mark.slow
def test_one_environment_learns_it_too():
    assert run_signal(0, n_envs=1).test_share_of_best >= 0.8


@pytest.mark.slow
def test_with_the_signal_hidden_it_earns_next_to_nothing():
    assert run_signal(0, hide_signal=True).test_share_of_best < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_without_a_signal_it_stops_trading(seed):
    run = run_silent(seed)
    assert run.exploring_turnover[-1] < 0.2 * run.exploring_turnover[0]
    assert run.turnover[-1] < 1.0
    assert run.fee_share[-1] < 0.01
