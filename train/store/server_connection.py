"""PostgreSQL connections that log long waits and abort them on a signal or a timeout.

psycopg waits for a socket in slices of a tenth of a second, between which Python handles signals. Every answer passes
through `Connection.wait`, which handles signals, limits the server's silence and logs it. A connection is opened in a
separate thread, because resolving a host name blocks its thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psycopg
from psycopg import waiting as psycopg_waiting
from psycopg.abc import PQGen
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, Engine

from train.store.address import connect_args, shown_url
from train.store.waiting import GRACE_AFTER_SIGNAL_S, Wait, check_for_signals, current_wait

LOOK_S = 0.1  # interval between checks for a signal
QUIET_S = 5.0  # silence before the first log line
ANSWER_S = 20.0  # silence after which a connection is closed; the server may be frozen or the link lost

Result = TypeVar("Result")


class SilenceError(psycopg.OperationalError):
    """Raised when a server has not answered for too long."""


class Silence:
    """Timer for a server that does not answer."""

    def __init__(self, database: str, what: str, longest_s: float) -> None:
        self._what, self._longest_s = what, longest_s
        self._wait = current_wait() or Wait(f"the database {database}", QUIET_S, 0.0)
        self._began_s = time.monotonic()

    def broken(self) -> None:
        """Restart the timer after an answer from the server."""
        self._began_s = time.monotonic()

    def look(self) -> None:
        """Check the duration of the silence, and log it if a line is due.

        Raises:
            SilenceError: the silence exceeds the limit.
            Interrupted: a signal was received, and the server's grace period is over.
        """
        check_for_signals(GRACE_AFTER_SIGNAL_S)
        lasts_s = time.monotonic() - self._began_s
        if lasts_s >= QUIET_S:
            self._wait.say(f"{self._what} for {lasts_s:.0f} s")
        if lasts_s >= self._longest_s:
            raise SilenceError(f"{self._what} for {lasts_s:.0f} s")


class Connection(psycopg.Connection[Any]):
    """psycopg connection with monitored waits.

    Attributes:
        database: name in the log.
        answer_s: seconds without a byte after which the connection is closed.
    """

    database = "a server"
    answer_s = ANSWER_S

    def wait(self, gen: PQGen[Result], *_: Any, **__: Any) -> Result:
        """Wait as psycopg does, but close the connection on a signal or after a long silence.

        Canceling the query instead would require another wait.
        """
        silence = Silence(self.database, "the server did not answer", self.answer_s)
        try:
            return psycopg_waiting.wait(_watched(gen, silence), self.pgconn.socket, interval=LOOK_S)
        except (KeyboardInterrupt, SystemExit, SilenceError):
            self.close()
            raise


def _watched(gen: PQGen[Result], silence: Silence) -> PQGen[Result]:
    """Run the same steps, and check the server's silence between them."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                silence.broken()
            else:
                silence.look()
            wanted = gen.send(ready)
    except StopIteration as end:
        return end.value


def connect(url: URL, answer_s: float) -> Connection:
    """Open a new connection.

    Raises:
        psycopg.Error: the connection failed, or took longer than `answer_s` seconds.
        Interrupted: a signal was received.
    """
    dialect: Any = url.get_dialect()
    _, parameters = dialect(dbapi=psycopg).create_connect_args(url)
    silence = Silence(shown_url(url), "no connection was made", answer_s)
    connection = _in_thread(lambda: Connection.connect(**parameters | connect_args(url)), silence)
    connection.database, connection.answer_s = shown_url(url), answer_s
    return connection


def _in_thread(work: Callable[[], Connection], silence: Silence) -> Connection:
    """Connect in a thread that is abandoned at a signal or if the silence lasts too long."""
    results: list[Connection | Exception] = []
    is_done, is_left = threading.Event(), threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except (psycopg.Error, OSError, ValueError) as error:  # ValueError: an invalid host name
            results.append(error)
        finally:
            is_done.set()
        if is_left.is_set() and isinstance(results[0], Connection):
            results[0].close()

    threading.Thread(target=run, name="connecting", daemon=True).start()
    try:
        while not is_done.wait(LOOK_S):
            silence.look()
    except BaseException:
        is_left.set()
        raise
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


def engine_options(url: URL, lasts_s: float = math.inf) -> dict[str, Any]:
    """Return the SQLAlchemy options that create connections with this module.

    Args:
        url: URL of the server.
        lasts_s: seconds that an operation may take. This also limits the server's silence, up to `ANSWER_S`.
    """
    # Looking up a type that no study uses would cost each new connection further round trips.
    return {"creator": lambda: connect(url, min(ANSWER_S, lasts_s)), "use_native_hstore": False}


def server_engine(url: URL, lasts_s: float = math.inf, **options: Any) -> Engine:
    """Return an engine with monitored connections."""
    return create_engine(url, **engine_options(url, lasts_s), **options)
