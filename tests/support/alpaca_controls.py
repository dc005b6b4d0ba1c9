"""What a test may do to the Alpaca stand-in: the control calls, the faults, and the state that is dumped and loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, is_dataclass
from decimal import Decimal
from typing import Any

from tests.support.alpaca_account import FORBIDDEN, UNPROCESSABLE, Account
from tests.support.alpaca_market import Asset, Bar, Clock, Market, Settings, iso, micros, text
from tests.support.alpaca_orders import Fill, Order, Plan, Position, Step, Transfer

STATUS_FAULTS = ("429", "500", "502", "503", "504")
# kind of fault -> the requests that it meets unless the call says which, and whether the request takes effect
FAULTS: dict[str, tuple[str, str, bool]] = {
    **dict.fromkeys(("drop_before", "hang_before", "html", *STATUS_FAULTS), ("", "", False)),
    **dict.fromkeys(("drop_after", "hang_after", "truncate"), ("", "", True)),
    **dict.fromkeys(("insufficient", "minimum", "late"), ("POST", "/v2/orders", False)),
    "not_cancelable": ("DELETE", "/v2/orders/", False),
    "duplicate_rows": ("GET", "/bars", True),
}
PLANS: dict[str, tuple[str, ...]] = {  # name -> its steps; `partial` fills a fraction
    "delayed": ("fill",),
    "stuck": (),
    "rejected": ("reject",),
    "expired": ("expire",),
    "partial_then_cancel": ("partial", "cancel"),
    "partial_then_rest": ("partial", "fill"),
}


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match, after `skip` matching ones that go well."""

    kind: str
    times: int
    skip: int
    method: str
    path: str  # a part of path and query
    is_processed: bool
    wall_s: Decimal  # of a hang, by this machine's clock
    retry_after: str | None
    after_requests: int  # of `late`
    after_s: Decimal  # of `late`, by the server's clock

    def meets(self, method: str, target: str) -> bool:
        """Whether it strikes this request; counts it."""
        if self.times == 0 or self.method not in ("", method) or self.path not in target:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Parked:
    """An order under way to the account."""

    payload: dict[str, Any]
    requests_left: int
    due_at: int


@dataclass
class World:
    """All that is dumped and loaded."""

    account: Account
    faults: list[Fault] = field(default_factory=list)
    parked: list[Parked] = field(default_factory=list)
    late_refusals: list[dict[str, Any]] = field(default_factory=list)  # of orders that arrived late


@dataclass
class Answer:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    is_dropped: bool = False
    is_truncated: bool = False
    wall_s: Decimal = Decimal(0)


CLASSES = {
    kind.__name__: kind
    for kind in (World, Account, Market, Settings, Clock, Asset, Bar, Order, Step, Plan, Fill, Position, Transfer,
                 Fault, Parked)
}  # fmt: skip


def encoded(value: Any) -> Any:
    """JSON of nested records; a record names its class, a decimal number is text."""
    if is_dataclass(value):
        names = [each.name for each in fields(value)]
        return {"": type(value).__name__, **{name: encoded(getattr(value, name)) for name in names}}
    if isinstance(value, Decimal):
        return {"": "Decimal", "text": str(value)}
    if isinstance(value, dict):
        return {name: encoded(item) for name, item in value.items()}
    return [encoded(item) for item in value] if isinstance(value, list) else value


def decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    items = {name: decoded(item) for name, item in value.items() if name}
    if "" not in value:
        return items
    return Decimal(items["text"]) if value[""] == "Decimal" else CLASSES[value[""]](**items)


class Controls:
    """What a test may do to the server: each public method is a control call, its arguments are the call's fields."""

    def __init__(self, cash: Any = 100_000) -> None:
        self.world = World(Account(Market(Clock(), Settings())))
        self.log: list[dict[str, Any]] = []
        self.reset(cash)

    # -- all

    def reset(self, cash: Any = 100_000, now: Any = None, **settings: Any) -> None:
        """Begin anew: no orders, bars or faults. `now` freezes the clock; further fields are settings."""
        market = Market(Clock(None if now is None else micros(now)), Settings())
        market.settings.change(settings)
        # Its own for every server: traders of two tests must not meet in the machine's lock.
        self.world = World(Account(market, cash=Decimal(str(cash)), number=f"PA{os.getpid():08d}"))
        self.log = []

    def set(self, **settings: Any) -> None:
        self.market.settings.change(settings)

    def dump(self) -> Any:
        return encoded(self.world)

    def load(self, state: Any) -> None:
        self.world = decoded(state)

    def requests(self) -> list[dict[str, Any]]:
        """Every request since the reset: method, path, fault and status; None for one without an answer."""
        return self.log

    # -- clock and market

    def now(self, at: Any) -> None:
        """Freeze the clock; None lets it run with this machine's."""
        self.market.clock.frozen_at = None if at is None else micros(at)

    def advance(self, seconds: Any) -> None:
        self.market.clock.advance(seconds)

    def bars(self, rows: dict[str, list[Any]], step_s: Any = None) -> None:
        self.market.add_bars(rows, step_s)

    def price(self, symbol: str, price: Any) -> None:
        """Set the mid price; None goes back to the bars'."""
        self.market.prices.pop(symbol, None)
        if price is not None:
            self.market.prices[symbol] = Decimal(str(price))

    def late_bar(self, symbol: str, seconds: Any, time: Any = None) -> None:
        """Another publish delay for a symbol, or for its bar that opens at `time`."""
        if time is None:
            self.market.delays_s[symbol] = Decimal(str(seconds))
        else:
            self.market.bar(symbol, time).delay_s = Decimal(str(seconds))

    def missing_bar(self, symbol: str, time: Any) -> None:
        self.market.bar(symbol, time).is_missing = True

    def revised_bar(self, symbol: str, time: Any, first: dict[str, Any], after_s: Any) -> None:
        self.market.revise(symbol, time, first, after_s)

    def asset(self, symbol: str, **values: Any) -> None:
        """Add an asset or change it: min_order_size, min_trade_increment, price_increment, status, tradable."""
        self.market.assets.setdefault(symbol, Asset(symbol)).change(values)

    # -- account

    def cash(self, amount: Any) -> None:
        """A deposit, or a withdrawal where the amount is negative."""
        self.world.account.transfer(Decimal(str(amount)))

    def position(self, symbol: str, qty: Any, avg_entry_price: Any = None) -> None:
        """Set a position without an order; 0 removes it."""
        average = (self.market.mid(symbol) or 0) if avg_entry_price is None else avg_entry_price
        self.world.account.set_position(symbol, Decimal(str(qty)), Decimal(str(average)))

    def foreign_order(self, steps: list[dict[str, Any]] | None = None, **payload: Any) -> dict[str, Any]:
        """An order by somebody else: symbol, side, qty or notional; it fills at once unless `steps` say otherwise."""
        plan = [Step("fill")] if steps is None else [Step.of(step) for step in steps]
        whole = {"type": "market", "time_in_force": "gtc"} | payload
        return self.world.account.submit(whole, is_foreign=True, plan=plan).view()

    def plan(
        self,
        kind: str | None = None,
        steps: list[dict[str, Any]] | None = None,
        times: Any = 1,
        symbol: str = "",
        side: str = "",
        fraction: Any = "0.5",
        gets: Any = 1,
        after_s: Any = 0,
    ) -> None:
        """What happens to the next orders: a kind of PLANS, or steps. `gets` and `after_s` are of the last step."""
        if kind is not None:
            last = {"gets": gets, "after_s": after_s}
            steps = [
                {"do": "fill", "fraction": fraction} if do == "partial" else {"do": do, **last} for do in PLANS[kind]
            ]
        self.world.account.plans.append(Plan([Step.of(step) for step in steps or []], int(times), symbol, side))

    def step(self, client_order_id: str, action: str, fraction: Any = None) -> None:
        """Fill, cancel, expire or reject an open order now, as the venue."""
        order = self.world.account.find(client_order_id=client_order_id)
        order.plan.insert(0, Step.of({"do": action, "fraction": fraction}))

    # -- faults

    def fault(
        self,
        kind: Any,
        times: Any = 1,
        skip: Any = 0,
        method: str | None = None,
        path: str | None = None,
        processed: bool | None = None,
        wall_s: Any = 0,
        retry_after: Any = None,
        after_requests: Any = 0,
        after_s: Any = 0,
    ) -> None:
        meets_method, meets_path, takes_effect = FAULTS[str(kind)]
        self.world.faults.append(
            Fault(
                kind=str(kind),
                times=int(times),
                skip=int(skip),
                method=meets_method if method is None else method,
                path=meets_path if path is None else path,
                is_processed=takes_effect if processed is None else processed,
                wall_s=Decimal(str(wall_s)),
                retry_after="1" if retry_after is None and str(kind) == "429" else retry_after,
                after_requests=int(after_requests),
                after_s=Decimal(str(after_s)),
            )
        )

    def clear_faults(self) -> None:
        """Forget faults and plans that have not struck."""
        self.world.faults.clear()
        self.world.account.plans.clear()

    @property
    def market(self) -> Market:
        return self.world.account.market


def spoilt(good: Answer, fault: Fault, account: Account, payload: dict[str, Any]) -> Answer:
    """The answer that the fault leaves of a good one."""
    if fault.kind in STATUS_FAULTS:
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        message = "too many requests." if fault.kind == "429" else "internal server error occurred"
        return Answer(int(fault.kind), {"message": message}, headers)
    if fault.kind == "html":
        return Answer(200, "<html><body>We are back in a minute.</body></html>")
    if fault.kind == "truncate":
        return Answer(good.status, good.body, is_truncated=True)
    if fault.kind == "insufficient":
        side, symbol = payload.get("side"), str(payload.get("symbol"))
        coin = "USD" if side == "buy" else symbol.partition("/")[0]
        wanted = payload.get("qty") or payload.get("notional")
        message = f"insufficient balance for {coin} (requested: {wanted}, available: 0)"
        return Answer(403, {"available": "0", "balance": "0", "code": FORBIDDEN, "message": message, "symbol": "USD"})
    if fault.kind == "minimum":
        least = account.market.settings.min_notional
        message = f"cost basis must be >= minimal amount of order {least}"
        return Answer(403, {"code": FORBIDDEN, "message": message})
    if fault.kind == "not_cancelable":
        return Answer(422, {"code": UNPROCESSABLE, "message": "order is not cancelable"})
    if fault.kind == "duplicate_rows":
        return good
    return Answer(0, is_dropped=True, wall_s=fault.wall_s)


def ledger(world: World) -> dict[str, Any]:
    """Everything that a test compares with, amounts as text."""
    account = world.account
    return {
        "now": iso(account.market.clock.now),
        "cash": text(account.cash),
        "buying_power": text(account.buying_power()),
        "equity": text(account.equity()),
        "positions": {
            symbol: {
                "qty": text(position.qty),
                "qty_available": text(account.available(symbol)),
                "avg_entry_price": text(position.avg_entry_price),
            }
            for symbol, position in sorted(account.positions.items())
        },
        "orders": [order.view() | {"is_foreign": order.is_foreign} for order in account.orders],
        "fills": [
            {
                "order_id": fill.order_id,
                "client_order_id": fill.client_order_id,
                "symbol": fill.symbol,
                "side": fill.side,
                "time": iso(fill.time),
                **{name: text(getattr(fill, name)) for name in ("qty", "price", "fee_coins", "fee_usd")},
            }
            for fill in account.fills
        ],
        "fees": _fee_totals(account),
        "transfers": [{"time": iso(each.time), "amount": text(each.amount)} for each in account.transfers],
        "late_refusals": world.late_refusals,
    }


def _fee_totals(account: Account) -> dict[str, str]:
    totals: dict[str, Decimal] = {"USD": Decimal(0)}
    for fill in account.fills:
        coin = fill.symbol.partition("/")[0]
        totals["USD"] += fill.fee_usd
        totals[coin] = totals.get(coin, Decimal(0)) + fill.fee_coins
    return {name: text(total) for name, total in totals.items()}
