"""Order desk, which sends each order once and tracks it until it is closed.

    intended     in the journal, not sent yet
    sent         accepted by the venue; polled until it is closed, canceled after the timeout
    unknown      no response, or not closed in time; looked up by id at every bar and canceled if open
    not arrived  unknown to the venue; it may still arrive, so it is looked up for `WATCH_S`
    closed       filled, partial, canceled or rejected

An order is never sent again, whatever its outcome; the next bar makes a new decision. After a restart, the states are
restored from the journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from paper_trading.broker import (
    Broker,
    Ending,
    Intent,
    OutcomeUnknownError,
    RejectedError,
    UnreachableError,
    VenueError,
    VenueOrder,
)
from paper_trading.journal import Event, Journal
from paper_trading.ledger import ZERO, Fill

log = logging.getLogger(__name__)

WATCH_S = 3_600.0  # time after its bar during which a missing order is looked up, seconds
POLL_S = 0.25
MOST_KNOWN_IDS = 500  # number of our order ids that are remembered, to recognize foreign orders
CANCEL_WAIT_S = 5.0  # maximum wait for an order to close after a cancellation request
OVER = ("filled", "partial", "canceled", "rejected", "refused")
Phase = Literal["sales", "buys", "flatten"]


@dataclass
class Tracked:
    """One of our orders, and the part of it that the ledger already includes."""

    intent: Intent
    status: Ending | Literal["intended"] = "intended"
    filled: Decimal = ZERO  # coins
    notional: Decimal = ZERO  # quote
    price: Decimal | None = None  # average of the fills, as reported by the venue
    counted: Decimal = ZERO  # coins that the ledger already includes
    counted_notional: Decimal = ZERO  # quote

    def see(self, order: VenueOrder) -> None:
        """Update from the venue's record of the order. An outdated record does not reduce the fills."""
        self.status = order.ending
        if order.filled_qty >= self.filled and order.price is not None:
            self.filled, self.price = order.filled_qty, order.price
            self.notional = self.filled * self.price

    def fill(self) -> Fill | None:
        """Return the fill that the ledger does not include yet, or None."""
        new = self.filled - self.counted
        intent = self.intent
        return Fill(intent.ticker, intent.side, new, self.notional - self.counted_notional) if new > 0 else None

    def count(self) -> None:
        """Mark all fills so far as included in the ledger."""
        self.counted, self.counted_notional = self.filled, self.notional


@dataclass
class Desk:
    """Sends and tracks the orders of one account.

    Args:
        broker: the venue.
        journal: records every intent before it is sent, and every outcome.
        now_s: function that returns the time in UTC seconds.
        sleep: function that waits for the given seconds.
        timeout_s: time after which an open order is canceled, in seconds.
    """

    broker: Broker
    journal: Journal
    now_s: Callable[[], float]
    sleep: Callable[[float], None]
    timeout_s: float
    tracked: dict[str, Tracked] = field(default_factory=dict)  # open, or not yet in the ledger
    known_ids: dict[str, None] = field(default_factory=dict)  # ids of the latest orders, the newest last
    slept_s: float = 0.0  # total waiting time, seconds
    must_stop: Callable[[], str | None] = lambda: None  # reason why no order may be sent; ignored when flattening

    # ---------------------------------------------------------------- sending
    def trade(self, bar_s: int, phase: Phase, intents: Sequence[Intent]) -> list[Tracked]:
        """Send orders and track them until they are closed or the timeout expires.

        Raises:
            OSError: if the journal cannot be written. An order that is not in the journal is never sent.
        """
        intents = [intent for intent in intents if intent.order_id not in self.known_ids]
        if not intents:
            return []
        self.journal.append("intents", bar_s=bar_s, phase=phase, orders=[_intent_json(intent) for intent in intents])
        batch = [self._track(intent) for intent in intents]
        mids = self._mids()
        started_s = self.waited_s
        reasons = {each.intent.order_id: self._send(each) for each in batch}
        self._follow(batch, started_s + self.timeout_s)
        took_s = self.waited_s - started_s
        for each in batch:
            self._write(each, reasons[each.intent.order_id], mids.get(each.intent.ticker), took_s)
        return batch

    def _track(self, intent: Intent) -> Tracked:
        self.known_ids[intent.order_id] = None
        if len(self.known_ids) > MOST_KNOWN_IDS:
            del self.known_ids[next(iter(self.known_ids))]
        return self.tracked.setdefault(intent.order_id, Tracked(intent))

    def _mids(self) -> Mapping[str, Decimal]:
        """Return the quotes for the record, or {} if there are none; orders do not depend on them."""
        try:
            return self.broker.quotes()
        except (UnreachableError, VenueError):
            return {}

    def _send(self, each: Tracked) -> str:
        """Send an order and return the reason if it was not accepted, else ""."""
        why = self.must_stop() if each.intent.why != "flatten" else None
        if why is not None:
            each.status = "canceled"
            return f"not sent: {why}"
        try:
            each.see(self.broker.send(each.intent))
        except RejectedError as error:
            self._refuse(each)
            return str(error)
        except (OutcomeUnknownError, UnreachableError) as error:
            each.status = "unknown"
            return str(error)
        return ""

    def _refuse(self, each: Tracked) -> None:
        """Mark an order as rejected. If the venue has an order with this id, that order is foreign."""
        each.status = "rejected"
        self.known_ids.pop(each.intent.order_id, None)

    def _follow(self, batch: Sequence[Tracked], end_s: float) -> None:
        """Poll the orders until all are closed, and cancel those that are not closed in time."""
        self._poll(batch, end_s)
        late = [each for each in batch if each.status not in OVER]
        for each in late:
            self._cancel(each)
        self._poll(late, self.waited_s + CANCEL_WAIT_S)

    def _poll(self, batch: Sequence[Tracked], end_s: float) -> None:
        """Look up the orders until all are closed or `waited_s` reaches `end_s`."""
        is_first = True
        while open_orders := [each for each in batch if each.status not in OVER]:
            if not is_first:
                if self.waited_s >= end_s:
                    return
                self.pause(POLL_S)
            is_first = False
            for each in open_orders:
                self._try_look_up(each)

    def _try_look_up(self, each: Tracked) -> None:
        try:
            self._look_up(each)
        except UnreachableError:
            each.status = "unknown"

    def _look_up(self, each: Tracked) -> VenueOrder | None:
        found = self.broker.find(each.intent.order_id)
        if found is None:
            each.status = "not_arrived"
        else:
            each.see(found)
        return found

    def _cancel(self, each: Tracked) -> None:
        try:
            found = self.broker.find(each.intent.order_id)
            if found is not None and not found.is_over:
                self.broker.cancel(found)
        except (UnreachableError, RejectedError) as error:
            log.warning("could not cancel the %s order for %s: %s", each.intent.side, each.intent.ticker, error)

    # ---------------------------------------------------------------- later lookups
    def look_up_open(self) -> None:
        """Look up every order of unknown outcome, cancel those still open, and record the changes.

        Raises:
            UnreachableError: if the venue does not respond.
        """
        for each in self.open_orders:
            before = each.status, each.filled
            found = self._look_up(each)
            if found is not None and not found.is_over:
                self._cancel(each)
                self._try_look_up(each)  # the earlier result is recorded in any case
            reason = "looked up later"
            if each.status == "not_arrived" and self.now_s() - each.intent.bar_s > WATCH_S:
                each.status, reason = "canceled", f"did not arrive within {WATCH_S:.0f} s; no longer looked up"
            if (each.status, each.filled) != before:
                self._write(each, reason, None, 0.0)

    def reserved(self, ticker: str) -> Decimal:
        """Return the coins that sales of unknown outcome may still sell."""
        return sum((each.intent.qty - each.filled for each in self.open_orders
                    if (each.intent.ticker, each.intent.side) == (ticker, "sell")), ZERO)  # fmt: skip

    @property
    def waited_s(self) -> float:
        """Total time spent waiting for the venue, in seconds. Clock changes do not affect it."""
        return self.slept_s + self.broker.asked_s

    def pause(self, seconds: float) -> None:
        """Wait and add to the waiting time."""
        self.slept_s += seconds
        self.sleep(seconds)

    def fills(self) -> list[Fill]:
        """Return the fills since the last reconciliation."""
        return [fill for each in self.tracked.values() if (fill := each.fill()) is not None]

    def count(self) -> None:
        """Mark all fills as included in the ledger, and drop closed orders."""
        for each in self.tracked.values():
            each.count()
        self.tracked = {name: each for name, each in self.tracked.items() if each.status not in OVER}

    @property
    def open_orders(self) -> list[Tracked]:
        """Orders of unknown outcome."""
        return [each for each in self.tracked.values() if each.status not in OVER]

    def _write(self, each: Tracked, reason: str, mid: Decimal | None, took_s: float) -> None:
        price = each.price
        self.journal.append(
            "order", id=each.intent.order_id, ticker=each.intent.ticker, side=each.intent.side, status=each.status,
            filled_qty=str(each.filled), price=None if price is None else str(price), reason=reason,
            mid=None if mid is None else str(mid), took_s=round(took_s, 3), notional=str(each.notional),
        )  # fmt: skip

    # ---------------------------------------------------------------- a restart
    def remember(self, event: Event) -> None:
        """Restore the state from the next event of the journal."""
        if event["event"] == "intents":
            for order in event["orders"]:
                self._track(_intent_of(order, event["bar_s"]))
        elif event["event"] == "order" and event["id"] in self.tracked:
            each = self.tracked[event["id"]]
            if event["status"] == "rejected":
                self._refuse(each)
            each.status, each.filled = event["status"], Decimal(event["filled_qty"])
            each.notional = Decimal(event["notional"])
            each.price = None if event["price"] is None else Decimal(event["price"])
        elif event["event"] == "account":
            self.count()


def _intent_json(intent: Intent) -> dict[str, Any]:
    return {
        "id": intent.order_id, "ticker": intent.ticker, "side": intent.side, "qty": str(intent.qty),
        "price": intent.price, "why": intent.why, "sized": intent.sized,
    }  # fmt: skip


def _intent_of(order: Mapping[str, Any], bar_s: int) -> Intent:
    return Intent(order["id"], order["ticker"], order["side"], Decimal(order["qty"]), bar_s, order["price"],
                  order["why"], order["sized"])  # fmt: skip
