"""A period in UTC and its calendar months: what downloads ask for and a cache keeps, one symbol and month at a time.

Every time here is a bar's OPEN time; a bar closes one bar length later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from market.errors import BarsError


@dataclass(frozen=True)
class Period:
    """Bars with open times in [start, end), UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Bring both ends to UTC, where no zone means UTC, and refuse an empty period."""
        for name in ("start", "end"):
            moment: datetime = getattr(self, name)
            in_utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            object.__setattr__(self, name, in_utc)
        if self.start >= self.end:
            raise BarsError(f"start {_day(self.start)} is not before end {_day(self.end)}; the end is excluded")

    def months(self) -> list[datetime]:
        """First moments of the calendar months that the period touches."""
        month = self.start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        months = []
        while month < self.end:
            months.append(month)
            month = next_month(month)
        return months

    def within(self, other: Period) -> Period:
        """The part of this period inside another that it touches."""
        return Period(max(self.start, other.start), min(self.end, other.end))


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}" if (moment.hour, moment.minute) == (0, 0) else f"{moment:%Y-%m-%d %H:%M}"


def next_month(month: datetime) -> datetime:
    """First moment of the calendar month after the one that starts at `month`."""
    return (month + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True)
class SymbolMonth:
    """One symbol's bars of one calendar month: what is fetched, retried, counted and cached as a whole."""

    symbol: str  # as the source writes it, BTC/USD or BTC/USDT
    month: datetime  # its first moment, UTC

    @property
    def period(self) -> Period:
        """The whole month."""
        return Period(self.month, next_month(self.month))

    def __str__(self) -> str:
        return f"{self.symbol} {self.month:%Y-%m}"
