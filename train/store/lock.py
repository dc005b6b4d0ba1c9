"""The lock under which workers take turns, and the first connection to a server."""

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
    """Held while a worker counts the trials and takes the next one: workers together then stop exactly at the target.

    A lock on a file beside the SQLite database, an advisory lock of a PostgreSQL server; either lets go of it when its
    holder dies.

    Args:
        url: of the database.
        purpose: locks of other purposes do not exclude one another.

    Yields:
        Whether the lock is still held: a server that is restarted forgets it.
    """
    path = sqlite_path(url)
    with _server_lock(url, purpose) if path is None else _file_lock(path, purpose) as is_held:
        yield is_held


@contextmanager
def _file_lock(path: Path, purpose: str) -> Iterator[Callable[[], bool]]:
    """On a file next to the real database: one that is reached through links has one lock, as it has one journal."""
    suffix = f".{_digest(purpose).hex()[:8]}.lock" if purpose else ".lock"
    real = path.resolve()
    lock = real.with_name(f"{real.name}{suffix}")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"--storage: {real.parent} cannot be made ({error.strerror})") from error
    handle = open_lock_file(lock, "--storage")
    try:
        take_file_lock(handle, _about(purpose, str(path)), lock)
        yield lambda: True
    finally:
        os.close(handle)


def _about(purpose: str, database: str) -> str:
    return f"{purpose or 'taking trials'} in {database}"


def reach(url: URL) -> None:
    """Ask a server once, so that a wrong address is an error at once; a server is waited for only later.

    Raises:
        StudyError: it does not answer.
    """
    try:
        _ask_once(url)
    except (SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StudyError(f"--storage {shown_url(url)}: cannot be used: {reason}") from error


def wait_for_database(url: URL) -> None:
    """Wait until a server answers: for a worker, whose study was reached before. A file is always there.

    Raises:
        DBAPIError: what is wrong does not pass.
        Interrupted: a signal asked this process to stop.
    """
    insist(lambda: _ask_once(url), shown_url(url))


def _ask_once(url: URL) -> None:
    """Send a server one statement, on the connection that is kept for the lock."""
    if sqlite_path(url) is not None:
        return
    with _lock_engine(url).connect() as connection:
        if _answers(connection):
            return
    with _lock_engine(url).connect() as connection:  # the one before was from before the server was restarted
        connection.execute(text("SELECT 1"))


@cache
def _lock_engine(url: URL) -> Engine:
    """Keeps its connection from lock to lock: over a network a new one costs as much as taking a trial."""
    from train.store.server_connection import server_engine  # needs psycopg, which SQLite does without

    return server_engine(url, isolation_level="AUTOCOMMIT", pool_size=1)


os.register_at_fork(after_in_child=_lock_engine.cache_clear)  # one connection belongs to one process


@contextmanager
def _server_lock(url: URL, purpose: str) -> Iterator[Callable[[], bool]]:
    """On a connection of its own, because the lock belongs to its session and ends with it."""
    key = {"key": int.from_bytes(_digest(f"train.study {purpose}")[:8], "big", signed=True)}
    ask, let_go = text("SELECT pg_try_advisory_lock(:key)"), text("SELECT pg_advisory_unlock(:key)")

    def locked() -> Connection:
        connection = _lock_engine(url).connect()
        try:
            take_lock(lambda: bool(connection.execute(ask, key).scalar()), _about(purpose, shown_url(url)),
                      "another session of the server holds it (SELECT * FROM pg_locks)")  # fmt: skip
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
            connection.invalidate()  # ends the session, and with it the lock, also one whose server is gone
        connection.close()


def _answers(connection: Connection) -> bool:
    try:
        connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return False
    return True


def _digest(purpose: str) -> bytes:
    return hashlib.sha256(purpose.encode()).digest()
