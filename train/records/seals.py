"""Hashes of what a trial left in files, kept in the database: a file that was changed, swapped or lost is noticed.

Every attribute `split_<k>` of a trial names the files that the split's figures came from, with their SHA-256. Studies
of commit c6a6d1f and before it have no such hashes; their files are read as they are and called unverified.
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

FILES = "files"  # of a split's attribute: file -> SHA-256
EQUITY, RESULT, BAND = "equity.npz", "result.json", "band.npz"
BEST_POLICY, LAST_POLICY = "policy_best.safetensors", "policy_last.safetensors"
SEALED = (EQUITY, BEST_POLICY, LAST_POLICY, RESULT)  # in the folder of every split
OF_A_SPLIT = (*SEALED, BAND)  # the last one of band policies only


def seal(study_folder: Path, trial_number: int, split: int) -> dict[str, Any]:
    """What a split's attribute says of its files: {"files": {name: SHA-256}}; of those that are there."""
    paths = file_paths(study_folder, trial_number, split)
    return {FILES: {name: file_sha256(path) for name, path in paths.items() if path.exists()}}


def file_paths(study_folder: Path, trial_number: int, split: int) -> dict[str, Path]:
    """Name -> path of every file that a split may leave, with the trial's settings."""
    folder = split_folder(study_folder, trial_number, split)
    own = {SETTINGS: trial_folder(study_folder, trial_number) / SETTINGS}
    return own | {name: folder / name for name in OF_A_SPLIT}


def file_sha256(path: Path) -> str:
    """Of the file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_seal(study_folder: Path, trial: FrozenTrial, split: int, name: str) -> bool:
    """Whether a file is the one that the split was scored with; False where no hash was kept.

    Args:
        study_folder: the study's results.
        trial: as the database has it.
        split: number of the split.
        name: `settings.json`, or a name of `OF_A_SPLIT`.

    Raises:
        StudyError: the file is missing, or is another one.
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
            f"{path} is not the file that trial {trial.number} was scored with (SHA-256 {found[:12]}, the database "
            f"has {str(kept.get(name))[:12]}); restore the study's results"
        )
    return True


def keeps_hashes(trials: Iterable[FrozenTrial]) -> bool:
    """Whether a study's database has hashes of files; those of commit c6a6d1f and before it have none."""
    splits = (v for trial in trials for name, v in trial.user_attrs.items() if name.startswith(SPLIT))
    return any(isinstance(value, Mapping) and FILES in value for value in splits)


def is_sealed(trial: FrozenTrial) -> bool:
    """Whether hashes were kept of every split that the trial was scored on."""
    splits = [value for name, value in trial.user_attrs.items() if name.startswith(SPLIT)]
    return all(isinstance(value, Mapping) and value.get(FILES) for value in splits)
