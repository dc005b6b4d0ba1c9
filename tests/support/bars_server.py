"""A stand-in for Alpaca's bars and Binance's archives on this machine: a made-up market, served well or badly.

    with BarsServer({"BTC/USD": made_up_bars("BTC/USD", first, last, 300)}) as server:
        server.fail("truncate", times=2)
        alpaca_bars(["BTC"], "5m", period, show, url=server.url)

Faults are used up in the order given, each by the next request whose path holds `where`. `requests` counts every
request by file (Binance) or by symbols, timeframe and month (Alpaca), those that failed included.
"""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
import zipfile
import zlib
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd

ALPACA_PATH = "/v1beta3/crypto/us/bars"
BINANCE_PATH = "/data/spot/monthly/klines/"
MICROSECONDS_SINCE = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp())
ALPACA_SECONDS = {
    "1Min": 60,
    "5Min": 300,
    "15Min": 900,
    "30Min": 1_800,
    "1Hour": 3_600,
    "4Hour": 14_400,
    "1Day": 86_400,
}
PRICES_AND_VOLUME = ("open", "high", "low", "close", "volume")
FAULT_KINDS = ("429", "500", "502", "503", "504", "truncate", "drop", "html", "empty")


def seconds(year: int, month: int, day: int = 1, hour: int = 0) -> int:
    return int(datetime(year, month, day, hour, tzinfo=UTC).timestamp())


def made_up_bars(symbol: str, first: int, last: int, step: int) -> pd.DataFrame:
    """Bars with open times in [first, last), the same ones for the same arguments: a walk in whole cents."""
    time_s = np.arange(first, last, step, dtype=np.int64)
    source = np.random.default_rng(zlib.crc32(symbol.encode()))
    close = 10_000 + np.cumsum(source.integers(-9, 10, len(time_s)))
    opens = np.concatenate([[10_000], close[:-1]])
    cents = {
        "open": opens,
        "high": np.maximum(opens, close) + source.integers(0, 5, len(time_s)),
        "low": np.minimum(opens, close) - source.integers(0, 5, len(time_s)),
        "close": close,
        "volume": source.integers(0, 1_000, len(time_s)),
    }
    return pd.DataFrame({"time": time_s} | {name: column / 100 for name, column in cents.items()})


def daily(bars: pd.DataFrame, opens_at_s: int = 0) -> pd.DataFrame:
    """One bar a day from shorter ones, a day with holes included; Alpaca's have opened at 05:00 UTC."""
    rules = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    days = (bars["time"] - opens_at_s) // 86_400 * 86_400 + opens_at_s
    return bars.groupby(days).agg(rules).rename_axis("time").reset_index()


@dataclass
class Fault:
    kind: str
    where: str = ""  # only requests whose path and query hold this
    retry_after: str | None = None


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent_bytes: int | None = None  # fewer than promised where the body is cut short


class BarsServer:
    """One market on a port of its own. Times are seconds, prices are the market's to the bit."""

    def __init__(self, market: dict[str, pd.DataFrame], step: int = 300) -> None:
        self.market, self.step = market, step
        self.page_bars = 10_000
        self.limit: tuple[int, float] | None = None  # requests, in how many seconds
        self.header_line = False
        self.wrong_checksums: set[str] = set()  # archive names
        self.replaced: dict[str, bytes] = {}  # archive name -> other content
        self.checksum_names: dict[str, str] = {}  # archive name -> name in its checksum file
        self.days_open_at_s = 0
        self.now: datetime | None = None  # of the Date header; None: this machine's
        self.requests: Counter[str] = Counter()
        self.refused = 0  # answered 429 for being over the limit
        self.pause_after: int | None = None  # requests after this many wait for `resume`
        self.resume = threading.Event()
        self.faults: deque[Fault] = deque()
        self._lock = threading.Lock()
        self._times: deque[float] = deque()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resume.set()
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def n_requests(self) -> int:
        return sum(self.requests.values())

    def start(self) -> None:
        """Listen, on the same port as before a stop."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _handler_of(self))
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def fail(self, kind: str, times: int = 1, where: str = "", retry_after: str | None = None) -> None:
        """Answer the next requests badly; 0 in `retry_after` is a header too."""
        assert kind.isdecimal() or kind in FAULT_KINDS
        self.faults += [Fault(kind, where, retry_after) for _ in range(times)]

    def answer(self, address: str) -> Answer | None:
        """What a GET of this path and query gets; None drops the connection."""
        parts = urlsplit(address)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        with self._lock:
            self.requests[_name_of(parts.path, query)] += 1
            is_paused = self.pause_after is not None and self.n_requests > self.pause_after
            is_over = self._is_over_limit()
            fault = next((fault for fault in self.faults if fault.where in address), None)
            if fault is not None:
                self.faults.remove(fault)
        if is_paused:
            self.resume.wait(60.0)
        if is_over:
            return Answer(429, b'{"message": "too many requests."}', {"Retry-After": "1"})
        if parts.path == ALPACA_PATH:
            good = self._alpaca(query)
        else:
            good = self._binance(parts.path) if parts.path.startswith(BINANCE_PATH) else Answer(404)
        return good if fault is None else _spoilt(good, fault)

    def _is_over_limit(self) -> bool:
        if self.limit is None:
            return False
        now = time.monotonic()
        while self._times and self._times[0] <= now - self.limit[1]:
            self._times.popleft()
        is_over = len(self._times) >= self.limit[0]
        self.refused += is_over
        if not is_over:
            self._times.append(now)
        return is_over

    def _alpaca(self, query: dict[str, str]) -> Answer:
        """One page: symbols one after the other, the start and the end included, empty for an unknown symbol."""
        symbols = sorted(query["symbols"].split(","))
        first, last = (_epoch(query[name]) for name in ("start", "end"))
        step = ALPACA_SECONDS[query["timeframe"]]
        rows: list[tuple[str, dict[str, object]]] = []
        for symbol in symbols:
            bars = self.market.get(symbol)
            if bars is None:
                continue
            bars = daily(bars, self.days_open_at_s) if step == 86_400 and self.step != step else bars
            inside = bars[(bars["time"] >= first) & (bars["time"] <= last)]
            rows += [(symbol, _alpaca_row(bar)) for bar in inside.itertuples()]
        begin = int(query.get("page_token", "0"))
        end = begin + min(self.page_bars, int(query.get("limit", "1000")))
        page: dict[str, list[dict[str, object]]] = {}
        for symbol, row in rows[begin:end]:
            page.setdefault(symbol, []).append(row)
        token = str(end) if end < len(rows) else None
        return Answer(body=json.dumps({"bars": page, "next_page_token": token}).encode())

    def _binance(self, path: str) -> Answer:
        """An archive of a month in which the coin has bars, or its checksum."""
        wanted = path.rsplit("/", 1)[-1]
        name = wanted.removesuffix(".CHECKSUM")
        archive = self.replaced.get(name) or self._archive(name)
        if archive is None:
            return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if wanted == name:
            return Answer(body=archive)
        digest = "0" * 64 if name in self.wrong_checksums else hashlib.sha256(archive).hexdigest()
        return Answer(body=f"{digest}  {self.checksum_names.get(name, name)}\n".encode())

    def _archive(self, name: str) -> bytes | None:
        pair, _, year, month = name.removesuffix(".zip").split("-")
        first = seconds(int(year), int(month))
        last = seconds(int(year) + int(month) // 12, int(month) % 12 + 1)
        symbol = next((symbol for symbol in self.market if symbol.replace("/", "") == pair), None)
        if symbol is None:
            return None
        bars = self.market[symbol]
        bars = bars[(bars["time"] >= first) & (bars["time"] < last)]
        member = name.replace(".zip", ".csv")
        return archive_of(bars, self.step, self.header_line, member) if len(bars) else None


def archive_of(
    bars: pd.DataFrame, step: int, header_line: bool = False, member: str = "BTCUSDT-1h-2025-01.csv"
) -> bytes:
    """A monthly zip as Binance makes it: 12 columns, no header, milliseconds until 2024, microseconds after."""
    lines = ["open_time,open,high,low,close,volume,close_time,quote_volume,count,a,b,ignore"] * header_line
    for bar in bars.itertuples():
        unit = 1_000_000 if bar.time >= MICROSECONDS_SINCE else 1_000
        numbers = ",".join(repr(float(getattr(bar, name))) for name in PRICES_AND_VOLUME)
        lines.append(f"{bar.time * unit},{numbers},{(bar.time + step) * unit - 1},500,10,2,200,0")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as files:
        # A date of its own: the wall clock's would give the archive and its checksum different bytes.
        files.writestr(zipfile.ZipInfo(member), "\n".join(lines) + "\n", zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _alpaca_row(bar: object) -> dict[str, object]:
    numbers = {name[0]: float(getattr(bar, name)) for name in PRICES_AND_VOLUME}
    return {"t": f"{datetime.fromtimestamp(bar.time, UTC):%Y-%m-%dT%H:%M:%SZ}", **numbers, "n": 3, "vw": 1.0}


def _epoch(text: str) -> int:
    return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp())


def _name_of(path: str, query: dict[str, str]) -> str:
    if path != ALPACA_PATH:
        return path.rsplit("/", 1)[-1]
    return f"{query['symbols']} {query['timeframe']} {query['start'][:7]}"


def _spoilt(good: Answer, fault: Fault) -> Answer | None:
    if fault.kind == "200":
        return good
    if fault.kind == "drop":
        return None
    if fault.kind == "truncate":
        return Answer(good.status, good.body, good.headers, sent_bytes=len(good.body) // 2)
    if fault.kind == "html":
        return Answer(body=b"<html>back in a minute</html>")
    if fault.kind == "empty":
        return Answer(body=b'{"bars": {}, "next_page_token": null}')
    retry_after = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    return Answer(int(fault.kind), b'{"message": "a fault that was asked for"}', retry_after)


def _handler_of(server: BarsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = server.answer(self.path)
            with suppress(ConnectionError):
                if answer is not None:
                    self._send(answer)

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body[: answer.sent_bytes])

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(timestamp if server.now is None else server.now.timestamp())

        def log_message(self, *_: object) -> None:
            pass

    return Handler
