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
import sys
import time
from typing import Any

import optuna
import pandas as pd

from benchmarks import measuring
from benchmarks.planted_markets import TICKERS, AnnouncedMarket
from benchmarks.studies import ended_study
from train.records.keys import HOLDOUT_SCORE
from train.store.database import FINISHED
from train.study.eligibility import best_trial
from train.study.split_plan import SplitPlan

PRUNERS = ("none", "wilcoxon")
SIGNAL = AnnouncedMarket(n_assets=len(TICKERS), rise=0.003, fall=-0.001, volatility=0.004)
PLANS = {6: SplitPlan("standard", 3, 2, 0.25), 15: SplitPlan("standard", 5, 2, 0.25)}  # splits: plan; 6 is the default
# Of every study: trials completed and pruned, environment steps of a split, bars.
BUDGET = {"n_trials": 40, "break_step": 1_500, "n_bars": 5_000}
QUICK, FIRST = (
    {"n_trials": 5, "break_step": 1_000, "n_bars": 4_000},
    {"n_trials": 1, "break_step": 1_000, "n_bars": 5_000},
)
N_ENVS, SEEDS = 12, 5
COLUMNS = measuring.columns(n_splits="splits of a trial", seed="seed", pruner="pruner", n_completed="completed")
COLUMNS |= {"n_pruned": "pruned", "splits": "splits trained", "cpu_s": "CPU seconds", "wall_s": "seconds"}
COLUMNS |= {"value": "best value", "holdout": "its excess Sharpe, held out"}
WINNER = {"value": "best value", "holdout": "excess Sharpe held out"}


def study_once(seed: int, n_splits: int, pruner: str, budget: dict[str, int]) -> dict[str, Any]:
    """The figures of one study."""
    market = SIGNAL.dataset(budget["n_bars"], seed)
    sizes = {"n_trials": budget["n_trials"], "break_step": budget["break_step"], "n_envs": N_ENVS}
    wall, cpu = time.perf_counter(), time.process_time()
    with ended_study(market, plan=PLANS[n_splits], pruner=pruner, seed=seed, **sizes) as stored:
        row = {"n_splits": n_splits, "seed": seed, "pruner": pruner, "wall_s": time.perf_counter() - wall}
        return row | {"cpu_s": time.process_time() - cpu} | figures(stored.study)


def figures(study: optuna.Study) -> dict[str, Any]:
    """What a study came to."""
    finished, best = study.get_trials(deepcopy=False, states=FINISHED), best_trial(study)
    n_completed = sum(t.state == optuna.trial.TrialState.COMPLETE for t in finished)
    scored = study.user_attrs.get(HOLDOUT_SCORE) or {}
    found = {"n_completed": n_completed, "n_pruned": len(finished) - n_completed}
    found["splits"] = sum(name.startswith("split_") for t in finished for name in t.user_attrs)
    return found | {"value": best and best.value, "holdout": scored.get("mean_excess_sharpe")}


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What pruning did, seed by seed, in medians."""
    lines = []
    for n_splits, own in pd.DataFrame(rows).groupby("n_splits"):
        without, pruned = (own[own["pruner"] == pruner].set_index("seed") for pruner in PRUNERS)
        part = (pruned[["cpu_s", "splits"]] / without[["cpu_s", "splits"]]).median()
        text = (
            f"{n_splits} splits: pruning took {part['cpu_s']:.0%} of the processor time, {part['splits']:.0%} of the "
            f"splits (medians over {len(pruned)} seed{'s' * (len(pruned) > 1)})."
        )
        for key, words in WINNER.items():
            less = (pruned[key].astype(float) - without[key].astype(float)).dropna()
            text += f" The winner's {words} with pruning less that without: median {less.median():+.1f}, "
            text += f"from {less.min():+.1f} to {less.max():+.1f}."
        lines.append(text)
    return lines


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section."""
    budget, seeds, all_splits = (QUICK, 1, [6]) if args.quick else (BUDGET, SEEDS, list(PLANS))
    if not args.quick:
        study_once(0, 6, "none", FIRST)  # compiles what is compiled
    rows = []
    for seed, n_splits in itertools.product(range(seeds), all_splits):
        for pruner in PRUNERS if seed % 2 == 0 else PRUNERS[::-1]:
            rows.append(study_once(seed, n_splits, pruner, budget))
            print(f"seed {seed}, {n_splits} splits, {pruner}: {rows[-1]['wall_s']:.0f} s", file=sys.stderr)
    rows.sort(key=lambda row: (row["n_splits"], row["seed"], row["pruner"]))
    about = (
        f"Studies of {budget['n_trials']} trials, {budget['break_step']:,} environment steps a split, on "
        f"{budget['n_bars']:,} bars of {len(TICKERS)} coins with an announced signal, the last quarter held out. "
        "Sharpe ratios are annual, and high because the signal is. Pruned without a pruner are trials whose Sharpe "
        "ratio says nothing: the policy does not trade."
    )
    return measuring.section(args, about, COLUMNS, rows=rows, notes=notes(rows), settings=budget)


if __name__ == "__main__":
    sys.exit(measuring.run("pruning", __doc__, measure, threads=1))
