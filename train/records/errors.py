"""Errors whose text is shown to the user."""

from __future__ import annotations

from market.errors import UserError


class StudyError(UserError):
    """A study that cannot run as asked; one line that names the flag or file and says what to do."""
