"""Helpers for log lines."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning once per process."""
    logger.warning(message)


def brief(text: str, width: int = 160) -> str:
    """Return the text as one line, truncated to `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 4]} ..."
