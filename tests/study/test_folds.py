"""What trials share: data sets, coins and folds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from market.build import dataset_from_bars
from market.dataset import DatasetError, save_dataset
from market.defaults import WARMUP_BARS
from market.features import DEFAULT
from market.sample import sample_bars, synthetic_dataset
from train.records.errors import StudyError
from train.study.folds import (
    EMBARGO_FRACTION,
    FILL_DELAY_BARS,
    common_market,
    fold_data,
    load_study_data,
    select_tickers,
)
from train.study.search_space import MAX_LOOKBACK
from train.study.split_plan import SplitPlan
from train.validation.splits import SplitError, bars_in

STANDARD = SplitPlan("standard", 3, 2)
COINS = ("BTC", "ETH", "LTC")


@pytest.fixture(scope="module")
def both():
    """5m and 15m data sets of one market."""
    bars = sample_bars("5m", 3 * (2_400 + WARMUP_BARS), COINS, seed=1)
    return [dataset_from_bars(bars, COINS, name, source="sample", synthetic=True) for name in ("5m", "15m")]


def test_folds_keep_lookback_feature_warm_up_and_fill_delay_apart(folded):
    purge = MAX_LOOKBACK + WARMUP_BARS + FILL_DELAY_BARS
    assert folded.purge_bars == purge
    assert folded.embargo_bars == np.ceil(EMBARGO_FRACTION * 3000)
    assert len(folded.folds) == 6
    for fold in folded.folds:
        for first, last in fold.test:
            for a, b in (*fold.fit, *fold.validation):
                assert b <= first - purge or a >= last + purge + folded.embargo_bars


def test_validation_comes_from_training_bars_with_a_purge_before_it(folded):
    for fold in folded.folds:
        assert bars_in(fold.validation) > 0
        for first, last in fold.validation:
            assert any(b == first - folded.purge_bars for _, b in fold.fit)
            assert last - first >= 64


def test_chosen_coins_take_their_features_along_in_the_order_asked_for(market):
    chosen = select_tickers(market, ["LTC/USD", "btc"])
    assert chosen.tickers == ("LTC", "BTC")
    np.testing.assert_array_equal(chosen.price, market.price[:, [2, 0]])
    per_coin = len(DEFAULT)
    np.testing.assert_array_equal(chosen.tech[:, :per_coin], market.tech[:, 2 * per_coin : 3 * per_coin])
    np.testing.assert_array_equal(chosen.tech[:, 2 * per_coin :], market.tech[:, 3 * per_coin :])
    assert chosen.feature_names[-1] == "time:week_cos"
    assert chosen.feature_names[0].startswith("LTC:")
    assert chosen.sha256 != market.sha256
    assert select_tickers(market, None) is market


def test_unknown_coins_are_refused_with_what_there_is(market):
    with pytest.raises(StudyError, match=r"--tickers.*DOGE.*BTC"):
        select_tickers(market, ["BTC", "DOGE"])


def test_a_folder_of_data_sets_is_searched_by_timeframe(market, tmp_path):
    save_dataset(market, tmp_path / "5m")
    save_dataset(synthetic_dataset("1h", 3000, ("BTC",)), tmp_path / "1h")
    for folder in (tmp_path, tmp_path / "5m"):
        assert [d.timeframe for d in load_study_data(folder, None, None, STANDARD)] == ["5m"]
    assert [d.timeframe for d in load_study_data(tmp_path, "1h", None, STANDARD)] == ["1h"]
    with pytest.raises(StudyError, match="--timeframe 4h"):
        load_study_data(tmp_path, "4h", None, STANDARD)
    with pytest.raises(StudyError, match=r"--timeframe 1h: .* has 5m bars"):
        load_study_data(tmp_path / "5m", "1h", None, STANDARD)


def test_multi_timeframe_takes_the_data_sets_side_by_side(both, tmp_path):
    plan = SplitPlan("multi-timeframe", 3, 2)
    market, longer = both
    save_dataset(market, tmp_path / "5m")
    with pytest.raises(StudyError, match="at least two datasets"):
        load_study_data(tmp_path / "5m", None, None, plan)
    save_dataset(longer, tmp_path / "15m")
    data = load_study_data(tmp_path / "5m", None, ["BTC"], plan)
    assert [d.timeframe for d in data] == ["5m", "15m"]
    assert {d.dataset.tickers for d in data} == {("BTC",)}
    assert data[0].parent_sha256 == market.sha256


def test_timeframes_are_cut_to_the_period_that_all_of_them_cover(both):
    market, long = both
    five, fifteen = common_market([market.with_rows(0, 4_000), long])
    # Both begin at one midnight with 256 bars of warm-up, which take 15m bars 2560 minutes longer.
    assert fifteen.time[0] - 15 * 60 == five.time[0] - 5 * 60
    assert fifteen.time[-1] <= five.time[-1] < fifteen.time[-1] + 15 * 60
    assert (len(five.time), len(fifteen.time)) == (4_000 - 512, (4_000 - 512) // 3)
    assert fifteen.segments == ((0, len(fifteen.time)),)
    np.testing.assert_array_equal(fifteen.price, long.price[: len(fifteen.time)])
    np.testing.assert_array_equal(five.tech, market.tech[512:4_000])
    assert common_market([five, five])[1] is five


def test_other_closes_at_the_same_times_are_another_market(both):
    market, long = both
    with pytest.raises(StudyError, match=r"5m and 15m are not the same market: BTC closes at .* \(7200 of 7200 closes"):
        common_market([market, replace(long, price=long.price * 1.01)])
    price = long.price.copy()
    price[70, 1] *= 1.0 + 5e-9
    with pytest.raises(StudyError, match=r"not the same market: ETH closes at .* \(1 of 7200 closes differ\)"):
        common_market([market, replace(long, price=price)])
    filled = np.zeros(price.shape, dtype=bool)
    filled[70, 1] = True
    common_market([market, replace(long, price=price, filled=filled)])
    common_market([market, replace(long, price=long.price * (1.0 + 1e-12), source="elsewhere")])
    with pytest.raises(StudyError, match="5m and 15m have no closing time in common"):
        common_market([market, replace(long, time=long.time + 60)])


def test_timeframes_of_other_markets_are_refused(market):
    long = synthetic_dataset("15m", 1000, market.tickers)
    for other, words in (
        (synthetic_dataset("15m", 1000, ("BTC", "ETH", "SOL")), "5m has BTC, ETH, LTC but 15m has BTC, ETH, SOL"),
        (replace(long, synthetic=False), "5m has synthetic bars but 15m has real bars"),
        (replace(long, time=long.time + 10**8), "have no period in common"),
        (replace(long, venue=replace(long.venue, as_of="2025-01-01")), "same --venue"),
    ):
        with pytest.raises(StudyError, match=words):
            common_market([market, other])


@pytest.mark.parametrize("mode", ["rolling", "expanding"])
def test_walk_forward_folds_train_before_their_test(market, mode):
    data = fold_data(market, SplitPlan(mode, 3, 2))
    assert len(data.folds) == 3
    for fold in data.folds:
        assert max(b for _, b in (*fold.fit, *fold.validation)) <= fold.test[0][0] - data.purge_bars


def test_an_expanding_window_keeps_the_oldest_bars(market):
    first_bars = {
        mode: [fold.fit[0][0] for fold in fold_data(market, SplitPlan(mode, 3, 2)).folds]
        for mode in ("rolling", "expanding")
    }
    assert first_bars == {"rolling": [0, 600, 1200], "expanding": [0, 0, 0]}


def test_kfold_tests_every_bar_once(market):
    data = fold_data(market, SplitPlan("kfold", 3, 2))
    assert [fold.test for fold in data.folds] == [((0, 1000),), ((1000, 2000),), ((2000, 3000),)]
    with pytest.raises(StudyError, match=r"--num-paths must be at least 2 with --mode kfold"):
        SplitPlan("kfold", 1, 1)


def test_a_missing_folder_says_how_to_build_one(tmp_path):
    with pytest.raises(DatasetError, match=r"scripts/data/build_dataset\.py"):
        load_study_data(tmp_path / "none", None, None, STANDARD)


@pytest.mark.parametrize(("paths", "k", "flag"), [(0, 1, "--num-paths"), (3, 0, "--k-test"), (3, 4, "--k-test")])
def test_impossible_designs_are_refused_by_their_flag(paths, k, flag):
    with pytest.raises(StudyError, match=flag):
        SplitPlan("standard", paths, k)


def test_too_little_data_is_refused_before_any_trial(market):
    with pytest.raises(SplitError, match="no training segment"):
        fold_data(market, SplitPlan("standard", 20, 15))


def test_the_longest_episode_fits_every_folds_training_data(folded):
    for fold in folded.folds:
        longest = max(b - a for a, b in fold.fit)
        assert folded.longest_episode_bars <= longest - MAX_LOOKBACK
