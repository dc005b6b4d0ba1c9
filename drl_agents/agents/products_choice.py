"""Selection of the fastest matrix product, timed once per machine and size and then cached.

torch's BLAS and oneDNN sum in different orders, so results with different products are not bit-identical. The choice is
stored once in the user's cache folder, so that all processes on a machine use the same product. An agent's saved state
also contains it.
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

N_TIMED, LEAST_S = 3, 0.1  # minimum number of rounds, and minimum total seconds


def choose(sizes: Sequence[int], rows: int, ways: Mapping[str, Callable[[], object]]) -> str:
    """Return the name of the fastest implementation for layers of these sizes and a number of rows.

    Args:
        sizes: inputs, hidden widths and outputs.
        rows: number of samples per pass.
        ways: name -> one pass, which runs if no choice is stored yet.
    """
    key = (cpu_name(), torch.__version__, str(torch.get_num_threads()), *map(str, (*sizes, rows)), *ways)
    if key not in _known:
        path = folder() / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.txt"
        _known[key] = _read(path, ways) or _kept(path, fastest(ways), ways)
    return _known[key]


_known: dict[tuple[str, ...], str] = {}  # choices of this process


@functools.cache
def cpu_name() -> str:
    """Return model and vector instructions of this processor."""
    name = platform.processor()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"


def folder() -> Path:
    """Return the folder of the stored choices; it does not have to be writable."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # as the XDG specification requires
        home = os.path.expanduser("~/.cache")
    return Path(home if os.path.isabs(home) else os.devnull, "environment_Alpaca", "products")


def fastest(ways: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.thread_time) -> str:
    """Return the implementation with the fastest run, timed in alternation.

    The clock is this thread's CPU time, which does not advance while other processes use the core.
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
    """Store the choice and return the stored choice, which may be from an earlier process."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and _read(path, ways) is None:
            path.unlink()  # damaged
        handle, unfinished = create_beside(path)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(name)
            os.link(unfinished, path)  # complete, and never replaces another process's file
        finally:
            unfinished.unlink()
    return _read(path, ways) or name
