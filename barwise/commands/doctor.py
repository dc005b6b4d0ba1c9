"""Check that this machine is ready to train: packages, devices, datasets, database and disk space."""

from __future__ import annotations

import argparse
from pathlib import Path

from barwise.arguments import add_storage, exit_code, here
from barwise.setup_checks import BAD, Places, examine, report
from train.records.keys import DEFAULT_STORAGE
from train.records.provenance import home

EPILOG = "Nothing is changed. Exit codes: 0 ready to train; 1 at least one finding is BAD."


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    p.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="dataset folder, or a folder that contains datasets (default: data in the repository)",
    )
    add_storage(p)
    return p  # fmt: skip


def check(args: argparse.Namespace) -> int:
    """Run the checks, print the findings, and return 1 if a finding is BAD and 0 otherwise."""
    storage = args.storage or f"sqlite:///{home() / DEFAULT_STORAGE.removeprefix('sqlite:///')}"
    findings = examine(Places(home(), here(args.data_dir), storage, Path.cwd()))
    print(report(findings))
    n_bad = sum(f.state == BAD for f in findings)
    print(f"\n{n_bad} problem{'s' * (n_bad != 1)} to fix before training." if n_bad else "\nReady to train.")
    return int(n_bad > 0)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    return exit_code("doctor.py", lambda: check(args))
