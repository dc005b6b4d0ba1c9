"""Build a dataset folder from a tidy Parquet or CSV file of bars."""

from __future__ import annotations

import argparse
from pathlib import Path

from barwise.arguments import (
    add_dataset_folder,
    add_features,
    add_stamp,
    add_tickers,
    add_venue,
    exit_code,
    plain_logging,
    split_tickers,
    utc_date,
    venue_of,
    whole_number,
    with_lookahead_check,
    write_dataset,
)
from market.defaults import DEFAULT_MAX_FILL_BARS
from market.names import DEFAULT_TICKERS


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} Bars are put on one UTC time grid and resampled by calendar time; short gaps are "
        "filled, longer ones split the data into segments; the folder is written whole or not at all. For at most a "
        "minute the dataset is built again from bars that end or change early: no earlier row may change.",
    )
    parser.add_argument(
        "--bars",
        type=Path,
        required=True,
        metavar="FILE",
        help="tidy .parquet, .csv or .csv.gz: timestamp (UTC), symbol, open, high, low, close, volume",
    )
    add_stamp(parser)
    add_tickers(parser, DEFAULT_TICKERS)
    parser.add_argument(
        "--start", type=utc_date, metavar="DATE", help="first bar, included (default: the file's first)"
    )
    parser.add_argument(
        "--end", type=utc_date, metavar="DATE", help="bars before this (default: the file's last, included)"
    )
    parser.add_argument(
        "--max-fill-bars",
        type=whole_number(0),
        default=DEFAULT_MAX_FILL_BARS,
        metavar="N",
        help="missing bars of the file that are filled in each gap, from its first on, with the last close and zero "
        "volume; no order fills in them, and a longer gap splits the data; bars of the file that repeat the last close "
        "without volume are filled bars, however many (default: %(default)s)",
    )
    add_features(parser)
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="label the dataset synthetic: the bars are not from an exchange (those of make_sample.py are marked)",
    )
    add_venue(parser)
    add_dataset_folder(parser)
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> None:
    """Do what the command line says."""
    from market.bars.candles import read_bars
    from market.build import dataset_from_bars
    from market.dataset import check_target
    from market.describe import quality_lines, segment_lines

    tickers = split_tickers(args.tickers)
    check_target(args.out, args.overwrite)
    venue = venue_of(args.venue)
    print(f"reading {args.bars}", flush=True)
    bars = read_bars(args.bars, args.stamp)
    dataset = dataset_from_bars(
        bars,
        tickers,
        args.timeframe,
        source=args.bars.name,
        synthetic=args.synthetic,
        start=args.start,
        end=args.end,
        max_fill_bars=args.max_fill_bars,
        features=args.features,
        venue=venue,
        offset_s=args.offset or 0,
    )
    for line in (*quality_lines(dataset), *segment_lines(dataset)):
        print(line)
    write_dataset(with_lookahead_check(dataset, bars, tickers), args)


def main(argv: list[str] | None = None) -> int:
    """Parse, build, report."""
    args = parse_arguments(argv)
    plain_logging("market")
    return exit_code("build_dataset.py", lambda: build(args))
