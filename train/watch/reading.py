"""Reading a database that others write, and leaving no trace in it.

Optuna's own storage object creates tables and stamps versions when it is made, so a watcher does not make one. SQLite
files are opened read-only. A file with a write-ahead log needs care: even a read-only connection creates the `-wal` and
`-shm` files where they are not there, and cannot remove them again. They are not there when nobody has the database
open; then it is read as an immutable file, and read again should anybody have opened or changed it meanwhile.
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

PATIENCE_S = 2.0  # with a locked file, before this says so
ANSWER_S = 4.0  # that a server may be silent; less than after what a wait is logged, which would break the screen
ATTEMPTS = 5  # to read a file that others open or change just then
WRITE_AHEAD = 2  # byte 18 of an SQLite file

T = TypeVar("T")


class UnavailableError(UserError):
    """The database is there but cannot be read now: locked, damaged or away. One line, ready to be shown."""

    exit_code = 1


def read(url: URL, work: Callable[[Connection], T]) -> T:
    """What `work` finds in one read-only transaction.

    Raises:
        StudyError: there is no such database, or it is not one.
        UnavailableError: it cannot be read now.
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
    from train.store.server_connection import server_engine  # needs psycopg, which SQLite does without

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
        except (SQLAlchemyError, StudyError, ValueError):  # half a change can look like any of them
            if before is None or before == _write_state(path):
                raise
        else:
            if before is None or before == _write_state(path):
                return found
        time.sleep(0.05)
    raise UnavailableError(f"{path} cannot be read now: it is opened and closed again and again")


def _write_state(path: Path) -> tuple[int, int] | None:
    """Time and size of a file that nobody has open for writing; None where SQLite's own locks are to be used."""
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
