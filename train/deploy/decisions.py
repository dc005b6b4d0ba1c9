"""Decision log `decisions.jsonl`: an append-only file with one JSON object per line.

    look      a candidate is about to be scored on held-out bars: its weights, the bars, the test number
    refused   a candidate was refused; contains the value of every gate
    accepted  a candidate was accepted: its deployment is complete and `current` is about to point to it
    rollback  `current` is about to point to an earlier deployment
    current   `current` now points to this deployment
    broken    `current` cannot point to this deployment, because it is damaged
    error     no candidate could be judged; contains the reason, and is written when the reason changes

A look is written before the evaluation, so that a kill cannot hide it. `accepted` and `rollback` are promises: if the
process is killed before `current` changes, the next start changes it (`train.deploy.folder`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from market.files import sync_folder
from train.records.errors import StudyError

LOG_FILE = "decisions.jsonl"
JUDGED = ("refused", "accepted")
PROMISES = ("accepted", "rollback")

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """Best trial with its refit seed and options. A different seed or option makes a new candidate."""

    uuid: str  # uuid of the study
    trial: int
    seed: int
    options: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"uuid": self.uuid, "trial": self.trial, "seed": self.seed, "options": dict(self.options)}


@dataclass(frozen=True)
class Bars:
    """Market and time range of an evaluation."""

    first_time_s: int
    last_time_s: int
    tickers: Sequence[str]
    synthetic: bool
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return vars(self) | {"tickers": list(self.tickers)}

    def overlap(self, other: Mapping[str, Any]) -> bool:
        """Return True if the other evaluation saw some of these bars.

        Two evaluations overlap if their times overlap, they share a coin, and both are real or from the same generated
        market.
        """
        is_same_world = self.synthetic == other["synthetic"] and (not self.synthetic or self.source == other["source"])
        meets = self.first_time_s <= other["last_time_s"] and other["first_time_s"] <= self.last_time_s
        return is_same_world and meets and not set(self.tickers).isdisjoint(other["tickers"])


class DecisionLog:
    """The decision log file; a caller that appends must hold the lock of the deployments folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_FILE

    def read(self) -> list[dict[str, Any]]:
        """Return all events, oldest first. An incomplete last line is skipped.

        Raises:
            StudyError: a complete line is damaged.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        events = []
        for number, line in enumerate(lines[:-1], start=1):
            event = _event(line)
            if event is None:
                raise StudyError(
                    f"{self.path}: line {number} is damaged, so the number of hold-out evaluations is unknown; "
                    "restore the file"
                )
            events.append(event)
        return events

    def append(self, event: str, **content: Any) -> None:
        """Append one line and sync it to disk, after removing an incomplete last line that a kill left."""
        stamp = datetime.fromtimestamp(time.time(), tz=UTC).isoformat(timespec="seconds")
        line = (json.dumps({"event": event, "utc": stamp} | content) + "\n").encode()
        with self.path.open("a+b") as file:
            _mend_end(file.fileno())
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.path.parent)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _mend_end(descriptor: int) -> None:
    """Remove an incomplete last line; no decision was based on it."""
    size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, size, 0)
    if content and not content.endswith(b"\n"):
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)


def judgement_of(events: Sequence[Event], candidate: Candidate) -> Event | None:
    """Return the latest decision about this candidate, or None."""
    wanted = candidate.to_json()
    found = (e for e in reversed(events) if e["event"] in JUDGED and e.get("candidate") == wanted)
    return next(found, None)


def looks_at(events: Sequence[Event], bars: Bars) -> dict[str, int]:
    """Return {weights hash: test number} of all policies that were scored on some of these bars."""
    looks = (e for e in events if e["event"] == "look" and bars.overlap(e["bars"]))
    return {look["weights_sha256"]: look["test"] for look in looks}


def lookers_at(events: Sequence[Event], bars: Bars) -> set[str]:
    """Return the uuids of the studies whose policies were scored on some of these bars."""
    looks = (e for e in events if e["event"] == "look" and bars.overlap(e["bars"]))
    return {Candidate(**look["candidate"]).uuid for look in looks}


def promised(events: Sequence[Event]) -> Event | None:
    """Return the last announced change of `current` that no later event confirms, or None."""
    last = next((e for e in reversed(events) if e["event"] in (*PROMISES, "current", "broken")), None)
    return last if last is not None and last["event"] in PROMISES else None


def deployed_names(events: Sequence[Event]) -> list[str]:
    """Return the deployments that a rollback can reach, oldest first. The last is the current deployment."""
    stack: list[str] = []
    for event in events:
        if event["event"] != "current":
            continue
        if event["cause"] == "rollback":
            while stack and stack[-1] != event["deployment"]:
                stack.pop()
        if not stack or stack[-1] != event["deployment"]:
            stack.append(event["deployment"])
    return stack
