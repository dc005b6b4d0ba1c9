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

LOCK_TIMEOUT_S = 10  # that a reader waits for a locked database; a worker waits on (`train.store.retrying`)
# Of one attempt at a database, in which no signal is heard: a locked SQLite file, a connection to a server, and a row
# that another session of the server has locked.
ATTEMPT_S, CONNECT_TIMEOUT_S, SERVER_LOCK_TIMEOUT_S = 1, 4, 2
UNACKNOWLEDGED_MS = 20_000  # after which either end gives a connection up
SQLITE_HEADER = b"SQLite format 3\x00"
HIDDEN = "***"
HOW_TO_WRITE_PASSWORDS = (
    "In a user or password write @ as %40, / as %2F and : as %3A, or leave the password out and set PGPASSWORD"
)


def absolute_url(url: str, base: Path) -> URL:
    """The storage's URL, a relative SQLite path taken relative to `base`.

    Raises:
        StudyError: not a database URL, or one that keeps nothing.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return _with_psycopg(parsed)
    if parsed.get_backend_name() != "sqlite":
        raise StudyError(
            f"--storage {shown_url(parsed)}: {parsed.get_backend_name()} has no lock under which this program's "
            "workers could take turns; give sqlite:///path/to/file.db or postgresql://user@host/name"
        )
    if parsed.database in (None, "", ":memory:"):
        raise StudyError(
            f"--storage {shown_url(parsed)}: names no file, so nothing would be kept; give sqlite:///path/to/file.db"
        )
    return parsed.set(database=str(base / parsed.database))


def _parsed(text: str) -> URL:
    """The URL, its password in the one place where it is hidden from logs and pages."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # the second: a port that is no number
        may_be_secret = any(mark in text for mark in "@=")
        raise StudyError(
            f"--storage{'' if may_be_secret else f' {text}'}: not a database URL; give sqlite:///path/to/file.db or "
            f"postgresql://user@host/name. {HOW_TO_WRITE_PASSWORDS}"
        ) from error
    if text.count("@") > 1 and url.get_backend_name() != "sqlite":  # where the host begins is a guess
        raise StudyError(f"--storage has more than one @. {HOW_TO_WRITE_PASSWORDS}")
    password, user = url.query.get("password"), url.query.get("user", url.username or "")
    if password is None:
        return url
    if not isinstance(password, str) or not isinstance(user, str) or url.password not in (None, password):
        raise StudyError(f"--storage gives more than one user or password. {HOW_TO_WRITE_PASSWORDS}")
    # Without a user, be it an empty one, SQLAlchemy writes no password.
    return url.difference_update_query(["password", "user"]).set(username=user, password=password)


def _with_psycopg(url: URL) -> URL:
    """psycopg 3, whatever driver is named: its waiting can be looked after (`train.store.server_connection`)."""
    if importlib.util.find_spec("psycopg") is None:
        raise StudyError(
            f"--storage {shown_url(url)}: PostgreSQL needs psycopg; pip install -r requirements-postgresql.txt"
        )
    return url.set(drivername="postgresql+psycopg")


def sqlite_path(url: URL) -> Path | None:
    """The database file, None for a server."""
    return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None


def connect_args(url: URL) -> dict[str, Any]:
    """A server's machine that vanishes is noticed in a minute, and at its end a worker's that vanishes too.

    Keepalives cover an idle connection. What was sent and never acknowledged has a time limit of its own.
    """
    ours = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    user_timeout = {"tcp_user_timeout": UNACKNOWLEDGED_MS}
    # Heartbeats are the server's clock in a column without a zone, so every connection asks for the same zone.
    settings = {f"tcp_{name}": value for name, value in ours.items()} | {
        **user_timeout,
        "timezone": "UTC",
        "lock_timeout": f"{SERVER_LOCK_TIMEOUT_S}s",
    }
    options = " ".join([*(f"-c {name}={value}" for name, value in settings.items()), str(url.query.get("options", ""))])
    # A statement that is prepared costs one more round trip when it is, and a pooler may not know it.
    # Text comes as bytes from a database without an encoding (SQL_ASCII) unless one is asked for.
    return {"connect_timeout": CONNECT_TIMEOUT_S, "client_encoding": "utf8", **ours, **user_timeout,
            "options": options.strip(), "prepare_threshold": None}  # fmt: skip


def shown_url(url: URL) -> str:
    """The file's path, or the server's URL without its password and without the values of its options."""
    path = sqlite_path(url)
    if path is not None:
        return str(path)
    shown = url.set(query={}).render_as_string(hide_password=True)
    return f"{shown}?{HIDDEN}" if url.query else shown


def without_password(argument: str) -> str:
    """An argument of a command line; of a URL in it, the password and the options are replaced by ***."""
    argument = re.sub(r"(:/+[^:/?]*):.*@", rf"\1:{HIDDEN}@", argument, flags=re.DOTALL)
    return re.sub(r"(:/+[^?]*)\?.*", rf"\1?{HIDDEN}", argument, flags=re.DOTALL)


def command_text(argv: Sequence[str]) -> str:
    """A command line to show on pages, which are passed on: without the password of a database URL."""
    shown = ((argument, without_password(argument)) for argument in argv)
    return " ".join(shlex.quote(argument) if argument == safe else safe for argument, safe in shown)
