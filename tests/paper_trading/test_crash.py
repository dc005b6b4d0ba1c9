"""A trader's process that ends anywhere: the next one finds the books right and sends no order twice.

What outlives a process is its journal and the venue. Between two operations on them nothing else happens, so an end
after an operation is an end before the next one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import datetime

import numpy as np
import pytest

from paper_trading.trader import Trader
from tests.support.alpaca_stand_in import StandIn
from tests.support.trading_crash import Crash, Crasher
from tests.support.trading_world import QUICK, STEP_S, TradingWorld

N_OPERATIONS = 500  # more than the stretch has
N_KILLS = 6


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with StandIn() as process:
        yield process


@pytest.fixture(autouse=True)
def short_time_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paper_trading.alpaca_venue.PATIENCE", QUICK)
    monkeypatch.setattr("paper_trading.alpaca_venue.QUOTE_PATIENCE", QUICK)


def act(world: TradingWorld, trader: Trader, *actions: float) -> None:
    """Play a bar at which these actions are executed."""
    trader.pending = np.array(actions, np.float32)
    world.play(trader, 1)


def stretch(world: TradingWorld, trader: Trader) -> None:
    """Buys, then a sale and a buy."""
    trader.begin()
    act(world, trader, 0.3, 0.0)
    act(world, trader, -0.2, 0.3)


def check(world: TradingWorld, trader: Trader) -> None:
    assert trader.state == "ACTIVE", trader.why
    world.check_books()
    world.check_fees(is_averaged=True)
    world.check_own_coins()
    orders = [order["client_order_id"] for order in world.server.state()["orders"]]
    assert len(orders) == len(set(orders))


def bars_with_orders(world: TradingWorld) -> list[int]:
    return [event["bar_s"] for event in world.events("intents")]


class Start:
    """A moment to come back to: the server's, the clock and the journal."""

    def __init__(self, world: TradingWorld) -> None:
        self.world, self.copy = world, world.root / "journal.start"
        self.state, self.now_s = world.server.control("dump"), world.clock._now_s
        shutil.copy(world.journal_path, self.copy)

    def again(self) -> None:
        self.world.server.control("load", state=self.state)
        self.world.clock._now_s = self.now_s
        shutil.copy(self.copy, self.world.journal_path)


@pytest.mark.parametrize(("fault", "every"), [("none", 1), ("drop_after", 5), ("late", 37)])
def test_the_process_may_end_before_any_operation(tmp_path, server, fault, every):
    world = TradingWorld(tmp_path, server, ("BTC", "ETH"), n_bars=20)
    world.play(world.trader(), 1)
    if fault != "none":
        server.control("fault", kind=fault, times=3, skip=1, method="POST", path="/v2/orders", after_s=250)
        server.control("plan", kind="partial_then_rest", gets=2, times=5)
    start = Start(world)
    seen, again = [], []
    for at in range(0, N_OPERATIONS, every):
        start.again()
        crasher = Crasher(at)
        try:
            stretch(world, world.trader(crasher.wrap))
        except Crash:
            pass
        else:
            break
        seen.append(crasher.calls[-1])
        restarted, ordered = world.trader(), bars_with_orders(world)
        restarted.memory.checkpoint = dict(restarted.memory.checkpoint) | {"action": [0.3, 0.3]}  # it would buy
        restarted.begin()
        again += [bar_s for bar_s in bars_with_orders(world)[len(ordered) :] if bar_s in ordered]
        act(world, restarted, 0.0, 0.0)
        act(world, restarted, -0.1, 0.1)
        act(world, restarted, 0.0, 0.0)
        check(world, restarted)
    else:
        pytest.fail("the stretch is longer than the operations that were tried")
    assert again == [], "a bar that had orders before the end got more of them after it"
    assert set(seen) >= ({"send", "snapshot", "append"} if every == 1 else {"find", "append"})


def test_kill_9_at_any_moment(tmp_path, server):
    world = TradingWorld(tmp_path, server, ("BTC", "ETH"), n_bars=200)
    server.control("set", fill_gets=1)
    draws = random.Random(7)
    n_orders = 0
    for _ in range(N_KILLS):
        child = os.fork()
        if child == 0:
            trade_until_killed(world)
        time.sleep(draws.uniform(0.1, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        world.clock._now_s = datetime.fromisoformat(server.state()["now"]).timestamp()
        restarted = world.trader()
        restarted.begin()
        world.play(restarted, 2)
        check(world, restarted)
        n_orders = len(server.state()["orders"])
    assert n_orders > N_KILLS


def trade_until_killed(world: TradingWorld) -> None:
    """In a child process; it never returns."""
    try:
        trader = world.trader()
        trader.begin()
        for n in range(150):
            act(world, trader, *((0.05, -0.02) if n % 2 else (-0.02, 0.05)))
        time.sleep(STEP_S)
    finally:
        os._exit(1)
