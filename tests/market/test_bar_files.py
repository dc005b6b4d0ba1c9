"""Bars from the user's files: joined, selected, cut, aggregated, and stamps told apart."""

import gzip
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pandas as pd
import pytest

from market.bars.candles import is_synthetic, read_bars, resample, tidy_bars, to_grid, write_bars
from market.bars.own_files import file_bars
from market.errors import BarsError
from tests.support.bars_server import made_up_bars, seconds

START = seconds(2024, 12, 31, 22)
END = seconds(2025, 1, 2)
PRICES_AND_VOLUME = ["open", "high", "low", "close", "volume"]


def table(symbol="BTC/USDT", first=START, last=END, step=300):
    bars = made_up_bars(symbol, first, last, step).rename(columns={"time": "timestamp"})
    bars["timestamp"] = pd.to_datetime(bars["timestamp"], unit="s", utc=True)
    return bars.assign(symbol=symbol)


def market():
    return pd.concat([table(), table("ETH/USDT")], ignore_index=True)


@pytest.fixture
def write(tmp_path):
    def write_file(name, bars):
        write_bars(bars, tmp_path / name)
        return tmp_path / name

    return write_file


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".csv.gz"])
def test_one_file_comes_back_as_it_is(write, tmp_path, suffix):
    path = write("bars" + suffix.removesuffix(".gz"), market())
    if suffix == ".csv.gz":
        path = tmp_path / "bars.csv.gz"
        path.write_bytes(gzip.compress((tmp_path / "bars.csv").read_bytes()))
    pd.testing.assert_frame_equal(file_bars([path]), tidy_bars(market(), "t"))


def test_files_join_and_a_bar_in_both_is_kept_once(write):
    bars = market()
    by_time = bars.sort_values("timestamp", ignore_index=True)
    paths = [write("a.parquet", by_time[:400]), write("b.csv", by_time[300:]), write("c.csv", by_time[100:110])]
    pd.testing.assert_frame_equal(file_bars(paths), tidy_bars(bars, "t"))


def test_files_that_contradict_each_other_are_named_with_the_bar(write):
    other = market()
    other.loc[7, "close"] = other.loc[7, "high"] + 1.0
    other.loc[7, "high"] += 2.0
    paths = [write("a.parquet", market()), write("b.csv", other)]
    with pytest.raises(
        BarsError, match=r"a\.parquet and .*b\.csv contradict each other: BTC/USDT bar 2024-12-31 22:35 is"
    ):
        file_bars(paths)
    # Also where another coin is asked for: one of the files is wrong.
    with pytest.raises(BarsError, match="1 such bars"):
        file_bars(paths, ["ETH"])


def test_files_of_two_timeframes_are_refused(write):
    paths = [write("a.csv", table()), write("b.csv", table("ETH/USDT", step=3_600))]
    with pytest.raises(BarsError, match=r"b\.csv has 1h bars and .*a\.csv 5m bars; join files of one timeframe"):
        file_bars(paths)


def test_tickers_are_selected_in_any_form_and_unknown_ones_named(write, caplog):
    path = write("a.csv", pd.concat([market(), table("BTC/USD")]))
    assert set(file_bars([path], ["eth"])["symbol"]) == {"ETH/USDT"}
    assert set(file_bars([path], ["BTC"])["symbol"]) == {"BTC/USD"}
    assert "using BTC/USD, dropping BTC/USDT" in caplog.text
    with pytest.raises(BarsError, match=r"a\.csv: unknown ticker XYZ; available: BTC/USD, BTC/USDT, ETH/USDT"):
        file_bars([path], ["BTC", "XYZ"])


def test_the_start_is_in_and_the_end_is_out(write):
    bars = file_bars([write("a.csv", table())], start=utc(2024, 12, 31, 23), end=utc(2025, 1, 1))
    assert bars["timestamp"].min() == pd.Timestamp("2024-12-31 23:00", tz="UTC")
    assert bars["timestamp"].max() == pd.Timestamp("2024-12-31 23:55", tz="UTC")
    assert len(bars) == 12


def test_a_period_without_bars_of_a_coin_names_it(write):
    path = write("a.csv", pd.concat([table(), table("ETH/USDT", first=seconds(2025, 1, 1))]))
    with pytest.raises(BarsError, match=r"ETH/USDT has no bars in this period"):
        file_bars([path], end=utc(2025, 1, 1))


@pytest.mark.parametrize("timeframe", [None, "5m"])
def test_the_files_own_timeframe_leaves_the_bars_alone(write, timeframe):
    path = write("a.csv", market().drop(index=[5, 9]))
    pd.testing.assert_frame_equal(file_bars([path], timeframe=timeframe), read_bars(path))


@pytest.mark.parametrize("holes", [(), (3,), (20, 21, 22, 140)])
def test_a_longer_timeframe_is_that_of_candles_resample_without_filling(write, holes):
    path = write("a.parquet", market().drop(index=list(holes)))
    bars = file_bars([path], ["ETH", "BTC"], "1h")
    expected = resample(to_grid(read_bars(path), ["BTC", "ETH"], "t"), 3_600)
    for asset, symbol in enumerate(("BTC/USDT", "ETH/USDT")):
        got = bars[bars["symbol"] == symbol]
        there = ~expected.missing[:, asset]
        assert len(got) == there.sum() == 26 - (len({hole // 12 for hole in holes}) if asset == 0 else 0)
        seconds_of = got["timestamp"].dt.as_unit("s").astype("int64").to_numpy()
        np.testing.assert_array_equal(seconds_of, expected.time[there])
        for name in PRICES_AND_VOLUME:
            np.testing.assert_array_equal(got[name].to_numpy(), getattr(expected, name)[there, asset])


def test_a_longer_bar_that_the_cut_leaves_half_of_is_left_out(write):
    path = write("a.csv", table())
    bars = file_bars([path], None, "1h", utc(2024, 12, 31, 22, 30), utc(2025, 1, 1, 2, 30))
    assert bars["timestamp"].dt.hour.tolist() == [23, 0, 1]


def test_timeframes_that_do_not_fit_are_refused(write):
    path = write("a.csv", table())
    with pytest.raises(BarsError, match="5m bars cannot be aggregated to 1m bars"):
        file_bars([path], timeframe="1m")
    with pytest.raises(BarsError, match="every 1h bar lacks a part"):
        file_bars([write("b.csv", table().iloc[[*range(5), *range(12, 17)]])], timeframe="1h")


def test_the_mark_of_made_up_bars_survives(write):
    real, made_up = table(first=seconds(2025, 1, 1)), table(last=seconds(2025, 1, 1)).assign(synthetic=True)
    paths = [write("real.csv", real), write("made_up.csv", made_up)]
    assert file_bars(paths)["synthetic"].sum() == len(made_up)
    assert is_synthetic(file_bars(paths, timeframe="1h"))
    assert not is_synthetic(file_bars(paths[:1]))


def test_bars_that_have_not_closed_are_left_out_and_that_is_said(write, caplog):
    path = write("a.csv", table())
    at = partial(file_bars, [path], now=utc(2025, 1, 1, 0, 9, 59))
    # The bar of 00:00 closed at 00:05, that of 00:05 closes at 00:10.
    assert at()["timestamp"].max() == pd.Timestamp("2025-01-01 00:00", tz="UTC")
    assert "dropped 287 bars that have not closed yet" in caplog.text
    assert at(timeframe="1h")["timestamp"].max() == pd.Timestamp("2024-12-31 23:00", tz="UTC")
    caplog.clear()
    at(end=utc(2025, 1, 1, 0, 5))
    assert caplog.text == ""


@pytest.mark.parametrize("timeframe", [None, "1h"])
@pytest.mark.parametrize("milliseconds_early", [0, 1, 1_000])
def test_close_stamps_become_open_times(write, timeframe, milliseconds_early):
    closes = market()
    closes["timestamp"] += pd.Timedelta(minutes=5) - pd.Timedelta(milliseconds=milliseconds_early)
    closed = write("closed.parquet", closes)
    got = file_bars([closed], timeframe=timeframe, stamp="close")
    pd.testing.assert_frame_equal(got, file_bars([write("open.parquet", market())], timeframe=timeframe))


def test_binances_close_times_in_milliseconds_become_open_times(write):
    closes = market()
    epoch = closes["timestamp"].dt.as_unit("s").astype("int64")
    bars = read_bars(write("c.csv", closes.assign(timestamp=(epoch + 300) * 1_000 - 1)), "close")
    pd.testing.assert_frame_equal(bars, tidy_bars(market(), "t"))


def test_daily_close_stamps_open_at_midnight(write):
    days = table(first=seconds(2024, 12, 1), last=seconds(2025, 1, 1), step=86_400)
    closes = days.assign(timestamp=days["timestamp"] + pd.Timedelta(days=1))
    pd.testing.assert_frame_equal(read_bars(write("d.csv", closes), "close"), tidy_bars(days, "t"))


def test_close_stamps_off_the_grid_are_refused(write):
    closes = table()
    closes.loc[3:20, "timestamp"] += pd.Timedelta(seconds=17)
    with pytest.raises(BarsError, match=r"is off the 5m grid \(18 such bars\)"):
        file_bars([write("c.csv", closes)], stamp="close")


def test_a_stamp_of_another_name_is_refused(write):
    with pytest.raises(BarsError, match="stamp must be open or close; received 'middle'"):
        read_bars(write("c.csv", table()), "middle")


def test_zones_in_the_file_and_in_the_dates_are_converted(write):
    texts = market()
    texts["timestamp"] = texts["timestamp"].dt.tz_convert("Asia/Kolkata").astype(str)
    path = write("zones.csv", texts)
    assert "+05:30" in path.read_text()
    start = datetime.fromisoformat("2025-01-01T05:30+05:30")
    got = file_bars([path], start=start)
    pd.testing.assert_frame_equal(got, file_bars([write("utc.csv", market())], start=utc(2025, 1, 1)))


def test_a_file_at_fault_is_named(write, tmp_path):
    broken = table()
    broken.loc[3, "low"] = -1.0
    good = write("good.csv", table())
    for path, message in [
        (write("bad.csv", broken), r"bad\.csv: BTC/USDT bar 2024-12-31 22:15: low is not positive"),
        (tmp_path / "no.csv", r"no\.csv: no such file"),
        (write("twice.csv", pd.concat([table(), table().iloc[:1]])), r"twice\.csv: .* the same bar is repeated"),
    ]:
        with pytest.raises(BarsError, match=message):
            file_bars([good, path])
