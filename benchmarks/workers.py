#!/usr/bin/env python3
"""Measure trials per hour of a study by number of workers on this machine, through the command line.

Every row runs the same kind of trials, with one network, budget and number of environments. Rows therefore differ only
in the number of workers. The rate is measured from the start of the first trial to the end of the last trial, because
Python starts only once per study. The wall time includes this start. Rows take turns, round after round, and the table
shows medians.

    python benchmarks/workers.py                # trials per hour with 1, 2 and 4 workers on this machine
    python benchmarks/workers.py --simulate     # 16, 64 and 256 workers that wait instead of training, and a delayed
                                                # PostgreSQL; writes benchmarks/results/many_workers.json and .png

To resume a stopped run of --simulate, run the same command again. The run takes about 25 minutes and needs PostgreSQL
15 and tests/support. Simulated workers share imported modules, so 256 workers need about 15 GiB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import optuna

from benchmarks import measuring
from benchmarks.studies import NAME, sample_market, seconds_of, storage_of

RUN = {"workers": (1, 2, 4), "n_trials": 8, "break_step": 60_000, "n_bars": 20_000, "rounds": 3}
QUICK = {"workers": (1, 2), "n_trials": 2, "break_step": 2_000, "n_bars": 6_000, "rounds": 1}
N_ENVS = 12
# One network and one split size, and nothing is pruned or refused.
SAME = (
    *("--n-envs", N_ENVS, "--num-paths", 1, "--k-test-groups", 1, "--use-best-ranges"),
    *("--pruner", "none", "--max-drawdown", 1, "--min-trades", 0),
)
COLUMNS = measuring.columns("workers", trials_per_h="trials/h", ratio="times one worker", wall_s="study, s")


def run_study(workers: int, folder: Path, size: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Run one study and return its trials per hour and its wall time."""
    scratch = Path(tempfile.mkdtemp(dir=folder))
    flags = ["--workers", workers, "--n-trials", size["n_trials"], "--break-step", size["break_step"]]
    wall_s = seconds_of(scratch, folder / "data", *flags, "--gpu", args.gpu, *SAME)
    trials = optuna.load_study(study_name=NAME, storage=storage_of(scratch)).trials
    begins = [t.datetime_start for t in trials if t.datetime_start]
    ends = [t.datetime_complete for t in trials if t.datetime_complete]
    assert len(ends) == size["n_trials"]
    return {"trials_per_h": 3600.0 * len(ends) / (max(ends) - min(begins)).total_seconds(), "wall_s": wall_s}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all rounds. Return medians, including the median of the ratio within a round."""
    size = QUICK if args.quick else RUN
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample_market(size["n_bars"], folder / "data")
        for number in range(size["rounds"]):
            rounds.append({workers: run_study(workers, folder, size, args) for workers in size["workers"]})
            print(f"round {number + 1} of {size['rounds']}", file=sys.stderr)
    pace = {workers: [done[workers]["trials_per_h"] for done in rounds] for workers in size["workers"]}
    rows = []
    for workers, own in pace.items():
        row = {"workers": workers, "ratio": measuring.ratio(own, pace[1]), "trials_per_h": statistics.median(own)}
        rows.append(row | {"wall_s": statistics.median(done[workers]["wall_s"] for done in rounds)})
    about = (
        f"The table shows trials per hour by number of workers on {measuring.cpu_name()}. Each study has "
        f"{size['n_trials']} trials with 2 splits of {size['break_step']:,} environment steps and {N_ENVS} "
        f"environments, on a sample market of {size['n_bars']:,} five-minute bars. Each worker uses one CPU thread. "
        f"Values are medians over {size['rounds']} rounds."
    )
    return measuring.section(args, about, COLUMNS, rows=rows)


def main() -> int:
    """Measure what `--simulate` says, and keep it."""
    is_simulated = "--simulate" in sys.argv
    simulated = {
        "action": "store_true",
        "help": "simulate many workers that wait instead of training, with three network delays",
    }
    how: dict[str, Any] = {"gpu": True, "threads": 1, "options": [("--simulate", simulated)]}
    if not is_simulated:
        return measuring.run("workers", __doc__, measure, **how)
    from benchmarks import many_workers
    from tests.support.postgres_server import why_not

    if reason := why_not():
        print(f"could not run the benchmark: {reason}", file=sys.stderr)
        return 0 if "--quick" in sys.argv else 1
    own = {"own_file": many_workers.OWN_FILE, "draw": many_workers.draw}
    return measuring.run(many_workers.NAME, __doc__, many_workers.simulate, **how, **own)


if __name__ == "__main__":
    sys.exit(main())
