"""Alpaca's crypto bars in US dollars, without a key, through alpaca-py: every page, at its rate limit, checked.

Alpaca answers an unknown symbol with nothing. So the first request asks for daily bars of all symbols, which names the
unknown ones before anything is downloaded, and later shows an answer up that is empty for a month that has bars.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import requests

from market.bars_cache import no_bars
from market.candles import tidy_bars
from market.errors import BarsError
from market.names import pair_of, timeframe_name, timeframe_seconds
from market.periods import Period, SymbolMonth
from market.transport import DamagedAnswerError, Patience, be_patient, check_reachable, one_line, patiently, refusal

URL = "https://data.alpaca.markets"
URL_VARIABLE = "CRYPTO_BARS_ALPACA_URL"
UNITS = {"m": "Min", "h": "Hour", "d": "Day"}
FIELDS = {"t": "timestamp", "o": "open", "h": "high", "l": "low", "c": "close", "v": "volume"}
SETTLED_AFTER = timedelta(days=1)  # late trades may still change the last bars of a month
PROBE_MARGIN = timedelta(days=2)  # daily bars have opened at other hours than midnight UTC


class Alpaca:
    """Bars of one timeframe from Alpaca or another server with the same interface."""

    title = "Alpaca"

    def __init__(self, timeframe: str, url: str | None = None, patience: Patience | None = None) -> None:
        from alpaca.data.historical import CryptoHistoricalDataClient

        self.url = (url or os.environ.get(URL_VARIABLE) or URL).rstrip("/")
        self._timeframe, self._bar_seconds = timeframe, timeframe_seconds(timeframe)
        self._patience = patience or Patience()
        self._days: dict[str, pd.DatetimeIndex] = {}  # symbol -> open times of its daily bars
        self._client = CryptoHistoricalDataClient(raw_data=True, url_override=self.url)
        # alpaca-py would retry 429 and 504 three times after 3 s each, on top of what the adapter does; one is enough.
        self._client._retry = 0
        self._pages: set[str] = set()
        be_patient(self._client._session, self._patience, is_paced=True)
        self._client._session.hooks["response"].append(self._refuse_repeated_page)

    def symbol(self, ticker: str) -> str:
        """`BTC/USD` for any form of the name."""
        return pair_of(ticker, "/", "USD")

    def check(self, units: Sequence[SymbolMonth], period: Period) -> Period:
        """Name unknown symbols within seconds; the whole period can be had."""
        check_reachable(self.url, self._patience)
        symbols = sorted({unit.symbol for unit in units})
        wide = Period(period.start - PROBE_MARGIN, period.end + PROBE_MARGIN)
        what = f"Alpaca, daily bars of {', '.join(symbols)}"
        daily = patiently(lambda: self._ask(symbols, "1d", wide), what, self._patience)
        unknown = [symbol for symbol in symbols if not daily.get(symbol)]
        if unknown:
            raise BarsError(
                f"Alpaca has no bars of {', '.join(unknown)} from {wide.start:%Y-%m-%d} to {wide.end:%Y-%m-%d}; "
                "check the ticker and the dates"
            )
        for symbol in symbols:
            self._days[symbol] = pd.to_datetime([row["t"] for row in daily[symbol]], utc=True)
        return period

    def is_final(self, unit: SymbolMonth, now: datetime) -> bool:
        """Whether the month's bars do not change any more."""
        return unit.period.end + SETTLED_AFTER <= now

    def fetch(self, unit: SymbolMonth, period: Period) -> pd.DataFrame:
        """One symbol's bars of a period within one month."""
        return patiently(lambda: self._month(unit, period), f"Alpaca, {unit}", self._patience)

    def _month(self, unit: SymbolMonth, period: Period) -> pd.DataFrame:
        rows = self._ask([unit.symbol], self._timeframe, period).get(unit.symbol)
        if not rows:
            self._check_may_be_empty(unit, period)
            return no_bars(unit.symbol)
        table = pd.DataFrame(rows, columns=list(FIELDS)).rename(columns=FIELDS).assign(symbol=unit.symbol)
        bars = tidy_bars(table, f"Alpaca, {unit}")
        inside = (bars["timestamp"] >= period.start) & (bars["timestamp"] < period.end)
        self._check_on_grid(bars, unit)
        return bars.loc[inside].assign(symbol=unit.symbol)

    def _ask(self, symbols: list[str], timeframe: str, period: Period) -> dict[str, list[dict[str, Any]]]:
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

    def _refuse_repeated_page(self, response: Any, *_: Any, **__: Any) -> None:
        """Alpaca-py would follow a page token that leads back to its own page for ever."""
        if response.url in self._pages:
            raise DamagedAnswerError("the pages go round in a circle")
        self._pages.add(response.url)

    def _check_may_be_empty(self, unit: SymbolMonth, period: Period) -> None:
        days = self._days.get(unit.symbol)
        if days is None:
            return
        day = timedelta(days=1)
        n_days = len(days[(days >= period.start + day) & (days < period.end - day)])
        if n_days:
            raise DamagedAnswerError(f"the answer is empty, but there are bars on {n_days} days")

    def _check_on_grid(self, bars: pd.DataFrame, unit: SymbolMonth) -> None:
        seconds = bars["timestamp"].dt.as_unit("s").astype("int64")
        is_off = (seconds % self._bar_seconds != 0).to_numpy()
        if is_off.any():
            first = bars["timestamp"].iloc[int(is_off.argmax())].astimezone(UTC)
            raise BarsError(
                f"Alpaca, {unit}: the bar of {first:%Y-%m-%d %H:%M} UTC does not open at a whole "
                f"{timeframe_name(self._bar_seconds)} in UTC; download 1h bars, and let build_dataset.py --timeframe "
                f"{self._timeframe} join them"
            )
