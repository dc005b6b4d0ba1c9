"""The network between simulated workers and their server, and what is made of a trace."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from benchmarks.delayed_network import Network
from benchmarks.many_workers import limit_of
from benchmarks.simulated_workers import inside


def echoing(server: socket.socket) -> None:
    while True:
        client = server.accept()[0]
        threading.Thread(target=echo, args=(client,), daemon=True).start()


def echo(client: socket.socket) -> None:
    while content := client.recv(65536):
        client.sendall(content)
    client.close()


@pytest.fixture
def network() -> Network:
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=echoing, args=(server,), daemon=True).start()
    made = Network(server.getsockname()[1])
    yield made
    made.close()


def asked(client: socket.socket, content: bytes) -> float:
    """Seconds until all of it has come back."""
    began_s, got = time.monotonic(), b""
    client.sendall(content)
    while len(got) < len(content):
        got += client.recv(65536)
    assert got == content
    return time.monotonic() - began_s


def test_every_byte_is_delayed_in_both_directions_and_round_trips_are_counted(network):
    with socket.create_connection(("127.0.0.1", network.port)) as client:
        without = min(asked(client, b"x") for _ in range(5))
        network.delay(0.05)
        assert min(asked(client, b"x") for _ in range(5)) == pytest.approx(0.1 + without, abs=0.03)
        assert network.round_trips == 10
        assert asked(client, bytes(3_000_000)) < 2.0  # one delay, not one per piece


def test_many_connections_are_delayed_together_and_an_end_reaches_the_other_side(network):
    network.delay(0.05)
    clients = [socket.create_connection(("127.0.0.1", network.port)) for _ in range(200)]
    began_s = time.monotonic()
    for client in clients:
        client.sendall(b"x")
    assert [client.recv(1) for client in clients] == [b"x"] * 200
    assert time.monotonic() - began_s < 2.0  # 20 s if one waited for the other
    clients[0].shutdown(socket.SHUT_WR)
    clients[0].settimeout(5.0)
    assert clients[0].recv(1) == b""
    for client in clients:
        client.close()


def test_only_the_part_of_a_wait_inside_the_window_counts():
    assert inside([(0.0, 4.0), (3.0, 5.0), (9.0, 30.0), (20.0, 21.0)], (2.0, 10.0)) == 2.0 + 2.0 + 1.0


def test_the_limit_is_what_is_used_nearly_all_the_time():
    assert limit_of({"share_locked": 0.9, "share_cpu": 0.2}) == "lock"
    assert limit_of({"share_locked": 0.9, "share_cpu": 0.95}) == "lock and CPU"
    assert limit_of({"share_locked": 0.3, "share_cpu": 0.4}) == ""
