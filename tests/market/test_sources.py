"""Both download sources against a stand-in server: the right bars, whatever the server does, without a network."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.alpaca import Alpaca
from market.binance import Binance
from market.errors import BarsError
from market.periods import Period
from market.sources import alpaca_bars, binance_bars, download
from market.transport import Patience
from tests.support.bars_server import FAULT_KINDS, Answer, BarsServer, archive_of, made_up_bars, seconds

QUICK = Patience(backoff_s=0.001, damaged_wait_s=0.001, longest_wait_s=0.05)
STUBBORN = replace(QUICK, retries=9, damaged_tries=9)
NOV, DEC, JAN, FEB = (seconds(y, m) for y, m in ((2024, 11), (2024, 12), (2025, 1), (2025, 2)))
PERIOD = Period(datetime(2024, 12, 31, 23, tzinfo=UTC), datetime(2025, 1, 1, 2, tzinfo=UTC))
FETCH = {"alpaca": alpaca_bars, "binance": binance_bars}
SOURCE = {"alpaca": Alpaca, "binance": Binance}
DOLLAR = {"alpaca": "USD", "binance": "USDT"}


def market_of(*coins, first=DEC, last=FEB, step=3_600):
    """The same bars under the names of both sources."""
    return {f"{coin}/{dollar}": made_up_bars(coin, first, last, step) for coin in coins for dollar in DOLLAR.values()}


@pytest.fixture
def server():
    with BarsServer(market_of("BTC", "ETH"), step=3_600) as server:
        yield server


@pytest.fixture(params=FETCH)
def source(request):
    return request.param


def quiet(*_):
    pass


def fetch(source, server, tickers=("BTC",), period=PERIOD, patience=QUICK, **options):
    return FETCH[source](tickers, "1h", period, quiet, url=server.url, patience=patience, **options)


def assert_is_the_market(bars, server, source, tickers, period=PERIOD):
    """Every bar of the tickers in the period, and no other, to the bit."""
    assert sorted(set(bars["symbol"])) == sorted(f"{ticker}/{DOLLAR[source]}" for ticker in tickers)
    for symbol, got in bars.groupby("symbol", observed=True):
        there = server.market[symbol]
        inside = (there["time"] >= period.start.timestamp()) & (there["time"] < period.end.timestamp())
        expected = there[inside]
        time = got["timestamp"].dt.as_unit("s").astype("int64").to_numpy()
        np.testing.assert_array_equal(time, expected["time"].to_numpy())
        for name in ("open", "high", "low", "close", "volume"):
            np.testing.assert_array_equal(got[name].to_numpy(), expected[name].to_numpy())


def test_the_bars_are_the_markets_across_a_change_of_year_and_unit(server, source):
    # Binance writes milliseconds in 2024 and microseconds from 2025-01-01.
    calls = []
    bars = FETCH[source](["eth", "BTCUSD"], "1h", PERIOD, lambda *state: calls.append(state), url=server.url)
    assert_is_the_market(bars, server, source, ("BTC", "ETH"))
    assert len(bars) == 2 * 3
    assert str(bars["timestamp"].dtype) == "datetime64[s, UTC]"
    assert calls == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("page_bars", [1, 7, 10_000])
def test_alpaca_pages_are_followed_to_the_end_however_short(server, page_bars):
    server.page_bars = page_bars
    bars = fetch("alpaca", server, ("BTC", "ETH"))
    assert_is_the_market(bars, server, "alpaca", ("BTC", "ETH"))


def test_alpaca_pages_that_go_round_in_a_circle_are_refused(server, monkeypatch):
    server.page_bars = 1
    monkeypatch.setattr(
        server, "_alpaca", lambda query, honest=server._alpaca: honest({**query, "page_token": "0"}), raising=True
    )
    with pytest.raises(BarsError, match="the pages go round in a circle"):
        fetch("alpaca", server)


def test_a_header_line_in_an_archive_is_no_bar(server):
    server.header_line = True
    assert_is_the_market(fetch("binance", server), server, "binance", ("BTC",))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(2024, 12, 1), datetime(2025, 1, 1)),
        (datetime(2024, 12, 31, 23), datetime(2025, 1, 1)),
        (datetime(2025, 1, 1), datetime(2025, 1, 1, 1)),
        (datetime(2024, 12, 15, 0, 30), datetime(2025, 1, 20, 12, 1)),
    ],
)
def test_the_start_is_in_and_the_end_is_out_at_the_edges_of_months(server, source, start, end):
    period = Period(start, end)
    assert_is_the_market(fetch(source, server, period=period), server, source, ("BTC",), period)


def test_a_period_with_zones_is_converted_to_utc(server, source):
    zone = datetime.fromisoformat("2025-01-01T00:00+05:30").tzinfo
    period = Period(PERIOD.start.astimezone(zone), PERIOD.end.astimezone(zone))
    assert period == PERIOD
    assert period.months() == PERIOD.months()
    assert_is_the_market(fetch(source, server, period=period), server, source, ("BTC",))


@pytest.mark.parametrize("kind", [kind for kind in FAULT_KINDS if kind != "empty"])
def test_one_fault_of_any_kind_at_any_request_changes_nothing(source, kind):
    with BarsServer(market_of("BTC"), step=3_600) as server:
        fetch(source, server)
        for place in range(server.n_requests):
            for _ in range(place):
                server.fail("200")
            server.fail(kind)
            bars = fetch(source, server)
            assert_is_the_market(bars, server, source, ("BTC",))
            assert not server.faults


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(("200", *FAULT_KINDS[:-1])), max_size=12), st.sampled_from(sorted(FETCH)))
def test_no_schedule_of_faults_changes_a_bar(kinds, source):
    with BarsServer(market_of("BTC"), step=3_600) as server:
        server.page_bars = 2
        # No more in a row than the stubborn patience has tries.
        for n, kind in enumerate(kinds):
            server.fail(kind if n % 8 else "200")
        assert_is_the_market(fetch(source, server, patience=STUBBORN), server, source, ("BTC",))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(FAULT_KINDS), max_size=12), st.sampled_from(sorted(FETCH)))
def test_out_of_patience_is_an_error_and_never_other_bars(kinds, source):
    with BarsServer(market_of("BTC"), step=3_600) as server:
        for kind in kinds:
            server.fail(kind)
        bars = None
        with suppress(BarsError):
            bars = fetch(source, server, patience=replace(QUICK, retries=1, damaged_tries=2))
        if bars is not None:
            assert_is_the_market(bars, server, source, ("BTC",))


def test_an_empty_answer_for_a_month_that_has_bars_is_fetched_again(server):
    period = Period(datetime(2024, 12, 1, tzinfo=UTC), datetime(2025, 1, 31, tzinfo=UTC))
    server.fail("empty", where="timeframe=1Hour")
    assert_is_the_market(fetch("alpaca", server, period=period), server, "alpaca", ("BTC",), period)
    server.fail("empty", 9, where="timeframe=1Hour")
    with pytest.raises(BarsError, match="BTC/USD 2024-12: the answer is empty, but there are bars on 29 days"):
        fetch("alpaca", server, period=period)


def test_unknown_alpaca_symbols_are_named_by_the_first_request(server):
    with pytest.raises(BarsError, match=r"no bars of QQQ/USD, XYZ/USD from 2024-12-29 to 2025-01-03; check the ticker"):
        fetch("alpaca", server, ("BTC", "XYZ", "QQQ"))
    assert server.n_requests == 1


def test_a_symbol_with_daily_bars_beside_the_period_only_is_named_at_the_end(server):
    server.market["NEW/USD"] = made_up_bars("NEW", JAN + 7_200, FEB, 3_600)
    with pytest.raises(BarsError, match="Alpaca has no bars of NEW/USD in this period"):
        fetch("alpaca", server, ("BTC", "NEW"))


def test_unknown_binance_coins_are_named_before_anything_is_downloaded(server):
    with pytest.raises(BarsError, match=r"no archive QQQUSDT-1h-2024-12\.zip, XYZUSDT-1h-2024-12\.zip; check the"):
        fetch("binance", server, ("BTC", "XYZ", "QQQ"))
    assert set(server.requests) == {f"{coin}USDT-1h-2024-12.zip.CHECKSUM" for coin in ("BTC", "XYZ", "QQQ")} | {
        f"{coin}USDT-1h-2025-01.zip.CHECKSUM" for coin in ("BTC", "XYZ", "QQQ")
    }


def test_a_coin_listed_in_mid_period_is_fine_and_is_said(server, caplog):
    server.market["NEW/USD"] = made_up_bars("NEW", JAN + 86_400 * 9, FEB, 3_600)
    period = Period(datetime(2024, 12, 1, tzinfo=UTC), datetime(2025, 1, 20, tzinfo=UTC))
    bars = fetch("alpaca", server, ("BTC", "NEW"), period=period)
    assert_is_the_market(bars, server, "alpaca", ("BTC", "NEW"), period)
    assert caplog.messages == ["Alpaca: the first bar of NEW/USD is at 2025-01-10 00:00 UTC"]


def test_a_last_binance_month_that_is_not_there_yet_is_left_out_and_said(server, caplog):
    server.market["ETH/USDT"] = made_up_bars("ETH", DEC, JAN, 3_600)
    bars = fetch("binance", server, ("BTC", "ETH"))
    shorter = Period(PERIOD.start, datetime(2025, 1, 1, tzinfo=UTC))
    assert_is_the_market(bars, server, "binance", ("BTC", "ETH"), shorter)
    assert caplog.messages == ["Binance has no 1h archive of 2025-01 for ETH/USDT yet; bars end with 2024-12"]


def test_an_earlier_binance_month_that_is_absent_is_an_error(server):
    server.market["ETH/USDT"] = made_up_bars("ETH", JAN, FEB, 3_600)
    with pytest.raises(BarsError, match=r"no archive ETHUSDT-1h-2024-12\.zip; check the ticker, that the coin was"):
        fetch("binance", server, ("BTC", "ETH"))


def test_a_binance_archive_that_fails_its_checksum_is_refused(server, tmp_path):
    server.wrong_checksums.add("BTCUSDT-1h-2025-01.zip")
    with pytest.raises(BarsError, match=r"BTCUSDT-1h-2025-01\.zip: does not match its published SHA-256; try again"):
        fetch("binance", server, cache=tmp_path)
    assert server.requests["BTCUSDT-1h-2025-01.zip"] == QUICK.damaged_tries
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["2024-12.parquet"]


def bars_of_january():
    return made_up_bars("BTC", JAN, FEB, 3_600)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a zip", "not a readable archive"),
        (b"", "not a readable archive"),
        (archive_of(bars_of_january(), 3_600)[:-40], "not a readable archive"),
        (archive_of(bars_of_january().assign(close=np.nan), 3_600), "BTC/USDT bar 2025-01-01 00:00: close is not a"),
        (archive_of(made_up_bars("BTC", DEC, JAN, 3_600), 3_600), "holds bars of 2024-12-01 .. 2024-12-31"),
    ],
)
def test_a_verified_archive_that_holds_something_else_is_refused_and_not_cached(server, tmp_path, content, message):
    server.replaced["BTCUSDT-1h-2025-01.zip"] = content or b" "
    with pytest.raises(BarsError, match=message) as caught:
        fetch("binance", server, cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["2024-12.parquet"]


@pytest.mark.parametrize(
    "body",
    [b"null", b"[]", b"{}", b'{"bars": null}', b'{"bars": {"BTC/USD": "x"}}', b'{"bars": {"BTC/USD": [1]}}', b""],
)
def test_an_alpaca_answer_that_is_no_answer_is_one_line(server, monkeypatch, body):
    monkeypatch.setattr(server, "_alpaca", lambda query: Answer(body=body))
    with pytest.raises(BarsError, match="Alpaca") as caught:
        fetch("alpaca", server)
    assert "\n" not in str(caught.value)


def test_alpaca_bars_off_the_utc_grid_are_refused_with_a_way_out(server):
    # Its daily bars have opened at 05:00 and 06:00 UTC.
    server.market = {"BTC/USD": made_up_bars("BTC", DEC + 6 * 3_600, FEB, 86_400)}
    server.step = 86_400
    period = Period(datetime(2024, 12, 1, tzinfo=UTC), datetime(2025, 1, 20, tzinfo=UTC))
    with pytest.raises(BarsError, match=r"2024-12-01 06:00 UTC does not open at a whole 1d in UTC; download 1h bars"):
        alpaca_bars(["BTC"], "1d", period, quiet, url=server.url, patience=QUICK)


def test_a_bar_that_has_not_closed_is_never_returned(server, source):
    now = datetime(2025, 1, 1, 1, 59, 59, tzinfo=UTC)
    if source == "binance":
        server.market["BTC/USDT"] = server.market["BTC/USDT"].query("time < 1735689600")
    kind = SOURCE[source]("1h", server.url, QUICK)
    bars = download(kind, ["BTC"], "1h", PERIOD, quiet, None, now)
    # The bar of 01:00 closes at 02:00.
    last = "2025-01-01 00:00" if source == "alpaca" else "2024-12-31 23:00"
    assert bars["timestamp"].max() == pd.Timestamp(last, tz="UTC")


def test_a_period_that_lies_ahead_is_refused(server, source):
    now = datetime(2024, 12, 31, 23, 30, tzinfo=UTC)
    with pytest.raises(BarsError, match="no 1h bar from 2024-12-31 23:00 UTC on has closed yet"):
        download(SOURCE[source]("1h", server.url, QUICK), ["BTC"], "1h", PERIOD, quiet, None, now)
    assert server.n_requests == 0


@pytest.mark.parametrize("ticker", ["../../etc/passwd", "BTC?x=1", "BTC&", "", "/USD"])
def test_a_ticker_that_is_no_name_goes_into_no_address(server, source, ticker):
    with pytest.raises(BarsError, match="is not the name of a coin"):
        fetch(source, server, (ticker,))
    assert server.n_requests == 0


def test_an_empty_period_is_refused():
    with pytest.raises(BarsError, match="start 2025-01-01 is not before end 2025-01-01"):
        Period(datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))


def test_a_period_touches_calendar_months():
    period = Period(datetime(2024, 11, 30, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC))
    assert [f"{month:%Y-%m}" for month in period.months()] == ["2024-11", "2024-12", "2025-01"]
