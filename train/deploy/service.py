"""Look at a study again and again, or once; exit codes.

A database that is missing, locked or not made yet, data that is being rebuilt, memory that is short: one line, and the
next look. Only the folder of deployments has a memory (`decisions.jsonl`), so a restart goes on where it was.
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

MENDABLE = (UserError, PolicyFileError)  # by the user
FAULTS = (StorageInternalError, SQLAlchemyError, RuntimeError, MemoryError, OSError)  # of the machine
DONE, CANDIDATE_REFUSED = 0, 3  # exit codes
REMIND_S = 3600.0  # the same line again


class Teller:
    """Logs a line when it is new, and an old one once an hour."""

    def __init__(self) -> None:
        self._text, self._told_s = "", 0.0

    def tell(self, text: str, level: int = logging.INFO) -> bool:
        """Whether it was new."""
        is_new = text != self._text
        if is_new or time.monotonic() - self._told_s >= REMIND_S:
            logger.log(level, "%s", text)
            self._text, self._told_s = text, time.monotonic()
        return is_new


def run_once(request: Request) -> int:
    """One look; the exit code.

    Raises:
        what `look` raises.
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
        open_asked(request)  # a wrong flag leaves no folder behind
    deployments.prepare()
    with deployments.watched():
        return look(request, deployments, interruption)


def run_for_ever(request: Request, interval_s: float) -> int:
    """Look every `interval_s` seconds until a signal; 128 + its number.

    Raises:
        StudyError: the folder cannot be used, or another process watches it.
    """
    deployments = Deployments(request.deployments)
    deployments.prepare()
    with deployments.watched(), Interruption() as interruption:
        logger.info("watching study %s every %g s, deployments in %s", request.study_name, interval_s,
                    request.deployments)  # fmt: skip
        try:
            _watch(request, deployments, interruption, interval_s)
        except Interrupted as signal:
            return _stopped(signal)


def _watch(request: Request, deployments: Deployments, interruption: Interruption, interval_s: float) -> NoReturn:
    """Until a signal raises."""
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
        if teller.tell(f"not judged: {text}; the next look tries again", logging.WARNING):
            _log_error(deployments, request, text)
        return
    teller.tell(f"{verdict.kind}: {verdict.text}")


def _log_error(deployments: Deployments, request: Request, text: str) -> None:
    """Into the decisions too, unless it is they that cannot be used."""
    try:
        with deployments.locked():
            deployments.log.append("error", study=request.study_name, why=text)
    except (*MENDABLE, OSError) as error:
        logger.debug("decisions: %s", error)


def error_text(error: BaseException) -> str:
    """One line."""
    if isinstance(error, StorageInternalError | SQLAlchemyError):
        cause = error.__cause__ or getattr(error, "orig", None) or error
        return f"the database failed: {str(cause).splitlines()[0]}"
    if isinstance(error, OSError):
        return f"{error.filename or 'file'}: {error.strerror or error}"
    if isinstance(error, MENDABLE):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"


def _stopped(signal: Interrupted) -> int:
    logger.info("stopped by %s before a decision; the same command goes on", signal)
    return 128 + signal.signal_number


def roll_back(request: Request) -> int:
    """Lead `current` to the deployment before.

    Raises:
        StudyError, DeploymentError: there is none, or it is damaged.
    """
    deployments = Deployments(request.deployments)
    if not request.deployments.is_dir():
        raise StudyError(f"--deployments-dir {request.deployments}: no such folder, so nothing to roll back")
    if request.dry_run:
        present, before = deployments.rollback_target()
        logger.info("dry run: would lead from %s back to %s", present, before)
        return DONE
    with deployments.locked():
        present, before = deployments.roll_back()
    logger.info("rolled back from %s to %s", present, before)
    return DONE
