"""Bars beside the time grid: strays, offsets, seams of two downloads, and clocks that change to summer time."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.bars.candles import resample, tidy_bars, to_grid, write_bars
from market.bars.own_files import file_bars
from market.bars.time_grid import CLOCKS
from market.build import dataset_from_bars
from market.errors import BarsError
from market.sources.download import alpaca_bars, binance_bars
from market.sources.periods import Period
from tests.support.bars_server import BarsServer, made_up_bars, seconds

START = seconds(2024, 3, 1)
QUICK_STEPS = {"1m": 60, "5m": 300, "1h": 3_600, "4h": 14_400, "12h": 43_200, "1d": 86_400}
COINS = ("BTC/USDT", "ETH/USDT")


def table(n_bars=400, step=300, first=START, symbols=COINS):
    parts = [made_up_bars(s, first, first + n_bars * step, step).assign(symbol=s) for s in symbols]
    return pd.concat(parts, ignore_index=True).rename(columns={"time": "timestamp"})


def moved(rows, bars, by_s, symbol="BTC/USDT"):
    """The rows with some bars of a coin stamped later."""
    places = np.flatnonzero(rows["symbol"] == symbol)[bars]
    times = rows["timestamp"].astype(float).to_numpy(copy=True)
    times[places] += by_s
    return rows.assign(timestamp=times)


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


def saved(tmp_path, name, rows):
    write_bars(rows, tmp_path / name)
    return tmp_path / name


# ------------------------------------------------------------------------------------------------------------- strays


@given(
    step=st.sampled_from([60, 300, 3_600, 86_400]),
    bars=st.sets(st.integers(1, 99), min_size=1, max_size=4),
    fraction=st.floats(0.001, 0.999),
    stamp=st.sampled_from(["open", "close"]),
)
@settings(max_examples=60, deadline=None)
def test_a_few_bars_beside_the_grid_are_missing_and_counted(step, bars, fraction, stamp):
    rows, places = table(400, step), sorted(4 * bar for bar in bars)
    by_s = round(fraction * step, 3)
    if stamp == "close" and -by_s % 60 <= 1:
        return  # the last second of a minute is a way to write its end
    late = moved(rows, places, by_s).assign(timestamp=lambda t: t["timestamp"] + (step if stamp == "close" else 0))
    grid = to_grid(tidy_bars(late, "t", stamp), ["BTC", "ETH"], "t")
    whole = to_grid(tidy_bars(rows, "t"), ["BTC", "ETH"], "t")
    assert grid.bar_seconds == step
    assert np.flatnonzero(grid.missing[:, 0]).tolist() == places
    assert not grid.missing[:, 1].any()
    np.testing.assert_array_equal(grid.close[~grid.missing], whole.close[~grid.missing])


def test_a_stray_is_cut_off_first_or_counted_in_a_warning(tmp_path, caplog):
    path = saved(tmp_path, "a.csv", moved(table(), [200, 210], 120))
    day_2 = utc(2024, 3, 2)
    for timeframe in (None, "1h"):
        assert len(file_bars([path], timeframe=timeframe, start=day_2, end=utc(2024, 3, 2, 9))) > 0
    assert caplog.text == ""
    assert len(file_bars([path])) == 798
    assert "dropped 2 bars off the 5m grid as missing, first BTC/USDT 2024-03-01 16:42:00 UTC" in caplog.text
    # Of a short period, too.
    assert len(file_bars([path], start=utc(2024, 3, 1, 16, 30), end=utc(2024, 3, 1, 17))) == 11


def test_another_timeframe_outside_the_period_does_not_matter():
    rows = pd.concat([table(200, 60, START - 12_000), table()])
    assert to_grid(tidy_bars(rows, "t"), ["BTC"], "t", start=utc(2024, 3, 1)).bar_seconds == 300


@pytest.mark.parametrize(("share", "step"), [(1, 1_800), (1, 300), (0.5, 300)])
def test_a_shorter_timeframe_in_a_file_is_no_stray(share, step):
    rows = table(2_000, 3_600)
    inside = table(24 * 3_600 // step // 6, step, START + 10 * 86_400)
    inside = inside[inside["timestamp"] % 3_600 != 0].sample(frac=share, random_state=0)
    rows = moved(rows, [1_500], 120)  # a stray as well excuses nothing
    with pytest.raises(BarsError, match=r"is off the 1h grid \(\d+ such bars\); use bars of one timeframe"):
        to_grid(tidy_bars(pd.concat([rows, inside]), "t"), ["BTC", "ETH"], "t")


def test_bars_moved_together_after_a_stop_are_missing():
    grid = to_grid(tidy_bars(moved(table(), range(100, 104), 120), "t"), ["BTC"], "t")
    assert np.flatnonzero(grid.missing[:, 0]).tolist() == [100, 101, 102, 103]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("by_s", [120, 0.305])
def test_an_archive_with_a_stray_bar_serves_every_period(tmp_path, caplog, cached, by_s):
    market = made_up_bars("BTC", seconds(2024, 12), seconds(2025, 1), 3_600)
    times = market["time"].astype(object if isinstance(by_s, int) else float)
    times[500] += by_s
    get = {"on_progress": lambda *_: None, "cache": tmp_path if cached else None}
    with BarsServer({"BTC/USDT": market.assign(time=times)}, step=3_600) as server:
        for _ in range(2):
            caplog.clear()
            early = binance_bars(["BTC"], "1h", Period(utc(2024, 12, 1), utc(2024, 12, 10)), url=server.url, **get)
            assert len(early) == 9 * 24
            if isinstance(by_s, int):
                assert caplog.text == ""
            month = binance_bars(["BTC"], "1h", Period(utc(2024, 12, 1), utc(2025, 1, 1)), url=server.url, **get)
            assert len(month) == 31 * 24 - 1
            assert "Binance: dropped 1 bars off the 1h grid as missing, first BTC/USDT 2024-12-21 20:0" in (caplog.text)


def test_a_stray_bar_of_alpaca_is_missing(caplog):
    market = made_up_bars("BTC", seconds(2024, 12), seconds(2025, 1), 3_600)
    market.loc[500, "time"] += 120
    with BarsServer({"BTC/USD": market}, step=3_600) as server:
        period = Period(utc(2024, 12, 1), utc(2025, 1, 1))
        assert len(alpaca_bars(["BTC"], "1h", period, lambda *_: None, url=server.url)) == 31 * 24 - 1
    assert "Alpaca: dropped 1 bars off the 1h grid as missing" in caplog.text


# ------------------------------------------------------------------------------------------------------------ offsets


@pytest.mark.parametrize(("timeframe", "offset_s"), [("1d", 57_600), ("12h", 14_400), ("4h", 3_600), ("1h", 1_800)])
@pytest.mark.parametrize("stamp", ["open", "close"])
def test_bars_that_open_beside_utc_are_taken_with_the_offset_that_the_refusal_names(
    tmp_path, timeframe, offset_s, stamp
):
    step = QUICK_STEPS[timeframe]
    rows = table(400, step, START + offset_s)
    path = saved(tmp_path, "a.csv", rows.assign(timestamp=rows["timestamp"] + (step if stamp == "close" else 0)))
    offset = f"{offset_s // 3_600:02}:{offset_s % 3_600 // 60:02}"
    message = f"all {timeframe} bars open {offset} hours after the UTC grid; .* pass --offset {offset}"
    with pytest.raises(BarsError, match=message):
        file_bars([path], stamp=stamp)
    bars = file_bars([path], stamp=stamp, offset_s=offset_s)
    pd.testing.assert_frame_equal(bars, tidy_bars(rows, "t"))
    dataset = dataset_from_bars(bars, ["BTC"], timeframe, source="t", offset_s=offset_s)
    assert (dataset.time % step == offset_s).all()
    assert dataset.quality["source_first_open_s"] == START + offset_s


def test_longer_bars_open_at_the_offset(tmp_path, caplog):
    path = saved(tmp_path, "a.csv", table(24 * 9, 3_600))
    days = file_bars([path], timeframe="1d", offset_s=57_600)
    assert set(days["timestamp"].dt.hour) == {16}
    assert len(days) == 2 * 8
    assert "dropped 2 of 10 1d bars of BTC/USDT that lack a part" in caplog.text
    grid = to_grid(tidy_bars(table(24 * 9, 3_600), "t"), ["BTC"], "t")
    first = days[days["symbol"] == "BTC/USDT"].iloc[0]
    assert first["open"] == grid.open[16, 0]
    assert first["close"] == grid.close[16 + 23, 0]
    assert resample(grid, 86_400, 57_600).time[0] == START + 57_600


def test_coins_with_different_offsets_are_refused():
    rows = pd.concat([table(400, 86_400, symbols=COINS[:1]), table(400, 86_400, START + 57_600, COINS[1:])])
    with pytest.raises(BarsError, match=r"ETH/USDT bar .* is off the 1d grid \(400 such bars\)"):
        to_grid(tidy_bars(rows, "t"), ["BTC", "ETH"], "t")


def test_coins_an_hour_apart_are_not_called_local_times():
    rows = pd.concat([table(400, 14_400, symbols=COINS[:1]), table(400, 14_400, START + 3_600, COINS[1:])])
    with pytest.raises(BarsError, match=r"ETH/USDT bar .* is off the 4h grid \(400 such bars\)"):
        to_grid(tidy_bars(rows, "t"), ["BTC", "ETH"], "t")


def test_close_times_without_their_flag_are_named():
    with pytest.raises(BarsError, match=r"off the 5m grid by 299 s, like all bars; .* pass --stamp close"):
        to_grid(tidy_bars(table(first=START + 299), "t"), ["BTC"], "t")


# ------------------------------------------------------------------------------------------------------------- seams


def with_forming(rows, bar):
    """The rows up to a bar that had not closed: its close is the open, its volume a part."""
    early = rows[rows["timestamp"] <= bar].copy()
    is_last = early["timestamp"] == bar
    early.loc[is_last, ["high", "low", "close"]] = early.loc[is_last, "open"]
    early.loc[is_last, "volume"] /= 3.0
    return early


@pytest.mark.parametrize("overlap", [0, 1, 7])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_at_the_seam_of_two_downloads_the_later_bar_is_taken(tmp_path, caplog, overlap, order):
    rows, seam = table(), START + 300 * 200
    paths = [
        saved(tmp_path, "early.csv", with_forming(rows, seam)),
        saved(tmp_path, "late.csv", rows[rows["timestamp"] >= seam - 300 * overlap]),
    ]
    pd.testing.assert_frame_equal(file_bars([paths[n] for n in order]), tidy_bars(rows, "t"))
    assert "early.csv: its last bar of BTC/USDT, ETH/USDT (2024-03-01 16:40 UTC) had not closed" in caplog.text


def test_a_chain_of_downloads_joins(tmp_path):
    rows = table()
    ends = [START + 300 * n for n in (100, 200, 300, 399)]
    starts = [START, *ends[:-1]]
    paths = [
        saved(tmp_path, f"{n}.csv", with_forming(rows[rows["timestamp"] >= first], last))
        for n, (first, last) in enumerate(zip(starts, ends, strict=True))
    ]
    expected = with_forming(rows, ends[-1])
    pd.testing.assert_frame_equal(file_bars(paths), tidy_bars(expected, "t"))


def test_other_contradictions_are_refused(tmp_path):
    rows, seam = table(), START + 300 * 200
    late = saved(tmp_path, "late.csv", rows[rows["timestamp"] >= seam])
    both_end = saved(tmp_path, "end.csv", with_forming(rows, rows["timestamp"].max()))
    with pytest.raises(BarsError, match="contradict each other: BTC/USDT bar 2024-03-02 09:15"):
        file_bars([late, both_end])
    changed = rows.assign(volume=np.where(rows["timestamp"] == seam + 600, 7_777.0, rows["volume"]))
    inside = saved(tmp_path, "inside.csv", changed)
    with pytest.raises(BarsError, match=r"contradict each other: BTC/USDT bar 2024-03-01 16:50"):
        file_bars([late, inside])
    # An equal last bar of a third file excuses nothing.
    third = saved(tmp_path, "third.csv", rows[rows["timestamp"] <= seam + 600])
    with pytest.raises(BarsError, match="contradict each other"):
        file_bars([third, late, inside])
    # Outside the period it does not matter.
    assert len(file_bars([late, inside], start=utc(2024, 3, 2))) == 2 * 112


# ------------------------------------------------------------------------------------------------------- summer time

CHANGES = {  # zone: (start of summer, end of summer) as local date and hour
    "Europe/Berlin": ("2024-03-31 02", "2024-10-27 02"),
    "Europe/Paris": ("2024-03-31 02", "2024-10-27 02"),
    "Europe/London": ("2024-03-31 01", "2024-10-27 01"),
    "America/New_York": ("2024-03-10 02", "2024-11-03 01"),
    "America/Chicago": ("2024-03-10 02", "2024-11-03 01"),
    "Australia/Adelaide": ("2024-10-06 02", "2024-04-07 02"),
    "Pacific/Auckland": ("2024-09-29 02", "2024-04-07 02"),
    "Asia/Jerusalem": ("2024-03-29 02", "2024-10-27 01"),
}


def local_rows(zone, around, step, days=3, fmt="%Y-%m-%d %H:%M:%S"):
    """Whole bars in UTC around a change, stamped with what a clock on the wall shows."""
    first = int(pd.Timestamp(around).timestamp()) // 86_400 * 86_400 - days * 86_400
    rows = table(2 * days * 86_400 // step, step, first)
    times = pd.to_datetime(rows["timestamp"], unit="s", utc=True)
    return rows.assign(timestamp=times.dt.tz_convert(zone).dt.strftime(fmt)), rows, times


@pytest.mark.parametrize("zone", CHANGES)
@pytest.mark.parametrize("step", [60, 300, 3_600])
@pytest.mark.parametrize("spring", [True, False])
def test_local_times_over_a_change_are_named_and_with_a_zone_they_are_read(zone, step, spring):
    hour = CHANGES[zone][0 if spring else 1]
    local, rows, times = local_rows(zone, f"{hour}:00", step)
    does, change = ("is missing", "to") if spring else ("is repeated", "from")
    message = (
        f"t: the hour from {hour}:00 {does}, as in local time at the change {change} daylight saving time .*in UTC"
    )
    with pytest.raises(BarsError, match=message) as caught:
        tidy_bars(local, "t")
    assert any(clock in str(caught.value) for clock in CLOCKS)
    with pytest.raises(BarsError, match=message):
        tidy_bars(local.assign(timestamp=pd.to_datetime(local["timestamp"])), "t")
    expected = tidy_bars(rows, "t")
    pd.testing.assert_frame_equal(tidy_bars(rows.assign(timestamp=times.dt.tz_convert(zone)), "t"), expected)
    with_offset, _, _ = local_rows(zone, f"{hour}:00", step, fmt="%Y-%m-%dT%H:%M:%S%z")
    pd.testing.assert_frame_equal(tidy_bars(with_offset, "t"), expected)


@pytest.mark.parametrize("fmt", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"])
@pytest.mark.parametrize("absent", [[], [2], [1, 2, 3], [26], [2, 9]])
def test_utc_times_with_and_without_a_zone_are_no_local_times(fmt, absent):
    rows = table(24 * 6, 3_600, seconds(2024, 3, 31) - 3 * 86_400)
    hours = 72 + np.array(absent, dtype=int)
    rows = rows[~((rows["timestamp"] - rows["timestamp"].min()) // 3_600).isin(hours)]
    text = pd.to_datetime(rows["timestamp"], unit="s", utc=True).dt.strftime(fmt)
    if absent == [2] and not fmt.endswith("Z"):
        with pytest.raises(BarsError, match="the hour from 2024-03-31 02:00 is missing"):
            tidy_bars(rows.assign(timestamp=text), "t")
    else:
        pd.testing.assert_frame_equal(tidy_bars(rows.assign(timestamp=text), "t"), tidy_bars(rows, "t"))


def test_bars_twice_on_another_day_or_all_day_are_no_local_times():
    rows = table(24 * 6, 3_600, seconds(2024, 10, 24))
    text = pd.to_datetime(rows["timestamp"], unit="s").astype(str)
    for twice in (rows.index[5:6], rows.index):
        doubled = pd.concat([rows.assign(timestamp=text), rows.assign(timestamp=text).loc[twice]])
        with pytest.raises(BarsError, match="the same bar is repeated"):
            tidy_bars(doubled, "t")


@pytest.mark.parametrize("timeframe", ["4h", "1d"])
@pytest.mark.parametrize("around", ["2024-03-31", "2024-10-27"])
def test_long_bars_of_local_days_are_named(timeframe, around):
    step = QUICK_STEPS[timeframe]
    if timeframe == "4h":  # whole in UTC, stamped with local time
        rows, _, _ = local_rows("Europe/Berlin", around, step, days=60)
    else:  # local days, stamped in UTC
        days = pd.date_range(pd.Timestamp(around) - pd.Timedelta(days=60), periods=120, tz="Europe/Berlin")
        rows = table(120, step).assign(timestamp=[*days.tz_convert("UTC")] * 2)
    message = rf"the open times shift by an hour at {around[:8]}.*: local times with daylight.*--timeframe {timeframe}"
    with pytest.raises(BarsError, match=message):
        to_grid(tidy_bars(rows, "t"), ["BTC"], "t")
