"""One worker of a study: takes trials until the study has as many finished ones as it should."""

from __future__ import annotations

import gc
import logging
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import URL

from train.study.artifacts import picture_of
from train.study.interruption import Interrupted, Interruption
from train.study.objective import Objective, SplitFailedError
from train.study.storage import (
    FAILURE,
    fail_abandoned_trials,
    make_sampler,
    n_finished,
    queue_retry,
    study_lock,
)

logger = logging.getLogger(__name__)

SAME_FAILURES_ALLOWED = 5  # in a row
FAILURES_ALLOWED = 20  # in a row, whatever they are
WAIT_S = 5.0  # between looks at what other workers do


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


def run_worker(
    study: optuna.Study,
    objective: Objective,
    url: URL,
    limits: Limits,
    interruption: Interruption,
) -> Ending:
    """Run trials until the target, the timeout, a signal, or the same failure five times in a row.

    Args:
        study: opened by `train.study.storage.open_study`.
        objective: what to run.
        url: of the study's database; counting and taking a trial happens under its lock.
        limits: when to stop.
        interruption: must be in use.
    """
    started = time.monotonic()
    failures: list[str] = []
    is_waiting = False
    for number in fail_abandoned_trials(study):
        logger.info("trial %d: its process was killed; marked failed, its settings will be tried again", number)
    while n_finished(study) < limits.target:
        if limits.timeout_s is not None and time.monotonic() - started >= limits.timeout_s:
            return Ending(timed_out=True)
        try:
            interruption.check()
            trial = _next_trial(study, objective, url, limits.target)
            if trial is None and not is_waiting:
                logger.info("other workers run the trials that are left; waiting for them")
            is_waiting = trial is None
            if trial is None:
                _wait_for_others(study, interruption)
                continue
        except Interrupted as signal:
            return Ending(signal_number=signal.signal_number)
        objective.reporter.trial_finished(trial)
        failures = [*failures, _kind_of_failure(trial)] if trial.state == TrialState.FAIL else []
        if _is_hopeless(failures):
            return Ending(repeated_failure=_reason(trial))
    return Ending()


def _next_trial(study: optuna.Study, objective: Objective, url: URL, target: int) -> FrozenTrial | None:
    """Take and run one trial; None when other workers run as many as are still wanted."""
    numbers: list[int] = []
    with ExitStack() as lock:
        lock.enter_context(study_lock(url))
        trials = study.get_trials(deepcopy=False)
        if n_finished(study) + sum(t.state == TrialState.RUNNING for t in trials) >= target:
            return None
        study.sampler = make_sampler(objective.run.seed, len(trials))

        def taken(trial: optuna.Trial) -> float:
            lock.close()  # the trial is RUNNING and counts; others may take theirs
            numbers.append(trial.number)
            with picture_of(trial, objective.run.folder):
                return objective(trial)

        try:
            study.optimize(taken, n_trials=1, catch=(SplitFailedError,))
        except Interrupted:
            queue_retry(study, _trial(study, numbers[0]))
            raise
    trial = _trial(study, numbers[0])
    if trial.state == TrialState.FAIL:
        _release_memory()
    return trial


def _release_memory() -> None:
    """Give back what a failed split held (out of memory, say): its tensors are unreachable by now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _trial(study: optuna.Study, number: int) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[number]


def _wait_for_others(study: optuna.Study, interruption: Interruption) -> None:
    with interruption.interruptible():
        time.sleep(WAIT_S)
    fail_abandoned_trials(study)


def _reason(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get(FAILURE, "unknown"))


def _kind_of_failure(trial: FrozenTrial) -> str:
    """The reason without its numbers: a loss that is nan at step 17 or 40 is the same failure."""
    return re.sub(r"\d+", "#", _reason(trial))


def _is_hopeless(failures: list[str]) -> bool:
    """Whether the failures in a row so far say that the next trial will fail too."""
    last = failures[-SAME_FAILURES_ALLOWED:]
    return (len(last) == SAME_FAILURES_ALLOWED and len(set(last)) == 1) or len(failures) >= FAILURES_ALLOWED
