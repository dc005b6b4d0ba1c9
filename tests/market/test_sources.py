"""Both download sources against a stand-in server: the right bars, whatever the server does, without a network."""

import io
import json
import struct
import zipfile
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.errors import BarsError
from market.sources.alpaca import Alpaca
from market.sources.binance import Binance
from market.sources.download import alpaca_bars, binance_bars, download
from market.sources.periods import Period
from market.sources.transport import Patience
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


def at(now, source, server, tickers=("BTC",), period=PERIOD, timeframe="1h", cache=None):
    return download(SOURCE[source](timeframe, server.url, QUICK), tickers, timeframe, period, quiet, cache, now)


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
    with pytest.raises(BarsError, match="the pages form a cycle"):
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
    with pytest.raises(BarsError, match="BTC/USD 2024-12: the response is empty, but 31 days have bars"):
        fetch("alpaca", server, period=period)


DECEMBER = Period(datetime(2024, 12, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))


def without_token(query, page):
    return page.replace(b'"next_page_token": "1000"', b'"next_page_token": null')


def emptied(query, page):
    return b'{"bars": {}, "next_page_token": "3000"}' if query.get("page_token") == "2000" else page


def without_days(query, page):
    """A hole of days that no page shows."""
    content = json.loads(page)
    for symbol, rows in content["bars"].items():
        content["bars"][symbol] = [row for row in rows if not "2024-12-10T07" < row["t"] < "2024-12-13T07"]
    return json.dumps(content).encode()


def without_an_evening(query, page):
    content = json.loads(page)
    for symbol, rows in content["bars"].items():
        content["bars"][symbol] = [row for row in rows if row["t"] < "2024-12-31T08"]
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_token, "the response lacks 27 of 31 days with bars, first 2024-12-05"),
        (emptied, "a page is empty although more pages follow"),
        (without_days, "the response lacks 2 of 31 days with bars, first 2024-12-11"),
        (without_an_evening, "the response lacks most of 2024-12-31"),
    ],
)
@pytest.mark.parametrize("period", [DECEMBER, Period(DECEMBER.start.replace(day=20), DECEMBER.start.replace(day=22))])
def test_a_part_of_a_month_is_fetched_again_and_never_kept(tmp_path, monkeypatch, damage, message, period):
    with BarsServer(market_of("BTC", step=300), step=300) as server:
        server.page_bars = 1_000
        honest, n_damaged = server._alpaca, []

        def alpaca(query):
            answer = honest(query)
            spoilt = answer.body if query["timeframe"] == "1Day" else damage(query, answer.body)
            if spoilt != answer.body and len(n_damaged) < most:
                n_damaged.append(query)
                return Answer(body=spoilt)
            return answer

        monkeypatch.setattr(server, "_alpaca", alpaca)
        now, most = datetime(2025, 3, 1, tzinfo=UTC), 9
        with pytest.raises(BarsError, match=f"BTC/USD 2024-12: {message}; try again later"):
            at(now, "alpaca", server, period=period, timeframe="5m", cache=tmp_path)
        assert list(tmp_path.rglob("*.parquet")) == []
        most = len(n_damaged) + 1
        bars = at(now, "alpaca", server, period=period, timeframe="5m", cache=tmp_path)
        assert_is_the_market(bars, server, "alpaca", ("BTC",), period)
        assert len(n_damaged) == most


@pytest.mark.parametrize("hour", [0, 5])
def test_a_thin_coin_whose_days_have_few_bars_is_no_damage(server, hour):
    whole = made_up_bars("THIN", DEC, FEB, 3_600)
    server.market["THIN/USD"] = whole[np.random.default_rng(0).random(len(whole)) < 0.08]
    server.days_open_at_s = hour * 3_600
    assert_is_the_market(fetch("alpaca", server, ("THIN",), DECEMBER), server, "alpaca", ("THIN",), DECEMBER)


def test_a_clock_that_is_ahead_keeps_no_month_that_runs(server, tmp_path):
    server.now = datetime(2025, 1, 20, 3, 30, tzinfo=UTC)
    server.market["BTC/USD"] = made_up_bars("BTC", DEC, int(server.now.timestamp()), 3_600)  # the last one has begun
    ahead = datetime(2025, 3, 1, tzinfo=UTC)
    period = Period(datetime(2024, 12, 1, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC))
    bars = at(ahead, "alpaca", server, period=period, cache=tmp_path)
    assert bars["timestamp"].max() == pd.Timestamp("2025-01-20 02:00", tz="UTC")
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["2024-12.parquet"]
    with pytest.raises(BarsError, match="no 1h bar of this period has closed yet according to the server's clock"):
        at(ahead, "alpaca", server, period=Period(server.now, ahead))
    # A server's clock that is ahead changes nothing either.
    server.now = ahead
    at(datetime(2025, 1, 20, 3, 30, tzinfo=UTC), "alpaca", server, period=period, cache=tmp_path)
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["2024-12.parquet"]


@pytest.mark.parametrize(
    ("step", "shift", "message"),
    [
        (3_600, 0, "the bars are 1h apart, expected 5m"),
        (60, 0, "does not open on the UTC grid of 5m"),
        (300, 60, "2024-12-01 00:01.* UTC does not open on the UTC grid of 5m"),
    ],
)
def test_bars_of_another_length_are_refused_and_not_kept(source, tmp_path, step, shift, message):
    market = market_of("BTC", last=JAN, step=step)
    market = {symbol: bars.assign(time=bars["time"] + shift) for symbol, bars in market.items()}
    with BarsServer(market, step=step) as server:
        with pytest.raises(BarsError, match=f"^{source.title()}, BTC/.* 2024-12: .*{message}") as caught:
            at(datetime(2025, 3, 1, tzinfo=UTC), source, server, period=DECEMBER, timeframe="5m", cache=tmp_path)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.rglob("*.parquet")) == []


def test_unknown_alpaca_symbols_are_named_by_the_first_request(server):
    with pytest.raises(BarsError, match=r"no bars of QQQ/USD, XYZ/USD from 2024-12-29 to 2025-01-03; check the ticker"):
        fetch("alpaca", server, ("BTC", "XYZ", "QQQ"))
    assert server.n_requests == 1


def test_a_symbol_with_daily_bars_beside_the_period_only_is_named_at_the_end(server):
    server.market["NEW/USD"] = made_up_bars("NEW", JAN + 7_200, FEB, 3_600)
    with pytest.raises(BarsError, match="Alpaca has no bars of NEW/USD in this period"):
        fetch("alpaca", server, ("BTC", "NEW"))


def test_unknown_binance_coins_are_named_before_anything_is_downloaded(server):
    with pytest.raises(BarsError, match=r"no archive QQQUSDT-1h-2024-12\.zip, XYZUSDT-1h-2024-12\.zip; check that the"):
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
    bars = at(datetime(2025, 3, 17, tzinfo=UTC), "binance", server, ("BTC", "ETH"))
    shorter = Period(PERIOD.start, datetime(2025, 1, 1, tzinfo=UTC))
    assert_is_the_market(bars, server, "binance", ("BTC", "ETH"), shorter)
    assert caplog.messages == [
        "Binance has not published the 1h archive of 2025-01 for ETH/USDT yet; bars end with 2024-12"
    ]


def test_a_last_binance_month_that_is_absent_for_long_cuts_no_other_coin(server):
    for coin in ("OLD", "ETH"):
        server.market[f"{coin}/USDT"] = made_up_bars(coin, DEC, JAN, 3_600)
    with pytest.raises(BarsError, match=r"no archive ETHUSDT-1h-2025-01.*ETH/USDT, OLD/USDT may be delisted"):
        at(datetime(2025, 3, 19, tzinfo=UTC), "binance", server, ("BTC", "ETH", "OLD"))
    assert not [name for name in server.requests if name.endswith(".zip")]


def test_a_coin_whose_bars_end_early_is_said(server, source, caplog):
    for dollar in DOLLAR.values():
        server.market[f"OLD/{dollar}"] = made_up_bars("OLD", DEC, JAN + 86_400 * 9, 3_600)
    period = Period(datetime(2024, 12, 1, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC))
    fetch(source, server, ("BTC", "OLD"), period=period)
    said = [f"{source.title()}: the last bar of OLD/{DOLLAR[source]} is at 2025-01-09 23:00 UTC"]
    if source == "binance":
        said.insert(0, "Binance, OLDUSDT-1h-2025-01.zip: ends early with the bar of 2025-01-09 23:00 UTC")
    assert caplog.messages == said


def test_an_earlier_binance_month_that_is_absent_is_an_error(server):
    server.market["ETH/USDT"] = made_up_bars("ETH", JAN, FEB, 3_600)
    with pytest.raises(BarsError, match=r"no archive ETHUSDT-1h-2024-12\.zip; check that the ticker is correct"):
        fetch("binance", server, ("BTC", "ETH"))


def test_a_binance_archive_that_fails_its_checksum_is_refused(server, tmp_path):
    server.wrong_checksums.add("BTCUSDT-1h-2025-01.zip")
    with pytest.raises(BarsError, match=r"BTCUSDT-1h-2025-01\.zip: does not match its published SHA-256; try again"):
        fetch("binance", server, cache=tmp_path)
    assert server.requests["BTCUSDT-1h-2025-01.zip"] == QUICK.damaged_tries
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["2024-12.parquet"]


def test_a_checksum_of_another_file_is_refused(server, tmp_path):
    server.checksum_names["BTCUSDT-1h-2025-01.zip"] = "BTCUSDT-1h-2024-12.zip"
    with pytest.raises(BarsError, match=r"BTCUSDT-1h-2025-01\.zip: its published checksum belongs to a different file"):
        fetch("binance", server, cache=tmp_path)
    assert [path.name for path in tmp_path.rglob("*.parquet")] == ["2024-12.parquet"]


def zip_of(*members, compression=zipfile.ZIP_DEFLATED, damage_at=None, said_bytes=None):
    """A zip of (name, content) members, with some of its bytes changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as files:
        for name, content in members:
            files.writestr(name, content)
    content = bytearray(out.getvalue())
    if damage_at is not None:
        content[damage_at : damage_at + 40] = bytes(40)
    if said_bytes is not None:
        central = content.rindex(b"PK\x01\x02")
        content[central + 24 : central + 28] = struct.pack("<I", said_bytes)
    return bytes(content)


CSV = "BTCUSDT-1h-2025-01.csv"
NOISE = bytes(np.random.default_rng(0).integers(48, 58, 40_000, dtype=np.uint8))
BOMB = b"1," * 2**20  # a month of 1h bars has 535 KB at most


def bars_of_january():
    return made_up_bars("BTC", JAN, FEB, 3_600)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a zip", "not a readable archive"),
        (b"", "not a readable archive"),
        (archive_of(bars_of_january(), 3_600)[:-40], "not a readable archive"),
        (zip_of((CSV, NOISE), compression=zipfile.ZIP_LZMA, damage_at=5_000), "not a readable archive"),
        (zip_of((CSV, NOISE), compression=zipfile.ZIP_BZIP2, damage_at=5_000), "not a readable archive"),
        (zip_of((CSV, NOISE), damage_at=5_000), "not a readable archive"),
        (zip_of((CSV, b"")), "the archive contains no bars|not a readable archive"),
        (zip_of(), "contains .., expected one .csv file with the same name"),
        (zip_of((CSV, NOISE), ("more.csv", NOISE)), "expected one .csv file with the same name"),
        (zip_of(("ETHUSDT-1h-2025-01.csv", NOISE)), r"contains .'ETHUSDT-1h-2025-01\.csv'., expected one .csv"),
        (zip_of((CSV, BOMB)), "more than 536400 bytes decompressed, too large for a month of 1h bars"),
        (zip_of((CSV, BOMB), said_bytes=1_000), "not a readable archive"),
        (zip_of((CSV, BOMB), said_bytes=2**31), "more than 536400 bytes decompressed, too large"),
        (archive_of(bars_of_january().assign(close=np.nan), 3_600), "BTC/USDT bar 2025-01-01 00:00: close is not a"),
        (archive_of(made_up_bars("BTC", DEC, JAN, 3_600), 3_600), "contains bars of 2024-12-01 .. 2024-12-31"),
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
    with pytest.raises(BarsError, match=r"2024-12-01 06:00 UTC does not open on the UTC grid of 1d; download 1h bars"):
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
    with pytest.raises(BarsError, match="no 1h bar since 2024-12-31 23:00 UTC has closed yet"):
        download(SOURCE[source]("1h", server.url, QUICK), ["BTC"], "1h", PERIOD, quiet, None, now)
    assert server.n_requests == 0


@pytest.mark.parametrize("ticker", ["../../etc/passwd", "BTC?x=1", "BTC&", "", "/USD"])
def test_a_ticker_that_is_no_name_goes_into_no_address(server, source, ticker):
    with pytest.raises(BarsError, match="is not the name of a coin"):
        fetch(source, server, (ticker,))
    assert server.n_requests == 0


def test_an_empty_period_is_refused():
    with pytest.raises(BarsError, match="start 2025-01-01 must be before end 2025-01-01"):
        Period(datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))


def test_a_period_touches_calendar_months():
    period = Period(datetime(2024, 11, 30, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC))
    assert [f"{month:%Y-%m}" for month in period.months()] == ["2024-11", "2024-12", "2025-01"]
