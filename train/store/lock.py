"""The lock under which workers take turns, and the first connection to a server."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from train.records.errors import StudyError
from train.store.address import connect_args, shown_url, sqlite_path
from train.store.retrying import insist


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
    with _file_lock(url, purpose) if sqlite_path(url) else _server_lock(url, purpose) as is_held:
        yield is_held


@contextmanager
def _file_lock(url: URL, purpose: str) -> Iterator[Callable[[], bool]]:
    path = sqlite_path(url)
    assert path is not None
    suffix = f".{_digest(purpose).hex()[:8]}.lock" if purpose else ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{path}{suffix}", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise StudyError(f"--storage: {path.parent} cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield lambda: True
    finally:
        os.close(handle)


def reach(url: URL) -> None:
    """One connection to a server: who starts with a wrong address is told at once; only later is a server waited for.

    Raises:
        StudyError: it does not answer.
    """
    try:
        _connect_once(url)
    except (SQLAlchemyError, ImportError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StudyError(f"--storage {shown_url(url)}: cannot be used: {reason}") from error


def wait_for_database(url: URL, gives_up: Callable[[], bool]) -> None:
    """Until a server answers: for a worker, whose study was reached before. A file is always there.

    Raises:
        DBAPIError: `gives_up` said so, or what is wrong does not pass.
    """
    insist(lambda: _connect_once(url), shown_url(url), gives_up)


def _connect_once(url: URL) -> None:
    if sqlite_path(url) is None:
        create_engine(url, poolclass=NullPool, connect_args=connect_args(url)).connect().close()


@contextmanager
def _server_lock(url: URL, purpose: str) -> Iterator[Callable[[], bool]]:
    """On a connection of its own, because the lock belongs to its session and ends with it."""
    key = int.from_bytes(_digest(f"train.study {purpose}")[:8], "big", signed=True)
    options = {"isolation_level": "AUTOCOMMIT", "poolclass": NullPool, "connect_args": connect_args(url)}
    engine = create_engine(url, **options)

    def locked() -> Connection:
        connection = engine.connect()
        try:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": key})
        except BaseException:
            connection.close()
            raise
        return connection

    connection = insist(locked, shown_url(url))
    try:
        yield lambda: _answers(connection)
    finally:
        connection.invalidate()  # ends the session, and with it the lock, also one whose server is gone
        connection.close()


def _answers(connection: Connection) -> bool:
    try:
        connection.execute(text("SELECT 1"))
    except DBAPIError:
        return False
    return True


def _digest(purpose: str) -> bytes:
    return hashlib.sha256(purpose.encode()).digest()
