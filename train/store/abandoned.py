"""Trials of dead workers. They are marked as failed, completed from their stored outcome, or queued again."""

from __future__ import annotations

import logging
import os
import time
from datetime import datetime
from pathlib import Path

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from train.records.errors import StudyError
from train.records.keys import FAILURE, INTERRUPTED, KILLED, KILLS, RETRY_OF
from train.store.retrying import patient_storage
from train.store.server_storage import ServerStorage
from train.store.trial_end import kept, tell
from train.store.worker_identity import (
    GRACE_S,
    HEARTBEAT_S,
    MAX_KILLS,
    code_of_trials,
    is_running,
    is_this_machine,
    start_ticks,
    worker_of,
)

logger = logging.getLogger(__name__)


def fail_abandoned_trials(study: Study, study_folder: Path | None = None) -> list[int]:
    """Fail the RUNNING trials of dead workers, queue their settings again, and return their numbers.

    A worker on this machine is checked directly. A worker on a different machine is considered dead if its heartbeat
    stopped. If a trial has already finished and only the database lacks its outcome, the outcome is written instead.

    Args:
        study: study whose trials are checked.
        study_folder: folder of its results, where outcomes of trials are stored.
    """
    stale, failed = _stale_trials(study), []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _is_abandoned(study, trial, trial._trial_id in stale):
            continue
        end = kept(study_folder, trial) if study_folder else None
        try:
            if end is None:
                fail_and_retry(study, trial, f"{KILLED}: its process ended before the trial did")
                failed.append(trial.number)
            else:
                tell(study, trial.number, end)
                logger.info("trial %d: finished before its process was killed; wrote its stored result", trial.number)
        except (UpdateFinishedTrialError, ValueError):
            logger.debug("trial %d: another worker handled it first", trial.number)
    return failed


def _stale_trials(study: Study) -> set[int]:
    """Return the ids of RUNNING trials whose heartbeat stopped and did not resume within two intervals.

    All heartbeats appear stale just after the database was unreachable or its clock was changed.
    """
    storage, now_s = patient_storage(study), time.monotonic()
    stale, since_s = storage._get_stale_trial_ids(study._study_id), storage.stale_since_s
    storage.stale_since_s = {trial_id: since_s.get(trial_id, now_s) for trial_id in stale}
    return {trial_id for trial_id, began_s in storage.stale_since_s.items() if now_s - began_s >= 2 * HEARTBEAT_S}


def fail_and_retry(study: Study, trial: FrozenTrial, reason: str, was_killed: bool = True) -> None:
    """Mark a RUNNING trial as failed with the reason, and queue its settings again (`queue_retry`)."""
    storage = study._storage
    storage.set_trial_user_attr(trial._trial_id, FAILURE, reason)
    if storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL):
        queue_retry(study, trial, was_killed)


def queue_retry(study: Study, trial: FrozenTrial, was_killed: bool = True) -> None:
    """Queue a failed trial's settings again. After a kill, this happens at most MAX_KILLS times."""
    history = [*trial.user_attrs.get(RETRY_OF, []), trial.number]
    kills = trial.user_attrs.get(KILLS, 0) + was_killed
    params = trial.system_attrs.get("fixed_params", {}) | trial.params  # queued settings, and those sampled so far
    if kills > MAX_KILLS or not params:
        return
    study.enqueue_trial(params, user_attrs={RETRY_OF: history, KILLS: kills})


def refuse_other_code(study: Study) -> None:
    """Refuse to join a study while a different process runs one of its trials with different code.

    Raises:
        StudyError: the code differs, so the values of the trials would not be comparable.
    """
    stale, ours = set(patient_storage(study)._get_stale_trial_ids(study._study_id)), code_of_trials()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = worker_of(trial)
        if worker is None or worker.code in ("", ours) or _is_abandoned(study, trial, trial._trial_id in stale):
            continue
        raise StudyError(
            f"study {study.study_name}: {worker.host} runs different code (SHA-256 {worker.code}, here {ours}), so "
            "values would not be comparable; install the same version on all machines, or wait until that trainer exits"
        )


def queue_lost_retries(study: Study) -> None:
    """Queue the settings of failed trials whose worker was killed before it could queue them.

    Trials that failed only recently are skipped, because their own process may be about to queue them.
    """
    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs[RETRY_OF][-1] for trial in trials if RETRY_OF in trial.user_attrs}
    for trial in trials:
        reason = str(trial.user_attrs.get(FAILURE, ""))
        is_lost = trial.state == TrialState.FAIL and trial.number not in queued
        if is_lost and reason.startswith((KILLED, INTERRUPTED)) and _has_lasted(study, trial, trial.datetime_complete):
            queue_retry(study, trial, was_killed=reason.startswith(KILLED))


def _is_abandoned(study: Study, trial: FrozenTrial, is_stale: bool) -> bool:
    """Return True if the process of a RUNNING trial is dead. `is_stale` means that its heartbeat has stopped.

    This process runs no trial while it checks. A running trial of its own comes from a restored copy of the server.
    """
    worker = worker_of(trial)
    if worker is None:  # killed in the short time before its worker was recorded
        return _has_lasted(study, trial, trial.datetime_start)
    if not is_this_machine(worker.host, worker.machine):
        return is_stale
    is_own = (worker.pid, worker.started_ticks) == (os.getpid(), start_ticks(os.getpid()))
    return is_own or not is_running(worker.pid, worker.started, worker.started_ticks)


def _has_lasted(study: Study, trial: FrozenTrial, moment: datetime | None) -> bool:
    """Return True if a trial has been in its state, which it entered at `moment`, for at least GRACE_S.

    On a server, `moment` may come from a different machine's clock. The time is then counted from when this process
    first saw the trial in that state.
    """
    storage, now_s = patient_storage(study), time.monotonic()
    if not isinstance(storage, ServerStorage):
        return _age_s(moment) > GRACE_S
    return now_s - storage.seen_s.setdefault((trial._trial_id, trial.state), now_s) > GRACE_S


def _age_s(moment: datetime | None) -> float:
    """Return the seconds since a time that Optuna stored, or infinity for None.

    Optuna 5 stores UTC and returns local time. In the hour that occurs twice at the end of daylight saving time, the
    later time is used unless it is in the future.
    """
    if moment is None:
        return float("inf")
    ages = [time.time() - moment.replace(fold=fold).timestamp() for fold in (1, 0)]
    return next((age for age in ages if age >= 0.0), ages[1])
