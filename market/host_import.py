"""Import of a host repository's pickled arrays as a dataset: aligned, checked and split at gaps.

The folder holds `price_array (T, A)`, `tech_array (T, F)`, ordered by coin, and `time_array (T,)`, the bars' OPEN times
as UTC seconds or datetime64. Hosts drop every bar that is missing for some coin, so a step longer than one bar is a
gap.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from market.bars.candles import BarGrid, segments_of
from market.bars.quality import account_of_bars, gap_report
from market.bars.spellings import perpetual_warnings
from market.checks import price_fault, value_fault
from market.dataset import Dataset, make_dataset
from market.defaults import MIN_SEGMENT_BARS, WARMUP_BARS
from market.errors import DatasetError
from market.host_pickles import load_host_array
from market.names import ticker_of, timeframe_name
from market.times import EARLIEST_S, LATEST_S, epoch_seconds, utc_text
from market.venues import ALPACA, Venue

LOGGER = logging.getLogger(__name__)

FEATURE_SET = "host arrays"
FILL_RULE = "unknown: the host's own bars, of closes only"
LEAST_COVERAGE = 0.01  # rows / bars in their period; a smaller ratio means that the times are wrong
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class HostArrays:
    """Arrays of a host's folder, all with T rows."""

    price: np.ndarray  # (T, A) float64, close, quote per coin
    tech: np.ndarray  # (T, F) float64
    time: np.ndarray  # (T,) int64, UTC seconds, bar OPEN


def dataset_from_host(
    folder: Path | str,
    tickers: Sequence[str],
    bar_seconds: int,
    *,
    start: datetime | None = None,
    synthetic: bool = False,
    warmup_bars: int = WARMUP_BARS,
    venue: Venue = ALPACA,
    now: datetime | None = None,
) -> Dataset:
    """Convert the arrays of a host's folder to a dataset of all usable bars.

    Args:
        folder: folder with the host's pickles.
        tickers: coin names in any form, in the order of the price columns. The host's files do not name them.
        bar_seconds: bar length. The files do not contain it.
        start: open time of the first row if there is no readable `time_array`. All rows are then assumed contiguous.
        synthetic: if True, the bars are synthetic.
        warmup_bars: number of previous bars on which a row's features depend. The host has already removed its warm-up.
        venue: venue of the coins, with its order rules and fees.
        now: rows that close after this time are dropped with a warning; None is the current time. Synthetic rows are
            kept.

    Raises:
        DatasetError: the files cannot be used; the message is one line and names the file.
    """
    folder = Path(folder)
    names = tuple(ticker_of(ticker) for ticker in tickers)
    host = _read_folder(folder, names, bar_seconds, start)
    host = host if synthetic else _closed(folder, host, bar_seconds, now or datetime.now(UTC))
    feature_names = _feature_names(folder, host.tech, names)
    _check_values(folder, host, names, feature_names)
    grid = _grid(folder, host, names, bar_seconds)
    kept = [run for run in segments_of(grid) if run[1] - run[0] >= MIN_SEGMENT_BARS]
    if not kept:
        raise DatasetError(f"{folder}: no run of {timeframe_name(bar_seconds)} bars is {MIN_SEGMENT_BARS} bars long")
    row_of_bar = np.cumsum(~grid.missing.any(axis=1)) - 1  # (bars,)
    rows = np.concatenate([row_of_bar[first:last] for first, last in kept])
    ends = np.cumsum([last - first for first, last in kept]).tolist()
    quality = gap_report(grid, max_fill_bars=0) | {"fill_rule": FILL_RULE}
    quality["warnings"] = [*perpetual_warnings(tickers), *quality["warnings"]]
    return make_dataset(
        price=host.price[rows],
        tech=host.tech[rows].astype(np.float32),
        time=host.time[rows] + bar_seconds,
        tickers=names,
        feature_set=FEATURE_SET,
        feature_names=feature_names,
        feature_coins=[coin for coin in range(len(names)) for _ in range(len(feature_names) // len(names))],
        warmup_bars=warmup_bars,
        bar_seconds=bar_seconds,
        segments=list(zip([0, *ends[:-1]], ends, strict=True)),
        source=f"host folder {folder.absolute().name}" + ("" if start is None else ", times counted from --start"),
        synthetic=synthetic,
        venue=venue,
        quality=quality | account_of_bars(grid, kept, warmup_bars=0),
    )


def _read_folder(folder: Path, tickers: Sequence[str], bar_seconds: int, start: datetime | None) -> HostArrays:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; pass one that contains price_array, tech_array and time_array")
    price, tech = _matrix(folder / "price_array"), _matrix(folder / "tech_array")
    if price.shape[1] != len(tickers):
        raise DatasetError(
            f"{folder / 'price_array'}: has {price.shape[1]} columns, but --tickers names {len(tickers)} coins "
            f"({', '.join(tickers)}); name one coin per column, in column order"
        )
    if start is None:
        time = _open_times(folder / "time_array")
    else:
        time = int(start.timestamp()) + bar_seconds * np.arange(len(price), dtype=np.int64)
    for name, array in (("tech_array", tech), ("time_array", time)):
        if len(array) != len(price):
            raise DatasetError(f"{folder / name}: has {len(array)} rows, but price_array has {len(price)}")
    return HostArrays(price, tech, time)


def _closed(folder: Path, host: HostArrays, bar_seconds: int, now: datetime) -> HostArrays:
    """Return the rows whose bars have closed by `now`."""
    is_closed = host.time + bar_seconds <= now.timestamp()
    if is_closed.all():
        return host
    opens = host.time[~is_closed]
    span = " .. ".join(utc_text(time) for time in sorted({int(opens.min()), int(opens.max())}))
    if not is_closed.any():
        raise DatasetError(f"{folder}: no bar has closed yet (opens {span} UTC); check the times")
    LOGGER.warning("%s: dropped %d rows of bars that have not closed yet, opens %s UTC", folder, len(opens), span)
    return HostArrays(host.price[is_closed], host.tech[is_closed], host.time[is_closed])


def _matrix(path: Path) -> np.ndarray:
    """Read an array (T, columns) as float64."""
    array = load_host_array(path)
    if array.dtype.kind == "M" or array.ndim != 2:
        raise DatasetError(
            f"{path}: has shape {array.shape} and dtype {array.dtype}, expected numbers (bars x columns)"
        )
    return array.astype(np.float64)


def _open_times(path: Path) -> np.ndarray:
    """Read open times (T,) as int64 UTC seconds."""
    advice = "pass --start DATE (open time of the first row) if no bar is missing"
    if not path.exists():
        raise DatasetError(f"{path}: no such file; {advice}")
    try:
        found = load_host_array(path)
    except DatasetError as error:
        raise DatasetError(f"{error}; {advice}") from error
    if found.ndim != 1:
        raise DatasetError(f"{path}: has shape {found.shape}, expected one time per bar")
    if found.dtype.kind == "M":
        seconds = np.where(np.isnat(found), np.nan, found.astype("M8[ns]").astype(np.int64) / 1e9)
    else:
        seconds = epoch_seconds(found)
    is_bad = ~((seconds >= EARLIEST_S) & (seconds < LATEST_S) & (seconds % 1 == 0))
    if is_bad.any():
        row = int(is_bad.argmax())
        raise DatasetError(f"{path}: row {row} is {found[row]}, expected whole UTC seconds in 2009..2099; {advice}")
    return seconds.astype(np.int64)


def _feature_names(folder: Path, tech: np.ndarray, tickers: Sequence[str]) -> tuple[str, ...]:
    """Return names such as `BTC:column_0`, ordered by coin. The files do not name their columns."""
    n_columns, rest = divmod(tech.shape[1], len(tickers))
    if rest or n_columns == 0:
        raise DatasetError(
            f"{folder / 'tech_array'}: has {tech.shape[1]} columns, not a multiple of {len(tickers)} coins; "
            "each coin must have the same features"
        )
    return tuple(f"{ticker}:column_{i}" for ticker in tickers for i in range(n_columns))


def _check_values(folder: Path, host: HostArrays, tickers: Sequence[str], feature_names: Sequence[str]) -> None:
    """Raise DatasetError if a price is not positive or a feature does not fit float32."""
    is_float32 = np.abs(host.tech) <= FLOAT32_MAX
    faults = {
        "price_array": price_fault(host.price, tickers, "row"),
        "tech_array": value_fault(is_float32, host.tech, feature_names, "row", "a number that fits float32"),
    }
    for name, fault in faults.items():
        if fault:
            raise DatasetError(f"{folder / name}: {fault}")


def _grid(folder: Path, host: HostArrays, tickers: tuple[str, ...], bar_seconds: int) -> BarGrid:
    """Put the closes on a full time grid. Open, high, low and volume are unknown."""
    steps = np.diff(host.time)
    is_bad = (steps <= 0) | (steps % bar_seconds != 0)
    if is_bad.any():
        row = int(is_bad.argmax()) + 1
        raise DatasetError(
            f"{folder / 'time_array'}: step of {steps[row - 1]} s at row {row} ({utc_text(host.time[row])}), expected "
            f"{bar_seconds} s or a multiple; check --timeframe {timeframe_name(bar_seconds)}"
        )
    n_bars = int(host.time[-1] - host.time[0]) // bar_seconds + 1
    if len(host.time) < LEAST_COVERAGE * n_bars:
        span = f"{utc_text(host.time[0])} .. {utc_text(host.time[-1])}"
        raise DatasetError(f"{folder / 'time_array'}: only {len(host.time)} rows cover {span}; check the times")
    unknown = np.full((n_bars, len(tickers)), np.nan)
    close = unknown.copy()
    close[(host.time - host.time[0]) // bar_seconds] = host.price
    return BarGrid(
        time=host.time[0] + bar_seconds * np.arange(n_bars, dtype=np.int64),
        open=unknown,
        high=unknown,
        low=unknown,
        close=close,
        volume=unknown,
        filled=np.zeros(close.shape, dtype=bool),
        untraded=np.zeros(close.shape, dtype=bool),
        tickers=tickers,
        bar_seconds=bar_seconds,
    )
