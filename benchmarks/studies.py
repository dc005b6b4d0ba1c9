"""Small temporary studies for benchmarks, run through the command line or in this process."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna

from market.dataset import Dataset, save_dataset
from train.findings.stored_trial import StoredStudy, open_stored
from train.finish import run_study
from train.runner.request import StudyRequest
from train.store.address import absolute_url

REPO = Path(__file__).resolve().parents[1]

TRAINER = REPO / "scripts" / "training" / "1_optimize_unified.py"
SAMPLE = REPO / "scripts" / "data" / "make_sample.py"
NAME = "benchmark"


def storage_of(folder: Path) -> str:
    """Return the database URL of the study in a folder."""
    return f"sqlite:///{folder}/study.db"


def sample_market(n_bars: int, folder: Path) -> None:
    """Write a sample market of five-minute bars as a dataset into the folder."""
    command = [sys.executable, str(SAMPLE), "--n-bars", str(n_bars), "--out", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def seconds_of(folder: Path, data: Path, *flags: object) -> float:
    """Return the wall time of a study run through the command line; its database and results are in the folder."""
    command = [TRAINER, "--data-dir", data, "--study-name", NAME, "--storage", storage_of(folder)]
    command += ["--results-dir", folder / "results", *flags]
    started = time.monotonic()
    done = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 1):  # 1: a study with so few trials may have no best trial
        raise SystemExit(f"the study failed with exit code {done.returncode}")
    return time.monotonic() - started


@contextmanager
def ended_study(market: Dataset, **request: Any) -> Iterator[StoredStudy]:
    """Run a study on a dataset in this process, in a temporary folder."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the logs of many studies are of no interest here
    logging.getLogger("train").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_dataset(market, folder / "5m")
        url = absolute_url(storage_of(folder), folder)
        where = {"storage": url, "results_dir": folder / "results", "data_dir": folder / "5m"}
        run_study(StudyRequest(study_name=NAME, use_best_ranges=True, **where, **request))
        yield open_stored(url, NAME, folder / "results")
