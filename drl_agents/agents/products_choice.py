"""Which way to multiply matrices is the fastest: timed once on a machine for each size, and remembered.

torch's BLAS and oneDNN add up in different orders, so the choice changes bits. It is kept in a file of the user's cache
folder, written once, so that all processes of a machine choose alike; an agent's saved state holds it too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from drl_agents.atomic_file import create_beside

N_TIMED, LEAST_S = 3, 0.1  # rounds at least, and seconds of them together


def choose(sizes: Sequence[int], rows: int, ways: Mapping[str, Callable[[], object]]) -> str:
    """Name of the fastest way for layers of these sizes and so many rows.

    Args:
        sizes: inputs, hidden widths and outputs.
        rows: samples that go through the layers together.
        ways: name -> one pass, run if no choice is known yet.
    """
    key = (cpu_name(), torch.__version__, str(torch.get_num_threads()), *map(str, (*sizes, rows)), *ways)
    if key not in _known:
        path = folder() / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.txt"
        _known[key] = _read(path, ways) or _kept(path, fastest(ways), ways)
    return _known[key]


_known: dict[tuple[str, ...], str] = {}  # of this process


@functools.cache
def cpu_name() -> str:
    """Model and vector instructions of this processor."""
    name = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def folder() -> Path:
    """Where choices are kept; a path that cannot be written to is no error."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # as the XDG specification asks
        home = os.path.expanduser("~/.cache")
    return Path(home if os.path.isabs(home) else os.devnull, "environment_Alpaca", "products")


def fastest(ways: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.thread_time) -> str:
    """The way whose fastest run is the fastest, in turns.

    The clock is this thread's time on its core, which stands still while other processes have the core.
    """
    least, n_rounds, spent = dict.fromkeys(ways, float("inf")), 0, 0.0
    while n_rounds < N_TIMED or spent < LEAST_S:
        for name, run in ways.items():
            started = clock()
            run()
            took = clock() - started
            least[name], spent = min(least[name], took), spent + took
        n_rounds += 1
    return min(least, key=lambda name: least[name])


def _read(path: Path, ways: Mapping[str, object]) -> str | None:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text if text in ways else None


def _kept(path: Path, name: str, ways: Mapping[str, object]) -> str:
    """The choice that is in the file from now on: this one, or another process's that was first."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and _read(path, ways) is None:
            path.unlink()  # damaged
        handle, unfinished = create_beside(path)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(name)
            os.link(unfinished, path)  # whole, and never over another process's
        finally:
            unfinished.unlink()
    return _read(path, ways) or name
