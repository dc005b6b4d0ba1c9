#!/usr/bin/env python3
"""How much of what can be earned is earned? PPO and the band agent, with and without a fee ramp, on known markets.

    python benchmarks/capture.py            # writes benchmarks/results/capture.json and capture.png; 20 to 40 minutes
    python benchmarks/capture.py --quick    # every learner on two points with a 200th of the budget; writes nothing
    python benchmarks/capture.py --only "band, ramp" --only base    # these points and learners
    python benchmarks/capture.py --redraw   # counts and draws the written runs again; trains nobody

A stopped run resumes: runs in the result file whose point, settings and code are the present ones are kept. A share is
the mean log growth per bar on unseen bars, fees and slippage paid, over the solved optimum in log growth. Factors are
changed one at a time around one coin with a signal worth 1 bp per bar, 30 bp of cost, and fresh bars.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
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
    Point,
    Run,
    measure,
    settings_of,
    yardstick,
)
from benchmarks.capture_summary import checks, columns, draw, table_rows
from drl_agents.atomic_file import write_atomically
from train.records.provenance import trial_code_sha256

CAPTURE = "capture"
QUICK_POINTS = ("base", "no signal")

Job = tuple[str, str, int]  # point, learner, seed


def identity_of(point: Point, learner: str) -> str:
    """Hash of all that a run's figures follow from, its seed aside: point, settings, code."""
    facts = {"point": asdict(point), "settings": asdict(settings_of(point, learner, 0)), "code": trial_code_sha256()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """Seed by seed, so that a part of the whole already has every point."""
    points = [name for name in POINTS if not args.points or name in args.points]
    learners = [name for name in LEARNERS if not args.learners or name in args.learners]
    return [
        (point, learner, seed)
        for seed in range(args.seeds)
        for point in points
        for learner in learners
        if point in ONLY_AT.get(learner, points)
    ]


def run_jobs(jobs: Sequence[Job], args: argparse.Namespace) -> Iterator[Run]:
    """Runs in the order of their ends."""
    if args.processes == 1:
        yield from (run_job(job, args.quick) for job in jobs)
        return
    with ProcessPoolExecutor(args.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run_job, job, args.quick) for job in jobs]
        yield from (future.result() for future in as_completed(futures))


def run_job(job: Job, is_quick: bool) -> Run:
    """One run. A short one of the same kind comes before the clock starts, because it compiles what is used."""
    logging.getLogger("train").setLevel(logging.ERROR)
    name, learner, seed = job
    if not is_quick:
        measure(name, learner, seed, "", is_quick=True)
    return measure(name, learner, seed, identity_of(POINTS[name], learner), is_quick)


def run_all(args: argparse.Namespace, kept: Sequence[Run], path: Path | None) -> list[Run]:
    """The runs of the file that are still valid, and those that are missing; written after every one."""
    runs = {(run.point, run.learner, run.seed): run for run in kept}
    wanted = jobs_of(args)
    jobs = [job for job in wanted if job not in runs or runs[job].identity != identity_of(POINTS[job[0]], job[1])]
    print(f"{len(wanted) - len(jobs)} of {len(wanted)} runs are in the result file", file=sys.stderr)
    started = time.perf_counter()
    for number, run in enumerate(run_jobs(jobs, args), start=1):
        runs[run.point, run.learner, run.seed] = run
        left_s = (time.perf_counter() - started) / number * (len(jobs) - number)
        shown = f"{run.traded:.2f} accounts traded" if run.share is None else f"share {run.share:.2f}"
        print(f"{number} of {len(jobs)}: {run.point}, {run.learner}, seed {run.seed}: {shown}, {run.turnover:.1f} "
              f"accounts per 1000 bars, {run.cpu_s:.1f} CPU seconds; about {left_s:.0f} s left",
              file=sys.stderr, flush=True)  # fmt: skip
        if path is not None:
            write(path, summarised(content_of(args, list(runs.values())), list(runs.values())))
    return list(runs.values())


def content_of(args: argparse.Namespace, runs: Sequence[Run]) -> dict[str, Any]:
    """The result file."""
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
    part = measuring.section(
        args, about, columns(), learners={name: asdict(settings) for name, settings in LEARNERS.items()},
        points={name: asdict(point) for name, point in POINTS.items()}, runs=[asdict(run) for run in runs],
    )  # fmt: skip
    return {"machine": measuring.machine(-1), CAPTURE: part}


def summarised(content: dict[str, Any], runs: Sequence[Run]) -> dict[str, Any]:
    """The content with table, notes and targets."""
    names = sorted({run.point for run in runs if POINTS[run.point].has_signal})
    known = {name: yardstick(name) for name in names}
    yardsticks = {name: f"{y.what}, {y.growth * 1e4:.3f} bp" for name, y in known.items()}
    part = content[CAPTURE] | {"rows": table_rows(runs, yardsticks), "notes": [], "checks": checks(runs)}
    return content | {CAPTURE: part}


def write(path: Path, content: dict[str, Any]) -> None:
    """A whole file, or the one before."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read(path: Path) -> list[Run]:
    """Runs of a result file; none if there is no file."""
    if not path.exists():
        return []
    return [Run(**row) for row in json.loads(path.read_text())[CAPTURE]["runs"]]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = measuring.arguments(__doc__, gpu=False, result="capture.json")
    parser.set_defaults(threads=1)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="histories and initialisations (default 5)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="runs at once (default 2)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", choices=[*POINTS, *LEARNERS],
                        help="a point or a learner; may be given several times (default: all)")  # fmt: skip
    parser.add_argument("--redraw", action="store_true", help="run nothing: the runs are those of the result file")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.processes = 1, 1
        args.only += [name for name in QUICK_POINTS if not set(args.only) & POINTS.keys()]
    args.points, args.learners = ([name for name in args.only if name in known] for known in (POINTS, LEARNERS))
    for name in ("seeds", "processes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; received {getattr(args, name)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, count, draw, write."""
    args = parse_arguments(argv)
    measuring.with_threads(args)
    path = args.out or (None if args.quick else measuring.RESULTS / "capture.json")
    kept = read(path) if path is not None else []
    if args.redraw and path is not None:
        runs, content = kept, json.loads(path.read_text())
    else:
        runs = run_all(args, kept, path)
        content = content_of(args, runs)
    content = summarised(content, runs)
    if args.quick:
        content[CAPTURE]["checks"] = []
        print("--quick: a check that everything runs. The figures below mean nothing.\n")
    print("\n".join(measuring.section_lines(content[CAPTURE])))
    if path is None:
        return 0
    write(path, content)
    draw(runs, path.with_suffix(".png"))
    print(f"\nwrote {path} and {path.with_suffix('.png')}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
