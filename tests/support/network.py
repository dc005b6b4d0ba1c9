"""Simulated network between a program and a local server. It delays, drops and counts traffic."""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress

TO_SERVER, TO_CLIENT = "to the server", "to the client"


class Network:
    """Simulated network that listens on `address` and forwards each connection to the server's port.

    Attributes:
        delay_s: delay of every byte in each direction.
        lost: directions in which nothing arrives at the moment. Connections are not reset, and the data arrives later,
            as TCP retransmits it.
        round_trips: number of times that a client sent something after the server had answered or the connection was
            opened, plus one per opened connection.
    """

    def __init__(self, server_port: int, delay_s: float = 0.0, address: str = "127.0.0.1") -> None:
        self.delay_s, self.lost, self.round_trips = delay_s, set[str](), 0
        self._server_port = server_port
        self._forgotten_before = 0
        self._left_bytes: int | None = None  # bytes that still reach the server before its direction is lost
        self._n_connections = 0
        self._servers: list[socket.socket] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server((address, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def of(self, url: str) -> str:
        """Return a URL of the server that leads through this network."""
        return url.replace(f"127.0.0.1:{self._server_port}/", f"{self._listener.getsockname()[0]}:{self.port}/")

    def forget(self) -> None:
        """Make every open connection half open: the server's end is closed, and the client does not notice."""
        self._forgotten_before = self._n_connections
        for server in self._servers:
            with suppress(OSError):  # closed already
                server.shutdown(socket.SHUT_RDWR)  # `close` would not end a connection that a thread is reading
        self._servers.clear()

    def cut_after(self, n_bytes: int) -> None:
        """Drop everything sent to the server after `n_bytes` more bytes, for example during an upload."""
        self._left_bytes = n_bytes

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            number, self._n_connections = self._n_connections, self._n_connections + 1
            with self._lock:
                self.round_trips += 1
            time.sleep(2.0 * self.delay_s)  # a client has its connection after one round trip
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except ConnectionRefusedError:  # the server is not running
                client.close()
                continue
            self._servers.append(server)
            spoke = [TO_CLIENT]
            for direction, source, sink in ((TO_SERVER, client, server), (TO_CLIENT, server, client)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                under_way: queue.Queue[tuple[float, bytes]] = queue.Queue()
                receiving, delivering = (direction, source, under_way, spoke), (number, direction, sink, under_way)
                threading.Thread(target=self._receive, args=receiving, daemon=True).start()
                threading.Thread(target=self._deliver, args=delivering, daemon=True).start()

    def _receive(self, direction: str, source: socket.socket, under_way: queue.Queue, spoke: list[str]) -> None:
        content = b"begins"
        while content:
            content = b""
            with suppress(OSError):
                content = source.recv(65536)
            with self._lock:
                self.round_trips += direction == TO_SERVER and spoke[0] == TO_CLIENT and bool(content)
                spoke[0] = direction
                if direction == TO_SERVER and self._left_bytes is not None:
                    self._left_bytes -= len(content)
                    if self._left_bytes < 0:
                        self.lost, self._left_bytes = {TO_SERVER}, None
            under_way.put((time.monotonic() + self.delay_s, content))

    def _deliver(self, number: int, direction: str, sink: socket.socket, under_way: queue.Queue) -> None:
        content = b"begins"
        while content:
            due_s, content = under_way.get()
            time.sleep(max(due_s - time.monotonic(), 0.0))
            while direction in self.lost:
                time.sleep(0.01)
            if number < self._forgotten_before:
                continue
            with suppress(OSError):
                if content:
                    sink.sendall(content)
                else:
                    sink.shutdown(socket.SHUT_WR)
