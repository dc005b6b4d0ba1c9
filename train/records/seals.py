"""SHA-256 hashes of a trial's files, stored in the database to detect changed, swapped or missing files.

Every attribute `split_<k>` of a trial lists the files behind the split's metrics with their SHA-256. Studies up to
commit c6a6d1f have no such hashes. Their files are read unverified and labeled as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.records.attributes import SPLIT
from train.records.errors import StudyError
from train.records.keys import SETTINGS
from train.records.results import split_folder, trial_folder

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FILES = "files"  # key in a split's attribute: file -> SHA-256
EQUITY, RESULT, BAND = "equity.npz", "result.json", "band.npz"
BEST_POLICY, LAST_POLICY = "policy_best.safetensors", "policy_last.safetensors"
SEALED = (EQUITY, BEST_POLICY, LAST_POLICY, RESULT)  # files of every split
OF_A_SPLIT = (*SEALED, BAND)  # BAND exists for band policies only


def seal(study_folder: Path, trial_number: int, split: int) -> dict[str, Any]:
    """Return {"files": {name: SHA-256}} for the existing files of a split, as stored in its attribute."""
    paths = file_paths(study_folder, trial_number, split)
    return {FILES: {name: file_sha256(path) for name, path in paths.items() if path.exists()}}


def file_paths(study_folder: Path, trial_number: int, split: int) -> dict[str, Path]:
    """Return name -> path of every file that a split may have, including the trial's settings."""
    folder = split_folder(study_folder, trial_number, split)
    own = {SETTINGS: trial_folder(study_folder, trial_number) / SETTINGS}
    return own | {name: folder / name for name in OF_A_SPLIT}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_seal(study_folder: Path, trial: FrozenTrial, split: int, name: str) -> bool:
    """Check that a file is the one that the split was scored with. Return False if no hash was stored.

    Args:
        study_folder: folder of the study's results.
        trial: trial as stored in the database.
        split: number of the split.
        name: `settings.json`, or a name in `OF_A_SPLIT`.

    Raises:
        StudyError: the file is missing or differs.
    """
    path = file_paths(study_folder, trial.number, split)[name]
    attribute = trial.user_attrs.get(f"{SPLIT}{split}")
    kept = attribute.get(FILES) if isinstance(attribute, Mapping) else None
    if not isinstance(kept, Mapping):
        return False
    try:
        found = file_sha256(path)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror}); restore the study's results") from error
    if kept.get(name) != found:
        raise StudyError(
            f"{path} is not the file that trial {trial.number} was scored with (SHA-256 {found[:12]}, expected "
            f"{str(kept.get(name))[:12]}); restore the study's results"
        )
    return True


def keeps_hashes(trials: Iterable[FrozenTrial]) -> bool:
    """Return True if a study's database has file hashes. Studies up to commit c6a6d1f have none."""
    splits = (v for trial in trials for name, v in trial.user_attrs.items() if name.startswith(SPLIT))
    return any(isinstance(value, Mapping) and FILES in value for value in splits)


def is_sealed(trial: FrozenTrial) -> bool:
    """Return True if every split that the trial was scored on has file hashes."""
    splits = [value for name, value in trial.user_attrs.items() if name.startswith(SPLIT)]
    return all(isinstance(value, Mapping) and value.get(FILES) for value in splits)
