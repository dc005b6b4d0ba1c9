"""A UTC period and its calendar months. Downloads and the cache work on one symbol and month at a time.

All times in this module are OPEN times of bars. A bar closes one bar length later.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from market.errors import BarsError


@dataclass(frozen=True)
class Period:
    """A period of bars with open times in [start, end), UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        """Convert both ends to UTC (the default zone). Raise BarsError if the period is empty."""
        for name in ("start", "end"):
            moment: datetime = getattr(self, name)
            in_utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            object.__setattr__(self, name, in_utc)
        if self.start >= self.end:
            raise BarsError(f"start {_day(self.start)} must be before end {_day(self.end)}, which is exclusive")

    def months(self) -> list[datetime]:
        """Return the start of each calendar month in the period."""
        month = self.start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        months = []
        while month < self.end:
            months.append(month)
            month = next_month(month)
        return months

    def within(self, other: Period) -> Period:
        """Return the intersection with an overlapping period."""
        return Period(max(self.start, other.start), min(self.end, other.end))


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}" if (moment.hour, moment.minute) == (0, 0) else f"{moment:%Y-%m-%d %H:%M}"


def next_month(month: datetime) -> datetime:
    """Return the start of the next calendar month. `month` is the start of a month."""
    return (month + timedelta(days=32)).replace(day=1)


@dataclass(frozen=True)
class SymbolMonth:
    """One symbol and calendar month: the unit of downloads, retries, progress and caching."""

    symbol: str  # the source's name, such as BTC/USD or BTC/USDT
    month: datetime  # start of the month, UTC

    @property
    def period(self) -> Period:
        """The whole month."""
        return Period(self.month, next_month(self.month))

    def __str__(self) -> str:
        return f"{self.symbol} {self.month:%Y-%m}"
