"""numba's cache on disk, where there is a folder to write to."""

from __future__ import annotations

from collections.abc import Callable
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
