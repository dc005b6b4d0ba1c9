#!/usr/bin/env python3
"""Write the page about a study, report.html beside its results; at any time, also while the study runs."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from train.study.data import StudyError  # noqa: E402
from train.study.report import write_report  # noqa: E402
from train.study.results import OWNER_FILE, study_folder  # noqa: E402
from train.study.storage import DEFAULT_STORAGE, absolute_url, load_study  # noqa: E402


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--study-name", required=True)
    p.add_argument("--storage", metavar="URL", help=f"(default {DEFAULT_STORAGE}, in the repository)")
    p.add_argument("--results-dir", type=Path, metavar="DIR", help="(default: train_results in the repository)")
    p.add_argument("--out", type=Path, metavar="FILE", help="HTML to write (default: report.html beside the results)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Parse, write, say where."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    here = Path.cwd()
    url = absolute_url(args.storage, here) if args.storage else absolute_url(DEFAULT_STORAGE, REPO)
    results = here / args.results_dir if args.results_dir else REPO / "train_results"
    try:
        study = load_study(url, args.study_name)
        if not (results / study.study_name / OWNER_FILE).exists():  # a folder would be made
            raise StudyError(f"{results} has no results of study {study.study_name}; say where with --results-dir")
        folder = study_folder(results, study.study_name, study.user_attrs["uuid"])
        print(write_report(study, folder, here / args.out if args.out else None))
    except (StudyError, OSError) as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
