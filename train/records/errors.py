"""Errors whose messages are shown to the user."""

from __future__ import annotations

from market.errors import UserError


class StudyError(UserError):
    """Raised if a study cannot run as requested. The message names the flag or file and says what to do."""
