"""Time-outs, retries, waits and the limit on requests of both sources, against the stand-in server."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import requests

from market.errors import BarsError
from market.sources import transport
from market.sources.download import alpaca_bars, binance_bars
from market.sources.periods import Period
from market.sources.transport import DamagedAnswerError, Pacer, Patience, be_patient, check_reachable, patiently
from tests.support.bars_server import BarsServer, made_up_bars, seconds

QUICK = Patience(backoff_s=0.001, damaged_wait_s=0.001, longest_wait_s=0.05)
PERIOD = Period(datetime(2024, 12, 31, tzinfo=UTC), datetime(2025, 1, 2, tzinfo=UTC))
BARS = made_up_bars("BTC", seconds(2024, 12), seconds(2025, 2), 3_600)
FETCH = [alpaca_bars, binance_bars]
each_source = pytest.mark.parametrize("source", FETCH, ids=["alpaca", "binance"])


@pytest.fixture
def server():
    with BarsServer({"BTC/USD": BARS, "BTC/USDT": BARS}, step=3_600) as server:
        yield server


def fetch(source, url, patience=QUICK, on_progress=lambda done, total: None):
    return source(["BTC"], "1h", PERIOD, on_progress, url=url, patience=patience)


def session_with(patience):
    session = requests.Session()
    be_patient(session, patience)
    return session


@each_source
@pytest.mark.parametrize("status", ["400", "403", "422"])
def test_a_final_answer_is_not_asked_for_again(server, source, status):
    server.fail(status, times=9, where="2024-12.zip" if source is binance_bars else "1Hour")
    with pytest.raises(BarsError, match=f"the server returned {status}.*check ticker and dates") as caught:
        fetch(source, server.url)
    assert "\n" not in str(caught.value)
    # Binance's checksums are looked up first, and only 404 counts as absent there.
    assert 9 - len(server.faults) <= 2


@each_source
def test_an_absent_page_is_not_asked_for_again(server, source):
    server.fail("404", times=9)
    with pytest.raises(BarsError):
        fetch(source, server.url)
    assert server.n_requests <= 2


@each_source
def test_a_fault_that_does_not_pass_ends_in_one_line_after_a_bounded_number_of_tries(server, source):
    server.fail("503", times=99, where="2024-12.zip" if source is binance_bars else "1Hour")
    with pytest.raises(BarsError, match=r"the server returned 503 .*; try again later") as caught:
        fetch(source, server.url)
    assert "\n" not in str(caught.value)
    assert 99 - len(server.faults) <= 2 * (QUICK.retries + 1)


@each_source
def test_a_body_that_is_always_cut_short_ends_in_one_line(server, source):
    server.fail("truncate", times=99)
    with pytest.raises(BarsError, match=r"the response was truncated; try again later"):
        fetch(source, server.url)
    assert server.n_requests == QUICK.damaged_tries


def test_alpaca_py_adds_no_retries_of_its_own(server):
    # It would wait 3 s before each of three more.
    server.fail("429", times=99, where="1Hour")
    began = time.perf_counter()
    with pytest.raises(BarsError, match="the server returned 429"):
        fetch(alpaca_bars, server.url)
    assert 99 - len(server.faults) == QUICK.retries + 1
    assert time.perf_counter() - began < 3.0


@pytest.mark.parametrize(
    ("retry_after", "at_least_s", "below_s"), [("1", 1.0, 2.5), ("0", 0.0, 0.9), ("3600", 1.5, 3.0)]
)
def test_retry_after_is_obeyed_up_to_the_longest_wait(server, retry_after, at_least_s, below_s):
    server.fail("429", where="1Hour", retry_after=retry_after)
    began = time.perf_counter()
    fetch(alpaca_bars, server.url, replace(QUICK, longest_wait_s=1.5))
    assert at_least_s <= time.perf_counter() - began < below_s


def test_the_waits_between_tries_grow(server, monkeypatch):
    waits = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waits.append)
    server.fail("500", times=4)
    assert session_with(Patience(backoff_s=0.5)).get(f"{server.url}/BTC-1h-1999-01.zip").status_code == 404
    assert waits == [1.0, 2.0, 4.0]


def test_a_download_stays_below_the_limit_of_requests(server):
    server.page_bars = 1  # 24 bars a day and 2 months: some 50 requests
    server.limit = (22, 1.0)
    fetch(alpaca_bars, server.url, replace(QUICK, requests_per_window=20, window_s=1.0))
    assert server.n_requests > 44
    assert server.refused == 0


def test_a_download_over_the_limit_waits_as_told_and_is_whole(server):
    server.page_bars = 4
    server.limit = (8, 0.5)
    bars = fetch(alpaca_bars, server.url, Patience(longest_wait_s=1.0))
    assert server.refused > 0
    assert len(bars) == 48


def test_the_pacer_lets_no_more_than_the_limit_into_any_window():
    pacer, times = Pacer(3, 0.2), []
    for _ in range(8):
        pacer.wait()
        times.append(time.monotonic())
    assert times[2] - times[0] < 0.1
    assert all(later - earlier >= 0.19 for earlier, later in zip(times, times[3:], strict=False))


def test_retries_count_for_the_limit(server):
    server.fail("500", times=4)
    server.limit = (5, 1.0)
    fetch(alpaca_bars, server.url, replace(QUICK, requests_per_window=4, window_s=1.0))
    assert server.refused == 0


@each_source
def test_a_dead_server_is_one_line_in_seconds(server, source):
    server.stop()
    began = time.perf_counter()
    with pytest.raises(BarsError, match=r"127\.0\.0\.1 is unreachable \(Connection refused\); check the network"):
        fetch(source, server.url, Patience())
    assert time.perf_counter() - began < 5.0


@each_source
def test_a_server_that_dies_in_the_middle_is_one_line_in_seconds(server, source):
    def stop(done, total):
        del total
        if done == 1:
            server.stop()

    began = time.perf_counter()
    with pytest.raises(BarsError, match=r"2025-01.*Connection refused; try again later") as caught:
        fetch(source, server.url, Patience(), stop)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - began < 10.0


@each_source
def test_a_server_that_comes_back_in_time_is_waited_for(server, source):
    def restart(done, total):
        del total
        if done == 1:
            server.stop()
            threading.Timer(0.5, server.start).start()

    assert len(fetch(source, server.url, Patience(), restart)) == 48


def test_a_server_that_says_nothing_is_given_up(server):
    server.pause_after = 0
    began = time.perf_counter()
    with pytest.raises(BarsError, match="timed out; try again later"):
        fetch(alpaca_bars, server.url, replace(QUICK, read_s=0.2, retries=1))
    assert time.perf_counter() - began < 5.0


def test_a_name_look_up_that_hangs_is_given_up(monkeypatch):
    released = threading.Event()

    def hang(*_):
        released.wait(30.0)
        raise OSError("released")

    monkeypatch.setattr(transport.socket, "create_connection", hang)
    monkeypatch.setattr(transport.requests.utils, "get_environ_proxies", lambda _: {})
    began = time.perf_counter()
    with pytest.raises(BarsError, match=r"example\.invalid is unreachable \(no response within 0.2 s\)"):
        check_reachable("https://example.invalid", replace(QUICK, connect_s=0.2))
    assert time.perf_counter() - began < 5.0
    released.set()


def test_behind_a_proxy_nothing_is_checked(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    check_reachable("https://example.invalid", QUICK)


def test_patience_tries_damaged_answers_again_and_no_others():
    tried = []

    def damaged():
        tried.append(1)
        raise DamagedAnswerError("half a bar")

    with pytest.raises(BarsError, match=r"^BTC: half a bar; try again later$"):
        patiently(damaged, "BTC", QUICK)
    assert len(tried) == QUICK.damaged_tries

    def refused():
        tried.append(1)
        raise BarsError("no")

    tried.clear()
    with pytest.raises(BarsError, match=r"^no$"):
        patiently(refused, "BTC", QUICK)
    assert len(tried) == 1
