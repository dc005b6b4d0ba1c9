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
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} Bars are aligned to one UTC time grid and resampled by calendar time. Short gaps are "
        "filled, and longer gaps split the data into segments. The folder is written completely or not at all. A "
        "look-ahead check, which takes at most one minute, rebuilds the dataset from truncated and altered bars and "
        "verifies that no earlier row changes.",
    )
    parser.add_argument(
        "--bars",
        type=Path,
        required=True,
        metavar="FILE",
        help="bar file (.parquet, .csv or .csv.gz) with columns timestamp (UTC), symbol, open, high, low, close, "
        "volume",
    )
    add_stamp(parser)
    add_tickers(parser, DEFAULT_TICKERS, default_words=(" ".join(DEFAULT_TICKERS), "%(default)s"))
    parser.add_argument(
        "--start", type=utc_date, metavar="DATE", help="open time of the first bar (default: the file's first bar)"
    )
    parser.add_argument(
        "--end", type=utc_date, metavar="DATE", help="end of the period, exclusive (default: after the file's last bar)"
    )
    parser.add_argument(
        "--max-fill-bars",
        type=whole_number(0),
        default=DEFAULT_MAX_FILL_BARS,
        metavar="N",
        help="maximum number of missing bars to fill at the start of each gap, using the last close and zero volume. "
        "No orders fill on these bars. A longer gap splits the data. Bars in the file that repeat the last close with "
        "zero volume are also treated as filled, without a limit (default: %(default)s)",
    )
    add_features(parser)
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="label the dataset as synthetic because its bars are not from an exchange (bars from make_sample.py are "
        "labeled automatically)",
    )
    add_venue(parser)
    add_dataset_folder(parser)
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> None:
    """Build and write the dataset."""
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
    """Run the command and return its exit code."""
    args = parse_arguments(argv)
    plain_logging("market")
    return exit_code("build_dataset.py", lambda: build(args))
