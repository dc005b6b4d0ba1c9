"""Validity checks of a dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from market.defaults import LEAST_PRICE, MIN_SEGMENT_BARS, MOST_PRICE
from market.errors import REBUILD, DatasetError
from market.names import currency_fault, known_currency
from market.times import EARLIEST_S, LATEST_S, utc_text

if TYPE_CHECKING:
    from market.dataset import Dataset

ARRAYS = {
    "price_array": (np.float64, 2),
    "tech_array": (np.float32, 2),
    "time_array": (np.int64, 1),
    "filled_array": (np.bool_, 2),
}


def check_dataset(dataset: Dataset, where: str) -> None:
    """Raise DatasetError if a simulator could misread the dataset. `where` names the dataset in the message."""
    checks = (_kind_faults, _name_faults, _shape_faults, _value_faults, _segment_faults, _time_faults)
    for fault in (fault for faults in checks for fault in faults(dataset)):
        raise DatasetError(f"{where}: {fault}; {REBUILD}")


def value_fault(is_good: np.ndarray, array: np.ndarray, columns: Sequence[str], row: str, expected: str) -> str | None:
    """Describe the first bad value of an array (T, columns) and count all of them. Return None if there are none."""
    if is_good.all():
        return None
    bar, column = map(int, np.argwhere(~is_good)[0])
    n_bad = int((~is_good).sum())
    return f"{columns[column]} at {row} {bar} is {array[bar, column]}, expected {expected} ({n_bad} such values)"


def price_fault(price: np.ndarray, tickers: Sequence[str], row: str) -> str | None:
    """Describe the first price (T, A) outside the valid range. Return None if all prices are valid."""
    is_good = (price >= LEAST_PRICE) & (price <= MOST_PRICE)
    return value_fault(is_good, price, tickers, row, f"a positive number, {LEAST_PRICE:g} .. {MOST_PRICE:g}")


def _kind_faults(dataset: Dataset) -> Iterator[str]:
    for name, (dtype, n_dims) in ARRAYS.items():
        array = dataset.arrays[name]
        if array.ndim != n_dims:
            yield f"{name} has shape {array.shape}, expected {n_dims} dimensions"
        if array.dtype != dtype:
            yield f"{name} has dtype {array.dtype}, expected {np.dtype(dtype)}"


def _name_faults(dataset: Dataset) -> Iterator[str]:
    if not dataset.source.isprintable():
        yield f"the source {dataset.source[:40]!a} has control characters"
    for what, names in (("ticker", dataset.tickers), ("feature", dataset.feature_names)):
        if not names:
            yield f"no {what} names"
        yield from (f"{what} {name[:40]!a} has control characters" for name in names if not name.isprintable())
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            yield f"{what} {', '.join(repeated[:5])} is repeated"
    if fault := currency_fault({ticker: known_currency(ticker) for ticker in dataset.tickers}):
        yield fault
    for name, least in (("warmup_bars", 0), ("bar_seconds", 1)):
        if getattr(dataset, name) < least:
            yield f"{name} is {getattr(dataset, name)}, expected at least {least}"


def _shape_faults(dataset: Dataset) -> Iterator[str]:
    if len(dataset.feature_coins) != len(dataset.feature_names):
        yield f"feature_coins has {len(dataset.feature_coins)} entries for {len(dataset.feature_names)} features"
    if not all(-1 <= coin < len(dataset.tickers) for coin in dataset.feature_coins):
        yield f"feature_coins has an index outside the {len(dataset.tickers)} tickers"
    columns = {"price_array": "tickers", "filled_array": "tickers", "tech_array": "features"}
    sizes = {"tickers": len(dataset.tickers), "features": len(dataset.feature_names)}
    for name, what in columns.items():
        shape, expected = dataset.arrays[name].shape, (len(dataset.time), sizes[what])
        hint = "; it looks transposed" if shape == expected[::-1] else ""
        if shape != expected:
            yield f"{name} is {shape}, expected {expected} (bars x {what}){hint}"


def _value_faults(dataset: Dataset) -> Iterator[str]:
    price, tech = dataset.price, dataset.tech
    if fault := price_fault(price, dataset.tickers, "bar"):
        yield f"price_array of {fault}"
    # The sum is finite if every value is, so the full search runs only if the sum is not.
    if np.isfinite(tech.sum(dtype=np.float64)):
        return
    if fault := value_fault(np.isfinite(tech), tech, dataset.feature_names, "bar", "a finite number"):
        yield f"tech_array {fault}"


def _segment_faults(dataset: Dataset) -> Iterator[str]:
    n_bars, segments = len(dataset.time), dataset.segments
    if not segments:
        yield "no segments"
    edges = [edge for segment in segments for edge in segment]
    if any(a > b for a, b in pairwise(edges)) or any(a >= b for a, b in segments):
        yield f"segments {segments} are empty, overlap or are out of order"
    if edges[0] < 0 or edges[-1] > n_bars:
        yield f"segments {segments} exceed the {n_bars} bars"
    longest = max(b - a for a, b in segments)
    if longest < MIN_SEGMENT_BARS:
        yield (
            f"the longest run without a gap has {longest} bars, at least {MIN_SEGMENT_BARS} are required; use a longer "
            "period"
        )


def _time_faults(dataset: Dataset) -> Iterator[str]:
    time = dataset.time
    in_range = (time >= EARLIEST_S) & (time < LATEST_S)
    if not in_range.all():
        bar = int((~in_range).argmax())
        yield f"time_array at bar {bar} is {time[bar]}, expected UTC seconds in 2009..2099"
    steps = np.diff(time)
    if (steps <= 0).any():
        bar = int((steps <= 0).argmax()) + 1
        yield f"time_array {'repeats' if steps[bar - 1] == 0 else 'goes back'} at bar {bar} ({utc_text(time[bar])})"
    for first, last in dataset.segments:
        is_gap = steps[first : last - 1] != dataset.bar_seconds
        if is_gap.any():
            bar = first + int(is_gap.argmax()) + 1
            yield (
                f"time_array steps {steps[bar - 1]} s at bar {bar} ({utc_text(time[bar])}) inside segment "
                f"({first}, {last}), expected {dataset.bar_seconds} s; split the segment at the gap"
            )
