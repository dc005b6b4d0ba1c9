"""A forwarder to a PostgreSQL server that can lose the answer to a commit or an insert, which was carried out."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable


class CutAnswers:
    """Listens on loopback and forwards each connection to the server's port."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._left: int | None = None
        self._meanwhile: Callable[[], object] = lambda: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, nth: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Lose the answer to the nth commit or insert from now, counted from 1, and the connection with it.

        Most inserts are committed by themselves. `meanwhile` is called after it and before the connection dies.
        """
        self._left, self._meanwhile = nth, meanwhile

    def has_cut(self) -> bool:
        """Whether it came to that; otherwise no answer is lost any more."""
        left, self._left = self._left, None
        return left == 0

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    content = source.recv(65536)
                    if not content:
                        return
                    (server if source is client else client).sendall(content)
                    if source is client and (b"COMMIT" in content or b"INSERT" in content) and self._left:
                        self._left -= 1
                        if self._left == 0:
                            server.recv(65536)
                            self._meanwhile()
                            return
