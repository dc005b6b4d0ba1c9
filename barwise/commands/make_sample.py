"""Generate a dataset folder from the synthetic sample market.

By default the market contains a planted signal that an agent can learn (see market/planted.py), and the dataset is
labeled "SYNTHETIC, planted signal". With --no-signal the label is "SYNTHETIC, no signal".
"""

from __future__ import annotations

import argparse
from pathlib import Path

from barwise.arguments import (
    add_dataset_folder,
    add_features,
    add_tickers,
    add_venue,
    exit_code,
    split_tickers,
    venue_of,
    whole_number,
    with_lookahead_check,
    write_dataset,
)
from market.defaults import DEMONSTRATION_SEED, MIN_SEGMENT_BARS
from market.names import DEFAULT_TICKERS, timeframe_seconds

MOST_BARS, MOST_YEARS = 20_000, 20  # limits of the default; the calendar ends in 2099


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_tickers(parser, DEFAULT_TICKERS, default_words=(" ".join(DEFAULT_TICKERS), "%(default)s"))
    parser.add_argument(
        "--n-bars",
        type=whole_number(MIN_SEGMENT_BARS),
        metavar="N",
        help=f"usable bars per coin (default: {MOST_BARS} bars or {MOST_YEARS} years, whichever is less)",
    )
    add_features(parser)
    parser.add_argument(
        "--no-signal", action="store_true", help="omit the planted signal, so that there is nothing to learn"
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=DEMONSTRATION_SEED,
        metavar="N",
        help="seed for the market (default: %(default)s, with which an equal-weight portfolio earns little)",
    )
    add_venue(parser)
    add_dataset_folder(parser)
    parser.add_argument("--bars", type=Path, metavar="FILE", help="also write the bars to this .parquet or .csv file")
    return parser.parse_args(argv)


def make(args: argparse.Namespace) -> None:
    """Generate and write the sample dataset."""
    from market.bars.candles import write_bars
    from market.dataset import check_target, with_declaration
    from market.planted import Law
    from market.sample import sample_bars, synthetic_dataset

    tickers = split_tickers(args.tickers)
    check_target(args.out, args.overwrite)
    n_bars = args.n_bars or min(MOST_BARS, MOST_YEARS * 365 * 86_400 // timeframe_seconds(args.timeframe))
    venue = venue_of(args.venue)
    law = Law.NO_SIGNAL if args.no_signal else Law.PLANTED
    dataset = synthetic_dataset(args.timeframe, n_bars, tickers, args.seed, args.features, venue, law)
    bars = sample_bars(args.timeframe, n_bars + dataset.warmup_bars, tickers, args.seed, law=law)
    if args.bars is not None:
        write_bars(bars, args.bars)
        print(f"wrote {args.bars}")
    if law is Law.PLANTED:
        why = "the market carries a planted signal (market/planted.py)"
        dataset = with_declaration(dataset, dataset.feature_names, "make_sample.py", why)
    write_dataset(with_lookahead_check(dataset, bars), args)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parse_arguments(argv)
    return exit_code("make_sample.py", lambda: make(args))
