"""Reuse of an interrupted trial's work: finished splits, and the checkpoint of the unfinished split.

A retried trial (`train.store.abandoned.queue_retry`) has its own number and folder. Splits that an earlier attempt
finished with the same settings, data and code are copied to this folder instead of being trained again. In the policy
files only the trial number changes.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from market.files import write_whole
from train.checkpoint import CHECKPOINT as CHECKPOINT_FILE
from train.checkpoint import Checkpoints, anywhere, copy_policy, differences
from train.messages import brief
from train.records.keys import CHECKPOINT, RETRY_OF, SETTINGS
from train.records.record_files import plain, read_record
from train.records.results import read_equity, split_folder, trial_folder
from train.records.seals import BAND, BEST_POLICY, EQUITY, LAST_POLICY, RESULT, SEALED, check_seal
from train.records.stored import SplitResult, TrialSettings
from train.store.artifact_files import StudyArtifacts, split_files
from train.study.split import SplitOutcome, outcome_of

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Attempts:
    """A trial and the earlier attempts at the same settings.

    Attributes:
        study_folder: folder of the study's results.
        number: number of the trial.
        earlier: numbers of the earlier attempts, the latest first.
        ended: database records of the earlier attempts, with the hashes of their files. With {}, hashes are not
            checked.
        artifacts: the study's store, which holds files of attempts on other machines, or None.
        sent: split -> hash of the checkpoint that this attempt has in the store.
    """

    study_folder: Path
    number: int
    earlier: tuple[int, ...]
    ended: Mapping[int, FrozenTrial] = field(default_factory=dict)
    artifacts: StudyArtifacts | None = None
    sent: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, study_folder: Path, trial: optuna.Trial, artifacts: StudyArtifacts | None = None) -> Attempts:
        """Return the attempts of a running trial."""
        earlier = tuple(reversed(trial.user_attrs.get(RETRY_OF, [])))
        trials = trial.study.get_trials(deepcopy=False) if earlier else []
        return cls(study_folder, trial.number, earlier, {number: trials[number] for number in earlier}, artifacts)

    def checkpoints(self, fold: int, every_s: float, on_written: Callable[[Path], None] | None = None) -> Checkpoints:
        """Return the checkpoint locations of a split, in this attempt and in earlier ones."""
        own, *earlier = (split_folder(self.study_folder, n, fold) for n in (self.number, *self.earlier))
        return Checkpoints(own, tuple(earlier), every_s, on_written)

    def fetch_checkpoints(self, fold: int) -> None:
        """Fetch the checkpoints of a split that earlier attempts left on other machines."""
        if self.artifacts is not None:
            key = f"{CHECKPOINT}{fold}"
            known = {n: t.user_attrs[key] for n, t in self.ended.items() if key in t.user_attrs}
            places = {split_folder(self.study_folder, n, fold) / CHECKPOINT_FILE: digest for n, digest in known.items()}
            self.artifacts.fetch(places)

    def send_checkpoint(self, fold: int, path: Path, remember: Callable[[str], None]) -> None:
        """Replace the split's checkpoint in the store.

        Args:
            fold: number of the split.
            path: path of the new checkpoint.
            remember: writes the hash into the database. The hash in the database always refers to an existing
                checkpoint.
        """
        if self.artifacts is None:
            return
        digest, old = self.artifacts.send_checkpoint(path), self.sent.get(fold)
        if digest:
            remember(digest)
            self.sent[fold] = digest
            self.artifacts.remove([old] if old else [])

    def take_over(self, fold: int) -> tuple[int, SplitOutcome] | None:
        """Copy a split that an earlier attempt finished. Return (attempt number, outcome), or None if there is none.

        Attempts whose settings.json differs from this trial's are skipped. This trial's settings.json must exist.
        """
        for number in self.earlier:
            source = split_folder(self.study_folder, number, fold)
            if self.artifacts is not None and number in self.ended:
                self.artifacts.fetch(dict(split_files(self.study_folder, self.ended[number], split=fold)))
            if not (source / RESULT).exists():
                continue
            try:
                self._check_settings(number)
                for name in SEALED if number in self.ended else ():
                    check_seal(self.study_folder, self.ended[number], fold, name)
                return number, self._copy(source, split_folder(self.study_folder, self.number, fold))
            except UNREADABLE as error:
                logger.warning("trial %d split %d: cannot be reused and is retrained: %s: %s",
                               number, fold, type(error).__name__, brief(str(error)))  # fmt: skip
        return None

    def discard_checkpoints(self, n_folds: int) -> None:
        """Remove the checkpoints of every split, because no attempt will resume this trial."""
        for fold in range(n_folds):
            self.checkpoints(fold, 0.0).discard()
        if self.artifacts is not None:
            names = [f"{CHECKPOINT}{fold}" for fold in range(n_folds)]
            earlier = [t.user_attrs[name] for t in self.ended.values() for name in names if name in t.user_attrs]
            self.artifacts.remove([*self.sent.values(), *earlier])

    def _check_settings(self, number: int) -> None:
        found = [
            read_record(trial_folder(self.study_folder, n) / SETTINGS, TrialSettings) for n in (number, self.number)
        ]
        compared = [plain(replace(s, train=anywhere(s.train), trial=0, code_version="")) for s in found]
        different = next(differences(*compared), None)
        if different is not None:
            name, there, here = different
            raise ValueError(f"{name} was {there} in trial {number}; it is now {here}")

    def _copy(self, source: Path, target: Path) -> SplitOutcome:
        """Copy a split's files, `result.json` last because it marks the split as finished."""
        result = (source / RESULT).read_bytes()
        outcome = outcome_of(read_record(source / RESULT, SplitResult))
        read_equity(source / EQUITY)
        for name in (BEST_POLICY, LAST_POLICY):
            copy_policy(source / name, target / name, {"trial": self.number})
        for name in (EQUITY, BAND):
            if (source / name).exists():
                write_whole(target / name, (source / name).read_bytes())
        write_whole(target / RESULT, result)
        return outcome
