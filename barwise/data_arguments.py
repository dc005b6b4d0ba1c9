"""Values of the data scripts' command lines: text in, checked value out, and errors that name what was wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from market.bars.candles import STAMPS
from market.errors import BarsError, DatasetError, VenueError
from market.features import FEATURE_SETS
from market.names import TIMEFRAME_SECONDS, ticker_of
from market.venues import ALPACA, Venue, load_venue


def utc_date(text: str) -> datetime:
    """An ISO date or date-time as UTC; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an ISO date such as 2024-01-31") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def whole_number(least: int) -> Callable[[str], int]:
    """A parser of whole numbers of at least `least`."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def add_tickers(
    parser: argparse.ArgumentParser,
    default: Sequence[str] | None,
    default_timeframe: str | None = "5m",
    default_words: tuple[str, str] = ("%(default)s", "%(default)s"),
) -> None:
    """Add --tickers and --timeframe, which every data script has; `default_words` say what their defaults are."""
    parser.add_argument(
        "--tickers",
        nargs="+",
        default=None if default is None else list(default),
        metavar="TICKER",
        help=f"coins, as BTC, BTC/USD, BTC/USDT or BTCUSD, in column order (default: {default_words[0]})",
    )
    parser.add_argument(
        "--timeframe",
        choices=TIMEFRAME_SECONDS,
        default=default_timeframe,
        help=f"bar length (default: {default_words[1]})",
    )


def add_stamp(parser: argparse.ArgumentParser, default: str | None = "open") -> None:
    """Add --stamp, which every script that reads files of bars has."""
    parser.add_argument(
        "--stamp",
        choices=STAMPS,
        default=default,
        help="which time of a bar the timestamps in the file are; they become open times (default: open)",
    )


def add_features(parser: argparse.ArgumentParser, default: str | None = "default") -> None:
    """Add --features to a script that makes a dataset; with None as `default` a script tells whether it was given."""
    parser.add_argument(
        "--features",
        choices=FEATURE_SETS,
        default=default,
        help="columns: default is stationary and scaled; host is the raw set of the FinRL_Crypto family, in dollars, "
        "coins and points (default: default)",
    )


def add_venue(parser: argparse.ArgumentParser) -> None:
    """Add --venue, which every script that makes a dataset has."""
    parser.add_argument(
        "--venue",
        type=Path,
        metavar="FILE",
        help="order rules and fees that go into the dataset, as scripts/data/refresh_venues.py writes them "
        f"(default: the built-in table, {ALPACA.label}; a refreshed file is used only when it is named here)",
    )


def venue_of(path: Path | None) -> Venue:
    """The table that --venue names; the built-in one without it."""
    return ALPACA if path is None else load_venue(path)


def split_tickers(words: list[str]) -> list[str]:
    """Tickers from words that may hold commas; repeated coins are refused by name."""
    tickers = [ticker for word in words for ticker in word.split(",") if ticker.strip()]
    names = [ticker_of(ticker) for ticker in tickers]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not tickers:
        raise BarsError("--tickers: names no coin")
    if repeated:
        raise BarsError(f"--tickers: {', '.join(repeated)} is given twice; name each coin once")
    return tickers


def exit_code(work: Callable[[], None]) -> int:
    """Run a script's work; a fault that its user can mend is one line on stderr and exit code 1."""
    try:
        work()
    except (BarsError, DatasetError, VenueError) as error:
        sys.stderr.write(f"error: {error}\n")
    except OSError as error:
        sys.stderr.write(f"error: {error.filename or 'file'}: {error.strerror or error}\n")
    except KeyboardInterrupt as interruption:
        sys.stderr.write(f"interrupted; {interruption if interruption.args else 'nothing was written'}\n")
        return 130
    else:
        return 0
    return 1
