"""HTTP transport of the sources: timeouts, retries with increasing waits, and a rate limit.

There are two layers of retries. If a request fails temporarily (429, 500, 502, 503, 504), or its connection is refused
or dropped, urllib3 sends it again and respects `Retry-After`. If a body is truncated or invalid, `patiently` downloads
the whole symbol-month again. Other errors (403, 404, 422) are final.
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
    """Timeouts and retries of a download. Times are in seconds."""

    connect_s: float = 5.0  # timeout of a connection
    read_s: float = 30.0  # timeout of the next bytes of a response
    retries: int = 4  # retries per request
    backoff_s: float = 0.5  # waits are 0, then 2, 4, ... times this value
    longest_wait_s: float = 60.0  # upper limit of a wait, even if Retry-After is longer
    damaged_tries: int = 3  # tries per symbol-month if its body is damaged
    damaged_wait_s: float = 1.0  # wait before the second try, doubled for each further try
    requests_per_window: int = 180  # Alpaca allows 200 per minute
    window_s: float = 60.0


class DamagedAnswerError(Exception):
    """A response that is truncated or contains something other than bars."""


class Pacer:
    """Rate limiter: at most `limit` requests start within any `window_s` seconds, and further requests wait."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._started: deque[float] = deque(maxlen=limit)
        self._window_s = window_s

    def wait(self) -> None:
        """Block until the next request may start."""
        if len(self._started) == self._started.maxlen:
            time.sleep(max(0.0, self._started[0] + self._window_s - time.monotonic()))
        self._started.append(time.monotonic())


class _LoggedRetry(Retry):
    """urllib3's retries, logged, counted by the pacer, and with waits of at most `longest_wait_s`."""

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
        LOGGER.info("%s; trying again", f"the server returned {last.status}" if last.status else _cause(last.error))
        super().sleep(response)
        if self.pacer is not None:
            self.pacer.wait()


class PatientAdapter(HTTPAdapter):
    """HTTP adapter that adds timeouts, retries and an optional rate limit to every request of a session."""

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
        """Send a request with the adapter's timeouts, after waiting for the rate limit."""
        if self._pacer is not None:
            self._pacer.wait()
        options["timeout"] = self._timeout
        return super().send(request, *args, **options)


def be_patient(session: requests.Session, patience: Patience, *, is_paced: bool = False) -> None:
    """Mount one PatientAdapter for all requests of the session."""
    pacer = Pacer(patience.requests_per_window, patience.window_s) if is_paced else None
    adapter = PatientAdapter(patience, pacer)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)


def patiently(fetch: Callable[[], Result], what: str, patience: Patience) -> Result:
    """Return the result of `fetch`, retried if its body is damaged. `what` names the download in the error.

    Raises:
        BarsError: all tries failed, or the error is final.
    """
    for tried in range(1, patience.damaged_tries + 1):
        try:
            return fetch()
        except (requests.RequestException, DamagedAnswerError) as error:
            fault = error
        if tried == patience.damaged_tries or not _is_damage(fault):
            raise BarsError(f"{what}: {_cause(fault)}; try again later") from fault
        LOGGER.info("%s: %s; downloading it again", what, _cause(fault))
        time.sleep(min(patience.damaged_wait_s * 2 ** (tried - 1), patience.longest_wait_s))
    raise BarsError(f"{what}: damaged_tries must be at least 1; received {patience.damaged_tries}")


def _is_damage(error: Exception) -> bool:
    """Return True if a response started and was invalid. urllib3 has already retried earlier failures."""
    if isinstance(error, (DamagedAnswerError, ChunkedEncodingError, ContentDecodingError)):
        return True
    is_given_up = any(isinstance(argument, MaxRetryError) for argument in error.args)
    return isinstance(error, requests.ConnectionError) and not is_given_up


def _cause(error: BaseException | None) -> str:
    """Return the innermost cause in one line, such as `Connection refused`."""
    if error is None:
        return "no response"
    inner = [getattr(error, "reason", None), *error.args, error.__cause__]
    inner = [cause for cause in inner if isinstance(cause, BaseException)]
    if inner and not isinstance(error, DamagedAnswerError):
        return _cause(inner[0])
    return "the response was truncated" if "IncompleteRead" in repr(error) else one_line(error)


def refusal(status: int | None, detail: str) -> str:
    """Describe an HTTP error and state whether to try again."""
    advice = "try again later" if status in PASSING_FAULTS else "check ticker and dates"
    return f"the server returned {status} {detail}; {advice}"


def one_line(error: BaseException) -> str:
    """Return an error's text, shortened and without line breaks."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def sent_at(response: requests.Response) -> datetime | None:
    """Return the server's time at its response, UTC, or None if the response has no date."""
    try:
        moment = parsedate_to_datetime(response.headers.get("Date", ""))
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def check_reachable(url: str, patience: Patience) -> None:
    """Raise BarsError within `connect_s` if the server is unreachable, including the name lookup.

    Behind a proxy, nothing is checked, because only the proxy can connect.
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

    # The system's name lookup has no timeout, so it runs in a thread.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience.connect_s)
    fault = outcome[0] if outcome else f"no response within {patience.connect_s:g} s"
    if fault:
        raise BarsError(
            f"{host} is unreachable ({fault}); check the network, or use your own bars: "
            "scripts/data/download_bars.py --source file --bars FILE"
        )
