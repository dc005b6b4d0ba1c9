"""The picture of a band: nothing short is lost, no account is mixed with another, every coin is drawn to its scale."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from train.report.band_picture import BandView, band_figure
from train.validation.band_curves import BandCurves, close_up, coin_columns, highest_share, shown_coins

N = 5000


@pytest.fixture
def curves() -> BandCurves:
    """Two accounts of 3000 and 2000 bars, two coins; the first holds 20 % throughout, the second trades a lot."""
    rng = np.random.default_rng(0)
    weight = np.column_stack([np.full(N, 0.2), rng.uniform(0.3, 0.4, N)])
    weight[[0, 3000]] = 0.0
    lo, hi = weight - 0.1, weight + 0.1
    lo[[0, 3000]] = hi[[0, 3000]] = np.nan
    segment = (np.arange(N) >= 3000).astype(int)
    time_s = 1_700_000_000 + 300 * np.arange(N) + 86_400 * 30 * segment
    price = np.column_stack([np.linspace(1.0, 2.0, N), np.linspace(5.0, 4.0, N)])
    return BandCurves(("BTC", "ETH"), time_s, segment, price, lo, hi, weight)


def test_many_bars_share_a_column_and_none_is_left_out(curves):
    weight = curves.weight.copy()
    weight[1234, 0] = 0.9  # one bar
    c = coin_columns(replace(curves, weight=weight), 0)
    assert len(c.row) == 400
    assert c.row[-1] == N - 1
    assert np.diff(c.row).max() - np.diff(c.row).min() <= 1
    assert c.weight_high.max() == 0.9
    column = int(np.searchsorted(c.row, 1234))
    rows = slice(c.row[column - 1] + 1, c.row[column] + 1)
    assert c.weight[column] == pytest.approx(weight[rows, 0].mean())
    assert c.lo[column] == pytest.approx(curves.lo[rows, 0].mean())
    assert c.price[column] == curves.price[c.row[column], 0]


def test_few_bars_are_drawn_as_they_are_with_what_is_unknown_left_open(curves):
    c = coin_columns(curves.rows(slice(2990, 3010)), 1)
    np.testing.assert_array_equal(c.weight, curves.weight[2990:3010, 1])
    assert np.isnan(c.hi[10])
    assert np.isfinite(np.delete(c.hi, 10)).all()


def test_the_best_band_is_shown_from_near_by_only(curves):
    known = replace(curves, best_lo=np.zeros((N, 2)), best_hi=np.ones((N, 2)))
    assert coin_columns(known, 0).best_lo is None
    assert (coin_columns(known.rows(slice(0, 300)), 0).best_hi == 1.0).all()


def test_the_close_up_is_the_busiest_stretch_of_one_account(curves):
    weight = np.full((N, 2), 0.2)
    weight[2900:2950:2, 0] = 0.8  # in the first account
    weight[3000:, 1] = 0.9  # the next account begins otherwise: no trade
    weight[3500:3510:2, 1] = 0.1
    quiet = replace(curves, weight=weight)
    first, second = close_up(quiet, 0), close_up(quiet, 1)
    assert first.start <= 2900 < 2950 <= first.stop <= 3000
    assert 3000 <= second.start <= 3500 < 3510 <= second.stop
    assert close_up(curves.rows(slice(0, 100)), 0) == slice(0, 100)


def test_the_coins_that_moved_most_are_shown_in_their_own_order(curves):
    assert shown_coins(curves, 2) == [0, 1]
    assert shown_coins(curves, 1) == [1]


def test_the_axis_ends_at_the_next_quarter(curves):
    assert highest_share(curves, 0) == 0.5  # the band reaches to 30 %
    assert highest_share(replace(curves, hi=curves.hi * 3.0), 1) == 1.0


def test_arrays_that_do_not_fit_are_refused(curves):
    with pytest.raises(ValueError, match=r"lo must have shape \(5000, 2\), bars and coins; received \(5000, 1\)"):
        replace(curves, lo=curves.lo[:, :1])


def test_each_coin_is_drawn_twice_with_the_best_band_where_it_is_known(curves):
    known = replace(curves, best_lo=np.zeros((N, 2)), best_hi=np.full((N, 2), 0.5))
    drawn, with_best = (list(BandView("Trial 0", c).charts()) for c in (curves, known))
    expected = [(ticker, what) for ticker in ("BTC", "ETH") for what in ("all 5,000 bars", "close-up: 300 bars")]
    assert [(ticker, what) for ticker, what, _ in drawn] == expected
    dashes = "stroke-dasharray: 3.6,1.8"
    assert not any(dashes in svg for _, _, svg in drawn)
    assert [svg.count(dashes) for _, _, svg in with_best] == [0, 2, 0, 2]  # a column of many bars has no best band
    (_, ymin), (_, ymax) = band_figure(known, "x").axes[1].viewLim.get_points()
    assert (ymin, ymax) == (-1.0, 51.0)
