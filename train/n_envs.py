"""Choice of the number of environments from memory and the length of rollouts.

An update uses `rollout_samples` samples from all environments together, so with more environments each one contributes
fewer steps per update. With few steps, advantages depend on the critic instead of the rewards. The number is therefore
the largest power of two that leaves each environment enough steps.

* On a CPU the cost per step falls to a fraction with a dozen environments, and learning dominates beyond that
  (benchmarks/step.py --scale, benchmarks/trial.py). More environments gain little, so the horizon stays long.
* On a GPU the cost is per call and almost independent of the number of rows. A rollout needs as many calls as its
  horizon has steps, so the horizon is short.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

LEAST_HORIZON_CPU, LEAST_HORIZON_GPU = 64, 8  # fewest steps of each environment in the smallest rollout
MOST_MEMORY = 0.5  # fraction of the free memory that environments and rollout may take
SHARED = ("market", "price_array", "env")  # attributes that are shared by all environments, or that point back


@dataclass(frozen=True)
class Choice:
    """Number of environments, and the reason why it is not larger."""

    n_envs: int
    reason: str


def choose_n_envs(
    *, bytes_per_env: int, rollout_bytes: int, free_bytes: int, least_rollout_samples: int, on_gpu: bool
) -> Choice:
    """Return the number of environments for a study. The same arguments always give the same number.

    Args:
        bytes_per_env: account state and buffers of one environment in bytes.
        rollout_bytes: size of the largest rollout and its update, independent of the number of environments.
        free_bytes: free memory of the device in bytes.
        least_rollout_samples: samples of the smallest rollout, all environments together.
        on_gpu: True if environments and networks are on a GPU.

    Raises:
        ValueError: not even one environment fits into memory.
    """
    room = int(free_bytes * MOST_MEMORY) - rollout_bytes
    fitting = room // bytes_per_env
    if fitting < 1:
        raise ValueError(
            f"one environment ({_size(bytes_per_env)}) and the largest rollout ({_size(rollout_bytes)}) together "
            f"need more than {MOST_MEMORY:.0%} of the free memory ({_size(free_bytes)}); use smaller networks or "
            "rollouts"
        )
    horizon = LEAST_HORIZON_GPU if on_gpu else LEAST_HORIZON_CPU
    n_envs = _power_of_two(min(fitting, max(least_rollout_samples // horizon, 1)))
    limit = f"twice as many would take more than {MOST_MEMORY:.0%} of the free memory"
    if 2 * n_envs <= fitting:
        device = "a GPU, where each call has a cost" if on_gpu else "a CPU, where learning takes most of a trial"
        steps = least_rollout_samples // n_envs
        limit = (
            f"with more, the smallest rollout ({least_rollout_samples:,} samples) has only {steps} steps of each; at "
            f"least {horizon} are needed on {device}"
        )
    memory = f"{_size(bytes_per_env)} each and {_size(rollout_bytes)} a rollout, {_size(free_bytes)} free"
    return Choice(n_envs, f"{limit}; {memory}")


def rollout_bytes(n_samples: int, state_dim: int, action_dim: int) -> int:
    """Return the size of a rollout and its update in bytes.

    A sample holds its observation, the final observation if an episode ends with it, and during the update a normalized
    and a shuffled copy. It also holds action and noise, each with a shuffled copy, and reward, value, advantage and
    similar numbers.
    """
    return 4 * n_samples * (4 * state_dim + 4 * action_dim + 10)


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _size(n_bytes: int) -> str:
    units = ("bytes", "KiB", "MiB", "GiB")
    power = min(max(n_bytes.bit_length() - 1, 0) // 10, 3)
    return f"{n_bytes / 1024**power:.3g} {units[power]}"


def buffer_bytes(env: Any) -> int:
    """Return the bytes of account state and buffers in a batched environment, without the market.

    The bytes are counted from tensors and arrays. Measuring the growth of the process would give too little, because
    the allocator reuses memory that was freed while the market was built.
    """
    total = end = 0
    for first, last in sorted(set(_spans(env))):  # views overlap, so each byte is counted once
        total += max(last - max(first, end), 0)
        end = max(end, last)
    return total


def _spans(value: Any) -> Iterator[tuple[int, int]]:
    """Return (first, last + 1) addresses of every tensor and array below a value."""
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
