"""Bars from the network: Alpaca's crypto bars without a key, and Binance's public monthly archives with checksums.

Both return tidy bars of a half-open period [start, end) in UTC. Every request has a time-out, and a machine without a
network gets one line in seconds. A source reports progress through `on_progress(done, total)` after each request.
"""

from __future__ import annotations

import hashlib
import io
import logging
import socket
import threading
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import requests
from requests.adapters import HTTPAdapter

from market.candles import tidy_bars
from market.errors import BarsError
from market.names import split_symbol, timeframe_seconds

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
REQUEST_ATTEMPTS = 3
ALPACA_HOST = "data.alpaca.markets"
BINANCE_URL = "https://data.binance.vision"
LARGEST_ARCHIVE_BYTES = 256 * 2**20  # a month of one-minute bars is about 3 MB
BINANCE_COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")  # the first 6 of 12
ALPACA_UNITS = {"m": "Min", "h": "Hour", "d": "Day"}

LOGGER = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Period:
    """Bars with open times in [start, end), UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Refuse an empty period."""
        if self.start >= self.end:
            raise BarsError(f"start {self.start:%Y-%m-%d} is not before end {self.end:%Y-%m-%d}; the end is excluded")

    def months(self) -> list[datetime]:
        """First moments of the calendar months that the period touches."""
        month = self.start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        months = []
        while month < self.end:
            months.append(month)
            month = next_month(month)
        return months


def next_month(month: datetime) -> datetime:
    """First moment of the calendar month after the one that starts at `month`."""
    return (month + timedelta(days=32)).replace(day=1)


class _TimeoutAdapter(HTTPAdapter):
    """Gives every request of a session a time-out; alpaca-py sets none."""

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        options["timeout"] = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        return super().send(request, *args, **options)


def check_reachable(host: str, port: int = 443) -> None:
    """Raise BarsError within CONNECT_TIMEOUT_S when the host cannot be reached, name look-up included.

    Behind a proxy only the proxy can tell, so nothing is checked then.
    """
    if requests.utils.get_environ_proxies(f"https://{host}"):
        return
    outcome: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
            outcome.append("")
        except OSError as error:
            outcome.append(str(error))

    # The system's name look-up has no time-out of its own, so a thread waits for it.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_TIMEOUT_S)
    fault = outcome[0] if outcome else f"no answer in {CONNECT_TIMEOUT_S:g} s"
    if fault:
        raise BarsError(
            f"{host} cannot be reached ({fault}); check the network, or build a dataset from a file: "
            "scripts/data/build_dataset.py --bars FILE"
        )


def alpaca_bars(
    tickers: Sequence[str], timeframe: str, period: Period, on_progress: Progress, url: str | None = None
) -> pd.DataFrame:
    """Alpaca's crypto bars in US dollars, without a key, month by month.

    Args:
        tickers: coins in any form; each is asked for as `COIN/USD` unless it names another quote.
        timeframe: such as `5m`.
        period: half-open, UTC.
        on_progress: called after each month.
        url: another server with the same interface, for tests.
    """
    from alpaca.common.exceptions import APIError
    from alpaca.data.historical import CryptoHistoricalDataClient

    if url is None:
        check_reachable(ALPACA_HOST)
    client = CryptoHistoricalDataClient(raw_data=True, url_override=url)
    for scheme in ("https://", "http://"):
        client._session.mount(scheme, _TimeoutAdapter())
    symbols = [_pair(ticker, "/", "USD") for ticker in tickers]
    months, frames = period.months(), []
    for done, month in enumerate(months, start=1):
        try:
            raw = client.get_crypto_bars(_alpaca_request(symbols, timeframe, period, month))
        except (APIError, requests.RequestException, ValueError) as error:
            raise BarsError(f"Alpaca, {month:%Y-%m}: {_one_line(error)}; try again later") from error
        frames += [_alpaca_frame(symbol, rows) for symbol, rows in dict(raw).items() if rows]
        on_progress(done, len(months))
    there = {frame["symbol"].iloc[0] for frame in frames}
    absent = [symbol for symbol in symbols if symbol not in there]
    if absent:
        raise BarsError(f"Alpaca has no bars of {', '.join(absent)} in this period; check the ticker and the dates")
    return _cut(tidy_bars(pd.concat(frames, ignore_index=True), "Alpaca"), period)


def _alpaca_request(symbols: list[str], timeframe: str, period: Period, month: datetime) -> Any:
    """One month's request. Alpaca includes the end, so it is one bar before ours."""
    from alpaca.data.requests import CryptoBarsRequest
    from alpaca.data.timeframe import TimeFrame, TimeFrameUnit

    bar = timedelta(seconds=timeframe_seconds(timeframe))
    return CryptoBarsRequest(
        symbol_or_symbols=symbols,
        timeframe=TimeFrame(int(timeframe[:-1]), TimeFrameUnit(ALPACA_UNITS[timeframe[-1]])),
        start=max(month, period.start),
        end=min(next_month(month), period.end) - bar,
    )


def _alpaca_frame(symbol: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = {"t": "timestamp", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"}
    return pd.DataFrame(rows, columns=list(names)).rename(columns=names).assign(symbol=symbol)


def binance_bars(
    tickers: Sequence[str], timeframe: str, period: Period, on_progress: Progress, url: str = BINANCE_URL
) -> pd.DataFrame:
    """Binance spot bars in USDT from the public monthly archives; each archive must match its published SHA-256.

    Args:
        tickers: coins in any form; each is asked for as `COINUSDT` unless it names another quote than USD.
        timeframe: such as `5m`.
        period: half-open, UTC. Archives appear some days after their month has ended, so a last month that lacks one
            for any of the coins is left out, which is logged; any other absent month is an error.
        on_progress: called after each coin's month.
        url: another server with the same files, for tests.
    """
    timeframe_seconds(timeframe)
    if url == BINANCE_URL:
        check_reachable(url.removeprefix("https://"))
    pairs, frames = [_pair(ticker, "", "USDT") for ticker in tickers], []
    with requests.Session() as session:
        session.mount("http", _TimeoutAdapter(max_retries=REQUEST_ATTEMPTS - 1))
        months = _published_months(session, url, pairs, timeframe, period.months())
        jobs = [(pair, month) for pair in pairs for month in months]
        for done, (pair, month) in enumerate(jobs, start=1):
            frames.append(_binance_month(session, url, pair, timeframe, month))
            on_progress(done, len(jobs))
    return _cut(tidy_bars(pd.concat(frames, ignore_index=True), "Binance"), period)


def _published_months(
    session: requests.Session, url: str, pairs: Sequence[str], timeframe: str, months: list[datetime]
) -> list[datetime]:
    """The months, less the last one where it is not published yet. A single month stays: its absence is an error."""
    if len(months) < 2:
        return months
    for pair in pairs:
        if not _is_published(session, _archive_address(url, pair, timeframe, months[-1])):
            LOGGER.warning(
                "Binance has no %s archive of %s for %s yet; bars end with %s",
                timeframe, f"{months[-1]:%Y-%m}", pair, f"{months[-2]:%Y-%m}",
            )  # fmt: skip
            return months[:-1]
    return months


def _archive_address(url: str, pair: str, timeframe: str, month: datetime) -> str:
    return f"{url}/data/spot/monthly/klines/{pair}/{timeframe}/{pair}-{timeframe}-{month:%Y-%m}.zip"


def _binance_month(session: requests.Session, url: str, pair: str, timeframe: str, month: datetime) -> pd.DataFrame:
    address = _archive_address(url, pair, timeframe, month)
    name = address.rsplit("/", 1)[-1].removesuffix(".zip")
    archive = _get(session, address)
    expected = _get(session, f"{address}.CHECKSUM").split()[:1]
    actual = hashlib.sha256(archive).hexdigest().encode()
    if expected != [actual]:
        raise BarsError(f"Binance, {name}.zip: does not match its published SHA-256; fetch it again")
    coin, quote = split_symbol(pair)
    return parse_binance_archive(archive, name).assign(symbol=f"{coin}/{quote}")


def _is_published(session: requests.Session, address: str) -> bool:
    return _answer(session, f"{address}.CHECKSUM").status_code != 404


def _answer(session: requests.Session, address: str) -> requests.Response:
    try:
        return session.get(address)
    except requests.RequestException as error:
        raise BarsError(f"Binance, {address.rsplit('/', 1)[-1]}: {_one_line(error)}; try again later") from error


def _get(session: requests.Session, address: str) -> bytes:
    name = address.rsplit("/", 1)[-1]
    answer = _answer(session, address)
    if answer.status_code == 404:
        raise BarsError(f"Binance has no archive {name}; check the ticker, and that its month is complete and past")
    if not answer.ok:
        raise BarsError(f"Binance, {name}: the server answers {answer.status_code} {answer.reason}; try again later")
    return answer.content


def parse_binance_archive(archive: bytes, name: str) -> pd.DataFrame:
    """Rows of one monthly archive: no header, 12 columns, open time first, in ms, since 2025 in microseconds."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as files:
            info = files.infolist()[0]
            if info.file_size > LARGEST_ARCHIVE_BYTES:
                raise BarsError(f"Binance, {name}: {info.file_size} bytes unpacked is too large for a month of bars")
            table = pd.read_csv(io.BytesIO(files.read(info)), header=None, usecols=range(6), names=BINANCE_COLUMNS)
    except (zipfile.BadZipFile, IndexError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise BarsError(f"Binance, {name}: not a readable archive ({_one_line(error)}); fetch it again") from error
    # Some archives carry a header line; it is the only row without numbers.
    numbers = pd.DataFrame({column: pd.to_numeric(table[column], errors="coerce") for column in BINANCE_COLUMNS})
    has_header = bool(np.isnan(numbers["timestamp"].to_numpy()[0]))
    return numbers.iloc[int(has_header) :]


def _pair(ticker: str, mark: str, default_quote: str) -> str:
    """`BTC/USD` or `BTCUSDT`; a plain `USD` becomes the venue's own dollar."""
    coin, quote = split_symbol(ticker)
    return f"{coin}{mark}{default_quote if quote in ('', 'USD', 'USDT') else quote}"


def _cut(bars: pd.DataFrame, period: Period) -> pd.DataFrame:
    inside = (bars["timestamp"] >= period.start) & (bars["timestamp"] < period.end)
    return bars.loc[inside].reset_index(drop=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
