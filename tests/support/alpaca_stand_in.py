"""A stand-in for Alpaca's trading and crypto-data interface: a process of its own, with faults on demand.

    with StandIn() as server:
        server.control("now", at="2025-01-01T00:05:00Z")
        server.control("bars", rows={"BTC/USD": [["2025-01-01T00:04:00Z", 100, 101, 99, 100, 5]]})
        server.control("fault", kind="drop_after", method="POST", path="/v2/orders")
        client = TradingClient(server.key, server.secret, paper=True, url_override=server.url)

`python tests/support/alpaca_stand_in.py --port 0` prints {"port": ...} and serves until it is stopped. Control calls
are `POST /_control` with {"do": NAME, ...}, one method of `Controls` each; `GET /_state` answers the whole ledger.
Neither is subject to faults. Amounts: see alpaca_account.py. Nothing is random; ids follow from their number.
"""

from __future__ import annotations

import argparse
import decimal
import json
import os
import subprocess
import sys
import threading
import time
from decimal import Decimal
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.support.alpaca_account import NOT_FOUND
from tests.support.alpaca_controls import Answer, Controls, Parked, World, ledger, spoilt
from tests.support.alpaca_market import SECOND, RefusalError, iso

ROOT = Path(__file__).resolve().parents[2]
KEY, SECRET = "PKSTANDIN", "stand-in-secret"
ASSET_FILTERS = {"status": "status", "class": "asset_class", "exchange": "exchange"}  # field -> parameter
START_S = 30.0
CALL_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, StopIteration, AssertionError)


class Server:
    """The interface without sockets: one lock around everything."""

    def __init__(self, key: str, secret: str, cash: Any) -> None:
        self.keys = (key, secret)
        self.controls = Controls(cash)
        self._lock = threading.Lock()

    @property
    def world(self) -> World:
        return self.controls.world

    def date_s(self) -> float:
        """The server's clock with its skew, seconds since 1970."""
        market = self.world.account.market
        return market.clock.now / SECOND + float(market.settings.date_skew_s)

    def answer(self, method: str, target: str, keys: tuple[str | None, str | None], body: bytes) -> Answer:
        with self._lock:
            if target == "/_state":
                return Answer(200, ledger(self.world))
            if target == "/_control":
                return self._control(body)
            return self._ask(method, target, keys, body)

    def _control(self, body: bytes) -> Answer:
        call = _payload(body)
        name = call.pop("do", "")
        if name not in vars(Controls) or name == "market" or name.startswith("_"):
            return Answer(400, {"message": f"no control call {name!r}"})
        try:
            result = getattr(self.controls, name)(**call)
            self._settle()
        except CALL_ERRORS as error:
            return Answer(400, {"message": f"{name}: {type(error).__name__} {error}"})
        except RefusalError as error:
            return Answer(400, error.body)
        return Answer(200, {"result": result})

    def _settle(self) -> None:
        """Let late orders arrive, and open orders follow their plans."""
        account = self.world.account
        now = account.market.clock.now
        for parked in [each for each in self.world.parked if each.requests_left <= 0 and each.due_at <= now]:
            self.world.parked.remove(parked)
            try:
                account.submit(parked.payload)
            except RefusalError as error:
                self.world.late_refusals.append(parked.payload | {"refusal": error.body})
        account.settle()

    def _ask(self, method: str, target: str, keys: tuple[str | None, str | None], body: bytes) -> Answer:
        account = self.world.account
        if target.startswith("/v2/"):
            for parked in self.world.parked:
                parked.requests_left -= 1
            if method == "GET":
                account.tick()
        self._settle()
        fault = next((each for each in self.world.faults if each.meets(method, target)), None)
        payload = _payload(body)
        if fault is not None and fault.kind == "late":
            due_at = account.market.clock.now + int(fault.after_s * SECOND)
            self.world.parked.append(Parked(payload, fault.after_requests, due_at))
        good = Answer(200)
        if fault is None or fault.is_processed:
            is_doubled = fault is not None and fault.kind == "duplicate_rows"
            good = self._processed(method, target, keys, payload, is_doubled)
        answer = good if fault is None else spoilt(good, fault, account, payload)
        status = None if answer.is_dropped else answer.status
        kind = None if fault is None else fault.kind
        self.controls.log.append({"method": method, "path": target, "fault": kind, "status": status, "body": payload})
        return answer

    def _processed(
        self, method: str, target: str, keys: tuple[str | None, str | None], payload: dict[str, Any], is_doubled: bool
    ) -> Answer:
        parts = urlsplit(target)
        path, query = parts.path.strip("/").split("/"), dict(parse_qsl(parts.query))
        try:
            self._check_keys(keys, is_needed=path[0] == "v2")
            if path[:3] == ["v1beta3", "crypto", "us"] and method == "GET":
                return Answer(200, self._data(path[3:], query, is_doubled))
            routes = {"GET": self._get, "POST": self._post, "DELETE": self._delete}
            if path[0] == "v2" and method in routes:
                return routes[method](path[1:], query, payload)
        except RefusalError as error:
            return Answer(error.status, error.body)
        except (ValueError, decimal.InvalidOperation) as error:
            return Answer(422, {"code": 40010001, "message": f"invalid syntax: {error}"})
        return Answer(404, {"code": NOT_FOUND, "message": "endpoint not found."})

    def _check_keys(self, keys: tuple[str | None, str | None], is_needed: bool) -> None:
        if keys == (None, None) and is_needed:
            raise RefusalError(401, 40110000, "request is not authorized")
        if keys not in ((None, None), self.keys):
            raise RefusalError(403, None, "forbidden.")

    def _data(self, path: list[str], query: dict[str, str], is_doubled: bool) -> Any:
        market = self.world.account.market
        if path == ["bars"]:
            return market.bars_page(query, is_doubled)
        if path == ["latest", "bars"]:
            return market.latest_bars(query)
        if path == ["latest", "quotes"]:
            return market.latest_quotes(query)
        raise RefusalError(404, None, "endpoint not found.")

    def _get(self, path: list[str], query: dict[str, str], _: dict[str, Any]) -> Answer:
        account = self.world.account
        match path:
            case ["account"]:
                body: Any = account.view()
            case ["account", "activities", *kinds]:
                wanted = kinds or query.get("activity_types", "").split(",")
                body = account.activities_view([kind for kind in wanted if kind], query)
            case ["positions"]:
                body = [account.position_view(symbol) for symbol in sorted(account.positions)]
            case ["positions", *name]:
                body = account.position_view(self._held(name))
            case ["orders"]:
                body = account.orders_view(query)
            case ["orders:by_client_order_id"]:
                body = account.find(client_order_id=query.get("client_order_id", "")).view()
            case ["orders", order_id]:
                body = account.find(id=order_id).view()
            case ["assets"]:
                body = self._assets(query)
            case ["assets", *name]:
                body = account.market.assets[self._known(name)].view()
            case ["clock"]:
                now = int(self.date_s() * SECOND)
                day_later = iso(now + 86_400 * SECOND)
                body = {"timestamp": iso(now), "is_open": True, "next_open": day_later, "next_close": day_later}
            case _:
                return Answer(404, {"code": NOT_FOUND, "message": "endpoint not found."})
        return Answer(200, body)

    def _post(self, path: list[str], _: dict[str, str], payload: dict[str, Any]) -> Answer:
        if path == ["orders"]:
            return Answer(200, self.world.account.submit(payload).view())
        return Answer(404, {"code": NOT_FOUND, "message": "endpoint not found."})

    def _delete(self, path: list[str], query: dict[str, str], _: dict[str, Any]) -> Answer:
        account = self.world.account
        match path:
            case ["orders"]:
                return Answer(207, self._cancel_all())
            case ["orders", order_id]:
                account.cancel(account.find(id=order_id))
                return Answer(204)
            case ["positions"]:
                if query.get("cancel_orders", "").lower() == "true":
                    self._cancel_all()
                return Answer(207, [self._closed(symbol) for symbol in sorted(account.positions)])
            case ["positions", *name]:
                return Answer(200, account.close(self._held(name), query).view())
        return Answer(404, {"code": NOT_FOUND, "message": "endpoint not found."})

    def _cancel_all(self) -> list[dict[str, Any]]:
        account = self.world.account
        still_open = [order for order in account.orders if order.is_open]
        for order in still_open:
            account.cancel(order)
        return [{"id": order.id, "status": 200} for order in still_open]

    def _closed(self, symbol: str) -> dict[str, Any]:
        name = symbol.replace("/", "")
        try:
            order = self.world.account.close(symbol, {})
        except RefusalError as error:
            return {"symbol": name, "status": error.status, "body": error.body}
        return {"symbol": name, "status": 200, "order_id": order.id, "body": order.view()}

    def _assets(self, query: dict[str, str]) -> list[dict[str, Any]]:
        views = [asset.view() for asset in self.world.account.market.assets.values()]
        return [view for view in views if all(view[n] == query.get(q, view[n]) for n, q in ASSET_FILTERS.items())]

    def _known(self, name: list[str]) -> str:
        asked = unquote("/".join(name))
        symbol = self.world.account.market.symbol_of(asked)
        if symbol is None:
            raise RefusalError(404, NOT_FOUND, f"asset not found for {asked}")
        return symbol

    def _held(self, name: list[str]) -> str:
        symbol = self._known(name)
        if symbol not in self.world.account.positions:
            raise RefusalError(404, NOT_FOUND, "position does not exist")
        return symbol


def _payload(body: bytes) -> dict[str, Any]:
    """The request's JSON; nothing where it is none, which no call accepts."""
    try:
        payload = json.loads(body, parse_float=Decimal)
    except ValueError:
        return {}
    return payload if isinstance(payload, dict) else {}


def _handler_of(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            keys = (self.headers.get("APCA-API-KEY-ID"), self.headers.get("APCA-API-SECRET-KEY"))
            answer = server.answer(self.command, self.path, keys, body)
            if answer.is_dropped:
                time.sleep(float(answer.wall_s))
                self.close_connection = True
                return
            self._send(answer)

        do_GET = do_POST = do_DELETE = do_PATCH = _serve  # noqa: N815

        def _send(self, answer: Answer) -> None:
            is_html = isinstance(answer.body, str)
            written = answer.body if is_html else json.dumps(answer.body, default=str)
            content = b"" if answer.body is None else written.encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "text/html" if is_html else "application/json; charset=UTF-8")
            if answer.status != 204:
                self.send_header("Content-Length", str(len(content)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if answer.is_truncated else content)
            self.close_connection = self.close_connection or answer.is_truncated

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(server.date_s() if timestamp is None else timestamp)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--key", default=KEY, help="key id that the trading interface accepts")
    parser.add_argument("--secret", default=SECRET, help="secret that goes with the key id")
    parser.add_argument("--cash", default="100000", help="USD in the account")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end together with the starting process")
    args = parser.parse_args(argv)
    decimal.DefaultContext.prec = 60  # of every thread that starts from here on: products stay exact
    decimal.setcontext(decimal.Context(prec=60))
    server = _HTTPServer(("127.0.0.1", args.port), _handler_of(Server(args.key, args.secret, args.cash)))
    if args.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    sys.stdout.write(json.dumps({"port": server.server_port}) + "\n")
    sys.stdout.flush()
    try:
        server.serve_forever(0.05)
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


class StandIn:
    """The server's process, as a context manager. After `stop` or `restart` it has the same address."""

    key, secret = KEY, SECRET

    def __init__(self, port: int = 0) -> None:
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start the process and wait until it listens."""
        command = [sys.executable, str(Path(__file__).resolve()), "--port", str(self._port), "--until-stdin-closes"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the stand-in ended with {self._process.wait()} before it listened"
        self._port = json.loads(line)["port"]

    def stop(self) -> None:
        """End the process at once, as `kill -9` does: connections are cut, its state is lost."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait(START_S)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None

    def restart(self) -> None:
        """Another process at the same address with the same account, market, clock and faults."""
        state = self.control("dump")
        self.stop()
        self.start()
        self.control("load", state=state)

    def control(self, do: str, **fields: Any) -> Any:
        """Make a control call -> its result; `Decimal` and other values travel as text.

        Raises:
            ValueError: the server refuses the call.
        """
        status, answer = self._ask("POST", "/_control", json.dumps({"do": do, **fields}, default=str))
        if status != 200:
            raise ValueError(answer["message"])
        return answer["result"]

    def state(self) -> dict[str, Any]:
        """The whole ledger; amounts are text."""
        return self._ask("GET", "/_state")[1]

    def _ask(self, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=START_S)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


if __name__ == "__main__":
    raise SystemExit(main())
