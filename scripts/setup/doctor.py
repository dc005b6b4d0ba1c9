#!/usr/bin/env python3
"""Is this machine ready to train? What is installed, device, data, database and disk, and what to do about problems."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from barwise.doctor import BAD, Places, examine, report  # noqa: E402 - the repository is not installed

DEFAULT_DATABASE = REPO / "databases" / "optuna_cappuccino.db"
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
    p.add_argument(
        "--storage",
        default=f"sqlite:///{DEFAULT_DATABASE}",
        metavar="URL",
        help="the study's database (default: databases/optuna_cappuccino.db in the repository)",
    )
    return p  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Look, say."""
    args = parser().parse_args(argv)
    here = Path.cwd()
    findings = examine(Places(REPO, here / args.data_dir if args.data_dir else None, args.storage, here))
    print(report(findings))
    n_bad = sum(f.state == BAD for f in findings)
    print(f"\n{n_bad} problem{'s' * (n_bad != 1)} to mend before training." if n_bad else "\nReady to train.")
    return int(n_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
