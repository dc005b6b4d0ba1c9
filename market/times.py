"""Times: UTC seconds since 1970 as text, and which of them bars can have."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd

EARLIEST_S = 1_230_768_000  # 2009-01-01, the first bitcoin
LATEST_S = 4_102_444_800  # 2100-01-01


def utc_text(seconds: float) -> str:
    """`2024-08-05 12:35` for UTC seconds."""
    return pd.Timestamp(int(seconds), unit="s").strftime("%Y-%m-%d %H:%M")


def epoch_seconds(epoch: np.ndarray) -> np.ndarray:
    """Seconds from epoch seconds, milliseconds, microseconds or nanoseconds, each value told by its size."""
    epoch = np.asarray(epoch, dtype=np.float64)
    scale = np.select([epoch >= 1e17, epoch >= 1e14, epoch >= 1e11], [1e9, 1e6, 1e3], default=1.0)
    return epoch / scale


def finished_before(bar_seconds: int, now: datetime) -> datetime:
    """The open time of the first bar that has not closed yet; a bar closes one bar length after it opens."""
    return datetime.fromtimestamp(now.timestamp() // bar_seconds * bar_seconds, UTC)
