#!/usr/bin/env python3
"""Wall time of a small study through the command line, by number of environments.

The settings of the trials, the market and the number of environment steps are the same for every row: the sampler has
one seed. What differs is how many environments collect the samples together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
TRAINER = REPO / "scripts" / "training" / "1_optimize_unified.py"
SAMPLE = REPO / "scripts" / "data" / "make_sample.py"
DEFAULT_N_ENVS = (1, 12, 64)


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


def machine(gpu: int) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch  # here, so that --help needs no second to load it

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(gpu) if gpu >= 0 else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=int, default=-1, help="number of the GPU; -1 = CPU (default)")
    parser.add_argument("--n-envs", type=int, nargs="+", default=DEFAULT_N_ENVS, metavar="N", help="(default: 1 12 64)")
    parser.add_argument("--n-trials", type=int, default=4, help="trials of each study (default 4)")
    parser.add_argument("--break-step", type=int, default=60_000, help="environment steps per split (default 60000)")
    parser.add_argument("--n-bars", type=int, default=20_000, help="bars of the sample market (default 20000)")
    parser.add_argument("--quick", action="store_true", help="only check that it runs: one tiny trial")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON, for the README's table")
    args = parser.parse_args(argv)
    if args.quick:
        args.n_envs, args.n_trials, args.break_step, args.n_bars = [12], 1, 2_000, 6_000
    return args


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = parse_arguments(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make = [sys.executable, str(SAMPLE), "--n-bars", str(args.n_bars), "--out", str(scratch / "data")]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        for n_envs in args.n_envs:
            rows.append(run_study(n_envs, str(scratch / "data"), scratch, args))
            print(json.dumps(rows[-1]), flush=True)
    if args.out:
        result = {
            "benchmark": "study",
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python benchmarks/bench_study.py --gpu {args.gpu}",
            "data": f"sample market of {args.n_bars:,} five-minute bars",
            "trials": args.n_trials,
            "splits": rows[0]["splits"],
            "break_step": args.break_step,
            "machine": machine(args.gpu),
            "rows": rows,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
