"""Lock of a study's workers, and the first connection to a server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from train.records.errors import StudyError
from train.store.address import shown_url, sqlite_path
from train.store.retrying import insist
from train.store.waiting import open_lock_file, take_file_lock, take_lock


@contextmanager
def study_lock(url: URL, purpose: str = "") -> Iterator[Callable[[], bool]]:
    """Hold the lock for counting trials and taking the next trial, so that workers stop exactly at the target.

    The lock is a file next to an SQLite database, or an advisory lock of a PostgreSQL server. Either is released when
    its holder dies.

    Args:
        url: URL of the database.
        purpose: locks with different purposes are independent.

    Yields:
        A function that returns True while the lock is held. A server that restarts loses its locks.
    """
    path = sqlite_path(url)
    with _server_lock(url, purpose) if path is None else _file_lock(path, purpose) as is_held:
        yield is_held


@contextmanager
def _file_lock(path: Path, purpose: str) -> Iterator[Callable[[], bool]]:
    """Lock a file next to the resolved database path, so that all links to a database share one lock."""
    suffix = f".{_digest(purpose).hex()[:8]}.lock" if purpose else ".lock"
    real = path.resolve()
    lock = real.with_name(f"{real.name}{suffix}")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"--storage: {real.parent} cannot be created ({error.strerror})") from error
    handle = open_lock_file(lock, "--storage")
    try:
        take_file_lock(handle, _about(purpose, str(path)), lock)
        yield lambda: True
    finally:
        os.close(handle)


def _about(purpose: str, database: str) -> str:
    return f"{purpose or 'taking trials'} in {database}"


def reach(url: URL) -> None:
    """Query a server once, so that a wrong address fails immediately instead of being retried.

    Raises:
        StudyError: the server does not answer.
    """
    try:
        _ask_once(url)
    except (SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StudyError(f"cannot use --storage {shown_url(url)}: {reason}") from error


def wait_for_database(url: URL) -> None:
    """Wait until a server answers. Workers call this, because their parent has reached the server. No-op for SQLite.

    Raises:
        DBAPIError: the error is permanent.
        Interrupted: a signal was received.
    """
    insist(lambda: _ask_once(url), shown_url(url))


def _ask_once(url: URL) -> None:
    """Send the server one statement, over the connection that is kept for the lock."""
    if sqlite_path(url) is not None:
        return
    with _lock_engine(url).connect() as connection:
        if _answers(connection):
            return
    with _lock_engine(url).connect() as connection:  # the first connection was opened before a restart of the server
        connection.execute(text("SELECT 1"))


@cache
def _lock_engine(url: URL) -> Engine:
    """Return an engine that keeps its connection between locks, because connecting takes as long as taking a trial."""
    from train.store.server_connection import server_engine  # requires psycopg, which SQLite does not need

    return server_engine(url, isolation_level="AUTOCOMMIT", pool_size=1)


os.register_at_fork(after_in_child=_lock_engine.cache_clear)  # a connection must not be shared between processes


@contextmanager
def _server_lock(url: URL, purpose: str) -> Iterator[Callable[[], bool]]:
    """Hold an advisory lock on its own connection, because the lock belongs to a session and ends with it."""
    key = {"key": int.from_bytes(_digest(f"train.study {purpose}")[:8], "big", signed=True)}
    ask, let_go = text("SELECT pg_try_advisory_lock(:key)"), text("SELECT pg_advisory_unlock(:key)")

    def locked() -> Connection:
        connection = _lock_engine(url).connect()
        try:
            take_lock(lambda: bool(connection.execute(ask, key).scalar()), _about(purpose, shown_url(url)),
                      "another session on the server holds it (see pg_locks)")  # fmt: skip
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        return connection

    connection = insist(locked, shown_url(url))
    is_released = False
    try:
        yield lambda: _answers(connection)
        with suppress(SQLAlchemyError):
            is_released = bool(connection.execute(let_go, key).scalar())
    finally:
        if not is_released:
            connection.invalidate()  # ends the session and its lock, even if the server is gone
        connection.close()


def _answers(connection: Connection) -> bool:
    try:
        connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return False
    return True


def _digest(purpose: str) -> bytes:
    return hashlib.sha256(purpose.encode()).digest()
