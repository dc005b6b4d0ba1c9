"""Orders, account snapshots and the broker interface.

The id of an order is a hash of the deployment, coin, bar and side. The same intent therefore has the same id after a
restart and on a different machine, and the venue accepts each id only once.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Literal, Protocol, TypeVar

from market.errors import UserError
from market.venues import OrderRule

Side = Literal["buy", "sell"]
Mode = Literal["REPLAY", "PAPER", "LIVE"]
Why = Literal["policy", "stop", "stale", "flatten"]
Ending = Literal["filled", "partial", "canceled", "rejected", "refused", "not_arrived", "unknown"]
ID_PREFIX = "barwise-"
RETRY_S, SAY_S = 1.0, 60.0  # retry interval and log interval while the venue does not respond at startup
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class VenueError(UserError):
    """A problem with the venue that the user must fix, such as wrong keys, an unknown coin or a wrong URL."""


class UnreachableError(Exception):
    """The venue did not respond to a query, and nothing has changed."""


class OutcomeUnknownError(Exception):
    """The venue did not respond to an order, which may have arrived. Only looking up its id shows the outcome."""


class RejectedError(Exception):
    """The venue definitely rejected the order."""


@dataclass(frozen=True)
class Intent:
    """An order that the trader is about to send. It is written to the journal first."""

    order_id: str
    ticker: str
    side: Side
    qty: Decimal  # coins
    bar_s: int  # close time of the bar that sizes the order, UTC seconds
    price: float  # close of that bar, quote per coin
    why: Why
    sized: float  # coins before rounding to the lot size


@dataclass(frozen=True)
class VenueOrder:
    """The venue's record of an order."""

    order_id: str  # client order id
    venue_id: str
    symbol: str  # the venue's spelling in orders
    side: Side
    qty: Decimal  # coins
    filled_qty: Decimal  # coins
    price: Decimal | None  # average price of the fills, quote per coin
    is_over: bool  # nothing more will fill
    status: str  # the venue's status text
    ticker: str | None = None  # None for a symbol that the deployment does not trade

    @property
    def is_ours(self) -> bool:
        """True if a barwise trader sent the order."""
        return self.order_id.startswith(ID_PREFIX)

    @property
    def ending(self) -> Ending:
        """Outcome of the order, as written in the journal."""
        if not self.is_over:
            return "unknown"
        if self.filled_qty <= 0:
            return "rejected" if self.status == "rejected" else "canceled"
        return "filled" if self.filled_qty >= self.qty else "partial"


@dataclass(frozen=True)
class Snapshot:
    """The state of the account at one moment, as reported by the venue."""

    cash: Decimal  # quote
    qty: Mapping[str, Decimal]  # coins by ticker, for the requested tickers
    other: Mapping[str, Decimal]  # positions in other symbols
    open_orders: Sequence[VenueOrder]


class Broker(Protocol):
    """Interface of a venue. Every method may raise UnreachableError."""

    mode: Mode
    account: str  # name of the account's folder
    asked_s: float  # total time spent waiting for responses, seconds

    def snapshot(self) -> Snapshot:
        """Return cash, coins and open orders."""
        ...

    def send(self, intent: Intent) -> VenueOrder:
        """Send a market order.

        Raises:
            RejectedError: if the venue definitely rejected the order.
            OutcomeUnknownError: if the venue did not respond.
        """
        ...

    def find(self, order_id: str) -> VenueOrder | None:
        """Return the order with this client id, or None if the venue has no such order."""
        ...

    def cancel(self, order: VenueOrder) -> None:
        """Request cancellation of an order. May raise RejectedError if the order is already closed."""
        ...

    def orders_after(self, after_s: float) -> Sequence[VenueOrder]:
        """Return all orders of the account since `after_s`, including foreign orders."""
        ...

    def rules(self) -> Mapping[str, OrderRule] | None:
        """Return the current order rules of all tradable tickers, or None if the venue does not provide rules."""
        ...

    def quotes(self) -> Mapping[str, Decimal]:
        """Return the midpoint of bid and ask by ticker, in quote per coin, or {} if the venue has no quotes."""
        ...


def order_id(deployment: str, ticker: str, bar_s: int, side: Side) -> str:
    """Return the client id of an order. Equal intents have equal ids."""
    digest = hashlib.sha256(f"{deployment}|{ticker}|{bar_s}|{side}".encode()).hexdigest()
    return f"{ID_PREFIX}{digest[:32]}"


def whole_qty(quantity: float, increment: float) -> Decimal:
    """Return a quantity of whole increments as an exact decimal. Without an increment, the float's digits are kept."""
    if increment <= 0:
        return Decimal(repr(quantity))
    step = Decimal(repr(increment))
    return (Decimal(repr(quantity)) / step).to_integral_value() * step


def rounded_down(qty: Decimal, increment: float) -> Decimal:
    """Round a quantity down to whole increments, but not below 0."""
    if increment > 0:
        step = Decimal(repr(increment))
        qty = (qty / step).to_integral_value(ROUND_FLOOR) * step
    return max(qty, Decimal(0))


def answered(ask: Callable[[], Answer], sleep: Callable[[float, Callable[[], None]], None]) -> Answer:
    """Repeat a query at startup until the venue responds. A warning is logged immediately and then every minute.

    Args:
        ask: query that raises UnreachableError if the venue does not respond.
        sleep: function that waits for the given seconds; a signal makes it raise.
    """
    said_s = float("-inf")
    while True:
        try:
            return ask()
        except UnreachableError as error:
            if time.monotonic() - said_s >= SAY_S:
                log.warning("%s; retrying", error)
                said_s = time.monotonic()
        sleep(RETRY_S, lambda: None)
