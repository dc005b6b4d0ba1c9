"""What is kept of every trial, in `<results>/<study>/trial_<n>/`.

    ../study.json                     the study's id, and which data it stands on
    settings.json                     resolved settings, seeds, folds, data hash, code version: enough to run it again
    ../closes_<timeframe>.npz         closing prices the study trades on: what benchmarks of a report are made of
    ../report.html                    the page about the study (`train.report.collect`)
    ../yardsticks.json                equal weight and the best constant band on every split
    ../holdout.json                   the winner on the bars held out, written once; ../holdout/ has its equity curves
    split_<k>/policy_best.safetensors  scored on the test blocks; chosen on the validation slice
    split_<k>/policy_last.safetensors
    split_<k>/equity.npz              the account and the equal-weight portfolio on every test bar
    split_<k>/band.npz                of a band policy: its edges and held weights on every test bar
    split_<k>/result.json             the figures of both; written last, so where it is the split has finished
    split_<k>/checkpoint.safetensors  while the split trains, and after a kill (`train.checkpoint`)

and, of a trial that was looked at again (scripts/validation):

    validation.json, .csv             the policies beside benchmarks, by split and by full path
    backtest.json, paths.npz          full paths, at several costs (costs.csv) and from other seeds (seeds.csv)
    seed_<i>/split_<k>/               the trial's settings trained from another seed, as a split above
    ../pbo.json, pbo_trials.csv, ...  whether the study's winner is skilled or lucky

Every file is whole or not there.
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
# What a missing, cut off or damaged file of arrays raises.
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
# What the system says when something is in a folder's place, or a disk of its own is mounted there.
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY}


def study_folder(results: Path, about: StudyFile, is_renewed: bool = True) -> Path:
    """The study's own folder, made on first use.

    A folder left by another study of that name (its database was moved, say) is never written to: the new one gets the
    beginning of its own id behind the name.

    Args:
        results: holds the folders of studies.
        about: written into study.json.
        is_renewed: also where the file exists already.
    """
    for folder in (results / about.study, results / f"{about.study}-{about.uuid[:8]}"):
        if _claim(folder, about):
            return folder
        if _is_owned(folder / OWNER_FILE, about.study, about.uuid):
            if is_renewed:
                write_json(folder / OWNER_FILE, about)
            return folder
    raise StudyError(f"{results / about.study}: holds results of another study; move it away")


def _claim(folder: Path, about: StudyFile) -> bool:
    """Make the study's folder with its owner in it, in one step; False where there is one that is not empty.

    Of several studies that start at one moment exactly one gets the name: a folder is renamed over nothing or an empty
    folder, and never over another.
    """
    folder = folder.resolve()  # a link to an empty folder may be claimed, too
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
    """Say so before a study begins if nothing can be written there; nothing is made.

    Raises:
        StudyError: it, or the nearest folder above it that is there, is no folder or cannot be written.
    """
    nearest = next(folder for folder in (results, *results.parents) if folder.exists())
    if not nearest.is_dir():
        raise StudyError(f"--results-dir {results}: {nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StudyError(f"--results-dir {results}: {nearest} cannot be written (permissions, or a read-only disk)")


def find_study_folder(results: Path, name: str, study_uuid: str) -> Path:
    """The study's own folder, which must be there; nothing is made.

    Raises:
        StudyError: no folder of this study.
    """
    for folder in (results / name, results / f"{name}-{study_uuid[:8]}"):
        if _is_owned(folder / OWNER_FILE, name, study_uuid):
            return folder
    raise StudyError(f"{results} has no results of study {name}; say where they are with --results-dir")


def _is_owned(path: Path, name: str, study_uuid: str) -> bool:
    """Whether the file names this study, whatever else it says; a disk that does not answer is an error."""
    try:
        content = json.loads(path.read_bytes())
        return decode(content, Owner, str(path)) == Owner(name, study_uuid)
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):  # a StudyError is a ValueError, too
        return False


def artifacts_folder(study_folder: Path) -> Path:
    """Where Optuna's artifacts of all studies are that have their results beside this one's."""
    return study_folder.parent / "artifacts"


def trial_folder(study_folder: Path, trial_number: int) -> Path:
    """`<study>/trial_<n>`."""
    return study_folder / f"trial_{trial_number}"


def split_folder(study_folder: Path, trial_number: int, fold: int) -> Path:
    """`<study>/trial_<n>/split_<k>`."""
    return trial_folder(study_folder, trial_number) / f"split_{fold}"


def read_equity(path: Path, names: Sequence[str] = EQUITY_COLUMNS) -> dict[str, np.ndarray]:
    """These columns of an equity file, all (M,).

    Raises:
        StudyError: missing or damaged; names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in names}
    except UNREADABLE as error:
        raise StudyError(f"{path} cannot be read ({reason_of(error)}); restore the study's results") from error
    if len({column.shape for column in columns.values()}) > 1:
        raise StudyError(f"{path} is damaged: its columns differ in length; restore the study's results")
    return columns


def closes_file(study_folder: Path, timeframe: str) -> Path:
    """`<study>/closes_<timeframe>.npz`."""
    return study_folder / f"closes_{timeframe}.npz"


def read_closes(study_folder: Path, timeframe: str, sha256: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The closes (T, A) and their coins.

    Raises:
        StudyError: those of other data.
        OSError: there are none.
    """
    path = closes_file(study_folder, timeframe)
    with np.load(path, allow_pickle=False) as file:
        if str(file["sha256"]) != sha256:
            raise StudyError(f"{path}: closes of other data than the trial's")
        return file["close"], tuple(str(name) for name in file["tickers"])


def find_closes(study_folder: Path, sha256: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The closes (T, A) of the data with that hash, whatever its timeframe, and their coins.

    Raises:
        StudyError: the study kept none of that data.
    """
    for path in sorted(study_folder.glob("closes_*.npz")):
        with np.load(path, allow_pickle=False) as file:
            if str(file["sha256"]) == sha256:
                return file["close"], tuple(str(name) for name in file["tickers"])
    raise StudyError(f"{study_folder}: no closes of the trial's data")


def read_filled(study_folder: Path, timeframe: str, sha256: str) -> np.ndarray | None:
    """Which closes (T, A) stand for missing bars; None where a study of an earlier version did not write that.

    Raises:
        As `read_closes`.
    """
    path = closes_file(study_folder, timeframe)
    with np.load(path, allow_pickle=False) as file:
        if str(file["sha256"]) != sha256:
            raise StudyError(f"{path}: closes of other data than the trial's")
        return file.get("filled")
