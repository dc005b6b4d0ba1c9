#!/usr/bin/env python3
"""How much of what can be earned is earned? PPO and the band agent, with and without a fee ramp, on known markets.

    python benchmarks/capture.py            # writes benchmarks/results/capture.json and capture.png; 20 to 40 minutes
    python benchmarks/capture.py --quick    # every learner on two points with a 200th of the budget; writes nothing
    python benchmarks/capture.py --redraw   # counts and draws the written runs again; trains nobody

A stopped run resumes: runs whose point, settings and code are the present ones are kept. A share is the mean log growth
per bar on unseen bars, fees and slippage paid, over the solved optimum in log growth. Factors are changed one at a time
around one coin with a signal worth 1 bp per bar, 30 bp of cost, and fresh bars.
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
    """Hash of all that a run's figures follow from, its seed aside: point, settings, code."""
    settings = asdict(settings_of(POINTS[point], learner, 0))
    facts = {"point": asdict(POINTS[point]), "settings": settings, "code": trial_code_sha256()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def jobs_of(is_quick: bool) -> list[tuple[str, str, int]]:
    """(point, learner, seed), seed by seed, so that a part of the whole already has every point."""
    return [
        (point, learner, seed)
        for seed in range(1 if is_quick else SEEDS)
        for point in (QUICK_POINTS if is_quick else POINTS)
        for learner in LEARNERS
        if point in ONLY_AT.get(learner, POINTS)
    ]


def run_once(point: str, learner: str, seed: int, is_quick: bool) -> dict[str, Any]:
    """One run. A short one of the same kind comes before the clock starts, because it compiles what is used."""
    logging.getLogger("train").setLevel(logging.ERROR)
    if not is_quick:
        measure(point, learner, seed, is_quick=True)
    return measure(point, learner, seed, is_quick) | {"identity": identity_of(point, learner)}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """How it was made, and every run."""
    work = partial(run_once, is_quick=args.quick)
    runs = measuring.resumed(args, jobs_of(args.quick), work, lambda job: identity_of(*job[:2]))
    about = (
        f"Mean log growth per bar on {STRETCHES * STRETCH_BARS:,} unseen bars, fees and slippage paid, over the best "
        "that can be earned there. Medians of the seeds, range in brackets. Each coin has an AR(1) signal with a mean "
        "life of 48 bars that is worth alpha per bar at one standard deviation; noise of 25 bp per bar; two features "
        "without meaning. Factors are changed one at a time around alpha 1.0 bp, a cost of 30 bp, one coin and "
        f"{FRESH_BARS:,} training bars. A seed is a history and an initialisation. Without a signal: accounts traded "
        "in 10,000 unseen bars, and fees and slippage as a share of the account, worst seed. Announced trend: two "
        f"coins of benchmarks/planted_markets.py, {ANNOUNCED_BARS:,} training bars. On {SHORT_BARS:,} bars or fewer "
        f"the band trains with a dropout of {SHORT_DROPOUT:g}. Budgets are fixed and the last policy is judged."
    )
    learners = {name: asdict(settings) for name, settings in LEARNERS.items()}
    points = {name: asdict(point) for name, point in POINTS.items()}
    return measuring.section(args, about, COLUMNS, learners=learners, points=points, runs=runs)


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Table and targets."""
    names = sorted({run["point"] for run in runs if POINTS[run["point"]].has_signal})
    yardsticks = {name: f"{yardstick(name).what}, {yardstick(name).growth * 1e4:.3f} bp" for name in names}
    return {"rows": table_rows(runs, yardsticks), "checks": checks(runs)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing or read, count, draw, write."""
    args = measuring.parsed(__doc__, threads=1, own_file="capture.json", options=measuring.RESUMED, argv=argv)
    part = measuring.written(args, "capture") if args.redraw else measured(args)
    return measuring.keep(args, "capture", part | summary(part["runs"]), draw)


if __name__ == "__main__":
    sys.exit(main())
