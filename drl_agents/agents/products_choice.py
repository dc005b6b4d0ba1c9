"""Which library multiplies a gradient step's matrices: timed once on a machine for each size, and remembered.

torch's BLAS and oneDNN add up in another order, so the choice changes bits. It is kept in a file of the user's cache
folder, written once, so that all processes of a machine choose alike; an agent's saved state holds it too.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

N_TIMED = 3


def choose(sizes: Sequence[int], rows: int, ways: Mapping[str, Callable[[], object]]) -> str:
    """Name of the fastest way for networks of these sizes and so many rows.

    Args:
        sizes: inputs, hidden widths and outputs.
        rows: of a gradient step.
        ways: name -> one pass of products, run where nothing is known yet.
    """
    key = (cpu_name(), torch.__version__, str(torch.get_num_threads()), *map(str, (*sizes, rows)), *ways)
    if key not in _known:
        _known[key] = _read_or_time(key, ways)
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


def folder() -> Path | None:
    """Where choices are kept; None where there is no home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # as the XDG specification asks
        home = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home, "environment_Alpaca", "products") if os.path.isabs(home) else None


def _read_or_time(key: Sequence[str], ways: Mapping[str, Callable[[], object]]) -> str:
    where = folder()
    path = None if where is None else where / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.txt"
    return _read(path, ways) or _kept(path, fastest(ways), ways)


def fastest(ways: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter) -> str:
    """The way whose fastest run is the fastest, in turns."""
    least = dict.fromkeys(ways, float("inf"))
    for _ in range(N_TIMED):
        for name, run in ways.items():
            started = clock()
            run()
            least[name] = min(least[name], clock() - started)
    return min(least, key=lambda name: least[name])


def _read(path: Path | None, ways: Mapping[str, object]) -> str | None:
    if path is None:
        return None
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
    return text if text in ways else None


def _kept(path: Path | None, name: str, ways: Mapping[str, object]) -> str:
    """The choice that is in the file from now on: this one, or another process's that was first."""
    if path is None:
        return name
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(name)
        if _read(path, ways) is None:
            path.unlink(missing_ok=True)  # damaged
        os.link(temporary, path)  # fails where there is one already
    except OSError:
        pass
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
    return _read(path, ways) or name
