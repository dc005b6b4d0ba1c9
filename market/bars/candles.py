"""Bars from files, validated and placed on a complete time grid.

A tidy table has one row per bar and symbol: `timestamp` (the bar's OPEN time), `symbol`, `open, high, low, close`
(quote per coin) and `volume` (coins). Axes: T bars, A assets. The steps are used in this order:

    read_bars -> to_grid -> fill_gaps -> resample -> segments_of

If the timestamps of a file are CLOSE times, use `stamp="close"`, which moves every bar back by its length. A missing
bar is NaN, never zero. Timestamps without a time zone are UTC, and others are converted to UTC. Integers are epoch
seconds, milliseconds, microseconds or nanoseconds, distinguished by their size.

Synthetic bars are marked in a column `synthetic`, which survives copies, filters and other file formats.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from market.bars.spellings import chosen_symbols, join_spellings
from market.bars.table_files import check_names, read_csv, read_parquet, write_parquet
from market.bars.time_grid import bar_seconds_of, check_wall_clock, few_strays, on_grid, opens_of
from market.defaults import DEFAULT_MAX_FILL_BARS, LEAST_PRICE, MOST_PRICE, MOST_VOLUME, STAMPS
from market.errors import BarsError
from market.files import whole_file
from market.names import ticker_for, timeframe_name
from market.times import EARLIEST_S, LATEST_S, epoch_seconds, utc_text

LOGGER = logging.getLogger(__name__)

PRICES = ("open", "high", "low", "close")
COLUMNS = ("timestamp", "symbol", *PRICES, "volume")
SYNTHETIC = "synthetic"  # optional column that marks synthetic bars
FALSE_WORDS = ("", "0", "0.0", "false", "no", "nan", "none", "<na>")
LONGEST_SYMBOL = 100
TICKS_PER_SECOND = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}
ENOUGH_BARS = 100  # bars in a period that are enough to determine the bar length
LEAST_COVERAGE = 0.01  # bars / bars of the complete grid; a smaller ratio means that the times are wrong


@dataclass(frozen=True)
class BarGrid:
    """Bars of several coins on one complete time grid. A missing bar is NaN in all prices and volume."""

    time: np.ndarray  # (T,) int64, UTC seconds, bar OPEN
    open: np.ndarray  # (T, A) float64, quote per coin
    high: np.ndarray  # (T, A) float64, quote per coin
    low: np.ndarray  # (T, A) float64, quote per coin
    close: np.ndarray  # (T, A) float64, quote per coin
    volume: np.ndarray  # (T, A) float64, coins
    filled: np.ndarray  # (T, A) bool, bar created by fill_gaps
    untraded: np.ndarray  # (T, A) bool, source bar with volume 0 of a coin that has volumes elsewhere
    tickers: tuple[str, ...]
    bar_seconds: int

    @property
    def missing(self) -> np.ndarray:
        """Missing bars, (T, A) bool."""
        return np.isnan(self.close)

    def rows(self, first: int, last: int) -> BarGrid:
        """Return bars [first, last) as views."""
        names = ("time", *PRICES, "volume", "filled", "untraded")
        return replace(self, **{name: getattr(self, name)[first:last] for name in names})


def read_bars(path: Path | str, stamp: str = "open") -> pd.DataFrame:
    """Read and validate a tidy Parquet or CSV file.

    Args:
        path: a .parquet, .csv or .csv.gz file.
        stamp: time to which the file's timestamps refer, `open` or `close`. The result always has open times.

    Returns:
        The columns `COLUMNS`, sorted by symbol and time. `timestamp` is datetime64[s, UTC]. If the file has a column
        `synthetic` (bool), it is the last column.

    Raises:
        BarsError: the file cannot be used; the message is one line and names the file, ticker and bar.
    """
    path = Path(path)
    if not path.is_file():
        raise BarsError(f"{path}: no such file; pass a tidy .parquet or .csv file of bars")
    readers = {".parquet": read_parquet, ".csv": read_csv, ".gz": read_csv}
    if path.suffix not in readers:
        raise BarsError(f"{path}: expected a .parquet, .csv or .csv.gz file")
    return tidy_bars(readers[path.suffix](path, (*COLUMNS, SYNTHETIC)), str(path), stamp)


def tidy_bars(table: pd.DataFrame, where: str, stamp: str = "open") -> pd.DataFrame:
    """Convert a table with the tidy columns to the format of `read_bars`.

    Args:
        table: a table with the columns `COLUMNS` in any order and case.
        where: name of the table in errors.
        stamp: time to which the timestamps refer, `open` or `close`.

    Raises:
        BarsError: the table cannot be used.
    """
    if stamp not in STAMPS:
        raise BarsError(f"{where}: stamp must be {' or '.join(STAMPS)}; received {stamp!r}")
    check_names(list(table.columns), (*COLUMNS, SYNTHETIC), where)
    table = table.rename(columns=lambda name: str(name).strip().lower())
    absent = [name for name in COLUMNS if name not in table.columns]
    if absent:
        raise BarsError(f"{where}: column {', '.join(absent)} is missing; expected {', '.join(COLUMNS)}")
    if len(table) == 0:
        raise BarsError(f"{where}: contains no bars")
    columns = {name: pd.Series(table[name]) for name in COLUMNS}
    symbol = columns["symbol"].astype("category")
    if symbol.isna().any():
        raise BarsError(f"{where}: row {int(symbol.isna().to_numpy().argmax())} has no symbol")
    symbol = symbol.cat.rename_categories(str).cat.remove_unused_categories()
    for name in symbol.cat.categories:
        if not name.isprintable() or len(name) > LONGEST_SYMBOL:
            raise BarsError(f"{where}: {name[:40]!a} is not a symbol; expected one such as BTC/USD")
    bars = pd.DataFrame({"timestamp": _utc_seconds(columns["timestamp"], where, stamp), "symbol": symbol.array})
    for name in (*PRICES, "volume"):
        bars[name] = _numbers(columns[name], name, where)
    if SYNTHETIC in table.columns:
        bars[SYNTHETIC] = _is_true(pd.Series(table[SYNTHETIC]))
    bars = join_spellings(bars, where)
    order = np.lexsort((bars["timestamp"].to_numpy(), bars["symbol"].cat.codes.to_numpy()))
    bars = bars.iloc[order].reset_index(drop=True)
    if _is_without_zone(columns["timestamp"]):
        check_wall_clock(bars["timestamp"].to_numpy(), bars["symbol"].cat.codes.to_numpy(), where)
    _check_bars(bars, where)
    bars["timestamp"] = pd.to_datetime(bars["timestamp"], unit="s", utc=True).dt.as_unit("s")
    if stamp == "close":
        opens = bars["timestamp"] - pd.Timedelta(seconds=bar_seconds_of(bars, where))
        bars["timestamp"] = opens.dt.as_unit("s")
    return bars


def _is_true(column: pd.Series) -> np.ndarray:
    """Return True for marked rows, (rows,) bool. Any value that does not mean "no" is a mark."""
    return ~column.astype(str).str.strip().str.lower().fillna("").isin(FALSE_WORDS).to_numpy(dtype=bool)


def is_synthetic(bars: pd.DataFrame) -> bool:
    """Return True if any bar is marked as synthetic."""
    return SYNTHETIC in bars.columns and bool(bars[SYNTHETIC].any())


def _numbers(column: pd.Series, name: str, where: str) -> np.ndarray:
    try:
        return column.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        numbers = pd.Series(pd.to_numeric(column, errors="coerce"))
        is_text = np.asarray(numbers.isna() & column.notna())
        row = int(is_text.argmax())
        raise BarsError(
            f"{where}: row {row}: {name} is {str(column.iloc[row])[:40]!r}, expected a number such as "
            "1234.5 (a decimal point, no thousands separators)"
        ) from error


def _utc_seconds(column: pd.Series, where: str, stamp: str) -> np.ndarray:
    """Convert datetimes, text or epoch numbers to UTC seconds, (rows,) int64."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        seconds = epoch_seconds(_numbers(column, "timestamp", where))
    else:
        try:
            is_time = pd.api.types.is_datetime64_any_dtype(column)
            stamps = pd.to_datetime(column, utc=True) if is_time else _from_iso(column)
        except (ValueError, TypeError, OverflowError) as error:
            is_bad = pd.to_datetime(column.astype(str), utc=True, format="ISO8601", errors="coerce").isna().to_numpy()
            row = int(is_bad.argmax())
            raise BarsError(
                f"{where}: row {row}: the timestamp {str(column.iloc[row])[:40]!r} cannot be read; use ISO 8601, as in "
                "2024-08-05T12:05:00Z, or epoch seconds"
            ) from error
        index = pd.DatetimeIndex(stamps)
        seconds = np.where(index.isna(), np.nan, index.asi8 / TICKS_PER_SECOND[index.unit])
    in_range = (seconds >= EARLIEST_S) & (seconds < LATEST_S)
    if not in_range.all():
        row = int((~in_range).argmax())
        raise BarsError(
            f"{where}: row {row} has the timestamp {_time_text(column.iloc[row])}, outside 2009..2099; check its unit"
        )
    if stamp == "close":
        # Some exchanges write the last millisecond, 12:04:59.999, for a close at 12:05.
        next_minute = np.ceil(seconds / 60) * 60
        seconds = np.where(next_minute - seconds <= 1, next_minute, seconds)
    is_off = seconds % 1 != 0
    if not few_strays(int(is_off.sum()), len(seconds)):
        row = int(is_off.argmax())
        advice = "expected close times" if stamp == "close" else "if these are close times, pass --stamp close"
        raise BarsError(f"{where}: row {row} has a fraction of a second ({_time_text(column.iloc[row])}); {advice}")
    # Strays must stay off every grid, so no fraction is rounded to a whole minute.
    up = np.ceil(seconds)
    return np.where(up % 60 == 0, np.floor(seconds), up).astype(np.int64)


def _is_without_zone(column: pd.Series) -> bool:
    """Return True if the times are text or datetimes without a time zone, according to the first one."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return not isinstance(column.dtype, pd.DatetimeTZDtype)
    return not pd.api.types.is_numeric_dtype(column) and _from_iso(column.iloc[:1], utc=False).dt.tz is None


def _time_text(value: object) -> str:
    """Format a timestamp from a file, including years that Python's datetime does not support."""
    return str(value.to_datetime64() if isinstance(value, pd.Timestamp) else value)[:40]


def _from_iso(column: pd.Series, utc: bool = True) -> pd.Series:
    return pd.to_datetime(column.astype(str), utc=utc, format="ISO8601")


def _check_bars(bars: pd.DataFrame, where: str) -> None:
    """Raise BarsError for the first invalid bar. `bars` is sorted, with timestamps in seconds."""
    values = {name: bars[name].to_numpy() for name in (*PRICES, "volume")}
    body_high = np.maximum(values["open"], values["close"])
    body_low = np.minimum(values["open"], values["close"])
    same_symbol = bars["symbol"].cat.codes.diff().to_numpy() == 0
    faults = {f"{name} is not a finite number": ~np.isfinite(column) for name, column in values.items()}
    faults |= {f"{name} is not positive": values[name] <= 0 for name in PRICES}
    faults["volume is negative"] = values["volume"] < 0
    for name in PRICES:
        is_sane = (values[name] >= LEAST_PRICE) & (values[name] <= MOST_PRICE)
        faults[f"{name} is outside {LEAST_PRICE:g} .. {MOST_PRICE:g}"] = ~is_sane
    faults[f"volume is above {MOST_VOLUME:g} coins"] = values["volume"] > MOST_VOLUME
    faults["high is below open or close"] = values["high"] < body_high
    faults["low is above open or close"] = values["low"] > body_low
    faults["the same bar is repeated"] = same_symbol & (bars["timestamp"].diff().to_numpy() == 0)
    for fault, is_bad in faults.items():
        if is_bad.any():
            bar = bars.iloc[int(is_bad.argmax())]
            raise BarsError(
                f"{where}: {bar['symbol']} bar {utc_text(bar['timestamp'])}: {fault} "
                f"({int(is_bad.sum())} such bars); remove or fix them"
            )


def step_between(bars: pd.DataFrame, start: datetime | None, end: datetime | None, where: str) -> int:
    """Return the seconds between bars with open times in [start, end), or between all bars if those are few."""
    inside = bars_between(bars, start, end)
    return bar_seconds_of(inside if len(inside) >= ENOUGH_BARS else bars, where)


def to_grid(
    bars: pd.DataFrame,
    tickers: Sequence[str],
    where: str,
    start: datetime | None = None,
    end: datetime | None = None,
    offset_s: int = 0,
    now: datetime | None = None,
) -> BarGrid:
    """Place the bars of `tickers` on one complete time grid, from the first to the last bar of any of them.

    Args:
        bars: tidy bars, as returned by `read_bars`.
        tickers: coin names in any form, in the order of the grid's columns.
        where: name of the source in errors.
        start: open time of the first bar, UTC, inclusive.
        end: upper bound of open times, UTC, exclusive.
        offset_s: offset of the bars' open times from the multiples of their length since 1970-01-01 00:00 UTC, seconds.
        now: bars that close after this time are dropped, as in `closed_bars`.

    Raises:
        BarsError: the bars do not fit one grid, or a ticker has none.
    """
    if start is not None and end is not None and start >= end:
        raise BarsError(f"{where}: start {start:%Y-%m-%d %H:%M} must be before end {end:%Y-%m-%d %H:%M}")
    symbols = chosen_symbols(bars, tickers, where)
    bars = bars.loc[bars["symbol"].isin(symbols)]
    step = step_between(bars, start, end, where)
    # A volume of 0 is reliable from a symbol's first positive volume onward.
    first_volume = bars.loc[bars["volume"] > 0].astype({"symbol": str}).groupby("symbol")["timestamp"].min()
    known_from = (
        first_volume.reindex(symbols).to_numpy(dtype="datetime64[s]").astype(np.int64)
    )  # NaT becomes the smallest int64
    bars = on_grid(bars_between(bars, start, end), step, offset_s, where, n_all=len(bars))
    bars = closed_bars(bars, step, where, now)
    check_every_symbol_has_bars(bars, symbols, where)
    seconds = opens_of(bars)
    first, last = int(seconds.min()), int(seconds.max())
    time = np.arange(first, last + step, step, dtype=np.int64)
    if len(bars) < LEAST_COVERAGE * len(time) * len(symbols):
        span = f"{utc_text(first)} .. {utc_text(last)}"
        raise BarsError(f"{where}: only {len(bars)} bars cover {span}; check the timestamps")
    place = pd.Index(symbols).get_indexer(pd.Index(bars["symbol"].astype(str)))
    row = (seconds - first) // step
    columns = {}
    for name in (*PRICES, "volume"):
        columns[name] = np.full((len(time), len(symbols)), np.nan)
        columns[name][row, place] = bars[name].to_numpy()
    return BarGrid(
        time=time,
        **columns,
        filled=np.zeros((len(time), len(symbols)), dtype=bool),
        untraded=(columns["volume"] == 0) & (known_from > 0) & (time[:, None] >= known_from),
        tickers=tuple(map(ticker_for, tickers, symbols)),
        bar_seconds=step,
    )


def bars_between(bars: pd.DataFrame, start: datetime | None, end: datetime | None) -> pd.DataFrame:
    """Return the bars with open times in [start, end). None means no bound."""
    bars = bars if start is None else bars.loc[bars["timestamp"] >= start]
    return bars if end is None else bars.loc[bars["timestamp"] < end]


def closed_bars(bars: pd.DataFrame, step: int, where: str, now: datetime | None = None) -> pd.DataFrame:
    """Return the bars of `step` seconds that have closed by `now` (default: the current time). Others are logged.

    Synthetic bars are all kept, even in the future.

    Raises:
        BarsError: no bar has closed.
    """
    is_open = (bars["timestamp"] + pd.Timedelta(seconds=step) > (now or datetime.now(UTC))).to_numpy()
    if not is_open.any() or is_synthetic(bars):
        return bars
    left_out = bars.loc[is_open]
    symbols, times = ", ".join(sorted(set(map(str, left_out["symbol"])))), left_out["timestamp"]
    opens = " .. ".join(f"{time:%Y-%m-%d %H:%M}" for time in sorted({times.min(), times.max()}))
    if is_open.all():
        raise BarsError(f"{where}: no bar has closed yet ({symbols} opens {opens} UTC); check the timestamps")
    n, one = len(left_out), "dropped 1 bar that has not closed yet"
    what = one if n == 1 else f"dropped {n} bars that have not closed yet"
    LOGGER.warning("%s: %s: %s opens %s UTC", where, what, symbols, opens)
    return bars.loc[~is_open]


def check_every_symbol_has_bars(bars: pd.DataFrame, symbols: Sequence[str], where: str) -> None:
    """Raise BarsError if a symbol has no bars in the selected period."""
    there = set(map(str, bars["symbol"].unique()))
    empty = [symbol for symbol in symbols if symbol not in there]
    if empty:
        raise BarsError(f"{where}: {', '.join(empty)} has no bars in this period; extend it with --start and --end")


def fill_gaps(grid: BarGrid, max_fill_bars: int = DEFAULT_MAX_FILL_BARS) -> BarGrid:
    """Fill the first `max_fill_bars` missing bars of each gap between two real bars. The rest of a gap stays missing.

    A filled bar represents no trades: open, high, low and close are the last close before the gap, and volume is 0.
    Neither its values nor its existence depends on when trading resumes, so the agent learns nothing from a filled bar
    about later trades. Filled bars are marked in `filled`, and the simulator fills no order in them.

    Some sources contain such bars themselves. They are treated as filled bars, whatever their number, even after the
    last trade of a delisted coin. Before a coin's first trade, they are treated as missing.
    """
    repeats = _repeats_last_close(grid)
    missing = grid.missing | repeats
    last_real = _last_true_index(~missing)  # (T, A)
    next_real = (len(grid.time) - 1 - _last_true_index(~missing[::-1]))[::-1]  # (T, A)
    inside = (last_real >= 0) & (next_real < len(grid.time))
    is_soon = np.arange(len(missing))[:, None] - last_real <= max_fill_bars
    filled = (missing & inside & is_soon) | (repeats & (last_real >= 0))
    carried = np.take_along_axis(grid.close, np.maximum(last_real, 0), axis=0)
    columns = {name: np.where(missing, np.nan, getattr(grid, name)) for name in (*PRICES, "volume")}
    columns |= {name: np.where(filled, carried, columns[name]) for name in PRICES}
    return replace(grid, **columns | {"volume": np.where(filled, 0.0, columns["volume"])}, filled=grid.filled | filled)


def _repeats_last_close(grid: BarGrid) -> np.ndarray:
    """Return flat bars without volume at the previous close, or before the coin's first trade, (T, A) bool."""
    before = np.roll(_last_true_index(~grid.missing), 1, axis=0)
    before[0] = -1
    close_before = np.take_along_axis(grid.close, np.maximum(before, 0), axis=0)
    return grid.untraded & (grid.high == grid.low) & ((before < 0) | (grid.close == close_before))


def _last_true_index(mask: np.ndarray) -> np.ndarray:
    """Return the index of the last True row up to each row, (T, A), -1 before the first."""
    rows = np.arange(len(mask))[:, None]
    return np.maximum.accumulate(np.where(mask, rows, -1), axis=0)


def resample(grid: BarGrid, bar_seconds: int, offset_s: int = 0) -> BarGrid:
    """Aggregate to longer bars by calendar time. A bar with any missing part is missing.

    Bars open `offset_s` seconds after the multiples of `bar_seconds` since 1970-01-01 00:00 UTC, so an offset of 0
    makes days open at midnight UTC.

    Raises:
        BarsError: `bar_seconds` is not a multiple of the grid's bar length, or the grid is shorter than one bar.
    """
    n_parts, rest = divmod(bar_seconds, grid.bar_seconds)
    if n_parts < 1 or rest:
        raise BarsError(
            f"{timeframe_name(grid.bar_seconds)} bars cannot be aggregated to {timeframe_name(bar_seconds)} bars; "
            f"choose a multiple of {timeframe_name(grid.bar_seconds)}"
        )
    if n_parts == 1:
        return grid
    first = int((offset_s - grid.time[0]) % bar_seconds) // grid.bar_seconds
    n_bars = (len(grid.time) - first) // n_parts
    if n_bars < 1:
        raise BarsError(
            f"{len(grid.time)} bars contain no complete {timeframe_name(bar_seconds)} bar; use a longer period"
        )

    def parts(column: np.ndarray) -> np.ndarray:
        """Reshape (T, A) to (T / n_parts, n_parts, A)."""
        return column[first : first + n_bars * n_parts].reshape(n_bars, n_parts, *column.shape[1:])

    # NaN propagates through max, min and sum; open and close need a mask.
    volume = parts(grid.volume).sum(axis=1)
    whole = np.where(np.isnan(volume), np.nan, 0.0)
    return replace(
        grid,
        time=parts(grid.time)[:, 0],
        open=parts(grid.open)[:, 0] + whole,
        high=parts(grid.high).max(axis=1),
        low=parts(grid.low).min(axis=1),
        close=parts(grid.close)[:, -1] + whole,
        volume=volume,
        filled=parts(grid.filled)[:, -1],
        untraded=parts(grid.untraded)[:, -1],
        bar_seconds=bar_seconds,
    )


def segments_of(grid: BarGrid) -> tuple[tuple[int, int], ...]:
    """Return the runs [first, last_exclusive) of bars that every coin has."""
    whole = np.concatenate([[False], ~grid.missing.any(axis=1), [False]])
    edges = np.flatnonzero(whole[1:] != whole[:-1])
    return tuple((int(a), int(b)) for a, b in edges.reshape(-1, 2))


def write_bars(bars: pd.DataFrame, path: Path | str) -> None:
    """Write tidy bars atomically as Parquet or CSV."""
    path = Path(path)
    if path.suffix not in (".parquet", ".csv"):
        raise BarsError(f"{path}: the name must end in .parquet or .csv")
    with whole_file(path) as file:
        if path.suffix == ".parquet":
            write_parquet(bars, file)
        else:
            bars.to_csv(file, index=False, date_format="%Y-%m-%dT%H:%M:%SZ")
