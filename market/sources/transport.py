"""How both download sources talk to a server: time-outs, retries with growing waits, and a limit on requests.

Two layers of patience. One request that is answered with a passing fault (429, 500, 502, 503, 504), or that finds the
connection refused or dropped, is sent again by urllib3, which waits as long as `Retry-After` says. A body that arrives
cut short, or is not what it should be, makes the whole symbol-month be fetched again by `patiently`. Other answers
(403, 404, 422) are final.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError, ContentDecodingError
from urllib3.exceptions import MaxRetryError
from urllib3.util.retry import Retry

from market.errors import BarsError

PASSING_FAULTS = (429, 500, 502, 503, 504)

LOGGER = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long a download waits and how often it tries again. Times in seconds."""

    connect_s: float = 5.0  # for a connection
    read_s: float = 30.0  # for the next bytes of an answer
    retries: int = 4  # of one request
    backoff_s: float = 0.5  # the waits are 0, then twice this, four times this, ...
    longest_wait_s: float = 60.0  # also where Retry-After asks for more
    damaged_tries: int = 3  # of a symbol-month whose body is damaged
    damaged_wait_s: float = 1.0  # before the second try, then twice this, ...
    requests_per_window: int = 180  # Alpaca allows 200 a minute
    window_s: float = 60.0


class DamagedAnswerError(Exception):
    """An answer that arrived, but cut short or with something else in it than bars."""


class Pacer:
    """Lets at most `limit` requests start within any `window_s` seconds; the next one waits its turn."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._started: deque[float] = deque(maxlen=limit)
        self._window_s = window_s

    def wait(self) -> None:
        """Return when the next request may start."""
        if len(self._started) == self._started.maxlen:
            time.sleep(max(0.0, self._started[0] + self._window_s - time.monotonic()))
        self._started.append(time.monotonic())


class _LoggedRetry(Retry):
    """urllib3's retries, said in the log, each one counted by the pacer, and no wait longer than `longest_wait_s`."""

    pacer: Pacer | None = None
    longest_wait_s = Patience.longest_wait_s

    def new(self, **options: Any) -> Self:
        retry = super().new(**options)
        retry.pacer, retry.longest_wait_s = self.pacer, self.longest_wait_s
        return retry

    def parse_retry_after(self, retry_after: str) -> float:
        return min(super().parse_retry_after(retry_after), self.longest_wait_s)

    def sleep(self, response: Any = None) -> None:
        last = next(reversed(self.history))
        LOGGER.info("%s; trying again", f"the server answers {last.status}" if last.status else _cause(last.error))
        super().sleep(response)
        if self.pacer is not None:
            self.pacer.wait()


class PatientAdapter(HTTPAdapter):
    """Gives every request of a session time-outs, retries and, with a pacer, a limit per minute."""

    def __init__(self, patience: Patience, pacer: Pacer | None = None) -> None:
        retry = _LoggedRetry(
            total=patience.retries,
            redirect=False,
            allowed_methods={"GET", "HEAD"},
            status_forcelist=PASSING_FAULTS,
            backoff_factor=patience.backoff_s,
            backoff_max=patience.longest_wait_s,
            raise_on_status=False,
        )
        retry.pacer, retry.longest_wait_s = pacer, patience.longest_wait_s
        self._pacer = pacer
        self._timeout = (patience.connect_s, patience.read_s)
        super().__init__(max_retries=retry)

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """As HTTPAdapter's."""
        if self._pacer is not None:
            self._pacer.wait()
        options["timeout"] = self._timeout
        return super().send(request, *args, **options)


def be_patient(session: requests.Session, patience: Patience, *, is_paced: bool = False) -> None:
    """Send every request of the session through one PatientAdapter."""
    pacer = Pacer(patience.requests_per_window, patience.window_s) if is_paced else None
    adapter = PatientAdapter(patience, pacer)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)


def patiently(fetch: Callable[[], Result], what: str, patience: Patience) -> Result:
    """What `fetch` returns, tried again while its body arrives damaged; `what` names it in the error."""
    for tried in range(1, patience.damaged_tries + 1):
        try:
            return fetch()
        except (requests.RequestException, DamagedAnswerError) as error:
            fault = error
        if tried == patience.damaged_tries or not _is_damage(fault):
            raise BarsError(f"{what}: {_cause(fault)}; try again later") from fault
        LOGGER.info("%s: %s; fetching it again", what, _cause(fault))
        time.sleep(min(patience.damaged_wait_s * 2 ** (tried - 1), patience.longest_wait_s))
    raise BarsError(f"{what}: damaged_tries is {patience.damaged_tries}, expected at least 1")


def _is_damage(error: Exception) -> bool:
    """Whether the answer began and was bad; urllib3 has retried all that happens before an answer."""
    if isinstance(error, (DamagedAnswerError, ChunkedEncodingError, ContentDecodingError)):
        return True
    is_given_up = any(isinstance(argument, MaxRetryError) for argument in error.args)
    return isinstance(error, requests.ConnectionError) and not is_given_up


def _cause(error: BaseException | None) -> str:
    """The innermost cause in one line: `Connection refused` rather than a pool's name, address and retries."""
    if error is None:
        return "no answer"
    inner = [getattr(error, "reason", None), *error.args, error.__cause__]
    inner = [cause for cause in inner if isinstance(cause, BaseException)]
    if inner and not isinstance(error, DamagedAnswerError):
        return _cause(inner[0])
    return "the answer was cut short" if "IncompleteRead" in repr(error) else one_line(error)


def refusal(status: int | None, detail: str) -> str:
    """What an answer without bars means, and whether it is worth while to ask again."""
    advice = "try again later" if status in PASSING_FAULTS else "the same request will not do; check ticker and dates"
    return f"the server answers {status} {detail}; {advice}"


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, shortened."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def sent_at(response: requests.Response) -> datetime | None:
    """The server's own time when it answered, UTC; None where it does not tell."""
    try:
        moment = parsedate_to_datetime(response.headers.get("Date", ""))
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def check_reachable(url: str, patience: Patience) -> None:
    """Raise BarsError within `connect_s` when the server cannot be reached, name look-up included.

    Behind a proxy only the proxy can tell, so nothing is checked then.
    """
    if requests.utils.get_environ_proxies(url):
        return
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    outcome: list[str] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), patience.connect_s).close()
            outcome.append("")
        except OSError as error:
            outcome.append(error.strerror or str(error))

    # The system's name look-up has no time-out of its own, so a thread waits for it.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience.connect_s)
    fault = outcome[0] if outcome else f"no answer in {patience.connect_s:g} s"
    if fault:
        raise BarsError(
            f"{host} cannot be reached ({fault}); check the network, or use bars that you have: "
            "scripts/data/download_bars.py --source file --bars FILE"
        )
