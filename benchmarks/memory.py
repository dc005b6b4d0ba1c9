#!/usr/bin/env python3
"""Memory of a process that runs one trial after another, through the study's own objective, database and sampler.

Two series, each in a process of its own: settings of one size, where any growth is a leak, and the whole search space,
where the process keeps what its largest trial needed. The slope is the median of the slopes between all pairs of
trials (Theil 1950, Sen 1968), the first ones left out: kernels are compiled and buffers reach their size there.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import measuring

FIXED, SEARCHED = "settings of one size", "the whole search space"
ONE_SIZE = {"net_width": 64, "net_depth": 2, "rollout_samples": 2048, "batch_size": 512, "n_epochs": 2, "lookback": 4,
            "observe_account": True, "episode_bars": 256}  # fmt: skip
COLUMNS = {
    "series": "series", "n_trials": "trials", "first": "RSS after trial 1, MiB", "settled": "after the warm-up",
    "last": "at the end", "slope": "MiB a trial", "device": "device memory at the end, MiB",
}  # fmt: skip
N_ENVS, N_BARS, MOST_MIB_A_TRIAL = 12, 4000, 0.1
COLORS = {FIXED: "#1f5f99", SEARCHED: "#b5532c"}
Memory = tuple[list[float], list[float]]  # resident and device MiB after each trial


def run_trials(given: dict[str, Any], n_trials: int, gpu: int, threads: int) -> Memory:
    """Run a study in this process; memory after each of its trials."""
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
        """Looks at the memory when a trial has ended."""

        def trial_finished(self, trial: optuna.trial.FrozenTrial) -> None:
            super().trial_finished(trial)
            gc.collect()
            resident.append(psutil.Process().memory_info().rss / 2**20)
            device.append(torch.cuda.memory_allocated(gpu) / 2**20 if gpu >= 0 else 0.0)
            print(f"trial {len(resident)} of {n_trials}: {resident[-1]:.0f} MiB", file=sys.stderr)

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


def in_a_process(*arguments: Any) -> Memory:
    """`run_trials` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run_trials, *arguments).result()


def slope(values: Sequence[float]) -> float:
    """Median of the slopes between all pairs, per step."""
    pairs = itertools.combinations(enumerate(values), 2)
    return statistics.median((y - x) / (j - i) for (i, x), (j, y) in pairs)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section "memory", with every trial's memory under "series"."""
    steps = {"total_env_steps": args.break_step}
    series = {FIXED: ONE_SIZE | steps, SEARCHED: steps}
    warm_up = args.n_trials // 5
    rows, measured = [], {}
    for name, given in series.items():
        resident, device = in_a_process(given, args.n_trials, args.gpu, args.threads)
        measured[name] = [round(mib, 2) for mib in resident]
        rows.append({
            "series": name, "n_trials": len(resident), "first": resident[0], "settled": resident[warm_up],
            "last": resident[-1], "slope": slope(resident[warm_up:]), "device": device[-1] if args.gpu >= 0 else None,
        })  # fmt: skip
    about = (
        f"Resident memory of a worker over {args.n_trials} trials of two splits, {args.break_step:,} environment steps "
        f"each, {N_ENVS} environments, with checkpoints, SQLite and TPE. The slope is the median over all pairs of "
        f"trials after the first {warm_up}."
    )
    what = f"MiB a trial, {FIXED}"
    checks = [] if args.quick else [measuring.check(what, rows[0]["slope"], most=MOST_MIB_A_TRIAL)]
    return measuring.section(args, about, COLUMNS, rows=rows, checks=checks, series=measured)


def draw(series: dict[str, list[float]], title: str, path: Path) -> None:
    """One line a series, legible at the width of a phone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 15})
    figure, panel = plt.subplots(figsize=(7, 5.5), constrained_layout=True)
    for name, values in series.items():
        panel.plot(range(1, len(values) + 1), values, color=COLORS[name], linewidth=2.5, label=name)
    panel.set(
        title="Resident memory after each trial, MiB",
        xlabel="trials run by one process",
        ylim=(0, 1.15 * max(map(max, series.values()))),
    )
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, loc="lower right")
    figure.suptitle(title, fontsize=13, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--n-trials", type=int, default=50, metavar="N", help="trials of a series (default 50)")
    parser.add_argument("--break-step", type=int, default=16_384, help="environment steps per split (default 16384)")
    args = parser.parse_args(argv)
    if args.quick:
        args.n_trials, args.break_step = 3, 2_000
    if args.n_trials < 3:
        parser.error(f"--n-trials {args.n_trials}: a slope needs at least 3")
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write, draw."""
    args = parse_arguments(argv)
    measuring.with_threads(args)
    part = measure(args)
    path = measuring.finish(args, "memory", part)
    if path is not None:
        title = f"{measuring.machine(args.gpu)['cpu']}, {part['date']}"
        draw(part["series"], title, path.with_name(f"{path.stem}_memory.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
