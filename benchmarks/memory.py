#!/usr/bin/env python3
"""Measure the memory of a process that runs one trial after another, with a study's objective, database and sampler.

Two series run in separate processes. In the first all trials have the same size, so any growth is a leak. The second
samples the whole search space, so the process keeps the memory of its largest trial. The slope is the median of the
slopes between all pairs of trials (Theil 1950, Sen 1968). The first trials are excluded, because they compile kernels
and allocate buffers.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from scipy.stats import theilslopes

from benchmarks import measuring

FIXED, SEARCHED = "fixed size", "whole search space"
ONE_SIZE = {"net_width": 64, "net_depth": 2, "rollout_samples": 2048, "batch_size": 512, "n_epochs": 2}
ONE_SIZE |= {"lookback": 4, "observe_account": True, "episode_bars": 256}
COLUMNS = measuring.columns("series", n_trials="trials", first="RSS after trial 1, MiB")
COLUMNS["settled"] = "RSS after warm-up, MiB"
COLUMNS |= {"last": "final RSS, MiB", "slope": "slope, MiB per trial", "device": "final device memory, MiB"}
N_TRIALS, N_TRIALS_QUICK, BREAK_STEP, BREAK_STEP_QUICK = 50, 3, 16_384, 2_000
N_ENVS, N_BARS, MOST_MIB_A_TRIAL = 12, 4000, 0.1
STYLES = {FIXED: ("#0072b2", "-"), SEARCHED: ("#d55e00", "--")}
Memory = tuple[list[float], list[float]]  # resident and device MiB after each trial


def run_trials(given: dict[str, Any], n_trials: int, gpu: int, threads: int) -> Memory:
    """Run a study in this process and return the memory after each trial."""
    import optuna
    import psutil
    import torch
    from optuna.pruners import NopPruner

    from market.sample import synthetic_dataset
    from train.runner.worker import Limits, run_worker
    from train.store.address import absolute_url
    from train.store.database import open_study
    from train.study.folds import fold_data
    from train.study.interruption import Interruption
    from train.study.objective import Objective, RunSettings
    from train.study.progress import Reporter
    from train.study.search_space import build_space
    from train.study.split_plan import SplitPlan

    resident: list[float] = []
    device: list[float] = []

    class Watching(Reporter):
        """Reporter that records the memory after each trial."""

        def trial_finished(self, trial: optuna.trial.FrozenTrial) -> None:
            super().trial_finished(trial)
            gc.collect()
            resident.append(psutil.Process().memory_info().rss / 2**20)
            device.append(torch.cuda.memory_allocated(gpu) / 2**20 if gpu >= 0 else 0.0)
            print(f"finished trial {len(resident)} of {n_trials}: {resident[-1]:.0f} MiB", file=sys.stderr)

    torch.set_num_threads(threads)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data = fold_data(synthetic_dataset("5m", N_BARS, ("BTC", "ETH", "LTC"), seed=1), SplitPlan("standard", 1, 1))
    space = build_space(longest_episode_bars=data.longest_episode_bars, given=given)
    with tempfile.TemporaryDirectory() as folder, Interruption() as interruption:
        url = absolute_url("sqlite:///study.db", Path(folder))
        study = open_study(url, "memory", {}, False, NopPruner())
        settings = RunSettings(N_ENVS, 0, gpu, Path(folder) / "results", "benchmark", checkpoint_every_s=1.0)
        reporter = Watching(study, space, len(data.folds), n_trials)
        objective = Objective(space, [data], settings, reporter, interruption)
        run_worker(study, objective, url, Limits(n_trials), interruption)
    return resident, device


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section "memory", with the memory after every trial under "series"."""
    n_trials, break_step = (N_TRIALS_QUICK, BREAK_STEP_QUICK) if args.quick else (N_TRIALS, BREAK_STEP)
    steps = {"total_env_steps": break_step}
    series = {FIXED: ONE_SIZE | steps, SEARCHED: steps}
    warm_up = n_trials // 5
    rows, measured = [], {}
    for name, given in series.items():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            resident, device = pool.submit(run_trials, given, n_trials, args.gpu, args.threads).result()
        measured[name] = [round(mib, 2) for mib in resident]
        row = {"series": name, "n_trials": len(resident), "first": resident[0], "settled": resident[warm_up]}
        slope = theilslopes(resident[warm_up:])
        row |= {"last": resident[-1], "slope": float(slope.slope)}
        rows.append(row | {"device": device[-1] if args.gpu >= 0 else None})
    about = (
        f"The table shows the resident memory of a worker over {n_trials} trials with two splits of {break_step:,} "
        f"environment steps each, {N_ENVS} environments, checkpoints, SQLite and TPE. The slope is the median over all "
        f"pairs of trials after the first {warm_up}."
    )
    what = f"memory slope in MiB per trial ({FIXED})"
    checks = [] if args.quick else [measuring.check(what, rows[0]["slope"], most=MOST_MIB_A_TRIAL)]
    return measuring.section(args, about, COLUMNS, rows=rows, checks=checks, series=measured)


def draw(part: dict[str, Any], path: Path) -> None:
    """Draw one line per series, legible on a phone."""
    figure = measuring.figure((7, 5.5), part)
    panel = figure.subplots()
    for name, values in part["series"].items():
        color, line = STYLES[name]
        panel.plot(range(1, len(values) + 1), values, color=color, linestyle=line, linewidth=2.5, label=name)
    panel.set(title="Memory after each trial", xlabel="trials run by one process", ylabel="resident memory, MiB")
    panel.set_ylim(0, 1.15 * max(map(max, part["series"].values())))
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(measuring.run("memory", __doc__, measure, gpu=True, draw=draw))
