"""Draw the picture of a study: best value so far, every split, and the best trial's account against equal weight."""

from __future__ import annotations

import argparse

from barwise.arguments import add_study, exit_code, file_to_write, plain_logging, stored_study


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
    from train.report.picture import plot_study

    stored = stored_study(args)
    print(plot_study(stored.study, stored.folder, args.out or stored.folder / "study.png"))


def main(argv: list[str] | None = None) -> int:
    """Parse, run, report."""
    args = parser().parse_args(argv)
    plain_logging("train")
    return exit_code("plot_study.py", lambda: draw(args))
