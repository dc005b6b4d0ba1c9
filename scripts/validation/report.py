#!/usr/bin/env python3
"""Write the page about a study, report.html beside its results; at any time, also while the study runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from barwise.study_arguments import add_study, exit_code, file_to_write, stored_study  # noqa: E402
from train.report.collect import write_report  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__)
    add_study(p)
    p.add_argument(
        "--out", type=file_to_write, metavar="FILE", help="HTML to write (default: report.html beside the results)"
    )
    return p


def write(args: argparse.Namespace) -> None:
    """Write the page, say where."""
    stored = stored_study(args)
    print(write_report(stored.study, stored.folder, args.out))


def main(argv: list[str] | None = None) -> int:
    """Parse, write, report."""
    args = parser().parse_args(argv)
    return exit_code(Path(__file__).name, lambda: write(args))


if __name__ == "__main__":
    sys.exit(main())
