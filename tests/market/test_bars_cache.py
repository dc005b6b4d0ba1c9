"""The cache of months: what is asked for again and what is not, and what damage does."""

import os
from datetime import UTC, datetime

import pandas as pd
import pyarrow.parquet as pq
import pytest

from market.errors import BarsError
from market.sources import cache as bars_cache
from market.sources.alpaca import Alpaca
from market.sources.binance import Binance
from market.sources.cache import BarsCache
from market.sources.download import download
from market.sources.periods import Period, SymbolMonth
from market.sources.transport import Patience
from tests.support.bars_server import BarsServer, made_up_bars, seconds

QUICK = Patience(backoff_s=0.001, damaged_wait_s=0.001, longest_wait_s=0.05)
PERIOD = Period(datetime(2024, 12, 10, tzinfo=UTC), datetime(2025, 2, 10, tzinfo=UTC))
LATER = datetime(2025, 6, 1, tzinfo=UTC)
NOW = datetime(2025, 2, 10, 3, 30, tzinfo=UTC)
SOURCE = {"alpaca": Alpaca, "binance": Binance}
FIRST = {"alpaca": "BTC-USD/1h/2024-12.parquet", "binance": "BTC-USDT/1h/2024-12.parquet"}


@pytest.fixture
def server():
    bars = {coin: made_up_bars(coin, seconds(2024, 11), seconds(2025, 3), 3_600) for coin in ("BTC", "ETH")}
    market = {f"{coin}/{dollar}": table for coin, table in bars.items() for dollar in ("USD", "USDT")}
    with BarsServer(market, step=3_600) as server:
        yield server


@pytest.fixture(params=SOURCE)
def source(request):
    return request.param


def place(folder, server, source):
    return folder / server.url.removeprefix("http://").replace(":", "_") / FIRST[source]


def fetch(source, server, folder, tickers=("BTC",), period=PERIOD, now=LATER):
    """The bars, and the months that were asked for."""
    server.requests.clear()
    states = []
    kind = SOURCE[source]("1h", server.url, QUICK)
    bars = download(kind, tickers, "1h", period, lambda *state: states.append(state), folder, now)
    asked = {name for name in server.requests if "1Day" not in name and "CHECKSUM" not in name}
    return bars, len(asked), states


def test_a_second_run_asks_for_nothing_and_gives_the_same(server, source, tmp_path):
    first, n_asked, states = fetch(source, server, tmp_path, ("BTC", "ETH"))
    assert n_asked == 6
    assert states == [(done, 6) for done in range(7)]
    server.stop()
    again, _, states = fetch(source, server, tmp_path, ("BTC", "ETH"))
    assert server.n_requests == 0
    assert states == [(6, 6)]
    pd.testing.assert_frame_equal(again, first)
    assert min(tmp_path.rglob("*.parquet")) == place(tmp_path, server, source)


def test_another_period_and_another_coin_ask_for_what_is_new_only(server, source, tmp_path):
    fetch(source, server, tmp_path)
    wider = Period(datetime(2024, 11, 20, tzinfo=UTC), datetime(2025, 2, 20, tzinfo=UTC))
    bars, n_asked, _ = fetch(source, server, tmp_path, ("BTC", "ETH"), wider)
    assert n_asked == 1 + 4
    plain, _, _ = fetch(source, server, None, ("BTC", "ETH"), wider)
    pd.testing.assert_frame_equal(bars, plain)


def test_without_a_cache_nothing_is_kept(server, source, tmp_path):
    for _ in range(2):
        assert fetch(source, server, None)[1] == 3
    assert list(tmp_path.iterdir()) == []


def test_a_month_that_runs_is_fetched_anew_each_time(server, tmp_path):
    for hours, n_asked in ((3, 3), (4, 1)):
        period = Period(PERIOD.start, datetime(2025, 2, 11, tzinfo=UTC))
        bars, asked, _ = fetch("alpaca", server, tmp_path, period=period, now=NOW.replace(hour=hours))
        assert asked == n_asked
        assert bars["timestamp"].max() == pd.Timestamp(f"2025-02-10 0{hours - 1}:00", tz="UTC")
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


@pytest.mark.parametrize(("day", "n_kept"), [(1, 1), (2, 2)])
def test_a_month_is_kept_a_day_after_its_end(server, tmp_path, day, n_kept):
    period = Period(PERIOD.start, datetime(2025, 2, 1, tzinfo=UTC))
    fetch("alpaca", server, tmp_path, period=period, now=datetime(2025, 2, day, tzinfo=UTC))
    assert len(list(tmp_path.rglob("*.parquet"))) == n_kept


def test_months_before_a_listing_are_kept_as_empty(server, tmp_path):
    server.market["NEW/USD"] = made_up_bars("NEW", seconds(2025, 1, 10), seconds(2025, 3), 3_600)
    first, n_asked, _ = fetch("alpaca", server, tmp_path, ("BTC", "NEW"))
    assert n_asked == 6
    server.stop()
    pd.testing.assert_frame_equal(fetch("alpaca", server, tmp_path, ("BTC", "NEW"))[0], first)


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"PAR1" + bytes(range(256)) * 40 + b"PAR1")


def bit_flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)


def too_large(path):
    os.truncate(path, 65 * 2**20)


def of_another_month(path):
    path.write_bytes(path.with_name("2025-01.parquet").read_bytes())


def of_another_program(path):
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(None), path)


def with_other_values(path):
    table = pq.read_table(path)
    closes = table.column("close").to_pandas() * 1.01
    edited = table.set_column(table.column_names.index("close"), "close", [closes.to_numpy()])
    pq.write_table(edited, path)


def with_a_row_less(path):
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def without_a_column(path):
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("volume"), path)


DAMAGES = [
    truncated, emptied, garbage, bit_flipped, too_large, of_another_month, of_another_program, with_other_values,
    with_a_row_less, without_a_column,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_or_foreign_file_is_fetched_again_and_said(server, source, tmp_path, damage, caplog):
    first, _, _ = fetch(source, server, tmp_path)
    damage(place(tmp_path, server, source))
    again, n_asked, _ = fetch(source, server, tmp_path)
    pd.testing.assert_frame_equal(again, first)
    assert n_asked == 1
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert FIRST[source] in message
    assert "downloading BTC/" in message
    assert "\n" not in message
    assert fetch(source, server, tmp_path)[1] == 0


def test_a_file_of_another_timeframe_is_told_by_its_label(server, source, tmp_path, caplog):
    fetch(source, server, tmp_path)
    unit = SymbolMonth(FIRST[source].partition("/")[0].replace("-", "/"), datetime(2024, 12, 1, tzinfo=UTC))
    hours, minutes = (BarsCache(tmp_path, server.url, timeframe) for timeframe in ("1h", "5m"))
    minutes.path(unit).parent.mkdir(parents=True)
    minutes.path(unit).write_bytes(hours.path(unit).read_bytes())
    assert minutes.read(unit) is None
    assert f'it contains ["{server.url}", "{unit.symbol}", "1h", "2024-12"]' in caplog.messages[-1]


@pytest.mark.parametrize(("timeframe", "shift"), [("5m", 0), ("1h", 60)])
def test_bars_of_another_length_are_neither_written_nor_read(tmp_path, monkeypatch, caplog, timeframe, shift):
    unit = SymbolMonth("BTC/USD", datetime(2024, 12, 1, tzinfo=UTC))
    made = made_up_bars("BTC", seconds(2024, 12), seconds(2025, 1), 3_600)
    stamps = pd.to_datetime(made.pop("time") + shift, unit="s", utc=True)
    bars = made.assign(timestamp=stamps.dt.as_unit("s"), symbol="BTC/USD")
    cache = BarsCache(tmp_path, "http://server", timeframe)
    with pytest.raises(BarsError, match=r"expected 5m|does not open on the UTC grid of 1h"):
        cache.write(unit, bars)
    assert not cache.path(unit).exists()
    with monkeypatch.context() as patch:
        patch.setattr(bars_cache, "check_timeframe", lambda *_: None)
        cache.write(unit, bars)
        assert len(cache.read(unit)) == len(bars)
    assert cache.read(unit) is None
    assert "cannot be used (the file: " in caplog.messages[-1]


def few_bars(*opens_at):
    return pd.DataFrame({"timestamp": pd.to_datetime([300 * n for n in opens_at], unit="s", utc=True)})


def test_the_bar_length_of_a_thin_coin_is_told_from_all_its_steps():
    for opens_at in ((), (7,), (7, 19), (0, 2, 5), (0, 1, 2, 9), (0, 12, 24, 25, 26)):
        bars_cache.check_timeframe(few_bars(*opens_at), "5m", "here")
    for opens_at in ((0, 12, 24), range(0, 600, 12), (*range(0, 600, 12), 601)):
        with pytest.raises(BarsError, match="here: the bars are 1h apart, expected 5m"):
            bars_cache.check_timeframe(few_bars(*opens_at), "5m", "here")


def test_every_flipped_bit_is_noticed_or_harmless(server, tmp_path):
    fetch("alpaca", server, tmp_path)
    cache = BarsCache(tmp_path, server.url, "1h")
    unit = SymbolMonth("BTC/USD", datetime(2024, 12, 1, tzinfo=UTC))
    content, expected = cache.path(unit).read_bytes(), cache.read(unit)
    for place in range(0, len(content), max(1, len(content) // 300)):
        cache.path(unit).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        found = cache.read(unit)
        assert found is None or found.equals(expected)


def test_bars_of_another_server_are_not_taken_for_this_ones(server, tmp_path):
    fetch("alpaca", server, tmp_path)
    with BarsServer({"BTC/USD": made_up_bars("ETH", seconds(2024, 11), seconds(2025, 3), 3_600)}, 3_600) as other:
        bars, n_asked, _ = fetch("alpaca", other, tmp_path)
        assert n_asked == 3
        assert bars["close"].iloc[0] == other.market["BTC/USD"].query("time == 1733788800")["close"].item()
    assert fetch("alpaca", server, tmp_path)[1] == 0


def test_a_fault_says_what_is_kept_and_the_next_run_goes_on_from_there(server, source, tmp_path):
    server.fail("422", times=2, where="2025-02" if source == "binance" else "start=2025-02")
    with pytest.raises(BarsError, match=r"422.*; 2 of 3 symbol-months are in the cache ") as caught:
        fetch(source, server, tmp_path)
    assert "\n" not in str(caught.value)
    server.faults.clear()
    assert fetch(source, server, tmp_path)[1] == 1


def test_a_file_in_the_place_of_the_cache_is_refused_before_any_request(server, source, tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(BarsError, match=r"cache .*: not a folder"):
        fetch(source, server, tmp_path / "cache")
    assert server.n_requests == 0
    assert (tmp_path / "cache").read_text() == "mine"


def test_what_a_killed_write_left_goes_with_the_next_write_of_the_month(server, tmp_path):
    path = place(tmp_path, server, "alpaca")
    path.parent.mkdir(parents=True)
    old, new = (path.with_name(f".{path.name}.{token}.tmp") for token in ("0a1b2c3d", "4e5f6a7b"))
    for leftover in (old, new):
        leftover.write_bytes(b"half")
    os.utime(old, (1, 1))
    fetch("alpaca", server, tmp_path)
    assert not old.exists()
    assert new.exists()  # another process may have made it a moment ago
