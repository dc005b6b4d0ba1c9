"""Kill switch that cancels our orders and sells our coins, even if the policy, the feed or the disk has failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from market.venues import OrderRule
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
    """Replacement for a journal that cannot be written. Events are logged instead."""

    def append(self, event: str, **content: Any) -> dict[str, Any]:
        """Log the event."""
        log.warning("not in the journal: %s %s", event, content)
        return content


class KeepGoingJournal:
    """Journal that logs an event if it cannot be written, so that a full disk does not stop a flattening."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def append(self, event: str, **content: Any) -> dict[str, Any]:
        """Write the event, or log it if the write fails."""
        try:
            return self._journal.append(event, **content)
        except OSError as error:
            log.warning("the journal cannot be written (%s)", error.strerror)
            return NoJournal().append(event, **content)


def flatten(desk: Desk, owned: Mapping[str, Decimal], prices: Mapping[str, float], why: str) -> list[Tracked]:
    """Cancel our open orders, then sell our coins.

    Args:
        desk: sends and tracks the orders.
        owned: our coins by ticker.
        prices: last closes by ticker, only recorded; 0 if unknown.
        why: part of the order ids. If the account is flattened twice within one second, both use the same orders.

    Raises:
        UnreachableError: if the venue does not respond.
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


def left_over(broker: Broker, owned: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """Return our remaining coins by ticker that are large enough to be sold.

    Raises:
        UnreachableError: if the venue does not respond.
    """
    snapshot, rules = broker.snapshot(), _rules(broker)
    left = {}
    for ticker, qty in owned.items():
        rule = rules.get(ticker)
        sellable = rounded_down(
            min(qty, snapshot.qty.get(ticker, Decimal(0))), 0.0 if rule is None else rule.qty_increment
        )
        if sellable > 0 and (rule is None or float(sellable) >= rule.min_order_qty):
            left[ticker] = sellable
    return left


def listed(left: Mapping[str, Decimal]) -> str:
    """Format coins as `0.5 BTC, 3 ETH`."""
    return ", ".join(f"{qty} {ticker}" for ticker, qty in left.items())


def _rules(broker: Broker) -> Mapping[str, OrderRule]:
    """Return the order rules by ticker, or {} if the venue does not provide them."""
    try:
        return broker.rules() or {}
    except (UnreachableError, VenueError):
        return {}


def _increments(broker: Broker) -> dict[str, float]:
    return {ticker: rule.qty_increment for ticker, rule in _rules(broker).items()}


def with_open_orders(desk: Desk, path: Path, owned: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """Restore the desk from the journal, and return our coins including fills that are not yet reconciled.

    Raises:
        UnreachableError: if the venue does not respond.
        JournalError: if the journal is damaged.
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
        log.warning("could not cancel the %s order for %s: %s", order.side, order.symbol, error)


def owned_by_journal(path: Path) -> tuple[dict[str, Decimal], tuple[str, ...]] | None:
    """Return (our coins, tickers) of the journal, or None if the journal is damaged or has no ledger."""
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
    """Return our coins computed from the orders of barwise traders, for use without a journal."""
    owned = dict.fromkeys(tickers, Decimal(0))
    by_symbol = {ticker.replace("/", ""): ticker for ticker in tickers}
    for order in broker.orders_after(since_s):
        ticker = by_symbol.get(order.symbol.partition("/")[0]) or by_symbol.get(order.symbol)
        if order.is_ours and ticker is not None:
            owned[ticker] += order.filled_qty if order.side == "buy" else -order.filled_qty
    return {ticker: max(qty, Decimal(0)) for ticker, qty in owned.items()}


def flatten_until_sold(desk: Desk, owned: Mapping[str, Decimal], why: str, seconds: float) -> dict[str, Decimal]:
    """Repeat the flattening until all coins are sold or time is up. Return the remaining coins by ticker.

    Raises:
        UnreachableError: if the venue does not respond within the time limit.
    """
    end, sent = time.monotonic() + seconds, list[Tracked]()
    while True:
        is_last = time.monotonic() >= end
        try:
            desk.look_up_open()
            sent += flatten(desk, _less(owned, sent), {}, why)
            left = left_over(desk.broker, _less(owned, sent))
            if not (left or desk.open_orders) or is_last:
                return left
        except UnreachableError:
            if is_last:
                raise
        desk.pause(1.0)


def _less(owned: Mapping[str, Decimal], sent: Sequence[Tracked]) -> dict[str, Decimal]:
    """Return our coins minus those that these sales sold or may still sell."""
    left = dict(owned)
    for each in sent:
        left[each.intent.ticker] -= each.filled if each.status in OVER else each.intent.qty
    return left
