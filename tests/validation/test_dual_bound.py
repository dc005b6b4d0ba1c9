"""The dual bound: the optimum with the right value function, above it with another, beaten by who knows the future."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planted_markets import AnnouncedMarket, law_of, solve_plan
from train.evaluator import evaluate_policy
from train.validation.benchmarks import Costs
from train.validation.dual_bound import (
    LEAST_SEGMENTS,
    DualBound,
    against_bound,
    bound_text,
    chain_law,
    dual_bound,
    interval,
    penalised_hindsight,
)
from train.validation.hindsight import clairvoyant

COST = 0.003
N_SEGMENTS, SEGMENT_BARS = 40, 300
MARKET = AnnouncedMarket(n_assets=2, rise=0.0015, fall=-0.0015, volatility=0.005)
CASH = 0


def small_law(most_bars: int = 60):
    """Two states of one coin, held or not."""
    switching = np.array([[0.9, 0.1], [0.2, 0.8]])
    gain = np.array([[0.0, 0.004], [0.0, -0.005]])
    move = np.array([[0.0, 0.003], [0.003, 0.0]])
    return chain_law(switching, gain, move, most_bars)


def paths_of(law, n_bars: int, n_paths: int, seed: int) -> list[np.ndarray]:
    rng, states = np.random.default_rng(seed), np.zeros((n_paths, n_bars), dtype=np.int64)
    for t in range(1, n_bars):
        states[:, t] = (rng.random(n_paths) > law.switching[states[:, t - 1], 0]).astype(np.int64)
    return list(states)


def test_with_the_right_value_function_every_segments_bound_is_the_optimum():
    law = small_law()
    for path in paths_of(law, 60, 20, seed=0):
        assert penalised_hindsight(path, law, CASH) == pytest.approx(law.values[60, path[0], CASH], abs=1e-12)


def test_the_optimum_of_the_law_is_the_best_rule_found_by_trying_all():
    law = small_law(4)
    # What to hold by (bar, state, held): every rule of three decisions, by expectation over all paths.
    rules = (np.array(rule).reshape(3, 2, 2) for rule in product((0, 1), repeat=12))
    assert law.values[3, 0, CASH] == pytest.approx(max(expected_growth(rule, law, 3) for rule in rules), abs=1e-12)
    assert law.values[1, 0, CASH] == pytest.approx(0.001)


def expected_growth(rule: np.ndarray, law, n_bars: int) -> float:
    """Mean log growth from state 0 and cash of a rule (bar, state, held) -> held."""
    total = 0.0
    for path in product((0, 1), repeat=n_bars - 1):
        states, chance, held, growth = (0, *path), 1.0, CASH, 0.0
        for t, state in enumerate(states):
            wanted = rule[t, state, held]
            growth += law.expected_gain[state, wanted] - law.move[held, wanted]
            held = wanted
            if t + 1 < n_bars:
                chance *= law.switching[state, states[t + 1]]
        total += chance * growth
    return total


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.0, 0.02))
def test_with_any_other_value_function_the_mean_is_above_the_optimum(seed, size):
    law, rng = small_law(), np.random.default_rng(seed)
    wrong = replace(law, values=law.values + size * rng.normal(size=law.values.shape))
    bound = dual_bound(paths_of(law, 60, 60, seed), wrong, CASH)
    assert bound.mean >= law.values[60, 0, CASH] - 4.0 * bound.growth.std(ddof=1) / np.sqrt(60) - 1e-12


# --------------------------------------------------------------------------------- in the environment, where it is used
@pytest.fixture(scope="module")
def planted():
    """The announced market in 40 segments, with the return after the coming fill as a further feature: a leak."""
    config = MARKET.config(N_SEGMENTS * SEGMENT_BARS, seed=5)
    growth = np.diff(np.log(config["price_array"]), axis=0)
    ahead = np.zeros_like(config["price_array"])
    ahead[:-2] = growth[1:]
    config["tech_array"] = np.hstack((config["tech_array"], 1000.0 * ahead)).astype(np.float32)
    config["segments"] = [(i * SEGMENT_BARS, (i + 1) * SEGMENT_BARS) for i in range(N_SEGMENTS)]
    return config


@pytest.fixture(scope="module")
def bound(planted) -> DualBound:
    regime = MARKET.regime_shown(planted["tech_array"])
    signals = [regime[a : b - 2] for a, b in planted["segments"]]
    return dual_bound(signals, law_of(MARKET, COST, SEGMENT_BARS), CASH)


def growth_of(policy, planted) -> np.ndarray:
    params = {"rules": "standard", "lookback": 1, "norm_action": 1.0, "fee_rate": 0.0025, "slippage_rate": 0.0005,
              "min_order_notional": 0.0}  # fmt: skip
    return np.array([record.growth for record in evaluate_policy(policy, planted, params)])


def peek(state):
    """Into the coin with the largest return after the fill, if it pays a round trip; out of all others that fall."""
    ahead = state[:, -2:]
    best = torch.zeros_like(ahead).scatter(1, ahead.argmax(1, keepdim=True), 1.0)
    return torch.where(ahead > 1000.0 * 2 * COST, best * 2.0 - 1.0, torch.where(ahead < 0.0, -1.0, 0.0))


def test_the_bound_is_the_solved_optimum_of_the_announced_market(bound):
    plan = solve_plan(MARKET, COST)
    low, high = bound.interval
    assert low / (SEGMENT_BARS - 2) == pytest.approx(plan.growth, rel=0.1)
    assert high - low < 0.1 * bound.mean


def test_the_best_policy_earns_the_bound_and_is_no_leak(planted, bound):
    found = against_bound(growth_of(MARKET.follow, planted), bound)
    assert not found.is_leak
    assert found.difference[0] < 0.0 < found.difference[1]
    assert "dual bound over 40 segments, 99 % interval" in bound_text(found)


def test_a_policy_that_knows_the_next_return_is_above_the_bound_and_reported(planted, bound):
    found = against_bound(growth_of(peek, planted), bound)
    assert found.is_leak
    assert found.share > 1.2
    assert bound_text(found).startswith("LEAK: ")


def test_hindsight_earns_far_more_than_the_bound(planted, bound):
    hindsight = [
        clairvoyant(planted["price_array"][a:b], Costs(1.0, 0.0025, 0.0005)).growth for a, b in planted["segments"]
    ]
    assert np.mean(hindsight) > 2.0 * bound.mean


def test_the_interval_holds_the_mean_99_times_in_100():
    draws = np.random.default_rng(0).normal(0.3, 2.0, (4000, 30))
    ends = np.array([interval(row) for row in draws])
    assert np.mean((ends[:, 0] < 0.3) & (ends[:, 1] > 0.3)) == pytest.approx(0.99, abs=0.006)


def test_fewer_segments_and_others_than_the_bounds_are_refused(bound):
    with pytest.raises(ValueError, match="at least 30 segments"):
        DualBound(np.zeros(LEAST_SEGMENTS - 1))
    with pytest.raises(ValueError, match="one per segment"):
        against_bound([0.1] * 39, bound)
