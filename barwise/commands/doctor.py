"""Is this machine ready to train? What is installed, device, data, database and disk, and what to do about problems."""

from __future__ import annotations

import argparse
from pathlib import Path

from barwise.arguments import add_storage, exit_code, here
from barwise.setup_checks import BAD, Places, examine, report
from train.records.keys import DEFAULT_STORAGE
from train.records.provenance import home

EPILOG = "Changes nothing. Exit code: 0 when training can begin, 1 when a finding is marked BAD."


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__, epilog=EPILOG)
    p.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="a dataset, or a folder of datasets (default: data in the repository)",
    )
    add_storage(p)
    return p  # fmt: skip


def check(args: argparse.Namespace) -> int:
    """Look, say; 1 if something is in the way."""
    storage = args.storage or f"sqlite:///{home() / DEFAULT_STORAGE.removeprefix('sqlite:///')}"
    findings = examine(Places(home(), here(args.data_dir), storage, Path.cwd()))
    print(report(findings))
    n_bad = sum(f.state == BAD for f in findings)
    print(f"\n{n_bad} problem{'s' * (n_bad != 1)} to fix before training." if n_bad else "\nReady to train.")
    return int(n_bad > 0)


def main(argv: list[str] | None = None) -> int:
    """Parse, look, say."""
    args = parser().parse_args(argv)
    return exit_code("doctor.py", lambda: check(args))
