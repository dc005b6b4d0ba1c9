#!/usr/bin/env python3
"""What pruning saves in time and costs in quality: studies of equal budget with the Wilcoxon pruner and without one.

Both studies of a seed see the same market and begin with the same trials. The market has a signal that settings differ
in finding: coins rise one after the other, announced a bar ahead. Quality is the winner's value, and its mean excess
Sharpe on bars held out of the study. The two take turns, and time is the process's processor time (one thread),
which other work on the machine disturbs less than it does a clock's.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks import measuring
from benchmarks.calibration import BAR_SECONDS, FIRST_CLOSE_S, TICKERS
from benchmarks.planted_markets import AnnouncedMarket
from market.dataset import Dataset, make_dataset, save_dataset
from train.finish import run_study
from train.records.keys import HOLDOUT_SCORE
from train.runner.request import StudyRequest
from train.store.address import absolute_url
from train.store.database import FINISHED, load_study
from train.study.eligibility import best_trial
from train.study.split_plan import SplitPlan

PRUNERS = ("none", "wilcoxon")
SIGNAL = AnnouncedMarket(n_assets=len(TICKERS), rise=0.003, fall=-0.001, volatility=0.004)
PLANS = {6: SplitPlan("standard", 3, 2, 0.25), 15: SplitPlan("standard", 5, 2, 0.25)}  # splits: plan; 6 is the default
COLUMNS = {
    "n_splits": "splits of a trial", "seed": "seed", "pruner": "pruner", "n_completed": "completed",
    "n_pruned": "pruned", "splits": "splits trained", "cpu_s": "CPU seconds", "wall_s": "seconds",
    "value": "best value", "holdout": "its excess Sharpe, held out",
}  # fmt: skip
WINNER = {"value": "best value", "holdout": "excess Sharpe held out"}


@dataclass(frozen=True)
class Budget:
    """Of every study."""

    n_trials: int = 40  # completed and pruned
    break_step: int = 1_500  # environment steps of a split
    n_envs: int = 12
    n_bars: int = 5_000


def make_market(seed: int, n_bars: int) -> Dataset:
    """Coins that rise in turn, announced."""
    config = SIGNAL.config(n_bars, seed)
    names = [f"{ticker}:announced" for ticker in TICKERS]
    return make_dataset(
        price=config["price_array"], tech=config["tech_array"],
        time=FIRST_CLOSE_S + BAR_SECONDS * np.arange(n_bars), tickers=TICKERS,
        feature_names=names + [f"time:noise_{i}" for i in range(SIGNAL.n_noise_features)], bar_seconds=BAR_SECONDS,
        segments=[(0, n_bars)], source=f"announced market, seed {seed}", synthetic=True,
    )  # fmt: skip


def study_once(seed: int, n_splits: int, pruner: str, budget: Budget) -> dict[str, Any]:
    """One study, thrown away after its figures are read."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_dataset(make_market(seed, budget.n_bars), folder / "5m")
        url = absolute_url("sqlite:///study.db", folder)
        wall, cpu = time.perf_counter(), time.process_time()
        run_study(
            StudyRequest(
                n_trials=budget.n_trials, study_name="pruning", storage=url, results_dir=folder / "results",
                data_dir=folder / "5m", plan=PLANS[n_splits],
                n_envs=budget.n_envs, break_step=budget.break_step, use_best_ranges=True, pruner=pruner, seed=seed,
            )
        )  # fmt: skip
        spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        return {"n_splits": n_splits, "seed": seed, "pruner": pruner} | spent | figures(load_study(url, "pruning"))


def figures(study: optuna.Study) -> dict[str, Any]:
    """What a study came to."""
    finished, best = study.get_trials(deepcopy=False, states=FINISHED), best_trial(study)
    n_completed = sum(t.state == optuna.trial.TrialState.COMPLETE for t in finished)
    scored = study.user_attrs.get(HOLDOUT_SCORE) or {}
    return {
        "n_completed": n_completed,
        "n_pruned": len(finished) - n_completed,
        "splits": sum(name.startswith("split_") for t in finished for name in t.user_attrs),
        "value": None if best is None else best.value,
        "holdout": scored.get("mean_excess_sharpe"),
    }


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What pruning did, seed by seed, in medians."""
    by_study = {(row["n_splits"], row["seed"], row["pruner"]): row for row in rows}
    lines = []
    for n_splits in sorted({row["n_splits"] for row in rows}):
        seeds = sorted({row["seed"] for row in rows if row["n_splits"] == n_splits})
        pairs = [tuple(by_study[n_splits, seed, pruner] for pruner in PRUNERS) for seed in seeds]
        time_part, splits_part = (statistics.median(b[n] / a[n] for a, b in pairs) for n in ("cpu_s", "splits"))
        lines.append(
            f"{n_splits} splits: pruning took {time_part:.0%} of the processor time, {splits_part:.0%} of the splits "
            f"(medians over {len(pairs)} seed{'s' * (len(pairs) > 1)}). " + " ".join(map(_difference(pairs), WINNER))
        )
    return lines


def _difference(pairs: Sequence[tuple[dict[str, Any], ...]]) -> Callable[[str], str]:
    def sentence(name: str) -> str:
        found = [b[name] - a[name] for a, b in pairs if None not in (a[name], b[name])]
        if not found:
            return f"The winner's {WINNER[name]} cannot be compared."
        return (
            f"The winner's {WINNER[name]} with pruning less that without: median {statistics.median(found):+.1f}, from "
            f"{min(found):+.1f} to {max(found):+.1f}."
        )

    return sentence


def measure(args: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """The section "pruning"."""
    rows = []
    if not args.quick:
        study_once(0, 6, "none", Budget(1, 1_000))  # compiles what is compiled
    n_studies = 2 * args.seeds * len(args.splits)
    for seed, n_splits in itertools.product(range(args.seeds), args.splits):
        for pruner in PRUNERS if seed % 2 == 0 else PRUNERS[::-1]:
            rows.append(study_once(seed, n_splits, pruner, budget))
            done = f"{len(rows)} of {n_studies}: seed {seed}, {n_splits} splits, {pruner}"
            print(f"{done}: {rows[-1]['wall_s']:.0f} s", file=sys.stderr)
    rows.sort(key=lambda row: (row["n_splits"], row["seed"], row["pruner"]))
    about = (
        f"Studies of {budget.n_trials} trials, {budget.break_step:,} environment steps a split, on {budget.n_bars:,} "
        f"bars of {len(TICKERS)} coins with an announced signal, the last quarter held out. Sharpe ratios are annual, "
        "and high because the signal is. Pruned without a pruner are trials whose Sharpe ratio says nothing: the "
        "policy does not trade."
    )
    return measuring.section(args, about, COLUMNS, rows=rows, notes=notes(rows), settings=asdict(budget))


def main(argv: list[str] | None = None) -> int:
    """Measure, show, keep."""
    parser = measuring.arguments(__doc__, gpu=False)
    parser.set_defaults(threads=1)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="pairs of studies (default 5)")
    parser.add_argument("--splits", type=int, nargs="+", choices=PLANS, default=list(PLANS), metavar="N",
                        help="splits of a trial: 6 (the trainer's default), 15 (default: both)")  # fmt: skip
    args = parser.parse_args(argv)
    measuring.with_threads(args)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("train").setLevel(logging.ERROR)
    if args.quick:
        args.seeds, args.splits = 1, [6]
    measuring.finish(args, "pruning", measure(args, Budget(5, 1_000, n_bars=4_000) if args.quick else Budget()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
