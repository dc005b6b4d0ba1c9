"""Errors that a user can fix. Each message is one line that names the cause and suggests a fix."""

from __future__ import annotations

REBUILD = "rebuild the dataset with scripts/data/build_dataset.py"


class UserError(ValueError):
    """An error that the user can fix. Programs print its message and exit with `exit_code`."""

    exit_code = 2


class BarsError(UserError):
    """Bars that cannot be used or downloaded. The message names the file, ticker or bar."""


class DatasetError(UserError):
    """A dataset that cannot be used. The message names the file, array, bar or ticker."""


class VenueError(UserError):
    """Order rules or fees that cannot be used or downloaded. The message names the file, coin or field."""
