#!/usr/bin/env python3
"""Watch a study of scripts/training/1_optimize_unified.py on the terminal. Nothing is written, Ctrl-C ends it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent
sys.path.insert(0, str(REPO))

try:
    from rich.console import Console

    from train.study.dashboard.program import Dashboard, show_live, show_once
    from train.study.data import StudyError
    from train.study.storage import DEFAULT_STORAGE, absolute_url
except ModuleNotFoundError as missing:
    if str(missing.name).startswith(("market", "train")):
        raise
    print(f"{missing.name} is not installed for this python; activate the environment: source .venv/bin/activate "
          "(./start_vectorized_training.sh makes it)", file=sys.stderr)  # fmt: skip
    sys.exit(2)

DEFAULT_LOG = "logs/worker_vectorized.log"
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
    p.add_argument("--study", "--study-name", metavar="NAME", help="(default: the one whose trials are newest)")
    p.add_argument(
        "--storage", metavar="URL", help=f"sqlite:///FILE or postgresql://USER@HOST/NAME (default {DEFAULT_STORAGE})"
    )
    p.add_argument("--refresh", type=float, default=3.0, metavar="S", help="seconds between two looks (default 3)")
    p.add_argument("--log", type=Path, metavar="FILE", help=f"whose last lines are shown (default {DEFAULT_LOG})")
    p.add_argument("--once", action="store_true", help="print one frame and exit; no colours unless to a terminal")
    return p  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Parse, show."""
    name = Path(__file__).name
    args = parser().parse_args(argv)
    if not args.training:
        print(f"{name}: there is no paper trading yet; --training shows a study", file=sys.stderr)
        return 2
    if not args.refresh >= LEAST_REFRESH_S:
        print(f"{name}: --refresh is in seconds, at least {LEAST_REFRESH_S}; received {args.refresh}", file=sys.stderr)
        return 2
    here = Path.cwd()
    try:
        url = absolute_url(args.storage, here) if args.storage else absolute_url(DEFAULT_STORAGE, REPO)
    except StudyError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(errors="replace")  # an ASCII terminal gets question marks, not a traceback
    dashboard = Dashboard(url, args.study, here / args.log if args.log else REPO / DEFAULT_LOG)
    console = Console(highlight=False)
    return show_once(dashboard, console) if args.once else show_live(dashboard, console, args.refresh)


if __name__ == "__main__":
    sys.exit(main())
