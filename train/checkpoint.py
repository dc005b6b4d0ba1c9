"""Checkpoints of a training run. A killed run resumes from them with bit-identical results.

A checkpoint is one safetensors file with tensors and a JSON header, so nothing in it is executed. It is written
atomically. A file that is truncated, damaged (one hash covers everything), in a different format or from a different
run is rejected with an error that names the file. The header contains the run's identity: its settings, environment,
data, code and torch version.

Checkpoints are at least `every_s` seconds apart and cost at most 1 % of the run's time. If a checkpoint cannot be
written, such as on a full disk, a warning is logged and training continues.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drl_agents.atomic_file import safetensors_bytes, write_atomically
from drl_agents.policy_file import load_policy, save_policy

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
FORMAT, FORMAT_VERSION = "crypto-training-checkpoint", 1
EVERY_S = 30.0  # the most time that a kill costs, in addition to the current update
MOST_COST = 0.01  # fraction of the run's time


class CheckpointError(ValueError):
    """Raised if a checkpoint cannot be used. The message names the file and the reason in one line."""


@dataclass(frozen=True)
class Checkpoints:
    """Locations of a run's checkpoint and of checkpoints that earlier attempts at the same run may have left.

    Attributes:
        folder: folder of `checkpoint.safetensors`; the run resumes from an existing file.
        earlier: folders of earlier attempts, latest first.
        every_s: shortest time between two checkpoints in seconds; 0 writes one after every update, whatever it costs.
        on_written: function called with the path of a new checkpoint, to copy it elsewhere. It is called at most so
            often that it takes 1 % of the run's time.
    """

    folder: Path
    earlier: tuple[Path, ...] = ()
    every_s: float = EVERY_S
    on_written: Callable[[Path], None] | None = None

    @property
    def path(self) -> Path:
        """Path of this run's own checkpoint."""
        return self.folder / CHECKPOINT

    def found(self) -> list[Path]:
        """Return the existing checkpoints, latest attempt first."""
        return [path for path in (folder / CHECKPOINT for folder in (self.folder, *self.earlier)) if path.exists()]

    def discard(self) -> None:
        """Remove the checkpoints of this run and of earlier attempts, including partly written files."""
        for folder in (self.folder, *self.earlier):
            for path in (folder / CHECKPOINT, *folder.glob(f".{CHECKPOINT}.*.tmp")):
                path.unlink(missing_ok=True)


@dataclass
class Keeper:
    """Writes a run's checkpoints when they are due."""

    where: Checkpoints
    identity: Mapping[str, Any]
    written_s: float = field(default_factory=time.monotonic)  # time of the last checkpoint, or of the start
    cost_s: float = 0.0  # cost of the last checkpoint
    sent_s: float = 0.0  # time at which a checkpoint was last passed on
    send_cost_s: float = 0.0
    has_warned: bool = False
    n_written: int = 0
    total_s: float = 0.0

    def is_due(self) -> bool:
        """Return True if enough time has passed since the last checkpoint."""
        wait_s = max(self.where.every_s, self.cost_s / MOST_COST) if self.where.every_s > 0.0 else 0.0
        return time.monotonic() - self.written_s >= wait_s

    def write(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], started_s: float) -> None:
        """Replace the run's checkpoint, or log a warning and keep the old one; `started_s` is when collecting began."""
        try:
            write_checkpoint(self.where.path, self.identity, facts, tensors)
        except (OSError, MemoryError) as error:
            if not self.has_warned:
                log.warning("could not write %s: %s; training continues, but a kill would lose more work than usual",
                            self.where.path, getattr(error, "strerror", None) or error)  # fmt: skip
            self.has_warned = True
        else:
            self.n_written += 1
        self.written_s = time.monotonic()
        self.cost_s = self.written_s - started_s
        self._send()
        self.total_s += time.monotonic() - started_s

    def _send(self) -> None:
        """Call `on_written` if enough time has passed, given how long the last call took."""
        is_due = self.where.every_s <= 0.0 or self.written_s - self.sent_s >= self.send_cost_s / MOST_COST
        if self.where.on_written is not None and is_due and self.where.path.exists():
            self.where.on_written(self.where.path)
            self.sent_s = time.monotonic()
            self.send_cost_s = self.sent_s - self.written_s

    def usable(self) -> Iterator[tuple[Path, dict[str, Any], dict[str, Tensor]]]:
        """Yield path, facts and tensors of this run's checkpoints, latest first; unusable ones are logged."""
        for path in self.where.found():
            try:
                yield path, *read_checkpoint(path, self.identity)
            except CheckpointError as error:
                log.warning("%s; the checkpoint is ignored", error)


def write_checkpoint(
    path: Path, identity: Mapping[str, Any], facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write a checkpoint atomically.

    Args:
        path: file to write.
        identity: JSON values, which must be equal in `read_checkpoint`.
        facts: JSON values, which may include nan and infinity.
        tensors: contiguous tensors on the CPU.

    Raises:
        OSError, MemoryError: the file could not be written; an old file is unchanged.
    """
    header = {"format_version": FORMAT_VERSION, "identity": identity, "facts": facts}
    header = json.loads(json.dumps(header, default=_plain))  # the form that a reader gets
    header["sha256"] = _digest(header, tensors)
    write_atomically(path, safetensors_bytes(tensors, {FORMAT: json.dumps(header, sort_keys=True)}))


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return facts and tensors.

    Raises:
        CheckpointError: the file is missing, truncated or damaged, has a different format, or belongs to a run with a
            different identity.
    """
    header, tensors = _read(path)
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format_version')}, but this code reads {FORMAT_VERSION}"
        )
    if header.get("sha256") != _digest(header, tensors):
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    stored, facts = header.get("identity"), header.get("facts")
    if not isinstance(stored, dict) or not isinstance(facts, dict):
        raise CheckpointError(f"{path} is incomplete: its header does not identify the run")
    different = next(differences(stored, json.loads(json.dumps(identity, default=_plain))), None)
    if different is not None:
        name, there, here = different
        raise CheckpointError(f"{path} belongs to another run: its {name} is {there}, expected {here}")
    return facts, tensors


def anywhere(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training settings without the GPU number; the next attempt may use a different GPU, but not a CPU."""
    rest = {name: value for name, value in train.items() if name not in ("gpu_id", "rocm_settings")}
    return rest | {"on_gpu": train["gpu_id"] >= 0}


def differences(stored: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Return (dotted name, value there, value here) of each difference, with values shortened to one line."""
    for name in sorted(stored.keys() | own.keys()):
        there, here = stored.get(name), own.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from ((f"{name}.{inner}", theirs, ours) for inner, theirs, ours in differences(there, here))
        elif there != here:
            yield name, _shortened(there), _shortened(here)


def copy_policy(source: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Copy a policy file with bit-identical weights and different provenance, such as a different trial number.

    Raises:
        PolicyFileError: `source` cannot be used.
    """
    policy = load_policy(source)
    save_policy(target, policy, {**policy.metadata, **facts})


def file_tensor(path: Path) -> Tensor:
    """Return the content of a file as a uint8 tensor (B,)."""
    return torch.from_numpy(np.fromfile(path, dtype=np.uint8))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names `prefix.name`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that `prefixed` stored under `prefix`, with their original names."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # The file is memory-mapped; copies stay valid if it is replaced later.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            text = (file.metadata() or {}).get(FORMAT)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {str(error).splitlines()[0]}") from error
    if text is None:
        raise CheckpointError(f"{path} is not a checkpoint of this project: its header has no {FORMAT!r}")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is not a JSON object")
    return header, tensors


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return one hash over the header without its hash entry, and every tensor's name, dtype, shape and content."""
    described = {name: value for name, value in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _shortened(value: Any, most: int = 60) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _plain(value: Any) -> Any:
    """Return the JSON form of NumPy scalars and arrays, and of paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a checkpoint's header must be JSON; received {type(value).__name__} {value!r}")
