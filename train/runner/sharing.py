"""A study's bars, held once for all environments and all workers of a machine.

The process that runs the study writes every array into memory without a name (memfd; a nameless temporary file where
the system has none) and hands its workers the open file. All map the same pages, which are gone with the last process,
however it ends. Features lie there back in time, as observations hold them: the batched environment takes them as they
are on a CPU (`environment_Alpaca_vectorized.lookback_windows`) and copies them to a GPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from market.dataset import Dataset
from train.study.folds import FoldedData

NEWEST_FIRST = "tech"  # the field of `Dataset` that lies back in time
FIELDS = ("price", NEWEST_FIRST, "time", "filled")


@dataclass(frozen=True)
class SharedArray:
    """Where an array lies, for this process and for those that inherit its file."""

    fd: int
    dtype: str
    shape: tuple[int, ...]
    is_newest_first: bool

    def open(self) -> np.ndarray:
        """The array, first row first. A write to it would stay private to this process."""
        with os.fdopen(self.fd, "rb", closefd=False) as file:
            array = np.memmap(file, np.dtype(self.dtype), "c", shape=self.shape)
        return array[::-1] if self.is_newest_first else array


@dataclass(frozen=True)
class SharedData:
    """The data sets of a study without their numbers, and where these lie. Small; can be pickled for a worker."""

    folded: tuple[FoldedData, ...]  # arrays of no rows
    arrays: tuple[dict[str, SharedArray], ...]  # of each data set, field -> where

    @property
    def fds(self) -> list[int]:
        """Open files that a worker must inherit under the same numbers."""
        return [array.fd for arrays in self.arrays for array in arrays.values()]

    def open(self) -> tuple[FoldedData, ...]:
        """The data sets as they were, on shared pages."""
        return tuple(
            replace(d, dataset=replace(d.dataset, **{name: array.open() for name, array in arrays.items()}))
            for d, arrays in zip(self.folded, self.arrays, strict=True)
        )


@contextmanager
def shared_data(data: Sequence[FoldedData]) -> Iterator[SharedData]:
    """Share the arrays; what was opened stays valid after the block, but no process can open more."""
    arrays: list[dict[str, SharedArray]] = []
    try:
        for d in data:
            arrays.append({})
            for name in FIELDS:
                arrays[-1][name] = _written(getattr(d.dataset, name), name == NEWEST_FIRST)
        yield SharedData(tuple(replace(d, dataset=_without_rows(d.dataset)) for d in data), tuple(arrays))
    finally:
        for fd in (array.fd for by_name in arrays for array in by_name.values()):
            os.close(fd)


def _written(array: np.ndarray, is_newest_first: bool) -> SharedArray:
    fd = _nameless_file()
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(np.ascontiguousarray(array[::-1] if is_newest_first else array).data)
    return SharedArray(fd, array.dtype.str, array.shape, is_newest_first)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bars")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _without_rows(dataset: Dataset) -> Dataset:
    return replace(dataset, **{name: np.array(getattr(dataset, name)[:0]) for name in FIELDS})
