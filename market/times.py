"""Conversion of UTC timestamps, and the range of valid bar times."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd

EARLIEST_S = 1_230_768_000  # 2009-01-01, the year of the first bitcoin
LATEST_S = 4_102_444_800  # 2100-01-01


def utc_text(seconds: float) -> str:
    """Format UTC seconds as `2024-08-05 12:35`."""
    return pd.Timestamp(int(seconds), unit="s").strftime("%Y-%m-%d %H:%M")


def epoch_seconds(epoch: np.ndarray) -> np.ndarray:
    """Convert epoch seconds, milli-, micro- or nanoseconds to seconds. The unit follows from the value's size."""
    epoch = np.asarray(epoch, dtype=np.float64)
    scale = np.select([epoch >= 1e17, epoch >= 1e14, epoch >= 1e11], [1e9, 1e6, 1e3], default=1.0)
    return epoch / scale


def finished_before(bar_seconds: int, now: datetime) -> datetime:
    """Return the open time of the first bar that has not closed yet. A bar closes one bar length after it opens."""
    return datetime.fromtimestamp(now.timestamp() // bar_seconds * bar_seconds, UTC)
