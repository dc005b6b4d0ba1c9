"""Read-only access to a database that other processes write.

Creating Optuna's storage object also creates tables and writes versions, so the dashboard does not use it. SQLite files
are opened read-only. Even a read-only connection to a file with a write-ahead log creates missing `-wal` and `-shm`
files, and it cannot remove them. These files are missing if no process has the database open. The file is then read as
immutable, and read again if a process opened or changed it in the meantime.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from market.errors import UserError
from train.records.errors import StudyError
from train.store.address import SQLITE_HEADER, shown_url, sqlite_path

PATIENCE_S = 2.0  # timeout for a locked file
# Timeout for a server. It is shorter than the delay after which a wait is logged; a log line would break the screen.
ANSWER_S = 4.0
ATTEMPTS = 5  # reads of a file that other processes keep opening or changing
WRITE_AHEAD = 2  # byte 18 of an SQLite file

T = TypeVar("T")


class UnavailableError(UserError):
    """Raised if the database exists but is locked, damaged or unreachable. The message is one line for display."""

    exit_code = 1


def read(url: URL, work: Callable[[Connection], T]) -> T:
    """Return the result of `work` in one read-only transaction.

    Raises:
        StudyError: the database does not exist, or the file is not a database.
        UnavailableError: the database cannot be read now.
    """
    path = sqlite_path(url)
    shown = shown_url(url)
    try:
        return _read_server(url, work) if path is None else _read_file(path, work)
    except ImportError as error:
        raise StudyError(f"--storage {shown}: its driver is not installed: {error}") from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise UnavailableError(f"{shown} cannot be read now: {reason}") from error


def _read_server(url: URL, work: Callable[[Connection], T]) -> T:
    from train.store.server_connection import server_engine  # needs psycopg, which SQLite users may not have

    engine = server_engine(url, ANSWER_S, poolclass=NullPool)
    with engine.connect() as connection:
        options = {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        return work(connection.execution_options(**options))


def _read_file(path: Path, work: Callable[[Connection], T]) -> T:
    for _ in range(ATTEMPTS):
        before = _write_state(path)
        try:
            with _open_file(path, is_immutable=before is not None) as connection:
                found = work(connection)
        except (SQLAlchemyError, StudyError, ValueError):  # a half-written change can raise any of these
            if before is None or before == _write_state(path):
                raise
        else:
            if before is None or before == _write_state(path):
                return found
        time.sleep(0.05)
    raise UnavailableError(f"{path} cannot be read now: other processes keep opening and closing it")


def _write_state(path: Path) -> tuple[int, int] | None:
    """Return the time and size of a file that no process has open, or None if SQLite's own locks must be used."""
    try:
        with path.open("rb") as file:
            head = file.read(len(SQLITE_HEADER) + 4)
        stat = path.stat()
    except FileNotFoundError as error:
        raise StudyError(f"there is no database {path}") from error
    except OSError as error:
        raise StudyError(f"{path} cannot be read: {error.strerror}") from error
    if not head.startswith(SQLITE_HEADER):
        raise StudyError(f"{path} is empty" if not head else f"{path} is not an SQLite database")
    is_quiet = head[18] == WRITE_AHEAD and not Path(f"{path}-wal").exists()
    return (stat.st_mtime_ns, stat.st_size) if is_quiet else None


@contextmanager
def _open_file(path: Path, is_immutable: bool) -> Iterator[Connection]:
    uri = path.absolute().as_uri() + ("?immutable=1" if is_immutable else "?mode=ro")

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=PATIENCE_S)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    with engine.connect() as connection:
        yield connection
