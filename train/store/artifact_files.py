"""Files of a study in its artifact store: sent where they are made, and fetched where they are missing.

The database has a SHA-256 of every file, and the store keeps the file under `<id of the study>/<SHA-256>`: the seal is
the address, and what comes back is compared with it. The hashes of a split's files are in the trial's attribute
`split_<k>` (`train.records.seals`); those of other files are in attributes of the study, `files_<set>`.
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
TO_SHOW = (SETTINGS, EQUITY, BAND, RESULT)  # what a page takes from the best trial
STALE = ".stale"
AT_A_TIME = 64  # files that are fetched before the next ones are asked for


def url_in(attributes: Mapping[str, Any]) -> str | None:
    """The store that a study was begun with."""
    identity = attributes.get(IDENTITY)
    run = identity.get("run") if isinstance(identity, Mapping) else None
    return run.get("artifacts") if isinstance(run, Mapping) else None


@dataclass(frozen=True)
class StudyArtifacts:
    """A study with its opened store.

    Attributes:
        study: as its database has it.
        url: of the store.
        uuid: of the study, which its keys begin with.
    """

    study: Study
    url: str
    uuid: str

    @property
    def store(self) -> Artifacts:
        """Opened on first use: who has all files here needs no boto3 and no keys."""
        return open_artifacts(self.url)

    @property
    def lasts_s(self) -> float:
        """How long this program waits for the store: as long as for the database."""
        return patient_storage(self.study).lasts_s

    def send(self, files: Mapping[Path, str]) -> None:
        """Send files, path -> SHA-256, as they lie on the disk; wait for the store if it is away.

        Raises:
            OSError: a file cannot be read.
            StoreAwayError: for longer than `lasts_s`.
        """
        contents = {digest: path.read_bytes() for path, digest in files.items()}
        calls = [partial(self.store.write, f"{self.uuid}/{digest}", content) for digest, content in contents.items()]
        self.store.insist(calls, self.lasts_s)

    def send_checkpoint(self, path: Path) -> str:
        """Send a checkpoint, in one attempt, because the next one comes soon -> its hash, "" if that failed."""
        digest = file_sha256(path)
        try:
            self.store.insist([partial(self.store.write, f"{self.uuid}/{digest}", path.read_bytes())], lasts_s=0.0)
        except OSError as error:
            logger.warning("%s: not in %s (%s); training continues, and the next checkpoint is sent again",
                           path, self.store.url, error.strerror)  # fmt: skip
            return ""
        return digest

    def remove(self, digests: Iterable[str]) -> None:
        """Remove files that are not needed any more; what cannot be removed now stays."""
        try:
            self.store.insist([partial(self.store.remove, f"{self.uuid}/{digest}") for digest in digests], lasts_s=0.0)
        except OSError as error:
            logger.debug("an old checkpoint stays in %s: %s", self.store.url, error.strerror)

    def fetch(self, wanted: Mapping[Path, str]) -> None:
        """Fetch files, path -> SHA-256, that are missing on this machine.

        A file that exists is left as it is: its reader compares it with its hash. What the store does not have, or has
        changed, is not written, and the log says so.

        Raises:
            StoreAwayError: for longer than `lasts_s`.
        """
        missing = [(path, digest) for path, digest in wanted.items() if not path.exists()]
        for first in range(0, len(missing), AT_A_TIME):
            calls = [partial(self._fetch_one, path, digest) for path, digest in missing[first : first + AT_A_TIME]]
            for reason in filter(None, self.store.insist(calls, self.lasts_s)):
                logger.warning("%s", reason)

    def _fetch_one(self, path: Path, digest: str) -> str:
        """Fetch a file whole or not at all; why not, in one sentence."""
        content = self.store.read(f"{self.uuid}/{digest}")
        if content is None:
            return f"{path}: not here, and {self.store.url} does not have it (SHA-256 {digest[:12]})"
        found = hashlib.sha256(content).hexdigest()
        if found != digest:
            return (
                f"{path}: not here, and the file in {self.store.url} was changed, so it is not used (SHA-256 "
                f"{found[:12]}, the database has {digest[:12]})"
            )
        write_whole(path, content)
        return ""


@dataclass(frozen=True)
class Pictures:
    """The store as Optuna and its dashboard use it: pictures of one study's trials, in one attempt each."""

    store: Artifacts
    uuid: str

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """As Optuna's."""
        (content,) = self.store.insist([lambda: self.store.read(f"{self.uuid}/{artifact_id}")], lasts_s=0.0)
        if content is None:
            raise ArtifactNotFound(artifact_id)
        return io.BytesIO(content)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """As Optuna's."""
        content = content_body.read()
        self.store.insist([lambda: self.store.write(f"{self.uuid}/{artifact_id}", content)], lasts_s=0.0)

    def remove(self, artifact_id: str) -> None:
        """As Optuna's."""
        self.store.insist([lambda: self.store.remove(f"{self.uuid}/{artifact_id}")], lasts_s=0.0)


def pictures_in(attributes: Mapping[str, Any]) -> Pictures | None:
    """Where a study with these attributes keeps its pictures; None without a store."""
    url = url_in(attributes)
    return None if url is None else Pictures(open_artifacts(url), uuid_in(attributes))


def artifacts_of(study: Study) -> StudyArtifacts | None:
    """The study with its store; None for a study without one."""
    attributes = study.user_attrs
    url = url_in(attributes)
    return None if url is None else StudyArtifacts(study, url, uuid_in(attributes))


# ---------------------------------------------------------------------------------------------------- files of no split
def send_set(study: Study, folder: Path, name: str, paths: Iterable[Path]) -> None:
    """Send files that belong to no split, and keep their hashes as the study's attribute `files_<name>`.

    Args:
        study: without a store nothing happens.
        folder: the study's results, or a trial's.
        name: of the set; files of the set that are not given stay in it.
        paths: below `folder`; those that exist are sent.
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
    """Fetch the files of a set that are missing; arguments as of `send_set`."""
    ours = artifacts_of(study)
    content = None if ours is None else study.user_attrs.get(f"{STORED_FILES}{name}")
    if ours is not None and isinstance(content, Mapping):
        ours.fetch({folder / path: str(digest) for path, digest in content.items() if ".." not in Path(path).parts})


# ----------------------------------------------------------------------------------------------------- files of splits
def split_files(
    study_folder: Path, trial: FrozenTrial, names: Sequence[str] = EVERY_FILE, split: int | None = None
) -> Iterator[tuple[Path, str]]:
    """Path and SHA-256 of these files of every split that the trial was scored on, or of one split."""
    for key, value in trial.user_attrs.items():
        number = key.removeprefix(SPLIT)
        is_wanted = number != key and number.isdecimal() and split in (None, int(number))
        if is_wanted and isinstance(value, Mapping):
            places = file_paths(study_folder, trial.number, int(number))
            sealed = value.get(FILES) or {}
            yield from ((places[name], digest) for name, digest in sealed.items() if name in names and name in places)


def fetch_splits(study: Study, folder: Path, trials: Iterable[FrozenTrial], names: Sequence[str] = EVERY_FILE) -> None:
    """Fetch these files of the trials' splits that are missing in the study's results.

    A local file of a trial that ran elsewhere is only a copy. If it is not the file that the database names, which
    happens after a database was restored from an earlier copy, it is renamed to `<name>.stale` and fetched again.
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
    """Rename files, path -> SHA-256, that have another hash."""
    for path, digest in files.items():
        if path.exists() and file_sha256(path) != digest:
            logger.warning("%s: not the file that the database names; renamed to %s%s", path, path.name, STALE)
            path.replace(path.with_name(f"{path.name}{STALE}"))


# --------------------------------------------------------------------------------------------------- the study's folder
def results_of(study: Study, results: Path | None) -> Path:
    """The folder of a study's results on this machine, made from its store if it is not here.

    Args:
        study: read from its database.
        results: folder that holds the study's folder; None: where the study says it wrote them, or the default folder
            if that is not on this machine.

    Raises:
        StudyError: no results here and no store, or a store without the study.
    """
    attributes = study.user_attrs
    has_store = url_in(attributes) is not None
    if results is None:
        if "results" not in attributes:
            raise StudyError(f"study {study.study_name} does not say where its results are; give --results-dir")
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
    """`study.json` from the store."""
    with tempfile.TemporaryDirectory(prefix="study_") as scratch:
        fetch_set(study, Path(scratch), STUDY_SET)
        path = Path(scratch) / OWNER_FILE
        if not path.exists():
            raise StudyError(
                f"{url_in(study.user_attrs)} does not have the {OWNER_FILE} of study {study.study_name}; restore the "
                "artifact store, or start the study's trainer once where its results are"
            )
        return read_record(path, StudyFile)
