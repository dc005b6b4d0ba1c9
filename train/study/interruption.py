"""Ctrl-C, `kill` and a closed terminal, turned into an exception where a trial computes and into a flag elsewhere.

An exception in the middle of a database write would leave a session open or a trial RUNNING, so signals interrupt only
inside `interruptible()` and where something is waited for (`train.store.waiting`); everywhere else they are remembered
until the next check.
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
    """A signal asked this process to stop. A KeyboardInterrupt, so Optuna fails the running trial and stops."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class Interruption:
    """Listens for the signals while in use as a context manager, then restores the old handlers.

    Attributes:
        received: number of the first signal, None so far.
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
            if old is not signal.SIG_IGN:  # nohup ignores SIGHUP, and so do we then
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
        """Inside, a signal raises Interrupted at once; one that came before raises on entry."""
        self.check()
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal is remembered; one that came meanwhile raises on leaving, if it may be raised there."""
        raises, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = raises
        if raises:
            self.check()

    def check(self, grace_s: float = 0.0) -> None:
        """Raise Interrupted if a signal came, at least `grace_s` seconds ago."""
        if self.received is not None and time.monotonic() - self._received_s >= grace_s:
            raise Interrupted(self.received)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_s = number, time.monotonic()
        if self._raises:
            self._raises = False  # once: a second Ctrl-C must not break the clearing up
            raise Interrupted(self.received)

    def _on_unraisable(self, dropped: Any) -> None:
        """Ours, dropped in a finalizer, is raised again by the next check: not worth a traceback."""
        if not isinstance(dropped.exc_value, Interrupted):
            self._old_hook(dropped)
