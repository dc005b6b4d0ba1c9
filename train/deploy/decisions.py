"""`decisions.jsonl`: what was looked at and decided, one JSON object a line, never rewritten.

    look      before a candidate is scored on held-out bars: its weights, the bars, the number of the test
    refused   a candidate, with every gate and its figure
    accepted  a candidate: its deployment is whole, and `current` is about to lead to it
    rollback  `current` is about to lead back to an earlier deployment
    current   it does now
    broken    it cannot: the deployment is damaged
    error     nothing could be judged, with the reason; written when the reason changes

A look is written before it happens: a kill cannot hide one. `accepted` and `rollback` are promises that the next start
keeps if a kill came in between (`train.deploy.folder`).
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
    """A winner as it is judged: other options are another question, other seeds another policy."""

    uuid: str  # of the study
    trial: int
    seed: int
    options: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"uuid": self.uuid, "trial": self.trial, "seed": self.seed, "options": dict(self.options)}


@dataclass(frozen=True)
class Bars:
    """Which market was looked at, and when it was."""

    first_time_s: int
    last_time_s: int
    tickers: Sequence[str]
    synthetic: bool
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self) | {"tickers": list(self.tickers)}

    def overlap(self, other: Mapping[str, Any]) -> bool:
        """Whether the other look saw some of the same: overlapping times of a shared coin of the same world."""
        is_same_world = self.synthetic == other["synthetic"] and (not self.synthetic or self.source == other["source"])
        meets = self.first_time_s <= other["last_time_s"] and other["first_time_s"] <= self.last_time_s
        return is_same_world and meets and not set(self.tickers).isdisjoint(other["tickers"])


class DecisionLog:
    """The file; whoever appends holds the lock of the deployments."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_FILE

    def read(self) -> list[dict[str, Any]]:
        """All events, oldest first; a last line without an end was never finished and is not there.

        Raises:
            StudyError: a finished line is damaged.
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
                    f"{self.path}: line {number} is damaged, so how often the held-out bars were looked at is not "
                    "known; restore the file"
                )
            events.append(event)
        return events

    def append(self, event: str, **content: Any) -> None:
        """Write one line and force it onto the disk; what a kill left of a line goes first."""
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
    """Cut off a last line without an end: it was never finished, so nobody acted on it."""
    size = os.fstat(descriptor).st_size
    content = os.pread(descriptor, size, 0)
    if content and not content.endswith(b"\n"):
        os.ftruncate(descriptor, content.rfind(b"\n") + 1)


def judgement_of(events: Sequence[Event], candidate: Candidate) -> Event | None:
    """The latest decision about this very candidate."""
    wanted = candidate.to_json()
    found = (e for e in reversed(events) if e["event"] in JUDGED and e.get("candidate") == wanted)
    return next(found, None)


def looks_at(events: Sequence[Event], bars: Bars) -> dict[str, int]:
    """Weights -> number of their test, of all that were scored on some of these bars."""
    looks = (e for e in events if e["event"] == "look" and bars.overlap(e["bars"]))
    return {look["weights_sha256"]: look["test"] for look in looks}


def lookers_at(events: Sequence[Event], bars: Bars) -> set[str]:
    """Ids of the studies of these looks."""
    looks = (e for e in events if e["event"] == "look" and bars.overlap(e["bars"]))
    return {Candidate(**look["candidate"]).uuid for look in looks}


def promised(events: Sequence[Event]) -> Event | None:
    """The last change of `current` that was announced and is not known to have happened."""
    last = next((e for e in reversed(events) if e["event"] in (*PROMISES, "current", "broken")), None)
    return last if last is not None and last["event"] in PROMISES else None


def deployed_names(events: Sequence[Event]) -> list[str]:
    """The deployments that `current` has led to and can be rolled back to, the present one last."""
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
