#!/usr/bin/env python3
"""Measure the wall time of a small study through the command line, by number of environments.

All rows have the same trial settings, market and number of environment steps, because the sampler has a fixed seed.
Only the number of environments that collect the samples differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measuring
from benchmarks.studies import sample_market, seconds_of

RUN = {"n_envs": (1, 12, 64), "n_trials": 4, "break_step": 60_000, "n_bars": 20_000}
QUICK = {"n_envs": (12,), "n_trials": 1, "break_step": 2_000, "n_bars": 6_000}
RATES = ("explore_steps_per_s", "update_samples_per_s")
COLUMNS = measuring.columns("n_envs", wall_s="wall time, s", explore_steps_per_s="exploration, env-steps/s")
COLUMNS["update_samples_per_s"] = "update, samples/s"


def run_study(n_envs: int, folder: Path, size: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return one row: the study's wall time and the median rates of its splits."""
    flags = ["--n-trials", size["n_trials"], "--gpu", args.gpu, "--n-envs", n_envs, "--break-step", size["break_step"]]
    scratch = Path(tempfile.mkdtemp(dir=folder))
    wall_s = seconds_of(scratch, folder / "data", *flags)
    splits = [json.loads(path.read_text()) for path in sorted(scratch.rglob("result.json"))]
    rates = {name: statistics.median(split[name] for split in splits) for name in RATES}
    return {"n_envs": n_envs, "wall_s": wall_s, "splits": len(splits) // size["n_trials"], **rates}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    size = QUICK if args.quick else RUN
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample_market(size["n_bars"], folder / "data")
        rows = [run_study(n_envs, folder, size, args) for n_envs in size["n_envs"]]
    about = (
        f"The table shows the wall time of a study of {size['n_trials']} trials, with {rows[0]['splits']} splits and "
        f"{size['break_step']:,} environment steps per split, on a sample market of {size['n_bars']:,} five-minute "
        "bars. Rates are medians over the splits."
    )
    return measuring.section(args, about, COLUMNS, rows=rows)


if __name__ == "__main__":
    sys.exit(measuring.run("study", __doc__, measure, gpu=True))
