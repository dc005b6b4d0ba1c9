"""Watch a study of scripts/training/1_optimize_unified.py on the terminal. Nothing is written, Ctrl-C ends it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from barwise.arguments import add_study, exit_code, here, storage_of
from train.records.errors import StudyError
from train.records.provenance import home

DEFAULT_LOG = "logs/worker_vectorized.log"
LEAST_REFRESH_S = 0.2
EPILOG = """
Exit code: 0 after Ctrl-C (130 before the first frame) or a frame of --once; with --once 2 when there is no such
database or study and 1 when the database stays locked or away. Relative paths are taken from the current directory; the
defaults lie in the repository.
"""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--training", action="store_true", help="watch a study; the only view there is so far")
    add_study(p, is_required=False)
    p.add_argument("--refresh", type=float, default=3.0, metavar="SECONDS", help="between two looks (default: 3)")
    p.add_argument("--log", type=Path, metavar="FILE", help=f"whose last lines are shown (default: {DEFAULT_LOG})")
    p.add_argument("--once", action="store_true", help="print one frame and exit; no colours unless to a terminal")
    return p  # fmt: skip


def watch(args: argparse.Namespace) -> int:
    """Show the study. Imported here, for rich takes random numbers when it is loaded."""
    from rich.console import Console

    from train.watch.program import Dashboard, show_live, show_once

    if not args.training:
        raise StudyError("there is no paper trading yet; --training shows a study")
    if not args.refresh >= LEAST_REFRESH_S:
        raise StudyError(f"--refresh is in seconds, at least {LEAST_REFRESH_S}; received {args.refresh}")
    url = storage_of(args)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal gets question marks, not a traceback
    log = here(args.log) or home() / DEFAULT_LOG
    dashboard = Dashboard(url, args.study_name, log, here(args.results_dir))
    console = Console(highlight=False)
    return show_once(dashboard, console) if args.once else show_live(dashboard, console, args.refresh)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, show."""
    args = parser().parse_args(argv)
    return exit_code("paper_trader_dashboard.py", lambda: watch(args))
