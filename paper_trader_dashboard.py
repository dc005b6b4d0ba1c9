#!/usr/bin/env python3
"""Watch a study of scripts/training/1_optimize_unified.py on the terminal. Nothing is written, Ctrl-C ends it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

REPO = Path(__file__).resolve().parent
sys.path.insert(0, str(REPO))

DEFAULT_LOG = "logs/worker_vectorized.log"
DEFAULT_DATABASE = "databases/optuna_cappuccino.db"
LEAST_REFRESH_S = 0.2
EPILOG = """
Exit code: 0 after Ctrl-C or a frame of --once; with --once 2 when there is no such database or study and 1 when the
database stays locked or away. Relative paths are taken from the current directory; the defaults lie in the repository.
"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--training", action="store_true", help="watch a study; the only view there is so far")
    p.add_argument("--study-name", "--study", dest="study", metavar="NAME", help="(default: the newest)")
    p.add_argument(
        "--storage", metavar="URL", help=f"sqlite:///FILE or postgresql://USER@HOST/NAME (default {DEFAULT_DATABASE})"
    )
    p.add_argument("--refresh", type=float, default=3.0, metavar="S", help="seconds between two looks (default 3)")
    p.add_argument("--log", type=Path, metavar="FILE", help=f"whose last lines are shown (default {DEFAULT_LOG})")
    p.add_argument("--once", action="store_true", help="print one frame and exit; no colours unless to a terminal")
    return p  # fmt: skip


def watch(args: argparse.Namespace) -> int:
    """Show the study. Imported here, for rich takes random numbers when it is loaded."""
    from rich.console import Console

    from train.records.errors import StudyError
    from train.records.keys import DEFAULT_STORAGE
    from train.store.address import absolute_url
    from train.watch.program import Dashboard, show_live, show_once

    here = Path.cwd()
    try:
        url = absolute_url(args.storage, here) if args.storage else absolute_url(DEFAULT_STORAGE, REPO)
    except StudyError as error:
        return refused(str(error))
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal gets question marks, not a traceback
    dashboard = Dashboard(url, args.study, here / args.log if args.log else REPO / DEFAULT_LOG)
    console = Console(highlight=False)
    return show_once(dashboard, console) if args.once else show_live(dashboard, console, args.refresh)


def refused(why: str) -> int:
    """Say why not; the exit code."""
    print(f"{Path(__file__).name}: {why}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, show."""
    args = parser().parse_args(argv)
    if not args.training:
        return refused("there is no paper trading yet; --training shows a study")
    if not args.refresh >= LEAST_REFRESH_S:
        return refused(f"--refresh is in seconds, at least {LEAST_REFRESH_S}; received {args.refresh}")
    try:
        return watch(args)
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith(("market", "train")):
            raise
        return refused(f"{missing.name} is not installed for this python; activate the environment: "
                       "source .venv/bin/activate (./start_vectorized_training.sh makes it)")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
