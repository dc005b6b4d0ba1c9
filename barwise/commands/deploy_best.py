"""Monitor a study, refit its winner, evaluate it on the hold-out, and deploy it if it passes all gates."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from barwise.arguments import add_results_dir, add_storage, exit_code, here, storage_of, whole_number
from train.records.defaults import ALPHA, HOLDOUT_DRAWDOWN, LEAST_CONFIDENCE, MIN_IMPROVEMENT
from train.records.provenance import home

if TYPE_CHECKING:
    from train.deploy.case import Request


STUDY_NAME = "cappuccino_5m_vectorized"
EPILOG = """
deployments/current is a link to the folder of the deployed policy. It is replaced atomically, and earlier deployments
are kept. Every decision is logged in deployments/decisions.jsonl with the value of each gate. A candidate is evaluated
once; different gates or another --seed evaluate it again. Every evaluation on the hold-out makes the next test
stricter. docs/deployment.md explains the gates.

Exit codes: 0 deployed, rolled back, nothing new or not ready yet; 1 the machine or the database failed; 2 wrong flag,
study, dataset or deployment; 3 the candidate was refused (--once, --dry-run); 4 another process evaluates candidates
for this folder; 130 or 143 stopped by Ctrl-C or kill."""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--study-name", "--study", default=STUDY_NAME, metavar="NAME", help=f"name of the study (default: {STUDY_NAME})"
    )
    add_storage(p)
    add_results_dir(p)
    p.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="the study's dataset, verified by its hash (default: the folder that the study was run with)",
    )
    p.add_argument(
        "--deployments-dir",
        type=Path,
        metavar="DIR",
        help="folder that contains all deployments (default: deployments in the repository)",
    )
    p.add_argument(
        "--interval", type=float, default=300.0, metavar="SECONDS", help="seconds between checks (default: 300)"
    )
    p.add_argument("--once", action="store_true", help="check once and exit; the exit code reports the result")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="check once without writing: refit in a temporary folder and run every gate that does not need the "
        "hold-out",
    )
    p.add_argument("--rollback", action="store_true", help="restore the previous deployment and exit")
    p.add_argument(
        "--min-trials",
        type=whole_number(1),
        metavar="N",
        help="number of finished trials required before the winner is evaluated (default: the study's --n-trials)",
    )
    p.add_argument(
        "--while-running",
        action="store_true",
        help="evaluate each new best trial immediately; each evaluation uses the hold-out once more",
    )
    p.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="seed for the refit, added to the study's seed (default: 0)",
    )
    p.add_argument("--gpu", type=int, default=-1, metavar="N", help="GPU number, or -1 for the CPU (default: -1)")
    add_gates(p)
    return p


def add_gates(p: argparse.ArgumentParser) -> None:
    """Add the flags that set gate thresholds or waive gates."""
    p.add_argument(
        "--alpha",
        type=float,
        default=ALPHA,
        metavar="P",
        help=f"significance level shared by all tests on the same hold-out (default: {ALPHA:g})",
    )
    p.add_argument(
        "--min-deflated-sharpe",
        type=float,
        default=LEAST_CONFIDENCE,
        metavar="P",
        help="minimum deflated Sharpe ratio of the winner's alpha returns, from 0 to 1; with 0 it is only reported "
        f"(default: {LEAST_CONFIDENCE:g})",
    )
    p.add_argument(
        "--max-drawdown",
        type=float,
        default=HOLDOUT_DRAWDOWN,
        metavar="FRACTION",
        help=f"maximum drawdown on the hold-out (default: {HOLDOUT_DRAWDOWN:g})",
    )
    p.add_argument(
        "--min-improvement",
        type=float,
        default=MIN_IMPROVEMENT,
        metavar="SHARPE",
        help="minimum improvement of the annual Sharpe ratio over the deployed policy on the same hold-out, at least 0 "
        f"(default: {MIN_IMPROVEMENT:g})",
    )
    p.add_argument(
        "--allow-unproven",
        action="store_true",
        help="for paper trading: waive the gates that require evidence; the deployment is marked UNPROVEN",
    )
    p.add_argument(
        "--allow-unverified",
        action="store_true",
        help="accept an older study whose database has no file hashes; the deployment is marked UNPROVEN",
    )
    p.add_argument(
        "--allow-unchecked",
        action="store_true",
        help="accept a dataset without a look-ahead check of its features; the deployment is marked UNPROVEN",
    )
    p.add_argument("--allow-synthetic", action="store_true", help="accept a study on a synthetic market")
    p.add_argument(
        "--replace-other",
        action="store_true",
        help="replace a deployment for different coins, features or bars, although the two cannot be compared",
    )


def request(args: argparse.Namespace) -> Request:
    """Return the flags as a checked request.

    Raises:
        StudyError: if a flag is invalid.
    """
    from train.deploy.case import Request
    from train.deploy.gates import Limits

    limits = Limits(args.alpha, args.min_deflated_sharpe, args.max_drawdown, args.min_improvement, args.allow_unproven,
                    args.allow_synthetic, args.allow_unverified, args.allow_unchecked, args.replace_other)  # fmt: skip
    return Request(
        storage=storage_of(args),
        study_name=args.study_name,
        deployments=here(args.deployments_dir) or home() / "deployments",
        results=here(args.results_dir),
        data_dir=here(args.data_dir),
        seed=args.seed,
        gpu_id=args.gpu,
        min_trials=args.min_trials,
        while_running=args.while_running,
        dry_run=args.dry_run,
        limits=limits,
    )


def run(args: argparse.Namespace) -> int:
    """Roll back, check the study once, or monitor it, depending on the flags. Return the exit code."""
    from train.deploy.service import roll_back, run_for_ever, run_once

    wanted = request(args)
    if args.rollback:
        return roll_back(wanted)
    return run_once(wanted) if args.once or args.dry_run else run_for_ever(wanted, args.interval)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    p = parser()
    args = p.parse_args(argv)
    if not 0.0 < args.interval < math.inf:
        p.error(f"--interval must be a positive number of seconds; received {args.interval:g}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S",
                        stream=sys.stdout)  # fmt: skip
    for noisy in ("optuna", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return exit_code("auto_replace_best_5m.py", lambda: run(args), faults=(RuntimeError,))
