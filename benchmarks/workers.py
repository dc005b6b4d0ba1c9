#!/usr/bin/env python3
"""Trials per hour of a study by number of workers on this machine, through the command line.

Every row runs the same kind of trials: one network, budget and number of environments, so that rows differ in nothing
but the workers. The pace is taken from the first trial's start to the last one's end, because starting Python is paid
once a study; the wall time has it. Rows take turns, round after round, and the table has medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna

from benchmarks import measuring

REPO = Path(__file__).resolve().parents[1]

TRAINER = REPO / "scripts" / "training" / "1_optimize_unified.py"
SAMPLE = REPO / "scripts" / "data" / "make_sample.py"
COLUMNS = {"workers": "workers", "trials_per_h": "trials/h", "ratio": "times one worker", "wall_s": "study, s"}


def run_study(workers: int, data: Path, scratch: Path, args: argparse.Namespace) -> dict[str, float]:
    """Pace and wall time of one study."""
    storage = f"sqlite:///{scratch}/study.db"
    command = [
        sys.executable, TRAINER, "--workers", workers, "--n-trials", args.n_trials, "--gpu", args.gpu,
        "--n-envs", args.n_envs, "--break-step", args.break_step, "--data-dir", data, "--study-name", "bench",
        "--num-paths", 1, "--k-test-groups", 1, "--use-best-ranges", "--pruner", "none", "--max-drawdown", 1,
        "--min-trades", 0, "--storage", storage, "--results-dir", scratch / "results",
    ]  # fmt: skip
    started = time.monotonic()
    done = subprocess.run([str(part) for part in command], stdout=subprocess.DEVNULL, check=False)
    wall_s = time.monotonic() - started
    if done.returncode not in (0, 1):  # 1: a study of so few trials may have no best one
        raise SystemExit(f"the study ended with exit code {done.returncode}")
    trials = optuna.load_study(study_name="bench", storage=storage).trials
    begins = [t.datetime_start for t in trials if t.datetime_start]
    ends = [t.datetime_complete for t in trials if t.datetime_complete]
    assert len(ends) == args.n_trials
    return {"trials_per_h": 3600.0 * len(ends) / (max(ends) - min(begins)).total_seconds(), "wall_s": wall_s}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2, 4), metavar="N", help="(default: 1 2 4)")
    parser.add_argument("--n-trials", type=int, default=8, help="trials of each study (default 8)")
    parser.add_argument("--n-envs", type=int, default=12, help="environments of a trial (default 12)")
    parser.add_argument("--break-step", type=int, default=60_000, help="environment steps per split (default 60000)")
    parser.add_argument("--n-bars", type=int, default=20_000, help="bars of the sample market (default 20000)")
    parser.add_argument("--rounds", type=int, default=3, help="studies a row (default 3)")
    args = parser.parse_args(argv)
    if args.quick:
        args.workers, args.n_trials, args.break_step, args.n_bars, args.rounds = [1, 2], 2, 2_000, 6_000, 1
    return args


def rows_of(measured: dict[int, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians, and the median of the ratio within a round."""
    first = next(iter(measured.values()))
    rows = []
    for workers, rounds in measured.items():
        ratios = [own["trials_per_h"] / one["trials_per_h"] for own, one in zip(rounds, first, strict=True)]
        medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        rows.append({"workers": workers, "ratio": statistics.median(ratios), **medians})
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = parse_arguments(argv)
    args.threads = args.threads or 1  # each worker has one, whatever this says
    measured: dict[int, list[dict[str, float]]] = {workers: [] for workers in args.workers}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make = [sys.executable, str(SAMPLE), "--n-bars", str(args.n_bars), "--out", str(data)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        for number in range(args.rounds):
            for workers in args.workers:
                scratch = Path(tempfile.mkdtemp(dir=folder))
                measured[workers].append(run_study(workers, data, scratch, args))
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    about = (
        f"Studies of {args.n_trials} trials of 2 splits, {args.break_step:,} environment steps each, {args.n_envs} "
        f"environments, on a sample market of {args.n_bars:,} five-minute bars, on {measuring.cpu_name()}; one CPU "
        f"thread a worker. Medians of {args.rounds} rounds."
    )
    measuring.finish(args, "workers", measuring.section(args, about, COLUMNS, rows=rows_of(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
