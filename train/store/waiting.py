"""Waits for locks and unavailable services. Waits are logged and can be ended by a signal.

Every wait of a study uses this module. A signal does not interrupt a system call, so the operation is repeated in
attempts that last at most a few seconds. A server that does not answer is monitored within an attempt
(`train.store.server_connection`).
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from train.records.errors import StudyError

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.05
QUIET_S = 5.0  # seconds before the first log line
REPEAT_S = 60.0  # between two lines about one wait
LONGEST_LOCK_PAUSE_S = 0.5
GRACE_AFTER_SIGNAL_S = 1.5  # time in which the end of a trial can still be sent to a server

# Each function raises Interrupted if a signal was received at least the given number of seconds ago.
# `train.study.interruption` registers its check here while it handles signals.
interruption_checks: list[Callable[[float], None]] = []

_current: ContextVar[Wait | None] = ContextVar("wait", default=None)


class Wait:
    """Pauses between attempts, with log lines.

    Args:
        what: name of the awaited resource.
        quiet_s: seconds before the first log line.
        longest_pause_s: longest pause between two attempts. Pauses double from `FIRST_PAUSE_S`.
    """

    def __init__(self, what: str, quiet_s: float, longest_pause_s: float) -> None:
        self._what, self._quiet_s, self._longest_pause_s = what, quiet_s, longest_pause_s
        self._began_s = time.monotonic()
        self._pause_s = FIRST_PAUSE_S
        self._said_s: float | None = None

    @property
    def lasts_s(self) -> float:
        """Seconds since the wait began."""
        return time.monotonic() - self._began_s

    def pause(self, reason: str) -> None:
        """Pause before the next attempt. The length is random, so that workers do not return simultaneously.

        Raises:
            Interrupted: a signal was received before or during the pause.
        """
        self.say(reason)
        now = time.monotonic()
        end = now + self._pause_s * random.uniform(0.5, 1.0)
        if self._said_s is None:  # do not sleep beyond the time of the first log line
            end = min(end, max(self._began_s + self._quiet_s, now + FIRST_PAUSE_S))
        self._pause_s = min(2.0 * self._pause_s, self._longest_pause_s)
        try:
            _sleep_until(end)
        except KeyboardInterrupt:
            logger.warning("stopped while waiting for %s: %s", self._what, reason)
            raise

    def say(self, reason: str) -> None:
        """Log the wait if a line is due: after the quiet time, then every minute."""
        now = time.monotonic()
        if self.lasts_s >= self._quiet_s and (self._said_s is None or now - self._said_s >= REPEAT_S):
            self._said_s = now
            logger.warning("waiting for %s for %.0f s: %s; nothing is lost", self._what, self.lasts_s, reason)

    @contextmanager
    def is_current(self) -> Iterator[None]:
        """Inside this context, report a server that does not answer as this wait (`current_wait`)."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def is_over(self) -> None:
        """Log the end of the wait if the wait was logged."""
        if self._said_s is not None:
            logger.info("%s: available after %.0f s", self._what, self.lasts_s)


def current_wait() -> Wait | None:
    """Return the current wait of this thread."""
    return _current.get()


def check_for_signals(grace_s: float = 0.0) -> None:
    """Raise Interrupted in the main thread if a signal was received at least `grace_s` seconds ago."""
    if threading.current_thread() is threading.main_thread():
        for check in interruption_checks:
            check(grace_s)


def _sleep_until(end_s: float) -> None:
    while True:
        check_for_signals()
        left_s = end_s - time.monotonic()
        if left_s <= 0.0:
            return
        time.sleep(min(left_s, 0.2))


def take_lock(is_taken: Callable[[], bool], what: str, holder: str) -> None:
    """Take a lock, waiting while a different process holds it.

    Args:
        is_taken: tries once without waiting and returns True on success.
        what: purpose of the lock, for the log.
        holder: current holder, as a sentence.

    Raises:
        Interrupted: a signal was received.
    """
    wait = Wait(f"the lock for {what}", QUIET_S, LONGEST_LOCK_PAUSE_S)
    with wait.is_current():
        while not is_taken():
            wait.pause(holder)
    wait.is_over()


def open_lock_file(path: Path, flag: str) -> int:
    """Open a lock file, creating it if it is missing. The caller closes it.

    Args:
        path: path of the file. It must not be a link, because opening a link could create and lock a file elsewhere.
        flag: command-line flag that determines the path, for the error message.

    Raises:
        StudyError: the path is a link, or the file cannot be created.
    """
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StudyError(f"{flag}: {path} must be a lock file, not a symbolic link; delete it") from error
        raise StudyError(f"{flag}: {path.parent} cannot be written ({error.strerror})") from error


def take_file_lock(handle: int, what: str, path: Path) -> None:
    """Lock an open file exclusively until its handle is closed. See `take_lock` for waiting."""

    def is_taken() -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    take_lock(is_taken, what, f"another process holds {path}")
