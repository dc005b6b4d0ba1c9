"""Best trial of a study, together with everything needed to judge it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL

from train.deploy.decisions import Bars, Candidate
from train.deploy.gates import Limits
from train.findings.stored_trial import StoredStudy, StoredTrial
from train.records.errors import StudyError
from train.records.provenance import code_version


@dataclass(frozen=True)
class Request:
    """Settings from the command line."""

    storage: URL
    study_name: str
    deployments: Path
    results: Path | None = None  # parent of the study's results folder; None uses the path stored in the study
    data_dir: Path | None = None  # None uses the study's own data folder
    seed: int = 0  # seed of the refit
    gpu_id: int = -1
    min_trials: int | None = None
    while_running: bool = False
    dry_run: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Reject a GPU that does not exist."""
        n_gpus = torch.cuda.device_count()
        if not -1 <= self.gpu_id < n_gpus:
            seen = f"torch finds GPUs 0 to {n_gpus - 1}" if n_gpus else "torch finds no GPU"
            raise StudyError(f"--gpu {self.gpu_id}: {seen}; pass --gpu -1 for the CPU")


@dataclass(frozen=True)
class Case:
    """Best trial of a study, together with everything needed to judge it."""

    request: Request
    stored: StoredStudy
    best: FrozenTrial
    trial: StoredTrial
    candidate: Candidate

    @property
    def bars(self) -> Bars:
        """The bars that an evaluation on the hold-out uses."""
        held, dataset = self.trial.data.holdout, self.trial.data.dataset
        assert held is not None
        return Bars(held.first_time_s, held.last_time_s, dataset.tickers, dataset.synthetic, dataset.source)

    def about(self) -> dict[str, Any]:
        """Return the description of the candidate for the decision log."""
        return {
            "study": self.stored.study.study_name,
            "candidate": self.candidate.to_json(),
            "value": self.best.value,
            "data": self.trial.data.dataset.label,
            "code_version": code_version(),
        }
