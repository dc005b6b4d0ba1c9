"""Load of this machine, its GPUs and the worker processes. Unavailable values are None."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# If none of these exists, no NVIDIA or AMD driver is loaded, and importing torch (2 s) would find no GPU either.
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True)
class Gpu:
    """One GPU as reported by its driver."""

    number: int
    busy: float | None  # fraction of the last sample period
    memory_used_bytes: int | None  # by all processes
    power_w: float | None
    temperature_c: float | None


@dataclass(frozen=True)
class Machine:
    """Load of this machine."""

    n_cores: int
    cpu: float  # fraction of all cores since the previous measurement
    load_1min: float
    memory_used_bytes: int
    memory_total_bytes: int
    gpus: tuple[Gpu, ...]
    gpu_note: str  # why no GPU is listed; empty if one is


@dataclass(frozen=True)
class ProcessLoad:
    """CPU and memory use of a process."""

    cores: float | None  # cores used since the previous measurement; None on the first
    rss_bytes: int


class Meter:
    """Repeated load measurements. Each covers the time since the previous measurement."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        psutil.cpu_percent()  # starts the first interval

    def machine(self) -> Machine:
        """Return the current load of the machine."""
        memory = psutil.virtual_memory()
        gpus, note = read_gpus()
        return Machine(
            n_cores=os.cpu_count() or 1,
            cpu=psutil.cpu_percent() / 100.0,
            load_1min=os.getloadavg()[0],
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            gpus=gpus,
            gpu_note=note,
        )

    def process(self, pid: int) -> ProcessLoad | None:
        """Return the load of a process on this machine, or None if it does not exist or cannot be inspected."""
        is_first = pid not in self._processes
        try:
            process = self._processes.setdefault(pid, psutil.Process(pid))
            cores = process.cpu_percent() / 100.0
            return ProcessLoad(None if is_first else cores, process.memory_info().rss)
        except psutil.Error:
            self._processes.pop(pid, None)
            return None


def read_gpus() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that torch finds, or the reason why there are none. Nothing is allocated on the GPUs."""
    if not any(Path(path).exists() for path in GPU_DRIVERS):
        return (), "none: no NVIDIA or AMD driver is loaded on this machine"
    import torch  # takes seconds, so machines without a GPU skip it

    n = torch.cuda.device_count()
    if not n:
        return (), f"none: torch {torch.__version__} finds no GPU, although a driver is loaded"
    return tuple(_gpu(number) for number in range(n)), ""


def _gpu(number: int) -> Gpu:
    import torch

    is_amd = torch.version.hip is not None
    busy = _asked(torch.cuda.utilization, number)
    power = _asked(torch.cuda.power_draw, number)
    # torch returns the drivers' units: milliwatts for NVIDIA, watts for AMD, where 0 means unknown.
    watts = None if power is None or (is_amd and power == 0) else power if is_amd else power / 1000.0
    memory = _asked(torch.cuda.device_memory_used, number)
    return Gpu(
        number=number,
        busy=None if busy is None else busy / 100.0,
        memory_used_bytes=None if memory is None else int(memory),
        power_w=watts,
        temperature_c=_asked(torch.cuda.temperature, number),
    )


def _asked(question: Callable[[int], float], number: int) -> float | None:
    """Return the driver's answer, or None if it gives none (laptop power, virtual GPU temperature, missing library)."""
    try:
        answer = question(number)
    except _refusals():
        return None
    return float(answer) if isinstance(answer, int | float) else None  # AMD drivers may return the string "N/A"


def _refusals() -> tuple[type[Exception], ...]:
    """Return the exceptions that torch raises for an unavailable value, including those of loaded driver libraries."""
    own = [getattr(sys.modules.get(module), name, None) for module, name in DRIVER_ERRORS]
    return (RuntimeError, ImportError, AttributeError, KeyError, OSError, *(kind for kind in own if kind is not None))


DRIVER_ERRORS: Sequence[tuple[str, str]] = (("pynvml", "NVMLError"), ("amdsmi", "AmdSmiException"))
