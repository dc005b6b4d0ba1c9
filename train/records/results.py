"""Files of every trial in `<results>/<study>/trial_<n>/`.

    ../study.json                     the study's id and its data
    settings.json                     resolved settings, seeds, folds, data hash, code version: enough to run it again
    ../closes_<timeframe>.npz         closing prices of the study, from which reports compute benchmarks
    ../report.html                    the report of the study (`train.report.collect`)
    ../yardsticks.json                equal weight and the best constant band on every split
    ../holdout.json                   score of the winner on the hold-out, written once; ../holdout/ has its curves
    split_<k>/policy_best.safetensors  the policy with the best validation score, which is scored on the test folds
    split_<k>/policy_last.safetensors  the policy at the end of training
    split_<k>/equity.npz              the account and equal weight on every test bar
    split_<k>/band.npz                band policies only: band edges and held weights on every test bar
    split_<k>/result.json             the metrics of both; written last, so it marks a finished split
    split_<k>/checkpoint.safetensors  while the split trains, and after a kill (`train.checkpoint`)

and for a trial that was validated (scripts/validation):

    validation.json, .csv             the policies compared with benchmarks, by split and by full path
    backtest.json, paths.npz          full paths, at several costs (costs.csv) and with additional seeds (seeds.csv)
    seed_<i>/split_<k>/               the trial's settings trained from another seed, laid out like a split above
    ../pbo.json, pbo_trials.csv, ...  tests for overfitting of the study's winner

Every file is written atomically.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from market.files import sweep_leftovers, sync_folder, unfinished_folder
from train.records.errors import StudyError
from train.records.keys import OWNER_FILE
from train.records.record_files import decode, reason_of, write_json
from train.records.stored import Owner, StudyFile

EQUITY_COLUMNS = ("segment", "bar", "time_s", "equity", "benchmark_equity", "exposure", "turnover", "fees", "trades")
# Exceptions raised by a missing, truncated or damaged array file.
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
# Error numbers if the target exists or is a mount point.
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY}


def study_folder(results: Path, about: StudyFile, is_renewed: bool = True) -> Path:
    """Return the study's own folder, creating it on first use.

    If a different study with the same name left its results there (for example, because its database was moved), those
    results are not changed. The name of the new folder then ends with the first characters of the study's id.

    Args:
        results: parent folder of the studies' folders.
        about: content of study.json.
        is_renewed: True overwrites an existing study.json.

    Raises:
        StudyError: both names belong to different studies.
    """
    for folder in (results / about.study, results / f"{about.study}-{about.uuid[:8]}"):
        if _claim(folder, about):
            return folder
        if _is_owned(folder / OWNER_FILE, about.study, about.uuid):
            if is_renewed:
                write_json(folder / OWNER_FILE, about)
            return folder
    raise StudyError(f"{results / about.study} has results of another study; move it elsewhere")


def _claim(folder: Path, about: StudyFile) -> bool:
    """Create the study's folder with its owner file in one step. Return False if a non-empty folder exists.

    If several studies start at the same time, only one gets the name, because a folder can only be renamed over a
    missing or empty folder.
    """
    folder = folder.resolve()  # a link to an empty folder may also be claimed
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(folder, frozenset({OWNER_FILE}))
    with unfinished_folder(folder) as unfinished:
        write_json(unfinished / OWNER_FILE, about)
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            return False
    sync_folder(folder.parent)
    return True


def refuse_unwritable(results: Path) -> None:
    """Check before a study begins that its results folder can be written. Nothing is created.

    Raises:
        StudyError: the folder, or its nearest existing parent, is not a folder or is not writable.
    """
    nearest = next(folder for folder in (results, *results.parents) if folder.exists())
    if not nearest.is_dir():
        raise StudyError(f"--results-dir {results}: {nearest} is a file; pass a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StudyError(f"--results-dir {results}: {nearest} is not writable (permissions, or a read-only disk)")


def find_study_folder(results: Path, name: str, study_uuid: str) -> Path:
    """Return the study's existing folder. Nothing is created.

    Raises:
        StudyError: the study has no folder there.
    """
    for folder in (results / name, results / f"{name}-{study_uuid[:8]}"):
        if _is_owned(folder / OWNER_FILE, name, study_uuid):
            return folder
    raise StudyError(f"{results} has no results of study {name}; pass their folder with --results-dir")


def _is_owned(path: Path, name: str, study_uuid: str) -> bool:
    """Return True if the file names this study. Other contents of the file are ignored. Disk errors are raised."""
    try:
        content = json.loads(path.read_bytes())
        return decode(content, Owner, str(path)) == Owner(name, study_uuid)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):  # StudyError is a ValueError
        return False


def artifacts_folder(study_folder: Path) -> Path:
    """Return the folder of Optuna artifacts shared by all studies in the same results folder."""
    return study_folder.parent / "artifacts"


def trial_folder(study_folder: Path, trial_number: int) -> Path:
    """Return `<study>/trial_<n>`."""
    return study_folder / f"trial_{trial_number}"


def split_folder(study_folder: Path, trial_number: int, fold: int) -> Path:
    """Return `<study>/trial_<n>/split_<k>`."""
    return trial_folder(study_folder, trial_number) / f"split_{fold}"


def read_equity(path: Path, names: Sequence[str] = EQUITY_COLUMNS) -> dict[str, np.ndarray]:
    """Return the named columns of an equity file, each (M,).

    Raises:
        StudyError: the file is missing or damaged. The message names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in names}
    except UNREADABLE as error:
        raise StudyError(f"{path} cannot be read ({reason_of(error)}); restore the study's results") from error
    if len({column.shape for column in columns.values()}) > 1:
        raise StudyError(f"{path} is damaged (its columns differ in length); restore the study's results")
    return columns


def closes_file(study_folder: Path, timeframe: str) -> Path:
    """Return `<study>/closes_<timeframe>.npz`."""
    return study_folder / f"closes_{timeframe}.npz"


def read_closes(study_folder: Path, timeframe: str, sha256: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the closes (T, A) and their coins.

    Raises:
        StudyError: the closes belong to different data.
        OSError: the file does not exist.
    """
    path = closes_file(study_folder, timeframe)
    with np.load(path, allow_pickle=False) as file:
        if str(file["sha256"]) != sha256:
            raise StudyError(f"{path} does not match the trial's data; restore the study's results")
        return file["close"], tuple(str(name) for name in file["tickers"])


def find_closes(study_folder: Path, sha256: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the closes (T, A) and coins of the data with this hash, for any timeframe.

    Raises:
        StudyError: the study has no closes of that data.
    """
    for path in sorted(study_folder.glob("closes_*.npz")):
        with np.load(path, allow_pickle=False) as file:
            if str(file["sha256"]) == sha256:
                return file["close"], tuple(str(name) for name in file["tickers"])
    raise StudyError(f"{study_folder} has no closes of the trial's data; restore the study's results")


def read_filled(study_folder: Path, timeframe: str, sha256: str) -> np.ndarray | None:
    """Return which closes (T, A) stand for missing bars, or None if an older version did not store that.

    Raises:
        StudyError: the closes belong to different data.
        OSError: the file does not exist.
    """
    path = closes_file(study_folder, timeframe)
    with np.load(path, allow_pickle=False) as file:
        if str(file["sha256"]) != sha256:
            raise StudyError(f"{path} does not match the trial's data; restore the study's results")
        return file.get("filled")
