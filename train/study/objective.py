"""The objective of a study: one setting, tried on every split.

value = mean over splits of (agent's annualised Sharpe - equal-weight portfolio's, same bars and fees) - 0.1 * std.

* A split whose Sharpe is undefined (the policy never traded, so its account never moved), or whose account was hardly
  ever in the market (mean exposure under 1 %), makes the trial PRUNED with the reason: finished, counted, never best.
  Nothing is put in the split's place. (Optuna gives every PRUNED trial its last report, an earlier split's excess, as
  its value; `best_trial` and `study.best_trial` look at COMPLETE trials only.)
* A trial that loses more than --max-drawdown, or trades less than --min-trades, on any split is COMPLETE with its value
  and never best (Optuna's constraints; `best_trial` and `study.best_trial` pass it over).
* A split that fails makes the trial FAIL with the reason; the study goes on. One that ran out of memory is tried once
  more with half the environments and rollouts twice as long, so the setting stays what it is; the next trial has all.
* A trial that was killed is tried again (`train.store.abandoned`) and goes on where it stood (`train.study.retry`).
* Every split's excess Sharpe is reported as step k, where the pruner pairs it with the best trial's split k.
* Split k of every trial trains from the same seed, so settings are compared on equal luck.
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
from train.study.progress import Reporter, outcome_text
from train.study.retry import Attempts
from train.study.search_space import Resolved, Space, misfits, resolve, sample, with_half_the_envs
from train.study.split import SplitOutcome, outcome_json, run_split
from train.study.venue import policy_origin, venue_env, venue_terms

logger = logging.getLogger(__name__)

SPREAD_WEIGHT = 0.1
# What a bad setting, a full disk or too little memory raises. A mistake in the program (TypeError, KeyError, ...) is
# not here: it stops the run.
SPLIT_ERRORS = (TrainingDiverged, ValueError, ArithmeticError, RuntimeError, MemoryError, OSError)


OUT_OF_MEMORY = "out_of_memory"  # user attribute: split -> what it was tried again with


class SplitRunner(Protocol):
    """As `train.study.split.run_split`."""

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
        """Train and score."""
        ...


class SplitFailedError(Exception):
    """A split that could not be trained or scored; the message says which and why."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt at a split ended. It keeps no traceback, whose frames would keep the split's tensors alive."""

    cause: str
    is_out_of_memory: bool


@dataclass(frozen=True)
class Bounds:
    """What a trial must keep on every split to become the best."""

    max_drawdown: float = 1.0  # fraction; 1 allows every one
    min_trades: int = 0

    def violations(self, outcomes: Sequence[SplitOutcome]) -> dict[str, float]:
        """Name -> by how much the worst split so far is beyond the bound; at most 0 where it is kept."""
        return {
            "max_drawdown": max(o.agent.max_drawdown for o in outcomes) - self.max_drawdown,
            "min_trades": float(self.min_trades - min(o.agent.trades for o in outcomes)),
        }


ANYTHING = Bounds()
DEFAULT_BOUNDS = Bounds(MAX_DRAWDOWN, MIN_TRADES)


@dataclass(frozen=True)
class RunSettings:
    """How trials are run, beside what is searched."""

    n_envs: int
    seed: int
    gpu_id: int
    folder: Path  # the study's results
    code_version: str
    volume_30d: float | None = None  # USD, None: not said
    checkpoint_every_s: float = EVERY_S
    bounds: Bounds = ANYTHING
    rocm_settings: bool = True  # `train.rocm`
    artifacts: StudyArtifacts | None = None  # the study's store; None without one


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
        self._uuids: dict[str, str] = {}

    def __call__(self, trial: optuna.Trial) -> float:
        """Try the trial's settings on every split.

        Raises:
            optuna.TrialPruned: clearly worse than the best so far, or a Sharpe that is not defined.
            SplitFailedError: a split that failed, or settings that cannot be written.
            Interrupted: a signal.
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
        except OSError as error:  # a full disk, say, as in a split
            raise _failed(trial, f"{type(error).__name__}: {error}") from error
        attempts = Attempts.of(self.run.folder, trial, self.run.artifacts)
        try:
            value = self._over_splits(trial, values, data, attempts)
        except (optuna.TrialPruned, SplitFailedError):  # not Interrupted: the next attempt goes on from there
            attempts.discard_checkpoints(len(data.folds))
            raise
        attempts.discard_checkpoints(len(data.folds))
        return value

    def _refuse_misfits(self, trial: optuna.Trial) -> None:
        """A trial that somebody queued with settings of another space fails, and costs nothing else."""
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
                self._set_constraints(trial, outcomes)  # a trial that lost its account did not stay in cash
                raise
            trial.report(excess[-1], step=fold.index)
            if fold is not data.folds[-1] and _is_worse(trial):
                self._set_constraints(trial, outcomes)
                raise _pruned(trial, f"after split {fold.index}: worse than the best trial on the same splits")
        self._set_constraints(trial, outcomes)
        return score(excess)

    def _send(self, trial: optuna.Trial, fold: Fold, hashes: Mapping[str, str], is_first: bool) -> None:
        """Send a split's files to the artifact store before the database names them; settings.json once a trial."""
        if self.run.artifacts is not None:
            paths = file_paths(self.run.folder, trial.number, fold.index)
            files = {paths[n]: digest for n, digest in hashes.items() if is_first or n != SETTINGS}
            try:
                self.run.artifacts.send(files)
            except OSError as error:  # a file cannot be read; a store that is away is waited for
                raise _failed(trial, f"split {fold.index}: {type(error).__name__}: {error}") from error

    def _set_constraints(self, trial: optuna.Trial, outcomes: Sequence[SplitOutcome]) -> None:
        """Once a trial: Optuna takes no second value."""
        for name, violation in self.run.bounds.violations(outcomes).items():
            trial.set_constraint(name, violation)

    def _taken_over(self, trial: optuna.Trial, fold: Fold, attempts: Attempts) -> SplitOutcome | None:
        """What an earlier attempt at this trial has finished."""
        found = attempts.take_over(fold.index)
        if found is None:
            return None
        number, outcome = found
        logger.info("trial %d split %d: taken over from trial %d, which was killed later: %s",
                    trial.number, fold.index, number, outcome_text(outcome))  # fmt: skip
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
                "trial %d split %d: out of memory with %d environments (%s); tried again with %d, and rollouts of %d "
                "steps", trial.number, fold.index, n_envs, result.cause, *smaller.values(),
            )  # fmt: skip
            _note_out_of_memory(trial, fold, smaller | {"cause": result.cause})
            result = self._try(trial, settings, data, fold, checkpoints)
        if isinstance(result, Failure):
            raise _failed(trial, f"split {fold.index}: {result.cause}")
        self.reporter.split_finished(trial.number, result)
        return result

    def _send_checkpoint(self, trial: optuna.Trial, fold: Fold, attempts: Attempts, path: Path) -> None:
        """Send a split's checkpoint; a signal does not break into the write to the database."""

        def remember(digest: str) -> None:
            with self._interruption.held():
                trial.set_user_attr(f"{CHECKPOINT}{fold.index}", digest)

        attempts.send_checkpoint(fold.index, path, remember)

    def _try(
        self, trial: optuna.Trial, settings: Resolved, data: FoldedData, fold: Fold, checkpoints: Checkpoints
    ) -> SplitOutcome | Failure:
        """Train and score a split; what went wrong comes back as a value, when its frames are gone."""
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
        """Also looks for a signal: Python drops an exception that a handler raises inside a finalizer."""

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
        """The study's uuid, read once: it never changes, and every reading is a round trip."""
        if study.study_name not in self._uuids:
            self._uuids[study.study_name] = uuid_in(study.user_attrs)
        return self._uuids[study.study_name]

    def _write_settings(self, trial: optuna.Trial, values: Mapping[str, Any], data: FoldedData) -> None:
        """Everything another run needs to repeat this trial; one file."""
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
        # The file has every rule; the record those that readers use.
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
    """Keep what a split was tried again with among the trial's attributes."""
    if smaller is not None:
        noted = trial.user_attrs.get(OUT_OF_MEMORY, {})
        trial.set_user_attr(OUT_OF_MEMORY, noted | {f"split_{fold.index}": dict(smaller)})


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


def _is_worse(trial: optuna.Trial) -> bool:
    """The pruner's answer; it looks at all trials several times."""
    with read_once(trial.study):
        return trial.should_prune()


def _failed(trial: optuna.Trial, reason: str) -> SplitFailedError:
    trial.set_user_attr(FAILURE, reason)
    return SplitFailedError(reason)


def _pruned(trial: optuna.Trial, reason: str) -> optuna.TrialPruned:
    trial.set_user_attr("pruned", reason)
    return optuna.TrialPruned(reason)
