"""The analysis finds what was planted, at the right first bar, and nothing where nothing was planted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import market.build
from market.bars.candles import PRICES, read_bars, tidy_bars, to_grid
from market.build import dataset_from_bars
from market.defaults import DEFAULT_MAX_FILL_BARS, MIN_SEGMENT_BARS
from market.errors import BarsError
from market.lookahead import Cut, choose_cuts, compare_cuts, scramble, summary_lines, truncate
from market.sample import sample_bars

COINS = ("BTC", "ETH")
STEP_S = 300
# Of a table of 2 000 bars: runs that are filled, in both coins or one, and one that splits the data.
MISSING = {"BTC": [*range(700, 703), 900, *range(1_000, 1_010)], "ETH": [701, *range(1_500, 1_502)]}


def plain_bars(n_bars=1_000, seed=0):
    return sample_bars("5m", n_bars, COINS, seed)


def gappy_bars(seed=0):
    bars = plain_bars(2_000, seed)
    first = bars["timestamp"].min()
    number = ((bars["timestamp"] - first).dt.total_seconds() // STEP_S).astype(int)
    coin = bars["symbol"].astype(str).str[:3]
    gone = [(coin == ticker) & number.isin(rows) for ticker, rows in MISSING.items()]
    return bars.loc[~(gone[0] | gone[1])].reset_index(drop=True)


def pipeline(timeframe="5m", features="default"):
    return lambda bars: dataset_from_bars(bars, COINS, timeframe, source="sample", features=features)


def analysed(build, bars, n_cuts=6, seed=0):
    grid = to_grid(bars, COINS, "sample")
    return compare_cuts(build(bars), bars, build, grid, DEFAULT_MAX_FILL_BARS, n_cuts, seed)


def changed(build, change):
    """The pipeline with `change(dataset)` after it."""
    return lambda bars: change(build(bars))


# ------------------------------------------------------------------------------------------------ clean pipelines
@pytest.mark.parametrize("features", ["default", "host"])
@pytest.mark.parametrize("timeframe", ["5m", "15m"])
@pytest.mark.parametrize("make", [plain_bars, gappy_bars])
def test_this_pipeline_is_clean(make, timeframe, features):
    report = analysed(pipeline(timeframe, features), make(), n_cuts=8)
    if make is gappy_bars and timeframe == "5m":
        kinds = {cut.kind for cut in report.cuts}
        assert {"in a filled run", "right after a gap", "start of a segment", "end of a segment"} <= kinds
    assert report.differences == ()
    assert report.rows_compared > 0


@pytest.mark.parametrize("seed", range(3))
def test_every_place_in_a_gappy_table_is_clean(seed):
    report = analysed(pipeline(), gappy_bars(seed), n_cuts=40, seed=seed)
    assert report.differences == ()
    assert report.undecided_rows > 0
    assert report.filled_rows == 3 + 1 + 3 + 2


@pytest.mark.parametrize(
    ("file", "timeframe", "tickers"),
    [
        ("crypto_1m_gappy_coinbase_2018-04.parquet", "1m", ("BTC/USD", "ETH/USD", "LTC/USD")),
        ("fixture_7coins_5m_2024-08-04_06.csv", "5m", ("BTC", "LTC", "UNI")),
        ("fixture_7coins_5m_2024-08-04_06.csv", "10m", ("BTC", "LTC", "UNI")),
    ],
)
def test_real_bars_give_no_false_alarm(real_bars_dir, file, timeframe, tickers):
    if not (real_bars_dir / file).is_file():
        pytest.skip(f"no {file}")
    bars = read_bars(real_bars_dir / file)

    def build(table):
        return dataset_from_bars(table, tickers, "5m" if timeframe == "10m" else timeframe, source="real")

    grid = to_grid(bars, tickers, "real")
    report = compare_cuts(build(bars), bars, build, grid, DEFAULT_MAX_FILL_BARS, 20, 0)
    assert report.differences == ()


# --------------------------------------------------------------------------------------------------- planted leaks
def one_bar_early(column):
    def change(dataset):
        tech = dataset.tech.copy()
        tech[:-1, column] = tech[1:, column]
        return replace(dataset, tech=tech)

    return change


@pytest.mark.parametrize("make", [plain_bars, gappy_bars])
def test_a_feature_that_is_one_bar_early_is_found_at_the_last_known_bar(make):
    report = analysed(changed(pipeline(), one_bar_early(2)), make())
    found = report.first
    full = pipeline()(make())
    assert found.column == "feature BTC:log_return_48"
    # Of the earliest cut that has one, the last row that had closed.
    assert found.time_s == full.time[full.time <= found.cut.time_s][-1]
    assert found.cut == report.cuts[0] or make is gappy_bars
    assert found.n_columns == 1
    assert found.full != found.other
    assert "feature BTC:log_return_48 is" in str(found)


def test_every_column_that_is_one_bar_early_is_found():
    full = pipeline()(plain_bars(600))
    for column, name in enumerate(full.feature_names[:15]):
        report = analysed(changed(pipeline(), one_bar_early(column)), plain_bars(600), n_cuts=12)
        assert report.first is not None, name
        assert report.first.column == f"feature {name}"


def test_normalising_by_the_whole_sample_is_found_at_the_first_row():
    def change(dataset):
        mean, spread = dataset.tech.mean(axis=0), dataset.tech.std(axis=0)
        return replace(dataset, tech=((dataset.tech - mean) / spread).astype(np.float32))

    report = analysed(changed(pipeline(), change), plain_bars(), n_cuts=2)
    assert report.first.time_s == pipeline()(plain_bars()).time[0]
    assert len(report.differences) == 4
    assert report.first.n_columns > 20


def test_a_resampled_bar_labelled_with_its_open_is_found_at_the_bar_that_was_open():
    build = changed(pipeline("15m"), lambda dataset: replace(dataset, time=dataset.time - 900))
    report = analysed(build, plain_bars(2_000), n_cuts=6)
    assert len(report.differences) == 12
    compared = [found for found in report.differences if not found.is_refusal]
    for found in compared:
        assert found.time_s == found.cut.time_s // 900 * 900
    assert {(d.variant, d.column == "row") for d in compared} == {("truncated", True), ("scrambled", False)}
    assert not report.first.is_refusal


def test_a_pipeline_that_cannot_do_without_the_later_bars_is_found():
    bars = plain_bars()
    n_all = len(bars)

    def build(table):
        if len(table) < n_all:
            raise BarsError("too few")
        return pipeline()(table)

    report = analysed(build, bars, n_cuts=2)
    assert [found.is_refusal for found in report.differences] == [True, True]
    assert "dataset refused (too few)" in str(report.first)


def backward_fill(grid, max_fill_bars=DEFAULT_MAX_FILL_BARS):
    """The next close in place of the last one."""
    columns = {}
    for name in PRICES:
        own = pd.DataFrame(getattr(grid, name))
        later = pd.DataFrame(grid.open).bfill(limit=max_fill_bars)
        columns[name] = own.where(own.notna(), later).to_numpy()
    filled = grid.missing & ~np.isnan(columns["close"])
    return replace(grid, **columns, volume=np.where(filled, 0.0, grid.volume), filled=grid.filled | filled)


def test_backward_fill_is_found_at_the_first_bar_of_a_filled_run(monkeypatch):
    bars = gappy_bars()
    monkeypatch.setattr(market.build, "fill_gaps", backward_fill)
    report = analysed(pipeline(), bars, n_cuts=12)
    found = report.first
    first_open = int(bars["timestamp"].min().timestamp())
    closes = {first_open + STEP_S * (rows[i] + 1) for rows in MISSING.values() for i in range(len(rows))}
    assert found.variant == "scrambled"  # the bars that are there are the same, so is their number
    assert found.time_s in closes
    assert found.column.startswith("price ")


def test_leaving_out_rows_because_of_what_follows_is_found():
    def until_a_fall(dataset):
        next_return = np.diff(np.log(dataset.price[:, 0]), append=np.log(dataset.price[-1, 0]))
        last = int(np.append(np.flatnonzero(next_return < -0.2), len(next_return))[0])
        rows = {name: getattr(dataset, name)[:last] for name in ("price", "tech", "time", "filled")}
        return replace(dataset, **rows, segments=((0, last),))

    report = analysed(changed(pipeline(), until_a_fall), plain_bars(), n_cuts=8)
    assert report.first.column == "row"
    assert "exists only" in str(report.first)


def test_a_filled_flag_that_foresees_the_next_bar_is_found():

    def change(dataset):
        filled = dataset.filled.copy()
        filled[:-1] |= filled[1:]
        return replace(dataset, filled=filled)

    report = analysed(changed(pipeline(), change), gappy_bars(), n_cuts=60)
    assert report.first.column.startswith("filled ")


# --------------------------------------------------------------------------------------------------------- parts
@pytest.mark.parametrize("seed", range(5))
def test_scrambled_bars_are_valid_and_the_earlier_ones_untouched(seed):
    bars = gappy_bars()
    cut = Cut(int(bars["timestamp"].iloc[800].timestamp()), "test")
    other = scramble(bars, cut, np.random.default_rng(seed))
    tidy_bars(other, "scrambled")  # raises on a bar that cannot be
    is_later = (bars["timestamp"].astype("int64") >= cut.time_s).to_numpy()
    pd.testing.assert_frame_equal(other.loc[~is_later], bars.loc[~is_later])
    for name in (*PRICES, "volume"):
        assert (other.loc[is_later, name] != bars.loc[is_later, name]).mean() > 0.99, name
    assert (other["timestamp"] == bars["timestamp"]).all()


def test_truncated_bars_end_before_the_cut():
    bars = plain_bars(400)
    cut = Cut(int(bars["timestamp"].iloc[300].timestamp()), "test")
    assert truncate(bars, cut)["timestamp"].max() == bars["timestamp"].iloc[299]


def test_cuts_follow_the_seed_and_lie_where_a_dataset_exists():
    bars = gappy_bars()
    full, grid = pipeline()(bars), to_grid(bars, COINS, "sample")
    chosen = [choose_cuts(full, grid, 3, 20, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 20
    assert [cut.time_s for cut in chosen[0]] == sorted(cut.time_s for cut in chosen[0])
    assert min(cut.time_s for cut in chosen[0]) >= full.time[MIN_SEGMENT_BARS - 1]
    with pytest.raises(BarsError, match="cuts must be at least 1"):
        choose_cuts(full, grid, 3, 0, np.random.default_rng(0))


def test_the_report_says_what_could_not_be_known():
    text = "\n".join(summary_lines(analysed(pipeline(), gappy_bars(), n_cuts=30), COINS))
    assert "in 9 rows some coin had no trades" in text
    assert "were undecided at the cut" in text
