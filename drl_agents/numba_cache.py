"""Disk cache of numba functions, if a writable folder exists."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit


def cached(function: Callable[..., Any], **options: Any) -> Any:
    """Compile `function` on first use and cache it on disk. If no folder is writable, compile it once per process.

    Args:
        function: the function to compile.
        options: options of `numba.njit`.
    """
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba: no locator available
        return njit(**options)(function)


def sources(*files: str) -> int:
    """Return a number that changes with the text of these files; a function that captures it has it in its cache key.

    numba's own key covers only the function's file, not the files of callees and record layouts.
    """
    return zlib.crc32(b"".join(Path(file).read_bytes() for file in files))
