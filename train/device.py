"""Setup of the compute device before its first use.

These settings are applied:

* torch's CPU threads are set to `TrainConfig.cpu_threads`, 1 by default. A forward pass of 12 rows is too small to
  share. An update of 128-wide networks gains a factor of 1.4 from a second idle core, but slows down by a factor of 10
  or more if that core is busy, because torch's threads spin while they wait (benchmarks/update.py --threads). A study
  uses additional cores for workers instead. The number of threads also fixes the order of sums, so results depend on
  it as they do on the seed.
* float32 matrix products on NVIDIA GPUs use TF32, unless `TrainConfig.matmul_precision` is "highest". Weights and
  activations of a policy do not need a 24-bit mantissa, and tensor cores are several times as fast. Accounts are
  float64 and elementwise, so they are not affected. AMD GPUs accept the same switch and use it if the chip has such a
  mode.
* glibc's allocator keeps freed memory. By default it returns blocks of a minibatch's size to the system and gets them
  back page by page. A gradient step of 2048 samples on 512-wide networks had 4600 page faults and spent 7 to 10 of 57
  ms in the kernel. If freed memory is kept, it has 50 page faults and spends no such time (2-core EPYC, one thread).
* The settings of `train.rocm` are applied on ROCm builds of torch: MIOpen's variables, hipBLASLt, asynchronous copies.
  They are the only speed settings that were chosen without a measurement.

These settings are deliberately not used:

* cuBLASLt preference: torch already uses it for `addmm` with a bias on supported chips, and its effect on the other
  products of an update could not be measured here.
* allocator options (expandable segments, split sizes): rollout storage is allocated once and minibatches have one
  size, so memory does not fragment.
* cuDNN autotuning: there are no convolutions.
* `numba.set_num_threads`: its first call in a process starts a second OpenMP pool, after which the same seed gave
  different results (tests/study/test_every_setting_matters.py).
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
LARGEST_KEPT_BYTES, MOST_KEPT_BYTES = 32 << 20, 512 << 20  # limit per block (glibc's maximum) and in total

# torch's CPU allocator raises a plain RuntimeError.
NO_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc", "out of memory")


def prepare_device(
    gpu_id: int, cpu_threads: int = 1, matmul_precision: str | None = None, rocm_settings: bool = False
) -> torch.device:
    """Set threads, matrix precision and allocator of this process and return the device.

    Args:
        gpu_id: GPU number; -1 is the CPU.
        cpu_threads: number of torch threads within one operation.
        matmul_precision: precision of float32 products, as in `TrainConfig`.
        rocm_settings: apply the settings of `train.rocm` on ROCm builds of torch.

    Raises:
        ValueError: the GPU does not exist.
    """
    if torch.get_num_threads() != cpu_threads:
        torch.set_num_threads(cpu_threads)
    keep_freed_memory()
    apply_rocm_settings(gpu_id, rocm_settings)
    if gpu_id < 0:
        return torch.device("cpu")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_id >= n_gpus:
        raise ValueError(f"there is no GPU {gpu_id}: torch finds {n_gpus}; use -1 for the CPU")
    torch.set_float32_matmul_precision("highest" if matmul_precision == "highest" else "high")
    device = torch.device(f"cuda:{gpu_id}")
    log.info("Device: %s, %s", device, torch.cuda.get_device_name(device))
    return device


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for later tensors. Return True if the platform supports this."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT_BYTES))


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error of Python, NumPy or torch reports that memory is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def release_memory() -> None:
    """Free unreachable objects, and return cached device memory to other processes."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
