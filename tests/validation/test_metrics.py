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


# From 100 up to 110, below it for three bars, back, below it for two bars more at the end.
DIPS = [100.0, 110.0, 108.0, 99.0, 105.0, 110.0, 104.0, 104.5]


def test_drawdown_bars_by_hand():
    assert metrics.max_drawdown_bars(metrics.bar_returns(DIPS)) == 3.0
    assert metrics.max_drawdown_bars(metrics.bar_returns(DIPS[:3])) == 1.0
    assert metrics.max_drawdown_bars(metrics.bar_returns([100.0, 110.0, 120.0])) == 0.0
    assert metrics.max_drawdown_bars([0.1, -0.1]) == 1.0


def test_a_drawdown_that_is_not_over_counts():
    assert metrics.max_drawdown_bars(metrics.bar_returns([100.0, 90.0, 101.0, 99.0, 99.0, 99.0, 99.0])) == 4.0


def test_a_recovery_to_the_maximum_ends_a_drawdown_whatever_the_rounding():
    # Compounded, the way down and up again ends an ulp below 1.01; the ten flat bars behind it are no drawdown.
    equity = [100.0, 101.0, 96.0, *[101.0] * 10]
    wealth = np.cumprod(1.0 + metrics.bar_returns(equity))
    assert wealth[-1] < wealth[0]
    assert metrics.max_drawdown_bars(metrics.bar_returns(equity)) == 1.0


def test_calmar_is_annual_return_over_drawdown():
    # (1.1 * 0.9)^2 - 1 = -0.0199 a year of 4 bars; drawdown 0.1.
    assert metrics.calmar([0.1, -0.1], 4.0) == pytest.approx(-0.199)
    assert math.isnan(metrics.calmar([0.1, 0.1], 4.0))


def test_the_tail_by_hand():
    # 41 returns: the 5 % quantile is entry 40 * 0.05 = 2 from the lowest, the mean that of entries 0, 1 and 2.
    returns = np.random.default_rng(0).permutation(np.concatenate([[-0.09, -0.05, -0.04], np.full(38, 0.01)]))
    assert metrics.value_at_risk(returns) == pytest.approx(-0.04)
    assert metrics.conditional_value_at_risk(returns) == pytest.approx(-0.06)
    # 11 returns: entry 0.5 is between the lowest two; the mean is that of the lowest alone.
    assert metrics.value_at_risk([-0.2, -0.1, *[0.0] * 9]) == pytest.approx(-0.15)
    assert metrics.conditional_value_at_risk([-0.2, -0.1, *[0.0] * 9]) == pytest.approx(-0.2)
    assert metrics.value_at_risk([0.01, 0.03], tail=0.5) == pytest.approx(0.02)


def test_hit_rate_leaves_out_the_bars_that_did_not_move():
    assert metrics.hit_rate([0.1, 0.0, -0.1, 0.2, 0.0, 0.0]) == pytest.approx(2.0 / 3.0)
    assert math.isnan(metrics.hit_rate([0.0, 0.0]))


FIGURES = (
    "total_return", "annual_return", "volatility", "sharpe", "sortino", "max_drawdown", "calmar", "max_drawdown_bars",
    "value_at_risk", "conditional_value_at_risk", "hit_rate",
)  # fmt: skip


@pytest.mark.parametrize(
    ("equity", "defined"),
    [
        ([], set()),
        ([100.0], set()),
        ([100.0, float("nan"), 101.0, 102.0], set()),
        ([100.0, float("inf"), 101.0, 102.0], set()),
        # one return has no spread
        ([100.0, 101.0], set(FIGURES) - {"volatility", "sharpe", "sortino", "calmar"}),
        ([100.0, 99.0], set(FIGURES) - {"volatility", "sharpe"}),
        ([100.0] * 4, set(FIGURES) - {"sharpe", "sortino", "calmar", "hit_rate"}),
        # from -50 % on: no yearly growth
        ([100.0, -50.0, -20.0], set(FIGURES) - {"annual_return", "calmar"}),
        # nothing is made from nothing
        ([100.0, 0.0, 5.0], set()),
        ([1e-200, 1e200, 1e-200], set()),
    ],
)
def test_what_is_not_defined_is_nan_and_nothing_else_is(equity, defined):
    found = metrics.measure([equity], 4.0)
    assert {name for name in FIGURES if not math.isnan(getattr(found, name))} == defined
    assert found.bars == max(len(equity) - 1, 0)


def test_a_ruined_account_stays_in_the_figures():
    found = metrics.measure([[100.0, 50.0, 0.0, 0.0, 0.0]], 365.0)
    assert (found.total_return, found.annual_return, found.max_drawdown) == (-1.0, -1.0, 1.0)
    assert found.max_drawdown_bars == 4.0
    assert found.calmar == -1.0
    assert found.sharpe < 0.0


def test_loss_beyond_the_account_is_a_drawdown_above_one():
    assert metrics.measure([[100.0, -50.0]], 4.0).max_drawdown == pytest.approx(1.5)


curves = hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-0.5, 0.5))


@given(curves, st.floats(0.01, 1e6))
def test_no_figure_depends_on_the_unit_of_money(returns, scale):
    equity = np.cumprod(1.0 + np.insert(returns, 0, 0.0))
    steps = np.arange(returns.size, dtype=np.float64)
    ours = metrics.measure([equity], 50.0, turnover_notional=[steps], fees_quote=[steps * 0.01])
    scaled = metrics.measure(
        [equity * scale], 50.0, turnover_notional=[steps * scale], fees_quote=[steps * 0.01 * scale]
    )
    for name in ("total_return", "max_drawdown", "max_drawdown_bars", "turnover", "fees", "volatility"):
        assert getattr(scaled, name) == pytest.approx(getattr(ours, name), rel=1e-6, abs=1e-9, nan_ok=True)
    for name in ("value_at_risk", "conditional_value_at_risk"):
        assert getattr(scaled, name) == pytest.approx(getattr(ours, name), rel=1e-6, abs=1e-9, nan_ok=True)


@given(curves, st.data())
def test_cutting_an_account_into_segments_changes_no_figure_of_its_returns(returns, data):
    cut = data.draw(st.integers(0, returns.size))
    equity = np.cumprod(1.0 + np.insert(returns, 0, 0.0))
    rest = 7.0 * equity[cut:]
    whole, parts = metrics.measure([equity], 50.0), metrics.measure([equity[: cut + 1], rest], 50.0)
    assert parts.bars == whole.bars
    for name in ("total_return", "max_drawdown", "max_drawdown_bars", "value_at_risk", "conditional_value_at_risk"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-6, abs=1e-9)
