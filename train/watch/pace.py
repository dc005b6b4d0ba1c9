"""Pace, remaining time and best value so far, computed from a snapshot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from train.watch.snapshot import FINISHED, TrialRow

HOUR_S = 3600.0
FEW = 5  # number of finished trials that give the pace if none finished within the last hour
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


@dataclass(frozen=True)
class Pace:
    """Rate at which trials finish."""

    in_last_hour: int  # trials that finished in the last hour
    per_hour: float | None  # trials per hour; None if no trial has finished
    window_s: float  # length of the measured interval in seconds


def pace_of(trials: Sequence[TrialRow], now: datetime) -> Pace:
    """Return the rate of trials that finished within the last hour, over the part of the hour in which trials ran.

    A study that resumed ten minutes ago is measured over ten minutes. If no trial finished within the hour, the time of
    the last few trials is used. If a worker's clock is ahead of this machine's clock, the worker's time is used.

    Args:
        trials: trials of the study.
        now: current time with its time zone.
    """
    finished = [t for t in trials if t.state in FINISHED and t.started is not None and t.ended is not None]
    now = max([now, *(t.ended for t in finished)])  # type: ignore[type-var]
    recent = [t for t in finished if t.ended > now - timedelta(seconds=HOUR_S)]  # type: ignore[operator]
    used = recent or sorted(finished, key=lambda t: t.ended)[-FEW:]  # type: ignore[arg-type,return-value]
    if not used:
        return Pace(0, None, 0.0)
    window_s = (now - min(t.started for t in used)).total_seconds()  # type: ignore[type-var]
    if recent:
        window_s = min(window_s, HOUR_S)
    window_s = max(window_s, 1.0)
    return Pace(len(recent), len(used) * HOUR_S / window_s, window_s)


def time_left_s(n_finished: int, target: int | None, pace: Pace) -> float | None:
    """Return the seconds until the target at this pace, or None if the target or the pace is unknown."""
    if target is None or pace.per_hour is None:
        return None
    return max(target - n_finished, 0) * HOUR_S / pace.per_hour


def best_so_far(trials: Sequence[TrialRow], maximize: bool) -> list[float]:
    """Return the best value after each completed trial that violates no constraint, in the order of trial numbers."""
    better = max if maximize else min
    found: list[float] = []
    for trial in trials:
        if trial.value is not None and trial.may_be_best:
            found.append(better(found[-1], trial.value) if found else trial.value)
    return found


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """Return a sparkline of at most `width` bars; each bar shows the last value of its share."""
    if not values or width < 1:
        return ""
    n = min(len(values), width)
    shown = [values[math.ceil((i + 1) * len(values) / n) - 1] for i in range(n)]
    low, high = min(shown), max(shown)
    if high == low:
        return bars[len(bars) // 2] * n
    return "".join(bars[round((value - low) / (high - low) * (len(bars) - 1))] for value in shown)
