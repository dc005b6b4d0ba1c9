"""Download of bars by coin and month. Cached months are read from disk, and the others are downloaded.

All sources return tidy bars of a half-open period [start, end) in UTC, stamped with their open times. Bars that have
not closed yet are never included.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pandas as pd

from market.bars.candles import bars_between, tidy_bars
from market.bars.time_grid import on_grid
from market.errors import BarsError
from market.names import currency_fault, currency_of, timeframe_seconds
from market.sources.alpaca import Alpaca
from market.sources.binance import Binance
from market.sources.cache import BarsCache, check_timeframe
from market.sources.periods import Period, SymbolMonth
from market.sources.transport import Patience
from market.times import finished_before

Progress = Callable[[int, int], None]
"""Callback with (available months, all months): once after reading the cache, then after each download."""

WITHOUT_BARS = timedelta(days=1)  # tolerated at either end of the period; illiquid coins do not trade every hour

LOGGER = logging.getLogger(__name__)


class Source(Protocol):
    """Interface of a server of bars at one timeframe."""

    title: str
    url: str

    def symbol(self, ticker: str) -> str:
        """Return the source's name of a ticker, such as `BTC/USD`."""
        ...

    def check(self, units: Sequence[SymbolMonth], period: Period, now: datetime) -> Period:
        """Raise BarsError early if `units` are unavailable. Return the available part of the period."""
        ...

    def is_final(self, unit: SymbolMonth, now: datetime) -> bool:
        """Return True if the month's bars may be cached."""
        ...

    def fetch(self, unit: SymbolMonth, period: Period) -> pd.DataFrame:
        """Return the unit's tidy bars of at least a period within its month. The table is empty if there are none."""
        ...


def alpaca_bars(
    tickers: Sequence[str],
    timeframe: str,
    period: Period,
    on_progress: Progress,
    *,
    cache: Path | None = None,
    url: str | None = None,
    patience: Patience | None = None,
) -> pd.DataFrame:
    """Download Alpaca's crypto bars in US dollars, without API keys.

    Args:
        tickers: coin names in any form; requested as `COIN/USD` unless they name a different quote.
        timeframe: bar length, such as `5m`.
        period: half-open period, UTC.
        on_progress: callback, see `Progress`.
        cache: folder for months that have ended; None disables the cache.
        url: alternative server with the same interface.
        patience: timeouts and retries.
    """
    return download(Alpaca(timeframe, url, patience), tickers, timeframe, period, on_progress, cache)


def binance_bars(
    tickers: Sequence[str],
    timeframe: str,
    period: Period,
    on_progress: Progress,
    *,
    cache: Path | None = None,
    url: str | None = None,
    patience: Patience | None = None,
) -> pd.DataFrame:
    """Download Binance spot bars in USDT from the public monthly archives.

    Args:
        tickers: coin names in any form; requested as `COINUSDT` unless they name a quote other than USD.
        timeframe: bar length, such as `5m`.
        period: half-open period, UTC. A last month that is not published yet for all coins is dropped with a warning.
            Any other missing month is an error.
        on_progress: callback, see `Progress`.
        cache: folder for verified months; None disables the cache.
        url: alternative server with the same files.
        patience: timeouts and retries.
    """
    return download(Binance(timeframe, url, patience), tickers, timeframe, period, on_progress, cache)


def download(
    source: Source,
    tickers: Sequence[str],
    timeframe: str,
    period: Period,
    on_progress: Progress,
    cache_folder: Path | None,
    now: datetime | None = None,
) -> pd.DataFrame:
    """Return tidy bars of all tickers in the period. Months downloaded before an error or Ctrl-C stay in the cache."""
    now = now or datetime.now(UTC)
    period = _past(period, timeframe, now)
    symbols = [source.symbol(ticker) for ticker in tickers]
    if fault := currency_fault({symbol: currency_of(symbol) for symbol in symbols}):
        raise BarsError(fault)
    cache = None if cache_folder is None else BarsCache(cache_folder, source.url, timeframe)
    units = [SymbolMonth(symbol, month) for symbol in symbols for month in period.months()]
    parts = {unit: bars for unit in units if cache and (bars := cache.read(unit)) is not None}
    try:
        if len(parts) < len(units):
            period = source.check([unit for unit in units if unit not in parts], period, now)
            units = [unit for unit in units if unit.month < period.end]
            parts = {unit: parts[unit] for unit in units if unit in parts}
        on_progress(len(parts), len(units))
        for unit in [unit for unit in units if unit not in parts]:
            parts[unit] = _fetch(source, unit, timeframe, period, cache, now)
            on_progress(len(parts), len(units))
    except (KeyboardInterrupt, BarsError) as stop:
        raise _with_what_is_kept(stop, cache, units, parts) from stop
    return _joined(source, symbols, timeframe, list(parts.values()), period)


def _past(period: Period, timeframe: str, now: datetime) -> Period:
    """Return the part of a period whose bars have closed."""
    end = min(period.end, finished_before(timeframe_seconds(timeframe), now))
    if period.start >= end:
        raise BarsError(
            f"no {timeframe} bar since {period.start:%Y-%m-%d %H:%M} UTC has closed yet; choose an earlier --start"
        )
    return Period(period.start, end)


def _fetch(
    source: Source, unit: SymbolMonth, timeframe: str, period: Period, cache: BarsCache | None, now: datetime
) -> pd.DataFrame:
    """Download one month. It is complete if it can be cached, so that other periods can use it."""
    is_kept = cache is not None and source.is_final(unit, now)
    bars = source.fetch(unit, unit.period if is_kept else unit.period.within(period))
    check_timeframe(bars, timeframe, f"{source.title}, {unit}")
    if cache is not None and is_kept:
        cache.write(unit, bars)
    return bars


def _with_what_is_kept(
    stop: BaseException, cache: BarsCache | None, units: Sequence[SymbolMonth], there: Container[SymbolMonth]
) -> KeyboardInterrupt | BarsError:
    """Return the exception with a note on the months that the next run will not download again."""
    n_kept = sum(unit in there and cache.path(unit).is_file() for unit in units) if cache else 0
    kept = f"{n_kept} of {len(units)} symbol-months are in the cache {cache.folder}" if cache and n_kept else ""
    if isinstance(stop, BarsError):
        return BarsError(f"{stop}; {kept}" if kept else str(stop))
    if kept:
        return KeyboardInterrupt(f"{kept}; the same command resumes from there")
    return KeyboardInterrupt("nothing was written or cached")


def _joined(
    source: Source, symbols: Sequence[str], timeframe: str, parts: list[pd.DataFrame], period: Period
) -> pd.DataFrame:
    """Return all months as one tidy table, cut to the period. Raise BarsError for symbols without bars."""
    whole = pd.concat(parts, ignore_index=True)
    bars = bars_between(whole, period.start, period.end)
    bars = on_grid(bars, timeframe_seconds(timeframe), 0, source.title, n_all=len(whole))
    times = bars.groupby("symbol")["timestamp"]
    first_bars, last_bars = (pd.Series(times.agg(end)).to_dict() for end in ("min", "max"))
    absent = [symbol for symbol in symbols if symbol not in first_bars]
    if absent:
        raise BarsError(
            f"{source.title} has no bars of {', '.join(absent)} in this period; check the ticker and the dates"
        )
    for symbol in symbols:
        first, last = first_bars[symbol], last_bars[symbol]
        if first - period.start > WITHOUT_BARS:
            LOGGER.warning("%s: the first bar of %s is at %s UTC", source.title, symbol, f"{first:%Y-%m-%d %H:%M}")
        if period.end - last > WITHOUT_BARS:
            LOGGER.warning("%s: the last bar of %s is at %s UTC", source.title, symbol, f"{last:%Y-%m-%d %H:%M}")
    return tidy_bars(bars, source.title)
