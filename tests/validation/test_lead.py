"""What is left of returns beside their exposure to the market, and the error of a difference of two Sharpe ratios."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.validation.lead import lead_returns, market_beta, sharpe_difference_error
from train.validation.metrics import sharpe


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(-2.0, 3.0), st.floats(-0.01, 0.01))
def test_beta_is_that_of_the_least_squares_line(seed, beta, alpha):
    rng = np.random.default_rng(seed)
    m = rng.normal(0.001, 0.01, 200)
    r = alpha + beta * m + rng.normal(0.0, 0.002, 200)
    slope, constant = np.polyfit(m, r, 1)
    assert market_beta(r, m) == pytest.approx(slope, abs=1e-9)
    lead = lead_returns(r, m)
    assert lead.mean() == pytest.approx(constant, abs=1e-9)  # alpha is kept
    assert np.corrcoef(lead, m)[0, 1] == pytest.approx(0.0, abs=1e-6)


def test_an_account_of_constant_exposure_keeps_its_costs():
    m = np.random.default_rng(0).normal(0.01, 0.01, 100)
    np.testing.assert_allclose(lead_returns(0.3 * m - 0.0001, m), -0.0001, atol=1e-15)


def test_a_market_that_stands_still_exposes_nobody_and_what_is_not_finite_stays_so():
    r = np.random.default_rng(0).normal(size=50)
    assert market_beta(r, np.full(50, 0.1) * (1 + 1e-16)) == 0.0
    assert math.isnan(market_beta(np.append(r[1:], np.nan), r))
    assert math.isnan(market_beta([], []))
    assert np.isnan(lead_returns(np.append(r[1:], np.nan), r)).all()


def test_the_error_of_a_difference_by_hand():
    # rho 0 and Sharpe ratios near 0: two independent errors of 1 / sqrt(n)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 100_000))
    assert sharpe_difference_error(a, b, 1.0) == pytest.approx(math.sqrt(2.0 / 100_000), rel=0.01)
    assert sharpe_difference_error(a, 2.0 * a, 1.0) == pytest.approx(0.0, abs=1e-9)  # leverage is no difference
    assert math.isnan(sharpe_difference_error(a, np.zeros(100_000), 1.0))
    # Memmel's formula with a high Sharpe ratio: a against noise that it has nothing to do with
    high = a + 1.0
    ratio, other = float(sharpe(high, 1.0)), float(sharpe(b, 1.0))
    rho = np.corrcoef(high, b)[0, 1]
    expected = (2 - 2 * rho + 0.5 * (ratio**2 + other**2) - ratio * other * rho**2) / 100_000 * 365
    assert sharpe_difference_error(high, b, 365.0) == pytest.approx(math.sqrt(expected))


@pytest.mark.parametrize("exposure", [0.05, 0.1, 0.2, 0.5])
def test_two_errors_are_passed_by_chance_as_often_as_they_say(exposure):
    """Accounts that hold the market in long runs at random: no skill, and 2.3 % nominal."""
    rng, n, run, repetitions = np.random.default_rng(1), 1_000, 20, 1_000
    passed = passed_single = 0
    for _ in range(repetitions):
        market = rng.standard_normal(n)
        holds = np.repeat(rng.random(n // run) < exposure, run)
        holds[:run] |= not holds.any()
        own = market * holds
        lead = float(sharpe(own, 1.0)) - float(sharpe(market, 1.0))
        passed += lead > 2.0 * sharpe_difference_error(own, market, 1.0)
        passed_single += lead > 2.0 * math.sqrt(1.0 / n)
    chance = 3.0 * math.sqrt(0.0228 / repetitions)  # three binomial deviations
    assert abs(passed / repetitions - 0.0228) <= chance
    if exposure == 0.05:  # the error of one ratio is too small for a difference of two that hardly move together
        assert passed_single / repetitions > 0.0228 + chance
