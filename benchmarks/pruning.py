#!/usr/bin/env python3
"""Measure what pruning saves in time and costs in quality, with studies of equal budget.

Both studies of a seed use the same market and start with the same trials. Coins of the market rise one after another,
announced one bar ahead. How well a trial finds this signal depends on its settings. Quality is the winner's value and
its mean excess Sharpe ratio on the hold-out. The two studies take turns. Time is CPU time on one thread, because other
work on the machine disturbs it less than wall time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from typing import Any

import optuna
import pandas as pd

from benchmarks import measuring
from benchmarks.planted_markets import TICKERS, AnnouncedMarket
from benchmarks.studies import ended_study
from train.records.attributes import holdout_score_in
from train.store.database import FINISHED
from train.study.eligibility import best_trial
from train.study.split_plan import SplitPlan

PRUNERS = ("none", "wilcoxon")
SIGNAL = AnnouncedMarket(n_assets=len(TICKERS), rise=0.003, fall=-0.001, volatility=0.004)
PLANS = {6: SplitPlan("standard", 3, 2, 0.25), 15: SplitPlan("standard", 5, 2, 0.25)}  # number of splits -> plan
# Budget of every study: trials (completed and pruned), environment steps per split, bars.
BUDGET = {"n_trials": 40, "break_step": 1_500, "n_bars": 5_000}
QUICK, FIRST = (
    {"n_trials": 5, "break_step": 1_000, "n_bars": 4_000},
    {"n_trials": 1, "break_step": 1_000, "n_bars": 5_000},
)
N_ENVS, SEEDS = 12, 5
COLUMNS = measuring.columns(n_splits="splits per trial", seed="seed", pruner="pruner", n_completed="completed")
COLUMNS |= {"n_pruned": "pruned", "splits": "splits trained", "cpu_s": "CPU time, s", "wall_s": "wall time, s"}
COLUMNS |= {"value": "best value", "holdout": "winner's excess Sharpe ratio on the hold-out"}
WINNER = {"value": "value", "holdout": "excess Sharpe ratio on the hold-out"}


def study_once(seed: int, n_splits: int, pruner: str, budget: dict[str, int]) -> dict[str, Any]:
    """Run one study and return its row."""
    market = SIGNAL.dataset(budget["n_bars"], seed)
    sizes = {"n_trials": budget["n_trials"], "break_step": budget["break_step"], "n_envs": N_ENVS}
    wall, cpu = time.perf_counter(), time.process_time()
    with ended_study(market, plan=PLANS[n_splits], pruner=pruner, seed=seed, **sizes) as stored:
        row = {"n_splits": n_splits, "seed": seed, "pruner": pruner, "wall_s": time.perf_counter() - wall}
        return row | {"cpu_s": time.process_time() - cpu} | figures(stored.study)


def figures(study: optuna.Study) -> dict[str, Any]:
    """Return the results of a study."""
    finished, best = study.get_trials(deepcopy=False, states=FINISHED), best_trial(study)
    n_completed = sum(t.state == optuna.trial.TrialState.COMPLETE for t in finished)
    scored = holdout_score_in(study.user_attrs)
    found = {"n_completed": n_completed, "n_pruned": len(finished) - n_completed}
    found["splits"] = sum(name.startswith("split_") for t in finished for name in t.user_attrs)
    return found | {"value": best and best.value, "holdout": scored and scored.mean_excess_sharpe}


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """Summarize the effect of pruning as medians of paired differences."""
    lines = []
    for n_splits, own in pd.DataFrame(rows).groupby("n_splits"):
        without, pruned = (own[own["pruner"] == pruner].set_index("seed") for pruner in PRUNERS)
        part = (pruned[["cpu_s", "splits"]] / without[["cpu_s", "splits"]]).median()
        text = (
            f"With {n_splits} splits, pruned studies used {part['cpu_s']:.0%} of the CPU time and "
            f"{part['splits']:.0%} of the splits (medians over {len(pruned)} seed{'s' * (len(pruned) > 1)})."
        )
        for key, words in WINNER.items():
            less = (pruned[key].astype(float) - without[key].astype(float)).dropna()
            text += f" The median change in the winner's {words} due to pruning was {less.median():+.1f} "
            text += f"({less.min():+.1f} to {less.max():+.1f})."
        lines.append(text)
    return lines


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    budget, seeds, all_splits = (QUICK, 1, [6]) if args.quick else (BUDGET, SEEDS, list(PLANS))
    if not args.quick:
        study_once(0, 6, "none", FIRST)  # warm-up: compiles the kernels
    rows = []
    for seed, n_splits in itertools.product(range(seeds), all_splits):
        for pruner in PRUNERS if seed % 2 == 0 else PRUNERS[::-1]:
            rows.append(study_once(seed, n_splits, pruner, budget))
            took = f"finished in {rows[-1]['wall_s']:.0f} s"
            print(f"seed {seed}, {n_splits} splits, pruner {pruner}: {took}", file=sys.stderr)
    rows.sort(key=lambda row: (row["n_splits"], row["seed"], row["pruner"]))
    about = (
        f"The table compares studies of {budget['n_trials']} trials with {budget['break_step']:,} environment steps "
        f"per split, on {budget['n_bars']:,} bars of {len(TICKERS)} coins with an announced signal. The last quarter "
        "of the bars is the hold-out. Sharpe ratios are annual, and they are high because the signal is strong. "
        "With the pruner off, only inactive trials are stopped, because their Sharpe ratio is meaningless."
    )
    return measuring.section(args, about, COLUMNS, rows=rows, notes=notes(rows), settings=budget)


if __name__ == "__main__":
    sys.exit(measuring.run("pruning", __doc__, measure, threads=1))
