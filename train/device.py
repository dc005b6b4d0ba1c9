"""Set-up of the compute device, once, before its first use.

What is set, and why:

* torch's CPU threads, to `TrainConfig.cpu_threads`, 1 by default. A 12-row forward pass is too small to share, and an
  update of 128-wide networks gains a factor of 1.4 from a second idle core but loses a factor of 10 and more when
  that core is taken (benchmarks/update.py --threads): the threads of torch's pool spin while they wait for one
  another. A study fills further cores with workers instead. The number also fixes the order of sums, so it belongs to
  the seed.
* float32 matrix products on NVIDIA GPUs in TF32, unless `TrainConfig.matmul_precision` is "highest": weights and
  activations of a policy need no 24-bit mantissa, and tensor cores work at a multiple of the plain rate. Accounts are
  float64 elementwise and unaffected. On AMD GPUs the same switch is accepted and used where the chip has such a mode.
* glibc's allocator keeps what is freed. By default it hands blocks of a minibatch's size back to the system and gets
  them again page by page: a gradient step of 2048 samples on 512-wide networks had 4600 page faults and spent 7 to 10
  of 57 ms in the kernel, and has 50 and none with freed memory kept (2-core EPYC, one thread).
* what `train.rocm` lists, on ROCm builds of torch: MIOpen's variables, hipBLASLt, asynchronous copies. This is the one
  exception to the rule that a speed setting is chosen by timing: the first user asked for it, and nobody measured it.

What is left out, and why:

* cuBLASLt by preference: torch already takes it for `addmm` with a bias, on chips that support it; nothing here could
  measure the other products of an update. On AMD GPUs hipBLASLt is preferred (`train.rocm`): a wish, not a measurement.
* allocator options (expandable segments, split sizes): rollout storage is allocated once and minibatches have one
  size, so there is nothing to fragment.
* cuDNN autotuning: no convolutions.
* `numba.set_num_threads`: its first call in a process starts another OpenMP pool, after which the same seed no longer
  gave the same bits as before it (tests/study/test_every_setting_matters.py).
"""

from __future__ import annotations

import ctypes
import gc
import logging
import platform

import torch

from train.rocm import apply_rocm_settings

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt's names, malloc.h
LARGEST_KEPT_BYTES, MOST_KEPT_BYTES = 32 << 20, 512 << 20  # a block (glibc allows no more), and all of them

# torch's allocator on the CPU raises a plain RuntimeError.
NO_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc", "out of memory")


def prepare_device(
    gpu_id: int, cpu_threads: int = 1, matmul_precision: str | None = None, rocm_settings: bool = False
) -> torch.device:
    """Set threads, matrix precision and allocator of this process and return the device.

    Args:
        gpu_id: index of the GPU, -1 for the CPU.
        cpu_threads: of torch within one operation.
        matmul_precision: as `TrainConfig` says; of float32 products on a GPU.
        rocm_settings: whether the settings of `train.rocm` are made, on ROCm builds of torch.

    Raises:
        ValueError: for a GPU that is not there.
    """
    if torch.get_num_threads() != cpu_threads:
        torch.set_num_threads(cpu_threads)
    keep_freed_memory()
    apply_rocm_settings(gpu_id, rocm_settings)
    if gpu_id < 0:
        return torch.device("cpu")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_id >= n_gpus:
        raise ValueError(f"there is no GPU {gpu_id}: torch sees {n_gpus}; take -1 for the CPU")
    torch.set_float32_matmul_precision("highest" if matmul_precision == "highest" else "high")
    device = torch.device(f"cuda:{gpu_id}")
    log.info("Device: %s, %s", device, torch.cuda.get_device_name(device))
    return device


def keep_freed_memory() -> bool:
    """Let glibc reuse what a step freed for the next one's tensors -> whether it does; elsewhere nothing changes."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had: Python's, NumPy's, torch's on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def release_memory() -> None:
    """Give back what is unreachable by now, to this process and to the device's others."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
