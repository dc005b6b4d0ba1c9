"""Load of this machine, of its GPUs and of the workers' processes. A figure that nobody tells is None."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

# Without one of these no NVIDIA or AMD driver is loaded, and importing torch (2 s) would find none either.
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver tells it."""

    number: int
    busy: float | None  # fraction of the last sample period
    memory_used_bytes: int | None  # of all processes
    power_w: float | None
    temperature_c: float | None


@dataclass(frozen=True)
class Machine:
    """This machine."""

    n_cores: int
    cpu: float  # fraction of all cores since the last look
    load_1min: float
    memory_used_bytes: int
    memory_total_bytes: int
    gpus: tuple[Gpu, ...]
    gpu_note: str  # why there is none; empty where there is


@dataclass(frozen=True)
class ProcessLoad:
    """What a process uses."""

    cores: float | None  # since the last look; None on the first
    rss_bytes: int


class Meter:
    """Looks again and again: loads are measured between one look and the next."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        psutil.cpu_percent()  # begins the first interval

    def machine(self) -> Machine:
        """The machine now."""
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
        """A process of this machine; None where there is none, or it may not be looked at."""
        is_first = pid not in self._processes
        try:
            process = self._processes.setdefault(pid, psutil.Process(pid))
            cores = process.cpu_percent() / 100.0
            return ProcessLoad(None if is_first else cores, process.memory_info().rss)
        except psutil.Error:
            self._processes.pop(pid, None)
            return None


def read_gpus() -> tuple[tuple[Gpu, ...], str]:
    """The GPUs that torch sees, and why there is none. Nothing is allocated on them."""
    if not any(Path(path).exists() for path in GPU_DRIVERS):
        return (), "none: no NVIDIA or AMD driver is loaded on this machine"
    import torch  # takes seconds, and a machine without a GPU does without it

    n = torch.cuda.device_count()
    if not n:
        return (), f"none that torch {torch.__version__} sees, though a driver is loaded"
    return tuple(_gpu(number) for number in range(n)), ""


def _gpu(number: int) -> Gpu:
    import torch

    is_amd = torch.version.hip is not None
    busy = _asked(torch.cuda.utilization, number)
    power = _asked(torch.cuda.power_draw, number)
    # torch hands on what the drivers say: milliwatts of NVIDIA's, watts of AMD's, where 0 stands for no answer.
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
    """The driver's answer; None where it has none (a laptop's power, a virtual GPU's temperature, no library)."""
    try:
        answer = question(number)
    except _refusals():
        return None
    return float(answer) if isinstance(answer, int | float) else None  # AMD's says "N/A" in words


def _refusals() -> tuple[type[Exception], ...]:
    """What torch raises for a figure it cannot get; the drivers' own classes are there only where torch loaded them."""
    own = [getattr(sys.modules.get(module), name, None) for module, name in DRIVER_ERRORS]
    return (RuntimeError, ImportError, AttributeError, KeyError, OSError, *(kind for kind in own if kind is not None))


DRIVER_ERRORS: Sequence[tuple[str, str]] = (("pynvml", "NVMLError"), ("amdsmi", "AmdSmiException"))
