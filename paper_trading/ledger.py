"""Whose cash and coins are in the account: ours, by our own fills, and all the rest, which is left alone.

At every reconciliation the venue is right about what is there, and our fills must explain how it came about. What they
leave unexplained is counted out of ours, and the trader buys nothing until somebody looked.

The venue takes its fee from what it credits, coins after a buy and cash after a sale, or from the cash of both; it is
what fills promised less what arrived. More than `MOST_FEES` times the expected fee is no fee.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from paper_trading.orders import Side, Snapshot

ZERO = Decimal(0)
CASH_TOLERANCE = Decimal("0.01")  # quote: venues round an average price
QTY_TOLERANCE = Decimal("0.00000001")  # coins
RELATIVE_TOLERANCE = Decimal("0.000001")  # of what was filled
MOST_FEES = 2  # times the expected fee


@dataclass(frozen=True)
class Fill:
    """What filled of an order since the last reconciliation."""

    ticker: str
    side: Side
    qty: Decimal  # coins
    notional: Decimal  # quote, quantity times average price


@dataclass(frozen=True)
class Rates:
    """Fees that are expected, fractions of the notional."""

    buy: Decimal
    sell: Decimal


@dataclass(frozen=True)
class Ledger:
    """Ours, and what else is in the account. Quote and coins."""

    cash: Decimal
    qty: Mapping[str, Decimal]  # by ticker
    foreign_cash: Decimal = ZERO
    foreign_qty: Mapping[str, Decimal] = field(default_factory=dict)
    other: Mapping[str, Decimal] = field(default_factory=dict)  # positions in coins that are not traded

    def to_json(self) -> dict[str, Any]:
        """The fields of the journal's `account` event, as decimal text."""
        foreign = {"cash": str(self.foreign_cash), "qty": _texts(self.foreign_qty), "other": _texts(self.other)}
        return {"cash": str(self.cash), "qty": _texts(self.qty), "foreign": foreign}

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> Ledger:
        """Of an `account` event."""
        foreign = event["foreign"]
        return cls(Decimal(event["cash"]), _decimals(event["qty"]), Decimal(foreign["cash"]), _decimals(foreign["qty"]),
                   _decimals(foreign["other"]))  # fmt: skip


@dataclass(frozen=True)
class Explained:
    """A reconciliation."""

    ledger: Ledger
    fee_cash: Decimal  # quote
    fee_qty: Mapping[str, Decimal]  # coins by ticker
    foreign: Sequence[str] = ()  # what changed that others did, and is explained
    unexplained: Sequence[str] = ()


def open_ledger(snapshot: Snapshot, capital: Decimal | None) -> Ledger:
    """The first ledger of an account: cash up to `capital` is ours, coins that lie there are not."""
    ours = snapshot.cash if capital is None else min(snapshot.cash, capital)
    none = dict.fromkeys(snapshot.qty, ZERO)
    return Ledger(ours, none, snapshot.cash - ours, dict(snapshot.qty), dict(snapshot.other))


def adopt(ledger: Ledger, snapshot: Snapshot) -> Ledger:
    """All coins of the traded tickers are ours from now on, and so is the cash but for what was never ours."""
    none = dict.fromkeys(snapshot.qty, ZERO)
    foreign_cash = min(ledger.foreign_cash, snapshot.cash)
    return Ledger(snapshot.cash - foreign_cash, dict(snapshot.qty), foreign_cash, none, dict(snapshot.other))


def explain(
    before: Ledger, snapshot: Snapshot, fills: Sequence[Fill], rates: Rates, others: Sequence[Fill] = ()
) -> Explained:
    """Explain the venue's account by fills since the last reconciliation.

    Args:
        before: the ledger then.
        snapshot: the venue's account now.
        fills: of our orders.
        rates: expected fees.
        others: fills of orders that somebody else sent, in our coins.
    """
    ledger, strange, foreign = before, [], []
    fee_qty: dict[str, Decimal] = {}
    for ticker in snapshot.qty:
        found = _explain_coin(before, snapshot, ticker, fills, rates, others)
        fee_qty |= {ticker: found.fee} if found.fee else {}
        ledger = replace(ledger, qty={**ledger.qty, ticker: found.ours},
                         foreign_qty={**ledger.foreign_qty, ticker: found.foreign})  # fmt: skip
        if found.by_others:
            foreign.append(f"{ticker}: {found.by_others:+f} coins by orders that are not ours")
        if found.strange:
            strange.append(f"{ticker}: {found.strange:+f} coins that no order explains")
    cash = _explain_cash(before, snapshot, fills, rates, others)
    if cash.strange:
        strange.append(f"cash: {cash.strange:+f} that no order explains")
    ledger = replace(ledger, cash=cash.ours, foreign_cash=cash.foreign, other=dict(snapshot.other))
    foreign += [f"{name}: {qty} coins of {name} in the account, which are not traded"
                for name, qty in snapshot.other.items() if before.other.get(name) != qty]  # fmt: skip
    return Explained(ledger, cash.fee, fee_qty, foreign, strange)


@dataclass(frozen=True)
class _Part:
    """One balance, explained."""

    ours: Decimal
    foreign: Decimal
    fee: Decimal  # ours
    by_others: Decimal = ZERO
    strange: Decimal = ZERO


def _explain_coin(
    before: Ledger, snapshot: Snapshot, ticker: str, fills: Sequence[Fill], rates: Rates, others: Sequence[Fill]
) -> _Part:  # fmt: skip
    was, was_foreign = before.qty.get(ticker, ZERO), before.foreign_qty.get(ticker, ZERO)
    bought, sold = _qty(fills, ticker, "buy"), _qty(fills, ticker, "sell")
    moved = snapshot.qty[ticker] - was - was_foreign
    their_bought, their_sold = _qty(others, ticker, "buy"), _qty(others, ticker, "sell")
    slack = QTY_TOLERANCE + RELATIVE_TOLERANCE * (bought + sold + their_bought + their_sold)
    if not others:
        fee = bought - sold - moved
        if -slack <= fee <= MOST_FEES * rates.buy * bought + slack:
            return _Part(snapshot.qty[ticker] - was_foreign, was_foreign, fee)
    expected = _lower(rates.buy * bought) if others or moved != bought - sold else ZERO
    ours = max(was + bought - sold - expected, ZERO)
    ours = min(ours, max(snapshot.qty[ticker], ZERO))  # nobody owns more than there is
    foreign = snapshot.qty[ticker] - ours
    by_others = foreign - was_foreign
    promised = their_bought - their_sold
    is_theirs = bool(others) and abs(by_others - promised) <= MOST_FEES * rates.buy * (their_bought + bought) + slack
    return _Part(ours, foreign, expected, by_others if is_theirs else ZERO, ZERO if is_theirs else by_others)


def _explain_cash(
    before: Ledger, snapshot: Snapshot, fills: Sequence[Fill], rates: Rates, others: Sequence[Fill]
) -> _Part:  # fmt: skip
    bought, sold = _notional(fills, "buy"), _notional(fills, "sell")
    their_bought, their_sold = _notional(others, "buy"), _notional(others, "sell")
    moved = snapshot.cash - before.cash - before.foreign_cash
    slack = CASH_TOLERANCE + RELATIVE_TOLERANCE * (bought + sold + their_bought + their_sold)
    most_fee = MOST_FEES * (rates.buy * bought + rates.sell * sold) + slack
    if not others:
        fee = sold - bought - moved
        if -slack <= fee <= most_fee:
            return _Part(snapshot.cash - before.foreign_cash, before.foreign_cash, fee)
    expected = rates.sell * sold
    ours = min(max(before.cash + sold - bought - expected, ZERO), max(snapshot.cash, ZERO))
    foreign = snapshot.cash - ours
    by_others = foreign - before.foreign_cash
    promised = their_sold - their_bought
    their_fee = MOST_FEES * (rates.buy * their_bought + rates.sell * their_sold)
    is_theirs = bool(others) and abs(by_others - promised) <= their_fee + most_fee + slack
    return _Part(ours, foreign, expected, by_others if is_theirs else ZERO, ZERO if is_theirs else by_others)


def _qty(fills: Sequence[Fill], ticker: str, side: Side) -> Decimal:
    return sum((fill.qty for fill in fills if (fill.ticker, fill.side) == (ticker, side)), ZERO)


def _notional(fills: Sequence[Fill], side: Side) -> Decimal:
    return sum((fill.notional for fill in fills if fill.side == side), ZERO)


def _lower(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.000000001"))


def _texts(amounts: Mapping[str, Decimal]) -> dict[str, str]:
    return {name: str(amount) for name, amount in amounts.items()}


def _decimals(texts: Mapping[str, str]) -> dict[str, Decimal]:
    return {name: Decimal(text) for name, text in texts.items()}
