"""A whole run: the session, then the hold-out, the yardsticks and the report.

The only module that knows all of them.
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
    """Run or continue a study; returns the exit code.

    0: the study has a best trial and this run ended as it should; 1: none, or the same failure came again and again;
    5: none, because its policies stayed in cash (`train.study.eligibility`); 128 + n: stopped by signal n.

    Raises:
        StudyError, DatasetError, SplitError: the request cannot be carried out; nothing was written.
    """
    opened = open_request(request)
    study, folder, data = opened.study, opened.folder, opened.data
    log_opened(opened, request)
    has_best = False
    with Interruption() as interruption:
        around_trial = partial(picture_of, pictures=pictures_in(study.user_attrs))
        ending = run_workers(opened, request, interruption, around_trial, WORKER_PROGRAM)
        try:
            # A signal to a worker alone is no order to stop.
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
    """The ending of a study that has its trials, whatever became of a worker."""
    problem = ending.error or ending.repeated_failure
    if problem is not None:
        logger.warning("%s; the study has all its trials nevertheless", problem)
    return Ending()


def _judge_winner(study: optuna.Study, folder: Path, data: tuple[FoldedData, ...], request: StudyRequest) -> None:
    """The hold-out, once, on however many machines, and the yardsticks."""
    best = best_trial(study)
    if best is not None:
        with study_lock(request.storage, f"hold-out of {study.study_name}"):
            score_winner(study, best, folder, data, lambda: _holdout_rows(request, data), request.gpu_id)
    with study_lock(request.storage, f"yardsticks of {study.study_name}"):
        write_yardsticks(study, folder, data, request.volume_30d, request.gpu_id)


def _holdout_rows(request: StudyRequest, data: tuple[FoldedData, ...]) -> Mapping[str, HoldoutRows]:
    """The bars that the study held out, read anew."""
    known = {d.timeframe: d.holdout for d in data}
    return load_holdout(request.data_dir, request.timeframe, request.tickers, request.plan, known)


def _conclude(study: optuna.Study, ending: Ending, request: StudyRequest, has_best: bool) -> int:
    if ending.signal_number is not None:
        gc.freeze()  # Python would look through the libraries' objects once more, for two seconds, before it exits
        name = signal.Signals(ending.signal_number).name
        logger.info("stopped by %s; a trial that was interrupted will be tried again", name)
        logger.info("to continue: %s", command_text(sys.orig_argv))
        return 128 + ending.signal_number
    if ending.repeated_failure is not None:
        logger.error("stopped: trials fail again and again, the last with: %s", ending.repeated_failure)
        return 1
    if ending.error is not None:
        logger.error("stopped: %s", ending.error)
        return 1
    if ending.timed_out:
        logger.info("stopped by --timeout; the same command continues, up to %d trials", request.n_trials)
    if has_no_signal(study):
        return NO_SIGNAL_CODE
    return 0 if has_best else 1


def _write_pages(study: optuna.Study, folder: Path) -> bool:
    """Summary, picture and report -> whether there is a best trial."""
    for line in (*summary_lines(study), *yardstick_lines(read_yardsticks(study, folder))):
        logger.info("%s", line)
    best = best_trial(study)
    if best is not None:
        logger.info("picture: %s", plot_study(study, folder, folder / "study.png"))
    report_ended_study(study, folder)
    return best is not None
