"""The kill switch: cancel our orders and sell our coins, whatever the policy, the feed or the disk is like."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from paper_trading.broker import (
    Broker,
    Intent,
    OutcomeUnknownError,
    RejectedError,
    UnreachableError,
    VenueError,
    order_id,
    rounded_down,
)
from paper_trading.desk import OVER, Desk, Tracked
from paper_trading.journal import Journal, JournalError, lines
from paper_trading.ledger import Ledger

log = logging.getLogger(__name__)


class NoJournal:
    """Stands in for a journal that cannot be written: orders are logged instead."""

    def append(self, event: str, **content: Any) -> dict[str, Any]:
        """Log it."""
        log.warning("not in the journal: %s %s", event, content)
        return content


class KeepGoingJournal:
    """A journal whose full disk does not stop a flattening."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def append(self, event: str, **content: Any) -> dict[str, Any]:
        """Write it, or log it where the disk is full."""
        try:
            return self._journal.append(event, **content)
        except OSError as error:
            log.warning("the journal cannot be written (%s)", error.strerror)
            return NoJournal().append(event, **content)


def flatten(desk: Desk, owned: Mapping[str, Decimal], prices: Mapping[str, float], why: str) -> list[Tracked]:
    """Cancel what is open of ours, then sell what is ours.

    Args:
        desk: sends and follows the orders.
        owned: coins of ours by ticker.
        prices: the last closes, for the record; 0 where none is known.
        why: for the orders' ids: two flattenings within a second are one.

    Raises:
        UnreachableError: the venue does not answer.
    """
    snapshot = desk.broker.snapshot()
    for order in snapshot.open_orders:
        if order.is_ours:
            _cancelled(desk.broker, order)
    snapshot, steps = desk.broker.snapshot(), _increments(desk.broker)
    now_s = int(desk.now_s())
    intents = []
    for ticker, qty in owned.items():
        sellable = rounded_down(min(qty, snapshot.qty.get(ticker, Decimal(0))), steps.get(ticker, 0.0))
        if sellable > 0:
            name = order_id(why, ticker, now_s, "sell")
            intents.append(
                Intent(name, ticker, "sell", sellable, now_s, prices.get(ticker, 0.0), "flatten", float(sellable))
            )
    return desk.trade(now_s, "flatten", intents)


def _increments(broker: Broker) -> dict[str, float]:
    """By ticker; none where the venue does not tell them: then it takes the amount as it is, or refuses it."""
    try:
        rules = broker.rules() or {}
    except (UnreachableError, VenueError):
        return {}
    return {ticker: rule.qty_increment for ticker, rule in rules.items()}


def with_open_orders(desk: Desk, path: Path, owned: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """Our coins after the orders that no reconciliation has taken in; the desk follows those of the journal.

    Raises:
        UnreachableError: the venue does not answer.
        JournalError: damaged.
    """
    for event in lines(path):
        desk.remember(event)
    desk.look_up_open()
    found = dict(owned)
    for fill in desk.fills():
        found[fill.ticker] = found.get(fill.ticker, Decimal(0)) + (fill.qty if fill.side == "buy" else -fill.qty)
    return {ticker: max(qty, Decimal(0)) for ticker, qty in found.items()}


def _cancelled(broker: Broker, order: Any) -> None:
    try:
        broker.cancel(order)
    except (RejectedError, UnreachableError, OutcomeUnknownError) as error:
        log.warning("%s %s is not cancelled: %s", order.side, order.symbol, error)


def owned_by_journal(path: Path) -> tuple[dict[str, Decimal], tuple[str, ...]] | None:
    """(our coins, tickers) as the journal has them; None where it has none or is damaged."""
    ledger, tickers = None, ()
    try:
        for event in lines(path):
            if event["event"] == "start":
                tickers = tuple(event["tickers"])
            elif event["event"] == "account":
                ledger = Ledger.from_json(event)
    except JournalError as error:
        log.warning("%s", error)
        return None
    return None if ledger is None else (dict(ledger.qty), tickers)


def owned_by_orders(broker: Broker, tickers: Sequence[str], since_s: float = 0.0) -> dict[str, Decimal]:
    """Our coins by the orders that bear our mark: what a lost journal leaves to go by."""
    owned = dict.fromkeys(tickers, Decimal(0))
    by_symbol = {ticker.replace("/", ""): ticker for ticker in tickers}
    for order in broker.orders_after(since_s):
        ticker = by_symbol.get(order.symbol.partition("/")[0]) or by_symbol.get(order.symbol)
        if order.is_ours and ticker is not None:
            owned[ticker] += order.filled_qty if order.side == "buy" else -order.filled_qty
    return {ticker: max(qty, Decimal(0)) for ticker, qty in owned.items()}


def wait_until_sold(desk: Desk, batch: Sequence[Tracked], seconds: float) -> bool:
    """Whether all of it is sold in time."""
    end = time.monotonic() + seconds
    while any(each.status not in OVER for each in batch) and time.monotonic() < end:
        desk.pause(1.0)
        desk.look_up_open()
    return all(each.status == "filled" for each in batch)
