"""Checks of a study for a better policy, run once or repeatedly, and their exit codes.

If the database is missing, locked or not yet created, if data are being rebuilt, or if memory is short, one line is
logged and the next check retries. All state is in the deployments folder (`decisions.jsonl`), so a restart resumes.
"""

from __future__ import annotations

import logging
import time
from typing import NoReturn

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from drl_agents.policy_file import PolicyFileError
from market.errors import UserError
from train.deploy.case import Request
from train.deploy.folder import Deployments
from train.deploy.judge import REFUSED, Verdict, look, open_asked
from train.records.errors import StudyError
from train.study.interruption import Interrupted, Interruption

logger = logging.getLogger(__name__)

MENDABLE = (UserError, PolicyFileError)  # errors that the user can fix
FAULTS = (StorageInternalError, SQLAlchemyError, RuntimeError, MemoryError, OSError)  # machine or database faults
DONE, CANDIDATE_REFUSED = 0, 3  # exit codes
REMIND_S = 3600.0  # seconds before an unchanged line is repeated


class Teller:
    """Logger that writes a new line immediately and repeats an unchanged line only once per hour."""

    def __init__(self) -> None:
        self._text, self._told_s = "", 0.0

    def tell(self, text: str, level: int = logging.INFO) -> bool:
        """Log the text if it is new or due again; return True if it is new."""
        is_new = text != self._text
        if is_new or time.monotonic() - self._told_s >= REMIND_S:
            logger.log(level, "%s", text)
            self._text, self._told_s = text, time.monotonic()
        return is_new


def run_once(request: Request) -> int:
    """Check the study once and return the exit code.

    Raises:
        All exceptions of `look`.
    """
    deployments = Deployments(request.deployments)
    with Interruption() as interruption:
        try:
            verdict = _one_look(request, deployments, interruption)
        except Interrupted as signal:
            return _stopped(signal)
    logger.info("%s: %s", verdict.kind, verdict.text)
    return CANDIDATE_REFUSED if verdict.kind == REFUSED else DONE


def _one_look(request: Request, deployments: Deployments, interruption: Interruption) -> Verdict:
    if request.dry_run:
        return look(request, deployments, interruption)
    if not request.deployments.exists():
        open_asked(request)  # raises first, so that a wrong flag creates no folder
    deployments.prepare()
    with deployments.watched():
        return look(request, deployments, interruption)


def run_for_ever(request: Request, interval_s: float) -> int:
    """Check the study every `interval_s` seconds until a signal; return 128 plus the signal number.

    Raises:
        StudyError: the folder cannot be used, or a different process is judging candidates for it.
    """
    deployments = Deployments(request.deployments)
    deployments.prepare()
    with deployments.watched(), Interruption() as interruption:
        logger.info("checking study %s every %g s, deployments in %s", request.study_name, interval_s,
                    request.deployments)  # fmt: skip
        try:
            _watch(request, deployments, interruption, interval_s)
        except Interrupted as signal:
            return _stopped(signal)


def _watch(request: Request, deployments: Deployments, interruption: Interruption, interval_s: float) -> NoReturn:
    """Check the study repeatedly until a signal raises."""
    teller = Teller()
    while True:
        _look_and_tell(request, deployments, interruption, teller)
        with interruption.interruptible():
            time.sleep(interval_s)


def _look_and_tell(request: Request, deployments: Deployments, interruption: Interruption, teller: Teller) -> None:
    try:
        verdict = look(request, deployments, interruption)
    except (*MENDABLE, *FAULTS) as error:
        text = error_text(error)
        if teller.tell(f"not judged: {text}; retrying at the next check", logging.WARNING):
            _log_error(deployments, request, text)
        return
    teller.tell(f"{verdict.kind}: {verdict.text}")


def _log_error(deployments: Deployments, request: Request, text: str) -> None:
    """Write the error to the decision log as well, unless the log itself cannot be written."""
    try:
        with deployments.locked():
            deployments.log.append("error", study=request.study_name, why=text)
    except (*MENDABLE, OSError) as error:
        logger.debug("decisions: %s", error)


def error_text(error: BaseException) -> str:
    """Return the error as one line."""
    if isinstance(error, StorageInternalError | SQLAlchemyError):
        cause = error.__cause__ or getattr(error, "orig", None) or error
        return f"database error: {str(cause).splitlines()[0]}"
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}"
    if isinstance(error, MENDABLE):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip() or 'no details'}"


def _stopped(signal: Interrupted) -> int:
    logger.info("stopped by %s before a decision; run the same command again to resume", signal)
    return 128 + signal.signal_number


def roll_back(request: Request) -> int:
    """Point `current` to the previous deployment.

    Raises:
        StudyError, DeploymentError: there is no previous deployment, or it is damaged.
    """
    deployments = Deployments(request.deployments)
    if not request.deployments.is_dir():
        raise StudyError(f"--deployments-dir {request.deployments}: no such folder, so there is nothing to roll back")
    if request.dry_run:
        present, before = deployments.rollback_target()
        logger.info("dry run: would roll back from %s to %s", present, before)
        return DONE
    with deployments.locked():
        present, before = deployments.roll_back()
    logger.info("rolled back from %s to %s", present, before)
    return DONE
