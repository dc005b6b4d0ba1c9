#!/usr/bin/env python3
"""Measure the share of the attainable growth that PPO and the band agent earn, with and without a fee ramp.

    python benchmarks/capture.py            # writes benchmarks/results/capture.json and capture.png; 20 to 40 minutes
    python benchmarks/capture.py --quick    # smoke test: two points, 1/200 of the budget; writes nothing
    python benchmarks/capture.py --redraw   # summarizes and draws the stored runs; trains nothing

A stopped run resumes. Runs whose point, settings and code are unchanged are kept. A share is the mean log growth per
bar on unseen bars, after fees and slippage, divided by the log growth of the solved optimum. Factors are changed one at
a time around one coin with a signal worth 1 bp per bar, a cost of 30 bp, and fresh bars.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks import measuring
from benchmarks.capture_points import (
    ANNOUNCED_BARS,
    FRESH_BARS,
    LEARNERS,
    ONLY_AT,
    POINTS,
    SHORT_BARS,
    SHORT_DROPOUT,
    STRETCH_BARS,
    STRETCHES,
    measure,
    settings_of,
    yardstick,
)
from benchmarks.capture_summary import COLUMNS, checks, draw, table_rows
from train.records.provenance import trial_code_sha256

SEEDS = 5
QUICK_POINTS = ("base", "no signal")


def identity_of(point: str, learner: str) -> str:
    """Return a hash of everything that determines a run's results except its seed: point, settings and code."""
    settings = asdict(settings_of(POINTS[point], learner, 0))
    facts = {"point": asdict(POINTS[point]), "settings": settings, "code": trial_code_sha256()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def jobs_of(is_quick: bool) -> list[tuple[str, str, int]]:
    """Return (point, learner, seed) jobs ordered by seed, so that a partial run already covers every point."""
    return [
        (point, learner, seed)
        for seed in range(1 if is_quick else SEEDS)
        for point in (QUICK_POINTS if is_quick else POINTS)
        for learner in LEARNERS
        if point in ONLY_AT.get(learner, POINTS)
    ]


def run_once(point: str, learner: str, seed: int, is_quick: bool) -> dict[str, Any]:
    """Run one job; a short warm-up run first compiles what the timed run uses."""
    logging.getLogger("train").setLevel(logging.ERROR)
    if not is_quick:
        measure(point, learner, seed, is_quick=True)
    return measure(point, learner, seed, is_quick) | {"identity": identity_of(point, learner)}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Run every job and return the section without its summary."""
    work = partial(run_once, is_quick=args.quick)
    runs = measuring.resumed(args, jobs_of(args.quick), work, lambda job: identity_of(*job[:2]))
    about = (
        "The table shows the share of the reference growth that each agent earns. This is the agent's mean log growth "
        f"per bar on {STRETCHES * STRETCH_BARS:,} unseen bars, after fees and slippage, divided by the reference "
        "growth. The reference is the best attainable growth. If the optimum is not known, it is the growth of the "
        "best rule found. Values are medians over the seeds, with the range in parentheses. Each seed has its own "
        "history and initial weights. Each coin has an AR(1) signal with a mean lifetime of 48 bars. The signal is "
        "worth alpha per bar at one standard deviation, and the noise is 25 bp per bar. Two additional features are "
        "noise. One factor is changed at a time, starting from alpha 1.0 bp, a cost of 30 bp, one coin and "
        f"{FRESH_BARS:,} training bars. The row without a signal shows the worst seed: the turnover in 10,000 unseen "
        "bars, as a multiple of the account's equity, and fees and slippage as a share of the equity. The announced "
        f"trend has two coins (benchmarks/planted_markets.py) and {ANNOUNCED_BARS:,} training bars. On {SHORT_BARS:,} "
        f"bars or fewer, the band agent trains with a dropout of {SHORT_DROPOUT:g}. Training budgets are fixed, and "
        "the last policy is scored."
    )
    learners = {name: asdict(settings) for name, settings in LEARNERS.items()}
    points = {name: asdict(point) for name, point in POINTS.items()}
    return measuring.section(args, about, COLUMNS, learners=learners, points=points, runs=runs)


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return table rows and targets."""
    names = sorted({run["point"] for run in runs if POINTS[run["point"]].has_signal})
    yardsticks = {name: f"{yardstick(name).what}, {yardstick(name).growth * 1e4:.3f} bp" for name in names}
    return {"rows": table_rows(runs, yardsticks), "checks": checks(runs)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the missing jobs or read the stored ones, then summarize, draw and write."""
    args = measuring.parsed(__doc__, threads=1, own_file="capture.json", options=measuring.RESUMED, argv=argv)
    part = measuring.written(args, "capture") if args.redraw else measured(args)
    return measuring.keep(args, "capture", part | summary(part["runs"]), draw)


if __name__ == "__main__":
    sys.exit(main())
