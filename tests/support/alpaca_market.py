"""The market of the Alpaca stand-in: a clock, assets, bars that become visible with time, quotes.

Prices and quantities are `Decimal`. A price is quantised to 1e-9 USD: the ask is rounded up, the bid is rounded down.
Bar times are whole seconds of the bar's open, UTC; the clock counts microseconds.
"""

from __future__ import annotations

import base64
import re
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, Self
from uuid import NAMESPACE_URL, uuid5

NANO = Decimal("1e-9")
SECOND = 1_000_000  # microseconds
UNIT_SECONDS = {"Min": 60, "T": 60, "Hour": 3_600, "H": 3_600, "Day": 86_400, "D": 86_400}
OHLCV = ("o", "h", "l", "c", "v")
MAX_ROWS = 10_000


class RefusalError(Exception):
    """An answer other than 2xx: an HTTP status, Alpaca's code and message, and further fields of the body."""

    def __init__(self, status: int, code: int | None, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {**fields, **({} if code is None else {"code": code}), "message": message}


def text(number: Decimal) -> str:
    """A decimal number as Alpaca writes it: no exponent, no trailing zeros."""
    return format(number.normalize() + 0, "f")


def rounded_down(number: Decimal, step: Decimal = NANO) -> Decimal:
    return (number / step).to_integral_value(ROUND_FLOOR) * step


def rounded_up(number: Decimal) -> Decimal:
    return number.quantize(NANO, ROUND_CEILING)


def micros(moment: Any) -> int:
    """Microseconds since 1970 of an ISO text (UTC without an offset) or of a number of seconds."""
    if not isinstance(moment, str):
        return int(Decimal(str(moment)) * SECOND)
    if re.fullmatch(r"-?\d+(\.\d+)?", moment):
        return int(Decimal(moment) * SECOND)
    parsed = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", moment).replace("Z", "+00:00"))
    parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return int(parsed.timestamp()) * SECOND + parsed.microsecond


def iso(moment: int | None) -> str | None:
    """An RFC 3339 text of microseconds since 1970; whole seconds have no fraction."""
    if moment is None:
        return None
    whole, fraction = divmod(moment, SECOND)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}{f'.{fraction:06d}' if fraction else ''}Z"


def deterministic_id(*names: object) -> str:
    return str(uuid5(NAMESPACE_URL, "/".join(map(str, names))))


@dataclass
class Settings:
    """Everything that a test may set; see the control call `set`."""

    fee_rate: Decimal = Decimal("0.0025")  # fraction of what is credited
    half_spread: Decimal = Decimal(0)  # fraction: ask = mid * (1 + half_spread), bid = mid * (1 - half_spread)
    min_notional: Decimal = Decimal(10)  # USD, of buys
    fill_gets: int = 0  # GETs of the trading interface until a market order fills
    fill_s: Decimal = Decimal(0)  # seconds of the server's clock until a market order fills
    cancel_gets: int = 0  # GETs that still show pending_cancel
    publish_delay_s: Decimal = Decimal(0)  # from a bar's close until it is shown
    page_rows: int = MAX_ROWS  # largest page of bars
    show_open_bar: bool = False  # show the unfinished bar, with its open price and a part of its volume
    date_skew_s: Decimal = Decimal(0)  # of the Date header and of /v2/clock against the server's clock

    def change(self, values: dict[str, Any]) -> None:
        """Set several; text becomes the setting's own type."""
        for name, value in values.items():
            kind = type(getattr(self, name))
            setattr(self, name, Decimal(str(value)) if kind is Decimal else kind(value))


@dataclass
class Clock:
    """The server's clock: this machine's, or frozen and moved by control calls."""

    frozen_at: int | None = None  # microseconds

    @property
    def now(self) -> int:
        return time.time_ns() // 1_000 if self.frozen_at is None else self.frozen_at

    def advance(self, seconds: Any) -> None:
        self.frozen_at = self.now + int(Decimal(str(seconds)) * SECOND)


@dataclass
class Asset:
    symbol: str
    min_order_size: Decimal = NANO
    min_trade_increment: Decimal = NANO
    price_increment: Decimal = NANO
    status: str = "active"
    tradable: bool = True

    @property
    def id(self) -> str:
        return deterministic_id("asset", self.symbol)

    def change(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            is_size = isinstance(getattr(self, name), Decimal)
            setattr(self, name, Decimal(str(value)) if is_size else value)

    def view(self) -> dict[str, Any]:
        sizes = ("min_order_size", "min_trade_increment", "price_increment")
        return {
            "id": self.id,
            "class": "crypto",
            "exchange": "CRYPTO",
            "symbol": self.symbol,
            "name": f"{self.symbol} pair",
            "status": self.status,
            "tradable": self.tradable,
            "marginable": False,
            "maintenance_margin_requirement": 100,
            "shortable": False,
            "easy_to_borrow": False,
            "fractionable": True,
            "attributes": [],
        } | {name: text(getattr(self, name)) for name in sizes}


@dataclass
class Bar:
    """One bar as it will be in the end, and how it is published."""

    time: int  # open, seconds
    values: dict[str, Decimal]  # o h l c v
    delay_s: Decimal | None = None  # from the close on; None: the symbol's
    is_missing: bool = False
    first_values: dict[str, Decimal] | None = None  # shown until the revision
    revised_after_s: Decimal = Decimal(0)  # from the close on

    @classmethod
    def of(cls, row: Any) -> Self:
        """A bar from [time, o, h, l, c, v] or from a mapping with the keys t, o, h, l, c and v."""
        moment, *numbers = row if isinstance(row, list) else (row[name] for name in ("t", *OHLCV))
        decimals = (Decimal(str(number)) for number in numbers)
        return cls(micros(moment) // SECOND, dict(zip(OHLCV, decimals, strict=True)))


def default_assets() -> dict[str, Asset]:
    sizes = {"BTC/USD": "0.000001", "ETH/USD": "0.00001", "SOL/USD": "0.001", "DOGE/USD": "0.1"}
    return {symbol: Asset(symbol, min_order_size=Decimal(size)) for symbol, size in sizes.items()}


@dataclass
class Market:
    """Assets by symbol (`BTC/USD`), their bars in order of time, and prices set by a test."""

    clock: Clock
    settings: Settings
    step_s: int = 60
    assets: dict[str, Asset] = field(default_factory=default_assets)
    bars: dict[str, list[Bar]] = field(default_factory=dict)
    prices: dict[str, Decimal] = field(default_factory=dict)
    delays_s: dict[str, Decimal] = field(default_factory=dict)

    def symbol_of(self, name: str) -> str | None:
        """`BTC/USD` of `BTC/USD`, `BTCUSD` or an asset id; None for an unknown asset."""
        return next((s for s, a in self.assets.items() if name in (s, s.replace("/", ""), a.id)), None)

    def add_bars(self, rows: dict[str, list[Any]], step_s: Any = None) -> None:
        """Add bars or replace those of the same time; an unknown symbol becomes an asset without limits."""
        self.step_s = int(step_s or self.step_s)
        for symbol, given in rows.items():
            self.assets.setdefault(symbol, Asset(symbol))
            by_time = {bar.time: bar for bar in [*self.bars.get(symbol, []), *map(Bar.of, given)]}
            self.bars[symbol] = [by_time[moment] for moment in sorted(by_time)]

    def bar(self, symbol: str, moment: Any) -> Bar:
        opens_at = micros(moment) // SECOND
        return next(bar for bar in self.bars[symbol] if bar.time == opens_at)

    def mid(self, symbol: str) -> Decimal | None:
        """The price set by a test, else the close of the latest closed bar, published or not; None without one."""
        if symbol in self.prices:
            return self.prices[symbol]
        bars = self.bars.get(symbol, [])
        n_closed = bisect_right(bars, self.clock.now // SECOND - self.step_s, key=lambda bar: bar.time)
        return bars[n_closed - 1].values["c"] if n_closed else None

    def quote(self, symbol: str) -> tuple[Decimal, Decimal]:
        """Bid and ask.

        Raises:
            RefusalError: the symbol has no price.
        """
        mid = self.mid(symbol)
        if mid is None:
            raise RefusalError(422, 40010001, f"no quote available for {symbol}")
        half = self.settings.half_spread
        return rounded_down(mid * (1 - half)), rounded_up(mid * (1 + half))

    def visible(self, symbol: str, step_s: int, first_s: int, last_s: int) -> list[tuple[int, dict[str, Decimal]]]:
        """Opens and values of what is published by now, joined to bars of `step_s` that open in [first_s, last_s]."""
        if step_s % self.step_s:
            raise RefusalError(400, None, f"the stand-in has bars of {self.step_s} seconds and whole multiples")
        bars = self.bars.get(symbol, [])
        grid = 1 if step_s == self.step_s else step_s
        begin = bisect_left(bars, -(-first_s // grid) * grid, key=lambda bar: bar.time)
        end = bisect_right(bars, last_s // grid * grid + grid - 1, key=lambda bar: bar.time)
        shown = [(bar.time, values) for bar in bars[begin:end] if (values := self._published(symbol, bar)) is not None]
        if step_s == self.step_s:
            return shown
        joined: dict[int, dict[str, Decimal]] = {}
        for moment, values in shown:
            opens_at = moment // step_s * step_s
            joined[opens_at] = _joined(joined[opens_at], values) if opens_at in joined else dict(values)
        latest = Decimal(self.clock.now) / SECOND - step_s - self._delay_s(symbol)
        return [item for item in joined.items() if item[0] <= latest or self.settings.show_open_bar]

    def _delay_s(self, symbol: str) -> Decimal:
        return self.delays_s.get(symbol, self.settings.publish_delay_s)

    def _published(self, symbol: str, bar: Bar) -> dict[str, Decimal] | None:
        """The bar's values as they are shown now, or None."""
        since_close = self.clock.now - (bar.time + self.step_s) * SECOND
        if bar.is_missing or since_close < -self.step_s * SECOND:
            return None
        if since_close < 0:
            return self._unfinished(bar, since_close) if self.settings.show_open_bar else None
        if since_close < SECOND * (self._delay_s(symbol) if bar.delay_s is None else bar.delay_s):
            return None
        is_first = bar.first_values is not None and since_close < SECOND * bar.revised_after_s
        return bar.first_values if is_first else bar.values

    def _unfinished(self, bar: Bar, since_close: int) -> dict[str, Decimal]:
        part = 1 + Decimal(since_close) / (self.step_s * SECOND)
        return dict.fromkeys("ohlc", bar.values["o"]) | {"v": rounded_down(bar.values["v"] * part)}

    def bars_page(self, query: dict[str, str], is_doubled: bool = False) -> dict[str, Any]:
        """One page, symbol after symbol; the start and the end are included."""
        step_s = _timeframe_seconds(query.get("timeframe", ""))
        now = self.clock.now
        first = micros(query.get("start", iso(now - now % (86_400 * SECOND))))
        last = micros(query.get("end", iso(now)))
        if last < first:
            raise RefusalError(400, None, "end should not be before start")
        window = -(-first // SECOND), last // SECOND
        is_descending = query.get("sort") == "desc"
        rows = [
            (symbol, moment, values)
            for symbol in _symbols(query)
            for moment, values in self.visible(symbol, step_s, *window)[:: -1 if is_descending else 1]
        ]
        if token := query.get("page_token"):
            rows = _rows_after(rows, token, is_descending)
        size = min(int(query.get("limit", 1_000)), self.settings.page_rows, MAX_ROWS)
        page: dict[str, list[dict[str, Any]]] = {}
        for symbol, moment, values in rows[:size]:
            page.setdefault(symbol, []).extend([bar_view(moment, values)] * (2 if is_doubled else 1))
        last_row = rows[size - 1] if len(rows) > size else None
        return {"bars": page, "next_page_token": last_row and _token(last_row[0], last_row[1])}

    def latest_bars(self, query: dict[str, str]) -> dict[str, Any]:
        """The newest published bar of each symbol."""
        found: dict[str, dict[str, Any]] = {}
        for symbol in _symbols(query):
            for bar in reversed(self.bars.get(symbol, [])):
                if (values := self._published(symbol, bar)) is not None:
                    found[symbol] = bar_view(bar.time, values)
                    break
        return {"bars": found}

    def latest_quotes(self, query: dict[str, str]) -> dict[str, Any]:
        quotes = {symbol: self.quote(symbol) for symbol in _symbols(query) if self.mid(symbol) is not None}
        stamp = iso(self.clock.now)
        return {
            "quotes": {
                symbol: {"t": stamp, "bp": float(bid), "bs": 1.0, "ap": float(ask), "as": 1.0}
                for symbol, (bid, ask) in quotes.items()
            }
        }

    def revise(self, symbol: str, moment: Any, first: dict[str, Any], after_s: Any) -> None:
        """Show other values at first; the bar's own replace them `after_s` seconds after its close."""
        bar = self.bar(symbol, moment)
        bar.first_values = bar.values | {name: Decimal(str(value)) for name, value in first.items()}
        bar.revised_after_s = Decimal(str(after_s))


def bar_view(moment: int, values: dict[str, Decimal]) -> dict[str, Any]:
    numbers: dict[str, Any] = {name: float(value) for name, value in values.items()}
    return {"t": iso(moment * SECOND), **numbers, "n": 3, "vw": numbers["c"]}


def _joined(early: dict[str, Decimal], late: dict[str, Decimal]) -> dict[str, Decimal]:
    high, low = max(early["h"], late["h"]), min(early["l"], late["l"])
    return {"o": early["o"], "h": high, "l": low, "c": late["c"], "v": early["v"] + late["v"]}


def _symbols(query: dict[str, str]) -> list[str]:
    symbols = sorted(set(query.get("symbols", "").split(",")))
    for symbol in symbols:
        if not re.fullmatch(r"[A-Z0-9]+/[A-Z0-9]+", symbol):
            raise RefusalError(400, None, f"invalid symbol: {symbol}")
    return symbols


def _timeframe_seconds(timeframe: str) -> int:
    match = re.fullmatch(r"(\d+)(Min|T|Hour|H|Day|D)", timeframe)
    if match is None:
        raise RefusalError(400, None, f"invalid timeframe: {timeframe}")
    return int(match[1]) * UNIT_SECONDS[match[2]]


def _token(symbol: str, moment: int) -> str:
    return base64.urlsafe_b64encode(f"{symbol}|{moment}".encode()).decode()


def _rows_after(rows: list[Any], token: str, is_descending: bool) -> list[Any]:
    """The rows behind the one that the token names; it may have gone."""
    try:
        symbol, _, moment = base64.urlsafe_b64decode(token).decode().partition("|")
        sign = -1 if is_descending else 1
        last = (symbol, sign * int(moment))
    except ValueError:
        raise RefusalError(400, None, "invalid page_token") from None
    return [row for row in rows if (row[0], sign * row[1]) > last]
