#!/usr/bin/env python3
"""Draw the picture of a study: best value so far, every split, and the best trial's account against equal weight."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from barwise.study_arguments import add_study, exit_code, file_to_write, stored_study  # noqa: E402
from train.report.picture import plot_study  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__)
    add_study(p)
    p.add_argument(
        "--out", type=file_to_write, metavar="FILE", help="PNG to write (default: study.png beside the results)"
    )
    return p


def draw(args: argparse.Namespace) -> None:
    """Read, draw, say where."""
    stored = stored_study(args)
    print(plot_study(stored.study, stored.folder, args.out or stored.folder / "study.png"))


def main(argv: list[str] | None = None) -> int:
    """Parse, run, report."""
    args = parser().parse_args(argv)
    return exit_code(Path(__file__).name, lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
