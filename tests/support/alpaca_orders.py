"""Orders, fills, positions and transfers of the Alpaca stand-in, and how Alpaca's JSON shows them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Self

from tests.support.alpaca_market import NANO, SECOND, deterministic_id, iso, text

TERMINAL = ("filled", "canceled", "expired", "rejected")
ENDS = {"cancel": "canceled", "expire": "expired", "reject": "rejected"}  # step -> status
END_TIMES = {"filled": "filled_at", "canceled": "canceled_at", "expired": "expired_at", "rejected": "failed_at"}


@dataclass
class Step:
    """One step of an order's plan: `fill`, `cancel`, `expire` or `reject`."""

    do: str
    fraction: Decimal | None = None  # of the whole order, for `fill`; None: the rest
    gets: int = 0
    after_s: Decimal = Decimal(0)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Self:
        assert fields["do"] in ("fill", *ENDS), fields
        fraction = fields.get("fraction")
        return cls(
            fields["do"],
            None if fraction is None else Decimal(str(fraction)),
            int(fields.get("gets", 0)),
            Decimal(str(fields.get("after_s", 0))),
        )


@dataclass
class Plan:
    """Steps for the next orders that match; empty text matches all."""

    steps: list[Step]
    times: int = 1
    symbol: str = ""
    side: str = ""


@dataclass
class Order:
    id: str
    client_order_id: str
    symbol: str
    side: str
    time_in_force: str
    qty: Decimal | None  # as sent
    notional: Decimal | None  # as sent
    target: Decimal  # coins to fill
    held_price: Decimal  # per coin that is still to fill, of the cash held by a buy
    submitted_at: int
    plan: list[Step]
    is_foreign: bool = False
    status: str = "pending_new"
    filled: Decimal = Decimal(0)
    cost: Decimal = Decimal(0)  # sum of qty * price
    since: int = 0  # when the plan's first step came first
    updated_at: int = 0
    ended_at: int | None = None

    @property
    def is_open(self) -> bool:
        return self.status not in TERMINAL

    @property
    def rest(self) -> Decimal:
        return self.target - self.filled if self.is_open else Decimal(0)

    def view(self) -> dict[str, Any]:
        average = (self.cost / self.filled).quantize(NANO, ROUND_HALF_EVEN) if self.filled else None
        ends = {name: iso(self.ended_at) if self.status == status else None for status, name in END_TIMES.items()}
        return {
            "id": self.id,
            "client_order_id": self.client_order_id,
            "created_at": iso(self.submitted_at),
            "submitted_at": iso(self.submitted_at),
            "updated_at": iso(self.updated_at),
            **ends,
            **dict.fromkeys(("replaced_at", "replaced_by", "replaces", "limit_price", "stop_price", "legs")),
            **dict.fromkeys(("trail_percent", "trail_price", "hwm", "expires_at")),
            "asset_id": deterministic_id("asset", self.symbol),
            "symbol": self.symbol,
            "asset_class": "crypto",
            "qty": None if self.qty is None else text(self.qty),
            "notional": None if self.notional is None else text(self.notional),
            "filled_qty": text(self.filled),
            "filled_avg_price": None if average is None else text(average),
            "order_class": "",
            "order_type": "market",
            "type": "market",
            "side": self.side,
            "time_in_force": self.time_in_force,
            "status": self.status,
            "extended_hours": False,
            "position_intent": "buy_to_open" if self.side == "buy" else "sell_to_close",
        }


@dataclass
class Fill:
    id: str
    order_id: str
    client_order_id: str
    symbol: str
    side: str
    qty: Decimal
    price: Decimal
    fee_coins: Decimal  # of a buy
    fee_usd: Decimal  # of a sale
    time: int
    cum_qty: Decimal
    leaves_qty: Decimal

    def view(self) -> dict[str, Any]:
        """The fill as Alpaca's activity of type FILL."""
        is_whole = self.leaves_qty == 0
        return {
            "id": self.id,
            "activity_type": "FILL",
            "transaction_time": iso(self.time),
            "type": "fill" if is_whole else "partial_fill",
            "price": text(self.price),
            "qty": text(self.qty),
            "side": self.side,
            "symbol": self.symbol,
            "leaves_qty": text(self.leaves_qty),
            "order_id": self.order_id,
            "cum_qty": text(self.cum_qty),
            "order_status": "filled" if is_whole else "partially_filled",
        }

    def fee_view(self) -> dict[str, Any]:
        """The fee as Alpaca's activity of type CFEE, dated at the fill."""
        is_buy = self.side == "buy"
        return {
            "id": self.id[:-36] + deterministic_id("fee", self.id),
            "activity_type": "CFEE",
            "date": str(iso(self.time))[:10],
            "net_amount": "0" if is_buy else text(-self.fee_usd),
            "description": f"Coin Pair Transaction Fee ({'Non USD' if is_buy else 'USD'})",
            "symbol": self.symbol.replace("/", "") if is_buy else "USD",
            "qty": text(-self.fee_coins),
            "price": text(self.price),
            "status": "executed",
        }


@dataclass
class Position:
    qty: Decimal
    avg_entry_price: Decimal  # USD per coin, rounded to 1e-9


@dataclass
class Transfer:
    """Cash that comes (positive) or goes."""

    time: int
    amount: Decimal  # USD

    def view(self, number: str) -> dict[str, Any]:
        return {
            "id": activity_id(number, "transfer", self.time),
            "activity_type": "CSD" if self.amount > 0 else "CSW",
            "date": str(iso(self.time))[:10],
            "net_amount": text(self.amount),
            "description": "",
            "qty": "0",
            "status": "executed",
        }


def activity_id(number: str, kind: str, moment: int) -> str:
    """Alpaca's form of an activity's id: the time to the millisecond, then a UUID; no two have the same `moment`."""
    digits = "".join(letter for letter in str(iso(moment))[:19] if letter.isdecimal())
    return f"{digits}{moment % SECOND // 1_000:03d}::{deterministic_id(number, kind, moment)}"
