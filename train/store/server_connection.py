"""Connections to a PostgreSQL server that wait neither in silence nor for ever.

psycopg waits for a socket in slices of a tenth of a second, in which Python hears signals. `Connection.wait`, through
which every answer comes, decides what follows from a signal, how long a server may be silent and what the log says
meanwhile. A connection is opened in a thread of its own, because resolving a name blocks the thread that does it.
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

LOOK_S = 0.1  # between looks for a signal
QUIET_S = 5.0  # an answer that comes by then is not worth a line
ANSWER_S = 20.0  # without a byte, after which a connection is given up; a frozen server and a lost link look the same

Result = TypeVar("Result")


class SilenceError(psycopg.OperationalError):
    """A server was silent for too long."""


class Silence:
    """A server that does not answer yet."""

    def __init__(self, database: str, what: str, longest_s: float) -> None:
        self._what, self._longest_s = what, longest_s
        self._wait = current_wait() or Wait(f"the database {database}", QUIET_S, 0.0)
        self._began_s = time.monotonic()

    def broken(self) -> None:
        """The server said something."""
        self._began_s = time.monotonic()

    def look(self) -> None:
        """Say that it lasts, where that is due.

        Raises:
            SilenceError: it lasts too long.
            Interrupted: a signal asked this process to stop, and the server had its time.
        """
        check_for_signals(GRACE_AFTER_SIGNAL_S)
        lasts_s = time.monotonic() - self._began_s
        if lasts_s >= QUIET_S:
            self._wait.say(f"{self._what} for {lasts_s:.0f} s")
        if lasts_s >= self._longest_s:
            raise SilenceError(f"{self._what} for {lasts_s:.0f} s")


class Connection(psycopg.Connection[Any]):
    """psycopg's, looked after while it waits.

    Attributes:
        database: its name in the log.
        answer_s: seconds without a byte after which it is given up.
    """

    database = "a server"
    answer_s = ANSWER_S

    def wait(self, gen: PQGen[Result], *_: Any, **__: Any) -> Result:
        """As psycopg's, but a signal or a long silence closes the connection: to cancel the query is to wait again."""
        silence = Silence(self.database, "the server did not answer", self.answer_s)
        try:
            return psycopg_waiting.wait(_watched(gen, silence), self.pgconn.socket, interval=LOOK_S)
        except (KeyboardInterrupt, SystemExit, SilenceError):
            self.close()
            raise


def _watched(gen: PQGen[Result], silence: Silence) -> PQGen[Result]:
    """The same steps; between two of them the silence is looked at."""
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
    """A new connection.

    Raises:
        psycopg.Error: it cannot be made, or not in `answer_s` seconds.
        Interrupted: a signal asked this process to stop.
    """
    dialect: Any = url.get_dialect()
    _, parameters = dialect(dbapi=psycopg).create_connect_args(url)
    silence = Silence(shown_url(url), "no connection was made", answer_s)
    connection = _in_thread(lambda: Connection.connect(**parameters | connect_args(url)), silence)
    connection.database, connection.answer_s = shown_url(url), answer_s
    return connection


def _in_thread(work: Callable[[], Connection], silence: Silence) -> Connection:
    """Connect in a thread that is left behind when the silence becomes too long, or at a signal."""
    results: list[Connection | Exception] = []
    is_done, is_left = threading.Event(), threading.Event()

    def run() -> None:
        try:
            results.append(work())
        except (psycopg.Error, OSError, ValueError) as error:  # the last: a name that no resolver takes
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
    """What SQLAlchemy is told, so that a server's connections are made here.

    Args:
        url: of the server.
        lasts_s: seconds that an operation may take; the server may be silent as long, and no longer than `ANSWER_S`.
    """
    # To look for a type that no study has would cost each new connection further round trips.
    return {"creator": lambda: connect(url, min(ANSWER_S, lasts_s)), "use_native_hstore": False}


def server_engine(url: URL, lasts_s: float = math.inf, **options: Any) -> Engine:
    """An engine with such connections."""
    return create_engine(url, **engine_options(url, lasts_s), **options)
