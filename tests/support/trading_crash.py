"""A trader's process that ends at any operation: an exception that nobody catches, before or after the operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BROKER_CALLS = ("send", "find", "cancel", "snapshot", "orders_after", "rules", "quotes")
JOURNAL_CALLS = ("append",)


class Crash(BaseException):
    """The process ended here."""


class Crasher:
    """Counts the calls of a broker and of a journal, and ends the process at one of them.

    Args:
        at: number of the call, from 0; None never.
        is_after: the call still takes effect.
        error: that is raised.
        only: call that is counted; None counts all.
    """

    def __init__(
        self, at: int | None = None, is_after: bool = False, error: Callable[[], BaseException] = Crash,
        only: str | None = None,
    ) -> None:  # fmt: skip
        self.counted = (*BROKER_CALLS, *JOURNAL_CALLS) if only is None else (only,)
        self.at, self.is_after, self.error = at, is_after, error
        self.calls: list[str] = []

    def wrap(self, part: Any) -> Any:
        return _Wrapped(part, self)

    def begins(self, name: str) -> bool:
        """Count a call; whether the process ends after it."""
        self.calls.append(name)
        is_now = self.at == len(self.calls) - 1
        if is_now and not self.is_after:
            raise self.error()
        return is_now


class _Wrapped:
    def __init__(self, part: Any, crasher: Crasher) -> None:
        self._part, self._crasher = part, crasher

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        if name not in self._crasher.counted:
            return value

        def called(*args: Any, **options: Any) -> Any:
            ends = self._crasher.begins(name)
            result = value(*args, **options)
            if ends:
                raise self._crasher.error()
            return result

        return called
