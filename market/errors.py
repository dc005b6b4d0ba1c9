"""Errors that the user can put right. Each message is one line that names what is at fault and says what to do."""

from __future__ import annotations

REBUILD = "build the dataset again with scripts/data/build_dataset.py"


class UserError(ValueError):
    """Something that the user can put right; a program prints the message and exits with `exit_code`."""

    exit_code = 2


class BarsError(UserError):
    """Bars that cannot be used, or fetched; names the file, ticker or bar."""


class DatasetError(UserError):
    """A dataset that cannot be used; names the file, array, bar or ticker."""


class VenueError(UserError):
    """Order rules or fees that cannot be used, or fetched; names the file, coin or field."""
