"""Files of a study in its artifact store. The machine that creates a file sends it, and machines that lack it fetch it.

The database holds the SHA-256 of every file, and the store holds the file under `<id of the study>/<SHA-256>`. Fetched
files are verified against this hash. The hashes of a split's files are in the trial's attribute `split_<k>`
(`train.records.seals`). Those of other files are in the study's attributes `files_<set>`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.study import Study
from optuna.trial import FrozenTrial

from market.files import write_whole
from train.records.attributes import SPLIT, uuid_in
from train.records.errors import StudyError
from train.records.keys import IDENTITY, OWNER_FILE, SETTINGS, STORED_FILES
from train.records.provenance import home
from train.records.record_files import read_record
from train.records.results import find_study_folder, study_folder
from train.records.seals import BAND, EQUITY, FILES, OF_A_SPLIT, RESULT, file_paths, file_sha256
from train.records.stored import StudyFile
from train.store.artifact_store import Artifacts, open_artifacts
from train.store.retrying import patient_storage
from train.store.worker_identity import is_this_machine, worker_of

logger = logging.getLogger(__name__)

STUDY_SET = "study"  # study.json and the closing prices
EVERY_FILE = (SETTINGS, *OF_A_SPLIT)
TO_SHOW = (SETTINGS, EQUITY, BAND, RESULT)  # files of the best trial that a page needs
STALE = ".stale"
AT_A_TIME = 64  # files fetched in one batch


def url_in(attributes: Mapping[str, Any]) -> str | None:
    """Return the URL of the artifact store from a study's attributes, or None."""
    identity = attributes.get(IDENTITY)
    run = identity.get("run") if isinstance(identity, Mapping) else None
    return run.get("artifacts") if isinstance(run, Mapping) else None


@dataclass(frozen=True)
class StudyArtifacts:
    """A study with its artifact store.

    Attributes:
        study: study as stored in its database.
        url: URL of the store.
        uuid: uuid of the study, the first part of its keys.
    """

    study: Study
    url: str
    uuid: str

    @property
    def store(self) -> Artifacts:
        """The store, opened on first use. A machine that has all files needs neither boto3 nor keys."""
        return open_artifacts(self.url)

    @property
    def lasts_s(self) -> float:
        """Seconds to wait for the store, equal to the waiting time for the database."""
        return patient_storage(self.study).lasts_s

    def send(self, files: Mapping[Path, str]) -> None:
        """Send files (path -> SHA-256), waiting if the store is unreachable.

        Raises:
            OSError: a file cannot be read.
            StoreAwayError: the store is unreachable for longer than `lasts_s`.
        """
        contents = {digest: path.read_bytes() for path, digest in files.items()}
        calls = [partial(self.store.write, f"{self.uuid}/{digest}", content) for digest, content in contents.items()]
        self.store.insist(calls, self.lasts_s)

    def send_checkpoint(self, path: Path) -> str:
        """Send a checkpoint without retries, because another one follows soon. Return its hash, or "" on failure."""
        digest = file_sha256(path)
        try:
            self.store.insist([partial(self.store.write, f"{self.uuid}/{digest}", path.read_bytes())], lasts_s=0.0)
        except OSError as error:
            logger.warning("could not send %s to %s (%s); training continues, and the next checkpoint will be sent "
                           "instead", path, self.store.url, error.strerror)  # fmt: skip
            return ""
        return digest

    def remove(self, digests: Iterable[str]) -> None:
        """Remove files that are no longer needed. Files that cannot be removed are left in the store."""
        try:
            self.store.insist([partial(self.store.remove, f"{self.uuid}/{digest}") for digest in digests], lasts_s=0.0)
        except OSError as error:
            logger.debug("could not remove an old checkpoint from %s: %s", self.store.url, error.strerror)

    def fetch(self, wanted: Mapping[Path, str]) -> None:
        """Fetch files (path -> SHA-256) that are missing on this machine.

        Existing files are not changed, because their readers verify the hash. Files that are missing or altered in the
        store are not written, and a warning is logged.

        Raises:
            StoreAwayError: the store is unreachable for longer than `lasts_s`.
        """
        missing = [(path, digest) for path, digest in wanted.items() if not path.exists()]
        for first in range(0, len(missing), AT_A_TIME):
            calls = [partial(self._fetch_one, path, digest) for path, digest in missing[first : first + AT_A_TIME]]
            for reason in filter(None, self.store.insist(calls, self.lasts_s)):
                logger.warning("%s", reason)

    def _fetch_one(self, path: Path, digest: str) -> str:
        """Fetch a file atomically. Return "", or the reason for a failure as one sentence."""
        content = self.store.read(f"{self.uuid}/{digest}")
        if content is None:
            return f"{path}: missing, and not in {self.store.url} either (SHA-256 {digest[:12]})"
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            return (
                f"{path}: missing, and the file in {self.store.url} was altered, so it is not used (SHA-256 "
                f"{found[:12]}, expected {digest[:12]})"
            )
        write_whole(path, content)
        return ""


@dataclass(frozen=True)
class Pictures:
    """Artifact store for Optuna and its dashboard: plots of one study's trials, without retries."""

    store: Artifacts
    uuid: str

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """See `optuna.artifacts`."""
        (content,) = self.store.insist([lambda: self.store.read(f"{self.uuid}/{artifact_id}")], lasts_s=0.0)
        if content is None:
            raise ArtifactNotFound(artifact_id)
        return io.BytesIO(content)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """See `optuna.artifacts`."""
        content = content_body.read()
        self.store.insist([lambda: self.store.write(f"{self.uuid}/{artifact_id}", content)], lasts_s=0.0)

    def remove(self, artifact_id: str) -> None:
        """See `optuna.artifacts`."""
        self.store.insist([lambda: self.store.remove(f"{self.uuid}/{artifact_id}")], lasts_s=0.0)


def pictures_in(attributes: Mapping[str, Any]) -> Pictures | None:
    """Return the store for the plots of a study with these attributes, or None if the study has no artifact store."""
    url = url_in(attributes)
    return None if url is None else Pictures(open_artifacts(url), uuid_in(attributes))


def artifacts_of(study: Study) -> StudyArtifacts | None:
    """Return the study with its artifact store, or None if it has none."""
    attributes = study.user_attrs
    url = url_in(attributes)
    return None if url is None else StudyArtifacts(study, url, uuid_in(attributes))


# ---------------------------------------------------------------------------------------------------- files of no split
def send_set(study: Study, folder: Path, name: str, paths: Iterable[Path]) -> None:
    """Send files that belong to no split, and store their hashes in the study's attribute `files_<name>`.

    Args:
        study: study. Without an artifact store, nothing happens.
        folder: folder of the study's or a trial's results.
        name: name of the set. Files already in the set remain in it.
        paths: paths below `folder`. Missing files are skipped.
    """
    ours = artifacts_of(study)
    if ours is None:
        return
    hashes = {path: file_sha256(path) for path in paths if path.is_file()}
    content = {path.relative_to(folder).as_posix(): digest for path, digest in hashes.items()}
    known = dict(study.user_attrs.get(f"{STORED_FILES}{name}") or {})
    if not content.items() <= known.items():
        ours.send(hashes)
        study.set_user_attr(f"{STORED_FILES}{name}", known | content)


def fetch_set(study: Study, folder: Path, name: str) -> None:
    """Fetch the missing files of a set. For the arguments see `send_set`."""
    ours = artifacts_of(study)
    content = None if ours is None else study.user_attrs.get(f"{STORED_FILES}{name}")
    if ours is not None and isinstance(content, Mapping):
        ours.fetch({folder / path: str(digest) for path, digest in content.items() if ".." not in Path(path).parts})


# ----------------------------------------------------------------------------------------------------- files of splits
def split_files(
    study_folder: Path, trial: FrozenTrial, names: Sequence[str] = EVERY_FILE, split: int | None = None
) -> Iterator[tuple[Path, str]]:
    """Yield the path and SHA-256 of these files for one split, or for every split that the trial was scored on."""
    for key, value in trial.user_attrs.items():
        number = key.removeprefix(SPLIT)
        is_wanted = number != key and number.isdecimal() and split in (None, int(number))
        if is_wanted and isinstance(value, Mapping):
            places = file_paths(study_folder, trial.number, int(number))
            sealed = value.get(FILES) or {}
            yield from ((places[name], digest) for name, digest in sealed.items() if name in names and name in places)


def fetch_splits(study: Study, folder: Path, trials: Iterable[FrozenTrial], names: Sequence[str] = EVERY_FILE) -> None:
    """Fetch these files of the trials' splits if they are missing in the study's results.

    A local file of a trial that ran on a different machine is a copy. If its hash differs from the hash in the
    database, it is renamed to `<name>.stale` and fetched again. This happens after a restore of an earlier database.
    """
    ours, wanted = artifacts_of(study), dict[Path, str]()
    if ours is None:
        return
    for trial in trials:
        files = dict(split_files(folder, trial, names))
        worker = worker_of(trial)
        if worker is not None and not is_this_machine(worker.host, worker.machine):
            _set_stale_aside(files)
        wanted |= files
    ours.fetch(wanted)


def _set_stale_aside(files: Mapping[Path, str]) -> None:
    """Rename the files, path -> expected SHA-256, that have a different hash."""
    for path, digest in files.items():
        if path.exists() and file_sha256(path) != digest:
            logger.warning("%s: hash differs from the study database; renamed to %s%s", path, path.name, STALE)
            path.replace(path.with_name(f"{path.name}{STALE}"))


# --------------------------------------------------------------------------------------------------- the study's folder
def results_of(study: Study, results: Path | None) -> Path:
    """Return the folder of a study's results on this machine. If it is missing, create it from the artifact store.

    Args:
        study: study as read from its database.
        results: parent folder of the study's folder. None means the location recorded in the study, or the default
            folder if that location is not on this machine.

    Raises:
        StudyError: the results are missing and cannot be fetched from an artifact store.
    """
    attributes = study.user_attrs
    has_store = url_in(attributes) is not None
    if results is None:
        if "results" not in attributes:
            raise StudyError(f"study {study.study_name} has no results folder in its database; pass --results-dir")
        results = Path(attributes["results"]).parent
        if has_store and not results.is_dir():
            results = home() / "train_results"
    try:
        folder = find_study_folder(results, study.study_name, uuid_in(attributes))
    except StudyError:
        if not has_store:
            raise
        folder = study_folder(results, _owner_file(study), is_renewed=False)
    fetch_set(study, folder, STUDY_SET)
    return folder


def _owner_file(study: Study) -> StudyFile:
    """Return `study.json` from the artifact store."""
    with tempfile.TemporaryDirectory(prefix="study_") as scratch:
        fetch_set(study, Path(scratch), STUDY_SET)
        path = Path(scratch) / OWNER_FILE
        if not path.exists():
            raise StudyError(
                f"{url_in(study.user_attrs)} has no {OWNER_FILE} of study {study.study_name}; restore the store, "
                "or run the study once more on the machine that has its results"
            )
        return read_record(path, StudyFile)
