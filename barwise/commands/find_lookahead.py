"""Look-ahead analysis: change only later bars, rerun, and report the first earlier bar that differs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from barwise.arguments import add_features, add_stamp, add_tickers, exit_code, split_tickers, whole_number
from market.defaults import DEFAULT_MAX_FILL_BARS
from market.names import DEFAULT_TICKERS

if TYPE_CHECKING:
    from market.dataset import Dataset
    from market.lookahead import BarsReport


DEFAULT_STEPS = 500
BUILD = ("timeframe", "features", "max_fill_bars", "offset")  # taken from the manifest of --record
ONLY_BARS = ("tickers", "stamp", "record", *BUILD)
ONLY_FOLDER = ("policy", "steps", "declare", "by", "why")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} With --bars, the dataset is rebuilt with the bars after each cut removed or altered. "
        "Every earlier row must remain bit-identical. With --data-dir, a policy trades part of the dataset in all "
        "three environments, then again with later rows altered or removed. Both modes also correlate every column "
        "with bars up to 2,048 steps later; a correlation is evidence, not proof. --record and --declare write "
        "the results that a deployment requires to the dataset's manifest. Exit codes: 0 if no look-ahead was found; "
        "1 if look-ahead was found (the first line of the output reports it); 2 if the command line is invalid or the "
        "data cannot be analyzed.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bars", type=Path, metavar="FILE", help="bar file to check: .parquet, .csv or .csv.gz")
    what.add_argument("--data-dir", type=Path, metavar="DIR", help="dataset folder to check, for example data/5m")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="with --bars: dataset built from these bars. It is rebuilt with the settings in its manifest and must be "
        "bit-identical. The result is stored in its manifest",
    )
    parser.add_argument(
        "--declare",
        nargs="+",
        metavar="COLUMN",
        help="with --data-dir: declare in the manifest that these columns are free of look-ahead although they "
        "correlate with later bars, and exit",
    )
    parser.add_argument("--by", metavar="NAME", help="with --declare: author of the declaration")
    parser.add_argument("--why", metavar="TEXT", help="with --declare: reason why the columns are free of look-ahead")
    add_tickers(parser, None, None, (" ".join(DEFAULT_TICKERS), "5m"))
    add_features(parser, None)
    add_stamp(parser, None)
    parser.add_argument(
        "--max-fill-bars",
        type=whole_number(0),
        metavar="N",
        help=f"number of missing bars to fill per gap, as in build_dataset.py (default: {DEFAULT_MAX_FILL_BARS})",
    )
    parser.add_argument(
        "--policy",
        type=Path,
        metavar="FILE",
        help="policy file, traded under the rule set it was trained with (default: a fixed function of all observation "
        "columns, under the standard rules)",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(3),
        metavar="N",
        help=f"number of steps to trade (default: {DEFAULT_STEPS})",
    )
    parser.add_argument(
        "--cuts", type=whole_number(1), default=8, metavar="N", help="number of cut points (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="random seed (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    refuse_misfits(parser, args)
    return args


def refuse_misfits(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a usage error if flags cannot be combined."""
    for name in ONLY_FOLDER if args.bars else ONLY_BARS:
        if getattr(args, name) is not None:
            used = "--bars" if args.bars else "--data-dir"
            parser.error(f"--{name.replace('_', '-')} does not apply to {used}; omit it")
    for name in BUILD if args.record else ():
        if getattr(args, name) is not None:
            parser.error(
                f"--{name.replace('_', '-')} does not apply to --record, because the manifest sets it; omit it"
            )
    if (args.declare is None) != (args.by is None) or (args.declare is None) != (args.why is None):
        parser.error("--declare COLUMN, --by NAME and --why TEXT must be given together")


def lines_of_bars(args: argparse.Namespace) -> Iterator[str]:
    """Yield the findings, each prefixed with `!`, and then the report. Store the result in the --record dataset."""
    from tqdm import tqdm

    from market.bars.candles import read_bars
    from market.build import dataset_from_bars
    from market.dataset import load_dataset, write_record
    from market.lookahead import checked

    bars = read_bars(args.bars, args.stamp or "open")
    tickers = split_tickers(args.tickers) if args.tickers else None
    if args.record:
        dataset = load_dataset(args.record)
    else:
        tickers, n_fill = tickers or DEFAULT_TICKERS, args.max_fill_bars
        options = {"source": args.bars.name, "features": args.features or "default", "offset_s": args.offset or 0}
        options["max_fill_bars"] = DEFAULT_MAX_FILL_BARS if n_fill is None else n_fill
        dataset = dataset_from_bars(bars, tickers, args.timeframe or "5m", **options)
    with tqdm(total=2 * args.cuts + 1, unit="build", disable=None, desc="bars") as progress:
        options = {"n_cuts": args.cuts, "seed": args.seed, "most_seconds": math.inf}
        dataset, report = checked(dataset, bars, tickers, **options, on_run=lambda _: progress.update())
    yield from report_of_bars(dataset, report)
    if args.record:
        write_record(args.record, dataset.record)
        yield f"wrote {args.record}: {dataset.standing.line}"


def report_of_bars(dataset: Dataset, report: BarsReport) -> Iterator[str]:
    """Yield the first row changed by later bars, the column correlations, and a summary of the comparisons."""
    from market.lookahead import summary_lines

    if report.first is not None:
        yield f"!{report.first} ({len(report.differences)} of {2 * len(report.cuts)} runs differ)"
    # If no row changes with later bars, any correlation with them comes from the market.
    yield from lines_of_features(dataset, is_finding=report.first is not None)
    yield from summary_lines(report, dataset.tickers)


def lines_of_folder(args: argparse.Namespace) -> Iterator[str]:
    """Yield the findings and the report like `lines_of_bars`, for the environments on a dataset folder."""
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
    yield from lines_of_features(report.dataset, is_finding=report.dataset.record.cuts == 0)
    yield report.dataset.standing.line
    yield from report.lines()


def lines_of_features(dataset: Dataset, is_finding: bool) -> Iterator[str]:
    """Yield the correlations of columns with later bars. With `is_finding`, undeclared suspicious ones are findings."""
    from market.foresight import foresight, foresight_lines

    found = foresight(dataset)
    if is_finding:
        declared = dataset.record.declared_columns
        yield from (f"!feature {f}" for f in found if f.is_suspicious and f.column not in declared)
    yield dataset.label
    yield from foresight_lines(found)


def declare(args: argparse.Namespace) -> int:
    """Write a declaration and the correlations it covers to the manifest, and return the exit code."""
    from market.dataset import load_dataset, with_declaration, write_record
    from market.foresight import foresight_lines, tested

    dataset, found = tested(load_dataset(args.data_dir))
    dataset = with_declaration(dataset, args.declare, args.by, args.why)
    write_record(args.data_dir, dataset.record)
    for line in (*foresight_lines(found), f"wrote {args.data_dir}: {dataset.standing.line}"):
        print(line)
    return 0


def report_lines(lines: list[str]) -> list[str]:
    """Return the verdict, followed by all other lines."""
    findings = [line[1:] for line in lines if line.startswith("!")]
    rest = [line for line in lines if not line.startswith("!")]
    if not findings:
        return ["clean: no row at or before a cut changes with the rows after it", *rest]
    return [f"LOOK-AHEAD FOUND: {findings[0]}", *(f"  also: {line}" for line in findings[1:]), *rest]


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code: 0 clean, 1 look-ahead found, 2 not analyzable."""
    args = parse_arguments(argv)
    return exit_code("lookahead.py", lambda: analyse(args))


def analyse(args: argparse.Namespace) -> int:
    """Run the analysis and return the exit code."""
    if args.declare:
        return declare(args)
    lines = list(lines_of_bars(args) if args.bars else lines_of_folder(args))
    for line in report_lines(lines):
        print(line)
    return int(any(line.startswith("!") for line in lines))
