"""Measure seconds from starting Python to the first step, by phase (`step.py --startup`).

Every run is a fresh interpreter with warm file system and numba caches. The arrays are generated once and loaded from a
file, as in a study.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contenders as who
from benchmarks import measuring

REPO = Path(__file__).resolve().parents[1]

RUNS, MOST_S = 5, 3.0
PHASES = ("interpreter", "import torch", "import the environment", "load arrays", "construct and reset", "first step")
COLUMNS = {"phase": "phase", "s": "seconds", "share": "share"}
ABOUT = (
    "The table shows the seconds from starting `python -c` to the end of the first step of "
    "VectorizedCryptoEnvAlpacaOptimized, with 12 environments, standard rules and warm caches. Values are medians over "
    "5 fresh interpreters."
)
PROGRAM = """
import time; marks = [time.monotonic()]
import torch; marks.append(time.monotonic())
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized; marks.append(time.monotonic())
import json, sys, numpy
bars = numpy.load(sys.argv[1]); config = dict(bars); marks.append(time.monotonic())
env = VectorizedCryptoEnvAlpacaOptimized(config, json.loads(sys.argv[2]), 12, gpu_id=int(sys.argv[3]))
env.reset(); marks.append(time.monotonic())
env.step(torch.zeros(12, env.action_dim, device=env.device)); marks.append(time.monotonic())
print(json.dumps(marks))
"""


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section "startup"."""
    with tempfile.TemporaryDirectory() as folder:
        bars = Path(folder) / "bars.npz"
        np.savez(bars, **who.config())
        command = [sys.executable, "-c", PROGRAM, str(bars), json.dumps(who.RULES["standard"]), str(args.gpu)]
        phases(command)  # fills the caches
        runs = [phases(command) for _ in range(1 if args.quick else RUNS)]
    total = statistics.median(sum(run) for run in runs)
    medians = map(statistics.median, zip(*runs, strict=True))
    rows = [{"phase": name, "s": s, "share": s / total} for name, s in zip(PHASES, medians, strict=True)]
    longest = max(rows, key=lambda row: row["s"])
    rows.append({"phase": "total", "s": total})
    note = f"The longest phase is `{longest['phase']}`."
    target = measuring.check("seconds to the first step (12 environments)", total, most=MOST_S)
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, notes=[note], checks=[] if args.quick else [target])


def phases(command: list[str]) -> list[float]:
    """Return the seconds of each phase in one fresh interpreter; parent and child share the system clock."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=REPO, stdout=subprocess.PIPE, text=True, check=True)
    marks = [started, *json.loads(done.stdout.splitlines()[-1])]
    return [later - earlier for earlier, later in pairwise(marks)]
