"""A complete run of a study: the session, the hold-out, the reference strategies and the report.

Only this module combines them.
"""

from __future__ import annotations

import gc
import logging
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import optuna

from train.findings.holdout import load_holdout, score_winner
from train.findings.yardsticks import read_yardsticks, write_yardsticks, yardstick_lines
from train.messages import brief
from train.report.artifacts import picture_of
from train.report.collect import report_ended_study
from train.report.picture import plot_study
from train.runner.request import StudyRequest
from train.runner.session import log_opened, open_request, run_workers
from train.runner.worker import Ending
from train.store.address import command_text
from train.store.artifact_files import pictures_in
from train.store.database import n_finished
from train.store.lock import study_lock
from train.study.eligibility import NO_SIGNAL_CODE, best_trial, has_no_signal
from train.study.folds import FoldedData, HoldoutRows
from train.study.interruption import Interrupted, Interruption
from train.study.progress import summary_lines

logger = logging.getLogger(__name__)

WORKER_PROGRAM = "train.worker_program"


def run_study(request: StudyRequest) -> int:
    """Run or continue a study, and return the exit code.

    0: the study has a best trial, and this run finished normally. 1: there is no best trial, or trials failed
    repeatedly. 5: there is no best trial, because the policies stayed in cash (`train.study.eligibility`). 128 + n:
    stopped by signal n.

    Raises:
        StudyError, DatasetError, SplitError: the request is invalid. Nothing was written.
    """
    opened = open_request(request)
    study, folder, data = opened.study, opened.folder, opened.data
    log_opened(opened, request)
    has_best = False
    with Interruption() as interruption:
        around_trial = partial(picture_of, pictures=pictures_in(study.user_attrs))
        ending = run_workers(opened, request, interruption, around_trial, WORKER_PROGRAM)
        try:
            # A signal that only a worker received does not stop the run.
            is_stopped = ending.signal_number is not None and interruption.received is not None
            if not is_stopped and n_finished(study) >= request.n_trials:
                ending = _reached(ending)
                _judge_winner(study, folder, data, request)
            with nullcontext() if ending.signal_number else interruption.interruptible():
                has_best = _write_pages(study, folder)
        except Interrupted as stop:
            ending = Ending(signal_number=stop.signal_number)
    return _conclude(study, ending, request, has_best)


def _reached(ending: Ending) -> Ending:
    """Return the ending of a study that reached its target, even if its workers failed."""
    problem = ending.error or ending.repeated_failure
    if problem is not None:
        logger.warning("%s; the study has reached its target number of trials anyway", brief(problem))
    return Ending()


def _judge_winner(study: optuna.Study, folder: Path, data: tuple[FoldedData, ...], request: StudyRequest) -> None:
    """Evaluate the winner on the hold-out, once across all machines, and compute the reference strategies."""
    best = best_trial(study)
    if best is not None:
        with study_lock(request.storage, f"hold-out of {study.study_name}"):
            score_winner(study, best, folder, data, lambda: _holdout_rows(request, data), request.gpu_id)
    with study_lock(request.storage, f"yardsticks of {study.study_name}"):
        write_yardsticks(study, folder, data, request.volume_30d, request.gpu_id)


def _holdout_rows(request: StudyRequest, data: tuple[FoldedData, ...]) -> Mapping[str, HoldoutRows]:
    """Load the bars of the hold-out again."""
    known = {d.timeframe: d.holdout for d in data}
    return load_holdout(request.data_dir, request.timeframe, request.tickers, request.plan, known)


def _conclude(study: optuna.Study, ending: Ending, request: StudyRequest, has_best: bool) -> int:
    if ending.signal_number is not None:
        gc.freeze()  # otherwise a final garbage collection of the libraries' objects delays the exit by two seconds
        name = signal.Signals(ending.signal_number).name
        logger.info("stopped by %s; an interrupted trial will be retried", name)
        logger.info("to continue: %s", command_text(sys.orig_argv))
        return 128 + ending.signal_number
    if ending.repeated_failure is not None:
        logger.error("stopped, because trials fail repeatedly; the last error: %s", brief(ending.repeated_failure))
        return 1
    if ending.error is not None:
        logger.error("stopped: %s", ending.error)
        return 1
    if ending.timed_out:
        logger.info("stopped by --timeout; run the same command to continue up to %d trials", request.n_trials)
    if has_no_signal(study):
        return NO_SIGNAL_CODE
    return 0 if has_best else 1


def _write_pages(study: optuna.Study, folder: Path) -> bool:
    """Write the summary, the plot and the report. Return True if there is a best trial."""
    for line in (*summary_lines(study), *yardstick_lines(read_yardsticks(study, folder))):
        logger.info("%s", line)
    best = best_trial(study)
    if best is not None:
        logger.info("plot: %s", plot_study(study, folder, folder / "study.png"))
    report_ended_study(study, folder)
    return best is not None
