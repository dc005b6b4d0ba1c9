"""Addresses of databases: which are accepted, and how they are shown."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from train.records.errors import StudyError

LOCK_TIMEOUT_S = 10  # of one attempt at a locked SQLite file; then it is tried again (`train.store.retrying`)
CONNECT_TIMEOUT_S = 10  # to a server
SQLITE_HEADER = b"SQLite format 3\x00"


def absolute_url(url: str, base: Path) -> URL:
    """The storage's URL, a relative SQLite path taken relative to `base`.

    Raises:
        StudyError: not a database URL, or one that keeps nothing.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # the second: a port that is no number
        raise StudyError(
            f"--storage {without_password(url)}: not a database URL; give sqlite:///path/to/file.db or "
            "postgresql://user@host/name"
        ) from error
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return _with_psycopg(parsed)
    if parsed.get_backend_name() != "sqlite":
        raise StudyError(
            f"--storage {shown_url(parsed)}: {parsed.get_backend_name()} has no lock under which this program's "
            "workers could take turns; give sqlite:///path/to/file.db or postgresql://user@host/name"
        )
    if parsed.database in (None, "", ":memory:"):
        raise StudyError(f"--storage {url}: names no file, so nothing would be kept; give sqlite:///path/to/file.db")
    return parsed.set(database=str(base / parsed.database))


def _with_psycopg(url: URL) -> URL:
    """`postgresql://` means psycopg 3 here, whatever SQLAlchemy's version takes it for; a named driver stays."""
    if "+" in url.drivername:
        return url
    if importlib.util.find_spec("psycopg") is None:
        raise StudyError(
            f"--storage {shown_url(url)}: PostgreSQL needs psycopg; pip install -r requirements-postgresql.txt"
        )
    return url.set(drivername="postgresql+psycopg")


def sqlite_path(url: URL) -> Path | None:
    """The database file, None for a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def connect_args(url: URL) -> dict[str, Any]:
    """A server's machine that vanishes is noticed in a minute, and at its end a worker's that vanishes too."""
    if url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    ours = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    theirs = " ".join(f"-c tcp_{name}={value}" for name, value in ours.items())
    own = {} if "options" in url.query else {"options": theirs}
    # Text comes as bytes from a database without an encoding (SQL_ASCII) unless one is asked for.
    return {"connect_timeout": CONNECT_TIMEOUT_S, "client_encoding": "utf8", **ours, **own}


def shown_url(url: URL) -> str:
    """The file's path, or the server's URL without its password."""
    return str(sqlite_path(url) or url.render_as_string(hide_password=True))


def without_password(text: str) -> str:
    """The text with the password of every URL in it replaced by ***."""
    return re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)


def command_text(argv: Sequence[str]) -> str:
    """A command line to show on pages, which are passed on: without the password of a database URL."""
    return without_password(shlex.join(argv))
