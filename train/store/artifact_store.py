"""The artifact store of a study (`--artifacts URL`): a folder or an S3 bucket that all machines of the study reach.

Optuna's own stores carry the bytes. What is added here: the address with its checks, a prefix in the bucket, folders
whose files are whole or not there, and waiting. Calls run in threads, so a signal ends a wait whatever a call hangs in.
"""

from __future__ import annotations

import atexit
import errno
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from multiprocessing.pool import AsyncResult, ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from market.files import write_whole
from train.records.errors import StudyError
from train.store.address import without_password
from train.store.waiting import Wait

if TYPE_CHECKING:
    from optuna.artifacts._protocol import ArtifactStore

Result = TypeVar("Result")

KEYS_ARE_VARIABLES = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another source that boto3 reads"
QUIET_S, LONGEST_PAUSE_S = 5.0, 1.0
SILENCE_S = 60.0  # of one call, after which a program that does not wait takes the store for unreachable
POLL_S = 0.1  # between two looks at a call that has not answered
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 4, 15  # of one step of a call; calls are repeated
N_THREADS = 8
PROBE = "probe"
LOGGERS = ("boto3", "botocore", "s3transfer")  # at level DEBUG they write the id of the key


def artifacts_url(text: str, base: Path) -> str:
    """The address as a study remembers it: `file:///folder` or `s3://bucket/prefix`, without a slash at the end.

    Args:
        text: as it was typed; a path is a folder.
        base: what a relative path is relative to.

    Raises:
        StudyError: another kind of address, or one with keys in it, which the error does not repeat.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        folder = Path(unquote(rest) if separator else text)
        if separator and not folder.is_absolute():
            raise StudyError("--artifacts: write file:///FOLDER with three slashes, or the path alone")
        if not text.strip():
            raise StudyError("--artifacts is empty; give a folder or s3://BUCKET/PREFIX")
        return f"file://{(base / folder).resolve()}"
    if "@" in text or "?" in text or "#" in text:
        raise StudyError(f"--artifacts: keys do not belong in the URL; {KEYS_ARE_VARIABLES}")
    if scheme != "s3":
        raise StudyError(
            f"--artifacts {scheme}:// has not been tested and is refused; give a folder or s3://BUCKET/PREFIX"
        )
    parts = urlsplit(text)
    if not parts.netloc or ":" in parts.netloc:
        raise StudyError("--artifacts: write s3://BUCKET/PREFIX; another server than Amazon's is AWS_ENDPOINT_URL_S3")
    return f"s3://{parts.netloc}/{parts.path.strip('/')}".rstrip("/")


def folder_of(url: str) -> Path | None:
    """The folder that an address of `artifacts_url` leads to; None for a bucket."""
    return Path(url.removeprefix("file://")) if url.startswith("file://") else None


class _Folder(FileSystemArtifactStore):
    """Optuna's, with files that are whole or not there: a kill in mid-write leaves the old one."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        if not self._base_path.is_dir():  # a file system that is not mounted is waited for
            raise FileNotFoundError(2, "no such folder", str(self._base_path))
        write_whole(self._get_filepath(artifact_id), content_body.read())


class StoreAwayError(OSError):
    """The store could not be reached, refused, or is full, and this program does not wait for it any longer."""


@dataclass(frozen=True)
class Listed:
    """An object of the store."""

    key: str
    n_bytes: int
    changed: datetime


@dataclass(frozen=True)
class Artifacts:
    """An opened store.

    Attributes:
        url: its address, which is also its name in the log.
        backend: Optuna's store.
        prefix: of every key, "" or with a slash at its end.
        troubles: what the backend raises if it cannot be reached, refuses, or is full.
    """

    url: str
    backend: ArtifactStore
    prefix: str
    troubles: tuple[type[Exception], ...]
    pool: ThreadPool

    def write(self, key: str, content: bytes) -> None:
        """Write one object, in one attempt."""
        self.backend.write(f"{self.prefix}{key}", io.BytesIO(content))

    def read(self, key: str) -> bytes | None:
        """One object in one attempt; None if the store does not have it."""
        try:
            with self.backend.open_reader(f"{self.prefix}{key}") as reader:
                return reader.read()
        except ArtifactNotFound:
            return None

    def remove(self, key: str) -> None:
        """Remove one object, in one attempt; nothing happens if it is not there."""
        try:
            self.backend.remove(f"{self.prefix}{key}")
        except ArtifactNotFound:
            return

    def listed(self, below: str = "") -> Iterator[Listed]:
        """Every object whose key begins so."""
        start = f"{self.prefix}{below}"
        if isinstance(self.backend, Boto3ArtifactStore):
            pages = self.backend.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.backend.bucket, Prefix=start):
                for found in page.get("Contents", ()):
                    yield Listed(found["Key"].removeprefix(self.prefix), found["Size"], found["LastModified"])
            return
        folder = folder_of(self.url) or Path()
        for path in sorted(folder.rglob("*")):
            key = path.relative_to(folder).as_posix()
            if path.is_file() and key.startswith(below):
                known = path.stat()
                yield Listed(key, known.st_size, datetime.fromtimestamp(known.st_mtime, UTC))

    def reach(self) -> None:
        """Write and remove a small object: who starts with a wrong address or wrong keys is told at once.

        Raises:
            StudyError: it does not answer, or refuses.
        """
        try:
            folder = folder_of(self.url)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self.insist([self._probe], lasts_s=0.0)
        except OSError as error:
            raise StudyError(f"--artifacts {self.url}: cannot be used: {error.strerror}") from error

    def _probe(self) -> None:
        self.write(PROBE, b"")
        self.remove(PROBE)

    def insist(self, calls: Sequence[Callable[[], Result]], lasts_s: float = math.inf) -> list[Result]:
        """Make calls side by side, each again and again until it works -> their results.

        Args:
            calls: may be repeated.
            lasts_s: seconds of nothing but errors after which the last one is raised.

        Raises:
            StoreAwayError: not in time.
            Interrupted: a signal asked this process to stop.
        """
        wait = Wait(f"the artifact store {self.url}", QUIET_S, LONGEST_PAUSE_S)
        done: dict[int, Result] = {}
        worked_s = time.monotonic()  # when a call last did
        while len(done) < len(calls):
            running = {i: self.pool.apply_async(call) for i, call in enumerate(calls) if i not in done}
            troubles: list[Exception] = []
            for i, call in running.items():
                self._await(call, wait, lasts_s)
                try:
                    done[i], worked_s = call.get(), time.monotonic()
                except self.troubles as error:
                    troubles.append(error)
            self._pause_for(troubles, wait, time.monotonic() - worked_s >= lasts_s)
        wait.is_over()
        return [done[i] for i in range(len(calls))]

    def _await(self, call: AsyncResult[Any], wait: Wait, lasts_s: float) -> None:
        """Return when a call has ended, well or not."""
        began_s = time.monotonic()
        call.wait(POLL_S)
        while not call.ready():
            if math.isfinite(lasts_s) and time.monotonic() - began_s >= SILENCE_S:
                raise StoreAwayError(errno.ETIMEDOUT, f"no answer for {SILENCE_S:.0f} s", self.url)
            wait.pause("it has not answered yet")
            call.wait(POLL_S)

    def _pause_for(self, troubles: Sequence[Exception], wait: Wait, is_enough: bool) -> None:
        """Pause before the calls that failed are repeated; raise the first trouble if that is enough."""
        if not troubles:
            return
        if is_enough:
            raise StoreAwayError(errno.EIO, reason_of(troubles[0]), self.url) from troubles[0]
        wait.pause(reason_of(troubles[0]))


@cache
def open_artifacts(url: str) -> Artifacts:
    """Open the store; nothing is sent yet.

    Args:
        url: of `artifacts_url`.

    Raises:
        StudyError: boto3 is not installed, or lacks a setting such as the region.
    """
    pool, folder = ThreadPool(N_THREADS), folder_of(url)  # of daemons: none keeps a process from ending
    atexit.register(pool.terminate)
    if folder is not None:
        return Artifacts(url, _Folder(folder), "", (OSError,), pool)
    try:
        import boto3
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError
    except ModuleNotFoundError as error:
        raise StudyError(f"--artifacts {url}: needs boto3; pip install -r requirements-artifacts.txt") from error
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    # Checksums that came in 2025 are unknown to older servers; every file has a SHA-256 of ours.
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
        max_pool_connections=N_THREADS,
    )  # fmt: skip
    try:
        client: Any = boto3.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StudyError(f"--artifacts {url}: boto3 cannot be used: {reason_of(error)}") from error
    client.upload_fileobj = partial(client.upload_fileobj, Config=TransferConfig(use_threads=False))
    troubles = (OSError, BotoCoreError, ClientError, HTTPError)
    return Artifacts(url, Boto3ArtifactStore(bucket, client), f"{prefix}/" if prefix else "", troubles, pool)


def reason_of(error: BaseException) -> str:
    """What the store said, in one line; without what may be a password in an address."""
    known = getattr(error, "response", None)
    if isinstance(known, dict) and "Error" in known:
        text = f"{known['Error'].get('Code')}: {known['Error'].get('Message')}"
    else:
        text = getattr(error, "strerror", None) or str(error)
    lines = text.strip().splitlines()
    return without_password(lines[0]) if lines else type(error).__name__
