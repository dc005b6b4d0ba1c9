"""Limits against which every order is checked before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from market.defaults import TRADING_LIMITS
from market.errors import UserError
from paper_trading.broker import Intent

State = Literal["ACTIVE", "REDUCING", "HALTED"]
DAY_S = 86_400


@dataclass(frozen=True)
class Limits:
    """Limits of the trader (see `market.defaults.TRADING_LIMITS`). Sales are only subject to the price limit."""

    max_order_weight: float = TRADING_LIMITS["max-order-weight"][0]
    max_position_weight: float = TRADING_LIMITS["max-position-weight"][0]
    max_bar_turnover: float = TRADING_LIMITS["max-bar-turnover"][0]
    max_day_turnover: float = TRADING_LIMITS["max-day-turnover"][0]
    max_price_move: float = TRADING_LIMITS["max-price-move"][0]
    max_rejects: float = TRADING_LIMITS["max-rejects"][0]
    max_drawdown: float = TRADING_LIMITS["max-drawdown"][0]
    max_drift: float = TRADING_LIMITS["max-drift"][0]

    def __post_init__(self) -> None:
        """Raise UserError if a limit is not above 0."""
        for name, value in asdict(self).items():
            if not value > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0; received {value}")

    def to_json(self) -> dict[str, Any]:
        """Return the limits as JSON values."""
        return asdict(self)


@dataclass
class Used:
    """Used part of the limits."""

    day: int = 0  # days since 1970, UTC
    day_turnover: float = 0.0  # quote
    bar_turnover: float = 0.0  # quote
    rejects: int = 0  # consecutive rejections

    def begin_bar(self, bar_s: int) -> None:
        """Reset the turnover of the bar and, on a new UTC day, of the day."""
        self.bar_turnover = 0.0
        if bar_s // DAY_S != self.day:
            self.day, self.day_turnover = bar_s // DAY_S, 0.0

    def add(self, notional: float) -> None:
        """Add the notional of an accepted order."""
        self.bar_turnover += notional
        self.day_turnover += notional


@dataclass(frozen=True)
class Standing:
    """State of the account before an order."""

    equity: float  # quote
    held: Mapping[str, float]  # value of each position at the bar's close, quote by ticker
    price_before: Mapping[str, float]  # close of the previous bar, quote per coin


def refusal(intent: Intent, limits: Limits, used: Used, account: Standing) -> str | None:
    """Return the reason why an order exceeds a limit, or None if it may be sent."""
    notional = float(intent.qty) * intent.price
    before = account.price_before[intent.ticker]
    if abs(intent.price / before - 1.0) > limits.max_price_move:
        move = f"{intent.price / before - 1.0:+.1%} since the previous bar"
        return f"the price moved by {move}, which exceeds --max-price-move {limits.max_price_move:g}"
    if intent.side == "sell":
        return None
    held = account.held[intent.ticker] + notional
    for amount, limit, name in (
        (notional, limits.max_order_weight, "--max-order-weight"),
        (held, limits.max_position_weight, "--max-position-weight"),
        (used.bar_turnover + notional, limits.max_bar_turnover, "--max-bar-turnover"),
        (used.day_turnover + notional, limits.max_day_turnover, "--max-day-turnover"),
    ):
        if amount > limit * account.equity:
            return f"{amount:,.2f} exceeds {name} {limit:g} of equity {account.equity:,.2f}"
    return None
