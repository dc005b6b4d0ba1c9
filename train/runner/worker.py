"""One worker of a study, which runs trials until the study reaches its target."""

from __future__ import annotations

import gc
import logging
import math
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from train.messages import brief
from train.records.keys import FAILURE, MISFIT
from train.store.abandoned import fail_abandoned_trials, fail_and_retry, queue_lost_retries, queue_retry
from train.store.database import FINISHED, n_finished, sign, take_next
from train.store.heartbeat import Heartbeat
from train.store.lock import study_lock
from train.store.retrying import TrialLostError
from train.store.server_storage import read_once
from train.store.trial_end import TrialEnd, keep, tell
from train.study.interruption import Interrupted, Interruption
from train.study.objective import Objective, SplitFailedError

logger = logging.getLogger(__name__)

SAME_FAILURES_ALLOWED = 5  # consecutive equal failures
FAILURES_ALLOWED = 20  # consecutive failures of any kind
WAIT_S = 5.0  # interval between checks of other workers' trials

# (RUNNING trial, results of its study) -> context entered around the trial.
AroundTrial = Callable[[optuna.Trial, Path], AbstractContextManager[None]]


def no_hook(trial: optuna.Trial, folder: Path) -> AbstractContextManager[None]:
    """Do nothing around a trial."""
    return nullcontext()


@dataclass(frozen=True)
class Limits:
    """Limits at which a worker stops."""

    target: int  # number of finished trials in the study, including earlier runs
    timeout_s: float | None = None  # no trial starts after this time; a running trial is finished


@dataclass(frozen=True)
class Ending:
    """Reason why a worker stopped."""

    signal_number: int | None = None
    repeated_failure: str | None = None
    timed_out: bool = False
    error: str | None = None  # error of the worker itself, independent of the trial


def run_worker(
    study: optuna.Study,
    objective: Objective,
    url: URL,
    limits: Limits,
    interruption: Interruption,
    around_trial: AroundTrial = no_hook,
) -> Ending:
    """Run trials until the target, the timeout, a signal, or repeated failures.

    Args:
        study: study from `train.store.database.open_study`.
        objective: objective to evaluate.
        url: URL of the study's database. Its lock is held while trials are counted and taken.
        limits: limits at which the worker stops.
        interruption: context manager that is already active.
        around_trial: context entered with the RUNNING trial and the study's results, for example to draw a picture.
    """
    try:
        return _run_trials(study, objective, url, limits, interruption, around_trial)
    except Interrupted as signal:
        return Ending(signal_number=signal.signal_number)


def _run_trials(
    study: optuna.Study,
    objective: Objective,
    url: URL,
    limits: Limits,
    interruption: Interruption,
    around_trial: AroundTrial,
) -> Ending:
    started = time.monotonic()
    failures: list[str] = []
    is_waiting = False
    while n_finished(study) < limits.target:
        if limits.timeout_s is not None and time.monotonic() - started >= limits.timeout_s:
            return Ending(timed_out=True)
        taken = _take_trial(study, objective, url, limits.target, interruption)
        if taken is None:
            if not is_waiting:
                logger.info("other workers are running the remaining trials; waiting for them")
            is_waiting = True
            with interruption.interruptible():
                time.sleep(WAIT_S)
            continue
        is_waiting = False
        try:
            trial = _run_trial(study, objective, taken, around_trial)
        except TrialLostError:
            logger.warning("trial %d: no longer in the database, which was restored from an earlier copy; its result "
                           "is discarded", taken.number)  # fmt: skip
            continue
        with read_once(study):
            objective.reporter.trial_finished(trial)
        if _reason(trial).startswith(MISFIT):
            continue  # not counted: the next trial is unaffected, and a queue is finite
        failures = [*failures, _kind_of_failure(trial)] if trial.state == TrialState.FAIL else []
        if _is_hopeless(failures):
            return Ending(repeated_failure=_reason(trial))
    return Ending()


def _take_trial(
    study: optuna.Study, objective: Objective, url: URL, target: int, interruption: Interruption
) -> optuna.Trial | None:
    """Return a RUNNING trial of this worker, or None if other workers run all remaining trials."""
    interruption.check()
    with study_lock(url) as is_held, read_once(study):
        for number in fail_abandoned_trials(study, objective.run.folder):
            logger.info("trial %d: its process was killed; marked as failed, and its settings will be retried", number)
        queue_lost_retries(study)
        trials = study.get_trials(deepcopy=False)
        if _n_counted(trials) >= target:
            return None
        trial = take_next(study, objective.run.seed)
        was_held = is_held()
    sign(trial)  # outside the lock, so that other workers need not wait
    return trial if was_held else _given_up_if_too_many(study, url, trial, target)


def _given_up_if_too_many(study: optuna.Study, url: URL, trial: optuna.Trial, target: int) -> optuna.Trial | None:
    """Recount the trials after the server lost the lock, and give up the trial if there are too many."""
    with study_lock(url):
        if _n_counted(study.get_trials(deepcopy=False)) <= target:
            return trial
        fail_and_retry(study, _trial(study, trial.number), "not needed: other workers took the last trials",
                       was_killed=False)  # fmt: skip
        return None


def _n_counted(trials: list[FrozenTrial]) -> int:
    """Return the number of finished and running trials."""
    return sum(t.state in (*FINISHED, TrialState.RUNNING) for t in trials)


def _run_trial(
    study: optuna.Study, objective: Objective, trial: optuna.Trial, around_trial: AroundTrial
) -> FrozenTrial:
    """Run a trial of this worker and write its outcome to the database, waiting as long as necessary."""
    end: TrialEnd | None = None
    with Heartbeat(study, trial._trial_id):
        try:
            end = _end_of(objective, trial, around_trial)
            if end.state in FINISHED:
                keep(objective.run.folder, _trial(study, trial.number), end)
            tell(study, trial.number, end)
        except (UpdateFinishedTrialError, ValueError) as error:
            if _trial(study, trial.number).state == TrialState.RUNNING:
                tell(study, trial.number, TrialEnd(TrialState.FAIL))
                raise
            logger.warning("trial %d: considered dead and retried while it was still running; the retry reuses its "
                           "finished splits (%s)", trial.number, brief(str(error), 80))  # fmt: skip
        except Interrupted:
            with suppress(UpdateFinishedTrialError, ValueError):  # the end was written, but its answer was lost
                tell(study, trial.number, end or TrialEnd(TrialState.FAIL))
            if end is None:
                queue_retry(study, _trial(study, trial.number), was_killed=False)
            raise
        except BaseException:  # a bug stops the run; the trial must not stay RUNNING
            tell(study, trial.number, TrialEnd(TrialState.FAIL))
            raise
    ended = _trial(study, trial.number)
    if ended.state == TrialState.FAIL:
        _release_memory()
    return ended


def _end_of(objective: Objective, trial: optuna.Trial, around_trial: AroundTrial) -> TrialEnd:
    """Run a trial and return how it ended."""
    try:
        with around_trial(trial, objective.run.folder):
            value = objective(trial)
    except optuna.TrialPruned:
        return TrialEnd(TrialState.PRUNED)
    except SplitFailedError:
        return TrialEnd(TrialState.FAIL)
    if not math.isfinite(value):  # Optuna would accept an infinite value as the best
        trial.set_user_attr(FAILURE, f"its value is not finite ({value})")
        return TrialEnd(TrialState.FAIL)
    return TrialEnd(TrialState.COMPLETE, float(value))


def _release_memory() -> None:
    """Release the memory of a failed split, whose tensors are unreachable by now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trial(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def _reason(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(FAILURE, "unknown"))


def _kind_of_failure(trial: FrozenTrial) -> str:
    """Return the reason without its numbers, so that nan losses at different steps count as the same failure."""
    return re.sub(r"\d+", "#", _reason(trial))


def _is_hopeless(failures: list[str]) -> bool:
    """Return True if the latest failures indicate that the next trial will also fail."""
    last = failures[-SAME_FAILURES_ALLOWED:]
    return (len(last) == SAME_FAILURES_ALLOWED and len(set(last)) == 1) or len(failures) >= FAILURES_ALLOWED
