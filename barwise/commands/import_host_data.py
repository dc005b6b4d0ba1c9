"""Build a dataset folder from a host's price_array, tech_array and time_array pickles, without executing their code."""

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
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} The host's bar open times are converted to close times. A time step longer than one "
        "bar splits the data. Features keep the host's values and are named BTC:column_0 and so on. Columns that "
        "correlate with later bars are reported and must be declared before a deployment (lookahead.py --declare).",
    )
    parser.add_argument(
        "--host-folder", type=Path, required=True, metavar="DIR", help="folder that contains the pickle files"
    )
    parser.add_argument(
        "--tickers",
        nargs="+",
        required=True,
        metavar="TICKER",
        help="coin of each price column, in the host's order (the files do not store it)",
    )
    parser.add_argument(
        "--timeframe", choices=TIMEFRAME_SECONDS, required=True, help="bar length (the files do not store it)"
    )
    parser.add_argument(
        "--start",
        type=utc_date,
        metavar="DATE",
        help="open time of the first row, in UTC, used instead of time_array (FinRL_Crypto stores a pandas object, "
        "which is never loaded). Rows are assumed to be consecutive bars, so a bar missing from the host's files "
        "shifts all later ones",
    )
    parser.add_argument(
        "--warmup-bars",
        type=whole_number(0),
        default=WARMUP_BARS,
        metavar="N",
        help="number of past bars that the features depend on; it determines the purge length (default: %(default)s)",
    )
    parser.add_argument("--synthetic", action="store_true", help="label the dataset as synthetic")
    add_venue(parser)
    add_dataset_folder(parser)
    return parser.parse_args(argv)


def bring_in(args: argparse.Namespace) -> None:
    """Import the host's arrays and write the dataset."""
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
        print("WARNING times are counted from --start and are correct only if no bar is missing from the host's files")
    write_dataset(dataset, args)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_arguments(argv)
    plain_logging("market")
    return exit_code("import_host_data.py", lambda: bring_in(args))
