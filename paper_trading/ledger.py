"""Whose cash and coins are in the account: ours, by our own fills, and all the rest, which is left alone.

At every reconciliation the venue is right about what is there, and our fills must explain how it came about. What they
leave unexplained is counted out of ours, and the trader buys nothing until somebody looked.

The venue takes its fee from what it credits, coins after a buy and cash after a sale, or from the cash of both; it is
what fills promised less what arrived. More than `MOST_FEES` times the expected fee, or the highest that the venue is
known to take where that is more, is no fee. A fee that was not taken with its fill may come until the end of the next
UTC day: what is missing then counts as fee up to the sum that is unpaid.
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
CASH_TOLERANCE = Decimal("0.01")  # quote: venues round an average price
QTY_TOLERANCE = Decimal("0.00000001")  # coins
RELATIVE_TOLERANCE = Decimal("0.000001")  # of what was filled
MOST_FEES = 2  # times the expected fee
UNPAID_DAYS = 1  # after that of its fill, in which a fee may still be taken
CASH = "cash"  # the key of cash among tickers


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
    known: Decimal = ZERO  # the highest that the venue is known to take; it explains, and is not expected

    def most(self, side: Side) -> Decimal:
        """The highest fee that is no surprise."""
        return max(getattr(self, side), self.known)


@dataclass(frozen=True)
class Ledger:
    """Ours, and what else is in the account. Quote and coins."""

    cash: Decimal
    qty: Mapping[str, Decimal]  # by ticker
    foreign_cash: Decimal = ZERO
    foreign_qty: Mapping[str, Decimal] = field(default_factory=dict)
    other: Mapping[str, Decimal] = field(default_factory=dict)  # positions in coins that are not traded
    unpaid: Mapping[str, Mapping[str, Decimal]] = field(default_factory=dict)  # UTC day -> ticker or CASH -> fee

    def to_json(self) -> dict[str, Any]:
        """The fields of the journal's `account` event, as decimal text."""
        foreign = {"cash": str(self.foreign_cash), "qty": _texts(self.foreign_qty), "other": _texts(self.other)}
        unpaid = {day: _texts(fees) for day, fees in self.unpaid.items()}
        return {"cash": str(self.cash), "qty": _texts(self.qty), "foreign": foreign, "unpaid": unpaid}

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> Ledger:
        """Of an `account` event."""
        foreign = event["foreign"]
        return cls(Decimal(event["cash"]), _decimals(event["qty"]), Decimal(foreign["cash"]), _decimals(foreign["qty"]),
                   _decimals(foreign["other"]),
                   {day: _decimals(fees) for day, fees in event.get("unpaid", {}).items()})  # fmt: skip

    def unpaid_of(self, name: str) -> Decimal:
        """Fees of a ticker, in coins, or of CASH that the venue may still take."""
        return sum((fees.get(name, ZERO) for fees in self.unpaid.values()), ZERO)


@dataclass(frozen=True)
class Explained:
    """A reconciliation."""

    ledger: Ledger
    fee_cash: Decimal  # quote
    fee_qty: Mapping[str, Decimal]  # coins by ticker
    foreign: Sequence[str] = ()  # what changed that others did, and is explained
    unexplained: Sequence[str] = ()
    fee_expected: Decimal = ZERO  # quote, of our fills


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


def count_out(ledger: Ledger, ticker: str) -> Ledger:
    """The coins of a ticker are no longer ours."""
    foreign = ledger.foreign_qty.get(ticker, ZERO) + ledger.qty[ticker]
    return replace(ledger, qty={**ledger.qty, ticker: ZERO}, foreign_qty={**ledger.foreign_qty, ticker: foreign})


def explain(
    before: Ledger, snapshot: Snapshot, fills: Sequence[Fill], rates: Rates, others: Sequence[Fill] = (),
    now_s: float = 0.0, is_part: bool = False, may_be_late: bool = True,
) -> Explained:  # fmt: skip
    """Explain the venue's account by fills since the last reconciliation.

    Args:
        before: the ledger then.
        snapshot: the venue's account now.
        fills: of our orders.
        rates: expected fees.
        others: fills of orders that somebody else sent, in any coin that is paid for in our cash.
        now_s: UTC seconds.
        is_part: ours is a part of the cash only, so that what others spend is theirs as long as it lasts.
        may_be_late: whether what is missing may be a fee of earlier fills.
    """
    before = _without_old(before, now_s)
    ledger, strange, foreign = before, [], []
    fee_qty: dict[str, Decimal] = {}
    for ticker in snapshot.qty:
        found = _explain_coin(before, snapshot, ticker, fills, rates, others, may_be_late)
        fee_qty |= {ticker: found.fee} if abs(found.fee) >= NANO else {}  # less is the rounding of a replay's floats
        ledger = replace(ledger, qty={**ledger.qty, ticker: found.ours},
                         foreign_qty={**ledger.foreign_qty, ticker: found.foreign})  # fmt: skip
        moved = found.foreign - before.foreign_qty.get(ticker, ZERO)
        if moved and any(fill.ticker == ticker for fill in others):
            foreign.append(f"{ticker}: {_signed(moved)} coins by orders that are not ours")
        if found.strange:
            strange.append(f"{ticker}: {_signed(found.strange)} coins that no order explains")
        elif found.taken:
            strange.append(f"{ticker}: {found.taken.normalize():f} coins of ours were sold by orders that are not ours")
    cash = _explain_cash(before, snapshot, fills, rates, others, may_be_late)
    if cash.strange:
        strange.append(f"cash: {_signed(cash.strange)} that no order explains")
    elif is_part and cash.taken > CASH_TOLERANCE:
        strange.append(f"cash: {cash.taken.normalize():f} of ours was spent by orders that are not ours")
    ledger = replace(ledger, cash=cash.ours, foreign_cash=cash.foreign, other=dict(snapshot.other),
                     unpaid=_unpaid(before, fills, rates, cash.fee, fee_qty, now_s))  # fmt: skip
    foreign += [f"{name}: {qty} coins of {name} in the account, which are not traded"
                for name, qty in snapshot.other.items() if before.other.get(name) != qty]  # fmt: skip
    foreign += [f"{name}: no longer in the account" for name in before.other if name not in snapshot.other]
    return Explained(ledger, cash.fee, fee_qty, foreign, strange)


@dataclass(frozen=True)
class _Change:
    """What orders did to one balance, before fees; what they were charged on, and what fee is expected."""

    credited: Decimal
    volume: Decimal  # fees are shared in proportion to it
    expected_fee: Decimal  # where the venue takes fees from what it credits
    most_fee: Decimal
    slack: Decimal  # of the venue's rounding


@dataclass(frozen=True)
class _Part:
    """One balance, explained."""

    ours: Decimal
    foreign: Decimal
    fee: Decimal  # ours
    strange: Decimal = ZERO  # moved without an order
    taken: Decimal = ZERO  # of ours, by orders of others


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
    """The fee is what orders promised less what arrived; what is no fee moved without an order."""
    fee = was + was_foreign + ours.credited + theirs.credited - now
    slack = tolerance + ours.slack + theirs.slack
    is_explained = -slack <= fee <= ours.most_fee + theirs.most_fee + unpaid + slack
    own_fee, strange = ours.expected_fee, ZERO
    if not is_explained:
        strange = ours.expected_fee + theirs.expected_fee - fee
    elif not theirs.slack:  # they did not trade it
        return _Part(now - was_foreign, was_foreign, fee)
    else:
        late = min(max(fee - ours.most_fee - theirs.most_fee, ZERO), unpaid)
        own_fee = late + ((fee - late) * ours.volume / (ours.volume + theirs.volume) if ours.volume else ZERO)
    own_fee = own_fee.quantize(NANO)
    owned = max(was + ours.credited - own_fee, ZERO)
    kept = min(owned, max(now, ZERO))  # nobody owns more than there is
    return _Part(kept, now - kept, own_fee, strange, owned - kept if is_explained else ZERO)


def _without_old(ledger: Ledger, now_s: float) -> Ledger:
    """Fees that the venue has not taken until the end of the next day it takes no more."""
    oldest = utc_text(int(now_s) - UNPAID_DAYS * DAY_S)[:10]
    return replace(ledger, unpaid={day: fees for day, fees in ledger.unpaid.items() if day >= oldest})


def _unpaid(
    before: Ledger, fills: Sequence[Fill], rates: Rates, fee_cash: Decimal, fee_qty: Mapping[str, Decimal], now_s: float
) -> dict[str, dict[str, Decimal]]:  # fmt: skip
    """Fees by day that are still to be taken, after these; the oldest are paid first."""
    sold, bought = rates.most("sell") * _notional(fills, "sell"), rates.most("buy") * _notional(fills, "buy")
    # A venue may take the fees of buys from cash, too: that share of them is paid.
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
