"""Bars from the user's files: several tidy Parquet or CSV files, joined, filtered, cut and aggregated."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from market.bars.candles import (
    PRICES,
    SYNTHETIC,
    BarGrid,
    bars_between,
    check_every_symbol_has_bars,
    closed_bars,
    is_synthetic,
    read_bars,
    resample,
    step_between,
    tidy_bars,
    to_grid,
)
from market.bars.spellings import chosen_symbols, spellings
from market.bars.time_grid import on_grid
from market.errors import BarsError
from market.names import currency_of, ticker_for, timeframe_name, timeframe_seconds
from market.symbols import known_pair

OF_FILES = ("file", "is_last")  # temporary columns while files are joined

LOGGER = logging.getLogger(__name__)


def file_bars(
    paths: Sequence[Path],
    tickers: Sequence[str] | None = None,
    timeframe: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    stamp: str = "open",
    now: datetime | None = None,
    offset_s: int = 0,
) -> pd.DataFrame:
    """Return tidy bars from one or more files, in the format of `market.bars.candles.read_bars`.

    Args:
        paths: tidy files of one timeframe. A bar that two files contain must be the same in both. The only exception is
            the last bar of a file if a second file continues after it: that bar had not closed, so the bar of the
            second file is used.
        tickers: coin names in any form; None uses every symbol.
        timeframe: timeframe of the result: None for that of the files, or a longer one. Missing bars are not filled,
            and a longer bar with a missing part is missing.
        start: open time of the first bar, UTC, inclusive.
        end: upper bound of open times, UTC, exclusive.
        stamp: time to which the files' timestamps refer, `open` or `close`.
        now: bars that close after this time are dropped with a warning.
        offset_s: offset of the bars' open times from the UTC grid in seconds, also for longer bars.

    Raises:
        BarsError: the files cannot be used or contradict each other.
    """
    where = ", ".join(map(str, paths))
    bars, step = _join(paths, stamp, start, end)
    if tickers is not None:
        chosen = dict(zip(chosen_symbols(bars, tickers, where), tickers, strict=True))
        # An ambiguous symbol gets an unambiguous name.
        unsure = {symbol: ticker_for(ticker, symbol) for symbol, ticker in chosen.items() if known_pair(symbol) is None}
        bars = bars.loc[bars["symbol"].isin(chosen)].replace({"symbol": unsure})
    symbols = sorted(set(bars["symbol"]))
    bars = tidy_bars(bars, where)
    bars = closed_bars(bars_between(bars, None, end), step, where, now)
    if timeframe is not None and timeframe_seconds(timeframe) != step:
        groups = _by_currency(symbols)
        grids = [to_grid(bars, names, where, start, end, offset_s) for names in groups]
        longer = [_longer(g, n, timeframe, step, offset_s, where) for g, n in zip(grids, groups, strict=True)]
        joined = pd.concat(longer, ignore_index=True)
        return tidy_bars(joined.assign(**{SYNTHETIC: True}) if is_synthetic(bars) else joined, where)
    bars = on_grid(bars_between(bars, start, end), step, offset_s, where, n_all=len(bars))
    check_every_symbol_has_bars(bars, symbols, where)
    return tidy_bars(bars, where)


def _join(paths: Sequence[Path], stamp: str, start: datetime | None, end: datetime | None) -> tuple[pd.DataFrame, int]:
    """Return the rows of all files without duplicate bars, and the seconds between bars."""
    tables = [read_bars(path, stamp) for path in paths]
    steps = [step_between(table, start, end, str(path)) for path, table in zip(paths, tables, strict=True)]
    for path, step in zip(paths, steps, strict=True):
        if step != steps[0]:
            raise BarsError(
                f"{path} has {timeframe_name(step)} bars and {paths[0]} {timeframe_name(steps[0])} bars; join files "
                "of one timeframe"
            )
    tables = [table.assign(symbol=table["symbol"].astype(str), file=n) for n, table in enumerate(tables)]
    bars = pd.concat(tables, ignore_index=True)
    if SYNTHETIC in bars.columns:
        bars[SYNTHETIC] = bars[SYNTHETIC].eq(True)  # a file without this column contains real bars
    bars["symbol"] = bars["symbol"].replace(spellings(set(bars["symbol"])))
    bars["is_last"] = bars["timestamp"] == bars.groupby(["file", "symbol"])["timestamp"].transform("max")
    bars = bars.sort_values("is_last", kind="stable")  # among equal bars, keep the one that has certainly closed
    bars = bars.drop_duplicates([name for name in bars.columns if name not in OF_FILES])
    bars = _without_forming(bars, paths)
    _check_agreement(bars_between(bars, start, end), paths)
    return bars.drop_duplicates(["timestamp", "symbol"]).drop(columns=list(OF_FILES)), steps[0]


def _without_forming(bars: pd.DataFrame, paths: Sequence[Path]) -> pd.DataFrame:
    """Drop the last bar of a file if it differs from the same bar in a file that continues after it."""
    same = bars.loc[bars.duplicated(["timestamp", "symbol"], keep=False)]
    is_continued = ~same.groupby(["timestamp", "symbol"])["is_last"].transform("all")
    forming = same.loc[same["is_last"] & is_continued]
    for number, left in forming.groupby("file"):
        LOGGER.warning(
            "%s: its last bar of %s (%s UTC) had not closed, so the bar of a later file is used",
            paths[int(str(number))], ", ".join(left["symbol"]), f"{left['timestamp'].max():%Y-%m-%d %H:%M}",
        )  # fmt: skip
    return bars.drop(index=forming.index)


def _check_agreement(bars: pd.DataFrame, paths: Sequence[Path]) -> None:
    is_contradicted = bars.duplicated(["timestamp", "symbol"]).to_numpy()
    if not is_contradicted.any():
        return
    later = bars.iloc[int(is_contradicted.argmax())]
    is_same = (bars["timestamp"] == later["timestamp"]) & (bars["symbol"] == later["symbol"])
    earlier = bars.iloc[int(is_same.to_numpy().argmax())]
    raise BarsError(
        f"{paths[earlier['file']]} and {paths[later['file']]} contradict each other: {later['symbol']} bar "
        f"{later['timestamp']:%Y-%m-%d %H:%M} is {_values(earlier)} and {_values(later)} "
        f"({int(is_contradicted.sum())} such bars); remove one of the files"
    )


def _values(bar: pd.Series) -> str:
    return "/".join(f"{bar[name]:g}" for name in (*PRICES, "volume"))


def _by_currency(symbols: Sequence[str]) -> list[list[str]]:
    """Group symbols by cash currency, because a grid has only one."""
    return [[s for s in symbols if currency_of(s) == c] for c in sorted(set(map(currency_of, symbols)))]


def _longer(
    grid: BarGrid, symbols: Sequence[str], timeframe: str, step: int, offset_s: int, where: str
) -> pd.DataFrame:
    """Aggregate bars by calendar time and drop bars with a missing part."""
    if grid.bar_seconds != step:
        raise BarsError(
            f"{where}: {', '.join(symbols)} has {timeframe_name(grid.bar_seconds)} bars, but other symbols have "
            f"{timeframe_name(step)} bars, so {timeframe} bars cannot be aggregated; put it in a separate file"
        )
    longer = resample(grid, timeframe_seconds(timeframe), offset_s)
    time = pd.to_datetime(longer.time, unit="s", utc=True)
    tables = []
    for asset, symbol in enumerate(symbols):
        columns = {name: getattr(longer, name)[:, asset] for name in (*PRICES, "volume")}
        table = pd.DataFrame({"timestamp": time, "symbol": symbol} | columns)
        tables.append(table.loc[~longer.missing[:, asset]])
        first = (grid.time - offset_s) // longer.bar_seconds
        n_touched = len(np.unique(first[~grid.missing[:, asset]]))
        if n_touched > len(tables[-1]):
            LOGGER.warning(
                "%s: dropped %d of %d %s bars of %s that lack a part; build_dataset.py fills short gaps before it "
                "aggregates",
                where, n_touched - len(tables[-1]), n_touched, timeframe, symbol,
            )  # fmt: skip
    bars = pd.concat(tables, ignore_index=True)
    if len(bars) == 0:
        raise BarsError(f"{where}: every {timeframe} bar lacks a part; choose a shorter --timeframe")
    return bars
