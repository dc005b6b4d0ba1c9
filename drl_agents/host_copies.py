"""Copies from the host to a device: plain, or from pinned memory and without waiting for them.

Asynchronous copies are off unless a program turns them on for its process. A transfer from pinned memory runs while the
host goes on, so the host must not write to that memory before the transfer is complete: `Staging` waits for its event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

HOST = torch.device("cpu")
Copy = Callable[[Tensor, Tensor], None]

_is_asynchronous = False


class Event(Protocol):
    """A point in a stream of device work, such as `torch.cuda.Event`."""

    def record(self) -> None:
        """Mark the work that was launched so far."""
        ...

    def synchronize(self) -> None:
        """Wait for that work."""
        ...


def use_asynchronous_copies(wanted: bool) -> None:
    """Turn asynchronous copies on or off for this process."""
    global _is_asynchronous
    _is_asynchronous = wanted


def uses_asynchronous_copies() -> bool:
    """Whether they are on."""
    return _is_asynchronous


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return the tensor on a device.

    An asynchronous copy starts from a pinned copy of the tensor that nobody else can write to. torch keeps that memory
    until the transfer is complete.
    """
    target = torch.device(device)
    if not _is_asynchronous or target.type == HOST.type or tensor.device.type != HOST.type:
        return tensor.to(target)
    return tensor.pin_memory().to(target, non_blocking=True)


class StreamEvent:
    """An event on the stream that copies to a device run on, whichever device is the current one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.event = device, torch.cuda.Event()

    def record(self) -> None:
        """Mark the work that was launched so far."""
        self.event.record(torch.cuda.current_stream(self.device))

    def synchronize(self) -> None:
        """Wait for that work."""
        self.event.synchronize()


def copy_without_waiting(target: Tensor, source: Tensor) -> None:
    """Start a copy and return."""
    target.copy_(source, non_blocking=True)


class Staging:
    """Guards a host buffer that is written again and again and sent to a device each time.

    Args:
        event: marks the copies that were started.
        copy: starts a copy of (target, source).
        pin_memory: whether the buffer is to be in pinned memory; only with a device's driver.
    """

    def __init__(self, event: Event, copy: Copy = copy_without_waiting, pin_memory: bool = True) -> None:
        self.event, self.copy, self.pin_memory = event, copy, pin_memory
        self.is_in_flight = False

    def send(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Start the copies of (target, source) pairs."""
        for target, source in pairs:
            self.copy(target, source)
        self.event.record()
        self.is_in_flight = True

    def wait(self) -> None:
        """Wait until the buffer may be written again."""
        if self.is_in_flight:
            self.event.synchronize()
            self.is_in_flight = False


def staging_for(device: torch.device) -> Staging | None:
    """Return the guard of a new host buffer that feeds `device`; None where copies are plain."""
    if not _is_asynchronous or device.type == HOST.type:
        return None
    return Staging(StreamEvent(device))
