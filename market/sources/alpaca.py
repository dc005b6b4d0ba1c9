"""Alpaca's crypto bars in US dollars, without a key, through alpaca-py: every page, at its rate limit, checked.

Alpaca answers an unknown symbol with nothing. So the first request asks for daily bars of all symbols, which names the
unknown ones before anything is downloaded, and later shows up an answer that lacks days which have bars. No clock is
trusted alone: what has ended is told by the earlier of this machine's and the server's.
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
SETTLED_AFTER = timedelta(days=1)  # late trades may still change the last bars of a month
PROBE_MARGIN = timedelta(days=2)  # daily bars have opened at other hours than midnight UTC
DAY = timedelta(days=1)
DAY_SECONDS = 86_400


class Alpaca:
    """Bars of one timeframe from Alpaca or another server with the same interface."""

    title = "Alpaca"

    def __init__(self, timeframe: str, url: str | None = None, patience: Patience | None = None) -> None:
        from alpaca.data.historical import CryptoHistoricalDataClient

        self.url = (url or os.environ.get(URL_VARIABLE) or URL).rstrip("/")
        self._timeframe, self._bar_seconds = timeframe, timeframe_seconds(timeframe)
        self._patience = patience or Patience()
        self._days: dict[str, dict[int, float]] = {}  # symbol -> volume of its daily bars by open time, UTC seconds
        self._server_now: datetime | None = None  # at its last answer
        self._client = CryptoHistoricalDataClient(raw_data=True, url_override=self.url)
        # alpaca-py would retry 429 and 504 three times after 3 s each, on top of what the adapter does; one is enough.
        self._client._retry = 0
        self._pages: set[str] = set()
        be_patient(self._client._session, self._patience, is_paced=True)
        self._client._session.hooks["response"].append(self._inspect_page)

    def symbol(self, ticker: str) -> str:
        """`BTC/USD` for any form of the name."""
        return pair_of(ticker, "/", "USD")

    def check(self, units: Sequence[SymbolMonth], period: Period, now: datetime) -> Period:
        """Name unknown symbols within seconds; the whole period can be had, as far as its bars have closed."""
        check_reachable(self.url, self._patience)
        symbols = sorted({unit.symbol for unit in units})
        near = Period(period.start - PROBE_MARGIN, period.end + PROBE_MARGIN)
        # Months that are kept are fetched whole, so all of their days must be known.
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
            raise BarsError(f"Alpaca: no {self._timeframe} bar of this period has closed yet by the server's clock")
        return Period(period.start, min(period.end, closed))

    def is_final(self, unit: SymbolMonth, now: datetime) -> bool:
        """Whether the month's bars do not change any more."""
        return unit.period.end + SETTLED_AFTER <= self._earlier(now)

    def _earlier(self, now: datetime) -> datetime:
        return now if self._server_now is None else min(now, self._server_now)

    def fetch(self, unit: SymbolMonth, period: Period) -> pd.DataFrame:
        """One symbol's bars of a period within one month."""
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
        """Raw rows by symbol, from all pages. Alpaca includes the end, so it is a second before ours."""
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
            raise DamagedAnswerError("the answer is not JSON") from error
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            # alpaca-py takes the answer apart without a look at its shape.
            raise DamagedAnswerError("the answer does not hold bars") from error
        if not all(isinstance(row, dict) and "t" in row for rows in answer.values() for row in rows or ()):
            raise DamagedAnswerError("the answer does not hold bars")
        return answer

    def _inspect_page(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Refuse pages whose way on is a circle, and pages that alpaca-py would take for empty in the middle."""
        self._server_now = sent_at(response) or self._server_now
        if response.url in self._pages:
            raise DamagedAnswerError("the pages go round in a circle")
        self._pages.add(response.url)
        try:
            page = response.json() if response.ok else None
        except requests.JSONDecodeError:
            return  # alpaca-py meets it next
        if isinstance(page, dict) and page.get("next_page_token") and not page.get("bars"):
            raise DamagedAnswerError("a page in the middle is empty")

    def _check_covers(self, bars: pd.DataFrame, unit: SymbolMonth, period: Period) -> None:
        """Compare with the daily bars: a whole day of the period with a daily bar must have bars of its own.

        A day that is there in part must span half of it or hold half of its volume: a thin coin may be traded once.
        """
        if unit.symbol not in self._days:
            return
        volumes = self._days[unit.symbol]
        days = np.array(_inside(volumes, period.start, period.end - DAY + timedelta(seconds=1)), dtype=np.int64)
        opens = bars["timestamp"].dt.as_unit("s").astype("int64").to_numpy()
        begin, end = np.searchsorted(opens, days), np.searchsorted(opens, days + DAY_SECONDS)
        lost = days[begin == end]
        if len(lost) and bars.empty:
            raise DamagedAnswerError(f"the answer is empty, but there are bars on {len(days)} days")
        if len(lost):
            first = utc_text(lost[0])[:10]
            raise DamagedAnswerError(f"the answer lacks {len(lost)} of {len(days)} days with bars, {first} first")
        volume = bars["volume"].to_numpy()
        for day, a, b in zip(days.tolist(), begin.tolist(), end.tolist(), strict=True):
            span_s = opens[b - 1] - opens[a] + self._bar_seconds
            if span_s < DAY_SECONDS / 2 and volume[a:b].sum() < volumes[day] / 2:
                raise DamagedAnswerError(f"the answer lacks the greater part of {utc_text(day)[:10]}")

    def _check_on_grid(self, bars: pd.DataFrame, unit: SymbolMonth) -> None:
        is_off, are_strays = off_grid(bars, self._bar_seconds)
        if not are_strays:
            first = bars["timestamp"].iloc[int(is_off.argmax())].astimezone(UTC)
            raise BarsError(
                f"Alpaca, {unit}: the bar of {first:%Y-%m-%d %H:%M} UTC does not open at a whole "
                f"{timeframe_name(self._bar_seconds)} in UTC; download 1h bars, and let build_dataset.py --timeframe "
                f"{self._timeframe} join them"
            )


def _daily_volume(rows: Sequence[dict[str, Any]], what: str) -> dict[int, float]:
    """Volume of daily bars by their open time, UTC seconds, in order."""
    try:
        return {
            int(datetime.fromisoformat(row["t"]).timestamp()): float(row.get("v", 0.0))
            for row in sorted(rows, key=lambda row: row["t"])
        }
    except (ValueError, TypeError) as error:
        raise BarsError(f"{what}: the answer does not hold bars ({one_line(error)})") from error


def _inside(days: Iterable[int], start: datetime, end: datetime) -> list[int]:
    """The open times in [start, end)."""
    return [day for day in days if start.timestamp() <= day < end.timestamp()]
