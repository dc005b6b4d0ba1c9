"""A random walk of faults: bars, faults, crashes, foreign hands, in any order; in the end the books are the venue's.

`python -m tests.support.trading_walk --steps 10000` walks far and prints its seed.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, get_state_machine_test, precondition, rule

from paper_trading.broker import UnreachableError
from paper_trading.trader import Trader
from tests.support.alpaca_orders import TERMINAL
from tests.support.alpaca_stand_in import StandIn
from tests.support.trading_crash import Crash, Crasher
from tests.support.trading_world import QUICK, STEP_S, TradingWorld

TICKERS = ("BTC", "ETH", "LTC")
KINDS = ("drop_before", "drop_after", "429", "500", "503", "html", "truncate")
PLACES = (("POST", "/v2/orders"), ("GET", "/v2/orders"), ("GET", "by_client_order_id"), ("GET", "/v2/account"),
          ("GET", "/v2/positions"), ("DELETE", ""), ("GET", "/bars"), ("GET", "quotes"), ("", "/v2/"))  # fmt: skip
PLANS = ("delayed", "stuck", "rejected", "expired", "partial_then_cancel", "partial_then_rest")
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]  # each step is a bar
N_STEPS = 40  # of one example
N_BARS = 420
PLAIN = {"fill_gets": 0, "fill_s": 0, "cancel_gets": 0, "date_skew_s": 0}

tickers, few = st.sampled_from(TICKERS), st.integers(0, 1)


class Walk(RuleBasedStateMachine):
    """One trader and all that happens to it. `server` is set by who walks."""

    server: StandIn
    n_steps = n_orders = n_crashes = 0  # of all walks

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.world = TradingWorld(self.root, self.server, TICKERS, n_bars=N_BARS)
        self.trader: Trader | None = None
        self.is_strange = False  # something happened that nothing explains
        self.is_touched = False  # somebody else sold coins: perhaps ours
        self.n_strange = 0
        self.n_since = 0  # steps since the last restart, which costs as much as ten bars
        self.run(1)  # what lies in the account before that is nothing strange

    def teardown(self) -> None:
        self.settle()
        Walk.n_orders += len(self.server.state()["orders"])
        self.stop()
        shutil.rmtree(self.root)

    # ---------------------------------------------------------------- the trader
    def start(self, crasher: Crasher | None = None, resumes: bool = False) -> None:
        """Start as often as a supervisor does."""
        self.n_since = 0
        while True:
            try:
                self.trader = self.world.trader(wrap=(crasher or Crasher()).wrap)
                break
            except UnreachableError:
                self.world.clock.advance(1)
        if resumes:
            self.trader.resume("the walk")

    def stop(self) -> None:
        if self.trader is not None:
            self.trader.journal.close()
        self.trader = None

    def run(self, n_bars: int) -> None:
        self.n_since += 1
        if self.world.clock.local_s() > self.world.start_s + (N_BARS - 60) * STEP_S:
            return  # the bars are used up
        if self.trader is None:
            self.start()
        assert self.trader is not None
        try:
            self.world.play(self.trader, n_bars)
        except Crash:
            Walk.n_crashes += 1
            self.stop()

    # ---------------------------------------------------------------- what happens
    @rule(n_bars=st.integers(1, 3))
    def bars(self, n_bars: int) -> None:
        Walk.n_steps += 1
        self.run(n_bars)

    @rule(
        kind=st.sampled_from(KINDS),
        place=st.sampled_from(PLACES),
        times=st.integers(1, 4),
        skip=st.integers(0, 6),
        n_bars=few,
    )
    def fault(self, kind: str, place: tuple[str, str], times: int, skip: int, n_bars: int) -> None:
        Walk.n_steps += 1
        self.server.control("fault", kind=kind, method=place[0], path=place[1], times=times, skip=skip)
        self.run(n_bars)

    @rule(kind=st.sampled_from(("insufficient", "minimum")), times=st.integers(1, 3), n_bars=few)
    def refusal(self, kind: str, times: int, n_bars: int) -> None:
        Walk.n_steps += 1
        self.server.control("fault", kind=kind, times=times)
        self.run(n_bars)

    @rule(after_requests=st.integers(0, 40), after_s=st.sampled_from((0, 3, 400)), n_bars=few)
    def late_order(self, after_requests: int, after_s: int, n_bars: int) -> None:
        Walk.n_steps += 1
        self.server.control("fault", kind="late", after_requests=after_requests, after_s=after_s)
        self.run(n_bars)

    @rule(kind=st.sampled_from(PLANS), gets=st.integers(0, 60), times=st.integers(1, 3), n_bars=few)
    def plan(self, kind: str, gets: int, times: int, n_bars: int) -> None:
        Walk.n_steps += 1
        self.server.control("plan", kind=kind, gets=gets, times=times)
        self.run(n_bars)

    @rule(fill_gets=st.integers(0, 3), fill_s=st.sampled_from((0, 1, 8)), cancel_gets=st.integers(0, 2), n_bars=few)
    def slow_venue(self, fill_gets: int, fill_s: int, cancel_gets: int, n_bars: int) -> None:
        Walk.n_steps += 1
        self.server.control("set", fill_gets=fill_gets, fill_s=fill_s, cancel_gets=cancel_gets)
        self.server.control("fault", kind="not_cancelable")
        self.run(n_bars)

    @precondition(lambda self: self.n_since >= 3)
    @rule(at=st.integers(0, 40), is_after=st.booleans())
    def crash(self, at: int, is_after: bool) -> None:
        Walk.n_steps += 1
        self.stop()
        try:
            self.start(Crasher(at, is_after))
        except Crash:
            Walk.n_crashes += 1
        self.run(3)

    @precondition(lambda self: self.n_since >= 6)
    @rule()
    def restart(self) -> None:
        Walk.n_steps += 1
        self.stop()
        self.run(1)

    @rule(n_bars=st.integers(1, 8))
    def sleep(self, n_bars: int) -> None:
        """The machine sleeps."""
        Walk.n_steps += 1
        self.world.clock.advance(n_bars * STEP_S)
        self.run(1)

    @rule(ticker=tickers, side=st.sampled_from(("buy", "sell")), usd=st.integers(20, 400), is_slow=st.booleans(),
          n_bars=few)  # fmt: skip
    def foreign_order(self, ticker: str, side: str, usd: int, is_slow: bool, n_bars: int) -> None:
        Walk.n_steps += 1
        symbol = f"{ticker}/USD"
        held = self.server.state()["positions"].get(symbol, {})
        steps = [{"do": "fill", "fraction": 0.5}, {"do": "fill", "after_s": 700}] if is_slow else None
        if side == "sell":
            qty = (Decimal(held.get("qty_available", 0)) * usd / 400).quantize(Decimal("0.000001"), ROUND_FLOOR)
            self.is_touched |= qty > 0
            order = {"qty": qty}
        else:
            order = {"notional": usd}
        with suppress(ValueError):  # the venue refuses it
            self.server.control("foreign_order", symbol=symbol, side=side, steps=steps, **order)
        self.run(n_bars)

    @rule(sign=st.sampled_from((-1, 1)), n_bars=few)
    def cash_moves(self, sign: int, n_bars: int) -> None:
        Walk.n_steps += 1
        self.n_strange += 1
        self.is_strange = True
        self.server.control("cash", amount=sign * (100 + 7 * self.n_strange))
        self.run(n_bars)

    @rule(ticker=tickers, n_bars=few)
    def coins_appear(self, ticker: str, n_bars: int) -> None:
        Walk.n_steps += 1
        self.n_strange += 1
        self.is_strange = True
        held = Decimal(self.server.state()["positions"].get(f"{ticker}/USD", {}).get("qty", 0))
        self.server.control("position", symbol=f"{ticker}/USD", qty=held + 1 + self.n_strange)
        self.run(n_bars)

    @rule(qty=st.integers(0, 3), n_bars=few)
    def other_coin(self, qty: int, n_bars: int) -> None:
        Walk.n_steps += 1
        self.server.control("position", symbol="SHIB/USD", qty=qty, avg_entry_price=1)
        self.run(n_bars)

    @rule(ticker=tickers, n_bars=st.integers(1, 5))
    def missing_bars(self, ticker: str, n_bars: int) -> None:
        Walk.n_steps += 1
        for open_s in self._next_opens(n_bars):
            self.server.control("missing_bar", symbol=f"{ticker}/USD", time=open_s)
        self.run(n_bars)

    @rule(ticker=tickers, seconds=st.sampled_from((5, 15, 40, 120)))
    def late_bar(self, ticker: str, seconds: int) -> None:
        Walk.n_steps += 1
        (open_s,) = self._next_opens(1)
        self.server.control("late_bar", symbol=f"{ticker}/USD", time=open_s, seconds=seconds)
        self.run(2)

    @rule(ticker=tickers)
    def revised_bar(self, ticker: str) -> None:
        Walk.n_steps += 1
        (open_s,) = self._next_opens(1)
        row = next(row for row in self.world.rows[f"{ticker}/USD"] if row[0] == open_s)
        first = {"c": row[3]}  # the low
        self.server.control("revised_bar", symbol=f"{ticker}/USD", time=open_s, first=first, after_s=30)
        self.run(2)

    @rule(skew_s=st.sampled_from((-90, 90)))
    def skewed_clock(self, skew_s: int) -> None:
        Walk.n_steps += 1
        self.server.control("set", date_skew_s=skew_s)
        self.run(2)
        self.server.control("set", date_skew_s=0)
        self.run(1)

    @rule(ticker=tickers, is_listed=st.booleans(), n_bars=few)
    def listing(self, ticker: str, is_listed: bool, n_bars: int) -> None:
        Walk.n_steps += 1
        self.server.control("asset", symbol=f"{ticker}/USD", tradable=is_listed)
        self.run(n_bars)

    @rule(is_on=st.booleans(), n_bars=few)
    def halt(self, is_on: bool, n_bars: int) -> None:
        Walk.n_steps += 1
        self.world.halts[:] = ["the walk"] if is_on else []
        self.run(n_bars)

    @rule(action=st.sampled_from(("fill", "cancel", "expire")), n_bars=few)
    def venue_moves(self, action: str, n_bars: int) -> None:
        """The venue ends an open order."""
        Walk.n_steps += 1
        for order in self.server.state()["orders"]:
            if order["status"] not in TERMINAL:
                self.server.control("step", client_order_id=order["client_order_id"], action=action)
        self.run(n_bars)

    @precondition(lambda self: self.n_since >= 8)
    @rule()
    def resume(self) -> None:
        """Somebody looked, and lifts the state."""
        Walk.n_steps += 1
        self.settle()
        self.stop()
        self.start(resumes=True)
        self.is_strange = self.is_touched = False

    # ---------------------------------------------------------------- what must hold
    def _next_opens(self, n_bars: int) -> list[int]:
        newest = int(self.world.clock.local_s()) // STEP_S * STEP_S
        return [newest + n * STEP_S for n in range(n_bars)]

    def settle(self) -> None:
        """No more faults; bars until no order is open at the venue."""
        self.server.control("clear_faults")
        self.server.control("set", **PLAIN)
        self.world.halts.clear()
        for ticker in TICKERS:
            self.server.control("asset", symbol=f"{ticker}/USD", tradable=True)
        self.world.clock.advance(800)  # foreign orders that take their time
        for _ in range(10):
            self._whole_bars(2)
            if not any(order["status"] not in TERMINAL
                       for order in self.server.state()["orders"]):  # fmt: skip
                break
        self._whole_bars(1)
        self.check()

    def _whole_bars(self, n_bars: int) -> None:
        if self.trader is None:
            self.start()
        assert self.trader is not None
        try:
            self.world.play(self.trader, n_bars)
        except Crash:  # the last of them was still to come
            Walk.n_crashes += 1
            self.stop()
            self._whole_bars(n_bars)

    def check(self) -> None:
        assert self.trader is not None
        self.world.check_books()
        state = self.trader.state
        if self.is_strange:
            assert state != "ACTIVE", "something that nothing explains, and it trades on"
        events = self.world.events("state")
        since = max([n for n, event in enumerate(events) if event["to"] == "ACTIVE"], default=-1)
        reasons = [event["why"] for event in events[since + 1 :] if "not explained" in event["why"]]
        if not self.is_strange and not self.is_touched:
            assert not reasons, f"nothing strange happened: {reasons}"
        self.world.check_own_coins()


def walk(server: StandIn, n_steps: int, number: int) -> None:
    """So many steps from a seed, in examples of `N_STEPS`."""
    Walk.server, Walk.n_steps, Walk.n_orders, Walk.n_crashes = server, 0, 0, 0
    chosen = settings(
        max_examples=-(-n_steps // N_STEPS), stateful_step_count=N_STEPS, database=None, deadline=None,
        suppress_health_check=SLOW, print_blob=False, phases=[Phase.generate],
    )  # fmt: skip
    test = get_state_machine_test(Walk, settings=chosen, _min_steps=N_STEPS - 1)
    with patch("paper_trading.alpaca_venue.PATIENCE", QUICK), patch("paper_trading.alpaca_venue.QUOTE_PATIENCE", QUICK):
        seed(number)(test)()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed where it is not given")
    args = parser.parse_args(argv)
    number = random.SystemRandom().randrange(2**32) if args.seed is None else args.seed
    logging.disable(logging.CRITICAL)
    started = time.monotonic()
    say(f"seed {number}: {args.steps} steps")
    with StandIn() as server:
        walk(server, args.steps, number)
    took = f"{time.monotonic() - started:.0f} s"
    say(f"seed {number}: {Walk.n_steps} steps, {Walk.n_orders} orders, {Walk.n_crashes} crashes in {took}: the books "
        "are the venue's")  # fmt: skip
    return 0


def say(text: Any) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
