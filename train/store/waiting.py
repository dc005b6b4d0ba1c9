"""Waiting for what another process holds, or for a database that is away: said in the log, and ended by a signal.

Every wait of a study is one of these. A signal does not break into a system call, so what is waited for is tried again
and again; no attempt lasts longer than a few seconds. A server that does not answer is looked after within an attempt
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
QUIET_S = 5.0  # a lock that is free by then is not worth a line
REPEAT_S = 60.0  # between lines about one wait
LONGEST_LOCK_PAUSE_S = 0.5
GRACE_AFTER_SIGNAL_S = 1.5  # in which a server may still be told how a trial ended

# Each raises if a signal asked this process to stop, at least so many seconds ago; `train.study.interruption` puts its
# own here while it listens.
interruption_checks: list[Callable[[float], None]] = []

_current: ContextVar[Wait | None] = ContextVar("wait", default=None)


class Wait:
    """Pauses between attempts, and the log's lines about them.

    Args:
        what: is waited for.
        quiet_s: no line before so many seconds.
        longest_pause_s: between two attempts; pauses double from `FIRST_PAUSE_S`.
    """

    def __init__(self, what: str, quiet_s: float, longest_pause_s: float) -> None:
        self._what, self._quiet_s, self._longest_pause_s = what, quiet_s, longest_pause_s
        self._began_s = time.monotonic()
        self._pause_s = FIRST_PAUSE_S
        self._said_s: float | None = None

    @property
    def lasts_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began_s

    def pause(self, reason: str) -> None:
        """Pause before the next attempt; of unequal length, so that workers do not come back all at once.

        Raises:
            Interrupted: a signal asked this process to stop, before the pause or in it.
        """
        self.say(reason)
        now = time.monotonic()
        end = now + self._pause_s * random.uniform(0.5, 1.0)
        if self._said_s is None:  # look again when it would be said, and do not sleep over the whole wait in silence
            end = min(end, max(self._began_s + self._quiet_s, now + FIRST_PAUSE_S))
        self._pause_s = min(2.0 * self._pause_s, self._longest_pause_s)
        try:
            _sleep_until(end)
        except KeyboardInterrupt:
            logger.warning("stopped while waiting for %s: %s", self._what, reason)
            raise

    def say(self, reason: str) -> None:
        """A line in the log where one is due: after the quiet time, then every minute."""
        now = time.monotonic()
        if self.lasts_s >= self._quiet_s and (self._said_s is None or now - self._said_s >= REPEAT_S):
            self._said_s = now
            logger.warning("waiting for %s for %.0f s: %s; nothing is lost", self._what, self.lasts_s, reason)

    @contextmanager
    def is_current(self) -> Iterator[None]:
        """Inside, a server that does not answer is reported as this wait (`current_wait`)."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def is_over(self) -> None:
        """Say so if it was said that something is waited for."""
        if self._said_s is not None:
            logger.info("%s: available after %.0f s", self._what, self.lasts_s)


def current_wait() -> Wait | None:
    """The wait that this thread is in."""
    return _current.get()


def check_for_signals(grace_s: float = 0.0) -> None:
    """Raise Interrupted if a signal came at least `grace_s` seconds ago; other threads than the main one go on."""
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
    """Take a lock, however long another process holds it.

    Args:
        is_taken: tries once, without waiting.
        what: the lock is for, for the log.
        holder: who has it meanwhile, as a sentence.

    Raises:
        Interrupted: a signal asked this process to stop.
    """
    wait = Wait(f"the lock for {what}", QUIET_S, LONGEST_LOCK_PAUSE_S)
    with wait.is_current():
        while not is_taken():
            wait.pause(holder)
    wait.is_over()


def open_lock_file(path: Path, flag: str) -> int:
    """Open the file that a lock is put on, made where it is missing; the caller closes it.

    Args:
        path: must not be a link: that would lock, and make, a file elsewhere.
        flag: that leads to it, for the error.

    Raises:
        StudyError: it is a link or cannot be made.
    """
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StudyError(f"{flag}: {path} is a symbolic link, which a lock file must not be; delete it") from error
        raise StudyError(f"{flag}: {path.parent} cannot be written ({error.strerror})") from error


def take_file_lock(handle: int, what: str, path: Path) -> None:
    """Lock an open file exclusively, until its handle is closed; as `take_lock`."""

    def is_taken() -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    take_lock(is_taken, what, f"another process holds {path}")
