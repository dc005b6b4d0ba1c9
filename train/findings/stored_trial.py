"""Finished trials, read back with their settings, policies and bars so that they can be evaluated again.

Everything is verified: the data by its hash, the folds one by one, and each policy by the data named in its file. Any
mismatch is an error that names the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from train.config import TrainConfig
from train.env_factory import rules_of
from train.evaluator import EpisodeRecord, evaluate_policies, policy_facts
from train.records.attributes import identity_in, uuid_in
from train.records.errors import StudyError
from train.records.keys import DATA_DIR, SETTINGS
from train.records.provenance import ROOT, code_version
from train.records.record_files import plain, read_record
from train.records.results import split_folder, trial_folder
from train.records.seals import BEST_POLICY, check_seal, is_sealed
from train.records.stored import FoldBars, Identity, Made, TrialSettings
from train.store.artifact_files import fetch_splits, results_of
from train.store.database import FINISHED, load_study
from train.study.eligibility import best_trial, why_no_best
from train.study.folds import Fold, FoldedData, load_study_data
from train.study.search_space import MAX_LOOKBACK
from train.study.split_plan import SplitPlan
from train.validation.splits import Segments, Split, recombined_paths, with_warmup

Records = Sequence[EpisodeRecord]


@dataclass(frozen=True)
class StoredStudy:
    """A study and its results folder."""

    study: optuna.Study
    folder: Path

    @property
    def uuid(self) -> str:
        """Unique id of the study."""
        return uuid_in(self.study.user_attrs)

    @property
    def identity(self) -> Identity:
        """Settings that the study was started with. `open_stored` rejects a study without them."""
        found = identity_in(self.study.user_attrs)
        assert found is not None
        return found

    @property
    def seed(self) -> int:
        """Seed that the study was started with."""
        return self.identity.run.seed

    @property
    def n_unverified(self) -> int:
        """Number of finished trials whose files have no hash in the database."""
        finished = self.study.get_trials(deepcopy=False, states=FINISHED)
        return sum(not is_sealed(trial) for trial in finished)

    def about(self, trial: int, data_sha256: str) -> dict[str, Any]:
        """Return the provenance header of a result file."""
        return plain(Made(self.study.study_name, self.uuid, trial, data_sha256, self.seed, code_version()))

    @property
    def plan(self) -> SplitPlan:
        """How the study splits its data."""
        return SplitPlan(**vars(self.identity.plan), holdout_fraction=self.identity.holdout_fraction)


@dataclass(frozen=True)
class StoredTrial:
    """A trial with its data and the policy of each of its splits."""

    number: int
    folder: Path
    settings: TrialSettings
    data: FoldedData
    policies: tuple[Path, ...]  # policy file of each fold, selected on its validation fold
    stored: StoredStudy

    @property
    def about(self) -> dict[str, Any]:
        """Return the provenance header of a result file."""
        return self.stored.about(self.number, self.data.dataset.sha256) | plain(self.data.origin)

    @property
    def env(self) -> dict[str, Any]:
        """Environment settings of training and testing."""
        return dict(self.settings.env)


def open_stored(url: URL, name: str, results: Path | None) -> StoredStudy:
    """Return a study with its results.

    Args:
        url: database URL.
        name: name of the study.
        results: parent of the study's results folder; None uses the path stored in the study.

    Raises:
        StudyError: the study does not exist, was created by a different program, or has no results.
    """
    study = load_study(url, name)
    if identity_in(study.user_attrs) is None:
        raise StudyError(f"study {name} was not created by this program")
    return StoredStudy(study, results_of(study, results))


def find_trial(stored: StoredStudy, which: str) -> FrozenTrial:
    """Return the trial with this number, or the best.

    Raises:
        StudyError: the trial does not exist or is not complete.
    """
    study = stored.study
    if which == "best":
        best = best_trial(study)
        if best is None:
            why = why_no_best(study.get_trials(deepcopy=False))
            raise StudyError(f"study {study.study_name} has no best trial: {why}")
        return best
    trials = study.get_trials(deepcopy=False)
    if not which.isdecimal() or int(which) >= len(trials):
        known = f"trials 0 to {len(trials) - 1}" if trials else "no trials"
        raise StudyError(f'--trial {which}: study {study.study_name} has {known}; give a trial number or "best"')
    trial = trials[int(which)]
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        raise StudyError(f"--trial {which}: that trial is {trial.state.name.lower()}; choose a completed one")
    return trial


def read_trial(stored: StoredStudy, which: str, data_dir: Path) -> StoredTrial:
    """Return a trial with everything needed to evaluate it again.

    Args:
        stored: study from `open_stored`.
        which: a trial number or "best".
        data_dir: dataset folder of the study, or the folder that contains its datasets.

    Raises:
        StudyError, DatasetError: the trial does not exist, a file is missing or damaged, or the data differ.
    """
    found = find_trial(stored, which)
    number = found.number
    fetch_splits(stored.study, stored.folder, [found])
    settings = read_settings(stored.folder, found)
    data = _same_data(stored, settings, data_dir)
    policies = tuple(split_folder(stored.folder, number, fold.index) / BEST_POLICY for fold in data.folds)
    missing = [path for path in policies if not path.exists()]
    if missing:
        raise StudyError(
            f"trial {number} of study {stored.study.study_name} lacks {len(missing)} of {len(policies)} policies "
            f"(first: {missing[0]}); a trial that stopped before its last split cannot be evaluated again"
        )
    for fold in data.folds:
        check_policy(stored.folder, found, settings, fold.index)
    return StoredTrial(number, trial_folder(stored.folder, number), settings, data, policies, stored)


def read_settings(study_folder: Path, trial: FrozenTrial) -> TrialSettings:
    """Return the settings that a trial was scored with.

    Raises:
        StudyError: the file is missing or damaged, or does not match the hash in the database.
    """
    check_seal(study_folder, trial, 0, SETTINGS)
    path = trial_folder(study_folder, trial.number) / SETTINGS
    settings = read_record(path, TrialSettings)
    try:
        TrainConfig(**{name: value for name, value in settings.train.items() if name != "seed"})
        rules_of(settings.env)
    except (TypeError, ValueError, KeyError) as error:
        raise StudyError(f"{path}: invalid settings: {error}; restore the study's results") from error
    return settings


def check_policy(study_folder: Path, trial: FrozenTrial, settings: TrialSettings, split: int) -> Path:
    """Return the policy file that a split of a trial was scored with.

    Raises:
        StudyError: the file is missing or unreadable, or belongs to a different split, trial or study.
    """
    path = split_folder(study_folder, trial.number, split) / BEST_POLICY
    check_seal(study_folder, trial, split, BEST_POLICY)
    try:
        facts = policy_facts(path)
    except ValueError as error:
        raise StudyError(str(error)) from error
    expected = {"study": settings.study, "trial": trial.number, "data_sha256": settings.data.sha256, "split": split}
    for name, value in expected.items():
        if facts.get(name) != value:
            raise StudyError(f"{path} does not belong to trial {trial.number}: its {name} is {facts.get(name)}")
    return path


# ------------------------------------------------------------------------------------------------------- evaluating
def tested_segments(trial: StoredTrial, fold: Fold) -> Segments:
    """Return a fold's test segments with their warm-up, as used when the trial was scored."""
    return with_warmup(fold.test, trial.data.dataset.segments, trial.env["lookback"], MAX_LOOKBACK)


def evaluate_trial(
    trial: StoredTrial, changes: Mapping[str, Any] | None = None, gpu_id: int = -1
) -> list[list[EpisodeRecord]]:
    """Trade every fold's test bars with that fold's policy in one batch and return the records of each fold.

    Args:
        trial: trial from `read_trial`.
        changes: environment settings that replace those of the trial, such as fees.
        gpu_id: GPU number; -1 is the CPU.
    """
    folds, dataset = trial.data.folds, trial.data.dataset
    segments = [tested_segments(trial, fold) for fold in folds]
    return evaluate_policies(
        trial.policies, segments, dataset.env_config(), trial.env | dict(changes or {}), gpu_id=gpu_id
    )


def join_paths(trial: StoredTrial, by_fold: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return the full paths through all tested bars, each a list of the elements of `by_fold` in time order.

    Every test fold starts with fresh capital, so a path is measured by its returns and has no return between folds.
    Folds that were too short to trade are omitted.
    """
    position = [_kept_blocks(trial, fold) for fold in trial.data.folds]
    splits = [Split(fold.fit, fold.test, fold.test_groups) for fold in trial.data.folds]
    return [
        [by_fold[split][position[split][block]] for split, block in path if block in position[split]]
        for path in recombined_paths(splits)
    ]


def _kept_blocks(trial: StoredTrial, fold: Fold) -> dict[int, int]:
    """Return {index of a test block: its index among the traded blocks}."""
    lookback, segments = trial.env["lookback"], trial.data.dataset.segments
    kept = [i for i, block in enumerate(fold.test) if with_warmup((block,), segments, lookback, MAX_LOOKBACK)]
    return {block: place for place, block in enumerate(kept)}


# ---------------------------------------------------------------------------------------------------------- checks
def _same_data(stored: StoredStudy, settings: TrialSettings, data_dir: Path) -> FoldedData:
    """Return the folds that the trial was run on, or raise an error if the data differ."""
    wanted = settings.data
    timeframe = settings.timeframe or next(iter(stored.identity.data_sha256))
    folder = data_folder(stored, timeframe, data_dir)
    found = {d.timeframe: d for d in load_study_data(folder, None, wanted.tickers, stored.plan)}
    data = found.get(timeframe)
    if data is None or data.dataset.sha256 != wanted.sha256:
        here = "missing" if data is None else f"{data.dataset.label}, sha256 {data.dataset.sha256[:12]}"
        raise StudyError(
            f"{data_dir} does not contain the data of study {stored.study.study_name}: {timeframe} is {here}; pass the "
            f"--data-dir that contains {wanted.label}, sha256 {wanted.sha256[:12]}"
        )
    if tuple(FoldBars(**vars(fold)) for fold in data.folds) != settings.folds:
        raise StudyError(
            f"study {stored.study.study_name}: this code version splits the data differently; use version "
            f"{settings.code_version or 'that created the study'}"
        )
    return data


def data_folder(stored: StoredStudy, timeframe: str, data_dir: Path) -> Path:
    """Return the subfolder of a timeframe if the folder contains several datasets, otherwise the folder itself."""
    inside = data_dir / timeframe
    is_several = stored.plan.mode != "multi-timeframe" and not (data_dir / "manifest.json").exists()
    return inside if is_several and (inside / "manifest.json").exists() else data_dir


def own_data_dir(stored: StoredStudy) -> Path:
    """Return the folder from which the study read its data, or the repository's folder for its timeframe."""
    known = stored.study.user_attrs.get(DATA_DIR)
    return Path(known) if known else ROOT / "data" / next(iter(stored.identity.data_sha256))
