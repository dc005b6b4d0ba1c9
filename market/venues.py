"""Order rules and fees of a venue, dated and keyed by coin NAME instead of column.

A rule is stored under the coin's name in a dataset: `BTC` for dollars and dollar stablecoins, `ETH/BTC` for a pair in
another currency. The dollar rule of a coin does not apply to such a pair. Without its own entry, the pair has no
minimum notional, because 10 dollars are not 10 units of a different currency, and `unlisted` reports it.

`ALPACA` is the built-in table. scripts/data/refresh_venues.py downloads the current rules from the venue.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from market.codec import decode, encode, read_object
from market.errors import BarsError, VenueError
from market.files import write_whole
from market.names import is_readable, known_currency, match_symbol, ticker_of
from market.symbols import known_pair

FORMAT = 1
TABLE = f"a table of venue rules of format {FORMAT}"
LARGEST_FILE_BYTES = 2**20
LONGEST_TEXT = 300
MIN_ORDER_NOTIONAL = 10.0  # USD
QTY_INCREMENT = 1e-9  # coins
# A quantity below a whole increment by at most this fraction is rounded up to it. A test keeps this equal to the
# simulator's constant.
INCREMENT_SLACK = 1e-9


@dataclass(frozen=True)
class OrderRule:
    """Order rule of one coin."""

    min_order_qty: float  # coins; an order must be above it
    qty_increment: float = QTY_INCREMENT  # coins, lot size; 0 if the venue does not round
    min_order_notional: float = MIN_ORDER_NOTIONAL  # cash currency of the pair
    price_increment: float | None = None  # cash currency; step of limit prices

    def __post_init__(self) -> None:
        """Raise VenueError for invalid sizes."""
        for name in ("min_order_qty", "qty_increment", "min_order_notional"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.price_increment is not None:
            object.__setattr__(self, "price_increment", _number("price_increment", self.price_increment))


@dataclass(frozen=True)
class FeeTier:
    """Fees that apply from a 30-day volume upward, as fractions of notional."""

    min_volume_30d: float  # USD
    maker_rate: float  # fee of an order that rests in the book
    taker_rate: float  # fee of an order that fills immediately, such as a market order

    def __post_init__(self) -> None:
        """Raise VenueError for invalid fees."""
        object.__setattr__(self, "min_volume_30d", _number("min_volume_30d", self.min_volume_30d))
        for name in ("maker_rate", "taker_rate"):
            rate = _number(name, getattr(self, name))
            object.__setattr__(self, name, rate)
            if rate >= 1.0:
                raise VenueError(f"{name} must be a fraction of notional (0.0025 is 0.25 %); received {rate:g}")


@dataclass(frozen=True)
class OrderRules:
    """Order rules of several coins, in the requested order."""

    min_order_qty: np.ndarray  # (A,) float64, coins
    qty_increment: np.ndarray  # (A,) float64, coins
    # Cash currency. The simulator supports one value, so this is the largest, which is valid for every coin.
    min_order_notional: float


@dataclass(frozen=True)
class Venue:
    """Order rules and fees of one venue. They have separate dates, because Alpaca's assets endpoint has no fees."""

    name: str
    as_of: str  # ISO date of the order rules
    source: str  # origin of the order rules
    rules: Mapping[str, OrderRule]  # coin name from `market.names.ticker_of` -> rule
    default_rule: OrderRule  # rule of coins without an entry; its notional is in USD
    fee_tiers: tuple[FeeTier, ...]  # sorted by volume
    fees_as_of: str  # ISO date

    def __post_init__(self) -> None:
        """Raise VenueError for invalid tables, and sort rules by name."""
        for what in ("name", "source"):
            _check_text(what, getattr(self, what))
        for what in ("as_of", "fees_as_of"):
            _check_date(what, getattr(self, what))
        for name, rule in self.rules.items():
            is_name = isinstance(name, str) and known_pair(name) is not None and ticker_of(name) == name
            if not is_name or not isinstance(rule, OrderRule):
                raise VenueError(f"rules: {name!r} must be a coin name such as BTC or ETH/BTC, with an order rule")
        object.__setattr__(self, "rules", dict(sorted(self.rules.items())))
        object.__setattr__(self, "fee_tiers", tuple(self.fee_tiers))
        volumes = [tier.min_volume_30d for tier in self.fee_tiers]
        if volumes[:1] != [0.0]:
            raise VenueError("fee_tiers must begin with the tier of volume 0, so that every account has a fee")
        if volumes != sorted(set(volumes)):
            raise VenueError(f"fee_tiers must be sorted by volume, each once; received {volumes}")

    @property
    def label(self) -> str:
        """Name and date, such as `alpaca of 2024-08-31`."""
        return f"{self.name} of {self.as_of}"

    def rule(self, ticker: str) -> OrderRule:
        """Return the rule of a coin under any of its names (`BTC`, `BTC/USD`, `BTCUSDT`), or the default rule."""
        entry = self._entry(ticker)
        if entry is not None:
            return self.rules[entry]
        # A name that cannot be read is treated as a coin in dollars, with the default rule.
        is_dollars = known_currency(ticker) in ("USD", None)
        return self.default_rule if is_dollars else replace(self.default_rule, min_order_notional=0.0)

    def _entry(self, ticker: str) -> str | None:
        """Return the name of the coin's entry, or None. A pair (`BTC/USD`) is split only if no entry equals it."""
        if ticker not in self.rules and not is_readable(ticker):
            return None
        try:
            return match_symbol(ticker, tuple(self.rules))
        except BarsError as error:
            raise VenueError(f"{self.label}: {error}") from error

    def order_rules(self, tickers: Sequence[str]) -> OrderRules:
        """Return the rules of several coins as arrays in the order of `tickers`, joined by name."""
        rules = [self.rule(ticker) for ticker in tickers]
        return OrderRules(
            min_order_qty=np.array([rule.min_order_qty for rule in rules], dtype=np.float64),
            qty_increment=np.array([rule.qty_increment for rule in rules], dtype=np.float64),
            min_order_notional=max((rule.min_order_notional for rule in rules), default=0.0),
        )

    def unlisted(self, tickers: Sequence[str]) -> tuple[str, ...]:
        """Return the coins without an entry, to which the default rule applies."""
        return tuple(ticker for ticker in tickers if self._entry(ticker) is None)

    def only(self, tickers: Sequence[str]) -> Venue:
        """Return the venue with only the entries of these coins."""
        names = {self._entry(ticker) for ticker in tickers}
        return replace(self, rules={name: rule for name, rule in self.rules.items() if name in names})

    def fee_rate(self, volume_30d: float = 0.0, liquidity: str = "taker") -> float:
        """Return the fee of an account with a given 30-day volume, as a fraction of notional.

        Args:
            volume_30d: volume of the last 30 days, USD.
            liquidity: "taker" or "maker". Market orders, and limit orders that fill at once, are takers.

        Raises:
            VenueError: an argument is not valid.
        """
        if liquidity not in ("taker", "maker"):
            raise VenueError(f"liquidity must be taker or maker; received {liquidity!r}")
        volume_30d = _number("volume_30d", volume_30d)
        tier = next(tier for tier in reversed(self.fee_tiers) if tier.min_volume_30d <= volume_30d)
        return tier.taker_rate if liquidity == "taker" else tier.maker_rate

    def whole_increments(self, ticker: str, qty: float) -> float:
        """Return `qty` coins rounded down to the coin's lot size, exactly as in the simulator."""
        step = self.rule(ticker).qty_increment
        return math.floor(qty / step + INCREMENT_SLACK) * step if step > 0 and math.isfinite(qty) else qty

    def check_order(self, ticker: str, qty: float, price: float, *, closes_position: bool = False) -> str | None:
        """Return the reason why an order is not valid, or None if it is valid.

        The decision is that of the simulator under the `standard` rules. The quantity, rounded down to the lot size,
        must be above the minimum, and its notional at least the minimum notional. A sale that closes the position is
        always valid.

        Args:
            ticker: coin name in any form.
            qty: size of the order, coins.
            price: price of the order, cash currency.
            closes_position: if True, the order sells the whole position.
        """
        if not (math.isfinite(qty) and qty > 0):
            return f"{ticker}: the quantity must be positive and finite; received {qty:g} coins"
        if not (math.isfinite(price) and price > 0):
            return f"{ticker}: the price must be positive and finite; received {price:g}"
        if closes_position:
            return None
        rule, whole = self.rule(ticker), self.whole_increments(ticker, qty)
        if not whole > rule.min_order_qty:
            least = f"must be above {rule.min_order_qty:g}, in steps of {rule.qty_increment:g}"
            return f"{ticker}: {qty:g} coins {least} ({self.label})"
        if whole * price < rule.min_order_notional:
            return (
                f"{ticker}: {whole * price:g} is below the minimum order of {rule.min_order_notional:g} ({self.label})"
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, which `from_json` reads."""
        return {"format": FORMAT, **asdict(self), "fee_tiers": [asdict(tier) for tier in self.fee_tiers]}

    @classmethod
    def from_json(cls, content: object) -> Venue:
        """Read a venue from the result of `to_json`.

        Raises:
            VenueError: a field is missing, unknown, of a wrong type or out of range; the message names it.
        """
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise VenueError(f"not {TABLE}")
        values = {name: value for name, value in content.items() if name != "format"}
        rules = values.get("rules")
        # Decode rules one by one, so that an error names the coin.
        for name, rule in rules.items() if isinstance(rules, Mapping) else ():
            decode(rule, OrderRule, VenueError, name[:40], is_exact=True)
        return decode(values, cls, VenueError, "venue", is_exact=True)


def save_venue(venue: Venue, path: Path | str) -> None:
    """Write the table as JSON atomically, replacing an existing file."""
    write_whole(Path(path), encode(venue.to_json()))


def load_venue(path: Path | str) -> Venue:
    """Read a table written by `save_venue`.

    Raises:
        VenueError: the file cannot be used; the message is one line and names it.
    """
    again = "recreate it with scripts/data/refresh_venues.py"
    content = read_object(path, VenueError, again, what=TABLE, most_bytes=LARGEST_FILE_BYTES)
    try:
        return Venue.from_json(content)
    except VenueError as error:
        raise VenueError(f"{path}: {error}; {again}") from error


def changes(old: Venue, new: Venue) -> list[str]:
    """Return one line for each coin whose order rule changed, such as `BTC: min_order_qty 1.7e-05 -> 1.1e-05`."""
    lines = []
    for name in sorted({*old.rules, *new.rules}):
        before, after = old.rules.get(name), new.rules.get(name)
        if before == after:
            continue
        if after is None:
            lines.append(f"{name}: no longer listed")
        elif before is None:
            lines.append(f"{name}: new, {', '.join(f'{what} {_said(value)}' for what, value in asdict(after).items())}")
        else:
            pairs = [(what, value, getattr(after, what)) for what, value in asdict(before).items()]
            moved = [f"{what} {_said(was)} -> {_said(now)}" for what, was, now in pairs if was != now]
            lines.append(f"{name}: {', '.join(moved)}")
    return lines


def _said(value: float | None) -> str:
    return "none" if value is None else f"{value:.9g}"


def _number(name: str, value: object) -> float:
    """Return the value as a float. It must be finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise VenueError(f"{name} must be a number; received {str(value)[:40]!r}")
    if not 0.0 <= value < math.inf:
        raise VenueError(f"{name} must be a finite number of at least 0; received {str(value)[:40]}")
    try:
        return float(value)
    except OverflowError as error:
        raise VenueError(f"{name} is too large") from error


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= LONGEST_TEXT:
        raise VenueError(f"{name} must be one line of text of at most {LONGEST_TEXT} characters")


def _check_date(name: str, value: object) -> None:
    try:
        is_date = isinstance(value, str) and date.fromisoformat(value).isoformat() == value
    except ValueError:
        is_date = False
    if not is_date:
        raise VenueError(f"{name} must be a date such as 2024-08-31; received {str(value)[:40]!r}")


# Alpaca's smallest crypto order is worth about one US dollar, converted to coins as the price moves. The lot size is
# 1e-9 coins. A buy below 10 USD is rejected (code 40310000). The quantities below are one US dollar of coin at
# the closing price of 2024-08-31 (Binance spot), to three digits. They were not published by a venue. Fees: Alpaca's
# schedule in force since 2023-03-13, in basis points.
ALPACA = Venue(
    name="alpaca",
    as_of="2024-08-31",
    source="built in: one US dollar of coin at the close of that day",
    rules={
        "AAVE": OrderRule(0.00771),
        "ATOM": OrderRule(0.219),
        "AVAX": OrderRule(0.0438),
        "BCH": OrderRule(0.0031),
        "BTC": OrderRule(1.7e-05),
        "DOGE": OrderRule(9.87),
        "ETC": OrderRule(0.0543),
        "ETH": OrderRule(0.000398),
        "LINK": OrderRule(0.0907),
        "LTC": OrderRule(0.0154),
        "MATIC": OrderRule(2.38),
        "NEAR": OrderRule(0.248),
        "OP": OrderRule(0.706),
        "PEPE": OrderRule(132000.0),
        "SHIB": OrderRule(72300.0),
        "SOL": OrderRule(0.00739),
        "UNI": OrderRule(0.168),
        "XRP": OrderRule(1.77),
    },
    # Only the notional is limited: no minimum quantity, smallest lot size.
    default_rule=OrderRule(min_order_qty=0.0),
    fee_tiers=tuple(
        FeeTier(volume, maker / 10_000, taker / 10_000)
        for volume, maker, taker in (
            (0, 15, 25),
            (100_000, 12, 22),
            (500_000, 10, 20),
            (1_000_000, 8, 18),
            (10_000_000, 5, 15),
            (25_000_000, 2, 13),
            (50_000_000, 2, 12),
            (100_000_000, 0, 10),
        )
    ),
    fees_as_of="2023-03-13",
)
