"""Objective of a study: one set of hyperparameters, evaluated on every split.

value = mean over splits of (annual Sharpe ratio of the agent - that of equal weight, same bars and fees) - 0.1 * std.

* A split makes the trial PRUNED if its Sharpe ratio is undefined (the policy never traded), or if the account was
  inactive (mean exposure below 1 %). The trial is finished and counted, but not eligible. The undefined ratio is not
  replaced. (Optuna gives a PRUNED trial its last report as its value; `best_trial` and `study.best_trial` consider
  COMPLETE trials only.)
* A trial that exceeds --max-drawdown or falls short of --min-trades on any split is COMPLETE with its value, but not
  eligible. The bounds are Optuna constraints, so `best_trial` and `study.best_trial` skip the trial.
* A failed split makes the trial FAIL with the reason, and the study continues. After running out of memory, a split is
  retried once with half the environments and rollouts twice as long. The next trial uses all environments again.
* A trial whose worker was killed is retried (`train.store.abandoned`) and resumes where it stopped
  (`train.study.retry`).
* The excess Sharpe ratio of split k is reported as step k. The pruner pairs it with the best trial's split k.
* Split k of every trial is trained from the same seed, so that the seed does not affect the comparison of settings.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna

from train.checkpoint import EVERY_S, Checkpoints
from train.config import TrainConfig
from train.device import is_out_of_memory, release_memory
from train.env_factory import resolved_rules
from train.messages import brief
from train.records.account import LEAST_EXPOSURE
from train.records.attributes import uuid_in
from train.records.defaults import MAX_DRAWDOWN, MIN_TRADES
from train.records.keys import CHECKPOINT, CODE_VERSION, FAILURE, INTERRUPTED, MISFIT, SETTINGS
from train.records.provenance import trial_code_sha256
from train.records.record_files import plain, write_json
from train.records.results import split_folder, trial_folder
from train.records.seals import FILES, file_paths, seal
from train.records.stored import DataFacts, FoldBars, PolicyOrigin, TrialSettings
from train.run import Progress, TrainingDiverged
from train.store.artifact_files import StudyArtifacts
from train.store.server_storage import read_once, together
from train.study.folds import Fold, FoldedData
from train.study.interruption import Interrupted, Interruption
from train.study.progress import Reporter
from train.study.retry import Attempts
from train.study.search_space import Resolved, Space, misfits, resolve, sample, with_half_the_envs
from train.study.split import SplitOutcome, outcome_json, run_split
from train.study.venue import policy_origin, venue_env, venue_terms

logger = logging.getLogger(__name__)

SPREAD_WEIGHT = 0.1
# Raised by bad settings, a full disk or too little memory. A bug (TypeError, KeyError, ...) is not listed: it stops
# the run.
SPLIT_ERRORS = (TrainingDiverged, ValueError, ArithmeticError, RuntimeError, MemoryError, OSError)


OUT_OF_MEMORY = "out_of_memory"  # user attribute: split -> reduced settings of its retry


class SplitRunner(Protocol):
    """A function with the signature of `train.study.split.run_split`."""

    def __call__(
        self,
        settings: Resolved,
        data: FoldedData,
        fold: Fold,
        out_dir: Path,
        origin: PolicyOrigin,
        on_progress: Callable[[Progress], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> SplitOutcome:
        """Train and score one split."""
        ...


class SplitFailedError(Exception):
    """Raised if a split cannot be trained or scored. The message gives the split and the reason."""


@dataclass(frozen=True)
class Failure:
    """Reason for a failed attempt at a split. It keeps no traceback, because the frames would keep tensors alive."""

    cause: str
    is_out_of_memory: bool


@dataclass(frozen=True)
class Bounds:
    """Requirements on every split for a trial to be eligible."""

    max_drawdown: float = 1.0  # fraction; 1 allows any drawdown
    min_trades: int = 0

    def violations(self, outcomes: Sequence[SplitOutcome]) -> dict[str, float]:
        """Return name -> violation on the worst split so far; 0 or less means no violation."""
        return {
            "max_drawdown": max(o.agent.max_drawdown for o in outcomes) - self.max_drawdown,
            "min_trades": float(self.min_trades - min(o.agent.trades for o in outcomes)),
        }


ANYTHING = Bounds()
DEFAULT_BOUNDS = Bounds(MAX_DRAWDOWN, MIN_TRADES)


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run that are not searched."""

    n_envs: int
    seed: int
    gpu_id: int
    folder: Path  # folder of the study's results
    code_version: str
    volume_30d: float | None = None  # USD; None: not given
    checkpoint_every_s: float = EVERY_S
    bounds: Bounds = ANYTHING
    rocm_settings: bool = True  # `train.rocm`
    artifacts: StudyArtifacts | None = None  # the study's store, or None


def score(excess_sharpes: Sequence[float]) -> float:
    """Return the mean over splits minus a tenth of the population standard deviation."""
    values = np.asarray(excess_sharpes, dtype=np.float64)
    return float(values.mean() - SPREAD_WEIGHT * values.std())


def split_seed(study_seed: int, fold: int) -> int:
    """Return the seed of split `fold`, which is the same in every trial."""
    return (study_seed * 1_000_003 + fold * 7_919) % 2**31


class Objective:
    """Objective function for Optuna: takes a trial and returns its value."""

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
        self._uuids: dict[str, str] = {}

    def __call__(self, trial: optuna.Trial) -> float:
        """Evaluate the trial's settings on every split.

        Raises:
            optuna.TrialPruned: the trial is clearly worse than the best one, or a Sharpe ratio is undefined.
            SplitFailedError: a split failed, or the settings cannot be written.
            Interrupted: a signal was received.
        """
        with together(trial.study):
            trial.set_user_attr(CODE_VERSION, self.run.code_version)
            self._refuse_misfits(trial)
            values = sample(self.space, trial)
            data = self.data[values["timeframe"]] if "timeframe" in values else next(iter(self.data.values()))
            for name, value in plain(data.origin).items():
                trial.set_user_attr(name, value)
        self.reporter.trial_started(trial.number, values)
        try:
            self._write_settings(trial, values, data)
        except OSError as error:  # such as a full disk; handled as in a split
            raise _failed(trial, f"{type(error).__name__}: {error}") from error
        attempts = Attempts.of(self.run.folder, trial, self.run.artifacts)
        try:
            value = self._over_splits(trial, values, data, attempts)
        except (optuna.TrialPruned, SplitFailedError):  # not Interrupted: the next attempt resumes from checkpoints
            attempts.discard_checkpoints(len(data.folds))
            raise
        attempts.discard_checkpoints(len(data.folds))
        return value

    def _refuse_misfits(self, trial: optuna.Trial) -> None:
        """Fail a trial that was queued with settings outside the search space, before any training."""
        found = misfits(self.space, trial._fixed_params)
        if found:
            raise _failed(trial, f"{MISFIT}: {'; '.join(found)}")

    def _over_splits(
        self, trial: optuna.Trial, values: Mapping[str, Any], data: FoldedData, attempts: Attempts
    ) -> float:
        excess: list[float] = []
        outcomes: list[SplitOutcome] = []
        for fold in data.folds:
            outcome = self._taken_over(trial, fold, attempts) or self._run_fold(trial, values, data, fold, attempts)
            sealed = seal(self.run.folder, trial.number, fold.index)
            self._send(trial, fold, sealed[FILES], is_first=fold is data.folds[0])
            figures = outcome_json(outcome) | sealed
            trial.set_user_attr(f"split_{fold.index}", figures)
            outcomes.append(outcome)
            try:
                excess.append(_defined(trial, outcome))
            except optuna.TrialPruned:
                self._set_constraints(trial, outcomes)  # marks a trial that lost its account, unlike one in cash
                raise
            trial.report(excess[-1], step=fold.index)
            if fold is not data.folds[-1] and _is_worse(trial):
                self._set_constraints(trial, outcomes)
                raise _pruned(trial, f"after split {fold.index}: worse than the best trial on the same splits")
        self._set_constraints(trial, outcomes)
        return score(excess)

    def _send(self, trial: optuna.Trial, fold: Fold, hashes: Mapping[str, str], is_first: bool) -> None:
        """Send a split's files to the artifact store before the database refers to them."""
        if self.run.artifacts is not None:
            paths = file_paths(self.run.folder, trial.number, fold.index)
            files = {paths[n]: digest for n, digest in hashes.items() if is_first or n != SETTINGS}
            try:
                self.run.artifacts.send(files)
            except OSError as error:  # a file cannot be read; an unreachable store is retried
                raise _failed(trial, f"split {fold.index}: {type(error).__name__}: {error}") from error

    def _set_constraints(self, trial: optuna.Trial, outcomes: Sequence[SplitOutcome]) -> None:
        """Set the constraints once per trial, because Optuna does not accept a second value."""
        for name, violation in self.run.bounds.violations(outcomes).items():
            trial.set_constraint(name, violation)

    def _taken_over(self, trial: optuna.Trial, fold: Fold, attempts: Attempts) -> SplitOutcome | None:
        """Return the outcome of this split from an earlier attempt, or None if no attempt finished the split."""
        found = attempts.take_over(fold.index)
        if found is None:
            return None
        number, outcome = found
        logger.info("trial %d split %d: reused from trial %d, which was interrupted later; excess Sharpe %+.2f",
                    trial.number, fold.index, number, outcome.excess_sharpe)  # fmt: skip
        earlier = trial.study.get_trials(deepcopy=False)[number].user_attrs.get(OUT_OF_MEMORY, {})
        _note_out_of_memory(trial, fold, earlier.get(f"split_{fold.index}"))
        return outcome

    def _run_fold(
        self, trial: optuna.Trial, values: Mapping[str, Any], data: FoldedData, fold: Fold, attempts: Attempts
    ) -> SplitOutcome:
        settings = self._resolve(values, data, fold)
        attempts.fetch_checkpoints(fold.index)
        checkpoints = attempts.checkpoints(
            fold.index, self.run.checkpoint_every_s, lambda path: self._send_checkpoint(trial, fold, attempts, path)
        )
        result = self._try(trial, settings, data, fold, checkpoints)
        n_envs = settings.train["n_envs"]
        if isinstance(result, Failure) and result.is_out_of_memory and n_envs > 1:
            release_memory()
            settings = with_half_the_envs(settings)
            smaller = {name: settings.train[name] for name in ("n_envs", "horizon_len")}
            logger.warning(
                "trial %d split %d: out of memory with %d environments; retrying with %d and rollouts of %d steps (%s)",
                trial.number, fold.index, n_envs, *smaller.values(), brief(result.cause, 100),
            )  # fmt: skip
            _note_out_of_memory(trial, fold, smaller | {"cause": result.cause})
            result = self._try(trial, settings, data, fold, checkpoints)
        if isinstance(result, Failure):
            raise _failed(trial, f"split {fold.index}: {result.cause}")
        self.reporter.split_finished(trial.number, result)
        return result

    def _send_checkpoint(self, trial: optuna.Trial, fold: Fold, attempts: Attempts, path: Path) -> None:
        """Send a split's checkpoint to the store. Signals do not interrupt the database write."""

        def remember(digest: str) -> None:
            with self._interruption.held():
                trial.set_user_attr(f"{CHECKPOINT}{fold.index}", digest)

        attempts.send_checkpoint(fold.index, path, remember)

    def _try(
        self, trial: optuna.Trial, settings: Resolved, data: FoldedData, fold: Fold, checkpoints: Checkpoints
    ) -> SplitOutcome | Failure:
        """Train and score a split. An error is returned as a value so that its frames are released."""
        out_dir = split_folder(self.run.folder, trial.number, fold.index)
        origin = self._origin(trial, settings, data, fold)
        try:
            with self._interruption.interruptible(), self.reporter.progress_bar(trial.number, settings, fold) as bar:
                outcome = self._runner(settings, data, fold, out_dir, origin, self._checking(bar), checkpoints)
            self._interruption.check()
        except Interrupted as signal:
            trial.set_user_attr(FAILURE, f"{INTERRUPTED} by {signal}")
            raise
        except SPLIT_ERRORS as error:
            logger.debug("trial %d split %d", trial.number, fold.index, exc_info=True)
            cause = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            return Failure(cause, is_out_of_memory(error))
        return outcome

    def _checking(self, bar: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
        """Return a progress callback that also checks for signals. Python drops exceptions raised in finalizers."""

        def step(progress: Progress) -> None:
            self._interruption.check()
            if bar is not None:
                bar(progress)

        return step

    def _resolve(self, values: Mapping[str, Any], data: FoldedData, fold: Fold) -> Resolved:
        seed = split_seed(self.run.seed, fold.index)
        settings = resolve(values, self.run.n_envs, seed, self.run.gpu_id, self.space.agent)
        env = settings.env | venue_env(data.dataset, self.run.volume_30d, settings.env["rules"])
        return replace(settings, env=env, train=settings.train | {"rocm_settings": self.run.rocm_settings})

    def _origin(self, trial: optuna.Trial, settings: Resolved, data: FoldedData, fold: Fold) -> PolicyOrigin:
        return policy_origin(
            data.dataset,
            study=trial.study.study_name,
            uuid=self._uuid_of(trial.study),
            trial=trial.number,
            split=fold.index,
            venue=venue_terms(data.dataset, self.run.volume_30d),
            seed=settings.train["seed"],
            code_version=self.run.code_version,
        )

    def _uuid_of(self, study: optuna.Study) -> str:
        """Return the study's uuid. It is cached, because it never changes and each read is a round trip."""
        if study.study_name not in self._uuids:
            self._uuids[study.study_name] = uuid_in(study.user_attrs)
        return self._uuids[study.study_name]

    def _write_settings(self, trial: optuna.Trial, values: Mapping[str, Any], data: FoldedData) -> None:
        """Write everything needed to repeat this trial into one file."""
        first = self._resolve(values, data, data.folds[0])
        seeds = [split_seed(self.run.seed, fold.index) for fold in data.folds]
        settings = TrialSettings(
            study=trial.study.study_name,
            trial=trial.number,
            sampled=dict(values),
            train=asdict(TrainConfig(**first.train)) | {"seed": seeds},
            env=first.env,
            venue=venue_terms(data.dataset, self.run.volume_30d),
            data=_data_facts(data),
            folds=tuple(FoldBars(**vars(fold)) for fold in data.folds),
            purge_bars=data.purge_bars,
            embargo_bars=data.embargo_bars,
            code_version=self.run.code_version,
            code_sha256=trial_code_sha256(),
        )
        # The file has every rule; the record has only the rules that readers use.
        content = plain(settings) | {"env_resolved": resolved_rules(first.env)}
        write_json(trial_folder(self.run.folder, trial.number) / SETTINGS, content)


def _data_facts(data: FoldedData) -> DataFacts:
    set_ = data.dataset
    return DataFacts(
        label=set_.label,
        sha256=set_.sha256,
        parent_sha256=data.parent_sha256,
        tickers=set_.tickers,
        source=set_.source,
        synthetic=set_.synthetic,
    )


def _note_out_of_memory(trial: optuna.Trial, fold: Fold, smaller: Mapping[str, Any] | None) -> None:
    """Store the reduced settings of a retried split in the trial's attributes."""
    if smaller is not None:
        noted = trial.user_attrs.get(OUT_OF_MEMORY, {})
        trial.set_user_attr(OUT_OF_MEMORY, noted | {f"split_{fold.index}": dict(smaller)})


def _defined(trial: optuna.Trial, outcome: SplitOutcome) -> float:
    """Return the split's excess Sharpe ratio, or prune the trial if it is undefined or the account was inactive."""
    if math.isfinite(outcome.excess_sharpe):
        if outcome.agent.exposure >= LEAST_EXPOSURE:
            return outcome.excess_sharpe
        raise _pruned(
            trial,
            f"split {outcome.fold}: inactive, its mean exposure of {outcome.agent.exposure:.3%} is below "
            f"{LEAST_EXPOSURE:.0%}",
        )
    if not math.isfinite(outcome.equal_weight.sharpe):
        raise _pruned(
            trial, f"split {outcome.fold}: the Sharpe ratio of equal weight is undefined, because prices are constant"
        )
    reason = "the policy never traded" if outcome.agent.trades == 0 else "its returns are constant"
    raise _pruned(trial, f"split {outcome.fold}: the agent's Sharpe ratio is undefined, because {reason}")


def _is_worse(trial: optuna.Trial) -> bool:
    """Return True if the pruner stops the trial. The pruner reads all trials several times, so they are cached."""
    with read_once(trial.study):
        return trial.should_prune()


def _failed(trial: optuna.Trial, reason: str) -> SplitFailedError:
    trial.set_user_attr(FAILURE, reason)
    return SplitFailedError(reason)


def _pruned(trial: optuna.Trial, reason: str) -> optuna.TrialPruned:
    trial.set_user_attr("pruned", reason)
    return optuna.TrialPruned(reason)
