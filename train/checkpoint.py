"""A training run's checkpoint: the file that a killed run goes on from, to the bits of one that was never stopped.

It is one safetensors file. It holds tensors and one JSON header, so nothing in it can run. It is written whole or not
at all, and refused by name when it is truncated, damaged (one hash over everything), of another format, or of another
run: the header carries the run's identity, which is its settings, environment, data, code and torch version.

Writing is bounded by time: not more often than every `every_s`, nor so often that it costs more than 1 % of the run.
A checkpoint that cannot be written (a full disk) is worth a warning, not the run.
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
EVERY_S = 30.0  # what a kill costs at most, beside the update it falls into
MOST_COST = 0.01  # share of a run's time


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file and the reason in one line."""


@dataclass(frozen=True)
class Checkpoints:
    """Where a run keeps its checkpoint, and where earlier attempts at the same run may have left theirs.

    Attributes:
        folder: gets `checkpoint.safetensors`; one that is there already is gone on from.
        earlier: folders of earlier attempts, the latest first.
        every_s: least time between two; 0 keeps one after every update, whatever it costs.
        on_written: sends a checkpoint elsewhere; called with its path, but not so often that it costs more than 1 %.
    """

    folder: Path
    earlier: tuple[Path, ...] = ()
    every_s: float = EVERY_S
    on_written: Callable[[Path], None] | None = None

    @property
    def path(self) -> Path:
        """This run's own."""
        return self.folder / CHECKPOINT

    def found(self) -> list[Path]:
        """Those that are there, the latest attempt's first."""
        return [path for path in (folder / CHECKPOINT for folder in (self.folder, *self.earlier)) if path.exists()]

    def discard(self) -> None:
        """Remove this run's checkpoints, the earlier attempts' too, and what a kill in mid-write left of one."""
        for folder in (self.folder, *self.earlier):
            for path in (folder / CHECKPOINT, *folder.glob(f".{CHECKPOINT}.*.tmp")):
                path.unlink(missing_ok=True)


@dataclass
class Keeper:
    """Writes one run's checkpoints when they are due."""

    where: Checkpoints
    identity: Mapping[str, Any]
    written_s: float = field(default_factory=time.monotonic)  # when the last one was, or the run began
    cost_s: float = 0.0  # of the last one
    sent_s: float = 0.0  # when one was last handed on
    send_cost_s: float = 0.0
    has_warned: bool = False
    n_written: int = 0
    total_s: float = 0.0

    def is_due(self) -> bool:
        """Whether enough time has passed since the last one."""
        wait_s = max(self.where.every_s, self.cost_s / MOST_COST) if self.where.every_s > 0.0 else 0.0
        return time.monotonic() - self.written_s >= wait_s

    def write(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], started_s: float) -> None:
        """Replace the run's checkpoint, or warn and leave the old one; `started_s` is when collecting began."""
        try:
            write_checkpoint(self.where.path, self.identity, facts, tensors)
        except (OSError, MemoryError) as error:
            if not self.has_warned:
                log.warning("%s cannot be written (%s): training goes on, and a kill would cost more than usual",
                            self.where.path, getattr(error, "strerror", None) or error)  # fmt: skip
            self.has_warned = True
        else:
            self.n_written += 1
        self.written_s = time.monotonic()
        self.cost_s = self.written_s - started_s
        self._send()
        self.total_s += time.monotonic() - started_s

    def _send(self) -> None:
        """Hand the checkpoint on, if that is due by what it cost the last time."""
        is_due = self.where.every_s <= 0.0 or self.written_s - self.sent_s >= self.send_cost_s / MOST_COST
        if self.where.on_written is not None and is_due and self.where.path.exists():
            self.where.on_written(self.where.path)
            self.sent_s = time.monotonic()
            self.send_cost_s = self.sent_s - self.written_s

    def usable(self) -> Iterator[tuple[Path, dict[str, Any], dict[str, Tensor]]]:
        """Path, facts and tensors of this run's checkpoints, the latest first; others are refused in the log."""
        for path in self.where.found():
            try:
                yield path, *read_checkpoint(path, self.identity)
            except CheckpointError as error:
                log.warning("%s; it is not used", error)


def write_checkpoint(
    path: Path, identity: Mapping[str, Any], facts: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write atomically.

    Args:
        path: of the file.
        identity: JSON values; `read_checkpoint` must be given equal ones.
        facts: JSON values, nan and infinities among them.
        tensors: on the CPU, contiguous.

    Raises:
        OSError, MemoryError: it could not be written; an old file is as it was.
    """
    header = {"format_version": FORMAT_VERSION, "identity": identity, "facts": facts}
    header = json.loads(json.dumps(header, default=_plain))  # what a reader gets
    header["sha256"] = _digest(header, tensors)
    write_atomically(path, safetensors_bytes(tensors, {FORMAT: json.dumps(header, sort_keys=True)}))


def read_checkpoint(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors.

    Raises:
        CheckpointError: a missing, truncated, damaged or foreign file, or one of a run with another identity.
    """
    header, tensors = _read(path)
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format_version')}; this code reads {FORMAT_VERSION}"
        )
    if header.get("sha256") != _digest(header, tensors):
        raise CheckpointError(f"{path} is damaged: its content does not have the checksum stored with it")
    stored, facts = header.get("identity"), header.get("facts")
    if not isinstance(stored, dict) or not isinstance(facts, dict):
        raise CheckpointError(f"{path} is incomplete: its header does not say what run it is of")
    different = next(differences(stored, json.loads(json.dumps(identity, default=_plain))), None)
    if different is not None:
        name, there, here = different
        raise CheckpointError(f"{path} is of another run: its {name} is {there}, expected {here}")
    return facts, tensors


def anywhere(train: Mapping[str, Any]) -> dict[str, Any]:
    """Training settings without those of the GPU: the next attempt may be given another one, but not a CPU."""
    rest = {name: value for name, value in train.items() if name not in ("gpu_id", "rocm_settings")}
    return rest | {"on_gpu": train["gpu_id"] >= 0}


def differences(stored: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(dotted name, value there, value here) of what differs, values shortened for one line."""
    for name in sorted(stored.keys() | own.keys()):
        there, here = stored.get(name), own.get(name)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from ((f"{name}.{inner}", theirs, ours) for inner, theirs, ours in differences(there, here))
        elif there != here:
            yield name, _shortened(there), _shortened(here)


def copy_policy(source: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """A policy file with other facts about where it comes from, such as the trial's number; weights bit by bit.

    Raises:
        PolicyFileError: `source` cannot be used.
    """
    policy = load_policy(source)
    save_policy(target, policy, {**policy.metadata, **facts})


def file_tensor(path: Path) -> Tensor:
    """A whole file as bytes (B,) uint8."""
    return torch.from_numpy(np.fromfile(path, dtype=np.uint8))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under `prefix.name`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `prefixed` put under `prefix`, by its own name."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # The file is mapped; copies outlive a later replacement of it.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            text = (file.metadata() or {}).get(FORMAT)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {str(error).splitlines()[0]}") from error
    if text is None:
        raise CheckpointError(f"{path} is not a checkpoint of this repository: its header has no {FORMAT!r}")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its header cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is no table")
    return header, tensors


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """One hash over the header, but for the hash itself, and every tensor's name, type, shape and content."""
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
    """JSON form of NumPy scalars and arrays, and paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a checkpoint's header must be JSON: {type(value).__name__} {value!r} is not")
