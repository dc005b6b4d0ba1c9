"""Replay broker: an in-process venue that fills orders at the bar's close with the simulator's slippage and fee.

It uses the simulator's float arithmetic for each order, so a replayed account is bit-identical to the simulated one.
`FaultyBroker` adds the faults of a real venue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from random import Random

from environment_Alpaca_vectorized import EnvParams
from market.venues import OrderRule
from paper_trading.broker import (
    Intent,
    Mode,
    OutcomeUnknownError,
    RejectedError,
    Snapshot,
    UnreachableError,
    VenueOrder,
)


class ReplayBroker:
    """A long-only spot account that fills every market order immediately at the close that sized it."""

    mode: Mode = "REPLAY"
    account = "replay"
    asked_s = 0.0

    def __init__(self, params: EnvParams, tickers: Sequence[str]) -> None:
        self.params, self.cash = params, float(params.initial_capital)
        self.qty = dict.fromkeys(tickers, 0.0)
        self._orders: dict[str, VenueOrder] = {}

    def restore(self, cash: Decimal, qty: Mapping[str, Decimal]) -> None:
        """Restore the balances of an earlier run of the same replay."""
        self.cash, self.qty = float(cash), {ticker: float(qty[ticker]) for ticker in self.qty}

    def snapshot(self) -> Snapshot:
        """Return the balances of the account."""
        return Snapshot(_text(self.cash), {ticker: _text(qty) for ticker, qty in self.qty.items()}, {}, ())

    def send(self, intent: Intent) -> VenueOrder:
        """Fill the whole order and return it."""
        return self.fill(intent, float(intent.qty))

    def fill(self, intent: Intent, quantity: float) -> VenueOrder:
        """Fill `quantity` coins of an order and close the order."""
        known = self._orders.get(intent.order_id)
        if known is not None:
            raise RejectedError("client order id must be unique")
        p, close = self.params, intent.price
        if intent.side == "sell":
            if quantity > self.qty[intent.ticker]:
                raise RejectedError(f"insufficient balance for {intent.ticker}")
            price = close * (1.0 - p.slippage_rate)
            self.cash += quantity * price * (1.0 - p.sell_fee_rate)
            self.qty[intent.ticker] -= quantity
        else:
            price = close * (1.0 + p.slippage_rate)
            cost = quantity * (close * (1.0 + p.slippage_rate) * (1.0 + p.buy_fee_rate))
            self.cash = max(0.0, self.cash - cost)
            self.qty[intent.ticker] += quantity
        order = VenueOrder(
            intent.order_id, intent.order_id, intent.ticker, intent.side, intent.qty, _text(quantity), _text(price),
            is_over=True, status="filled",
        )  # fmt: skip
        self._orders = {intent.order_id: order} | dict(list(self._orders.items())[-1000:])
        return order

    def find(self, order_id: str) -> VenueOrder | None:
        """Return one of the latest orders, or None."""
        return self._orders.get(order_id)

    def cancel(self, order: VenueOrder) -> None:
        """Do nothing, because every order is already closed."""

    def orders_after(self, after_s: float) -> Sequence[VenueOrder]:
        """Return no orders, because the account has no other users."""
        return ()

    def rules(self) -> Mapping[str, OrderRule] | None:
        """Return None, so that the deployment's order rules are used."""
        return None

    def quotes(self) -> Mapping[str, Decimal]:
        """Return no quotes, because datasets have none."""
        return {}


def _text(value: float) -> Decimal:
    """Return the shortest decimal that converts back to this float."""
    return Decimal(repr(float(value)))


class FaultyBroker:
    """Replay broker with randomly drawn venue faults, which affect about one order in five.

    Args:
        broker: the replay broker.
        faults: members of TRADING_FAULTS. timeout: the order never arrives; lost-answer: the order arrives, but the
            response is lost; 429: the order is rejected by the rate limit; partial: half of the order is filled; reject
            and balance: the two meanings of Alpaca's error 40310000.
        seed: seed of the random faults.
    """

    def __init__(self, broker: ReplayBroker, faults: Sequence[str], seed: int) -> None:
        self._broker, self._faults, self._random = broker, tuple(faults), Random(seed)
        self.mode = broker.mode
        self.account, self.asked_s = broker.account, 0.0
        self.restore, self.find, self.cancel = broker.restore, broker.find, broker.cancel
        self.orders_after, self.rules, self.quotes = broker.orders_after, broker.rules, broker.quotes

    def snapshot(self) -> Snapshot:
        """Return the balances, or raise UnreachableError with a small probability."""
        if "timeout" in self._faults and self._random.random() < 0.02:
            raise UnreachableError("simulated fault: no response")
        return self._broker.snapshot()

    def send(self, intent: Intent) -> VenueOrder:
        """Send an order to the replay broker, possibly with a fault."""
        fault = self._random.choice(self._faults) if self._random.random() < 0.2 else ""
        if fault == "timeout":
            raise OutcomeUnknownError("simulated fault: no response, and the order did not arrive")
        if fault == "429":
            raise RejectedError("simulated fault: 429 too many requests")
        if fault == "reject":
            raise RejectedError("simulated fault: 40310000 cost basis must be >= minimal amount of order 10")
        if fault == "balance":
            raise RejectedError(f"simulated fault: 40310000 insufficient balance for {intent.ticker}")
        if fault == "partial":
            return replace(self._broker.fill(intent, float(intent.qty) / 2), status="canceled")
        order = self._broker.send(intent)
        if fault == "lost-answer":
            raise OutcomeUnknownError("simulated fault: no response, but the order arrived")
        return order
