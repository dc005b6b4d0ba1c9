"""A study's report and a trader's daily page with invented numbers: `python -m tests.support.sample_pages FOLDER`."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import optuna
from optuna.trial import TrialState

from market.sample import synthetic_dataset
from paper_trading.day_page import write_day
from tests.support import fabricated_study as fabricated
from tests.support.made_journal import made_days
from train.report.collect import write_report
from train.study.folds import fold_data
from train.study.split_plan import SplitPlan


def write_study(folder: Path, storage: str = "") -> Path:
    """The folder of a study with four completed trials and one pruned trial, and its report.html.

    A copy of the study is written to `storage` unless it is empty.
    """
    dataset = synthetic_dataset("5m", 4_000, ("BTC", "ETH", "LTC"))
    data = fold_data(dataset, SplitPlan("standard", 3, 2))
    study, results = fabricated.new_study(folder, data)
    for drift in (0.0, 3e-5, -3e-5, 1e-5):
        fabricated.add_complete(study, results, data, drift)
    fabricated.add_ended(study, TrialState.PRUNED, "mean exposure is under 1 %")
    write_report(study, results)
    if storage:
        optuna.copy_study(from_study_name=study.study_name, from_storage=study._storage, to_storage=storage)
    return results


def main(folder: Path) -> int:
    """Write `report.html`, `day.html` and the study's database `study.db`."""
    results = write_study(folder / "results", f"sqlite:///{folder / 'study.db'}")
    (results / "report.html").rename(folder / "report.html")
    trader = folder / "trading" / "replay"
    made_days(trader, n_bars=600, synthetic=True, proven=False, in_sample=True)
    write_day(trader, date(2025, 12, 1)).rename(folder / "day.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
