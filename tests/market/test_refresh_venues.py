"""Reading the venue's rules against a local stand-in server; no keys and no network are needed."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from barwise.commands import refresh_venues
from market.dataset import load_dataset
from market.errors import BarsError, VenueError
from market.sources import assets as alpaca_assets
from market.sources.assets import Keys, fetch_assets, keys_of, venue_of_assets
from market.sources.transport import Patience
from market.venues import ALPACA, OrderRule, load_venue, save_venue

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "data" / "refresh_venues.py"
SAMPLE = SCRIPT.with_name("make_sample.py")
SECRET = "s3cret-s3cret-s3cret"
ENVIRON = {"APCA_API_KEY_ID": "PKTESTTEST", "APCA_API_SECRET_KEY": SECRET}
TODAY = datetime.now(UTC).date().isoformat()


def asset(symbol, size="0.000017", step="0.000000001", price="0.5", **more):
    sizes = {"min_order_size": size, "min_trade_increment": step, "price_increment": price}
    return {"class": "crypto", "symbol": symbol, "status": "active", "tradable": True} | sizes | more


def without(made, *names):
    return {name: value for name, value in made.items() if name not in names}


ASSETS = [
    asset("BTC/USDT", "0.0000212"),
    asset("BTC/USD", "0.0000112"),
    asset("BTC/USDC", "0.0000312"),
    asset("ETH/USD", "0.000398", price=None),
    asset("ETH/BTC", "0.0012", "0.000000002", "0.0000025"),
    asset("XTZ/USDC", "0.9"),
    asset("MKR/USD", status="inactive"),
    asset("YFI/USD", tradable=False),
    without(asset("DOT/USD"), "min_order_size"),
    without(asset("GRT/USD"), "min_trade_increment"),
    asset("BAT/USD", "much"),
    asset("SUSHI/USD", "-1"),
    asset("CRV/USD", "NaN"),
    asset("AAPL", **{"class": "us_equity"}),
]


@pytest.fixture
def server():
    """Answers `server.answer` (status, body) and keeps the last request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append((urlsplit(self.path), dict(self.headers)))
            status, body = self.server.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.asked = (200, json.dumps(ASSETS).encode()), []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def refresh(server, monkeypatch, capsys):
    """The script in this process, pointed at the stand-in -> exit code, stdout, stderr."""
    monkeypatch.setattr(refresh_venues, "PAPER_URL", server.url)
    for name in ENVIRON:
        monkeypatch.setenv(name, ENVIRON[name])

    def run(*arguments):
        code = refresh_venues.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        assert ENVIRON["APCA_API_KEY_ID"] not in out + err
        return code, out, err

    return run


# ---------------------------------------------------------------------------------------------- the answer


def test_rules_come_from_strings_by_name_and_what_is_left_out_is_said():
    venue, left_out = venue_of_assets(ASSETS, ALPACA, "2026-01-02", "a test")
    assert dict(venue.rules) == {
        "BTC": OrderRule(0.0000112, 1e-9, 10.0, 0.5),
        "ETH": OrderRule(0.000398, 1e-9, 10.0, None),
        "ETH/BTC": OrderRule(0.0012, 2e-9, 0.0, 2.5e-6),
        "XTZ": OrderRule(0.9, 1e-9, 10.0, 0.5),
    }
    assert (venue.name, venue.as_of, venue.source) == ("alpaca", "2026-01-02", "a test")
    assert (venue.fee_tiers, venue.fees_as_of) == (ALPACA.fee_tiers, "2023-03-13")
    assert sorted(left_out) == [
        "AAPL: not crypto",
        "BAT/USD: min_order_size is not a number",
        "BTC/USDT, BTC/USDC: the coin's rule comes from a different dollar pair",
        "CRV/USD: min_order_qty must be a finite number of at least 0; received nan",
        "DOT/USD: min_order_size or min_trade_increment is missing",
        "GRT/USD: min_order_size or min_trade_increment is missing",
        "MKR/USD: not active and tradable",
        "SUSHI/USD: min_order_qty must be a finite number of at least 0; received -1.0",
        "YFI/USD: not active and tradable",
    ]


def test_a_stablecoin_pair_stands_in_for_a_dollar_pair_that_is_not_traded():
    assets = [asset("BTC/USD", tradable=False), asset("BTC/USDC", "0.3"), asset("BTC/USDT", "0.2")]
    venue, _ = venue_of_assets(assets, ALPACA, TODAY, "a test")
    assert venue.rules == {"BTC": OrderRule(0.2, 1e-9, 10.0, 0.5)}


def test_a_strange_asset_is_left_out_and_said_and_the_others_stay():
    strange = [asset("CRVUSD/USD", "3"), asset("PYUSD/USD", "4"), asset("/USD"), asset("A\nB"), asset("BTC/U S"), 7, {}]
    venue, left_out = venue_of_assets([*strange, asset("CRV/USD", "2")], ALPACA, TODAY, "a test")
    assert {name: rule.min_order_qty for name, rule in venue.rules.items()} == {"CRV": 2, "CRVUSD/USD": 3, "PYUSD": 4}
    assert left_out == [f"{what}: not the name of a coin" for what in ("'/USD'", r"'A\nB'", "'BTC/U S'", "7", "{}")]


@pytest.mark.parametrize(
    "assets",
    [[], [asset("MKR/USD", tradable=False)], [1, 2], [{}], [{"symbol": 7}], [asset("A\nB")], [asset("x" * 99)]],
)
def test_an_answer_without_anything_usable_is_refused(assets):
    with pytest.raises(VenueError, match="in the response is usable") as caught:
        venue_of_assets(assets, ALPACA, TODAY, "a test")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- keys and server


def test_the_request_goes_to_the_assets_endpoint_with_the_keys_in_its_headers(server):
    assert fetch_assets(keys_of(ENVIRON), server.url) == ASSETS
    ((address, headers),) = server.asked
    assert (address.path, parse_qs(address.query)) == ("/v2/assets", {"asset_class": ["crypto"]})
    assert (headers["APCA-API-KEY-ID"], headers["APCA-API-SECRET-KEY"]) == tuple(ENVIRON.values())


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({}, "no API keys: set APCA_API_KEY_ID and APCA_API_SECRET_KEY .or ALPACA_API_KEY and ALPACA_API_SECRET."),
        ({"APCA_API_KEY_ID": "", "APCA_API_SECRET_KEY": ""}, "no API keys: set"),
        ({"APCA_API_KEY_ID": "k"}, "APCA_API_KEY_ID is set, but APCA_API_SECRET_KEY is not; set both"),
        ({"ALPACA_API_SECRET": SECRET}, "ALPACA_API_SECRET is set, but ALPACA_API_KEY is not; set both"),
        ({"APCA_API_KEY_ID": "k", "APCA_API_SECRET_KEY": SECRET + "\n"}, "APCA_API_SECRET_KEY contains spaces"),
        ({"APCA_API_KEY_ID": "k\u00e9", "APCA_API_SECRET_KEY": SECRET}, "APCA_API_KEY_ID contains spaces"),
    ],
)
def test_absent_or_broken_keys_are_named_and_never_shown(environ, message):
    with pytest.raises(VenueError, match=message) as caught:
        keys_of(environ)
    assert SECRET not in str(caught.value)


def test_either_pair_of_variables_will_do_and_keys_do_not_print():
    other = keys_of({"ALPACA_API_KEY": "PKTESTTEST", "ALPACA_API_SECRET": SECRET})
    assert other == keys_of(ENVIRON) == Keys("PKTESTTEST", SECRET)
    assert repr(other) == "Keys()"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (401, b'{"code": 40110000, "message": "request is not authorized"}'),
            r"rejected the keys \(401\).*paper account",
        ),
        ((403, SECRET.encode()), r"rejected the keys \(403\)"),
        ((404, b"nothing"), "returned 404; try again later"),
        ((500, SECRET.encode()), "returned 500; try again later"),
        ((302, b""), "not a list of assets"),
        ((200, b""), "not a list of assets"),
        ((200, b'{"message": "hello"}'), "not a list of assets"),
        ((200, b"<html>" + SECRET.encode()), "a response that is not JSON"),
        ((200, b"\xff\xfe\x00"), "a response that is not JSON"),
    ],
)
def test_an_answer_that_is_no_list_of_assets_writes_nothing(server, refresh, tmp_path, answer, message):
    server.answer = answer
    code, out, err = refresh("--out", tmp_path / "v.json")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    with pytest.raises(VenueError, match=message):
        fetch_assets(keys_of(ENVIRON), server.url)
    assert list(tmp_path.iterdir()) == []
    assert all(address.path == "/v2/assets" for address, _ in server.asked)  # no redirect is followed


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(VenueError, match=r"^127\.0\.0\.1 is unreachable \(Connection refused\); check the network"):
        fetch_assets(keys_of(ENVIRON), "http://127.0.0.1:9")


def test_a_server_that_says_nothing_is_given_up(server, monkeypatch):
    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", lambda self: time.sleep(2.0))
    with pytest.raises(VenueError, match=r"cannot be read \((ConnectionError|ReadTimeout)\); check the network"):
        fetch_assets(keys_of(ENVIRON), server.url, Patience(read_s=0.2, retries=1))


def test_without_a_network_the_line_comes_before_any_request(monkeypatch):
    def no_network(url, patience):
        host = url.removeprefix("https://")
        raise BarsError(f"{host} is unreachable (no response within 5 s); check the network, or build something")

    monkeypatch.setattr(alpaca_assets, "check_reachable", no_network)
    with pytest.raises(
        VenueError, match=r"^paper-api\.alpaca\.markets is unreachable .*existing rules were not changed"
    ):
        fetch_assets(keys_of(ENVIRON))


# ---------------------------------------------------------------------------------------------- the script


def test_the_first_refresh_says_what_differs_from_the_built_in_table(refresh, server, tmp_path):
    out_file = tmp_path / "a folder" / "alpaca.json"
    code, out, err = refresh("--out", out_file)
    assert (code, err) == (0, "")
    assert "omitted: MKR/USD: not active and tradable" in out
    assert "compared with the built-in table, alpaca of 2024-08-31:" in out
    assert "  BTC: min_order_qty 1.7e-05 -> 1.12e-05, price_increment none -> 0.5\n" in out
    assert "  DOGE: no longer listed\n" in out
    assert f"wrote {out_file}: 4 rules, alpaca of {TODAY}; fees as of 2023-03-13, not downloaded" in out
    assert SECRET not in out_file.read_text()
    assert load_venue(out_file).as_of == TODAY

    code, out, _ = refresh("--out", out_file)
    assert code == 0
    assert f"compared with {out_file}, alpaca of {TODAY}: no rules changed" in out

    server.answer = (200, json.dumps([asset("BTC/USD", "0.00002"), *ASSETS[3:5]]).encode())
    code, out, _ = refresh("--out", out_file)
    assert "  BTC: min_order_qty 1.12e-05 -> 2e-05\n  XTZ: no longer listed\n" in out
    assert sorted(entry.name for entry in out_file.parent.iterdir()) == ["alpaca.json"]


def test_only_a_table_of_this_venue_is_replaced(refresh, tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    code, _, err = refresh("--out", tmp_path / "diary.txt")
    assert (code, (tmp_path / "diary.txt").read_text()) == (2, "mine")
    assert "not valid JSON, perhaps truncated; move it elsewhere, or choose a different file" in err
    other = ALPACA.to_json() | {"name": "elsewhere"}
    save_venue(ALPACA.from_json(other), tmp_path / "other.json")
    code, _, err = refresh("--out", tmp_path / "other.json")
    assert code == 2
    assert "contains the rules of elsewhere" in err
    assert refresh("--out", tmp_path)[0] == 2


def test_a_dataset_is_made_with_the_refreshed_rules_only_when_they_are_named(refresh, tmp_path):
    assert refresh("--out", tmp_path / "v.json")[0] == 0

    def make(name, *flags):
        command = [sys.executable, SAMPLE, "--n-bars", "50", "--tickers", "BTC", "NOSUCH", "--out", name, *flags]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return done, load_dataset(tmp_path / name) if done.returncode == 0 else None

    plain, default = make("plain")
    named, fresh = make("fresh", "--venue", "v.json")
    assert default.venue == ALPACA.only(["BTC"])
    assert fresh.venue == load_venue(tmp_path / "v.json").only(["BTC"])
    assert default.sha256 != fresh.sha256
    assert "order rules: alpaca of 2024-08-31" in plain.stdout
    assert f"order rules: alpaca of {TODAY}" in named.stdout
    assert "no entry for NOSUCH: minimum order 10 USD" in named.stdout
    absent, _ = make("none", "--venue", "no.json")
    assert absent.returncode == 2
    assert "no.json: cannot be read" in absent.stderr


def test_the_script_without_keys_says_which_variables_to_set(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("APCA_", "ALPACA_"))}
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", "v.json"],
        cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("refresh_venues.py: no API keys: set APCA_API_KEY_ID and APCA_API_SECRET_KEY")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
