"""Plot a study: the best value over time, every split, and the best trial's account compared with equal weight."""

from __future__ import annotations

import argparse

from barwise.arguments import add_study, exit_code, file_to_write, plain_logging, stored_study


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(description=__doc__)
    add_study(p)
    p.add_argument(
        "--out",
        type=file_to_write,
        metavar="FILE",
        help="PNG file to write (default: study.png in the study's results folder)",
    )
    return p


def draw(args: argparse.Namespace) -> None:
    """Plot the study and print the path of the plot."""
    from train.report.picture import plot_study

    stored = stored_study(args)
    print(plot_study(stored.study, stored.folder, args.out or stored.folder / "study.png"))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    plain_logging("train")
    return exit_code("plot_study.py", lambda: draw(args))
