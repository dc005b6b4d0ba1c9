"""The objective of a study: one setting, tried on every split.

value = mean over splits of (agent's annualised Sharpe - equal-weight portfolio's, same bars and fees) - 0.1 * std.

* A split whose Sharpe is undefined (the policy never traded, so its account never moved), or whose account was hardly
  ever in the market (mean exposure under 1 %), makes the trial PRUNED with the reason: finished, counted, never best.
  Nothing is put in the split's place. (Optuna gives every PRUNED trial its last report, an earlier split's excess, as
  its value; `best_trial` and `study.best_trial` look at COMPLETE trials only.)
* A split that fails makes the trial FAIL with the reason; the study goes on.
* Every split's excess Sharpe is reported as step k, where the pruner pairs it with the best trial's split k.
* Split k of every trial trains from the same seed, so settings are compared on equal luck.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from train.config import TrainConfig
from train.env_factory import resolved_rules
from train.run import Progress, TrainingDiverged
from train.study.data import Fold, FoldedData
from train.study.interruption import Interrupted, Interruption
from train.study.progress import Reporter
from train.study.results import split_folder, trial_folder, write_json
from train.study.search_space import Resolved, Space, resolve, sample
from train.study.split_run import SplitOutcome, outcome_json, run_split
from train.study.storage import CODE_VERSION, FAILURE, sign_trial
from train.study.venue import venue_env, venue_json

logger = logging.getLogger(__name__)

SPREAD_WEIGHT = 0.1
# Mean share of equity in coins. A Sharpe ratio does not see the size of positions: 10 dollars that rose would outrank
# every account that was really invested.
LEAST_EXPOSURE = 0.01
# What a bad setting, a full disk or too little memory raises. A mistake in the program (TypeError, KeyError, ...) is
# not here: it stops the run.
SPLIT_ERRORS = (TrainingDiverged, ValueError, ArithmeticError, RuntimeError, MemoryError, OSError)

SplitRunner = Callable[
    [Resolved, FoldedData, Fold, Path, Mapping[str, Any], Callable[[Progress], None] | None], SplitOutcome
]


class SplitFailedError(Exception):
    """A split that could not be trained or scored; the message says which and why."""


@dataclass(frozen=True)
class RunSettings:
    """How trials are run, beside what is searched."""

    n_envs: int
    seed: int
    gpu_id: int
    folder: Path  # the study's results
    code_version: str
    volume_30d: float | None = None  # USD, None: not said


def score(excess_sharpes: Sequence[float]) -> float:
    """Mean minus a tenth of the (population) standard deviation over the splits."""
    values = np.asarray(excess_sharpes, dtype=np.float64)
    return float(values.mean() - SPREAD_WEIGHT * values.std())


def split_seed(study_seed: int, fold: int) -> int:
    """Seed of split `fold`, the same in every trial."""
    return (study_seed * 1_000_003 + fold * 7_919) % 2**31


class Objective:
    """Called by Optuna with a trial; returns its value."""

    def __init__(
        self,
        space: Space,
        data: Sequence[FoldedData],
        run: RunSettings,
        reporter: Reporter,
        interruption: Interruption,
        runner: SplitRunner = run_split,
    ) -> None:
        self.space, self.run, self.reporter = space, run, reporter
        self.data = {d.timeframe: d for d in data}
        self._interruption, self._runner = interruption, runner

    def __call__(self, trial: optuna.Trial) -> float:
        """Try the trial's settings on every split.

        Raises:
            optuna.TrialPruned: clearly worse than the best so far, or a Sharpe that is not defined.
            SplitFailedError: a split that failed.
            Interrupted: a signal.
        """
        sign_trial(trial)
        trial.set_user_attr(CODE_VERSION, self.run.code_version)
        values = sample(self.space, trial)
        data = self.data[values["timeframe"]] if "timeframe" in values else next(iter(self.data.values()))
        for name, value in data.origin.items():
            trial.set_user_attr(name, value)
        self.reporter.trial_started(trial.number, values)
        self._write_settings(trial, values, data)
        excess: list[float] = []
        for fold in data.folds:
            outcome = self._run_fold(trial, values, data, fold)
            trial.set_user_attr(f"split_{fold.index}", outcome_json(outcome))
            self.reporter.split_finished(trial.number, outcome)
            excess.append(_defined(trial, outcome))
            trial.report(excess[-1], step=fold.index)
            if fold is not data.folds[-1] and trial.should_prune():
                raise _pruned(trial, f"after split {fold.index}: worse than the best trial on the same splits")
        return score(excess)

    def _run_fold(self, trial: optuna.Trial, values: Mapping[str, Any], data: FoldedData, fold: Fold) -> SplitOutcome:
        settings = self._resolve(values, data, fold)
        out_dir = split_folder(self.run.folder, trial.number, fold.index)
        metadata = self._metadata(trial, settings, data, fold)
        try:
            with self._interruption.interruptible(), self.reporter.progress_bar(trial.number, settings, fold) as step:
                outcome = self._runner(settings, data, fold, out_dir, metadata, step)
            self._interruption.check()
        except Interrupted as signal:
            trial.set_user_attr(FAILURE, f"interrupted by {signal}")
            raise
        except SPLIT_ERRORS as error:
            reason = f"split {fold.index}: {type(error).__name__}: {str(error).strip() or 'no message'}"
            trial.set_user_attr(FAILURE, reason)
            logger.debug("trial %d, %s", trial.number, reason, exc_info=True)
            raise SplitFailedError(reason) from None  # its traceback would keep the split's tensors alive
        return outcome

    def _resolve(self, values: Mapping[str, Any], data: FoldedData, fold: Fold) -> Resolved:
        settings = resolve(values, self.run.n_envs, split_seed(self.run.seed, fold.index), self.run.gpu_id)
        rules = settings.env["rules"]
        return replace(settings, env=settings.env | venue_env(data.dataset, self.run.volume_30d, rules))

    def _metadata(self, trial: optuna.Trial, settings: Resolved, data: FoldedData, fold: Fold) -> dict[str, Any]:
        """What a policy file says of where it comes from."""
        return {
            "study": trial.study.study_name,
            "uuid": trial.study.user_attrs.get("uuid"),
            "trial": trial.number,
            "split": fold.index,
            "data_sha256": data.dataset.sha256,
            "data_source": data.dataset.source,
            "synthetic": data.dataset.synthetic,
            "tickers": list(data.dataset.tickers),
            "feature_names": list(data.dataset.feature_names),
            "bar_seconds": data.dataset.bar_seconds,
            "venue": venue_json(data.dataset, self.run.volume_30d),
            "seed": settings.train["seed"],
            "code_version": self.run.code_version,
        }

    def _write_settings(self, trial: optuna.Trial, values: Mapping[str, Any], data: FoldedData) -> None:
        """Everything another run needs to repeat this trial; one file."""
        first = self._resolve(values, data, data.folds[0])
        seeds = [split_seed(self.run.seed, fold.index) for fold in data.folds]
        content = {
            "study": trial.study.study_name,
            "trial": trial.number,
            "sampled": dict(values),
            "train": asdict(TrainConfig(**first.train)) | {"seed": seeds},
            "env": first.env,  # what the simulator is called with
            "env_resolved": resolved_rules(first.env),  # fees, capital and every rule
            "venue": venue_json(data.dataset, self.run.volume_30d),
            "data": self._data_json(data),
            "folds": [vars(fold) for fold in data.folds],
            "purge_bars": data.purge_bars,
            "embargo_bars": data.embargo_bars,
            "code_version": self.run.code_version,
        }
        write_json(trial_folder(self.run.folder, trial.number) / "settings.json", content)

    def _data_json(self, data: FoldedData) -> dict[str, Any]:
        set_ = data.dataset
        return {
            "label": set_.label,
            "sha256": set_.sha256,
            "parent_sha256": data.parent_sha256,
            "tickers": list(set_.tickers),
            "source": set_.source,
            "synthetic": set_.synthetic,
        }


def _defined(trial: optuna.Trial, outcome: SplitOutcome) -> float:
    """The split's excess Sharpe, if there is one and the account was in the market."""
    if math.isfinite(outcome.excess_sharpe):
        if outcome.agent.exposure >= LEAST_EXPOSURE:
            return outcome.excess_sharpe
        raise _pruned(
            trial,
            f"split {outcome.fold}: mean exposure {outcome.agent.exposure:.3%} is under {LEAST_EXPOSURE:.0%}, so its "
            f"Sharpe says nothing of an invested account",
        )
    if not math.isfinite(outcome.equal_weight.sharpe):
        raise _pruned(
            trial, f"split {outcome.fold}: the equal-weight portfolio's Sharpe is not defined, prices stand still"
        )
    reason = "the policy never traded" if outcome.agent.trades == 0 else "its returns do not vary"
    raise _pruned(trial, f"split {outcome.fold}: the agent's Sharpe is not defined, {reason}")


def _pruned(trial: optuna.Trial, reason: str) -> optuna.TrialPruned:
    trial.set_user_attr("pruned", reason)
    return optuna.TrialPruned(reason)
