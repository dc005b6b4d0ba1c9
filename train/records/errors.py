"""Errors whose text is shown to the user."""

from __future__ import annotations


class StudyError(ValueError):
    """A study that cannot run as asked; one line that names the flag or file and says what to do."""
