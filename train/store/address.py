"""Database URLs: accepted forms, and text for logs without passwords."""

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

LOCK_TIMEOUT_S = 10  # seconds for which a reader waits; workers wait indefinitely (`train.store.retrying`)
# Limits of one attempt, during which signals are not handled: for a locked SQLite file, a connection to a server, and
# a row that another session has locked.
ATTEMPT_S, CONNECT_TIMEOUT_S, SERVER_LOCK_TIMEOUT_S = 1, 4, 2
UNACKNOWLEDGED_MS = 20_000  # after this time without an acknowledgment, either side closes the connection
SQLITE_HEADER = b"SQLite format 3\x00"
HIDDEN = "***"
HOW_TO_WRITE_PASSWORDS = "In a user or password, write @ as %40, / as %2F and : as %3A, or set PGPASSWORD instead"


def absolute_url(url: str, base: Path) -> URL:
    """Return the URL of the storage, with a relative SQLite path resolved against `base`.

    Raises:
        StudyError: the URL is not a database URL, or the database would not be persistent.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return _with_psycopg(parsed)
    if parsed.get_backend_name() != "sqlite":
        raise StudyError(
            f"--storage {shown_url(parsed)}: {parsed.get_backend_name()} is not supported, because the workers need a "
            "lock; use sqlite:///path/to/file.db or postgresql://user@host/name"
        )
    if parsed.database in (None, "", ":memory:"):
        raise StudyError(
            f"--storage {shown_url(parsed)} names no file, so nothing would be stored; use sqlite:///path/to/file.db"
        )
    return parsed.set(database=str(base / parsed.database))


def _parsed(text: str) -> URL:
    """Return the URL with its password moved to the field that logs and pages hide."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # ValueError: the port is not a number
        may_be_secret = any(mark in text for mark in "@=")
        raise StudyError(
            f"--storage{'' if may_be_secret else f' {text}'}: not a database URL; use sqlite:///path/to/file.db or "
            f"postgresql://user@host/name. {HOW_TO_WRITE_PASSWORDS}"
        ) from error
    if text.count("@") > 1 and url.get_backend_name() != "sqlite":  # the start of the host is ambiguous
        raise StudyError(f"--storage contains more than one @. {HOW_TO_WRITE_PASSWORDS}")
    password, user = url.query.get("password"), url.query.get("user", url.username or "")
    if password is None:
        return url
    if not isinstance(password, str) or not isinstance(user, str) or url.password not in (None, password):
        raise StudyError(f"--storage contains more than one user or password. {HOW_TO_WRITE_PASSWORDS}")
    # SQLAlchemy writes a password only if there is a user, even an empty one.
    return url.difference_update_query(["password", "user"]).set(username=user, password=password)


def _with_psycopg(url: URL) -> URL:
    """Select psycopg 3 for any driver in the URL, because its waits can be monitored."""
    if importlib.util.find_spec("psycopg") is None:
        raise StudyError(
            f"--storage {shown_url(url)}: PostgreSQL requires psycopg; run pip install -r requirements-postgresql.txt"
        )
    return url.set(drivername="postgresql+psycopg")


def sqlite_path(url: URL) -> Path | None:
    """Return the path of the database file, or None for a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def connect_args(url: URL) -> dict[str, Any]:
    """Return connection options with which each side detects a lost peer within a minute.

    Keepalives cover idle connections. Unacknowledged data has a separate time limit.
    """
    ours = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    user_timeout = {"tcp_user_timeout": UNACKNOWLEDGED_MS}
    # Heartbeats are stored without a time zone, so every connection sets the same one.
    settings = {f"tcp_{name}": value for name, value in ours.items()} | {
        **user_timeout,
        "timezone": "UTC",
        "lock_timeout": f"{SERVER_LOCK_TIMEOUT_S}s",
    }
    options = " ".join([*(f"-c {name}={value}" for name, value in settings.items()), str(url.query.get("options", ""))])
    # Preparing a statement costs an additional round trip, and a pooler may not support prepared statements.
    # Without client_encoding, text from an SQL_ASCII database arrives as bytes.
    return {"connect_timeout": CONNECT_TIMEOUT_S, "client_encoding": "utf8", **ours, **user_timeout,
            "options": options.strip(), "prepare_threshold": None}  # fmt: skip


def shown_url(url: URL) -> str:
    """Return the path of an SQLite file, or a server's URL without its password and option values."""
    path = sqlite_path(url)
    if path is not None:
        return str(path)
    shown = url.set(query={}).render_as_string(hide_password=True)
    return f"{shown}?{HIDDEN}" if url.query else shown


def without_password(argument: str) -> str:
    """Replace the password and the options of a URL in a command-line argument with ***."""
    argument = re.sub(r"(:/+[^:/?]*):.*@", rf"\1:{HIDDEN}@", argument, flags=re.DOTALL)
    return re.sub(r"(:/+[^?]*)\?.*", rf"\1?{HIDDEN}", argument, flags=re.DOTALL)


def command_text(argv: Sequence[str]) -> str:
    """Return a command line for pages that may be shared, without passwords of database URLs."""
    shown = ((argument, without_password(argument)) for argument in argv)
    return " ".join(shlex.quote(argument) if argument == safe else safe for argument, safe in shown)
