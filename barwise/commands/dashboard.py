"""Show a trader, or with --training a study, live in the terminal. Nothing is written; Ctrl-C exits."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from barwise.arguments import add_study, exit_code, here, storage_of
from train.records.errors import StudyError
from train.records.provenance import home

if TYPE_CHECKING:
    from train.watch.program import Board

DEFAULT_LOG = "logs/worker_vectorized.log"
DEFAULT_TRADING_DIR = "trading"
LEAST_REFRESH_S = 0.2
OF_A_STUDY, OF_A_TRADER = ("study_name", "storage", "results_dir", "log"), ("trading_dir", "account")
EPILOG = """
Relative paths are resolved from the current directory. Default paths are in the repository.

Exit codes: 0 after Ctrl-C or the frame of --once; 130 after Ctrl-C before the first frame.
With --once also: 1 the database is locked or unreachable; 2 the trader, database or study does not exist.
"""


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--training", action="store_true", help="show a study instead of a trader")
    p.add_argument("--trading-dir", type=Path, metavar="DIR", help=f"trading folder (default: {DEFAULT_TRADING_DIR})")
    p.add_argument("--account", metavar="NAME", help="account to show (default: the one with the latest heartbeat)")
    add_study(p, is_required=False)
    p.add_argument("--refresh", type=float, default=3.0, metavar="SECONDS", help="seconds between updates (default: 3)")
    p.add_argument(
        "--log", type=Path, metavar="FILE", help=f"log file whose last lines are shown (default: {DEFAULT_LOG})"
    )
    p.add_argument(
        "--once", action="store_true", help="print one frame and exit; the output is colored only on a terminal"
    )
    return p  # fmt: skip


def watch(args: argparse.Namespace) -> int:
    """Show the study or the trader. Rich is imported here because its import draws random numbers."""
    from rich.console import Console

    from train.watch.program import show_live, show_once

    _refuse_the_others_flags(args)
    if not args.refresh >= LEAST_REFRESH_S:
        raise StudyError(f"--refresh must be at least {LEAST_REFRESH_S} seconds; received {args.refresh}")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal shows question marks instead of a traceback
    board = study_board(args) if args.training else trader_board(args)
    console = Console(highlight=False)
    return show_once(board, console) if args.once else show_live(board, console, args.refresh)


def study_board(args: argparse.Namespace) -> Board[Any]:
    """Return the board of a study."""
    from train.watch.program import Dashboard

    log = here(args.log) or home() / DEFAULT_LOG
    return Dashboard(storage_of(args), args.study_name, log, here(args.results_dir))


def trader_board(args: argparse.Namespace) -> Board[Any]:
    """Return the board of a trader."""
    from paper_trading.trader_status import find_account
    from paper_trading.trader_view import TraderBoard

    folder = here(args.trading_dir) or home() / DEFAULT_TRADING_DIR
    return TraderBoard(find_account(folder, args.account))


def _refuse_the_others_flags(args: argparse.Namespace) -> None:
    names = OF_A_TRADER if args.training else OF_A_STUDY
    given = ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(args, name) is not None)
    if given:
        raise StudyError(f"{given}: only for a {'trader; remove' if args.training else 'study; add'} --training")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return exit_code("paper_trader_dashboard.py", lambda: watch(args))
