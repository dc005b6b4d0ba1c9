"""One worker of a study: takes trials until the study has as many finished ones as it should."""

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

from train.records.keys import FAILURE, MISFIT
from train.store.abandoned import fail_abandoned_trials, fail_and_retry, queue_lost_retries, queue_retry
from train.store.database import FINISHED, n_finished, sign, take_next
from train.store.heartbeat import Heartbeat
from train.store.lock import study_lock
from train.store.server_storage import read_once
from train.store.trial_end import TrialEnd, keep, tell
from train.study.interruption import Interrupted, Interruption
from train.study.objective import Objective, SplitFailedError

logger = logging.getLogger(__name__)

SAME_FAILURES_ALLOWED = 5  # in a row
FAILURES_ALLOWED = 20  # in a row, whatever they are
WAIT_S = 5.0  # between looks at what other workers do

# (RUNNING trial, results of its study) -> entered around the trial.
AroundTrial = Callable[[optuna.Trial, Path], AbstractContextManager[None]]


def no_hook(trial: optuna.Trial, folder: Path) -> AbstractContextManager[None]:
    """Do nothing around a trial."""
    return nullcontext()


@dataclass(frozen=True)
class Limits:
    """When a worker stops."""

    target: int  # finished trials in the study, not in this run
    timeout_s: float | None = None  # no trial begins after this; the one that runs is finished


@dataclass(frozen=True)
class Ending:
    """Why a worker stopped."""

    signal_number: int | None = None
    repeated_failure: str | None = None
    timed_out: bool = False
    error: str | None = None  # of the worker itself, which no other trial would mend


def run_worker(
    study: optuna.Study,
    objective: Objective,
    url: URL,
    limits: Limits,
    interruption: Interruption,
    around_trial: AroundTrial = no_hook,
) -> Ending:
    """Run trials until the target, the timeout, a signal, or the same failure five times in a row.

    Args:
        study: opened by `train.store.database.open_study`.
        objective: what to run.
        url: of the study's database; counting and taking a trial happens under its lock.
        limits: when to stop.
        interruption: must be in use.
        around_trial: entered with the RUNNING trial and the study's results; such as what draws its picture.
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
                logger.info("other workers run the trials that are left; waiting for them")
            is_waiting = True
            with interruption.interruptible():
                time.sleep(WAIT_S)
            continue
        is_waiting = False
        trial = _run_trial(study, objective, taken, around_trial)
        with read_once(study):
            objective.reporter.trial_finished(trial)
        if _reason(trial).startswith(MISFIT):
            continue  # says nothing of the next one, and a queue ends
        failures = [*failures, _kind_of_failure(trial)] if trial.state == TrialState.FAIL else []
        if _is_hopeless(failures):
            return Ending(repeated_failure=_reason(trial))
    return Ending()


def _take_trial(
    study: optuna.Study, objective: Objective, url: URL, target: int, interruption: Interruption
) -> optuna.Trial | None:
    """A trial of ours, RUNNING and signed; None when other workers run as many as are still wanted."""
    interruption.check()
    with study_lock(url) as is_held, read_once(study):
        for number in fail_abandoned_trials(study, objective.run.folder):
            logger.info("trial %d: its process was killed; marked failed, its settings will be tried again", number)
        queue_lost_retries(study)
        trials = study.get_trials(deepcopy=False)
        if _n_counted(trials) >= target:
            return None
        trial = take_next(study, objective.run.seed)
        was_held = is_held()
    sign(trial)  # which the others need not wait for
    return trial if was_held else _given_up_if_too_many(study, url, trial, target)


def _given_up_if_too_many(study: optuna.Study, url: URL, trial: optuna.Trial, target: int) -> optuna.Trial | None:
    """The server forgot the lock while the trial was taken, and another worker may have counted without it."""
    with study_lock(url):
        if _n_counted(study.get_trials(deepcopy=False)) <= target:
            return trial
        fail_and_retry(study, _trial(study, trial.number), "not needed: others had taken the last trials",
                       was_killed=False)  # fmt: skip
        return None


def _n_counted(trials: list[FrozenTrial]) -> int:
    """Finished trials and those that are to become so."""
    return sum(t.state in (*FINISHED, TrialState.RUNNING) for t in trials)


def _run_trial(
    study: optuna.Study, objective: Objective, trial: optuna.Trial, around_trial: AroundTrial
) -> FrozenTrial:
    """Run a trial that is ours and tell the database how it ended, however long that takes."""
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
            logger.warning("trial %d: was taken for dead and queued again while it ran (%s); the new one takes over "
                           "the splits that it has finished", trial.number, error)  # fmt: skip
        except Interrupted:
            with suppress(UpdateFinishedTrialError, ValueError):  # it was told, and only the answer was lost
                tell(study, trial.number, end or TrialEnd(TrialState.FAIL))
            if end is None:
                queue_retry(study, _trial(study, trial.number), was_killed=False)
            raise
        except BaseException:  # a mistake in the program stops the run; the trial is not left RUNNING
            tell(study, trial.number, TrialEnd(TrialState.FAIL))
            raise
    ended = _trial(study, trial.number)
    if ended.state == TrialState.FAIL:
        _release_memory()
    return ended


def _end_of(objective: Objective, trial: optuna.Trial, around_trial: AroundTrial) -> TrialEnd:
    """Run it."""
    try:
        with around_trial(trial, objective.run.folder):
            value = objective(trial)
    except optuna.TrialPruned:
        return TrialEnd(TrialState.PRUNED)
    except SplitFailedError:
        return TrialEnd(TrialState.FAIL)
    if not math.isfinite(value):  # Optuna would take an infinite one for the best
        trial.set_user_attr(FAILURE, f"its value is {value}")
        return TrialEnd(TrialState.FAIL)
    return TrialEnd(TrialState.COMPLETE, float(value))


def _release_memory() -> None:
    """Give back what a failed split held (out of memory, say): its tensors are unreachable by now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trial(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def _reason(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(FAILURE, "unknown"))


def _kind_of_failure(trial: FrozenTrial) -> str:
    """The reason without its numbers: a loss that is nan at step 17 or 40 is the same failure."""
    return re.sub(r"\d+", "#", _reason(trial))


def _is_hopeless(failures: list[str]) -> bool:
    """Whether the failures in a row so far say that the next trial will fail too."""
    last = failures[-SAME_FAILURES_ALLOWED:]
    return (len(last) == SAME_FAILURES_ALLOWED and len(set(last)) == 1) or len(failures) >= FAILURES_ALLOWED
