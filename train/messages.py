"""Log lines of a run."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn_once(logger: logging.Logger, message: str) -> None:
    """A warning that a process gives once, however many runs it holds for."""
    logger.warning(message)
