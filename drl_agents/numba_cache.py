"""numba's cache on disk, where there is a folder to write to."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit


def cached(function: Callable[..., Any], **options: Any) -> Any:
    """`function` compiled on first use and kept on disk; compiled once a process where nothing can be written.

    Args:
        function: to compile.
        options: of `numba.njit`.
    """
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba: no locator available
        return njit(**options)(function)


def sources(*files: str) -> int:
    """A number that changes with the text of these files; captured by a function, it is part of its key in the cache.

    numba's own key knows the file of the function alone, and none that it calls or whose layouts it uses.
    """
    return zlib.crc32(b"".join(Path(file).read_bytes() for file in files))
