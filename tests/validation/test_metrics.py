"""Metrics against figures computed by hand, and the rules for what is not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from train.validation import metrics

YEAR_5M = 365.0 * 288.0  # 5-minute bars


def test_sharpe_of_four_returns_by_hand():
    # mean 0.01; deviations 0.01, -0.02, 0.01, 0.00 -> sum of squares 0.0006, n-1: variance 0.0002.
    returns = [0.02, -0.01, 0.02, 0.01]
    assert metrics.sharpe(returns, 100.0) == pytest.approx(0.01 / math.sqrt(0.0002) * 10.0)
    assert metrics.volatility(returns, 100.0) == pytest.approx(math.sqrt(0.0002) * 10.0)


def test_sharpe_of_5_minute_bars_scales_by_the_bars_of_365_days():
    returns = np.random.default_rng(0).normal(1e-5, 1e-3, 5000)
    expected = returns.mean() / returns.std(ddof=1) * math.sqrt(365 * 24 * 12)
    assert metrics.sharpe(returns, YEAR_5M) == pytest.approx(expected)


def test_sortino_counts_all_bars_in_the_denominator():
    # Downside: 0, -0.01, 0, 0 -> sqrt(0.0001 / 4) = 0.005; mean 0.01.
    assert metrics.sortino([0.02, -0.01, 0.02, 0.01], 4.0) == pytest.approx(0.01 / 0.005 * 2.0)


def test_returns_compound_and_annualise_over_the_true_length():
    # +10 % then -10 % is -1 %; 2 bars of a year with 4: squared.
    assert metrics.total_return([0.1, -0.1]) == pytest.approx(-0.01)
    assert metrics.annual_return([0.1, -0.1], 4.0) == pytest.approx(0.99**2 - 1.0)


def test_drawdown_counts_from_the_start_of_the_account():
    assert metrics.max_drawdown([-0.2, 0.5, -0.5, 0.1]) == pytest.approx(0.5)
    assert metrics.max_drawdown([-0.2, 0.1]) == pytest.approx(0.2)
    assert metrics.max_drawdown([0.1, 0.1]) == 0.0


def test_the_step_from_one_segment_to_the_next_is_no_return():
    joined = metrics.joined_returns([[100.0, 110.0], [100.0, 50.0]])
    assert joined == pytest.approx([0.1, -0.5])


def test_all_figures_of_two_segments_by_hand():
    found = metrics.measure(
        [[100.0, 110.0, 99.0], [100.0, 120.0]],
        4.0,
        turnover_notional=[[50.0, 20.0], [40.0]],
        fees_quote=[[0.5, 0.2], [0.3]],
        trades=[[1, 2], [1]],
        exposure=[[0.0, 0.5, 0.7], [0.0, 0.8]],
    )
    assert (found.bars, found.trades) == (3, 4)
    assert found.exposure == pytest.approx(0.4)
    assert found.total_return == pytest.approx(1.1 * 0.9 * 1.2 - 1.0)
    assert found.annual_return == pytest.approx((1.1 * 0.9 * 1.2) ** (4.0 / 3.0) - 1.0)
    assert found.max_drawdown == pytest.approx(0.1)
    assert found.turnover == pytest.approx(110.0 / np.mean([100, 110, 99, 100, 120]))
    assert found.fees == pytest.approx(1.0 / np.mean([100, 110, 99, 100, 120]))


@pytest.mark.parametrize("returns", [[], [0.01], [0.0, 0.0, 0.0], [0.01, 0.01, 0.01], [0.1 + 0.2, 0.3, 0.3]])
def test_sharpe_is_undefined_without_variance(returns):
    assert math.isnan(metrics.sharpe(returns, 100.0))


def test_an_account_that_never_trades_has_no_sharpe_and_no_sortino():
    found = metrics.measure([[500.0, 500.0, 500.0]], YEAR_5M)
    assert math.isnan(found.sharpe)
    assert math.isnan(found.sortino)
    assert found.total_return == 0.0
    assert found.max_drawdown == 0.0
    assert found.turnover == 0.0


def test_no_returns_leave_everything_undefined():
    found = metrics.measure([], YEAR_5M)
    assert all(math.isnan(v) for v in (found.total_return, found.annual_return, found.sharpe, found.max_drawdown))


def test_a_lost_account_and_a_growth_beyond_float_are_not_errors():
    assert metrics.annual_return([-1.0, 0.0], 100.0) == -1.0
    assert math.isnan(metrics.annual_return([-1.5], 3.0))
    assert math.isnan(metrics.annual_return([9.0], 1e6))


def test_a_nan_in_the_equity_is_not_hidden():
    assert math.isnan(metrics.sharpe(metrics.bar_returns([1.0, float("nan"), 2.0, 3.0]), 100.0))


moves = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 40)), elements=st.floats(-0.5, 0.5))


@given(moves)
def test_a_batch_gives_the_figures_of_its_rows(returns):
    for name in ("sharpe", "sortino", "volatility", "annual_return"):
        figure = getattr(metrics, name)
        rows = [figure(row, 50.0) for row in returns]
        np.testing.assert_allclose(figure(returns, 50.0), rows, rtol=1e-9, equal_nan=True)
    np.testing.assert_allclose(
        metrics.max_drawdown(returns), [metrics.max_drawdown(row) for row in returns], rtol=1e-12
    )


@given(moves, st.floats(0.1, 1e6))
def test_the_unit_of_money_does_not_matter(returns, scale):
    equity = np.cumprod(1.0 + np.insert(returns[0], 0, 0.0))
    np.testing.assert_allclose(metrics.bar_returns(equity * scale), metrics.bar_returns(equity), rtol=1e-6, atol=1e-12)
