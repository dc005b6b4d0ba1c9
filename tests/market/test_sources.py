"""The downloads against a local stand-in server; nothing here needs a network."""

import hashlib
import io
import json
import runpy
import threading
import time
import zipfile
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from market import sources
from market.candles import read_bars, to_grid
from market.errors import BarsError
from market.sources import Period, alpaca_bars, binance_bars, check_reachable

DOWNLOAD = Path(__file__).resolve().parents[2] / "scripts" / "data" / "download_bars.py"
DEC, JAN, FEB = (int(datetime(y, m, 1, tzinfo=UTC).timestamp()) for y, m in ((2024, 12), (2025, 1), (2025, 2)))
PERIOD = Period(datetime(2024, 12, 31, 23, tzinfo=UTC), datetime(2025, 1, 1, 2, tzinfo=UTC))


@pytest.fixture
def server():
    """A server that answers from `server.answers`: {path: bytes or function of the query}."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            address = urlsplit(self.path)
            answer = self.server.answers.get(address.path)
            body = answer(parse_qs(address.query)) if callable(answer) else answer
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"nothing here")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answers = {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def archive(first, last, unit, header=""):
    rows = [f"{t * unit},100,102,99,101,5,{(t + 300) * unit - 1},500,10,2,200,0" for t in range(first, last, 300)]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as files:
        files.writestr("bars.csv", header + "\n".join(rows) + "\n")
    return out.getvalue()


def offer(server, name, content, checksum=None):
    pair, timeframe = name.split("-")[:2]
    path = f"/data/spot/monthly/klines/{pair}/{timeframe}/{name}.zip"
    server.answers[path] = content
    server.answers[path + ".CHECKSUM"] = f"{checksum or hashlib.sha256(content).hexdigest()}  {name}.zip\n".encode()


def fetch_binance(server, tickers=("BTC",), period=PERIOD):
    return binance_bars(tickers, "5m", period, lambda done, total: None, url=server.url)


def test_binance_months_join_across_the_change_of_unit(server):
    offer(server, "BTCUSDT-5m-2024-12", archive(DEC, JAN, 1_000))
    offer(server, "BTCUSDT-5m-2025-01", archive(JAN, FEB, 1_000_000, header="open_time,o,h,l,c,v,a,b,c,d,e,f\n"))
    calls = []
    bars = binance_bars(["BTC/USD"], "5m", PERIOD, lambda *state: calls.append(state), url=server.url)
    grid = to_grid(bars, ["BTC"], "binance")
    assert grid.time.tolist() == list(range(JAN - 3_600, JAN + 7_200, 300))
    assert not grid.missing.any()
    assert calls == [(1, 2), (2, 2)]
    assert bars["symbol"].unique().tolist() == ["BTC/USDT"]


def test_a_binance_archive_that_fails_its_checksum_is_refused(server):
    offer(server, "BTCUSDT-5m-2024-12", archive(DEC, JAN, 1_000), checksum="0" * 64)
    with pytest.raises(BarsError, match=r"BTCUSDT-5m-2024-12\.zip: does not match its published SHA-256"):
        fetch_binance(server)


def test_a_damaged_binance_archive_is_refused(server):
    offer(server, "BTCUSDT-5m-2024-12", b"not a zip")
    with pytest.raises(BarsError, match="not a readable archive"):
        fetch_binance(server)


def test_an_absent_binance_month_or_coin_is_named(server):
    with pytest.raises(BarsError, match=r"no archive XYZUSDT-5m-2024-12\.zip; check the ticker"):
        fetch_binance(server, ["XYZ"])


def test_a_last_binance_month_that_is_not_there_yet_is_left_out_and_said(server, caplog):
    for pair in ("BTCUSDT", "ETHUSDT"):
        offer(server, f"{pair}-5m-2024-12", archive(DEC, JAN, 1_000))
    offer(server, "BTCUSDT-5m-2025-01", archive(JAN, FEB, 1_000_000))
    bars = fetch_binance(server, ["BTC", "ETH"])
    assert to_grid(bars, ["BTC", "ETH"], "binance").time.tolist() == list(range(JAN - 3_600, JAN, 300))
    assert caplog.messages == ["Binance has no 5m archive of 2025-01 for ETHUSDT yet; bars end with 2024-12"]


def test_an_earlier_binance_month_that_is_absent_is_an_error(server):
    offer(server, "BTCUSDT-5m-2025-01", archive(JAN, FEB, 1_000_000))
    with pytest.raises(BarsError, match=r"no archive BTCUSDT-5m-2024-12\.zip"):
        fetch_binance(server)


@pytest.mark.parametrize(
    ("source", "end"), [("binance", datetime(2025, 2, 1, tzinfo=UTC)), ("alpaca", datetime(2025, 2, 17, tzinfo=UTC))]
)
def test_the_default_end_is_a_bar_that_the_source_can_have(source, end, monkeypatch):
    class Today(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2025, 2, 17, 13, 5, tzinfo=tz)

    script = runpy.run_path(str(DOWNLOAD))
    monkeypatch.setitem(script["period_of"].__globals__, "datetime", Today)
    args = script["parse_arguments"](["--source", source, "--out", "bars.parquet"])
    assert script["period_of"](args).end == end


def test_the_download_script_takes_the_months_that_have_ended(server, tmp_path, monkeypatch):
    today = datetime.now(UTC)
    this_month = int(datetime(today.year, today.month, 1, tzinfo=UTC).timestamp())
    start = datetime.fromtimestamp(this_month - 20 * 86_400, UTC)
    month = start.replace(day=1)
    offer(server, f"BTCUSDT-5m-{month:%Y-%m}", archive(int(month.timestamp()), this_month, 1_000_000))
    script = runpy.run_path(str(DOWNLOAD))
    monkeypatch.setitem(script["SOURCES"], "binance", partial(binance_bars, url=server.url))
    out = tmp_path / "bars.parquet"
    arguments = ["--source", "binance", "--tickers", "BTC", "--start", f"{start:%Y-%m-%d}", "--out", str(out)]
    assert script["main"](arguments) == 0
    assert read_bars(out)["timestamp"].max().timestamp() == this_month - 300


def alpaca_server(server, page_bars=7):
    """Bars of BTC/USD only, on pages of a few bars each."""

    def answer(query):
        first, last = (
            int(datetime.fromisoformat(query[k][0].replace("Z", "+00:00")).timestamp()) for k in ("start", "end")
        )
        first = max(first, int(query.get("page_token", ["0"])[0]))
        times = list(range(-(-first // 300) * 300, last + 1, 300))
        rows = [
            {"t": f"{datetime.fromtimestamp(t, UTC):%Y-%m-%dT%H:%M:%SZ}", "o": 100, "h": 102, "l": 99, "c": 101, "v": 1}
            for t in times[:page_bars]
        ]
        token = str(times[page_bars]) if len(times) > page_bars else None
        return json.dumps({"bars": {"BTC/USD": rows}, "next_page_token": token}).encode()

    server.answers["/v1beta3/crypto/us/bars"] = answer


def test_alpaca_pages_and_months_are_followed_to_the_end(server):
    alpaca_server(server)
    calls = []
    bars = alpaca_bars(["BTCUSD"], "5m", PERIOD, lambda *state: calls.append(state), url=server.url)
    grid = to_grid(bars, ["BTC"], "alpaca")
    assert grid.time.tolist() == list(range(JAN - 3_600, JAN + 7_200, 300))
    assert calls == [(1, 2), (2, 2)]


def test_an_unknown_alpaca_symbol_is_named(server):
    alpaca_server(server)
    with pytest.raises(BarsError, match="Alpaca has no bars of XYZ/USD"):
        alpaca_bars(["BTC", "XYZ"], "5m", PERIOD, lambda done, total: None, url=server.url)


@pytest.mark.parametrize("answer", [None, b"<html>busy</html>", b"{}"])
def test_a_confused_alpaca_server_is_one_line(server, answer):
    server.answers["/v1beta3/crypto/us/bars"] = answer
    with pytest.raises(BarsError, match="Alpaca") as caught:
        alpaca_bars(["BTC"], "5m", PERIOD, lambda done, total: None, url=server.url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fetch", [alpaca_bars, binance_bars])
def test_a_server_that_is_not_there_is_one_line(fetch):
    with pytest.raises(BarsError, match="try again later"):
        fetch(["BTC"], "5m", PERIOD, lambda done, total: None, url="http://127.0.0.1:9")


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch):
    released = threading.Event()

    def hang(*_):
        released.wait(30.0)
        raise OSError("released")

    monkeypatch.setattr(sources, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(sources.socket, "create_connection", hang)
    monkeypatch.setattr(sources.requests.utils, "get_environ_proxies", lambda _: {})
    began = time.perf_counter()
    with pytest.raises(BarsError, match=r"example\.invalid cannot be reached \(no answer in 0.2 s\)"):
        check_reachable("example.invalid")
    assert time.perf_counter() - began < 5.0
    released.set()


def test_an_empty_period_is_refused():
    with pytest.raises(BarsError, match="start 2025-01-01 is not before end 2025-01-01"):
        Period(datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC))


def test_a_period_touches_calendar_months():
    period = Period(datetime(2024, 11, 30, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC))
    assert [f"{month:%Y-%m}" for month in period.months()] == ["2024-11", "2024-12", "2025-01"]
