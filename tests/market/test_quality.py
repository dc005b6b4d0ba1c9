"""The report of a grid's bars: by hand, by plain loops on generated bars, and against the measures of real files."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.bars.candles import fill_gaps, read_bars, resample, segments_of, tidy_bars, to_grid
from market.bars.quality import TIMELINE_BINS, account_of_bars, gap_report, has_report
from market.build import dataset_from_bars
from market.defaults import MIN_SEGMENT_BARS, WARMUP_BARS
from market.errors import BarsError
from market.names import timeframe_name
from market.sample import sample_bars

STEP = 300
START = 1_704_067_200  # 2024-01-01


def rows(closes, volumes=None, symbol="BTC/USD", is_flat=None):
    """Bars of a coin; None is a missing one. A bar is flat, open = high = low = close, where `is_flat` says so."""
    volumes, is_flat = volumes or [5.0] * len(closes), is_flat or [False] * len(closes)
    found = []
    for i, (close, volume, flat) in enumerate(zip(closes, volumes, is_flat, strict=True)):
        if close is not None:
            top, bottom = (close, close) if flat else (close * 1.01, close * 0.99)
            found.append((START + STEP * i, symbol, close, top, bottom, close, volume))
    return pd.DataFrame(found, columns=["timestamp", "symbol", "open", "high", "low", "close", "volume"])


def grid_of(*tables, tickers=("BTC",), max_fill_bars=0):
    return fill_gaps(to_grid(tidy_bars(pd.concat(tables), "t"), tickers, "t"), max_fill_bars)


def report_of(*tables, tickers=("BTC",), max_fill_bars=0):
    return gap_report(grid_of(*tables, tickers=tickers, max_fill_bars=max_fill_bars), max_fill_bars)


def btc(*tables, **options):
    return report_of(*tables, **options)["tickers"]["BTC"]


def test_gaps_are_counted_where_they_are_and_filled_bars_stay_missing():
    found = btc(rows([1, 1, None, 1, 1, None, None, None, 1, 1, 1, 1]), max_fill_bars=2)
    assert (found["bars"], found["missing_bars"], found["filled_bars"], found["gaps"]) == (8, 4, 3, 2)
    assert (found["longest_gap_bars"], found["longest_gap_start"]) == (3, "2024-01-01 00:25")
    assert found["longest_gaps"] == [["2024-01-01 00:25", 3], ["2024-01-01 00:10", 1]]
    assert (found["first_open"], found["last_open"]) == ("2024-01-01 00:00", "2024-01-01 00:55")


def test_only_the_five_longest_gaps_are_listed_and_equals_in_order():
    closes = [1, 1]
    for length in (1, 2, 3, 4, 2, 1, 2):
        closes += [None] * length + [1]
    found = btc(rows(closes))
    assert found["gaps"] == 7
    assert [bars for _, bars in found["longest_gaps"]] == [4, 3, 2, 2, 2]
    starts = [start for start, bars in found["longest_gaps"] if bars == 2]
    assert starts == sorted(starts)


def test_a_coin_that_starts_late_and_ends_early_is_measured_over_its_own_span():
    late = rows([None, None, 1, None, 1, 1, None, None], symbol="ETH/USD")
    found = report_of(rows([1] * 8), late, tickers=("BTC", "ETH"))["tickers"]["ETH"]
    assert (found["first_open"], found["last_open"]) == ("2024-01-01 00:10", "2024-01-01 00:25")
    assert (found["outside_bars"], found["missing_bars"], found["gaps"]) == (4, 1, 1)
    assert found["timeline"] == {"missing": "...9...."}


def test_bars_without_volume_and_flat_bars_run_over_gaps_and_made_up_bars_do_not_count():
    volumes = [5, 0, 0, 5, 0, None, 0, 0, 5]
    found = btc(rows([1, 1, 1, 1, 1, None, 1, 1, 1], volumes, is_flat=[v == 0 for v in volumes]), max_fill_bars=3)
    assert (found["bars"], found["repeated_bars"], found["missing_bars"], found["gaps"]) == (8, 5, 1, 1)
    assert (found["zero_volume_bars"], found["longest_zero_volume_run"]) == (5, 3)
    assert found["longest_zero_volume_start"] == "2024-01-01 00:20"
    assert (found["flat_bars"], found["longest_flat_run"], found["longest_flat_start"]) == (5, 3, "2024-01-01 00:20")
    assert found["filled_bars"] == 6  # five repeat the close, one is missing
    assert found["timeline"] == {"filled": ".99.9999.", "zero_volume": ".99.9.99."}


def test_jumps_are_log_returns_and_one_over_a_gap_belongs_to_the_bar_after_it():
    # log(1.06) = 5.8 %; log(0.94) = -6.2 %; log(1.105) = 9.98 %, not over 10 %; log(0.9) = -10.5 %.
    closes = [100.0]
    for factor in (1.06, 0.94, 1.0, 1.105):
        closes.append(closes[-1] * factor)
    found = btc(rows([*closes, None, closes[-1] * 0.9, closes[-1] * 0.9]))
    assert (found["ret_gt_5pct"], found["ret_gt_10pct"]) == (4, 1)
    assert found["max_logret"] == pytest.approx(np.log(0.9), rel=1e-11)
    assert found["max_logret_at"] == "2024-01-01 00:30"


def test_what_a_reader_should_not_overlook_is_a_warning_and_good_bars_have_none():
    assert report_of(rows([1, 2, 1.5]))["warnings"] == []
    assert report_of(rows([7.0] * 5))["warnings"] == [
        "BTC: the price is 7 in every bar; nothing can be learned or traded on it"
    ]
    assert report_of(rows([1, 1.1, 1], [0, 0, 0]))["warnings"] == ["BTC: the volume is 0 in every bar"]
    assert report_of(rows([1, 1.1, None, 1]))["warnings"] == ["BTC: 1 of 4 bars are missing (25%)"]
    (warning,) = report_of(rows([1, 1.1, 11.0]))["warnings"]
    assert warning == "BTC: the price moves by a factor of 10 in the bar of 2024-01-01 00:10"


def test_a_timeline_is_short_and_one_bar_in_a_long_bin_shows():
    n_bars = 3 * TIMELINE_BINS
    closes = [1.0 + 0.001 * (i % 7) for i in range(n_bars)]
    closes[4] = closes[9] = closes[10] = closes[11] = None  # bins of 3: one of three, then a whole one
    closes[5] = closes[6] = 2.0
    report = report_of(rows(closes), max_fill_bars=1)
    timeline = report["tickers"]["BTC"]["timeline"]
    assert report["timeline_bin_bars"] == 3
    assert set(timeline) == {"missing", "filled", "jumps"}
    assert {len(marks) for marks in timeline.values()} == {TIMELINE_BINS}
    assert timeline["filled"][:5] == ".3.3."
    assert timeline["missing"][:5] == "...6."
    assert timeline["jumps"][:5] == ".33.."


def test_a_dataset_made_by_hand_has_no_report(dataset):
    assert has_report(dataset.quality, dataset.tickers)
    assert not has_report({}, dataset.tickers)
    assert not has_report(dataset.quality, ("NOSUCHCOIN",))


# ---------------------------------------------------------------------------------------------- by plain loops


def n_filled(bars, most):
    """Bars that repeat the last close, and the first `most` of every run in which one is missing before a trade."""
    close, is_trade = None, []
    for bar in bars:
        is_trade.append(bar is not None and not (bar[1] and bar[2] and bar[0] == close))
        close = bar[0] if is_trade[-1] else close
    last_trade, run, found = max(i for i, trade in enumerate(is_trade) if trade), 0, 0
    for i, bar in enumerate(bars):
        run = 0 if is_trade[i] else run + 1
        found += run > 0 and (bar is not None or (run <= most and i < last_trade))
    return found


def longest(flags):
    best = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        best = max(best, run)
    return best


bar = st.one_of(st.none(), st.tuples(st.sampled_from([100.0, 103.0, 108.0, 125.0]), st.booleans(), st.booleans()))


@given(bars=st.lists(bar, min_size=1, max_size=40), max_fill_bars=st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_every_number_by_a_plain_loop(bars, max_fill_bars):
    bars = [(100.0, False, False), (100.0, False, False), *bars]
    while bars[-1] is None:
        bars.pop()
    closes = [None if b is None else b[0] for b in bars]
    volumes = [None if b is None else 0.0 if b[1] else 1.0 for b in bars]
    is_flat = [b is not None and b[2] for b in bars]
    found = btc(rows(closes, volumes, is_flat=is_flat), max_fill_bars=max_fill_bars)
    there = [b for b in bars if b is not None]
    gap_lengths = [len(gap) for gap in "".join("x" if b else "." for b in bars).split("x") if gap]
    moves = [np.log(b[0] / a[0]) for a, b in pairwise(there)]
    assert found["bars"] == len(there)
    assert found["missing_bars"] == sum(gap_lengths)
    assert found["gaps"] == len(gap_lengths)
    assert found["longest_gap_bars"] == max(gap_lengths, default=0)
    assert found["filled_bars"] == n_filled(bars, max_fill_bars)
    assert found["zero_volume_bars"] == sum(b[1] for b in there)
    assert found["longest_zero_volume_run"] == longest(b[1] for b in there)
    assert found["flat_bars"] == sum(b[2] for b in there)
    assert found["longest_flat_run"] == longest(b[2] for b in there)
    assert found["ret_gt_5pct"] == sum(abs(move) > 0.05 for move in moves)
    assert found["ret_gt_10pct"] == sum(abs(move) > 0.10 for move in moves)
    assert abs(found["max_logret"]) == pytest.approx(max(map(abs, moves)), abs=1e-11)


# ---------------------------------------------------------------------------------------------- where bars went


def test_a_hand_counted_account_of_bars():
    #  BTC .xxxx.xx.xxx   ETH xxxxxxxxxxx.   kept: the first run only, one bar of warm-up
    first = rows([None, 1, 1, 1, 1, None, 1, 1, None, 1, 1, 1])
    second = rows([1] * 11 + [None], symbol="ETH/USD")
    grid = grid_of(first, second, tickers=("BTC", "ETH"))
    assert segments_of(grid) == ((1, 5), (6, 8), (9, 11))
    account = account_of_bars(grid, [(1, 5)], warmup_bars=1)
    dropped = {"outside": 2, "gaps": 2, "too_short": 4, "warmup": 1}
    assert account == {"grid_bars": 12, "used_bars": 3, "dropped_bars": dropped}


@pytest.fixture
def holed():
    """5-minute bars of BTC and ETH with many holes, ETH starting late, and where the holes are."""
    bars = sample_bars("5m", 12_000, ("BTC", "ETH"), seed=5)
    is_kept = np.random.default_rng(1).random(len(bars)) > 0.0004
    is_kept[12_000:12_500] = False
    is_kept[1_000:1_010] = is_kept[14_500:14_530] = False
    return bars[is_kept].reset_index(drop=True)


@pytest.mark.parametrize(("timeframe", "max_fill_bars"), [("5m", 3), ("5m", 0), ("15m", 3), ("15m", 0)])
def test_every_bar_of_the_grid_is_used_or_dropped_for_one_reason(holed, timeframe, max_fill_bars):
    dataset = dataset_from_bars(holed, ["BTC", "ETH"], timeframe, source="t", max_fill_bars=max_fill_bars)
    account = dataset.quality
    assert account["used_bars"] == len(dataset.time) == sum(b - a for a, b in dataset.segments)
    assert account["used_bars"] + sum(account["dropped_bars"].values()) == account["grid_bars"]
    assert account["dropped_bars"]["outside"] >= 500 // (dataset.bar_seconds // 300)
    assert account["dropped_bars"]["warmup"] == WARMUP_BARS * len(dataset.segments)
    assert all(b - a >= MIN_SEGMENT_BARS for a, b in dataset.segments)


# ---------------------------------------------------------------------------------------------- filled bars


@pytest.mark.parametrize("timeframe", ["5m", "15m", "1h"])
def test_the_dataset_flags_exactly_the_bars_whose_close_is_filled(timeframe):
    bars = sample_bars("5m", 12_000, ("BTC", "ETH"), seed=5)
    bars = bars.drop(index=[9_000, 9_001, 9_311, 12_000 + 10_001])  # 3 short gaps
    dataset = dataset_from_bars(bars, ["BTC", "ETH"], timeframe, source="t")
    seconds = dataset.bar_seconds
    n_parts, first_open = seconds // 300, START
    expected = [
        {(n // n_parts * seconds) + first_open + seconds for n in holes if n % n_parts == n_parts - 1}
        for holes in ([9_000, 9_001, 9_311], [10_001])
    ]
    for a, closes in enumerate(expected):
        assert set(dataset.time[dataset.filled[:, a]].tolist()) == closes
    if timeframe == "5m":
        for a in range(2):
            flagged = np.flatnonzero(dataset.filled[:, a])
            assert (dataset.price[flagged, a] == dataset.price[flagged - 1, a]).all()
    counts = [report["filled_bars"] for report in dataset.quality["tickers"].values()]
    assert counts == [3, 1]


def test_nothing_after_a_hole_changes_what_is_filled():
    bars = sample_bars("5m", 3_000, ("BTC",), seed=5)
    scrambled = bars.copy()
    prices = ["open", "high", "low", "close"]
    scrambled.loc[2_002:, prices] = scrambled.loc[2_002:, prices] * 3.0
    scrambled.loc[2_002:, "volume"] = 1.0
    one, other = (dataset_from_bars(b.drop(index=[2_000, 2_001]), ["BTC"], "5m", source="t") for b in (bars, scrambled))
    hole = np.flatnonzero(one.filled[:, 0])
    assert hole.tolist() == np.flatnonzero(other.filled[:, 0]).tolist()
    assert len(hole) == 2
    until = hole[-1] + 1
    assert one.price[:until].tobytes() == other.price[:until].tobytes()
    assert one.tech[:until].tobytes() == other.tech[:until].tobytes()
    assert one.price[until, 0] != other.price[until, 0]
    assert (one.price[hole, 0] == bars.loc[1_999, "close"]).all()


# ---------------------------------------------------------------------------------------------- dead markets


def test_a_constant_price_without_volume_is_built_with_finite_features_and_a_warning():
    dead = rows([7.0] * 600, [0.0] * 600, symbol="ETH/USD", is_flat=[True] * 600)
    bars = pd.concat([sample_bars("5m", 600, ("BTC",)).drop(columns="synthetic"), dead.astype({"timestamp": "int64"})])
    bars["timestamp"] = pd.to_datetime(bars["timestamp"].map(lambda t: getattr(t, "timestamp", lambda: t)()), unit="s")
    dataset = dataset_from_bars(tidy_bars(bars, "t"), ["BTC", "ETH"], "5m", source="t")
    assert np.isfinite(dataset.tech).all()
    assert dataset.quality["warnings"][0].startswith("ETH: the price is 7 in every bar")
    assert dataset.quality["warnings"][1] == "ETH: the volume is 0 in every bar"
    assert dataset.quality["tickers"]["ETH"]["longest_flat_run"] == 600


def test_too_few_bars_say_how_many_are_needed():
    with pytest.raises(BarsError, match=f"has 100 bars; at least {WARMUP_BARS + MIN_SEGMENT_BARS} are required"):
        dataset_from_bars(sample_bars("5m", 100, ("BTC",)), ["BTC"], "5m", source="t")


# ---------------------------------------------------------------------------------------------- real bars


def measures(folder):
    return pd.read_csv(folder / "QUALITY.csv")


@pytest.mark.parametrize(
    "name", ["5m_2024-01_2024-08", "15m_2024-01_2024-08", "1h_2024-01_2024-08", "1m_gappy_coinbase_2018-04"]
)
def test_the_report_of_real_files_equals_their_published_measures(real_bars_dir, name):
    file = f"crypto_{name}.parquet"
    bars, truth = read_bars(real_bars_dir / file), measures(real_bars_dir).set_index("file").loc[[file]]
    for expected in truth.itertuples():
        grid = fill_gaps(to_grid(bars, [expected.symbol], file), 3)
        (found,) = gap_report(grid, 3)["tickers"].values()
        for column in ("bars", "missing_bars", "gaps", "longest_gap_bars", "flat_bars", "longest_flat_run"):
            assert found[column] == getattr(expected, column), (expected.symbol, column)
        assert found["zero_volume_bars"] == expected.zero_volume
        assert (found["ret_gt_5pct"], found["ret_gt_10pct"]) == (expected.ret_gt_5pct, expected.ret_gt_10pct)
        assert abs(found["max_logret"]) == pytest.approx(expected.max_abs_logret, rel=1e-9)
        for column, stamp in (
            ("max_logret_at", expected.max_logret_at),
            ("first_open", expected.first),
            ("last_open", expected.last),
        ):
            assert found[column] == stamp[:16], (expected.symbol, column)


@pytest.mark.parametrize(("seconds", "name"), [(900, "15m"), (3_600, "1h")])
def test_real_bars_with_random_holes_lose_exactly_the_bars_that_have_one(real_bars_dir, seconds, name):
    truth_bars = read_bars(real_bars_dir / f"crypto_{name}_2024-01_2024-08.parquet")
    symbols = list(truth_bars["symbol"].cat.categories)
    assert len(symbols) == {"15m": 4, "1h": 18}[name]
    assert timeframe_name(seconds) == name
    truth = to_grid(truth_bars, symbols, name)
    bars = read_bars(real_bars_dir / "crypto_5m_2024-01_2024-08.parquet")
    bars = bars[bars["symbol"].isin(symbols)].sort_values(["symbol", "timestamp"])
    n_bars = len(bars) // len(symbols)
    is_kept = np.random.default_rng(7).random(len(bars)) > 0.01
    # The ends stay, so that the grid is the whole period for every coin.
    is_kept[::n_bars] = is_kept[n_bars - 1 :: n_bars] = True
    made = resample(to_grid(bars[is_kept], symbols, "5m"), seconds)
    whole = is_kept.reshape(len(symbols), -1, seconds // 300).all(axis=2).T
    assert 0.5 < whole.mean() < 0.99
    assert (made.time == truth.time).all()
    assert (made.missing == ~whole).all()
    for column in ("open", "high", "low", "close"):
        assert (getattr(made, column)[whole] == getattr(truth, column)[whole]).all()
        assert np.isnan(getattr(made, column)[~whole]).all()
    np.testing.assert_allclose(made.volume[whole], truth.volume[whole], rtol=1e-12)
