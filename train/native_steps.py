"""Results of the first use of each native step on this machine, grouped by step and device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import environment_Alpaca_vectorized as drop_in

EQUAL = "equal"


@dataclass(frozen=True)
class KnownStep:
    """One native step on one device, for this code and this torch version.

    Attributes:
        name: name of the step and its device.
        text: verdict, speed ratio and time in one line.
        is_used: True if no comparison rejected the step.
        file: file of the result that rejected the step, otherwise of the latest result.
    """

    name: str
    text: str
    is_used: bool
    file: Path


def known_steps() -> list[KnownStep]:
    """Return every native step that was tried on this machine.

    Raises:
        ImportError, NoNativeStep: the folder of the native steps is missing, or has another version.
    """
    outcomes = drop_in.kernels("outcomes")
    mine = {"code": outcomes.code_sha256(drop_in.__file__), "torch": torch.__version__}
    found: dict[tuple[str, str], list[tuple[Path, Any]]] = {}
    for path, outcome in outcomes.read_all():
        if {name: outcome.key.get(name) for name in mine} == mine:
            found.setdefault((outcome.step, outcome.device), []).append((path, outcome))
    return [_known(" on ".join(name), rows) for name, rows in sorted(found.items())]


def _known(name: str, rows: Sequence[tuple[Path, Any]]) -> KnownStep:
    """Combine results with different settings: the latest rejection if there is one, otherwise all of them."""
    rows = sorted(rows, key=lambda row: row[1].when_s)
    against = [row for row in rows if row[1].verdict != EQUAL]
    path, outcome = (against or rows)[-1]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(outcome.when_s))
    if against:
        reason = f": {outcome.reason}" if outcome.reason else f": {_times(outcome.ratio)} the speed of the plain step"
        return KnownStep(name, f"{outcome.verdict}{reason}, {when}", False, path)
    ratios = sorted(row[1].ratio for row in rows)
    speed = _times(ratios[0]) if len(rows) == 1 else f"{_times(ratios[0])} to {_times(ratios[-1])}"
    n_steps = sum(row[1].n_steps for row in rows)
    settings = "" if len(rows) == 1 else f" with {len(rows)} settings"
    text = f"equal to the plain step over {n_steps} steps{settings}, {speed} as fast, {when}"
    return KnownStep(name, text, True, path)


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times"
