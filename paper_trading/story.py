"""Journal reader that combines all events, in file order, into one `Story` for display.

`Reader` reads only the new lines of a growing file. A story contains only what the journal records. Missing values
stay None and are displayed as "unknown".
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import takewhile
from math import inf
from pathlib import Path

from market.codec import decode
from paper_trading.drift import DriftFold, Fill, Held, Rates, Shortfall
from paper_trading.journal import Event, JournalError, checked
from train.watch.logtail import plain_text

DAY_S = 86_400
ENDED_UNFILLED = ("partial", "canceled", "rejected", "refused", "not_arrived")  # the unfilled part will not fill later
OPEN, UNKNOWN, REFUSED = "open", "unknown", "refused"
NOT_SEEN = "not seen"  # missed bars between two observed ones
NUMBER = re.compile(r"\d[\d.,]*")


@dataclass(frozen=True)
class Start:
    """A `start` event of the trader."""

    mode: str
    deployment: str
    tickers: list[str]
    bar_seconds: int
    limits: dict[str, float | None]
    fee_rates: dict[str, float]
    slippage_rate: float
    synthetic: bool
    proven: bool
    in_sample: bool | None
    study: str | None = None
    code_version: str | None = None
    faults: list[str] = field(default_factory=list)  # simulated faults of a replay

    @property
    def rates(self) -> Rates:
        """Costs of the simulator."""
        return Rates(self.fee_rates["buy"], self.fee_rates["sell"], self.slippage_rate)


@dataclass(frozen=True)
class Decision:
    """A decision, with both accounts after the bar's orders. Lists have shape (A,) in ticker order."""

    bar_s: int
    action: list[float]
    target: list[float | None] | None
    lo: list[float | None] | None
    hi: list[float | None] | None
    weights: list[float]
    equity: float
    cash: float
    qty: list[float]
    benchmark: float | None
    sim_equity: float | None
    sim_qty: list[float] | None
    drawdown: float
    fees: float
    state: str

    def share(self, notional: float) -> float | None:
        """Return an amount in USD as a fraction of equity, or None without equity."""
        return notional / self.equity if self.equity > 0.0 else None


@dataclass
class Order:
    """An order from its intent to its outcome."""

    id: str
    ticker: str
    side: str
    qty: Decimal  # coins sent
    price: float  # close that sized the order, USD; 0 if unknown
    why: str
    sized: float  # coins before rounding; 0 for an order that a limit refused
    bar_s: int = 0
    status: str = OPEN
    filled_qty: Decimal = Decimal(0)
    fill_price: Decimal | None = None
    mid: Decimal | None = None
    reason: str = ""
    fee: float | None = None  # USD

    @property
    def sign(self) -> int:
        """1 for a buy, -1 for a sale."""
        return 1 if self.side == "buy" else -1

    @property
    def notional(self) -> float:
        """Filled notional, in USD."""
        return float(self.filled_qty) * float(self.fill_price or 0)

    @property
    def fill(self) -> Fill | None:
        """Fill for the drift computation, or None if nothing was filled."""
        if self.filled_qty <= 0 or self.fill_price is None:
            return None
        mid = None if self.mid is None else float(self.mid)
        price = float(self.fill_price)
        return Fill(self.ticker, self.sign, float(self.filled_qty), price, self.price or price, mid, self.fee)


@dataclass(frozen=True)
class _Ended:
    """An `order` event."""

    id: str
    ticker: str
    side: str
    status: str
    filled_qty: Decimal
    price: Decimal | None
    reason: str
    mid: Decimal | None


@dataclass(frozen=True)
class _Account:
    """An `account` event."""

    fee_cash: Decimal
    fee_qty: dict[str, Decimal]
    explained: bool
    notes: list[str]


@dataclass(frozen=True)
class Note:
    """Text of an event. `at_s` is the close of the event's bar, else of the last bar, else the event's time."""

    at_s: float
    text: str


@dataclass
class Curves:
    """Equity curves with one entry per decision."""

    bar_s: list[int] = field(default_factory=list)
    equity: list[float] = field(default_factory=list)
    sim_equity: list[float | None] = field(default_factory=list)
    benchmark: list[float | None] = field(default_factory=list)

    def append(self, d: Decision) -> None:
        """Append the entry of a decision."""
        self.bar_s.append(d.bar_s)
        self.equity.append(d.equity)
        self.sim_equity.append(d.sim_equity)
        self.benchmark.append(d.benchmark)


@dataclass
class Story:
    """All events since the last start that did not resume an earlier run."""

    start: Start | None = None  # the latest
    deployment: str | None = None
    state: str | None = None
    why: str = ""
    decision: Decision | None = None
    ended: Note | None = None  # why the trader stopped; None after the next start
    bar_s: int | None = None  # close of the latest bar
    close: dict[str, float] = field(default_factory=dict)
    close_before: dict[str, float] = field(default_factory=dict)
    curves: Curves = field(default_factory=Curves)
    orders: list[Order] = field(default_factory=list)
    drift: DriftFold = field(default_factory=DriftFold)
    skipped: Counter[str] = field(default_factory=Counter)  # bars without orders, by reason with numbers replaced
    last_skip: Note | None = None
    rejects_in_row: int = 0
    states: list[Note] = field(default_factory=list)
    deployments: list[Note] = field(default_factory=list)
    foreign: list[Note] = field(default_factory=list)
    drifts: list[Note] = field(default_factory=list)  # drift limit exceeded
    bar_notes: list[Note] = field(default_factory=list)
    n_starts: int = 0

    def __post_init__(self) -> None:
        self._by_id: dict[str, Order] = {}
        self._pending: dict[str, Order] = {}
        self._batch: dict[str, Order] = {}  # updated since the last reconciliation
        self._unbooked: list[Order] = []  # closed since the last decision
        self._at_s = 0.0

    # ------------------------------------------------------------------------------------------------- one event
    def take(self, event: Event) -> None:
        """Add an event. Unknown events are ignored.

        Raises:
            JournalError: if a field is missing or has the wrong type.
        """
        where = f"journal line {event['n'] + 1}, {event['event']}"
        take = getattr(self, f"_take_{event['event']}", None)
        self._at_s = float(event.get("bar_s") or self.bar_s or datetime.fromisoformat(event["utc"]).timestamp())
        try:
            if take is not None:
                take(event, where)
        except JournalError:
            raise
        except (KeyError, TypeError, ValueError) as fault:
            raise JournalError(f"{where}: a field is missing or has the wrong type ({fault})") from fault

    def _take_start(self, event: Event, where: str) -> None:
        self.start = decode(event, Start, JournalError, where)
        self.deployment, self.ended = plain_text(self.start.deployment), None
        self.n_starts += 1

    def _take_bar(self, event: Event, where: str) -> None:
        bar_s = int(event["bar_s"])
        if self.bar_s is not None and self.start is not None:
            self.skipped.update({NOT_SEEN: max((bar_s - self.bar_s) // self.start.bar_seconds - 1, 0)})
        self.bar_s, self.close_before = bar_s, self.close
        self.close = dict(zip(self.tickers, event["close"], strict=True))
        self.bar_notes += [self._note(text) for text in event.get("notes", [])]

    def _take_intents(self, event: Event, where: str) -> None:
        for content in event["orders"]:
            order = decode(content, Order, JournalError, where)
            order.bar_s = int(event["bar_s"])
            self.orders.append(order)
            self._by_id[order.id] = self._pending[order.id] = order

    def _take_order(self, event: Event, where: str) -> None:
        ended = decode(event, _Ended, JournalError, where)
        order = self._by_id.get(ended.id)
        if order is None:  # refused by a limit, so there is no intent
            price = self.close.get(ended.ticker, 0.0)
            order = Order(ended.id, ended.ticker, ended.side, Decimal(0), price, "policy", 0.0, self.bar_s or 0)
            self.orders.append(order)
        order.status, order.reason = ended.status, plain_text(ended.reason)
        order.filled_qty, order.fill_price, order.mid = ended.filled_qty, ended.price, ended.mid
        if order.status != UNKNOWN and (order.id not in self._by_id or self._pending.pop(order.id, None)):
            self._unbooked.append(order)  # only once per order
        self._batch[order.id] = order
        self.rejects_in_row = self.rejects_in_row + 1 if order.status in ("rejected", REFUSED) else 0

    def _take_account(self, event: Event, where: str) -> None:
        account = decode(event, _Account, JournalError, where)
        _share_fees(account, [order for order in self._batch.values() if order.notional > 0.0], self.close)
        self._batch = {}
        if not account.explained:
            self.foreign += [self._note(text) for text in account.notes or ["the account is not explained"]]

    def _take_decision(self, event: Event, where: str) -> None:
        d = self.decision = decode(event, Decision, JournalError, where)
        self.state = d.state
        self.curves.append(d)
        if d.sim_equity is not None and d.sim_qty is not None and self.start is not None:
            held = Held(d.equity, d.sim_equity, self._by_ticker(d.qty), self._by_ticker(d.sim_qty), dict(self.close))
            self._book(held, self.start.rates)

    def _take_skip(self, event: Event, where: str) -> None:
        why = plain_text(event["why"])
        self.skipped[NUMBER.sub("N", why.partition(":")[0])] += 1
        self.last_skip = self._note(why)

    def _take_state(self, event: Event, where: str) -> None:
        self.state, self.why = event["to"], plain_text(event["why"])
        self.states.append(self._note(f"{event['from']} to {event['to']}: {event['why']}"))

    def _take_deployment(self, event: Event, where: str) -> None:
        if "refused" in event:
            text = f"keeping {event['from']}: {event['refused']} was refused, {event['why']}"
        else:
            self.deployment = plain_text(event["to"])
            text = f"{event['from']} was replaced by {event['to']}"
        self.deployments.append(self._note(text))

    def _take_foreign(self, event: Event, where: str) -> None:
        self.foreign.append(self._note(event["text"]))

    def _take_drift(self, event: Event, where: str) -> None:
        self.drifts.append(self._note(f"{event['ratio']:+.2%} from the simulator, limit {event['bound']:.2%}"))

    def _take_stop(self, event: Event, where: str) -> None:
        self.ended = self._note(f"{event['why']} (exit code {event['code']})")

    def _note(self, text: str) -> Note:
        return Note(self._at_s, plain_text(text))

    def _by_ticker(self, values: Sequence[float]) -> dict[str, float]:
        return dict(zip(self.tickers, values, strict=True))

    def _book(self, held: Held, rates: Rates) -> None:
        """Add the orders that closed since the last decision to the drift."""
        fills, short, rounding = [], [], {}
        for order in self._unbooked:
            if (fill := order.fill) is not None:
                fills.append(fill)
                rounded = order.sign * (float(order.qty) - order.sized)
                rounding[order.ticker] = rounding.get(order.ticker, 0.0) + rounded
            if order.status in ENDED_UNFILLED and order.qty > 0:
                short.append(Shortfall(order.ticker, order.sign * float(order.qty - order.filled_qty), order.status))
        excused = {order.ticker: REFUSED for order in self._unbooked if not order.qty}
        excused |= {order.ticker: "" for order in self._pending.values()}
        self._unbooked = []
        self.drift.bar(held, fills, short, rounding, excused, rates)

    # ------------------------------------------------------------------------------------------- derived quantities
    @property
    def tickers(self) -> Sequence[str]:
        """Coins in the order of all lists."""
        return self.start.tickers if self.start else ()

    @property
    def unfinished(self) -> list[Order]:
        """Orders that are open or whose outcome is unknown."""
        return list(self._pending.values())

    @property
    def ratio(self) -> float | None:
        """Trader's equity divided by the simulator's, minus 1; None if unknown."""
        d = self.decision
        return d.equity / d.sim_equity - 1.0 if d is not None and d.sim_equity else None

    def orders_of(self, day: date) -> list[Order]:
        """Return the orders of all bars that close on a UTC day."""
        return [order for order in self.orders if day_of(order.bar_s) == day]

    def last_orders(self) -> list[Order]:
        """Return the orders of the latest bar with orders."""
        recent = takewhile(lambda order: order.bar_s == self.orders[-1].bar_s, reversed(self.orders))
        return list(recent)[::-1]

    def uses(self) -> dict[str, float | None]:
        """Return the used part of each limit at the last decision, by limit name; None if unknown."""
        d = self.decision
        if d is None:
            return dict.fromkeys(USED)
        today = list(takewhile(lambda order: order.bar_s >= d.bar_s // DAY_S * DAY_S, reversed(self.orders)))
        sent = {order.id: float(order.qty) * order.price for order in today}
        now = [order for order in today if order.bar_s == d.bar_s]
        moves = [abs(x / self.close_before[t] - 1.0) for t, x in self.close.items() if self.close_before.get(t)]
        found = (
            d.share(max((sent[order.id] for order in now if order.side == "buy"), default=0.0)),
            d.share(sum(sent[order.id] for order in now)),
            d.share(sum(sent.values())),
            max(d.weights, default=0.0),
            d.drawdown,
            float(self.rejects_in_row),
            max(moves, default=None),
            None if self.ratio is None else abs(self.ratio),
        )
        return dict(zip(USED, found, strict=True))


USED = (
    "max_order_weight", "max_bar_turnover", "max_day_turnover", "max_position_weight", "max_drawdown", "max_rejects",
    "max_price_move", "max_drift",
)  # fmt: skip


def day_of(seconds: float) -> date:
    """Return the UTC day of a time in UTC seconds."""
    return datetime.fromtimestamp(seconds, UTC).date()


def _share_fees(account: _Account, orders: Sequence[Order], close: Mapping[str, float]) -> None:
    """Divide fees among filled orders by notional: coin fees among that coin's orders, cash fees among the others."""
    in_coins = {order.ticker for order in orders if account.fee_qty.get(order.ticker, 0)}
    others = [order for order in orders if order.ticker not in in_coins] or orders
    in_cash = sum(order.notional for order in others)
    for order in orders:
        order.fee = order.fee or 0.0
        if order.ticker in in_coins:
            fee = float(account.fee_qty[order.ticker]) * close.get(order.ticker, order.price)
            order.fee += fee * order.notional / sum(o.notional for o in orders if o.ticker == order.ticker)
    for order in others:
        order.fee = (order.fee or 0.0) + float(account.fee_cash) * order.notional / in_cash


# ------------------------------------------------------------------------------------------------------- growing files
class Reader:
    """Incremental reader of a journal."""

    def __init__(self, path: Path) -> None:
        """Create a reader for a file that need not exist yet."""
        self.path = path
        self.story = Story()
        self.damage = ""  # damage of the file; the story contains the events before it
        self._place = self._number = 0
        self._file: tuple[int, int] | None = None  # device and inode

    def refresh(self, until_s: float = inf) -> Story:
        """Read the new events and return the story. A replaced file is read from its beginning.

        Args:
            until_s: stop before the first event of a bar that closes at this time or later, in UTC seconds.

        Raises:
            OSError: if the file cannot be read.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return self.story
        with file:
            stat = os.fstat(file.fileno())
            if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._place:
                self.story, self.damage, self._place, self._number = Story(), "", 0, 0
                self._file = (stat.st_dev, stat.st_ino)
            file.seek(self._place)
            try:
                self._take(file, until_s)
            except JournalError as error:
                self.damage = str(error)
        return self.story

    def _take(self, lines: Iterable[bytes], until_s: float) -> None:
        for text in lines:
            if self.damage or not text.endswith(b"\n"):
                return
            event = checked(self.path, self._number, text)
            if (event.get("bar_s") or 0) >= until_s:
                return
            if event["event"] == "start" and not event.get("resumed"):
                self.story = Story(n_starts=self.story.n_starts)
            self.story.take(event)
            self._place += len(text)
            self._number += 1
