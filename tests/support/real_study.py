"""A study of one trial that is really trained, a second a split, and killed where it is told to.

    python -m tests.support.real_study FOLDER N_ENVS [SPLIT UPDATE [RESULTS ARTIFACTS]]

runs it in FOLDER until it has one finished trial, or until SIGKILL after that update of that split; with results in
another folder, and an artifact store, if they are given.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from optuna.pruners import NopPruner
from optuna.study import Study

from market.sample import synthetic_dataset
from train.runner.worker import Ending, Limits, run_worker
from train.store.address import absolute_url
from train.store.artifact_files import artifacts_of
from train.store.database import load_study, open_study
from train.study.folds import FoldedData, fold_data
from train.study.interruption import Interruption
from train.study.objective import Objective, RunSettings
from train.study.progress import Reporter
from train.study.search_space import build_space
from train.study.split import SplitOutcome, run_split
from train.study.split_plan import SplitPlan

N_SPLITS, N_UPDATES = 2, 5
# Five updates of 240 samples: 240 of 1 environment, 20 of 12.
GIVEN = {"total_env_steps": 1200, "episode_bars": 64, "net_width": 32, "net_depth": 1, "n_epochs": 2,
         "rollout_samples": 240, "batch_size": 128, "learning_rate": 1e-3, "norm_action": 1.0, "lookback": 2,
         "target_kl": None, "min_cash_reserve": 0.0, "volatility_penalty": 0.0, "drawdown_penalty": 0.0}  # fmt: skip
OnUpdate = Callable[[int, int], None]  # split, updates made


@cache
def data() -> FoldedData:
    """A small market in two splits."""
    return fold_data(synthetic_dataset("5m", 1500, ("BTC", "ETH"), seed=1), SplitPlan("standard", 1, 1))


def run(
    folder: Path, n_envs: int, on_update: OnUpdate | None = None, target: int = 1, runner: Any = run_split,
    given: Mapping[str, Any] = GIVEN, results: Path | None = None, artifacts: str | None = None,
) -> tuple[Study, Ending]:  # fmt: skip
    """Run the study of `folder` to `target` finished trials; a checkpoint is kept after every update.

    Results are in `folder / "results"`, or in `results`; with an artifact store, in `artifacts`, too.
    """
    folded = data()
    url = absolute_url("sqlite:///study.db", folder)
    identity = {"data": "made up"} | ({"run": {"artifacts": artifacts}} if artifacts else {})
    study = open_study(url, "s", identity, False, NopPruner())
    space = build_space(longest_episode_bars=folded.longest_episode_bars, given=given, agent="ppo")
    interruption = Interruption()
    settings = RunSettings(n_envs, 0, -1, results or folder / "results", "test", checkpoint_every_s=0.0,
                           artifacts=artifacts_of(study))  # fmt: skip
    reporter = Reporter(study, space, N_SPLITS, target)

    def watched(settings, data, fold, out_dir, origin, on_progress=None, checkpoints=None) -> SplitOutcome:
        def step(progress) -> None:
            if on_update is not None:
                on_update(fold.index, progress.n_updates)

        return runner(settings, data, fold, out_dir, origin, step, checkpoints)

    objective = Objective(space, [folded], settings, reporter, interruption, watched)
    with interruption:
        ending = run_worker(study, objective, url, Limits(target), interruption)
    return study, ending


def open_study_in(folder: Path) -> Study:
    """The study that `run` left in `folder`."""
    return load_study(absolute_url("sqlite:///study.db", folder), "s")


def main(arguments: list[str]) -> int:
    """Run, or be killed."""
    folder, n_envs, *where = arguments
    results, artifacts = where[2:] or (None, None)

    def kill(split: int, n_updates: int) -> None:
        if [split, n_updates] == [int(number) for number in where[:2]]:
            os.kill(os.getpid(), signal.SIGKILL)

    run(Path(folder), int(n_envs), kill, results=Path(results) if results else None, artifacts=artifacts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
