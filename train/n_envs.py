"""How many environments to step together: counted memory, and where more of them stop making a run shorter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

SHARED = ("market", "price_array")   # attributes that all environments of an object share, whatever their number


def buffer_bytes(env: Any) -> int:
    """Bytes of a batched environment that grow with the number of its accounts: books and buffers, without the market.

    Counted from its tensors and arrays, because a process grows by less: the allocator hands out again what building
    the market left free.
    """
    total = end = 0
    for first, last in sorted(set(_spans(env))):     # views overlap; each byte counts once
        total += max(last - max(first, end), 0)
        end = max(end, last)
    return total


def _spans(value: Any) -> Iterator[tuple[int, int]]:
    """(first, last + 1) addresses of every tensor and array below a value."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    elif isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        yield value.ctypes.data, value.ctypes.data + value.nbytes
    else:
        for item in _parts(value):
            yield from _spans(item)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, tuple):
        named = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
        return [item for name, item in named if name not in SHARED]
    is_ours = is_dataclass(value) or type(value).__module__.startswith("environment_Alpaca")
    if not is_ours or isinstance(value, type):
        return []
    return [item for name, item in vars(value).items() if name not in SHARED]
