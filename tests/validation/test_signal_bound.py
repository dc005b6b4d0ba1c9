"""The dual bound on an AR(1) signal: its means are exact, and it lies on the solved optimum."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.signal_bound import CASH, SETTLED_BARS, signal_law
from benchmarks.signal_markets import SignalMarket, solve_one_coin
from train.validation.dual_bound import dual_bound

MARKET, COST = SignalMarket(alpha=1e-4), 0.003


@pytest.fixture(scope="module")
def law():
    return signal_law(MARKET, COST)


def test_the_mean_of_the_next_value_is_that_of_a_gaussian_step(law):
    rng = np.random.default_rng(0)
    for signal, left in ((0.3, 3), (-1.2, SETTLED_BARS), (4.4, 40), (6.0, 900)):
        later = MARKET.persistence * signal + np.sqrt(1 - MARKET.persistence**2) * rng.normal(size=200_000)
        drawn = law.value(later, np.full(len(later), left))
        error = drawn.std(axis=0) / np.sqrt(len(later))
        found = law.next_value(np.array([signal]), np.array([left]))[0]
        assert (np.abs(found - drawn.mean(axis=0)) <= 4.0 * error + 1e-12).all()


def test_values_on_the_points_are_those_of_the_chain(law):
    at = law.value(law.points, np.full(len(law.points), 7))
    np.testing.assert_allclose(at, law.values[7], atol=1e-15)
    assert (law.value(np.array([0.0, 9.0]), np.array([0, 0])) == 0.0).all()


def test_the_bound_lies_on_the_solved_optimum(law):
    n_bars = 3000
    signals = [MARKET.signals(n_bars, np.random.default_rng(seed))[:, 0] for seed in range(40)]
    bound, optimum = dual_bound(signals, law, CASH), solve_one_coin(MARKET, COST).growth
    low, high = bound.interval
    assert high / n_bars > optimum * 0.99  # it is a bound
    assert low / n_bars < optimum * 1.05  # and a tight one
