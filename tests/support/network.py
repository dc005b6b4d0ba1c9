"""A network between a program and a server on this machine: it delays, loses, forgets and counts what it carries."""

from __future__ import annotations

import queue
import socket
import threading
import time
from contextlib import suppress

TO_SERVER, TO_CLIENT = "to the server", "to the client"


class Network:
    """Listens, on loopback unless told otherwise, and forwards each connection to the server's port.

    Attributes:
        delay_s: that every byte takes in each direction.
        lost: directions in which nothing arrives for now. Nothing is reset; afterwards it does, as TCP sends it again.
        round_trips: how often a client sent something after the server had spoken or the connection began. Opening a
            connection counts as one more.
    """

    def __init__(self, server_port: int, delay_s: float = 0.0, address: str = "127.0.0.1") -> None:
        self.delay_s, self.lost, self.round_trips = delay_s, set[str](), 0
        self._server_port = server_port
        self._forgotten_before = 0
        self._left_bytes: int | None = None  # to the server, before everything to it is lost
        self._n_connections = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server((address, 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def of(self, url: str) -> str:
        """A URL of the server, through this network."""
        return url.replace(f"127.0.0.1:{self._server_port}/", f"{self._listener.getsockname()[0]}:{self.port}/")

    def forget(self) -> None:
        """Leave every open connection half open: the server's end is gone and the client is not told."""
        self._forgotten_before = self._n_connections

    def cut_after(self, n_bytes: int) -> None:
        """Lose everything to the server after so many more bytes: in the middle of an upload."""
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
                if direction == TO_SERVER:
                    sink.close()
                continue
            with suppress(OSError):
                if content:
                    sink.sendall(content)
                else:
                    sink.shutdown(socket.SHUT_WR)
