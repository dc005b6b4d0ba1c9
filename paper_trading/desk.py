"""The desk: sends orders, follows each to its end, and never sends an intent twice.

    intended   in the journal, not sent yet
    sent       the venue answered; it is polled until the order is over, then asked to cancel it
    unknown    no answer, or no end in time: looked up by its id at every bar, and cancelled if it is open
    not arrived  the venue has no such order; it may still come, so it is looked up for `WATCH_S`
    over       filled, partial, canceled or rejected

An order is not sent again, whatever became of it: the next bar decides anew. A restart reads the same states out of
the journal.
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

WATCH_S = 3_600.0  # an order that did not arrive is looked up for so long after its bar
POLL_S = 0.25
MOST_KNOWN_IDS = 500  # orders of ours that are told from those of others
CANCEL_WAIT_S = 5.0  # for the end of an order whose cancellation was asked for
OVER = ("filled", "partial", "canceled", "rejected", "refused")
Phase = Literal["sales", "buys", "flatten"]


@dataclass
class Tracked:
    """An order of ours and how much of it the ledger knows."""

    intent: Intent
    status: Ending | Literal["intended"] = "intended"
    filled: Decimal = ZERO  # coins
    notional: Decimal = ZERO  # quote
    price: Decimal | None = None  # average of the fills, as the venue says it
    counted: Decimal = ZERO  # coins that a reconciliation has taken in
    counted_notional: Decimal = ZERO  # quote

    def see(self, order: VenueOrder) -> None:
        """Take in what the venue says; an answer that is older than one before changes no fills."""
        self.status = order.ending
        if order.filled_qty >= self.filled and order.price is not None:
            self.filled, self.price = order.filled_qty, order.price
            self.notional = self.filled * self.price

    def fill(self) -> Fill | None:
        """What no reconciliation has taken in yet."""
        new = self.filled - self.counted
        intent = self.intent
        return Fill(intent.ticker, intent.side, new, self.notional - self.counted_notional) if new > 0 else None

    def count(self) -> None:
        """A reconciliation took it in."""
        self.counted, self.counted_notional = self.filled, self.notional


@dataclass
class Desk:
    """Orders of one account.

    Args:
        broker: the venue.
        journal: every intent goes there before it is sent, every end after it.
        now_s: the time, UTC seconds.
        sleep: waits so many seconds.
        timeout_s: an order that is not over by then is cancelled.
    """

    broker: Broker
    journal: Journal
    now_s: Callable[[], float]
    sleep: Callable[[float], None]
    timeout_s: float
    tracked: dict[str, Tracked] = field(default_factory=dict)  # not over, or not yet counted
    known_ids: dict[str, None] = field(default_factory=dict)  # of the last orders, the newest last
    slept_s: float = 0.0  # in all

    # ---------------------------------------------------------------- sending
    def trade(self, bar_s: int, phase: Phase, intents: Sequence[Intent]) -> list[Tracked]:
        """Send orders and follow them to their ends, or to the time limit.

        Raises:
            OSError: the journal cannot be written; what was not in it before was not sent.
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
        """Quotes are for the record; no order waits or fails for lack of them."""
        try:
            return self.broker.quotes()
        except (UnreachableError, VenueError):
            return {}

    def _send(self, each: Tracked) -> str:
        """The reason where it was not taken."""
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
        """The venue did not take it: an order that bears its id there is somebody else's."""
        each.status = "rejected"
        self.known_ids.pop(each.intent.order_id, None)

    def _follow(self, batch: Sequence[Tracked], end_s: float) -> None:
        """Poll until all are over; cancel what is not in time."""
        self._poll(batch, end_s)
        late = [each for each in batch if each.status not in OVER]
        for each in late:
            self._cancel(each)
        self._poll(late, self.waited_s + CANCEL_WAIT_S)

    def _poll(self, batch: Sequence[Tracked], end_s: float) -> None:
        """Look the orders up until all are over, or until `waited_s` is `end_s`."""
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
            log.warning("%s %s: not cancelled: %s", each.intent.side, each.intent.ticker, error)

    # ---------------------------------------------------------------- afterwards
    def look_up_open(self) -> None:
        """Look up every order whose end is not known, and cancel what is still open; changes go into the journal.

        Raises:
            UnreachableError: the venue does not answer.
        """
        for each in self.open_orders:
            before = each.status, each.filled
            found = self._look_up(each)
            if found is not None and not found.is_over:
                self._cancel(each)
                self._try_look_up(each)  # what was seen before goes into the journal in any case
            reason = "looked up later"
            if each.status == "not_arrived" and self.now_s() - each.intent.bar_s > WATCH_S:
                each.status, reason = "canceled", f"did not arrive within {WATCH_S:.0f} s; no longer looked up"
            if (each.status, each.filled) != before:
                self._write(each, reason, None, 0.0)

    def reserved(self, ticker: str) -> Decimal:
        """Coins that sales whose end is not known may still take."""
        return sum((each.intent.qty - each.filled for each in self.open_orders
                    if (each.intent.ticker, each.intent.side) == (ticker, "sell")), ZERO)  # fmt: skip

    @property
    def waited_s(self) -> float:
        """Seconds so far that the venue was waited for; a clock that is set does not change it."""
        return self.slept_s + self.broker.asked_s

    def pause(self, seconds: float) -> None:
        """Wait, and count it."""
        self.slept_s += seconds
        self.sleep(seconds)

    def fills(self) -> list[Fill]:
        """What filled since the last reconciliation."""
        return [fill for each in self.tracked.values() if (fill := each.fill()) is not None]

    def count(self) -> None:
        """The fills so far are in the ledger; orders that are over are done with."""
        for each in self.tracked.values():
            each.count()
        self.tracked = {name: each for name, each in self.tracked.items() if each.status not in OVER}

    @property
    def open_orders(self) -> list[Tracked]:
        """Orders whose end is not known."""
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
        """Take in an event of the journal, in order: intents, ends, reconciliations."""
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
