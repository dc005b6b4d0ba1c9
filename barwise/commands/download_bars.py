"""Download real bars without an API key, or join bar files, into one Parquet or CSV file for build_dataset.py."""

from __future__ import annotations

import argparse
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from barwise.arguments import add_stamp, add_tickers, exit_code, plain_logging, split_tickers, utc_date
from market.errors import BarsError
from market.names import DEFAULT_TICKERS, timeframe_seconds
from train.records.provenance import home

if TYPE_CHECKING:
    import pandas as pd

    from market.sources.periods import Period


SERVERS = ("alpaca", "binance")
DEFAULT_DAYS, DEFAULT_BARS = 240, 2_000  # whichever is longer
# Flags that apply to one kind of source only; with the other kind they are an error.
ONLY_FILES, ONLY_SERVERS = ("bars", "stamp", "offset"), ("cache", "no_cache")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} alpaca: bars of Alpaca's US market, with gaps in illiquid coins. binance: public "
        "monthly archives of USDT spot bars, verified by their published SHA-256; complete months only. file: your own "
        "bar files, joined and aggregated. Timestamps are bar open times in UTC. Bars that have not closed yet are "
        "never written."
    )
    parser.add_argument(
        "--source", choices=(*SERVERS, "file"), default="alpaca", help="source of the bars (default: %(default)s)"
    )
    words = (f"{' '.join(DEFAULT_TICKERS)}; file: all coins", "5m; file: timeframe of the files")
    add_tickers(parser, None, None, words)
    parser.add_argument(
        "--start",
        type=utc_date,
        metavar="DATE",
        help=f"open time of the first bar, in UTC unless it includes a time zone (default: {DEFAULT_DAYS} days or "
        f"{DEFAULT_BARS} bars before the end, whichever is longer; file: the first bar)",
    )
    parser.add_argument(
        "--end",
        type=utc_date,
        metavar="DATE",
        help="end of the period, exclusive (default: today; binance: the first of this month; file: after the last "
        "bar)",
    )
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="cache folder for complete months, so that an interrupted download resumes and later runs download only "
        "new months (default: data/cache in the repository)",
    )
    keep.add_argument("--no-cache", action="store_true", default=None, help="do not read or write the cache")
    parser.add_argument(
        "--bars", nargs="+", type=Path, metavar="FILE", help="bar files for --source file: .parquet, .csv or .csv.gz"
    )
    add_stamp(parser, None)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write: .parquet or .csv")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    args = parser.parse_args(argv)
    for name in ONLY_SERVERS if args.source == "file" else ONLY_FILES:
        if getattr(args, name) is not None:
            parser.error(f"--{name.replace('_', '-')} does not apply to --source {args.source}; omit it")
    if args.source == "file" and not args.bars:
        parser.error("--source file requires --bars FILE")
    return args


def period_of(args: argparse.Namespace) -> Period:
    """Return the requested period. The end defaults to the last UTC midnight (Binance: to the start of the month)."""
    from market.sources.periods import Period

    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    end = args.end or (midnight.replace(day=1) if args.source == "binance" else midnight)
    bar = timedelta(seconds=timeframe_seconds(args.timeframe or "5m"))
    length = max(timedelta(days=DEFAULT_DAYS), DEFAULT_BARS * bar)
    return Period(args.start or end - length, end)


def bars_of(args: argparse.Namespace) -> pd.DataFrame:
    """Read or download the requested bars."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    from market.bars.own_files import file_bars
    from market.sources.download import alpaca_bars, binance_bars

    if args.source == "file":
        tickers = split_tickers(args.tickers) if args.tickers else None
        stamp, offset_s = args.stamp or "open", args.offset or 0
        return file_bars(args.bars, tickers, args.timeframe, args.start, args.end, stamp, offset_s=offset_s)
    tickers, period = split_tickers(args.tickers or list(DEFAULT_TICKERS)), period_of(args)
    cache = None if args.no_cache else args.cache or home() / "data" / "cache"
    with tqdm(unit="month", disable=None, desc=args.source) as bar, logging_redirect_tqdm():

        def show(done: int, total: int) -> None:
            if bar.total is None:
                bar.reset(total)
                # Cached months take no time and must not count toward the speed.
                bar.initial = bar.n = bar.last_print_n = done
            bar.update(done - bar.n)

        servers = {"alpaca": alpaca_bars, "binance": binance_bars}
        return servers[args.source](tickers, args.timeframe or "5m", period, show, cache=cache)


def write(args: argparse.Namespace) -> None:
    """Read or download the bars and write them to --out."""
    from market.bars.candles import write_bars
    from market.times import utc_text

    if args.out.suffix not in (".parquet", ".csv"):
        raise BarsError(f"--out {args.out}: the file name must end in .parquet or .csv")
    if args.out.exists() and not args.overwrite:
        raise BarsError(f"--out {args.out}: already exists; pass --overwrite to replace it")
    if any(path.exists() and args.out.exists() and path.samefile(args.out) for path in args.bars or ()):
        raise BarsError(f"--out {args.out}: is one of the --bars files and would be lost; choose another name")
    bars = bars_of(args)
    write_bars(bars, args.out)
    first, last = (utc_text(bars["timestamp"].agg(end).timestamp()) for end in ("min", "max"))
    print(
        f"wrote {args.out}: {len(bars)} bars of {', '.join(sorted(set(bars['symbol'])))}, opens {first} .. {last} UTC"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_arguments(argv)
    plain_logging("market")
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # market.sources.transport logs retries
    return exit_code("download_bars.py", lambda: write(args))
