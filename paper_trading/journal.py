"""Append-only journal with one JSON object per line, synced to disk before the trader acts on it.

Every line has a number and a checksum. An incomplete last line is removed. Any other damaged or missing line is an
error, because it may have recorded orders. Amounts at the venue are decimal strings.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from market.errors import UserError
from market.files import sync_folder

FILE = "journal.jsonl"
Event = Mapping[str, Any]


class JournalError(UserError):
    """A damaged journal. The message names the file, the damage and what to do."""


class Journal:
    """A journal open for appending. The writer must hold the lock of the account."""

    def __init__(self, path: Path, is_durable: bool = True) -> None:
        """Check the existing lines and open the file for appending.

        Args:
            path: path of the file, which is created if missing.
            is_durable: True to sync every line to disk. A replay does not need this, because its venue ends with the
                process.

        Raises:
            JournalError: if the journal is damaged.
            OSError: if the journal cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._is_durable = path, is_durable
        self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._end = _whole_end(self._descriptor)
        os.ftruncate(self._descriptor, self._end)
        self._next = _n_lines(path)
        if is_durable:
            sync_folder(path.parent)

    def append(self, event: str, **content: Any) -> dict[str, Any]:
        """Write one event and return it. After a failed write, the file is unchanged.

        Raises:
            OSError: if the disk is full or unavailable.
        """
        stamp = datetime.fromtimestamp(time.time(), tz=UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"n": self._next, "utc": stamp, "event": event, **content}
        text = encoded(line)
        try:
            written = os.write(self._descriptor, text)
            if written != len(text):
                raise OSError(28, "no space left for a whole line", str(self.path))
            if self._is_durable:
                os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, self._end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end += len(text)
        self._next += 1
        return line

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def encoded(line: Event) -> bytes:
    """Return the bytes of a line with a new checksum."""
    content = json.dumps({name: value for name, value in line.items() if name != "crc"}, separators=(",", ":")).encode()
    return content[:-1] + ending(content)


def ending(content: bytes) -> bytes:
    """Return what follows the last value of a line: its CRC-32 as the field `crc`, the closing brace and a newline.

    The checksum covers the bytes of the JSON object without that field, so every changed bit is found.
    """
    return b',"crc":"%08x"}\n' % zlib.crc32(content)


def read(path: Path) -> list[dict[str, Any]]:
    """Return all events, oldest first, or [] if the file does not exist.

    Raises:
        JournalError: if a line is damaged or missing.
    """
    return list(lines(path))


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all events like `read`, without loading the whole file into memory."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for number, text in enumerate(file):
            if not text.endswith(b"\n"):
                return  # incomplete, so it was never acted on
            yield checked(path, number, text)


def checked(path: Path, number: int, text: bytes) -> dict[str, Any]:
    """Return the event in line `number` of the file, counted from 0.

    Raises:
        JournalError: if the line is damaged or has a different number.
    """
    content = text[: -len(ending(b""))] + b"}"
    try:
        line = json.loads(text) if text.endswith(ending(content)) else None
    except ValueError:
        line = None
    if not isinstance(line, dict):
        raise JournalError(
            f"{path}: line {number + 1} is damaged; restore the file, or begin a new journal with --adopt"
        )
    if line["n"] != number:
        raise JournalError(f"{path}: line {number + 1} has number {line['n']}, so earlier lines are missing; restore "
                           "the file, or begin a new journal with --adopt")  # fmt: skip
    return line


def _whole_end(descriptor: int) -> int:
    """Return the end of the last complete line, in bytes."""
    size = os.fstat(descriptor).st_size
    block = 1 << 16
    end = size
    while end > 0:
        first = max(end - block, 0)
        place = os.pread(descriptor, end - first, first).rfind(b"\n")
        if place >= 0:
            return first + place + 1
        end = first
    return 0


def _n_lines(path: Path) -> int:
    return sum(1 for _ in lines(path))
