"""The smallest edge that a data set reveals, against tables and against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from train.validation.power import detectable_edge, market_volatility, power_text

BARS_PER_YEAR = 105_120.0


def test_the_formula_has_the_quantiles_of_the_tables():
    edge = detectable_edge(10_000, 0.0025, 0.003, BARS_PER_YEAR)
    assert edge.smallest == pytest.approx((1.6449 + 0.8416) * 0.0025 / 100.0, rel=1e-4)
    assert edge.round_trip == pytest.approx(0.006)
    assert edge.per_year == pytest.approx(edge.smallest * BARS_PER_YEAR)
    assert edge.sharpe == pytest.approx((1.6449 + 0.8416) * np.sqrt(BARS_PER_YEAR / 10_000), rel=1e-4)
    assert edge.gross_per_bar(288) == pytest.approx(edge.smallest + 0.006 / 288)


def test_an_edge_of_that_size_is_found_four_times_in_five():
    n, sigma, n_tries = 400, 0.002, 4000
    edge = detectable_edge(n, sigma, 0.0, BARS_PER_YEAR).smallest
    returns = np.random.default_rng(1).normal(edge, sigma, (n_tries, n))
    found = returns.mean(axis=1) > 1.6449 * sigma / np.sqrt(n)
    assert found.mean() == pytest.approx(0.80, abs=0.025)  # four standard errors of a share of 4000


def test_the_markets_volatility_is_that_of_holding_all_coins_alike():
    rng = np.random.default_rng(0)
    returns = rng.normal(0.0, 0.01, (50_000, 4))
    close = np.cumprod(1.0 + np.vstack([np.zeros(4), returns]), axis=0)
    assert market_volatility([close]) == pytest.approx(0.01 / 2.0, rel=0.02)
    assert market_volatility([close[:20_000], close[20_000:]]) == pytest.approx(0.01 / 2.0, rel=0.02)
    close[:, 3] = 0.0
    assert market_volatility([close]) == pytest.approx(0.01 / np.sqrt(3.0), rel=0.02)


def test_the_line_says_costs_bars_and_edges():
    edge = detectable_edge(40_000, 0.0025, 0.003, BARS_PER_YEAR)
    text = power_text(edge, "25 bp fee + 5 bp slippage", 288)
    assert "a round trip costs 60 bp (25 bp fee + 5 bp slippage on each side)" in text
    assert "over 40,000 bars" in text
    assert "0.311 bp per bar after costs" in text
    assert "0.519 bp per bar before costs if held 288 bars" in text


def test_no_bars_are_refused():
    with pytest.raises(ValueError, match="n_bars must be >= 1"):
        detectable_edge(0, 0.01, 0.0, BARS_PER_YEAR)
