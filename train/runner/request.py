"""Request for a study: the validated values of the command line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.engine import URL

from train.records.errors import StudyError
from train.study.objective import DEFAULT_BOUNDS, Bounds
from train.study.search_space import LEAST_EPISODE_BARS
from train.study.search_tables import TABLES
from train.study.split_plan import SplitPlan

LEAST_BREAK_STEP = 256


@dataclass(frozen=True)
class StudyRequest:
    """Values of the command line, validated as far as possible without reading files."""

    n_trials: int
    study_name: str | None  # None: derived from the timeframe
    storage: URL
    results_dir: Path
    data_dir: Path
    plan: SplitPlan
    agent: str | None = None  # None: the study's own, or the default for a new study
    timeframe: str | None = None  # None: the dataset's own
    tickers: tuple[str, ...] | None = None
    gpu_id: int = -1
    gpu_ids: tuple[int, ...] = ()  # several GPUs are assigned to workers in turn; gpu_id is the first
    workers: int = 1  # number of processes on this machine
    n_envs: int | None = 1  # None: the study's own, or chosen automatically for a new study
    break_step: int | None = None
    episode_bars: int | None = None
    use_best_ranges: bool = False
    pruner: str = "wilcoxon"
    seed: int = 0
    volume_30d: float | None = None  # USD; None: not given, which counts as 0 if the venue sets the fee
    bounds: Bounds = DEFAULT_BOUNDS
    timeout_s: float | None = None
    resume: bool = False
    rocm_settings: bool = True  # see `train.rocm`; AMD GPUs only
    artifacts: str | None = None  # URL for `train.store.artifact_store`; None: the study's own, or none

    def __post_init__(self) -> None:
        """Raise StudyError for invalid values, naming their flag."""
        for flag, value, least in (
            ("--n-trials", self.n_trials, 1),
            ("--n-envs", self.n_envs, 1),
            ("--break-step", self.break_step, LEAST_BREAK_STEP),
            ("--episode-bars", self.episode_bars, LEAST_EPISODE_BARS),
            ("--seed", self.seed, 0),
            ("--gpu", min((self.gpu_id, *self.gpu_ids)), -1),
            ("--workers", self.workers, 1),
            ("--min-trades", self.bounds.min_trades, 0),
        ):
            if value is not None and value < least:
                raise StudyError(f"{flag} must be at least {least}; received {value}")
        if self.agent is not None and self.agent not in TABLES:
            raise StudyError(f"--agent must be one of {', '.join(TABLES)}; received {self.agent}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise StudyError(f"--timeout must be above 0 seconds; received {self.timeout_s}")
        if not 0.0 < self.bounds.max_drawdown <= 1.0:
            raise StudyError(
                f"--max-drawdown must be a fraction, above 0 and at most 1; received {self.bounds.max_drawdown:g}"
            )
        if self.volume_30d is not None and not 0.0 <= self.volume_30d < math.inf:
            raise StudyError(f"--volume-30d must be at least 0 USD; received {self.volume_30d:g}")
        if self.study_name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", self.study_name):
            raise StudyError(
                "--study-name is also a folder name, so it must consist of 1 to 100 letters, digits, _, - or . and "
                f"must not start with - or .; received {self.study_name!r}"
            )
        self._check_gpu()

    def _check_gpu(self) -> None:
        n_gpus = torch.cuda.device_count()
        for gpu_id in (self.gpu_id, *self.gpu_ids):
            if gpu_id >= n_gpus:
                seen = f"GPUs 0 to {n_gpus - 1}" if n_gpus else "no GPU"
                raise StudyError(f"--gpu {gpu_id}: not available (torch finds {seen}); pass --gpu -1 for the CPU")
        if len(self.gpu_ids) > self.workers:
            raise StudyError(
                f"--gpu {','.join(map(str, self.gpu_ids))} names more GPUs than workers, and a worker uses one GPU; "
                f"pass --workers {len(self.gpu_ids)}"
            )

    @property
    def given(self) -> dict[str, Any]:
        """Settings fixed on the command line. They are not sampled."""
        given = {"total_env_steps": self.break_step, "episode_bars": self.episode_bars}
        return {name: value for name, value in given.items() if value is not None}
