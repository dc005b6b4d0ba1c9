"""Simulated network between workers and a local server. It delays every byte and counts round trips.

The network runs in a separate process and serves all connections from one epoll loop, so that it uses little CPU time.
"""

from __future__ import annotations

import heapq
import itertools
import multiprocessing
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

CHUNK_BYTES = 262_144


@dataclass
class _End:
    """One of the two sockets of a forwarded connection."""

    socket: socket.socket
    is_client: bool
    unsent: bytearray = field(default_factory=bytearray)
    other: _End | None = None
    has_spoken: bool = False  # since the other end last sent data
    waits_to_send: bool = False


class Network:
    """Running network.

    Attributes:
        port: port to which clients connect instead of the server's port.
    """

    def __init__(self, server_port: int) -> None:
        context = multiprocessing.get_context("fork")
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port, self._server_port = listener.getsockname()[1], server_port
        self._delay_s, self._round_trips = context.RawValue("d", 0.0), context.RawValue("q", 0)
        loop = (listener, server_port, self._delay_s, self._round_trips)
        self._process = context.Process(target=lambda: _Loop(*loop).run(), daemon=True)
        self._process.start()
        listener.close()

    @property
    def pid(self) -> int:
        """Id of the process that forwards data."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def round_trips(self) -> int:
        """Number of times that a client sent data after the server had answered, over all connections."""
        return self._round_trips.value

    def delay(self, seconds: float) -> None:
        """Delay every byte from now on, in each direction."""
        self._delay_s.value = seconds

    def through(self, url: str) -> str:
        """Return a URL of the server that leads through this network."""
        return url.replace(f"127.0.0.1:{self._server_port}/", f"127.0.0.1:{self.port}/")

    def close(self) -> None:
        """Close all connections and stop the process."""
        self._process.kill()
        self._process.join()


class _Loop:
    """Event loop of the process behind a network."""

    def __init__(self, listener: socket.socket, server_port: int, delay_s: Any, round_trips: Any) -> None:
        self._listener, self._server_port = listener, server_port
        self._delay_s, self._round_trips = delay_s, round_trips
        self._poller, self._ends = select.epoll(), dict[int, _End]()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._poller.register(listener, select.EPOLLIN)

    def run(self) -> None:
        """Forward until the process is killed."""
        while True:
            for number, events in self._poller.poll(self._pause_s()):
                if number == self._listener.fileno():
                    self._accept()
                    continue
                end = self._ends.get(number)
                if end is not None and events & select.EPOLLOUT:
                    self._send(end)
                if end is not None and events & ~select.EPOLLOUT:
                    self._receive(end)
            while self._due and self._due[0][0] <= time.monotonic() + 0.0005:
                heapq.heappop(self._due)[2]()

    def _pause_s(self) -> float:
        """Return the seconds until the next delivery, rounded to milliseconds, because epoll rounds up."""
        if not self._due:
            return -1.0
        return max(round(1e3 * (self._due[0][0] - time.monotonic())) - 0.5, 0.0) / 1e3

    def _later(self, delays: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + delays * self._delay_s.value, next(self._numbers), work))

    def _accept(self) -> None:
        client = self._listener.accept()[0]
        self._later(2.0, lambda: self._connect(client))  # a client has its connection after one round trip

    def _connect(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self._server_port))
        ends = _End(client, True), _End(server, False)
        for end, other in (ends, reversed(ends)):
            end.other = other
            end.socket.setblocking(False)
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends[end.socket.fileno()] = end
            self._poller.register(end.socket, select.EPOLLIN)
        ends[1].has_spoken = True

    def _receive(self, end: _End) -> None:
        try:
            content = end.socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        other = end.other
        assert other is not None
        if not content:
            self._poller.unregister(end.socket)
            self._later(1.0, lambda: self._close(end, other))
            return
        self._round_trips.value += end.is_client and other.has_spoken
        end.has_spoken, other.has_spoken = True, False
        self._later(1.0, lambda: self._deliver(other, content))

    def _deliver(self, end: _End, content: bytes) -> None:
        end.unsent += content
        if len(end.unsent) == len(content) and end.socket.fileno() in self._ends:
            self._send(end)

    def _send(self, end: _End) -> None:
        with suppress(BlockingIOError, ConnectionError):
            del end.unsent[: end.socket.send(end.unsent)]
        if end.waits_to_send == bool(end.unsent):
            return
        end.waits_to_send = bool(end.unsent)
        with suppress(OSError):  # its program closed the socket
            self._poller.modify(end.socket, select.EPOLLIN | (select.EPOLLOUT if end.unsent else 0))

    def _close(self, *ends: _End) -> None:
        for end in ends:
            self._ends.pop(end.socket.fileno(), None)
            end.socket.close()
