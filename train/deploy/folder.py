"""Deployments folder. `current` is replaced atomically, so a kill leaves the old deployment or the new one.

The order of the writes guarantees this:

    1. `.unfinished/` is filled, synced to disk, read back and scored again;
    2. it is renamed to its final name, which `current` does not point to yet;
    3. `decisions.jsonl` records `accepted`;
    4. a new link is renamed over `current`;
    5. `decisions.jsonl` records `current`.

A kill before step 3 leaves the old deployment and an undecided candidate. The candidate is judged again, and its
evaluation has been counted. A kill after step 3 leaves a promise that the next start fulfills. A rollback consists of
steps 3 to 5. `current` is a relative link, or a file that contains a name if the file system has no links. Only step 4
changes it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from market.files import sync_folder, write_whole
from train.deploy.decisions import DecisionLog, Event, deployed_names, promised
from train.deploy.loading import CURRENT, Deployment, DeploymentError, pointer_target, read_deployment
from train.records.errors import StudyError
from train.store.waiting import open_lock_file, take_file_lock

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
LOCK, WATCH_LOCK = ".lock", ".watch.lock"
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class BusyError(StudyError):
    """Raised if a different process is judging candidates for the same folder."""

    exit_code = 4


class Deployments:
    """A deployments folder and its decision log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = DecisionLog(folder)

    # ------------------------------------------------------------------------------------------------------ locks
    def prepare(self) -> None:
        """Create the folder; its parent must exist.

        Raises:
            StudyError: the folder cannot be created, or is a file.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            reason = "is a file" if isinstance(error, FileExistsError) else error.strerror
            raise StudyError(f"--deployments-dir {self.folder}: cannot be created ({reason})") from error

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Hold the lock of the single process that judges candidates for this folder.

        Raises:
            BusyError: another process holds the lock.
        """
        with self._opened(WATCH_LOCK) as handle:
            self._take_watch_lock(handle)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock for a short read or change of the log and `current`, after completing an interrupted change."""
        with self._opened(LOCK) as handle:
            take_file_lock(handle, f"the deployments in {self.folder}", self.folder / LOCK)
            self._keep_promise()
            yield

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Open a lock file; closing it releases the lock."""
        handle = open_lock_file(self.folder / name, "--deployments-dir")
        try:
            yield handle
        finally:
            os.close(handle)

    def _take_watch_lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(handle, 32, 0).decode("ascii", "replace").strip()
            raise BusyError(
                f"{self.folder}: another process (pid {pid}) is already judging candidates for this folder"
            ) from error

    # ---------------------------------------------------------------------------------------------------- reading
    def current_name(self) -> str | None:
        """Return the name of the folder that `current` points to, or None if nothing is deployed.

        Raises:
            DeploymentError: `current` is neither a link nor a pointer file.
        """
        return pointer_target(self.folder / CURRENT)

    def current(self) -> Deployment | None:
        """Return the verified current deployment, or None if nothing is deployed or its folder is missing.

        Raises:
            DeploymentError: the deployment is damaged; `--rollback` returns to the previous one.
        """
        name = self.deployed_name()
        return None if name is None else read_deployment(self.folder / name)

    def deployed_name(self) -> str | None:
        """Return `current_name`, or None if that folder is missing, which is logged."""
        name = self.current_name()
        if name is None or (self.folder / name).is_dir():
            return name
        logger.warning("deployments: %s points to %s, which does not exist: nothing is deployed", CURRENT, name)
        return None

    # --------------------------------------------------------------------------------------------------- changing
    def install(
        self, name: str, fill: Callable[[Path], None], check: Callable[[Path], None], decision: Mapping[str, Any]
    ) -> None:
        """Create a deployment and point `current` to it; the caller must hold `locked`.

        Args:
            name: name of the deployment folder.
            fill: function that writes the files into a given folder.
            check: function that raises if the written files are not as intended.
            decision: details for the decision log.
        """
        unfinished, final, previous = self.folder / UNFINISHED, self.folder / name, self.current_name()
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        fill(unfinished)
        check(unfinished)
        sync_folder(unfinished)
        unfinished.rename(final)
        sync_folder(self.folder)
        self.log.append("accepted", deployment=name, previous=previous, **decision)
        self._lead_to(name, "accepted")

    def rollback_target(self) -> tuple[str, str]:
        """Return (current deployment, previous deployment) after verifying the previous one.

        Raises:
            StudyError: there is no previous deployment.
            DeploymentError: the previous deployment is damaged.
        """
        present, names = self.current_name(), deployed_names(self.log.read())
        if present is None or present not in names:
            there = f"{CURRENT} points to {present}, which is not in the log" if present else "nothing is deployed"
            raise StudyError(f"{self.folder}: {there}; there is nothing to roll back")
        before = names[: names.index(present)]
        if not before:
            raise StudyError(f"{self.folder}: nothing was deployed before {present}")
        read_deployment(self.folder / before[-1])
        return present, before[-1]

    def roll_back(self) -> tuple[str, str]:
        """Point `current` to the previous deployment and return (from, to); the caller must hold `locked`.

        Raises:
            StudyError, DeploymentError: see `rollback_target`.
        """
        present, before = self.rollback_target()
        self.log.append("rollback", deployment=before, previous=present)
        self._lead_to(before, "rollback")
        return present, before

    def _keep_promise(self) -> None:
        """Complete a change that was interrupted between the log entry and `current`."""
        events = self.log.read()
        promise = promised(events)
        if promise is None:
            self._note_change_by_hand(events)
            return
        name, present = promise["deployment"], self.current_name()
        if present not in (name, promise["previous"]):
            raise StudyError(
                f"{self.folder}: {CURRENT} points to {present}, but the last change in the log is "
                f"{promise['event']!r} for {name}; point {CURRENT} to {promise['previous']} or {name} manually"
            )
        try:
            read_deployment(self.folder / name)
        except DeploymentError as error:
            logger.warning("deployments: could not complete the interrupted change to %s: %s", name, error)
            self.log.append("broken", deployment=name, why=str(error))
            return
        logger.info("deployments: completed the interrupted change to %s", name)
        self._lead_to(name, promise["event"])

    def _note_change_by_hand(self, events: Sequence[Event]) -> None:
        """Log a manual change of `current`, so that a rollback can return to it."""
        present, names = self.current_name(), deployed_names(events)
        is_known = any(event.get("deployment") == present for event in events)
        if present is not None and is_known and names[-1:] != [present]:
            logger.info("deployments: %s was changed manually to %s", CURRENT, present)
            self.log.append("current", deployment=present, cause="by hand")

    def _lead_to(self, name: str, cause: str) -> None:
        link, new = self.folder / CURRENT, self.folder / f".{CURRENT}.new"
        try:
            new.unlink(missing_ok=True)
            new.symlink_to(name)
            new.replace(link)
            sync_folder(self.folder)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            write_whole(link, f"{name}\n".encode())
        self.log.append("current", deployment=name, cause=cause)
