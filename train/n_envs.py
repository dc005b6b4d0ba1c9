"""How many environments to step together: what their memory allows, and where more of them stop shortening a run.

An update sees `rollout_samples` of all environments together, so more environments mean fewer steps of each before it.
With few steps an advantage rests on the critic's guess of what follows instead of on rewards, so the number is the
largest power of two that leaves enough.

* On a CPU a step's cost has fallen to a fraction by a dozen environments, and learning takes most of a run from there
  on (benchmarks/step.py --scale, benchmarks/trial.py): little is gained by more, and the horizon stays long.
* A GPU pays for a call and hardly for its rows, and the number of calls a rollout needs is its horizon: a short one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

LEAST_HORIZON_CPU, LEAST_HORIZON_GPU = 64, 8  # steps of each environment in the smallest rollout
MOST_MEMORY = 0.5  # share of the free memory that environments and rollout may take
SHARED = ("market", "price_array", "env")  # attributes that all environments of an object share, or that lead back


@dataclass(frozen=True)
class Choice:
    """A number of environments, and why it is not larger."""

    n_envs: int
    reason: str


def choose_n_envs(
    *, bytes_per_env: int, rollout_bytes: int, free_bytes: int, least_rollout_samples: int, on_gpu: bool
) -> Choice:
    """The number of environments for a study; the same arguments give the same number.

    Args:
        bytes_per_env: books and buffers of one environment.
        rollout_bytes: of the largest rollout and its update, whatever the number of environments.
        free_bytes: memory of the device.
        least_rollout_samples: of the smallest rollout, all environments together.
        on_gpu: whether environments and networks are on a GPU.

    Raises:
        ValueError: when not even one environment fits.
    """
    room = int(free_bytes * MOST_MEMORY) - rollout_bytes
    fitting = room // bytes_per_env
    if fitting < 1:
        raise ValueError(
            f"an environment needs {_size(bytes_per_env)} and the largest rollout {_size(rollout_bytes)}; "
            f"{MOST_MEMORY:.0%} of the {_size(free_bytes)} that are free is less"
        )
    horizon = LEAST_HORIZON_GPU if on_gpu else LEAST_HORIZON_CPU
    n_envs = _power_of_two(min(fitting, max(least_rollout_samples // horizon, 1)))
    limit = f"twice as many would take more than {MOST_MEMORY:.0%} of the free memory"
    if 2 * n_envs <= fitting:
        device = "a GPU, where calls are what is paid for" if on_gpu else "a CPU, where learning takes most of a trial"
        steps = least_rollout_samples // n_envs
        limit = (
            f"the smallest rollout, {least_rollout_samples:,} samples, then has {steps} steps of each, and at least "
            f"{horizon} are wanted on {device}"
        )
    memory = f"{_size(bytes_per_env)} each and {_size(rollout_bytes)} a rollout, {_size(free_bytes)} free"
    return Choice(n_envs, f"{limit}; {memory}")


def rollout_bytes(n_samples: int, state_dim: int, action_dim: int) -> int:
    """Of a rollout and its update.

    A sample has its observation, the last one of an episode that ends with it, and in the update a normalised and a
    shuffled copy; action and noise, both again when shuffled; reward, value, advantage and the like.
    """
    return 4 * n_samples * (4 * state_dim + 4 * action_dim + 10)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _size(n_bytes: int) -> str:
    units = ("bytes", "KiB", "MiB", "GiB")
    power = min(max(n_bytes.bit_length() - 1, 0) // 10, 3)
    return f"{n_bytes / 1024**power:.3g} {units[power]}"


def buffer_bytes(env: Any) -> int:
    """Bytes of a batched environment that grow with the number of its accounts: books and buffers, without the market.

    Counted from its tensors and arrays, because a process grows by less: the allocator hands out again what building
    the market left free.
    """
    total = end = 0
    for first, last in sorted(set(_spans(env))):  # views overlap; each byte counts once
        total += max(last - max(first, end), 0)
        end = max(end, last)
    return total


def _spans(value: Any) -> Iterator[tuple[int, int]]:
    """(first, last + 1) addresses of every tensor and array below a value."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
    elif isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        yield value.ctypes.data, value.ctypes.data + value.nbytes
    else:
        for item in _parts(value):
            yield from _spans(item)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, tuple):
        named = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
        return [item for name, item in named if name not in SHARED]
    is_ours = is_dataclass(value) or type(value).__module__.startswith("environment_Alpaca")
    if not is_ours or isinstance(value, type):
        return []
    return [item for name, item in vars(value).items() if name not in SHARED]
