# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""First use of a native step on a device: compare it with the plain step, time both, and store the result.

A native step that differs, or fails to compile or run, is never used. The environment then runs the plain step and
reports the reason. A native step that is slower than the plain one is used only on request (`native_step="always"`).

`compare` and `speed_ratio` do not depend on environments: they take two contenders with the same actions.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import drop_in, outcomes
from .outcomes import DIFFERS, EQUAL, FAILED, SLOWER, Outcome

BUDGET_S = 3.0  # time for comparing and timing, after compilation
TIMING_S = 0.8  # part of BUDGET_S reserved for timing
MIN_STEPS = 40  # minimum number of steps per trial for storing an equal outcome; a slow machine may compare fewer
CHUNK_STEPS = 20  # steps between two reads of the values, which synchronize with the device
ROUNDS = (1, 5, 5, 5)  # number of consecutive timed steps
# Tolerances of the parity tests for float32 and float64. The absolute part applies to values below 1.
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-9}
# Exceptions that a compiler, a driver or a library of a different version raises on the first launch of a step.
LAUNCH_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError, OSError, ImportError, subprocess.SubprocessError, TypeError, ValueError, AttributeError, LookupError,
    AssertionError, ArithmeticError,
)  # fmt: skip

_known: dict[str, Outcome] = {}  # outcomes of this process by key


@dataclass(frozen=True)
class Contender:
    """One of two ways to step the same accounts.

    Attributes:
        advance: steps all accounts one bar; takes actions (N, A).
        fields: all outputs and states of the last step by name; valid until the next step.
    """

    advance: Callable[[Tensor], object]
    fields: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Trial:
    """A comparison that is ready to run: two copies of the same accounts, and actions (T, N, A)."""

    plain: Contender
    native: Contender
    actions: Tensor
    label: str = ""  # suffix of the name of a field that differs


@dataclass(frozen=True)
class Compared:
    """Result of a comparison: number of compared steps, and the first step and field that differ, if any."""

    n_steps: int
    step: int | None = None
    field: str = ""


def compare(
    plain: Contender, native: Contender, actions: Tensor, is_late: Callable[[], bool] = lambda: False
) -> Compared:  # fmt: skip
    """Step both with the same actions (T, N, A) until a field differs, no actions are left or `is_late` returns True.

    Values are read from the device once per CHUNK_STEPS.
    """
    names: list[str] = []
    flags: list[Tensor] = []
    n_read = 0
    for t, action in enumerate(actions, start=1):
        plain.advance(action)
        native.advance(action)
        expected, received = plain.fields(), native.fields()
        names = [name for name, value in expected.items() for _ in range(value.numel())] if t == 1 else names
        flags.append(are_close(received, expected))
        is_last = t == len(actions) or is_late()
        if len(flags) < CHUNK_STEPS and not is_last:
            continue
        wrong = (~torch.stack(flags)).nonzero()[:1].tolist()  # in the order of steps
        for step, column in wrong:
            return Compared(t, n_read + step + 1, names[column])
        if is_last:
            return Compared(t)
        flags, n_read = [], t
    return Compared(0)


def are_close(received: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
    """Return (M,) bool, True if all values of a field agree: counts and flags exactly, the others within TOLERANCES."""
    kinds = {name: value.dtype for name, value in expected.items()}
    parts: dict[str, Tensor] = {}
    for kind in dict.fromkeys(kinds.values()):
        mine = [name for name in expected if kinds[name] == kind]
        sizes = [expected[name].numel() for name in mine]
        want, got = (torch.cat([fields[name].flatten() for name in mine]) for fields in (expected, received))
        tolerance = TOLERANCES.get(kind, 0.0)
        close = torch.isclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True) if tolerance else got == want
        parts |= dict(zip(mine, close.split(sizes), strict=True))
    return torch.cat([parts[name] for name in expected])


def speed_ratio(
    plain: Contender, native: Contender, actions: Tensor, wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter, is_late: Callable[[], bool] = lambda: False,
) -> float:  # fmt: skip
    """Return the ratio of the plain step's time to the native step's. Each time is the minimum of several rounds.

    `wait` synchronizes with the device.
    """
    least = [float("inf"), float("inf")]
    for n_steps in ROUNDS:
        for i, contender in enumerate((plain, native)):
            wait()
            started = clock()
            for action in actions[:n_steps]:
                contender.advance(action)
            wait()
            least[i] = min(least[i], (clock() - started) / n_steps)
        if is_late():
            break
    return least[0] / max(least[1], 1e-12)


def try_out(
    trials: Sequence[Callable[[], Trial]], about: Outcome, wait: Callable[[], object] = lambda: None,
    errors: tuple[type[Exception], ...] = LAUNCH_ERRORS, budget_s: float = BUDGET_S,
) -> Outcome:  # fmt: skip
    """Run the trials in order, time the last one, and return `about` with the result.

    Args:
        trials: builders; each trial is built just before it runs.
        about: step, device and key of the outcome.
        wait: synchronizes with the device.
        errors: exceptions that the native step may raise on its first launch.
        budget_s: time limit for comparing and timing, without compilation.
    """
    is_short = False
    n_steps, spent_s, share_s = 0, 0.0, (budget_s - TIMING_S) / len(trials)
    trial = None
    for build in trials:
        trial = build()
        said: list[str] = []
        try:
            with quiet_compiler(said):
                trial.native.advance(trial.actions[0])
                wait()
            trial.plain.advance(trial.actions[0])
            started = time.perf_counter()
            compared = compare(trial.plain, trial.native, trial.actions[1:], _alarm(share_s))
        except errors as error:
            return replace(about, verdict=FAILED, reason=reason_of(error, said), when_s=time.time())
        n_steps, spent_s = n_steps + compared.n_steps, spent_s + time.perf_counter() - started
        is_short |= compared.n_steps < min(MIN_STEPS, len(trial.actions) - 1)
        if compared.step is not None:
            where = f"step {compared.step + 1}, field {compared.field}{trial.label}"
            return replace(about, verdict=DIFFERS, reason=where, n_steps=n_steps, took_s=spent_s, when_s=time.time())
    assert trial is not None
    started = time.perf_counter()
    ratio = speed_ratio(trial.plain, trial.native, trial.actions, wait, is_late=_alarm(budget_s - spent_s))
    spent_s += time.perf_counter() - started
    verdict = EQUAL if ratio >= 1.0 else SLOWER
    about = replace(about, is_short=is_short and verdict == EQUAL)
    return replace(about, verdict=verdict, ratio=ratio, n_steps=n_steps, took_s=spent_s, when_s=time.time())


def _alarm(seconds: float) -> Callable[[], bool]:
    """Return a function that returns True once this many seconds have passed."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def admit(
    step: str, device: str, key: Mapping[str, str], trials: Sequence[Callable[[], Trial]],
    wait: Callable[[], object] = lambda: None, is_asked_for: bool = False,
    errors: tuple[type[Exception], ...] = LAUNCH_ERRORS,
) -> Outcome:  # fmt: skip
    """Return if the native step may be used; otherwise raise the reason for using the plain step.

    Args:
        step: "numba" or "triton".
        device: its name and architecture.
        key: everything except code, torch and device that determines the outcome.
        trials: builders of trials, used if no outcome is stored.
        wait: synchronizes with the device.
        is_asked_for: True to allow a slower step.
        errors: as in `try_out`.

    Raises:
        NoNativeStep: If the step differs, is slower, or cannot be compiled or run.
    """
    key = {"step": step, "device": device, "torch": torch.__version__, "code": _code(), **key}
    name = repr(sorted(key.items()))
    if name not in _known:
        known = outcomes.read(key)
        if known is None:
            known = try_out(trials, Outcome(step, device, FAILED, key=key), wait, errors)
            if not known.is_short:  # otherwise the outcome is valid only in this process
                outcomes.write(known)
        _known[name] = known
    outcome = _known[name]
    if outcome.verdict != EQUAL and not (outcome.verdict == SLOWER and is_asked_for):
        raise drop_in.NoNativeStep(sentence(outcome))
    return outcome


def sentence(outcome: Outcome) -> str:
    """Return the reason why a native step is not used."""
    step, where = f"the {outcome.step} step", f"on {outcome.device}"
    if outcome.verdict == DIFFERS:
        text = f"{step} differs from the plain step {where}, first at {outcome.reason}"
    elif outcome.verdict == SLOWER:
        text = (f"{step} takes {1.0 / max(outcome.ratio, 1e-12):.1f} times as long as the plain step {where}; "
                'native_step="always" uses it anyway')  # fmt: skip
    else:
        text = failed(outcome.step, outcome.device, outcome.reason)
    path = outcomes.file_of(outcome.key)
    return f"{text} (remove {path} to try again)" if path is not None and path.exists() else text


def failed(step: str, device: str, reason: str) -> str:
    """Return the reason why a native step that was never launched is not used."""
    return f"the {step} step cannot run on {device}: {reason}"


@contextlib.contextmanager
def quiet_compiler(said: list[str]) -> Iterator[None]:
    """Collect a compiler's output in `said`, and print it if no error is raised.

    When compilation fails, the compiler prints a thousand lines of intermediate code, which would hide the one-line
    warning.
    """
    python = io.StringIO()
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile())
        except OSError:  # no space to collect the output, so it is printed directly
            yield
            return
        try:
            with _descriptor_to(2, file.fileno()), contextlib.redirect_stdout(python):
                yield
        finally:
            file.seek(0)
            said.append(file.read().decode(errors="replace") + python.getvalue())
    if said[-1].strip() and sys.stderr is not None:
        sys.stderr.write(said[-1])


@contextlib.contextmanager
def _descriptor_to(number: int, target: int) -> Iterator[None]:
    """Redirect an open file descriptor to another file; do nothing if the descriptor is closed."""
    try:
        kept = os.dup(number)
    except OSError:
        yield
        return
    try:
        os.dup2(target, number)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


def reason_of(error: Exception, said: Sequence[str]) -> str:
    """Return the reason in one line: the compiler's message if available, otherwise the error message."""
    printed = re.search(r"error: (.+)", "\n".join(said))
    lines = [line for line in str(error).splitlines() if line.strip()]
    words = printed.group(1) if printed else (lines[0].strip() if lines else "no message")
    return f"{type(error).__name__}: {words}"[:200]


@functools.cache
def _code() -> str:
    return outcomes.code_sha256(getattr(drop_in, "__file__", None))
