"""Reconciliation of the trader's ledger with the venue's account.

Changes in the account are attributed to our own orders or to foreign orders. A foreign order explains only the coins
that it filled since the last reconciliation. If no order explains a change, or if another barwise trader uses the
account, the account is unexplained. The trader then stops buying until a person resolves the problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Self

from paper_trading.broker import Broker, Snapshot, VenueOrder
from paper_trading.desk import Desk
from paper_trading.journal import Journal
from paper_trading.ledger import ZERO, Explained, Fill, Ledger, Rates, explain, open_ledger

SETTLE_TRIES, SETTLE_S = 4, 0.5  # the account is read again while fills are still arriving
MARGIN_S = 600.0  # foreign orders are searched from this long before the last reconciliation on, because clocks differ
RIVAL = "another barwise trader uses this account: {} {} {}; two traders must not share an account"
MOST_THEIRS = 500  # number of foreign orders that are remembered


@dataclass(frozen=True)
class Theirs:
    """The filled part of a foreign order that the ledger already includes."""

    qty: Decimal  # coins
    notional: Decimal  # quote
    is_over: bool

    def to_json(self) -> list[Any]:
        """Return JSON values, with amounts as decimal strings."""
        return [str(self.qty), str(self.notional), self.is_over]

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> Self:
        """Create the object from values written by `to_json`."""
        return cls(Decimal(values[0]), Decimal(values[1]), values[2])


Orders = Mapping[str, tuple[str, VenueOrder]]  # id -> (ticker or the venue's symbol, foreign order)


class Books:
    """The ledger of one account and its reconciliation.

    Args:
        broker: the venue.
        desk: order desk that tracks our orders.
        journal: records every change.
        rates: expected fees.
        capital: initial cash of the trader, in quote currency; None uses all the account's cash.
        ledger: ledger of an earlier run; None at the first start.
        known_s: time of the last reconciliation, in UTC seconds.
        theirs: foreign orders that an earlier run already included.
    """

    def __init__(
        self, broker: Broker, desk: Desk, journal: Journal, rates: Rates, capital: Decimal | None,
        ledger: Ledger | None, known_s: float | None, theirs: Mapping[str, Theirs],
    ) -> None:  # fmt: skip
        self.broker, self.desk, self.journal, self.rates, self.capital = broker, desk, journal, rates, capital
        self.ledger, self.known_s, self.theirs = ledger, known_s, dict(theirs)

    def reconcile(self, bar_s: int) -> Explained:
        """Update the ledger from the venue's account and record what changed.

        Raises:
            UnreachableError: if the venue does not respond. The ledger is unchanged.
            OSError: if the journal cannot be written.
        """
        self.desk.look_up_open()
        now_s = self.desk.now_s()
        found, theirs = self._explained()
        fills = self.desk.fills()
        expected = sum((fill.notional * getattr(self.rates, fill.side) for fill in fills), ZERO)
        if found.ledger != self.ledger or theirs or fills or found.unexplained:
            for line in found.foreign:
                self.journal.append("foreign", what="account", text=line)
            self.journal.append(
                "account", bar_s=bar_s, **found.ledger.to_json(), fee_cash=str(found.fee_cash),
                fee_qty={name: str(fee) for name, fee in found.fee_qty.items()}, explained=not found.unexplained,
                notes=list(found.unexplained), known_s=round(now_s, 3), fee_expected=str(expected),
                theirs={name: each.to_json() for name, each in theirs.items()},
            )  # fmt: skip
        self.ledger, self.known_s = found.ledger, now_s
        self.theirs = dict([*self.theirs.items(), *theirs.items()][-MOST_THEIRS:])
        self.desk.count()
        return replace(found, fee_expected=expected)

    def _explained(self) -> tuple[Explained, dict[str, Theirs]]:
        """Explain the account and return the changed foreign orders. Reread it while our orders may still fill."""
        snapshot = self.broker.snapshot()
        if self.ledger is None or self.known_s is None:
            return self._opened(snapshot), self._taken_in(self._orders_of_others(snapshot))
        for _ in range(SETTLE_TRIES - 1):
            found, theirs = self._explain(self.ledger, snapshot)
            if not found.unexplained:
                return found, theirs
            self.desk.pause(SETTLE_S)
            self.desk.look_up_open()
            snapshot = self.broker.snapshot()
        return self._explain(self.ledger, snapshot)

    def _opened(self, snapshot: Snapshot) -> Explained:
        """Explain the account at the first reconciliation, which already includes all earlier foreign orders."""
        if self.ledger is not None:
            return self._explained_by(self.ledger, snapshot, [])
        ledger = open_ledger(snapshot, self.capital)
        foreign = [f"{ticker}: {qty} coins in the account before the trader began"
                   for ticker, qty in ledger.foreign_qty.items() if qty]  # fmt: skip
        foreign += [f"{name}: {qty} coins that the deployment does not trade" for name, qty in ledger.other.items()]
        return Explained(ledger, ZERO, {}, foreign)

    def _explained_by(self, ledger: Ledger, snapshot: Snapshot, others: Sequence[Fill] | None = None) -> Explained:
        """Explain the account by our fills and by `others`. Late fees are considered only if `others` is given."""
        is_part, is_asked = self.capital is not None, others is not None
        return explain(
            ledger, snapshot, self.desk.fills(), self.rates, others or (), self.desk.now_s(), is_part, is_asked
        )

    def _explain(self, ledger: Ledger, snapshot: Snapshot) -> tuple[Explained, dict[str, Theirs]]:
        found = self._explained_by(ledger, snapshot)
        if not found.unexplained:  # open foreign orders are remembered, because they may fill days later
            waiting = {
                name: pair for name, pair in self._others(snapshot.open_orders).items() if name not in self.theirs
            }
            rivals = [
                RIVAL.format(order.side, order.qty, ticker) for ticker, order in waiting.values() if order.is_ours
            ]
            return replace(found, unexplained=rivals), dict.fromkeys(waiting, Theirs(ZERO, ZERO, False))
        orders = self._orders_of_others(snapshot)
        new = {name: self._new_fill(name, *pair) for name, pair in orders.items()}
        new = {name: fill for name, fill in new.items() if fill.qty > 0}
        found = self._explained_by(ledger, snapshot, list(new.values()))
        rivals = [RIVAL.format(fill.side, fill.qty, fill.ticker)
                  for name, fill in new.items() if orders[name][1].is_ours]  # fmt: skip
        names = [f"foreign order: {fill.side} {fill.qty} {fill.ticker}"
                 for name, fill in new.items() if not orders[name][1].is_ours]  # fmt: skip
        told = replace(found, foreign=[*names, *found.foreign], unexplained=[*found.unexplained, *rivals])
        return told, self._taken_in(orders)

    def _new_fill(self, name: str, ticker: str, order: VenueOrder) -> Fill:
        """Return the part of a foreign order that filled since the ledger last included it."""
        known = self.theirs.get(name, Theirs(ZERO, ZERO, False))
        return Fill(ticker, order.side, order.filled_qty - known.qty, _notional(order) - known.notional)

    def _orders_of_others(self, snapshot: Snapshot) -> Orders:
        """Return the foreign orders since the last reconciliation, and all that were open then or are open now."""
        since_s = (self.desk.now_s() if self.known_s is None else self.known_s) - MARGIN_S
        orders = {each.order_id: each for each in [*self.broker.orders_after(since_s), *snapshot.open_orders]}
        for name, known in self.theirs.items():
            if not known.is_over and name not in orders and (found := self.broker.find(name)) is not None:
                orders[name] = found
        return self._others(orders.values())

    def _others(self, orders: Iterable[VenueOrder]) -> Orders:
        """Select the foreign orders in our coins and in other symbols quoted in USD."""
        return {
            each.order_id: (each.ticker or each.symbol, each)
            for each in orders
            if each.order_id not in self.desk.known_ids and (each.ticker is not None or _is_in_dollars(each.symbol))
        }

    def _taken_in(self, orders: Orders) -> dict[str, Theirs]:
        """Return the new state of every foreign order that has changed."""
        now = {name: Theirs(each.filled_qty, _notional(each), each.is_over) for name, (_, each) in orders.items()}
        return {name: each for name, each in now.items() if each != self.theirs.get(name)}


def _is_in_dollars(symbol: str) -> bool:
    _, has_currency, currency = symbol.partition("/")
    return not has_currency or currency == "USD"


def _notional(order: VenueOrder) -> Decimal:
    return order.filled_qty * (order.price or ZERO)
