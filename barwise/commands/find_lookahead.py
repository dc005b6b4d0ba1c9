"""Look-ahead analysis: change only later bars, run again, and report the first earlier bar that differs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barwise.arguments import add_features, add_stamp, add_tickers, exit_code, split_tickers, whole_number
from market.defaults import DEFAULT_MAX_FILL_BARS
from market.names import DEFAULT_TICKERS

if TYPE_CHECKING:
    from market.dataset import Dataset


DEFAULT_STEPS = 500
ONLY_BARS = ("tickers", "timeframe", "features", "max_fill_bars", "stamp", "offset")
ONLY_FOLDER = ("policy", "steps")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} With --bars the dataset is rebuilt from the file truncated and scrambled after each "
        "cut, and every earlier row must stay the same to the last bit. With --data-dir a policy trades a stretch of "
        "the dataset in all three environments, and again with later rows scrambled or taken away. Both also look for "
        "features that go with the NEXT bar's return, which is statistics and not proof. Exit code 0: clean; "
        "1: look-ahead found, in the first line; 2: the command line or the data does not allow the analysis.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bars", type=Path, metavar="FILE", help="tidy .parquet, .csv or .csv.gz, as for build_dataset")
    what.add_argument("--data-dir", type=Path, metavar="DIR", help="dataset folder, for example data/5m")
    add_tickers(parser, None, None, (" ".join(DEFAULT_TICKERS), "5m"))
    add_features(parser, None)
    add_stamp(parser, None)
    parser.add_argument(
        "--max-fill-bars",
        type=whole_number(0),
        metavar="N",
        help=f"longest run of missing bars that is filled, as for build_dataset (default: {DEFAULT_MAX_FILL_BARS})",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="policy to trade with, under the rules it was trained with (default: a fixed function of every column of "
        "the observation, under the standard rules)",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(3),
        metavar="N",
        help=f"length of the stretch that is traded (default: {DEFAULT_STEPS})",
    )
    parser.add_argument(
        "--cuts", type=whole_number(1), default=8, metavar="N", help="how many moments to cut at (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole_number(0), default=0, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ONLY_FOLDER if args.bars else ONLY_BARS:
        if getattr(args, name) is not None:
            used = "--bars" if args.bars else "--data-dir"
            parser.error(f"--{name.replace('_', '-')} does not apply to {used}; leave it out")
    return args


def lines_of_bars(args: argparse.Namespace) -> Iterator[str]:
    """Findings first, each marked with `!`, then the report."""
    from tqdm import tqdm

    from market.bars.candles import closed_bars, read_bars, step_between, to_grid
    from market.bars.spellings import chosen_symbols
    from market.build import dataset_from_bars
    from train.lookahead.bars import analyse_bars, summary_lines

    tickers, source = split_tickers(args.tickers or list(DEFAULT_TICKERS)), args.bars.name
    bars = read_bars(args.bars, args.stamp or "open")
    bars = bars.loc[bars["symbol"].isin(chosen_symbols(bars, tickers, source))]
    # Here, so that no build leaves out what others have.
    bars = closed_bars(bars, step_between(bars, None, None, source), source)
    n_fill = DEFAULT_MAX_FILL_BARS if args.max_fill_bars is None else args.max_fill_bars
    options: dict[str, Any] = {"source": source, "max_fill_bars": n_fill, "features": args.features or "default"}
    options["offset_s"] = offset_s = args.offset or 0
    build = partial(dataset_from_bars, tickers=tickers, timeframe=args.timeframe or "5m", **options)
    with tqdm(total=2 * args.cuts + 1, unit="build", disable=None, desc="bars") as progress:
        grid = to_grid(bars, tickers, source, offset_s=offset_s)
        dataset, report = analyse_bars(bars, build, grid, n_fill, args.cuts, args.seed, progress.update)
    if report.first is not None:
        yield f"!{report.first} ({len(report.differences)} of {2 * len(report.cuts)} runs differ)"
    yield from lines_of_features(dataset)
    yield from summary_lines(report, dataset.tickers)


def lines_of_folder(args: argparse.Namespace) -> Iterator[str]:
    """As `lines_of_bars`, for the environments on a dataset folder."""
    from tqdm import tqdm

    from market.dataset import load_dataset
    from train.lookahead.accounts import ENVIRONMENTS
    from train.lookahead.trading import analyse_trading

    dataset = load_dataset(args.data_dir)
    n_steps = args.steps or DEFAULT_STEPS
    with tqdm(total=len(ENVIRONMENTS) * (2 * args.cuts + 1), unit="run", disable=None, desc="trading") as progress:
        options = n_steps, args.cuts, args.seed, progress.update
        report = analyse_trading(dataset, args.policy, ENVIRONMENTS, *options)
    yield from (f"!{finding}" for finding in report.findings())
    yield from lines_of_features(report.dataset)
    yield from report.lines()


def lines_of_features(dataset: Dataset) -> Iterator[str]:
    """Columns that go with the next bar."""
    from train.lookahead.foresight import foresight, foresight_lines

    found = foresight(dataset)
    if found and found[0].is_suspicious():
        yield f"!feature {found[0]}: it seems to know the next bar"
    yield dataset.label
    yield from foresight_lines(found)


def report_lines(lines: list[str]) -> list[str]:
    """The verdict first, one line, then everything else."""
    findings = [line[1:] for line in lines if line.startswith("!")]
    rest = [line for line in lines if not line.startswith("!")]
    if not findings:
        return ["clean: nothing at or before a cut changes with what comes after it", *rest]
    return [f"LOOK-AHEAD FOUND: {findings[0]}", *(f"  also: {line}" for line in findings[1:]), *rest]


def main(argv: list[str] | None = None) -> int:
    """Parse, analyse, report; 0 clean, 1 look-ahead found, 2 when the analysis cannot be made."""
    args = parse_arguments(argv)
    return exit_code("lookahead.py", lambda: analyse(args))


def analyse(args: argparse.Namespace) -> int:
    """Do what the command line says; the exit code."""
    lines = list(lines_of_bars(args) if args.bars else lines_of_folder(args))
    for line in report_lines(lines):
        print(line)
    return int(any(line.startswith("!") for line in lines))
