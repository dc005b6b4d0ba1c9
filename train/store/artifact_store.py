"""Artifact store of a study (`--artifacts URL`): a folder or an S3 bucket that all machines of the study can reach.

Optuna's stores transfer the bytes. This module adds URL checks, a prefix in the bucket, atomic writes to folders, and
retries. Calls run in threads, so that a signal can end any wait.
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

KEYS_ARE_VARIABLES = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another source that boto3 supports"
QUIET_S, LONGEST_PAUSE_S = 5.0, 1.0
SILENCE_S = 60.0  # a call without an answer fails after this time, in programs that do not wait indefinitely
POLL_S = 0.1  # between two checks of a running call
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 4, 15  # for one step of a call; calls are retried
N_THREADS = 8
PROBE = "probe"
LOGGERS = ("boto3", "botocore", "s3transfer")  # at level DEBUG they log the key id


def artifacts_url(text: str, base: Path) -> str:
    """Return the normalized URL: `file:///folder` or `s3://bucket/prefix`, without a trailing slash.

    Args:
        text: text of the flag. A path means a folder.
        base: folder that relative paths refer to.

    Raises:
        StudyError: the URL has an unsupported scheme or contains keys. The message does not repeat the keys.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        folder = Path(unquote(rest) if separator else text)
        if separator and not folder.is_absolute():
            raise StudyError("--artifacts must be file:///FOLDER with three slashes, or a path")
        if not text.strip():
            raise StudyError("--artifacts is empty; pass a folder or s3://BUCKET/PREFIX")
        return f"file://{(base / folder).resolve()}"
    if "@" in text or "?" in text or "#" in text:
        raise StudyError(f"--artifacts must not contain keys; {KEYS_ARE_VARIABLES}")
    if scheme != "s3":
        raise StudyError(f"--artifacts {scheme}:// is not supported; pass a folder or s3://BUCKET/PREFIX")
    parts = urlsplit(text)
    if not parts.netloc or ":" in parts.netloc:
        raise StudyError("--artifacts must be s3://BUCKET/PREFIX; other servers need AWS_ENDPOINT_URL_S3")
    return f"s3://{parts.netloc}/{parts.path.strip('/')}".rstrip("/")


def folder_of(url: str) -> Path | None:
    """Return the folder of a URL from `artifacts_url`, or None for a bucket."""
    return Path(url.removeprefix("file://")) if url.startswith("file://") else None


class _Folder(FileSystemArtifactStore):
    """Optuna's folder store with atomic writes. An interrupted write leaves the previous file."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        if not self._base_path.is_dir():  # retried: the file system may not be mounted yet
            raise FileNotFoundError(2, "no such folder", str(self._base_path))
        write_whole(self._get_filepath(artifact_id), content_body.read())


class StoreAwayError(OSError):
    """Raised if the store is unreachable, denies access or is full, and the maximum wait is over."""


@dataclass(frozen=True)
class Listed:
    """One object in the store."""

    key: str
    n_bytes: int
    changed: datetime


@dataclass(frozen=True)
class Artifacts:
    """An open artifact store.

    Attributes:
        url: URL of the store, which is also its name in the log.
        backend: Optuna's store.
        prefix: prefix of every key, either "" or ending in a slash.
        troubles: exceptions that the backend raises if it is unreachable, denies access or is full.
        pool: threads in which calls run.
    """

    url: str
    backend: ArtifactStore
    prefix: str
    troubles: tuple[type[Exception], ...]
    pool: ThreadPool

    def write(self, key: str, content: bytes) -> None:
        """Write one object, without retries."""
        self.backend.write(f"{self.prefix}{key}", io.BytesIO(content))

    def read(self, key: str) -> bytes | None:
        """Return one object, without retries, or None if it does not exist."""
        try:
            with self.backend.open_reader(f"{self.prefix}{key}") as reader:
                return reader.read()
        except ArtifactNotFound:
            return None

    def remove(self, key: str) -> None:
        """Remove one object, without retries. A missing object is ignored."""
        try:
            self.backend.remove(f"{self.prefix}{key}")
        except ArtifactNotFound:
            return

    def listed(self, below: str = "") -> Iterator[Listed]:
        """Yield every object whose key starts with `below`."""
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
        """Write and remove a small object, so that a wrong URL or wrong keys are detected at the start.

        Raises:
            StudyError: the store does not answer or denies access.
        """
        try:
            folder = folder_of(self.url)
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self.insist([self._probe], lasts_s=0.0)
        except OSError as error:
            raise StudyError(f"cannot use --artifacts {self.url}: {error.strerror}") from error

    def _probe(self) -> None:
        self.write(PROBE, b"")
        self.remove(PROBE)

    def insist(self, calls: Sequence[Callable[[], Result]], lasts_s: float = math.inf) -> list[Result]:
        """Make calls in parallel, retrying each until it succeeds, and return their results.

        Args:
            calls: calls to make; they may be repeated.
            lasts_s: seconds without any success after which the last error is raised.

        Raises:
            StoreAwayError: the calls did not succeed in time.
            Interrupted: a signal was received.
        """
        wait = Wait(f"the artifact store {self.url}", QUIET_S, LONGEST_PAUSE_S)
        done: dict[int, Result] = {}
        worked_s = time.monotonic()  # time of the last successful call
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
        """Wait until a call finishes, with or without an error."""
        began_s = time.monotonic()
        call.wait(POLL_S)
        while not call.ready():
            if math.isfinite(lasts_s) and time.monotonic() - began_s >= SILENCE_S:
                raise StoreAwayError(errno.ETIMEDOUT, f"no answer for {SILENCE_S:.0f} s", self.url)
            wait.pause("no answer yet")
            call.wait(POLL_S)

    def _pause_for(self, troubles: Sequence[Exception], wait: Wait, is_enough: bool) -> None:
        """Pause before failed calls are repeated, or raise the first error if `is_enough`."""
        if not troubles:
            return
        if is_enough:
            raise StoreAwayError(errno.EIO, reason_of(troubles[0]), self.url) from troubles[0]
        wait.pause(reason_of(troubles[0]))


@cache
def open_artifacts(url: str) -> Artifacts:
    """Open the store without connecting to it.

    Args:
        url: URL from `artifacts_url`.

    Raises:
        StudyError: boto3 is not installed, or lacks a setting such as the region.
    """
    pool, folder = ThreadPool(N_THREADS), folder_of(url)  # daemon threads do not keep a process alive
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
        raise StudyError(f"--artifacts {url}: requires boto3; run pip install -r requirements-artifacts.txt") from error
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    # Older servers do not support the checksums that boto3 added in 2025. SHA-256 keys verify every file.
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S, retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required", response_checksum_validation="when_required",
        max_pool_connections=N_THREADS,
    )  # fmt: skip
    try:
        client: Any = boto3.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StudyError(f"cannot use boto3 for --artifacts {url}: {reason_of(error)}") from error
    client.upload_fileobj = partial(client.upload_fileobj, Config=TransferConfig(use_threads=False))
    troubles = (OSError, BotoCoreError, ClientError, HTTPError)
    return Artifacts(url, Boto3ArtifactStore(bucket, client), f"{prefix}/" if prefix else "", troubles, pool)


def reason_of(error: BaseException) -> str:
    """Return the first line of the store's error message, without passwords in URLs."""
    known = getattr(error, "response", None)
    if isinstance(known, dict) and "Error" in known:
        text = f"{known['Error'].get('Code')}: {known['Error'].get('Message')}"
    else:
        text = getattr(error, "strerror", None) or str(error)
    lines = text.strip().splitlines()
    return without_password(lines[0]) if lines else type(error).__name__
