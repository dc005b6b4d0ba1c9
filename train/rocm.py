"""Settings for AMD GPUs, applied before the first use of the device, on ROCm builds of torch only.

Unlike all other speed settings of this project, these were not chosen by measurement. `TrainConfig.rocm_settings` and
the trainer's --no-rocm-settings disable all of them. A variable that is already set in the environment is never
changed.

* MIOpen's find mode and cache folders. MIOpen runs convolutions, recurrent layers and batch normalization. The
  networks of this project are multilayer perceptrons, which never call it, so these variables matter only for models
  that a user adds. Find mode 1 is MIOpen's NORMAL: it times every solver for a new layer. The cache folders keep the
  results.
* hipBLASLt as torch's preferred BLAS library for the matrix products of the networks. torch falls back to hipBLAS if
  hipBLASLt does not support the card. The two libraries sum in different orders, so results differ by rounding.
* Asynchronous copies from pinned host memory (`drl_agents.host_copies`). The only repeated copy to a GPU is the rollout
  of the scalar environment (`n_envs` 1). Batched environments stay on the device.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import torch

from drl_agents.host_copies import use_asynchronous_copies, uses_asynchronous_copies

log = logging.getLogger(__name__)

FIND_MODE = "1"
BLAS_LIBRARY = "hipblaslt"
BLAS_VARIABLES = ("TORCH_BLAS_PREFER_HIPBLASLT", "TORCH_BLAS_PREFER_CUBLASLT")  # torch reads both, also on ROCm


def is_rocm_build() -> bool:
    """Return True if this torch was built for AMD GPUs."""
    return getattr(torch.version, "hip", None) is not None


def apply_rocm_settings(gpu_id: int, wanted: bool = True, environ: MutableMapping[str, str] = os.environ) -> None:
    """Apply the settings to this process and log in one line which were applied and which were left unchanged.

    On the CPU, on builds of torch without ROCm, or if `wanted` is False, nothing is set. A second call has no effect.

    Args:
        gpu_id: GPU number; -1 is the CPU.
        wanted: False disables all settings.
        environ: environment variables of this process and its children.
    """
    if gpu_id < 0 or not wanted or not is_rocm_build():
        return
    chosen = miopen_variables(environ)
    missing = {name: value for name, value in chosen.items() if name not in environ}
    kept = [name for name, value in chosen.items() if environ.get(name, value) != value]
    environ.update(missing)
    made = [f"{name}={value}" for name, value in missing.items()]
    given = [name for name in BLAS_VARIABLES if name in environ]
    kept += given
    if not given and _prefer_blas_library():
        made.append(f"BLAS library {BLAS_LIBRARY}")
    if not uses_asynchronous_copies():
        use_asynchronous_copies(True)
        made.append("asynchronous copies from pinned memory")
    if made:
        left = f"; already set in your environment: {', '.join(kept)}" if kept else ""
        log.info("ROCm settings: %s%s (--no-rocm-settings disables them)", ", ".join(made), left)


def miopen_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return MIOpen's variables by name, without the cache folders if the folders cannot be created."""
    home = environ.get("XDG_CACHE_HOME") or (f"{environ['HOME']}/.cache" if environ.get("HOME") else "")
    folder, chosen = Path(home) / "environment_Alpaca" / "miopen", {"MIOPEN_FIND_MODE": FIND_MODE}
    for name, place in (("MIOPEN_USER_DB_PATH", folder / "db"), ("MIOPEN_CUSTOM_CACHE_DIR", folder / "kernels")):
        if name in environ or _can_be_made(place):
            chosen[name] = str(place)
    return chosen


def _can_be_made(folder: Path) -> bool:
    if not folder.is_absolute():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _prefer_blas_library() -> bool:
    """Prefer hipBLASLt and return True if that changed the setting."""
    before = torch.backends.cuda.preferred_blas_library()
    try:
        return torch.backends.cuda.preferred_blas_library(BLAS_LIBRARY) != before
    except RuntimeError as error:
        log.debug("torch has no %s: %s", BLAS_LIBRARY, error)
        return False
