"""Alpaca's crypto bars in US dollars, without API keys, through alpaca-py. Pages are rate-limited and checked.

Alpaca returns an empty response for an unknown symbol. The first request therefore asks for daily bars of all symbols.
It detects unknown symbols before the download, and its daily bars later reveal incomplete responses. Bars count as
closed only if both the local clock and the server's clock say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import requests

from market.bars.candles import tidy_bars
from market.bars.time_grid import off_grid
from market.errors import BarsError
from market.names import pair_of, timeframe_name, timeframe_seconds
from market.sources.cache import no_bars
from market.sources.periods import Period, SymbolMonth
from market.sources.transport import (
    DamagedAnswerError,
    Patience,
    be_patient,
    check_reachable,
    one_line,
    patiently,
    refusal,
    sent_at,
)
from market.times import finished_before, utc_text

URL = "https://data.alpaca.markets"
URL_VARIABLE = "CRYPTO_BARS_ALPACA_URL"
UNITS = {"m": "Min", "h": "Hour", "d": "Day"}
FIELDS = {"t": "timestamp", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"}
SETTLED_AFTER = timedelta(days=1)  # late trades may change the last bars of a month until then
PROBE_MARGIN = timedelta(days=2)  # some daily bars did not open at midnight UTC
DAY = timedelta(days=1)
DAY_SECONDS = 86_400


class Alpaca:
    """Source of bars at one timeframe from Alpaca or another server with the same interface."""

    title = "Alpaca"

    def __init__(self, timeframe: str, url: str | None = None, patience: Patience | None = None) -> None:
        from alpaca.data.historical import CryptoHistoricalDataClient

        self.url = (url or os.environ.get(URL_VARIABLE) or URL).rstrip("/")
        self._timeframe, self._bar_seconds = timeframe, timeframe_seconds(timeframe)
        self._patience = patience or Patience()
        self._days: dict[str, dict[int, float]] = {}  # symbol -> volume of its daily bars by open time, UTC seconds
        self._server_now: datetime | None = None  # time of the server's last response
        self._client = CryptoHistoricalDataClient(raw_data=True, url_override=self.url)
        # Disable alpaca-py's retries (429 and 504, three times after 3 s each), because the adapter retries.
        self._client._retry = 0
        self._pages: set[str] = set()
        be_patient(self._client._session, self._patience, is_paced=True)
        self._client._session.hooks["response"].append(self._inspect_page)

    def symbol(self, ticker: str) -> str:
        """Return `BTC/USD` for any form of the name."""
        return pair_of(ticker, "/", "USD")

    def check(self, units: Sequence[SymbolMonth], period: Period, now: datetime) -> Period:
        """Raise BarsError early for unknown symbols. Return the part of the period whose bars have closed."""
        check_reachable(self.url, self._patience)
        symbols = sorted({unit.symbol for unit in units})
        near = Period(period.start - PROBE_MARGIN, period.end + PROBE_MARGIN)
        # Cached months are downloaded completely, so all their days must be known.
        months = [unit.period for unit in units]
        start = min(near.start, *(month.start - PROBE_MARGIN for month in months))
        end = max(near.end, *(month.end + PROBE_MARGIN for month in months))
        what = f"Alpaca, daily bars of {', '.join(symbols)}"
        daily = patiently(lambda: self.rows(symbols, "1d", Period(start, end)), what, self._patience)
        self._days = {symbol: _daily_volume(daily.get(symbol) or [], what) for symbol in symbols}
        unknown = [s for s, days in self._days.items() if not _inside(days, near.start, near.end)]
        if unknown:
            raise BarsError(
                f"Alpaca has no bars of {', '.join(unknown)} from {near.start:%Y-%m-%d} to {near.end:%Y-%m-%d}; "
                "check the ticker and the dates"
            )
        closed = finished_before(self._bar_seconds, self._earlier(now))
        if period.start >= closed:
            raise BarsError(
                f"Alpaca: no {self._timeframe} bar of this period has closed yet according to the server's clock"
            )
        return Period(period.start, min(period.end, closed))

    def is_final(self, unit: SymbolMonth, now: datetime) -> bool:
        """Return True if the month's bars no longer change."""
        return unit.period.end + SETTLED_AFTER <= self._earlier(now)

    def _earlier(self, now: datetime) -> datetime:
        return now if self._server_now is None else min(now, self._server_now)

    def fetch(self, unit: SymbolMonth, period: Period) -> pd.DataFrame:
        """Return one symbol's bars in a period within one month."""
        return patiently(lambda: self._month(unit, period), f"Alpaca, {unit}", self._patience)

    def _month(self, unit: SymbolMonth, period: Period) -> pd.DataFrame:
        rows = self.rows([unit.symbol], self._timeframe, period).get(unit.symbol)
        if not rows:
            self._check_covers(no_bars(unit.symbol), unit, period)
            return no_bars(unit.symbol)
        table = pd.DataFrame(rows, columns=list(FIELDS)).rename(columns=FIELDS).assign(symbol=unit.symbol)
        bars = tidy_bars(table, f"Alpaca, {unit}")
        inside = (bars["timestamp"] >= period.start) & (bars["timestamp"] < period.end)
        self._check_on_grid(bars, unit)
        bars = bars.loc[inside].assign(symbol=unit.symbol)
        self._check_covers(bars, unit, period)
        return bars

    def rows(self, symbols: list[str], timeframe: str, period: Period) -> dict[str, list[dict[str, Any]]]:
        """Return raw rows by symbol from all pages. Alpaca's end is inclusive, so the request ends 1 s earlier."""
        from alpaca.common.exceptions import APIError
        from alpaca.data.requests import CryptoBarsRequest
        from alpaca.data.timeframe import TimeFrame, TimeFrameUnit

        self._pages.clear()
        request = CryptoBarsRequest(
            symbol_or_symbols=symbols,
            timeframe=TimeFrame(int(timeframe[:-1]), TimeFrameUnit(UNITS[timeframe[-1]])),
            start=period.start,
            end=period.end - timedelta(seconds=1),
        )
        try:
            answer = dict(self._client.get_crypto_bars(request))
        except APIError as error:
            what = f"Alpaca, {', '.join(symbols)} {period.start:%Y-%m}"
            raise BarsError(f"{what}: {refusal(error.status_code, one_line(error))}") from error
        except requests.JSONDecodeError as error:
            raise DamagedAnswerError("the response is not JSON") from error
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            # alpaca-py does not validate the response.
            raise DamagedAnswerError("the response does not contain bars") from error
        if not all(isinstance(row, dict) and "t" in row for rows in answer.values() for row in rows or ()):
            raise DamagedAnswerError("the response does not contain bars")
        return answer

    def _inspect_page(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Raise DamagedAnswerError for pages that repeat, or that are empty although more pages follow."""
        self._server_now = sent_at(response) or self._server_now
        if response.url in self._pages:
            raise DamagedAnswerError("the pages form a cycle")
        self._pages.add(response.url)
        try:
            page = response.json() if response.ok else None
        except requests.JSONDecodeError:
            return  # alpaca-py would raise this error next
        if isinstance(page, dict) and page.get("next_page_token") and not page.get("bars"):
            raise DamagedAnswerError("a page is empty although more pages follow")

    def _check_covers(self, bars: pd.DataFrame, unit: SymbolMonth, period: Period) -> None:
        """Check that each full day of the period with a daily bar has bars.

        A partial day must span half of the day or hold half of its volume, because an illiquid coin may trade only
        once.
        """
        if unit.symbol not in self._days:
            return
        volumes = self._days[unit.symbol]
        days = np.array(_inside(volumes, period.start, period.end - DAY + timedelta(seconds=1)), dtype=np.int64)
        opens = bars["timestamp"].dt.as_unit("s").astype("int64").to_numpy()
        begin, end = np.searchsorted(opens, days), np.searchsorted(opens, days + DAY_SECONDS)
        lost = days[begin == end]
        if len(lost) and bars.empty:
            raise DamagedAnswerError(f"the response is empty, but {len(days)} days have bars")
        if len(lost):
            first = utc_text(lost[0])[:10]
            raise DamagedAnswerError(f"the response lacks {len(lost)} of {len(days)} days with bars, first {first}")
        volume = bars["volume"].to_numpy()
        for day, a, b in zip(days.tolist(), begin.tolist(), end.tolist(), strict=True):
            span_s = opens[b - 1] - opens[a] + self._bar_seconds
            if span_s < DAY_SECONDS / 2 and volume[a:b].sum() < volumes[day] / 2:
                raise DamagedAnswerError(f"the response lacks most of {utc_text(day)[:10]}")

    def _check_on_grid(self, bars: pd.DataFrame, unit: SymbolMonth) -> None:
        is_off, are_strays = off_grid(bars, self._bar_seconds)
        if not are_strays:
            first = bars["timestamp"].iloc[int(is_off.argmax())].astimezone(UTC)
            raise BarsError(
                f"Alpaca, {unit}: the bar of {first:%Y-%m-%d %H:%M} UTC does not open on the UTC grid of "
                f"{timeframe_name(self._bar_seconds)}; download 1h bars and aggregate them with build_dataset.py "
                f"--timeframe {self._timeframe}"
            )


def _daily_volume(rows: Sequence[dict[str, Any]], what: str) -> dict[int, float]:
    """Return the volume of daily bars by open time in UTC seconds, sorted."""
    try:
        return {
            int(datetime.fromisoformat(row["t"]).timestamp()): float(row.get("v", 0.0))
            for row in sorted(rows, key=lambda row: row["t"])
        }
    except (ValueError, TypeError) as error:
        raise BarsError(f"{what}: the response does not contain bars ({one_line(error)})") from error


def _inside(days: Iterable[int], start: datetime, end: datetime) -> list[int]:
    """Return the open times in [start, end)."""
    return [day for day in days if start.timestamp() <= day < end.timestamp()]
