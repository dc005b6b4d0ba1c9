"""Signals (Ctrl-C, `kill`, a closed terminal), raised as an exception during training and stored as a flag elsewhere.

An exception during a database write would leave a session open or a trial RUNNING. Signals therefore interrupt only
inside `interruptible()` and during waits (`train.store.waiting`). Elsewhere they are stored until the next check.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from train.store.waiting import interruption_checks

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Raised when a signal stops this process. Like KeyboardInterrupt, it makes Optuna fail the trial and stop."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Interruption:
    """Context manager that handles the signals and restores the previous handlers on exit.

    Attributes:
        received: number of the first signal, or None before any signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_s = 0.0
        self._raises = False
        self._old: dict[int, object] = {}
        self._old_hook = sys.unraisablehook

    def __enter__(self) -> Interruption:
        self._old_hook = sys.unraisablehook
        sys.unraisablehook = self._on_unraisable
        for number in SIGNALS:
            old = signal.getsignal(number)
            if old is not signal.SIG_IGN:  # under nohup, SIGHUP stays ignored
                self._old[number] = old
                signal.signal(number, self._on_signal)
        interruption_checks.append(self.check)
        return self

    def __exit__(self, *_: object) -> None:
        interruption_checks.remove(self.check)
        sys.unraisablehook = self._old_hook
        for number, old in self._old.items():
            signal.signal(number, old)  # type: ignore[arg-type]

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside this context, signals raise Interrupted immediately. An earlier signal raises it on entry."""
        self.check()
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside this context, hold signals back. On exit, a held signal raises if the outer context allows it."""
        raises, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = raises
        if raises:
            self.check()

    def check(self, grace_s: float = 0.0) -> None:
        """Raise Interrupted if a signal was received at least `grace_s` seconds ago."""
        if self.received is not None and time.monotonic() - self._received_s >= grace_s:
            raise Interrupted(self.received)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_s = number, time.monotonic()
        if self._raises:
            self._raises = False  # only once: a second Ctrl-C must not interrupt the cleanup
            raise Interrupted(self.received)

    def _on_unraisable(self, dropped: Any) -> None:
        """Suppress the traceback of an Interrupted dropped in a finalizer. The next check raises it again."""
        if not isinstance(dropped.exc_value, Interrupted):
            self._old_hook(dropped)
