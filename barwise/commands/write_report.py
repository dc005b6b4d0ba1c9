"""Write the HTML report of a study, also while the study runs."""

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
        help="HTML file to write (default: report.html in the study's results folder)",
    )
    return p


def write(args: argparse.Namespace) -> None:
    """Write the report and print its path."""
    from train.report.collect import write_report

    stored = stored_study(args)
    print(write_report(stored.study, stored.folder, args.out))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    plain_logging("train")
    return exit_code("report.py", lambda: write(args))
