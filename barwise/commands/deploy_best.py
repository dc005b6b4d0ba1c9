"""Watch a study; refit its winner, check it on held-out bars, and put it in place of the deployed policy."""

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
deployments/current leads to the folder of the deployed policy and is replaced in one step; earlier folders stay.
deployments/decisions.jsonl says what was decided and why, every gate with its figure. A candidate is judged once; other
gates, or another --seed, judge it again, and every look at the held-out bars raises what the next one must show.
docs/deployment.md has the gates and their reasons.

Exit codes: 0 replaced, rolled back, nothing new or not ready yet; 1 the machine or database failed; 2 a bad flag,
study, data or deployment; 3 --once or --dry-run: the candidate was refused; 4 another process judges for this folder;
130 or 143 when stopped by Ctrl-C or kill."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--study-name", "--study", default=STUDY_NAME, metavar="NAME", help=f"(default: {STUDY_NAME})")
    add_storage(p)
    add_results_dir(p)
    p.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="the study's data set, checked by its hash (default: where the study read it)",
    )
    p.add_argument("--deployments-dir", type=Path, metavar="DIR", help="(default: deployments in the repository)")
    p.add_argument("--interval", type=float, default=300.0, metavar="SECONDS", help="between two looks (default: 300)")
    p.add_argument("--once", action="store_true", help="one look, then the exit code says what came of it")
    p.add_argument(
        "--dry-run",
        action="store_true",
        help="one look that writes nothing: refits in a temporary folder, asks every gate that needs no "
        "held-out bars, and does not look at those",
    )
    p.add_argument("--rollback", action="store_true", help="lead current back to the deployment before, and end")
    p.add_argument(
        "--min-trials",
        type=whole_number(1),
        metavar="N",
        help="judge a study from N finished trials on (default: when it has reached its --n-trials)",
    )
    p.add_argument(
        "--while-running",
        action="store_true",
        help="judge every new best trial at once; each spends a look at the held-out bars",
    )
    p.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="of the refit (default: 0, counted from the study's)",
    )
    p.add_argument("--gpu", type=int, default=-1, metavar="N", help="number of the GPU; -1 = CPU (default: -1)")
    add_gates(p)
    return p


def add_gates(p: argparse.ArgumentParser) -> None:
    """Thresholds of the gates, and which of them are waived."""
    p.add_argument(
        "--alpha",
        type=float,
        default=ALPHA,
        metavar="P",
        help=f"error that all tests of the same held-out bars share (default: {ALPHA:g})",
    )
    p.add_argument(
        "--min-deflated-sharpe",
        type=float,
        default=LEAST_CONFIDENCE,
        metavar="P",
        help="confidence that the winner's lead is no luck of the search; 0 only reports it "
        f"(default: {LEAST_CONFIDENCE:g})",
    )
    p.add_argument(
        "--max-drawdown",
        type=float,
        default=HOLDOUT_DRAWDOWN,
        metavar="FRACTION",
        help=f"on the held-out bars (default: {HOLDOUT_DRAWDOWN:g})",
    )
    p.add_argument(
        "--min-improvement",
        type=float,
        default=MIN_IMPROVEMENT,
        metavar="SHARPE",
        help="annual Sharpe ratio above the deployed policy's on the same held-out bars, at least 0 "
        f"(default: {MIN_IMPROVEMENT:g})",
    )
    p.add_argument(
        "--allow-unproven",
        action="store_true",
        help="for paper trading: waive the gates that ask for evidence; the deployment says UNPROVEN",
    )
    p.add_argument(
        "--allow-unverified",
        action="store_true",
        help="take a study from before the database kept hashes of its files; the deployment says UNPROVEN",
    )
    p.add_argument(
        "--allow-unchecked",
        action="store_true",
        help="take a data set whose features were not made again from cut bars, as those from before that check; the "
        "deployment says UNPROVEN",
    )
    p.add_argument("--allow-synthetic", action="store_true", help="take a study of a generated market")
    p.add_argument(
        "--replace-other",
        action="store_true",
        help="replace a deployment of other coins, features or bars, with which it cannot be compared",
    )


def request(args: argparse.Namespace) -> Request:
    """The flags, checked; raises StudyError."""
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
    """Roll back, look once, or watch."""
    from train.deploy.service import roll_back, run_for_ever, run_once

    wanted = request(args)
    if args.rollback:
        return roll_back(wanted)
    return run_once(wanted) if args.once or args.dry_run else run_for_ever(wanted, args.interval)


def main(argv: list[str] | None = None) -> int:
    """Parse, run, report."""
    p = parser()
    args = p.parse_args(argv)
    if not 0.0 < args.interval < math.inf:
        p.error(f"--interval is in seconds and above 0; received {args.interval:g}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S",
                        stream=sys.stdout)  # fmt: skip
    for noisy in ("optuna", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return exit_code("auto_replace_best_5m.py", lambda: run(args), faults=(RuntimeError,))
