"""Bars from files of the user's: several tidy Parquet or CSV files joined, selected, cut and aggregated."""

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

OF_FILES = ("file", "is_last")  # columns while files are joined

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
    """Tidy bars of one or several files, in the form of `market.bars.candles.read_bars`.

    Args:
        paths: tidy files of one timeframe. A bar of the period that is in two of them must be the same in both, unless
            one file ends with it and the other does not: it had not closed then, and the other file's is taken.
        tickers: names in any form; None takes every symbol.
        timeframe: of the result: the files' own (None) or a longer one. Missing bars are not filled, and a longer bar
            with a missing part is missing.
        start: first bar open, UTC, included.
        end: bar opens before this, UTC.
        stamp: which time the files' timestamps are, `open` or `close`.
        now: bars that close after this are left out, which is logged.
        offset_s: the bars open this many seconds after the UTC grid, those of a longer timeframe, too.
    """
    where = ", ".join(map(str, paths))
    bars, step = _join(paths, stamp, start, end)
    if tickers is not None:
        chosen = dict(zip(chosen_symbols(bars, tickers, where), tickers, strict=True))
        # A symbol that may be a coin or a pair takes the name that says which.
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
    """All rows of all files, each bar once, and the seconds between them."""
    tables = [read_bars(path, stamp) for path in paths]
    steps = [step_between(table, start, end, str(path)) for path, table in zip(paths, tables, strict=True)]
    for path, step in zip(paths, steps, strict=True):
        if step != steps[0]:
            raise BarsError(
                f"{path} holds {timeframe_name(step)} bars and {paths[0]} {timeframe_name(steps[0])} bars; join files "
                "of one timeframe"
            )
    tables = [table.assign(symbol=table["symbol"].astype(str), file=n) for n, table in enumerate(tables)]
    bars = pd.concat(tables, ignore_index=True)
    if SYNTHETIC in bars.columns:
        bars[SYNTHETIC] = bars[SYNTHETIC].eq(True)  # a file without the column holds real bars
    bars["symbol"] = bars["symbol"].replace(spellings(set(bars["symbol"])))
    bars["is_last"] = bars["timestamp"] == bars.groupby(["file", "symbol"])["timestamp"].transform("max")
    bars = bars.sort_values("is_last", kind="stable")  # of equal bars the one that is certain to have closed is kept
    bars = bars.drop_duplicates([name for name in bars.columns if name not in OF_FILES])
    bars = _without_forming(bars, paths)
    _check_agreement(bars_between(bars, start, end), paths)
    return bars.drop_duplicates(["timestamp", "symbol"]).drop(columns=list(OF_FILES)), steps[0]


def _without_forming(bars: pd.DataFrame, paths: Sequence[Path]) -> pd.DataFrame:
    """Leave out the last bar of a file that differs from the same bar of a file that continues after it."""
    same = bars.loc[bars.duplicated(["timestamp", "symbol"], keep=False)]
    is_continued = ~same.groupby(["timestamp", "symbol"])["is_last"].transform("all")
    forming = same.loc[same["is_last"] & is_continued]
    for number, left in forming.groupby("file"):
        LOGGER.warning(
            "%s: its last bar of %s (%s UTC) had not closed, as a later file shows; the later file's is taken",
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
        f"({int(is_contradicted.sum())} such bars); leave one file out"
    )


def _values(bar: pd.Series) -> str:
    return "/".join(f"{bar[name]:g}" for name in (*PRICES, "volume"))


def _by_currency(symbols: Sequence[str]) -> list[list[str]]:
    """The symbols in groups of one cash currency: a grid has one."""
    return [[s for s in symbols if currency_of(s) == c] for c in sorted(set(map(currency_of, symbols)))]


def _longer(
    grid: BarGrid, symbols: Sequence[str], timeframe: str, step: int, offset_s: int, where: str
) -> pd.DataFrame:
    """Bars aggregated by calendar time, without the ones that miss a part."""
    if grid.bar_seconds != step:
        raise BarsError(
            f"{where}: {', '.join(symbols)} has {timeframe_name(grid.bar_seconds)} bars among others of "
            f"{timeframe_name(step)}, so a whole {timeframe} bar cannot be told; give it in a file of its own"
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
                "%s: %d of %d %s bars of %s miss a part and are left out; build_dataset.py fills short gaps before it "
                "aggregates",
                where, n_touched - len(tables[-1]), n_touched, timeframe, symbol,
            )  # fmt: skip
    bars = pd.concat(tables, ignore_index=True)
    if len(bars) == 0:
        raise BarsError(f"{where}: every {timeframe} bar misses a part; choose a shorter --timeframe")
    return bars
