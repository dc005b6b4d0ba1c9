#!/usr/bin/env python3
"""Download real bars without a key, as one tidy Parquet or CSV file for build_dataset.py."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from market.arguments import add_tickers, exit_code, split_tickers, utc_date
from market.candles import utc_text, write_bars
from market.errors import BarsError
from market.names import DEFAULT_TICKERS
from market.sources import Period, alpaca_bars, binance_bars

SOURCES = {"alpaca": alpaca_bars, "binance": binance_bars}
DEFAULT_DAYS = 240


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} alpaca: recent US bars, with holes in thin coins. binance: the public monthly archives "
        "of spot bars in USDT, checked against their published SHA-256; only months that have ended."
    )
    parser.add_argument("--source", choices=SOURCES, default="alpaca", help="(default: %(default)s)")
    add_tickers(parser, DEFAULT_TICKERS)
    parser.add_argument(
        "--start", type=utc_date, metavar="DATE", help=f"first bar, UTC (default: {DEFAULT_DAYS} days before the end)"
    )
    parser.add_argument(
        "--end",
        type=utc_date,
        metavar="DATE",
        help="bars before this, UTC (default: today; binance: the first of this month)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".parquet or .csv")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    return parser.parse_args(argv)


def period_of(args: argparse.Namespace) -> Period:
    """The period asked for; the end defaults to the last midnight, or to the end of the last whole month."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    end = args.end or (midnight.replace(day=1) if args.source == "binance" else midnight)
    return Period(args.start or end - timedelta(days=DEFAULT_DAYS), end)


def download(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    tickers, period = split_tickers(args.tickers), period_of(args)
    if args.out.suffix not in (".parquet", ".csv"):
        raise BarsError(f"--out {args.out}: expected a name that ends in .parquet or .csv")
    if args.out.exists() and not args.overwrite:
        raise BarsError(f"--out {args.out}: is there already; pass --overwrite to replace it")
    with tqdm(unit="request", disable=None, desc=args.source) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        bars = SOURCES[args.source](tickers, args.timeframe, period, show)
    write_bars(bars, args.out)
    first, last = (utc_text(bars["timestamp"].agg(end).timestamp()) for end in ("min", "max"))
    print(
        f"wrote {args.out}: {len(bars)} bars of {', '.join(sorted(set(bars['symbol'])))}, opens {first} .. {last} UTC"
    )


def main(argv: list[str] | None = None) -> int:
    """Parse, download, report; 0 on success, 1 on a fault, 2 on a bad command line."""
    args = parse_arguments(argv)
    return exit_code(lambda: download(args))


if __name__ == "__main__":
    sys.exit(main())
