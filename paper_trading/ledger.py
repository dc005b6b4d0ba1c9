"""Ledger of the trader's own cash and coins within the venue's account. The trader never uses foreign cash or coins.

At every reconciliation, the venue's balances are authoritative, and our fills must explain them. Unexplained amounts
are excluded from our share, and the trader stops buying until a person resolves the difference.

The venue deducts its fee either from the coins of a buy and the cash of a sale, or always from cash. The fee is the
amount expected from the fills minus the amount that arrived. It is accepted up to `MOST_FEES` times the expected fee,
or times the venue's highest known fee if that is larger. A fee that was not deducted with its fill may be deducted
until the end of the next UTC day: missing amounts are treated as fees, up to the unpaid total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from market.times import utc_text
from paper_trading.broker import Side, Snapshot
from paper_trading.risk import DAY_S

ZERO, NANO = Decimal(0), Decimal("0.000000001")
CASH_TOLERANCE = Decimal("0.01")  # quote; venues round average prices
QTY_TOLERANCE = Decimal("0.00000001")  # coins
RELATIVE_TOLERANCE = Decimal("0.000001")  # fraction of the filled amount
MOST_FEES = 2  # multiple of the expected fee
UNPAID_DAYS = 1  # days after the day of its fill in which a fee may still be deducted
CASH = "cash"  # the key of cash among tickers


@dataclass(frozen=True)
class Fill:
    """The part of an order that was filled since the last reconciliation."""

    ticker: str
    side: Side
    qty: Decimal  # coins
    notional: Decimal  # quote, quantity times average price


@dataclass(frozen=True)
class Rates:
    """Expected fee rates, as fractions of the notional."""

    buy: Decimal
    sell: Decimal
    known: Decimal = ZERO  # highest known fee rate of the venue; accepted, but not expected

    def most(self, side: Side) -> Decimal:
        """Return the highest plausible fee rate of a side."""
        return max(getattr(self, side), self.known)


@dataclass(frozen=True)
class Ledger:
    """Our part and the foreign part of the account: cash in quote currency, and coins."""

    cash: Decimal
    qty: Mapping[str, Decimal]  # by ticker
    foreign_cash: Decimal = ZERO
    foreign_qty: Mapping[str, Decimal] = field(default_factory=dict)
    other: Mapping[str, Decimal] = field(default_factory=dict)  # positions in coins that the deployment does not trade
    unpaid: Mapping[str, Mapping[str, Decimal]] = field(default_factory=dict)  # UTC day -> ticker or CASH -> fee

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the journal's `account` event, with decimal strings."""
        foreign = {"cash": str(self.foreign_cash), "qty": _texts(self.foreign_qty), "other": _texts(self.other)}
        unpaid = {day: _texts(fees) for day, fees in self.unpaid.items()}
        return {"cash": str(self.cash), "qty": _texts(self.qty), "foreign": foreign, "unpaid": unpaid}

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> Ledger:
        """Return the ledger of an `account` event."""
        foreign = event["foreign"]
        return cls(Decimal(event["cash"]), _decimals(event["qty"]), Decimal(foreign["cash"]), _decimals(foreign["qty"]),
                   _decimals(foreign["other"]),
                   {day: _decimals(fees) for day, fees in event.get("unpaid", {}).items()})  # fmt: skip

    def unpaid_of(self, name: str) -> Decimal:
        """Return the fees that the venue may still deduct, in coins of a ticker or in quote for CASH."""
        return sum((fees.get(name, ZERO) for fees in self.unpaid.values()), ZERO)


@dataclass(frozen=True)
class Explained:
    """Result of a reconciliation."""

    ledger: Ledger
    fee_cash: Decimal  # quote
    fee_qty: Mapping[str, Decimal]  # coins by ticker
    foreign: Sequence[str] = ()  # explained changes by others
    unexplained: Sequence[str] = ()
    fee_expected: Decimal = ZERO  # expected fee of our fills, quote


def open_ledger(snapshot: Snapshot, capital: Decimal | None) -> Ledger:
    """Return the first ledger of an account: cash up to `capital` is ours, existing coins are foreign."""
    ours = snapshot.cash if capital is None else min(snapshot.cash, capital)
    none = dict.fromkeys(snapshot.qty, ZERO)
    return Ledger(ours, none, snapshot.cash - ours, dict(snapshot.qty), dict(snapshot.other))


def adopt(ledger: Ledger, snapshot: Snapshot) -> Ledger:
    """Return a ledger in which all coins of the traded tickers and all cash except foreign cash are ours."""
    none = dict.fromkeys(snapshot.qty, ZERO)
    foreign_cash = min(ledger.foreign_cash, snapshot.cash)
    return Ledger(snapshot.cash - foreign_cash, dict(snapshot.qty), foreign_cash, none, dict(snapshot.other))


def count_out(ledger: Ledger, ticker: str) -> Ledger:
    """Return a ledger in which all coins of a ticker are foreign."""
    foreign = ledger.foreign_qty.get(ticker, ZERO) + ledger.qty[ticker]
    return replace(ledger, qty={**ledger.qty, ticker: ZERO}, foreign_qty={**ledger.foreign_qty, ticker: foreign})


def explain(
    before: Ledger, snapshot: Snapshot, fills: Sequence[Fill], rates: Rates, others: Sequence[Fill] = (),
    now_s: float = 0.0, is_part: bool = False, may_be_late: bool = True,
) -> Explained:  # fmt: skip
    """Explain the venue's account by the fills since the last reconciliation.

    Args:
        before: ledger of the last reconciliation.
        snapshot: the venue's account now.
        fills: fills of our orders.
        rates: expected fee rates.
        others: fills of foreign orders in any symbol that is paid for with our cash.
        now_s: current time, in UTC seconds.
        is_part: True if only part of the cash is ours. Foreign orders then spend foreign cash first.
        may_be_late: True if missing amounts may be late fees of earlier fills.
    """
    before = _without_old(before, now_s)
    ledger, strange, foreign = before, [], []
    fee_qty: dict[str, Decimal] = {}
    for ticker in snapshot.qty:
        found = _explain_coin(before, snapshot, ticker, fills, rates, others, may_be_late)
        fee_qty |= (
            {ticker: found.fee} if abs(found.fee) >= NANO else {}
        )  # smaller amounts are rounding errors of a replay's floats
        ledger = replace(ledger, qty={**ledger.qty, ticker: found.ours},
                         foreign_qty={**ledger.foreign_qty, ticker: found.foreign})  # fmt: skip
        moved = found.foreign - before.foreign_qty.get(ticker, ZERO)
        if moved and any(fill.ticker == ticker for fill in others):
            foreign.append(f"{ticker}: {_signed(moved)} coins by foreign orders")
        if found.strange:
            strange.append(f"{ticker}: {_signed(found.strange)} coins not explained by any order")
        elif found.taken:
            strange.append(f"{ticker}: {found.taken.normalize():f} of the trader's coins were sold by foreign orders")
    cash = _explain_cash(before, snapshot, fills, rates, others, may_be_late)
    if cash.strange:
        strange.append(f"cash: {_signed(cash.strange)} not explained by any order")
    elif is_part and cash.taken > CASH_TOLERANCE:
        strange.append(f"cash: {cash.taken.normalize():f} of the trader's cash was spent by foreign orders")
    ledger = replace(ledger, cash=cash.ours, foreign_cash=cash.foreign, other=dict(snapshot.other),
                     unpaid=_unpaid(before, fills, rates, cash.fee, fee_qty, now_s))  # fmt: skip
    foreign += [f"{name}: {qty} coins in the account that the deployment does not trade"
                for name, qty in snapshot.other.items() if before.other.get(name) != qty]  # fmt: skip
    foreign += [f"{name}: no longer in the account" for name in before.other if name not in snapshot.other]
    return Explained(ledger, cash.fee, fee_qty, foreign, strange)


@dataclass(frozen=True)
class _Change:
    """Effect of orders on one balance before fees, and their possible fees."""

    credited: Decimal
    volume: Decimal  # fees are divided in proportion to it
    expected_fee: Decimal  # if the venue deducts fees from the credited amount
    most_fee: Decimal
    slack: Decimal  # tolerance for the venue's rounding


@dataclass(frozen=True)
class _Part:
    """Explanation of one balance."""

    ours: Decimal
    foreign: Decimal
    fee: Decimal  # our fee
    strange: Decimal = ZERO  # change without an order
    taken: Decimal = ZERO  # part of our amount that foreign orders used


def _explain_coin(
    before: Ledger, snapshot: Snapshot, ticker: str, fills: Sequence[Fill], rates: Rates, others: Sequence[Fill],
    may_be_late: bool,
) -> _Part:  # fmt: skip
    def change(of: Sequence[Fill]) -> _Change:
        bought, sold = _qty(of, ticker, "buy"), _qty(of, ticker, "sell")
        fee = rates.buy * bought
        most = MOST_FEES * rates.most("buy") * bought
        return _Change(bought - sold, bought, fee, most, RELATIVE_TOLERANCE * (bought + sold))

    was = before.qty.get(ticker, ZERO), before.foreign_qty.get(ticker, ZERO)
    return _explain_balance(*was, snapshot.qty[ticker], change(fills), change(others), QTY_TOLERANCE,
                            before.unpaid_of(ticker) if may_be_late else ZERO)  # fmt: skip


def _explain_cash(
    before: Ledger, snapshot: Snapshot, fills: Sequence[Fill], rates: Rates, others: Sequence[Fill], may_be_late: bool
) -> _Part:  # fmt: skip
    def change(of: Sequence[Fill]) -> _Change:
        bought, sold = _notional(of, "buy"), _notional(of, "sell")
        fee, most = rates.sell * sold, MOST_FEES * (rates.most("buy") * bought + rates.most("sell") * sold)
        return _Change(sold - bought, sold or bought, fee, most, RELATIVE_TOLERANCE * (bought + sold))

    return _explain_balance(before.cash, before.foreign_cash, snapshot.cash, change(fills), change(others),
                            CASH_TOLERANCE, before.unpaid_of(CASH) if may_be_late else ZERO)  # fmt: skip


def _explain_balance(
    was: Decimal, was_foreign: Decimal, now: Decimal, ours: _Change, theirs: _Change, tolerance: Decimal,
    unpaid: Decimal,
) -> _Part:  # fmt: skip
    """Explain one balance. The fee is the expected minus the actual amount, and an implausible fee is unexplained."""
    fee = was + was_foreign + ours.credited + theirs.credited - now
    slack = tolerance + ours.slack + theirs.slack
    is_explained = -slack <= fee <= ours.most_fee + theirs.most_fee + unpaid + slack
    own_fee, strange = ours.expected_fee, ZERO
    if not is_explained:
        strange = ours.expected_fee + theirs.expected_fee - fee
    elif not theirs.slack:  # no foreign order traded it
        return _Part(now - was_foreign, was_foreign, fee)
    else:
        late = min(max(fee - ours.most_fee - theirs.most_fee, ZERO), unpaid)
        own_fee = late + ((fee - late) * ours.volume / (ours.volume + theirs.volume) if ours.volume else ZERO)
    own_fee = own_fee.quantize(NANO)
    owned = max(was + ours.credited - own_fee, ZERO)
    kept = min(owned, max(now, ZERO))  # our part is at most the balance
    return _Part(kept, now - kept, own_fee, strange, owned - kept if is_explained else ZERO)


def _without_old(ledger: Ledger, now_s: float) -> Ledger:
    """Return the ledger without unpaid fees that are too old to be deducted."""
    oldest = utc_text(int(now_s) - UNPAID_DAYS * DAY_S)[:10]
    return replace(ledger, unpaid={day: fees for day, fees in ledger.unpaid.items() if day >= oldest})


def _unpaid(
    before: Ledger, fills: Sequence[Fill], rates: Rates, fee_cash: Decimal, fee_qty: Mapping[str, Decimal], now_s: float
) -> dict[str, dict[str, Decimal]]:  # fmt: skip
    """Return the unpaid fees by day after these payments, which pay the oldest fees first."""
    sold, bought = rates.most("sell") * _notional(fills, "sell"), rates.most("buy") * _notional(fills, "buy")
    # A venue may also deduct the fees of buys from cash. The deducted share of these fees is then paid.
    in_cash = min(max(fee_cash - rates.sell * _notional(fills, "sell"), ZERO) / bought, Decimal(1)) if bought else ZERO
    due = {ticker: rates.most("buy") * _qty(fills, ticker, "buy") * (1 - in_cash) for ticker in before.qty}
    paid = {**fee_qty, CASH: fee_cash - in_cash * bought}
    today = utc_text(int(now_s))[:10]
    days = {day: dict(fees) for day, fees in before.unpaid.items()}
    days[today] = days.get(today, {})
    for name, fee in {**due, CASH: sold}.items():
        days[today][name] = days[today].get(name, ZERO) + fee
        rest = paid.get(name, ZERO)
        for fees in days.values():
            part = min(rest, fees.get(name, ZERO))
            fees[name], rest = fees.get(name, ZERO) - part, rest - part
    kept = {day: {name: left for name, fee in fees.items() if (left := fee.quantize(NANO)) > 0}
            for day, fees in days.items()}  # fmt: skip
    return {day: fees for day, fees in kept.items() if fees}


def _qty(fills: Sequence[Fill], ticker: str, side: Side) -> Decimal:
    return sum((fill.qty for fill in fills if (fill.ticker, fill.side) == (ticker, side)), ZERO)


def _notional(fills: Sequence[Fill], side: Side) -> Decimal:
    return sum((fill.notional for fill in fills if fill.side == side), ZERO)


def _signed(amount: Decimal) -> str:
    return f"{amount.normalize():+f}"


def _texts(amounts: Mapping[str, Decimal]) -> dict[str, str]:
    return {name: str(amount) for name, amount in amounts.items()}


def _decimals(texts: Mapping[str, str]) -> dict[str, Decimal]:
    return {name: Decimal(text) for name, text in texts.items()}
