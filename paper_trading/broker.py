"""Orders: what the trader wants, what the venue says of it, and the broker between the two.

An order's id is a hash of the deployment, the coin, the bar and the side, so the same intent has the same id after a
restart and on another machine, and the venue takes an id once.
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
RETRY_S, SAY_S = 1.0, 60.0  # a venue that does not answer at the start is asked again, and that is said
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class VenueError(UserError):
    """The venue cannot be used as it is: wrong keys, an unknown coin, an address that does not fit. One line."""


class UnreachableError(Exception):
    """The venue gave no answer to a question; nothing was changed."""


class OutcomeUnknownError(Exception):
    """An order was sent and no answer came: it may have arrived. Only a look-up by its id tells."""


class RejectedError(Exception):
    """The venue refused the order for certain."""


@dataclass(frozen=True)
class Intent:
    """An order that the trader means to send; written to the journal first."""

    order_id: str
    ticker: str
    side: Side
    qty: Decimal  # coins
    bar_s: int  # close of the bar that it is sized at, UTC seconds
    price: float  # that bar's close, quote per coin
    why: Why
    sized: float  # coins before the venue's rounding


@dataclass(frozen=True)
class VenueOrder:
    """An order as the venue has it."""

    order_id: str  # the client's
    venue_id: str
    symbol: str  # as the venue spells it in orders
    side: Side
    qty: Decimal  # coins
    filled_qty: Decimal  # coins
    price: Decimal | None  # average of the fills, quote per coin
    is_over: bool  # nothing more will fill
    status: str  # the venue's word
    ticker: str | None = None  # ours; None for a symbol that is not traded

    @property
    def is_ours(self) -> bool:
        """Whether a trader of this kind sent it."""
        return self.order_id.startswith(ID_PREFIX)

    @property
    def ending(self) -> Ending:
        """How it ended, in the journal's words."""
        if not self.is_over:
            return "unknown"
        if self.filled_qty <= 0:
            return "rejected" if self.status == "rejected" else "canceled"
        return "filled" if self.filled_qty >= self.qty else "partial"


@dataclass(frozen=True)
class Snapshot:
    """What the venue says of the account at one moment."""

    cash: Decimal  # quote
    qty: Mapping[str, Decimal]  # coins by ticker, of the coins asked for
    other: Mapping[str, Decimal]  # positions in other symbols
    open_orders: Sequence[VenueOrder]


class Broker(Protocol):
    """A venue. Every method may raise UnreachableError."""

    mode: Mode
    account: str  # name of the account's folder
    asked_s: float  # seconds so far that its answers took

    def snapshot(self) -> Snapshot:
        """Cash, coins and open orders."""
        ...

    def send(self, intent: Intent) -> VenueOrder:
        """Send a market order.

        Raises:
            RejectedError: refused for certain.
            OutcomeUnknownError: no answer.
        """
        ...

    def find(self, order_id: str) -> VenueOrder | None:
        """The order with this id; None where the venue has none."""
        ...

    def cancel(self, order: VenueOrder) -> None:
        """Ask for an order's end; one that is over already is no error."""
        ...

    def orders_after(self, after_s: float) -> Sequence[VenueOrder]:
        """All orders since then, anybody's."""
        ...

    def rules(self) -> Mapping[str, OrderRule] | None:
        """Present order rules by ticker, of what can be traded now; None where the venue tells none."""
        ...

    def quotes(self) -> Mapping[str, Decimal]:
        """Middle of bid and ask by ticker, quote per coin; empty where the venue tells none."""
        ...


def order_id(deployment: str, ticker: str, bar_s: int, side: Side) -> str:
    """The id of an order; equal intents have equal ids."""
    digest = hashlib.sha256(f"{deployment}|{ticker}|{bar_s}|{side}".encode()).hexdigest()
    return f"{ID_PREFIX}{digest[:32]}"


def whole_qty(quantity: float, increment: float) -> Decimal:
    """A quantity of whole increments as an exact decimal; without an increment the float's own digits."""
    if increment <= 0:
        return Decimal(repr(quantity))
    step = Decimal(repr(increment))
    return (Decimal(repr(quantity)) / step).to_integral_value() * step


def rounded_down(qty: Decimal, increment: float) -> Decimal:
    """To whole increments, not below 0: a fee may have left a part of one."""
    if increment > 0:
        step = Decimal(repr(increment))
        qty = (qty / step).to_integral_value(ROUND_FLOOR) * step
    return max(qty, Decimal(0))


def answered(ask: Callable[[], Answer], sleep: Callable[[float, Callable[[], None]], None]) -> Answer:
    """What the venue answers at the start: it is asked until it does, and that is said at once and every minute.

    Args:
        ask: raises UnreachableError without an answer.
        sleep: waits so many seconds; a signal raises out of it.
    """
    said_s = float("-inf")
    while True:
        try:
            return ask()
        except UnreachableError as error:
            if time.monotonic() - said_s >= SAY_S:
                log.warning("%s; it is asked again until it does", error)
                said_s = time.monotonic()
        sleep(RETRY_S, lambda: None)
