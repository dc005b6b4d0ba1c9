#!/usr/bin/env python3
"""Look-ahead analysis: change only later bars, run again, and report the first earlier bar that differs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from drl_agents.policy_file import PolicyFileError, load_policy
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import EnvParams, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from market.arguments import add_features, add_stamp, add_tickers, exit_code, split_tickers, whole_number
from market.build import dataset_from_bars
from market.candles import DEFAULT_MAX_FILL_BARS, read_bars, to_grid, utc_text
from market.dataset import Dataset, load_dataset
from market.errors import DatasetError
from market.foresight import foresight, foresight_lines
from market.lookahead import analyse_bars, summary_lines
from market.names import DEFAULT_TICKERS, match_symbols
from train.env_factory import make_env
from train.lookahead import Act, analyse_env, numpy_policy, observation_column, probe_policy, stretch
from train.study.venue import venue_env

ENVIRONMENTS = (CryptoEnvAlpaca, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized)
# Without a policy file: every reward term counts, so that each of them is looked at.
PROBE_RULES = {"rules": "standard", "lookback": 5, "benchmark_weight": 1.0, "drawdown_penalty": 0.5}
PROBE_RULES |= {"volatility_penalty": 1.0, "concentration_penalty": 0.1, "turnover_penalty": 0.01}
ONLY_BARS = ("tickers", "timeframe", "features", "max_fill_bars", "stamp")
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
    what.add_argument("--data-dir", type=Path, metavar="FOLDER", help="dataset folder, for example data/5m")
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
        "--steps", type=whole_number(3), metavar="N", help="length of the stretch that is traded (default: 500)"
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
    tickers, source = split_tickers(args.tickers or list(DEFAULT_TICKERS)), args.bars.name
    bars = read_bars(args.bars, args.stamp or "open")
    bars = bars.loc[bars["symbol"].isin(match_symbols(tickers, map(str, bars["symbol"].cat.categories)))]
    n_fill = DEFAULT_MAX_FILL_BARS if args.max_fill_bars is None else args.max_fill_bars
    options: dict[str, Any] = {"source": source, "max_fill_bars": n_fill, "features": args.features or "default"}
    build = partial(dataset_from_bars, tickers=tickers, timeframe=args.timeframe or "5m", **options)
    with tqdm(total=2 * args.cuts + 1, unit="build", disable=None, desc="bars") as progress:
        grid = to_grid(bars, tickers, source)
        dataset, report = analyse_bars(bars, build, grid, n_fill, args.cuts, args.seed, progress.update)
    if report.first is not None:
        yield f"!{report.first} ({len(report.differences)} of {2 * len(report.cuts)} runs differ)"
    yield from lines_of_features(dataset)
    yield from summary_lines(report, dataset.tickers)


def lines_of_folder(args: argparse.Namespace) -> Iterator[str]:
    """As `lines_of_bars`, for the environments on a dataset folder."""
    dataset = load_dataset(args.data_dir)
    dataset, env_params, act = traded(dataset, args)
    rng, (first, last) = np.random.default_rng(args.seed), max(dataset.segments, key=lambda s: s[1] - s[0])
    p = EnvParams.from_mapping(env_params)
    length = min(last - first, (args.steps or 500) + p.lookback * (2 if p.ends_lookback_early else 1))
    start = first + int(rng.integers(last - first - length + 1))
    config, reports = stretch(dataset.env_config(), start, start + length), {}
    with tqdm(total=len(ENVIRONMENTS) * (2 * args.cuts + 1), unit="run", disable=None, desc="trading") as progress:
        for kind in ENVIRONMENTS:
            new = partial(make_env, kind, env_params=env_params, start="first", gpu_id=-1)
            report = analyse_env(new, act, config, env_params, args.cuts, args.seed, progress.update)
            reports[kind.__name__] = report
    for name, report in reports.items():
        if (found := report.first) is not None:
            what = observation_column(found.column, env_params, dataset.tickers, dataset.feature_names)
            hint = f" ({what})" if found.field == "observation" else ""
            yield f"!{name}, {utc_text(dataset.time[start + found.bar])}: {found}{hint}; bar 0 is row {start}"
    yield from lines_of_features(dataset)
    span = f"{utc_text(dataset.time[start])} .. {utc_text(dataset.time[start + length - 1])}"
    yield f"trading {span} with {args.policy or 'a fixed function of every column'}"
    yield from (f"  {name}: {report}" for name, report in reports.items())
    yield "  how the features were made cannot be rerun from a folder: check their bars with --bars"


def traded(dataset: Dataset, args: argparse.Namespace) -> tuple[Dataset, dict[str, Any], Act]:
    """The dataset with the policy's coins, the rules, and what acts."""
    if args.policy is None:
        env_params = PROBE_RULES | venue_env(dataset, None)
        return dataset, env_params, probe_policy(state_dim_of(dataset, env_params), len(dataset.tickers), args.seed)
    try:
        policy = load_policy(args.policy)
    except PolicyFileError as error:
        raise DatasetError(f"--policy {error}") from error
    facts = policy.metadata
    tickers, env_params = facts.get("tickers") or dataset.tickers, facts.get("env_params")
    absent = sorted(set(tickers) - set(dataset.tickers))
    if not env_params or absent:
        reason = f"trades {', '.join(absent)}, which the dataset lacks" if absent else "does not say its rules"
        raise DatasetError(f"--policy {args.policy}: {reason}; give another policy or dataset")
    dataset = dataset.with_tickers(tickers) if tuple(tickers) != dataset.tickers else dataset
    if facts.get("feature_names") not in (None, list(dataset.feature_names)):
        raise DatasetError(f"--policy {args.policy}: was trained on other feature columns than {args.data_dir} has")
    state_dim = state_dim_of(dataset, env_params)
    if state_dim != policy.state_dim:
        raise DatasetError(f"--policy {args.policy}: takes {policy.state_dim} numbers, the dataset gives {state_dim}")
    return dataset, env_params, numpy_policy(policy)


def state_dim_of(dataset: Dataset, env_params: dict[str, Any]) -> int:
    """Width of an observation of the dataset under these rules."""
    try:
        return make_env(CryptoEnvAlpaca, dataset.env_config(), env_params).state_dim
    except ValueError as error:
        raise DatasetError(f"{dataset.label}: cannot be traded ({error})") from error


def lines_of_features(dataset: Dataset) -> Iterator[str]:
    """Columns that go with the next bar."""
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
    args, lines = parse_arguments(argv), []
    code = exit_code(lambda: lines.extend(lines_of_bars(args) if args.bars else lines_of_folder(args)))
    if code:
        return 2 if code == 1 else code
    for line in report_lines(lines):
        print(line)
    return int(any(line.startswith("!") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
