"""Copies from the host to a device: synchronous, or asynchronous from pinned memory.

Asynchronous copies are disabled unless a program enables them for its process. The host continues while pinned memory
is transferred. It must not write to that memory before the transfer is complete, so `Staging` waits for the transfer's
event.
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
        """Record the point after all work launched so far."""
        ...

    def synchronize(self) -> None:
        """Wait for that work."""
        ...


def use_asynchronous_copies(wanted: bool) -> None:
    """Enable or disable asynchronous copies for this process."""
    global _is_asynchronous
    _is_asynchronous = wanted


def uses_asynchronous_copies() -> bool:
    """Return True if asynchronous copies are enabled."""
    return _is_asynchronous


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return the tensor on a device.

    An asynchronous copy starts from a private pinned copy of the tensor. torch keeps that memory until the transfer is
    complete.
    """
    target = torch.device(device)
    if not _is_asynchronous or target.type == HOST.type or tensor.device.type != HOST.type:
        return tensor.to(target)
    return tensor.pin_memory().to(target, non_blocking=True)


class StreamEvent:
    """Event on the stream used for copies to a device, whatever the current device is."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.event = device, torch.cuda.Event()

    def record(self) -> None:
        """Record the point after all work launched so far."""
        self.event.record(torch.cuda.current_stream(self.device))

    def synchronize(self) -> None:
        """Wait for that work."""
        self.event.synchronize()


def copy_without_waiting(target: Tensor, source: Tensor) -> None:
    """Start an asynchronous copy."""
    target.copy_(source, non_blocking=True)


class Staging:
    """Guard of a host buffer that is rewritten and sent to a device repeatedly.

    Args:
        event: marks the copies started so far.
        copy: starts a copy of (target, source).
        pin_memory: True to pin the buffer's memory, which requires a device driver.
    """

    def __init__(self, event: Event, copy: Copy = copy_without_waiting, pin_memory: bool = True) -> None:
        self.event, self.copy, self.pin_memory = event, copy, pin_memory
        self.is_in_flight = False

    def send(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Start copies of (target, source) pairs."""
        for target, source in pairs:
            self.copy(target, source)
        self.event.record()
        self.is_in_flight = True

    def wait(self) -> None:
        """Wait until the buffer may be overwritten."""
        if self.is_in_flight:
            self.event.synchronize()
            self.is_in_flight = False


def staging_for(device: torch.device) -> Staging | None:
    """Return the guard of a new host buffer for `device`, or None if copies are synchronous."""
    if not _is_asynchronous or device.type == HOST.type:
        return None
    return Staging(StreamEvent(device))
