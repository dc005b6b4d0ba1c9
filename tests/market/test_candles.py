import gzip
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from market.bars.candles import (
    PRICES,
    fill_gaps,
    is_synthetic,
    read_bars,
    resample,
    segments_of,
    tidy_bars,
    to_grid,
    write_bars,
)
from market.errors import BarsError
from market.times import epoch_seconds

STEP = 300
START = 1_704_067_200  # 2024-01-01


def table(n_bars=6, symbol="BTC/USD", price=100.0):
    time = START + STEP * np.arange(n_bars)
    columns = {"timestamp": time, "symbol": symbol, "open": price, "high": price + 1, "low": price - 1}
    return pd.DataFrame(columns | {"close": price + np.arange(n_bars) / n_bars, "volume": 5.0})


def grid_with(missing, n_bars=12):
    """A one-coin grid whose bars at the given places are missing."""
    keep = np.setdiff1d(np.arange(n_bars), missing)
    return to_grid(tidy_bars(table(n_bars).iloc[keep], "t"), ["BTC"], "t")


# ---------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_bars_survive_a_file(bars, tmp_path, suffix):
    path = tmp_path / f"my bars{suffix}"
    write_bars(bars, path)
    again = read_bars(path)
    assert list(again.columns) == list(bars.columns)
    assert (again["timestamp"] == bars["timestamp"]).all()
    assert again[[*PRICES, "volume"]].to_numpy().tolist() == bars[[*PRICES, "volume"]].to_numpy().tolist()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "stamp",
    [
        lambda s: s,
        lambda s: s * 1_000,
        lambda s: s * 1_000_000,
        lambda s: s * 1_000_000_000,
        lambda s: s.astype(float),
        lambda s: pd.to_datetime(s, unit="s"),
        lambda s: pd.to_datetime(s, unit="s", utc=True).dt.tz_convert("Asia/Tokyo"),
        lambda s: pd.to_datetime(s, unit="s").dt.strftime("%Y-%m-%d %H:%M:%S"),
        lambda s: pd.to_datetime(s, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        lambda s: pd.to_datetime(s + 7_200, unit="s").dt.strftime("%Y-%m-%dT%H:%M:%S+02:00"),
    ],
)
def test_every_way_to_write_a_time_gives_the_same_utc_seconds(stamp):
    rows = table()
    rows["timestamp"] = stamp(rows["timestamp"])
    assert to_grid(tidy_bars(rows, "t"), ["BTC"], "t").time.tolist() == (START + STEP * np.arange(6)).tolist()


def test_units_are_told_apart_one_by_one():
    # Binance's archives change from ms to us at 2025-01-01.
    assert epoch_seconds(np.array([1_735_689_300_000, 1_735_689_600_000_000])).tolist() == [
        1_735_689_300,
        1_735_689_600,
    ]


def test_order_of_rows_and_capitals_in_headers_do_not_matter():
    rows = pd.concat([table(), table(symbol="ETH/USD", price=10.0)])
    shuffled = rows.sample(frac=1.0, random_state=0).rename(columns=str.upper)
    pd.testing.assert_frame_equal(tidy_bars(shuffled, "t"), tidy_bars(rows, "t"))


def spoil(column, value, row=3):
    def change(rows):
        rows[column] = rows[column].astype(object)
        rows.loc[row, column] = value
        return rows.infer_objects()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("close", np.nan), "BTC/USD bar 2024-01-01 00:15: close is not a finite number"),
        (spoil("open", np.inf), "open is not a finite number"),
        (spoil("low", 0.0), "low is not positive"),
        (spoil("low", -1.0), "low is not positive"),
        (spoil("volume", -1.0), "volume is negative"),
        (spoil("high", 99.5), "high is below open or close"),
        (spoil("low", 100.5), "low is above open or close"),
        (spoil("close", "abc"), "row 3: close is .abc., expected a number"),
        (spoil("timestamp", START + 2 * STEP), "BTC/USD bar 2024-01-01 00:10: the same bar is repeated"),
        (spoil("timestamp", START + 2 * STEP + 7), "00:10:07 is off the 5m grid"),
        (spoil("timestamp", 12), "row 3 has the timestamp 12, outside 2009..2099; check its unit"),
        (spoil("timestamp", np.nan), "row 3 has the timestamp nan"),
        (spoil("timestamp", "yesterday"), "cannot be read; use ISO 8601"),
        (spoil("symbol", None), "row 3 has no symbol"),
        (lambda rows: rows.drop(columns=["low", "volume"]), "column low, volume is missing"),
        (lambda rows: rows.iloc[:0], "contains no bars"),
        (lambda rows: rows.iloc[:1], "one bar per symbol is too few"),
        (lambda rows: pd.concat([rows, rows.tail(1).assign(timestamp=START + 10**5 * STEP)]), "check the timestamps"),
    ],
)
def test_a_bad_bar_is_refused_in_one_line_that_names_it(change, message):
    with pytest.raises(BarsError, match=message) as caught:
        to_grid(tidy_bars(change(table()), "bars.csv"), ["BTC"], "bars.csv")
    assert str(caught.value).startswith("bars.csv: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1 this is garbage PAR1"),
        ("a.csv", b""),
        ("a.csv", b"\xff\xfe\x00\x80"),
        ("a.csv", b'timestamp,"open\n1,2,3,4\n'),
        ("a.csv.gz", b"not gzip"),
        ("a.txt", b"x"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BarsError, match=name):
        read_bars(tmp_path / name)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([True, True, True], True),
        ([False, False, True], True),
        ([None, None, 1.0], True),
        (["", "", "made up"], True),
        ([False, False, False], False),
        ([0, 0, 0], False),
        ([None, None, None], False),
        (["no", "", "False"], False),
    ],
)
def test_one_marked_bar_makes_a_file_synthetic(tmp_path, marks, expected, suffix):
    marked = table(3).assign(synthetic=marks)
    write_bars(marked, tmp_path / f"bars{suffix}")
    assert is_synthetic(read_bars(tmp_path / f"bars{suffix}")) == expected
    assert not is_synthetic(tidy_bars(marked.drop(columns="synthetic"), "bars"))


def test_a_truncated_parquet_file_and_an_absent_one_are_refused_by_name(bars, tmp_path):
    write_bars(bars, tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(BarsError, match=r"a\.parquet: not a readable Parquet file"):
        read_bars(tmp_path / "a.parquet")
    with pytest.raises(BarsError, match="no such file"):
        read_bars(tmp_path / "b.parquet")


def test_dates_outside_the_file_are_an_error_that_names_the_symbol():
    with pytest.raises(BarsError, match="BTC/USD has no bars in this period"):
        to_grid(tidy_bars(table(), "t"), ["BTC"], "t", start=pd.Timestamp("2025-01-01", tz="UTC"))


def test_columns_follow_the_tickers_asked_for(bars):
    grid = to_grid(bars, ["ETH", "PEPE"], "t")
    assert grid.tickers == ("ETH", "PEPE")
    assert (grid.close[:, 1] < 1e-3).all()


# ---------------------------------------------------------------------------------------------- gaps


def test_a_missing_bar_is_missing_and_never_zero():
    grid = grid_with([4])
    assert np.isnan(grid.close[4, 0])
    assert np.isnan(grid.volume[4, 0])
    assert segments_of(grid) == ((0, 4), (5, 12))


def test_the_first_bars_of_a_gap_repeat_the_last_close_with_no_volume_and_the_rest_stays():
    grid = fill_gaps(grid_with([2, 3, 6, 7, 8]), max_fill_bars=2)
    assert grid.close[2:4, 0].tolist() == [grid.close[1, 0]] * 2
    assert grid.high[2:4, 0].tolist() == [grid.close[1, 0]] * 2
    assert grid.volume[2:4, 0].tolist() == [0.0, 0.0]
    assert np.flatnonzero(grid.filled[:, 0]).tolist() == [2, 3, 6, 7]
    assert segments_of(grid) == ((0, 8), (9, 12))


@pytest.mark.parametrize("resumes_at", [4, 5, 6, 9])
def test_what_is_filled_does_not_tell_when_trading_goes_on(resumes_at):
    grid = fill_gaps(grid_with(range(2, resumes_at)), max_fill_bars=2)
    assert grid.filled[:4, 0].tolist() == [False, False, True, True]
    assert not grid.filled[4:].any()


def test_no_gap_is_filled_when_none_may_be():
    assert not fill_gaps(grid_with([4]), max_fill_bars=0).filled.any()


def test_a_coin_that_starts_late_or_ends_early_is_not_filled():
    rows = pd.concat([table(10), table(10, "ETH/USD").iloc[2:8]])
    grid = fill_gaps(to_grid(tidy_bars(rows, "t"), ["BTC", "ETH"], "t"), max_fill_bars=5)
    assert segments_of(grid) == ((2, 8),)


@given(absent=st_np.arrays(bool, 40), max_fill_bars=st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_filling_by_a_plain_loop_gives_the_same_bars(absent, max_fill_bars):
    absent[[0, -1]] = False
    absent[1] = False  # two neighbours, so the step is known
    grid = fill_gaps(grid_with(np.flatnonzero(absent), 40), max_fill_bars)
    close, last, run = grid_with([], 40).close[:, 0], 0, []
    for bar in range(40):
        if absent[bar]:
            run.append(bar)
            continue
        for gap in run:
            expected = close[last] if gap - last <= max_fill_bars else np.nan
            np.testing.assert_equal(grid.close[gap, 0], expected)
        last, run = bar, []
        assert grid.close[bar, 0] == close[bar]


# ---------------------------------------------------------------------------------------------- resampling


def test_hand_computed_resampling_starts_at_the_calendar_and_not_at_the_first_bar():
    # 00:05 .. 00:30: the 15-minute bar of 00:15 is whole, those of 00:00 and 00:30 are not.
    rows = table(7).iloc[1:]
    rows["open"], rows["high"], rows["low"], rows["close"] = 10.0, [11, 12, 13, 19, 15, 16], [9, 8, 7, 6, 5, 4], 10.5
    grid = resample(to_grid(tidy_bars(rows, "t"), ["BTC"], "t"), 900)
    assert grid.time.tolist() == [START + 900]
    assert (grid.open[0, 0], grid.high[0, 0], grid.low[0, 0], grid.close[0, 0]) == (10.0, 19.0, 5.0, 10.5)
    assert grid.volume[0, 0] == 15.0


def test_a_bar_with_a_missing_part_is_missing():
    grid = resample(grid_with([4]), 900)
    assert segments_of(grid) == ((0, 1), (2, 4))
    for column in (*PRICES, "volume"):
        assert np.isnan(getattr(grid, column)).ravel().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(60, "cannot be aggregated to 1m"), (450, "cannot be aggregated"), (86_400, "no complete 1d")],
)
def test_impossible_resampling_is_refused(seconds, message):
    with pytest.raises(BarsError, match=message):
        resample(grid_with([]), seconds)


def real_grid(folder, name, tickers):
    return to_grid(read_bars(folder / name), tickers, name)


@pytest.mark.parametrize(
    ("seconds", "name", "n_coins"), [(900, "15m", 4), (3_600, "1h", 18)], ids=["15m, 4 coins", "1h, 18 coins"]
)
def test_real_bars_resampled_equal_the_exchanges_own(real_bars_dir, seconds, name, n_coins):
    truth_bars = read_bars(real_bars_dir / f"crypto_{name}_2024-01_2024-08.parquet")
    tickers = list(truth_bars["symbol"].cat.categories)
    assert len(tickers) == n_coins
    truth = to_grid(truth_bars, tickers, name)
    made = resample(real_grid(real_bars_dir, "crypto_5m_2024-01_2024-08.parquet", tickers), seconds)
    assert (made.time == truth.time).all()
    for column in PRICES:
        assert (getattr(made, column) == getattr(truth, column)).all()
    np.testing.assert_allclose(made.volume, truth.volume, rtol=1e-12)


def test_real_bars_with_holes_resample_to_the_exchanges_own_where_whole(real_bars_dir):
    tickers = ["BTC", "ETH"]
    truth = real_grid(real_bars_dir, "crypto_1h_2024-01_2024-08.parquet", tickers)
    bars = read_bars(real_bars_dir / "crypto_5m_2024-01_2024-08.parquet")
    bars = bars[bars["symbol"].isin(["BTC/USDT", "ETH/USDT"])]
    is_kept = np.random.default_rng(0).random(len(bars)) > 0.02
    is_kept[[0, 70_271, 70_272, -1]] = True
    made = resample(to_grid(bars[is_kept], tickers, "5m"), 3_600)
    whole = is_kept.reshape(2, -1, 12).all(axis=2).T
    assert (made.missing == ~whole).all()
    assert (made.close[whole] == truth.close[whole]).all()
    assert (made.open[whole] == truth.open[whole]).all()


def test_the_real_gappy_file_is_split_at_its_outage(real_bars_dir):
    grid = fill_gaps(real_grid(real_bars_dir, "crypto_1m_gappy_coinbase_2018-04.parquet", ["BTC", "LTC/USD"]), 3)
    assert segments_of(grid) == ((0, 1011), (1440, 4320))


# ---------------------------------------------------------------------------------------------- hostile files


def flipped(content, place, bit):
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def is_same_or_refused(path, content, expected):
    """Whether the damaged file is read as it was, or refused in one printable line that names it."""
    path.write_bytes(content)
    try:
        found = read_bars(path)
    except BarsError as error:
        return str(error).startswith(str(path)) and str(error).isprintable()
    return expected is None or found.equals(expected)


@pytest.mark.parametrize("suffix", [".parquet", pytest.param(".every.parquet", marks=pytest.mark.slow)])
def test_no_damaged_bit_of_a_parquet_file_of_ours_changes_a_bar_or_loses_a_mark(bars, tmp_path, suffix):
    path = tmp_path / f"bars{suffix}"
    write_bars(bars.groupby("symbol", observed=True).head(5), path)
    content, expected = path.read_bytes(), read_bars(path)
    for place in range(len(content)):
        for bit in range(8) if "every" in suffix else [place % 8]:
            assert is_same_or_refused(path, flipped(content, place, bit), expected), (place, bit)
    for n_bytes in range(0, len(content), 1 if "every" in suffix else 50):
        assert is_same_or_refused(path, content[:n_bytes], expected), n_bytes


def test_a_mark_of_made_up_bars_is_not_lost_with_a_bit_of_its_name(bars, tmp_path):
    write_bars(bars, tmp_path / "bars.parquet")
    content = (tmp_path / "bars.parquet").read_bytes()
    assert content.count(b"synthetic") == 2  # in the column's own record and in the schema
    for place in range(len(content)):
        if content[place:].startswith(b"synthetic"):
            content = flipped(content, place, 0)
    (tmp_path / "bars.parquet").write_bytes(content)
    with pytest.raises(BarsError, match="the values do not match their checksum"):
        read_bars(tmp_path / "bars.parquet")


def foreign_parquet(bars, path):
    bars.to_parquet(path, index=False)


def csv_gz(bars, path):
    bars.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("write", "name"),
    [(foreign_parquet, "a.parquet"), (csv_gz, "a.csv.gz"), (csv_gz, "a.csv")],
    ids=["parquet", "csv.gz", "csv"],
)
def test_no_damaged_bit_of_any_file_ends_in_a_traceback(bars, tmp_path, write, name):
    path = tmp_path / name
    write(bars.groupby("symbol", observed=True).head(4), path)
    content = path.read_bytes()
    # Only gzip has a checksum: of the others no more is asked than one line or a table.
    expected = read_bars(path) if name.endswith(".gz") else None
    for place in range(len(content)):
        assert is_same_or_refused(path, flipped(content, place, place % 8), expected), place
        assert is_same_or_refused(path, flipped(content, place, (place + 3) % 7), expected), place
    for n_bytes in range(0, len(content), 20):
        assert is_same_or_refused(path, content[:n_bytes], expected), n_bytes


@pytest.mark.parametrize("second", ["Close", "close", " CLOSE "])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_two_columns_of_one_name_are_refused(tmp_path, second, suffix):
    rows = table()
    twice = pd.concat([rows, rows["close"].rename(second) * 2], axis=1)
    twice.to_csv(tmp_path / f"a{suffix}", index=False)
    with pytest.raises(BarsError, match="has 2 columns named close"):
        read_bars(tmp_path / f"a{suffix}")
    with pytest.raises(BarsError, match="t: has 2 columns named close"):
        tidy_bars(twice, "t")
    if second != "close":
        twice.to_parquet(tmp_path / "a.parquet")
        with pytest.raises(BarsError, match="has 2 columns named close"):
            read_bars(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("scale", "volume", "message"),
    [
        (1e298, 5.0, "open is outside 1e-100 .. 1e\\+100"),
        (1e-103, 5.0, "open is outside"),
        (1.0, 1e101, "volume is above 1e\\+100 coins"),
    ],
)
def test_prices_and_volumes_that_no_market_has_are_refused(scale, volume, message):
    rows = table()
    rows[[*PRICES]] *= scale
    with pytest.raises(BarsError, match=message):
        tidy_bars(rows.assign(volume=volume), "t")


def columns_of(n_rows):
    """Constant columns, which pack to nothing."""
    column = pa.array(np.full(n_rows, 100.0))
    symbol = pa.DictionaryArray.from_arrays(np.zeros(n_rows, np.int32), ["BTC/USD"])
    time = pa.array(np.full(n_rows, START))
    return {"timestamp": time, "symbol": symbol} | dict.fromkeys((*PRICES, "volume"), column)


def a_constant_parquet(folder):
    pq.write_table(pa.table(columns_of(6_000_000)), folder / "bomb.parquet", compression="zstd")


def a_long_symbol_again_and_again(folder):
    symbol = pa.DictionaryArray.from_arrays(np.zeros(2_000, np.int32), ["x" * 10**6])
    pq.write_table(pa.table(columns_of(2_000) | {"symbol": symbol}), folder / "bomb.parquet", compression="zstd")


def a_list_in_a_column(folder):
    close = pa.array([[1.0, 2.0]] * 10)
    pq.write_table(pa.table(columns_of(10) | {"close": close}), folder / "bomb.parquet")


def a_constant_csv(folder):
    with gzip.open(folder / "bomb.csv.gz", "wt", compresslevel=9) as file:
        file.write("timestamp,symbol,open,high,low,close,volume\n")
        for _ in range(60):
            file.write("1704067200,BTC/USD,1,1,1,1,1\n" * 50_000)


def a_first_line_without_end(folder):
    (folder / "bomb.csv").write_text("timestamp," + "close," * 20_000)


READ_WITHIN = """
import resource, sys
from market.bars.candles import read_bars
from market.errors import BarsError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700 * 2**20,) * 2)
try:
    read_bars(sys.argv[1])
except BarsError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_constant_parquet, "; above 268435456 bytes the limit is 50 times the file size"),
        (a_long_symbol_again_and_again, "column 'symbol' has a text of 1000000 bytes, the limit is 100"),
        (a_list_in_a_column, "column 'close' has type 'list<.*>', expected numbers, text or times"),
        (a_constant_csv, "; above 33554432 bytes the limit is 50 times the file size"),
        (a_first_line_without_end, "not a readable CSV file"),
    ],
)
def test_a_small_file_that_unpacks_to_a_large_table_is_refused_within_memory(tmp_path, make, message):
    make(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 2**20
    done = subprocess.run([sys.executable, "-c", READ_WITHIN, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    assert re.fullmatch(f"{re.escape(str(path))}: .*{message}.*\n", done.stdout), done.stdout
