# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Stored outcomes of a native step's first use on a device. Each is one small file in the user's cache folder.

This module uses only the standard library. Writes are atomic. A file that is damaged or was written by different code
is ignored. If the folder is not writable, nothing is cached and no error is raised.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

EQUAL, DIFFERS, SLOWER, FAILED = "equal", "differs", "slower", "failed"
VERDICTS = (EQUAL, DIFFERS, SLOWER, FAILED)
# A failure may be caused by the machine (no compiler, a full disk), so it is retried. Other verdicts depend only on
# code.
RETRY_FAILED_S = 86_400.0
SUFFIX = ".json"


@dataclass(frozen=True)
class Outcome:
    """Outcome of comparing a native step with the plain one on a device.

    Attributes:
        step: "numba" or "triton".
        device: name and architecture of the device.
        verdict: one of VERDICTS.
        reason: what differed or failed; otherwise empty.
        ratio: ratio of the plain step's time to the native step's; 0 if not timed.
        n_steps: number of compared steps.
        took_s: duration of comparing and timing, without compilation.
        when_s: seconds since 1970.
        is_short: True if time ran out before enough steps were compared; such an outcome is not stored.
        key: versions, code and choices for which the outcome is valid, by name.
    """

    step: str
    device: str
    verdict: str
    reason: str = ""
    ratio: float = 0.0
    n_steps: int = 0
    took_s: float = 0.0
    when_s: float = field(default_factory=time.time)
    is_short: bool = False
    key: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_current(self) -> bool:
        """Return True if no new trial is needed."""
        return self.verdict != FAILED or abs(time.time() - self.when_s) < RETRY_FAILED_S


def code_sha256(drop_in_file: str | None) -> str:
    """Return a hash of the text of this folder and of the drop-in file."""
    files = sorted(Path(__file__).parent.glob("*.py")) + ([Path(drop_in_file)] if drop_in_file else [])
    digest = hashlib.sha256()
    for path in files:
        text = path.read_bytes()
        digest.update(f"{path.name} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def folder() -> Path | None:
    """Return the user's cache folder for outcomes, or None if the user has no home folder."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # as the XDG specification requires
        home = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home, "environment_Alpaca", "steps") if os.path.isabs(home) else None


def file_of(key: Mapping[str, str]) -> Path | None:
    """Return the path of the outcome for `key`."""
    where = folder()
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:32]
    return None if where is None else where / f"{name}{SUFFIX}"


def read(key: Mapping[str, str]) -> Outcome | None:
    """Return the outcome for exactly this key, if it is valid and current."""
    path = file_of(key)
    found = None if path is None else _read(path)
    return found if found is not None and found.key == dict(key) and found.is_current else None


def read_all() -> Iterator[tuple[Path, Outcome]]:
    """Return every valid outcome in the cache, with its file."""
    where = folder()
    for path in sorted(where.glob(f"*{SUFFIX}")) if where is not None else ():
        found = _read(path)
        if found is not None:
            yield path, found


def write(outcome: Outcome) -> None:
    """Store an outcome. Concurrent writes are safe. If the folder is not writable, do nothing."""
    path = file_of(outcome.key)
    if path is None:
        return
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            json.dump(asdict(outcome), file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _read(path: Path) -> Outcome | None:
    try:
        content = json.loads(path.read_bytes())
        found = Outcome(**{name: _checked(name, content[name]) for name in (each.name for each in fields(Outcome))})
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if found.verdict in VERDICTS else None


def _checked(name: str, value: Any) -> Any:
    """Return a stored value if it has the right type; otherwise raise ValueError."""
    if name == "key":
        is_right = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    elif name in ("ratio", "n_steps", "took_s", "when_s"):
        is_right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    elif name == "is_short":
        is_right = value is False
    else:
        is_right = isinstance(value, str)
    if not is_right:
        raise ValueError(f"{name} is {value!r}")
    return value
