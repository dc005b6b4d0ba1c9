"""Bars of a study in memory shared by all environments and workers of a machine.

The main process writes every array into an anonymous file (memfd, or an unnamed temporary file) and passes the open
file to its workers. All processes map the same pages, which are freed when the last process exits. Features are stored
newest first, as in observations. The batched environment uses them in place on a CPU
(`environment_Alpaca_vectorized.lookback_windows`) and copies them to a GPU.
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

NEWEST_FIRST = "tech"  # field of `Dataset` that is stored newest first
FIELDS = ("price", NEWEST_FIRST, "time", "filled")


@dataclass(frozen=True)
class SharedArray:
    """Location of a shared array, valid in this process and in processes that inherit the file."""

    fd: int
    dtype: str
    shape: tuple[int, ...]
    is_newest_first: bool

    def open(self) -> np.ndarray:
        """Return the array, first row first. Writes to it are private to this process."""
        with os.fdopen(self.fd, "rb", closefd=False) as file:
            array = np.memmap(file, np.dtype(self.dtype), "c", shape=self.shape)
        return array[::-1] if self.is_newest_first else array


@dataclass(frozen=True)
class SharedData:
    """Datasets of a study without their arrays, and the arrays' locations. The object is small and can be pickled."""

    folded: tuple[FoldedData, ...]  # with empty arrays
    arrays: tuple[dict[str, SharedArray], ...]  # per dataset: field -> location

    @property
    def fds(self) -> list[int]:
        """File descriptors that a worker must inherit under the same numbers."""
        return [array.fd for arrays in self.arrays for array in arrays.values()]

    def open(self) -> tuple[FoldedData, ...]:
        """Return the original datasets on shared pages."""
        return tuple(
            replace(d, dataset=replace(d.dataset, **{name: array.open() for name, array in arrays.items()}))
            for d, arrays in zip(self.folded, self.arrays, strict=True)
        )


@contextmanager
def shared_data(data: Sequence[FoldedData]) -> Iterator[SharedData]:
    """Share the arrays. After the context, open arrays stay valid, but no process can open additional arrays."""
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
