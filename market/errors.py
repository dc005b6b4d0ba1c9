"""The errors of market data. Each message is one line that names what is at fault and says what to do."""

from __future__ import annotations

REBUILD = "build the dataset again with scripts/data/build_dataset.py"


class BarsError(ValueError):
    """Bars that cannot be used, or fetched; names the file, ticker or bar."""


class DatasetError(ValueError):
    """A dataset that cannot be used; names the file, array, bar or ticker."""


class VenueError(ValueError):
    """Order rules or fees that cannot be used, or fetched; names the file, coin or field."""
