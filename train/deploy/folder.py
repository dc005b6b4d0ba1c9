"""The folder of deployments: `current` is replaced in one step, a kill leaves the old one or the new one.

The order of writing is what makes that so:

    1. `.unfinished/` is filled, forced onto the disk, read back and scored again;
    2. it is renamed to its own name, which nothing leads to yet;
    3. `decisions.jsonl` says `accepted`;
    4. a new link is renamed over `current`;
    5. `decisions.jsonl` says `current`.

A kill before 3 leaves the old deployment and an undecided candidate, which is judged again (its look was counted). A
kill after 3 leaves a promise, which the next start keeps. A rollback is 3 to 5. `current` is a relative link, or a file
with a name in it where the file system has no links; nobody but 4 changes it.
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
    """Another process watches the same folder."""

    exit_code = 4


class Deployments:
    """A folder of deployments and its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = DecisionLog(folder)

    # ------------------------------------------------------------------------------------------------------ locks
    def prepare(self) -> None:
        """Make the folder, in one that is there.

        Raises:
            StudyError: it cannot be made, or is a file.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            reason = "is a file" if isinstance(error, FileExistsError) else error.strerror
            raise StudyError(f"--deployments-dir {self.folder}: cannot be made ({reason})") from error

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Held by the one process that judges candidates for this folder.

        Raises:
            BusyError: another one does.
        """
        with self._opened(WATCH_LOCK) as handle:
            self._take_watch_lock(handle)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held for moments, around reading and changing the log and `current`; keeps a promise that a kill left."""
        with self._opened(LOCK) as handle:
            take_file_lock(handle, f"the deployments in {self.folder}", self.folder / LOCK)
            self._keep_promise()
            yield

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """A file to lock, open; closing it lets go of the lock."""
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
            raise BusyError(f"{self.folder}: another process (pid {pid}) judges candidates for it already") from error

    # ---------------------------------------------------------------------------------------------------- reading
    def current_name(self) -> str | None:
        """Of the folder that `current` leads to, None where nothing is deployed.

        Raises:
            DeploymentError: something else is in its place.
        """
        return pointer_target(self.folder / CURRENT)

    def current(self) -> Deployment | None:
        """What is deployed, checked; None where nothing is, or `current` leads to a folder that is gone.

        Raises:
            DeploymentError: it is damaged; `--rollback` leads to the one before.
        """
        name = self.deployed_name()
        return None if name is None else read_deployment(self.folder / name)

    def deployed_name(self) -> str | None:
        """As `current_name`, None also where that folder is gone, which is logged."""
        name = self.current_name()
        if name is None or (self.folder / name).is_dir():
            return name
        logger.warning("deployments: %s leads to %s, which is not there: nothing is deployed", CURRENT, name)
        return None

    # --------------------------------------------------------------------------------------------------- changing
    def install(
        self, name: str, fill: Callable[[Path], None], check: Callable[[Path], None], decision: Mapping[str, Any]
    ) -> None:
        """Make a deployment and lead `current` to it; under `locked`.

        Args:
            name: of its folder.
            fill: writes the files into the folder it is given.
            check: raises where what was written is not what was meant.
            decision: what the log says of it.
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
        """(present deployment, the one before it), which was checked.

        Raises:
            StudyError: there is none before.
            DeploymentError: the one before is damaged.
        """
        present, names = self.current_name(), deployed_names(self.log.read())
        if present is None or present not in names:
            there = f"the log does not know {present}, where {CURRENT} leads to" if present else "nothing is deployed"
            raise StudyError(f"{self.folder}: {there}; nothing to roll back")
        before = names[: names.index(present)]
        if not before:
            raise StudyError(f"{self.folder}: nothing was deployed before {present}")
        read_deployment(self.folder / before[-1])
        return present, before[-1]

    def roll_back(self) -> tuple[str, str]:
        """Lead `current` to the deployment before the present one; (from, to). Under `locked`.

        Raises:
            StudyError, DeploymentError: as `rollback_target`.
        """
        present, before = self.rollback_target()
        self.log.append("rollback", deployment=before, previous=present)
        self._lead_to(before, "rollback")
        return present, before

    def _keep_promise(self) -> None:
        """Finish what a kill cut off between the log and `current`."""
        events = self.log.read()
        promise = promised(events)
        if promise is None:
            self._note_change_by_hand(events)
            return
        name, present = promise["deployment"], self.current_name()
        if present not in (name, promise["previous"]):
            raise StudyError(
                f"{self.folder}: {CURRENT} leads to {present}, and the log ends with {promise['event']} of {name}: "
                f"somebody else changed it; lead it to {promise['previous']} or {name} by hand"
            )
        try:
            read_deployment(self.folder / name)
        except DeploymentError as error:
            logger.warning("deployments: %s of %s cannot be finished: %s", promise["event"], name, error)
            self.log.append("broken", deployment=name, why=str(error))
            return
        logger.info("deployments: %s of %s was cut off; finished now", promise["event"], name)
        self._lead_to(name, promise["event"])

    def _note_change_by_hand(self, events: Sequence[Event]) -> None:
        """Write down where somebody led `current` meanwhile, so that a rollback knows the way back to it."""
        present, names = self.current_name(), deployed_names(events)
        is_known = any(event.get("deployment") == present for event in events)
        if present is not None and is_known and names[-1:] != [present]:
            logger.info("deployments: %s was led to %s by hand", CURRENT, present)
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
