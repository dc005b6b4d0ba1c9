"""What a dataset must satisfy before a simulator may read it."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from market.defaults import MIN_SEGMENT_BARS
from market.errors import REBUILD, DatasetError
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
    """Refuse anything a simulator could silently misread; `where` names the dataset in the message."""
    arrays = dataset.arrays
    for name, (dtype, n_dims) in ARRAYS.items():
        _check_array_kind(arrays[name], name, np.dtype(dtype), n_dims, where)
    n_bars = len(dataset.time)
    _check_names(dataset, where)
    _check_shape(dataset.price, "price_array", (n_bars, len(dataset.tickers)), "bars x tickers", where)
    _check_shape(dataset.filled, "filled_array", (n_bars, len(dataset.tickers)), "bars x tickers", where)
    _check_shape(dataset.tech, "tech_array", (n_bars, len(dataset.feature_names)), "bars x features", where)
    _check_price(dataset, where)
    _check_tech(dataset, where)
    _check_segments(dataset, where)
    _check_time(dataset, where)


def _check_array_kind(array: np.ndarray, name: str, dtype: np.dtype, n_dims: int, where: str) -> None:
    if array.ndim != n_dims:
        raise DatasetError(f"{where}: {name} has shape {array.shape}, expected {n_dims} dimensions; {REBUILD}")
    if array.dtype != dtype:
        raise DatasetError(f"{where}: {name} has dtype {array.dtype}, expected {dtype}; {REBUILD}")


def _check_names(dataset: Dataset, where: str) -> None:
    for what, names in (("ticker", dataset.tickers), ("feature", dataset.feature_names)):
        if not names:
            raise DatasetError(f"{where}: no {what} names; {REBUILD}")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DatasetError(f"{where}: {what} {', '.join(repeated[:5])} comes twice; {REBUILD}")
    if dataset.warmup_bars < 0:
        raise DatasetError(f"{where}: warmup_bars is {dataset.warmup_bars}, expected at least 0; {REBUILD}")
    if dataset.bar_seconds < 1:
        raise DatasetError(f"{where}: bar_seconds is {dataset.bar_seconds}, expected at least 1; {REBUILD}")


def _check_shape(array: np.ndarray, name: str, expected: tuple[int, int], meaning: str, where: str) -> None:
    if array.shape == expected:
        return
    hint = "; it looks transposed" if array.shape == expected[::-1] else ""
    raise DatasetError(f"{where}: {name} is {array.shape}, expected {expected} ({meaning}){hint}; {REBUILD}")


def _check_price(dataset: Dataset, where: str) -> None:
    is_bad = ~(np.isfinite(dataset.price) & (dataset.price > 0))
    if is_bad.any():
        bar, asset = map(int, np.argwhere(is_bad)[0])
        raise DatasetError(
            f"{where}: price_array of {dataset.tickers[asset]} at bar {bar} is {dataset.price[bar, asset]}, expected a "
            f"positive number ({int(is_bad.sum())} such values); {REBUILD}"
        )


def _check_tech(dataset: Dataset, where: str) -> None:
    # The sum is finite when every value is; only a suspicious sum costs the full search.
    if np.isfinite(dataset.tech.sum(dtype=np.float64)):
        return
    is_bad = ~np.isfinite(dataset.tech)
    if is_bad.any():
        bar, column = map(int, np.argwhere(is_bad)[0])
        name = dataset.feature_names[column]
        raise DatasetError(
            f"{where}: tech_array {name} at bar {bar} is {dataset.tech[bar, column]}, expected "
            f"a finite number ({int(is_bad.sum())} such values); {REBUILD}"
        )


def _check_segments(dataset: Dataset, where: str) -> None:
    n_bars = len(dataset.time)
    if not dataset.segments:
        raise DatasetError(f"{where}: no segments; {REBUILD}")
    edges = [edge for segment in dataset.segments for edge in segment]
    if any(a > b for a, b in pairwise(edges)) or any(a >= b for a, b in dataset.segments):
        raise DatasetError(f"{where}: segments {dataset.segments} are empty, overlap or are out of order; {REBUILD}")
    if edges[0] < 0 or edges[-1] > n_bars:
        raise DatasetError(f"{where}: segments {dataset.segments} leave the {n_bars} bars there are; {REBUILD}")
    longest = max(b - a for a, b in dataset.segments)
    if longest < MIN_SEGMENT_BARS:
        raise DatasetError(
            f"{where}: the longest run without a gap has {longest} bars, at least {MIN_SEGMENT_BARS} are needed; "
            "build it from a longer period"
        )


def _check_time(dataset: Dataset, where: str) -> None:
    time = dataset.time
    in_range = (time >= EARLIEST_S) & (time < LATEST_S)
    if not in_range.all():
        bar = int((~in_range).argmax())
        raise DatasetError(
            f"{where}: time_array at bar {bar} is {time[bar]}, expected UTC seconds in 2009..2099; {REBUILD}"
        )
    steps = np.diff(time)
    if (steps <= 0).any():
        bar = int((steps <= 0).argmax()) + 1
        fault = "repeats" if steps[bar - 1] == 0 else "goes back"
        raise DatasetError(f"{where}: time_array {fault} at bar {bar} ({utc_text(time[bar])}); {REBUILD}")
    for first, last in dataset.segments:
        is_gap = steps[first : last - 1] != dataset.bar_seconds
        if is_gap.any():
            bar = first + int(is_gap.argmax()) + 1
            raise DatasetError(
                f"{where}: time_array steps {steps[bar - 1]} s at bar {bar} ({utc_text(time[bar])}) inside segment "
                f"({first}, {last}), expected {dataset.bar_seconds} s; split the segment at the gap"
            )
