"""A study's winner with everything that judging it needs."""

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
    """What the command line asks for."""

    storage: URL
    study_name: str
    deployments: Path
    results: Path | None = None  # that holds the study's folder; None: as the study says
    data_dir: Path | None = None  # None: where the study read it
    seed: int = 0  # of the refit
    gpu_id: int = -1
    min_trials: int | None = None
    while_running: bool = False
    dry_run: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Refuse a GPU that is not there."""
        n_gpus = torch.cuda.device_count()
        if not -1 <= self.gpu_id < n_gpus:
            seen = f"numbers 0 to {n_gpus - 1}" if n_gpus else "none"
            raise StudyError(f"--gpu {self.gpu_id}: torch sees GPUs: {seen}; pass --gpu -1 for the CPU")


@dataclass(frozen=True)
class Case:
    """A winner with everything that judging it needs."""

    request: Request
    stored: StoredStudy
    best: FrozenTrial
    trial: StoredTrial
    candidate: Candidate

    @property
    def bars(self) -> Bars:
        """What a look at the hold-out sees."""
        held, dataset = self.trial.data.holdout, self.trial.data.dataset
        assert held is not None
        return Bars(held.first_time_s, held.last_time_s, dataset.tickers, dataset.synthetic, dataset.source)

    def about(self) -> dict[str, Any]:
        """For the log."""
        return {
            "study": self.stored.study.study_name,
            "candidate": self.candidate.to_json(),
            "value": self.best.value,
            "data": self.trial.data.dataset.label,
            "code_version": code_version(),
        }
