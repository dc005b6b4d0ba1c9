"""The account of the Alpaca stand-in: orders, fills, positions and cash, and how Alpaca's JSON shows them.

All amounts are `Decimal`, computed exactly and quantised once, when they are booked:

* a buy of `qty` costs qty * ask, rounded up to 1e-9 USD; the position grows by qty * (1 - fee_rate), rounded down to
  1e-9 coins; the fee is the rest of `qty`, in coins;
* a sale of `qty` takes `qty` from the position and adds qty * bid * (1 - fee_rate) to the cash, rounded down to
  1e-9 USD; the fee is the rest of qty * bid, in USD, not rounded.

An order follows its plan, a list of steps. A step is due when so many GETs were answered and so many seconds of the
server's clock have passed since the step before it. The price is that of the moment of the fill.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from tests.support.alpaca_market import (
    NANO,
    SECOND,
    Market,
    RefusalError,
    deterministic_id,
    micros,
    rounded_down,
    rounded_up,
    text,
)
from tests.support.alpaca_orders import ENDS, Fill, Order, Plan, Position, Step, Transfer, activity_id

BAD_REQUEST, FORBIDDEN, NOT_FOUND, UNPROCESSABLE = 40010001, 40310000, 40410000, 42210000
LONGEST_CLIENT_ID = 128


@dataclass
class Account:
    """One account at one market. Times are microseconds of the server's clock."""

    market: Market
    cash: Decimal = Decimal(100_000)
    number: str = "PA0STANDIN"
    positions: dict[str, Position] = field(default_factory=dict)  # by `BTC/USD`
    orders: list[Order] = field(default_factory=list)
    fills: list[Fill] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    last_stamp: int = 0

    def stamp(self) -> int:
        """Now, or a microsecond after the last stamp: no two orders or fills have the same time."""
        self.last_stamp = max(self.market.clock.now, self.last_stamp + 1)
        return self.last_stamp

    def tick(self) -> None:
        """Count a GET for every open order."""
        for order in self.orders:
            if order.is_open and order.plan:
                order.plan[0].gets -= 1
            if order.status == "pending_new":
                order.status = "new"

    def settle(self) -> None:
        """Carry out the steps that are due, the oldest order first."""
        for order in self.orders:
            self._follow_plan(order)

    def _follow_plan(self, order: Order) -> None:
        while order.is_open and order.plan and self._is_due(order):
            step = order.plan.pop(0)
            order.since = self.market.clock.now
            if step.do == "fill":
                self._fill(order, step.fraction)
            elif step.do in ENDS:
                self._end(order, ENDS[step.do])

    def _is_due(self, order: Order) -> bool:
        step = order.plan[0]
        waited_s = Decimal(self.market.clock.now - order.since) / SECOND
        return step.gets <= 0 and waited_s >= step.after_s

    def _end(self, order: Order, status: str) -> None:
        order.status, order.ended_at = status, self.stamp()
        order.updated_at = order.ended_at

    def submit(self, payload: dict[str, Any], is_foreign: bool = False, plan: list[Step] | None = None) -> Order:
        """Check an order, take it, and carry out what is due at once.

        Raises:
            RefusalError: it is not taken; nothing changes.
        """
        symbol = self._tradable(str(payload.get("symbol", "")))
        side = payload.get("side")
        if side not in ("buy", "sell"):
            raise RefusalError(422, BAD_REQUEST, "invalid side")
        if payload.get("type") != "market":
            raise RefusalError(422, BAD_REQUEST, "invalid order type: the stand-in takes market orders")
        if payload.get("time_in_force") not in ("gtc", "ioc"):
            raise RefusalError(422, UNPROCESSABLE, "invalid crypto time_in_force")
        client_id = payload.get("client_order_id") or deterministic_id(self.number, "client", len(self.orders))
        self._check_client_id(client_id)
        qty, notional = self._amount(payload, "qty"), self._amount(payload, "notional")
        if (qty is None) == (notional is None):
            raise RefusalError(422, BAD_REQUEST, "qty or notional is required, and not both")
        bid, ask = self.market.quote(symbol)
        price = ask if side == "buy" else bid
        target = self._target(symbol, qty, notional, price)
        self._check_affordable(symbol, side, target, price)
        stamp = self.stamp()
        order = Order(
            id=deterministic_id(self.number, "order", len(self.orders)),
            client_order_id=client_id,
            symbol=symbol,
            side=side,
            time_in_force=payload["time_in_force"],
            qty=qty,
            notional=notional,
            target=target,
            held_price=price,
            submitted_at=stamp,
            plan=self._plan(symbol, side) if plan is None else plan,
            is_foreign=is_foreign,
            since=self.market.clock.now,
            updated_at=stamp,
        )
        self.orders.append(order)
        self._follow_plan(order)
        return order

    def _tradable(self, name: str) -> str:
        symbol = self.market.symbol_of(name)
        if symbol is None:
            raise RefusalError(422, BAD_REQUEST, f'asset "{name}" not found')
        asset = self.market.assets[symbol]
        if asset.status != "active":
            raise RefusalError(422, BAD_REQUEST, f'asset "{symbol}" is not active')
        if not asset.tradable:
            raise RefusalError(422, BAD_REQUEST, f'asset "{symbol}" is not tradable')
        return symbol

    def _check_client_id(self, client_id: str) -> None:
        if len(client_id) > LONGEST_CLIENT_ID:
            raise RefusalError(422, BAD_REQUEST, "client_order_id must be no more than 128 characters")
        if any(order.client_order_id == client_id for order in self.orders):
            raise RefusalError(422, BAD_REQUEST, "client_order_id must be unique")

    def _amount(self, payload: dict[str, Any], name: str) -> Decimal | None:
        if payload.get(name) is None:
            return None
        try:
            amount = Decimal(str(payload[name]))
        except InvalidOperation:
            raise RefusalError(422, BAD_REQUEST, f"invalid {name}") from None
        if not amount.is_finite() or amount <= 0:
            raise RefusalError(422, BAD_REQUEST, f"{name} must be > 0")
        if name == "notional" and amount != rounded_down(amount, Decimal("0.01")):
            raise RefusalError(422, UNPROCESSABLE, "notional value must be limited to 2 decimal places")
        return amount

    def _target(self, symbol: str, qty: Decimal | None, notional: Decimal | None, price: Decimal) -> Decimal:
        """Coins of an order, a notional rounded down to the increment."""
        asset = self.market.assets[symbol]
        step = asset.min_trade_increment
        target = qty if qty is not None else rounded_down((notional or Decimal(0)) / price, step)
        if target < asset.min_order_size:
            raise RefusalError(422, BAD_REQUEST, f"qty must be >= min_order_size {text(asset.min_order_size)}")
        if target != rounded_down(target, step):
            raise RefusalError(422, BAD_REQUEST, f"qty must be a multiple of min_trade_increment {text(step)}")
        return target

    def _check_affordable(self, symbol: str, side: str, target: Decimal, price: Decimal) -> None:
        coin = symbol.partition("/")[0]
        if side == "sell":
            held = self.positions[symbol].qty if symbol in self.positions else Decimal(0)
            _check_balance(coin, target, self.available(symbol), held)
            return
        least = self.market.settings.min_notional
        if target * price < least:
            raise RefusalError(403, FORBIDDEN, f"cost basis must be >= minimal amount of order {text(least)}")
        _check_balance("USD", rounded_up(target * price), self.buying_power(), self.cash)

    def _plan(self, symbol: str, side: str) -> list[Step]:
        """Steps from a test's plans, else one fill after the delay of the settings."""
        for plan in self.plans:
            if plan.times and plan.symbol in ("", symbol) and plan.side in ("", side):
                plan.times -= 1
                return [replace(step) for step in plan.steps]
        settings = self.market.settings
        return [Step("fill", gets=settings.fill_gets, after_s=settings.fill_s)]

    def _fill(self, order: Order, fraction: Decimal | None) -> None:
        """Fill a part or the rest at the present price; cancel an order without a price or without the balance."""
        if self.market.mid(order.symbol) is None:
            self._end(order, "canceled")
            return
        bid, ask = self.market.quote(order.symbol)
        price = ask if order.side == "buy" else bid
        if order.notional is not None and not order.filled:
            step = self.market.assets[order.symbol].min_trade_increment
            order.target = rounded_down(order.notional / price, step)
        qty = order.rest if fraction is None else min(order.rest, rounded_down(order.target * fraction))
        if qty == 0:
            return
        held = self.positions.get(order.symbol, Position(Decimal(0), price))
        is_covered = rounded_up(qty * price) <= self.cash if order.side == "buy" else qty <= held.qty
        if not is_covered:
            self._end(order, "canceled")
            return
        fee_coins, fee_usd = self._book(order, held, qty, price)
        order.filled += qty
        order.cost += qty * price
        order.status = "partially_filled"
        stamp = order.updated_at = self.stamp()
        self.fills.append(
            Fill(
                id=activity_id(self.number, "fill", stamp),
                order_id=order.id,
                client_order_id=order.client_order_id,
                symbol=order.symbol,
                side=order.side,
                qty=qty,
                price=price,
                fee_coins=fee_coins,
                fee_usd=fee_usd,
                time=stamp,
                cum_qty=order.filled,
                leaves_qty=order.rest,
            )
        )
        if order.rest == 0:
            order.status, order.ended_at = "filled", stamp

    def _book(self, order: Order, held: Position, qty: Decimal, price: Decimal) -> tuple[Decimal, Decimal]:
        """Change cash and position -> the fee in coins and in USD."""
        kept = 1 - self.market.settings.fee_rate
        if order.side == "buy":
            credited = rounded_down(qty * kept)
            self.cash -= rounded_up(qty * price)
            total = held.qty + credited
            average = (held.qty * held.avg_entry_price + credited * price) / total if total else price
            self.set_position(order.symbol, total, average)
            return qty - credited, Decimal(0)
        proceeds = rounded_down(qty * price * kept)
        self.cash += proceeds
        self.set_position(order.symbol, held.qty - qty, held.avg_entry_price)
        return Decimal(0), qty * price - proceeds

    def cancel(self, order: Order) -> None:
        """Ask for the cancellation of an open order.

        Raises:
            RefusalError: it has ended.
        """
        if not order.is_open:
            raise RefusalError(422, UNPROCESSABLE, f'order is already in "{order.status}" state')
        order.status, order.since = "pending_cancel", self.market.clock.now
        order.plan = [Step("cancel", gets=self.market.settings.cancel_gets)]
        self._follow_plan(order)

    def close(self, symbol: str, query: dict[str, str]) -> Order:
        """Sell a position: the whole, `qty` coins or `percentage` of it, rounded down to the increment."""
        held = self.positions[symbol].qty
        part = held * Decimal(query.get("percentage", "100")) / 100
        amount = Decimal(query["qty"]) if "qty" in query else part
        step = self.market.assets[symbol].min_trade_increment
        payload = {"symbol": symbol, "side": "sell", "type": "market", "time_in_force": "gtc"}
        return self.submit(payload | {"qty": rounded_down(amount, step)})

    def set_position(self, symbol: str, qty: Decimal, average: Decimal) -> None:
        self.positions.pop(symbol, None)
        if qty:
            self.positions[symbol] = Position(qty, average.quantize(NANO, ROUND_HALF_EVEN))

    def transfer(self, amount: Decimal) -> None:
        """Add cash, or take it where the amount is negative."""
        self.cash += amount
        self.transfers.append(Transfer(self.stamp(), amount))

    def available(self, symbol: str) -> Decimal:
        """Coins that no open sale holds."""
        held = self.positions[symbol].qty if symbol in self.positions else Decimal(0)
        return held - sum((o.rest for o in self.orders if o.symbol == symbol and o.side == "sell"), Decimal(0))

    def buying_power(self) -> Decimal:
        """Cash that no open buy holds."""
        holds = (rounded_up(o.rest * o.held_price) for o in self.orders if o.side == "buy")
        return self.cash - sum(holds, Decimal(0))

    def value(self, symbol: str) -> Decimal:
        return rounded_down(self.positions[symbol].qty * (self.market.mid(symbol) or Decimal(0)))

    def equity(self) -> Decimal:
        return self.cash + sum(map(self.value, self.positions), Decimal(0))

    def view(self) -> dict[str, Any]:
        cash, power, equity = text(self.cash), text(self.buying_power()), text(self.equity())
        zeros = ("accrued_fees", "short_market_value", "initial_margin", "maintenance_margin", "sma")
        blocks = ("trading_blocked", "transfers_blocked", "account_blocked", "trade_suspended_by_user")
        return {
            "id": deterministic_id(self.number),
            "account_number": self.number,
            "status": "ACTIVE",
            "crypto_status": "ACTIVE",
            "currency": "USD",
            "cash": cash,
            "buying_power": power,
            "non_marginable_buying_power": power,
            "equity": equity,
            "last_equity": equity,
            "portfolio_value": equity,
            "long_market_value": text(self.equity() - self.cash),
            "shorting_enabled": False,
            "created_at": "2024-01-01T00:00:00Z",
            **dict.fromkeys(zeros, "0"),
            **dict.fromkeys(blocks, False),
        }

    def position_view(self, symbol: str) -> dict[str, Any]:
        position = self.positions[symbol]
        mid = self.market.mid(symbol)
        cost = rounded_down(position.qty * position.avg_entry_price)
        profit = self.value(symbol) - cost
        part = text((profit / cost).quantize(NANO, ROUND_HALF_EVEN)) if cost else "0"
        price = None if mid is None else text(mid)
        return {
            "asset_id": deterministic_id("asset", symbol),
            "symbol": symbol.replace("/", ""),
            "exchange": "CRYPTO",
            "asset_class": "crypto",
            "asset_marginable": False,
            "qty": text(position.qty),
            "qty_available": text(self.available(symbol)),
            "avg_entry_price": text(position.avg_entry_price),
            "side": "long",
            "market_value": None if mid is None else text(self.value(symbol)),
            "cost_basis": text(cost),
            "unrealized_pl": None if mid is None else text(profit),
            "unrealized_plpc": None if mid is None else part,
            "unrealized_intraday_pl": None if mid is None else text(profit),
            "unrealized_intraday_plpc": None if mid is None else part,
            "current_price": price,
            "lastday_price": price,
            "change_today": "0",
        }

    def find(self, **wanted: str) -> Order:
        """The order with this id or client_order_id; 404 otherwise."""
        ((name, value),) = wanted.items()
        for order in self.orders:
            if getattr(order, name) == value:
                return order
        raise RefusalError(404, NOT_FOUND, f"order not found for {value}")

    def orders_view(self, query: dict[str, str]) -> list[dict[str, Any]]:
        """Orders as the query filters them; both limits of time are exclusive, the newest come first."""
        after = micros(query["after"]) if "after" in query else -1
        until = micros(query["until"]) if "until" in query else self.last_stamp + 1
        wanted = {self.market.symbol_of(name) for name in query.get("symbols", "").split(",") if name}
        status, side = query.get("status", "open"), query.get("side")
        size = int(query.get("limit", 50))
        if not 1 <= size <= 500:
            raise RefusalError(422, BAD_REQUEST, "limit must be between 1 and 500")
        found = [
            order
            for order in self.orders
            if after < order.submitted_at < until
            and (status == "all" or order.is_open == (status == "open"))
            and (not wanted or order.symbol in wanted)
            and side in (None, order.side)
        ]
        ordered = found if query.get("direction") == "asc" else found[::-1]
        return [order.view() for order in ordered[:size]]

    def activities_view(self, kinds: list[str], query: dict[str, str]) -> list[dict[str, Any]]:
        """Activities by time, newest first; a page goes on after the id in `page_token`."""
        found = [(fill.time, view) for fill in self.fills for view in (fill.view(), fill.fee_view())]
        found += [(transfer.time, transfer.view(self.number)) for transfer in self.transfers]
        after = micros(query["after"]) if "after" in query else -1
        until = micros(query["until"]) if "until" in query else self.last_stamp + 1
        inside = [view for moment, view in sorted(found, key=lambda pair: pair[0]) if after < moment < until]
        views = [view for view in inside if not kinds or view["activity_type"] in kinds]
        views = [view for view in views if view["qty"] != "0" or view["net_amount"] != "0"]
        if query.get("direction") != "asc":
            views.reverse()
        ids = [view["id"] for view in views]
        begin = ids.index(query["page_token"]) + 1 if query.get("page_token") in ids else 0
        return views[begin : begin + int(query.get("page_size", 100))]


def _check_balance(coin: str, wanted: Decimal, available: Decimal, balance: Decimal) -> None:
    if wanted > available:
        raise RefusalError(
            403,
            FORBIDDEN,
            f"insufficient balance for {coin} (requested: {text(wanted)}, available: {text(available)})",
            available=text(available),
            balance=text(balance),
            symbol="USD",
        )
