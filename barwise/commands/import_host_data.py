"""Make a dataset folder from a host repository's pickles price_array, tech_array and time_array, running no code."""

from __future__ import annotations

import argparse
from pathlib import Path

from barwise.arguments import (
    add_dataset_folder,
    add_venue,
    exit_code,
    plain_logging,
    split_tickers,
    utc_date,
    venue_of,
    whole_number,
    write_dataset,
)
from market.defaults import WARMUP_BARS
from market.names import TIMEFRAME_SECONDS, timeframe_seconds


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} The hosts stamp a bar with its open, a dataset with its close. A step longer than a "
        "bar splits the data; features keep the host's values and are named BTC:column_0 and so on. Columns that "
        "correlate with later bars are reported: a deployment needs them declared (lookahead.py --declare).",
    )
    parser.add_argument("--host-folder", type=Path, required=True, metavar="DIR", help="folder that holds the pickles")
    parser.add_argument(
        "--tickers",
        nargs="+",
        required=True,
        metavar="TICKER",
        help="coins of the price columns, in the host's order: the files do not say it",
    )
    parser.add_argument(
        "--timeframe", choices=TIMEFRAME_SECONDS, required=True, help="bar length: the files do not say it"
    )
    parser.add_argument(
        "--start",
        type=utc_date,
        metavar="DATE",
        help="open of the first row, UTC, instead of time_array (FinRL_Crypto's is a pandas object, which is never "
        "loaded): every row then counts as one bar after the last, so a bar that the host left out shifts all "
        "later ones",
    )
    parser.add_argument(
        "--warmup-bars",
        type=whole_number(0),
        default=WARMUP_BARS,
        metavar="N",
        help="bars that a feature reaches back, for purging (default: %(default)s)",
    )
    parser.add_argument("--synthetic", action="store_true", help="label the dataset synthetic: the bars are made up")
    add_venue(parser)
    add_dataset_folder(parser)
    return parser.parse_args(argv)


def bring_in(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    from market.dataset import check_target
    from market.describe import feature_lines, quality_lines, segment_lines
    from market.foresight import foresight_lines, tested
    from market.host_import import dataset_from_host

    tickers = split_tickers(args.tickers)
    check_target(args.out, args.overwrite)
    dataset = dataset_from_host(
        args.host_folder,
        tickers,
        timeframe_seconds(args.timeframe),
        start=args.start,
        synthetic=args.synthetic,
        warmup_bars=args.warmup_bars,
        venue=venue_of(args.venue),
    )
    dataset, found = tested(dataset)
    lines = *quality_lines(dataset), *segment_lines(dataset), *feature_lines(dataset), *foresight_lines(found)
    for line in (*lines, dataset.standing.line):
        print(line)
    if args.start is not None:
        print("WARNING the times are counted from --start: they are right only if the host left no bar out")
    write_dataset(dataset, args)


def main(argv: list[str] | None = None) -> int:
    """Parse, import, report."""
    args = parse_arguments(argv)
    plain_logging("market")
    return exit_code("import_host_data.py", lambda: bring_in(args))
