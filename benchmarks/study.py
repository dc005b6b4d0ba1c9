#!/usr/bin/env python3
"""Wall time of a small study through the command line, by number of environments.

The settings of the trials, the market and the number of environment steps are the same for every row: the sampler has
one seed. What differs is how many environments collect the samples together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measuring

REPO = Path(__file__).resolve().parents[1]

TRAINER = REPO / "scripts" / "training" / "1_optimize_unified.py"
SAMPLE = REPO / "scripts" / "data" / "make_sample.py"
DEFAULT_N_ENVS = (1, 12, 64)
COLUMNS = {
    "n_envs": "n_envs", "wall_s": "study, s", "explore_steps_per_s": "explore, env-steps/s",
    "update_samples_per_s": "update, samples/s",
}  # fmt: skip


def run_study(n_envs: int, data: str, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One row: the study's wall time and the median rates of its splits."""
    results = scratch / f"results_{n_envs}"
    command = [
        sys.executable, TRAINER, "--n-trials", args.n_trials, "--gpu", args.gpu, "--n-envs", n_envs,
        "--break-step", args.break_step, "--data-dir", data, "--study-name", f"bench_{n_envs}",
        "--storage", f"sqlite:///{scratch}/study_{n_envs}.db", "--results-dir", results,
    ]  # fmt: skip
    started = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    wall_s = time.monotonic() - started
    splits = [json.loads(path.read_text()) for path in sorted(results.rglob("result.json"))]
    names = ("explore_steps_per_s", "update_samples_per_s")
    rates = {name: statistics.median(split[name] for split in splits) for name in names}
    return {"n_envs": n_envs, "wall_s": wall_s, "splits": len(splits) // args.n_trials, **rates}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = measuring.arguments(__doc__)
    parser.add_argument("--n-envs", type=int, nargs="+", default=DEFAULT_N_ENVS, metavar="N", help="(default: 1 12 64)")
    parser.add_argument("--n-trials", type=int, default=4, help="trials of each study (default 4)")
    parser.add_argument("--break-step", type=int, default=60_000, help="environment steps per split (default 60000)")
    parser.add_argument("--n-bars", type=int, default=20_000, help="bars of the sample market (default 20000)")
    args = parser.parse_args(argv)
    if args.quick:
        args.n_envs, args.n_trials, args.break_step, args.n_bars = [12], 1, 2_000, 6_000
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = parse_arguments(argv)
    measuring.with_threads(args)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make = [sys.executable, str(SAMPLE), "--n-bars", str(args.n_bars), "--out", str(scratch / "data")]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        rows = [run_study(n_envs, str(scratch / "data"), scratch, args) for n_envs in args.n_envs]
    about = (
        f"Wall time of a study of {args.n_trials} trials of {rows[0]['splits']} splits, {args.break_step:,} "
        f"environment steps each, on a sample market of {args.n_bars:,} five-minute bars. Rates are medians over "
        "the splits."
    )
    measuring.finish(args, "study", measuring.section(args, about, COLUMNS, rows=rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
