"""Policy files: safetensors with one JSON header, without code that could run on loading.

The file contains everything needed to use the policy: weights and normalizer, the expected observation, the training
environment, coins and features by name, the hash of the data, the seed and the code version.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drl_agents.atomic_file import safetensors_bytes, write_atomically
from drl_agents.policy import Policy

# Format 3 adds `head`. It is written only for the head "band", so that files with the head "orders" stay unchanged.
# Older code, which supports only orders, therefore rejects a band policy by its format instead of trading it
# incorrectly.
FORMAT, FORMAT_VERSION, FORMAT_WITH_HEAD = "crypto-trading-policy", 2, 3
HEADS = ("orders", "band")
HEADER_KEYS = {
    FORMAT_VERSION: ("clip", "n_layers", "metadata", "sha256"),
    FORMAT_WITH_HEAD: ("clip", "n_layers", "metadata", "sha256", "head"),
}
# Present in every file, null if the caller did not provide them.
METADATA_KEYS = (
    "agent", "env_params", "observation_layout", "tickers", "feature_names", "bar_seconds", "data_sha256",
    "data_source", "synthetic", "seed", "code_version", "env_steps",
)  # fmt: skip


class PolicyFileError(ValueError):
    """Raised for an unusable policy file; the message names the file and the reason in one line."""


def save_policy(path: str | Path, policy: Policy, metadata: Mapping[str, Any] | None = None) -> Path:
    """Write `policy` atomically. `metadata` is added to the policy's own metadata.

    Raises:
        PolicyFileError: If a weight is not finite; an existing file stays unchanged.
    """
    path = Path(path)
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in _tensors(policy).items()}
    _check_weights(path, tensors)
    known = {**dict.fromkeys(METADATA_KEYS), **policy.metadata, **(metadata or {})}
    clip = policy.clip if math.isfinite(policy.clip) else None  # JSON has no infinity
    described = {"clip": clip, "n_layers": len(policy.layers), "metadata": known} | _head_of(policy)
    described["format_version"] = FORMAT_VERSION if policy.head == "orders" else FORMAT_WITH_HEAD
    # A JSON round trip, so that the hash covers the values that a reader gets: text keys, and lists instead of tuples.
    header = json.loads(json.dumps(described, default=_plain))
    header["sha256"] = _digest(tensors, header)
    # A single key, because safetensors writes several keys in arbitrary order, and equal policies must give equal
    # files.
    write_atomically(path, safetensors_bytes(tensors, {FORMAT: json.dumps(header, sort_keys=True)}))
    return path


def load_policy(
    path: str | Path,
    *,
    state_dim: int | None = None,
    action_dim: int | None = None,
    net_dims: Sequence[int] | None = None,
) -> Policy:
    """Read a policy onto the CPU.

    Args:
        path: file written by `save_policy`.
        state_dim: expected width of the observation, None for any.
        action_dim: expected number of assets, None for any.
        net_dims: expected hidden widths, None for any.

    Raises:
        PolicyFileError: If the file is missing, truncated, damaged, foreign or mismatched.
    """
    path = Path(path)
    tags, tensors = _read(path)
    if FORMAT not in tags:
        raise PolicyFileError(f"{path} is not a policy of this repository: its header has no {FORMAT!r}")
    header = _header(path, tags[FORMAT])
    _check_types(path, tensors)
    if _digest(tensors, header) != header["sha256"]:
        raise PolicyFileError(f"{path} is damaged: its weights and header do not match the stored checksum")
    _check_weights(path, tensors)
    policy = _assemble(path, tensors, header)
    widths = None if net_dims is None else tuple(net_dims)
    for name, value in (("state_dim", state_dim), ("action_dim", action_dim), ("net_dims", widths)):
        found = getattr(policy, name)
        if value is not None and value != found:
            raise PolicyFileError(f"{path} does not match: its {name} is {found}, expected {value}")
    return policy


def weights_sha256(policy: Policy) -> str:
    """Return a hash of everything that determines an action: weights, normalizer, clip and head, without the header."""
    clip = policy.clip if math.isfinite(policy.clip) else None
    tensors = {name: value.detach().float().cpu() for name, value in _tensors(policy).items()}
    return _digest(tensors, {"clip": clip} | _head_of(policy))


def _head_of(policy: Policy) -> dict[str, str]:
    """Return the header entries of the head; none for "orders", so that older files and hashes stay valid."""
    return {} if policy.head == "orders" else {"head": policy.head}


def _tensors(policy: Policy) -> dict[str, Tensor]:
    tensors = {"state_avg": policy.state_avg, "state_std": policy.state_std}
    if policy.least_weight is not None:
        tensors["least_weight"] = policy.least_weight
    for i, (weight, bias) in enumerate(policy.layers):
        tensors |= {f"layer{i}.weight": weight, f"layer{i}.bias": bias}
    return tensors


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """Return a hash of the header without its own hash, and of the tensors' names, shapes and contents."""
    described = {name: value for name, value in header.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Return the JSON form of NumPy scalars and arrays, tensors and paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"policy metadata must be JSON: {type(value).__name__} {value!r} is not")


def _check_types(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if value.dtype != torch.float32:
            raise PolicyFileError(f"{path} is inconsistent: {name} is {value.dtype}, expected torch.float32")


def _check_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise PolicyFileError(f"{path}: {name} holds values that are not finite; training diverged")


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # The file is memory-mapped. Copies stay valid if the file is replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            return file.metadata() or {}, tensors
    except FileNotFoundError as error:
        raise PolicyFileError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise PolicyFileError(f"{path} is not a complete safetensors file: {reason}") from error


def _header(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        version = header["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError) as error:
        raise PolicyFileError(f"{path} is damaged: its header cannot be read ({error})") from error
    if version not in (FORMAT_VERSION, FORMAT_WITH_HEAD):
        known = f"{FORMAT_VERSION} and {FORMAT_WITH_HEAD}"
        raise PolicyFileError(f"{path} has policy format {version}; this code reads {known}")
    missing = [name for name in HEADER_KEYS[version] if name not in header]
    if missing:
        raise PolicyFileError(f"{path} is damaged: its header has no {missing[0]}")
    if (version == FORMAT_WITH_HEAD) != ("head" in header):
        raise PolicyFileError(f"{path} is damaged: format {version} has {'no ' if 'head' in header else 'a '}head")
    if header.get("head", "orders") not in HEADS:
        raise PolicyFileError(f"{path} has the head {header['head']!r}; this code knows {' and '.join(HEADS)}")
    return header


def _assemble(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Policy:
    """Return the policy of the stored tensors, after checking that they match each other and the observation."""
    try:
        layers = tuple((tensors[f"layer{i}.weight"], tensors[f"layer{i}.bias"]) for i in range(header["n_layers"]))
        clip = math.inf if header["clip"] is None else float(header["clip"])
        head = header.get("head", "orders")
        least = tensors["least_weight"] if head == "band" else None
        average, std = tensors["state_avg"], tensors["state_std"]
        policy = Policy(average, std, layers, clip, dict(header["metadata"]), head, least)
        if set(_tensors(policy)) != set(tensors):
            raise ValueError(f"it has {len(tensors)} tensors for {len(layers)} layers")
        _check_normalizer(policy)
        _check_layers(policy)
        _check_head(policy)
        _check_description(policy)
    except KeyError as error:
        raise PolicyFileError(f"{path} is incomplete: it has no {error}") from error
    except (TypeError, IndexError, AttributeError, OverflowError, ValueError) as error:
        raise PolicyFileError(f"{path} is inconsistent: {error}") from error
    return policy


def _check_normalizer(policy: Policy) -> None:
    average, std, clip = policy.state_avg, policy.state_std, policy.clip
    if average.ndim != 1 or std.shape != average.shape:
        raise ValueError(
            f"state_avg and state_std are {tuple(average.shape)} and {tuple(std.shape)}, expected (S,) both"
        )
    if not bool((std > 0.0).all()):
        raise ValueError(f"state_std must be above 0; its smallest is {std.min().item()}")
    if not clip > 0.0:
        raise ValueError(f"clip must be above 0; it is {clip}")


def _check_layers(policy: Policy) -> None:
    if not policy.layers:
        raise ValueError("it has no layers")
    columns = policy.feature_columns if policy.head == "band" else slice(0, policy.state_dim)
    width = columns.stop - columns.start
    for i, (weight, bias) in enumerate(policy.layers):
        if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise ValueError(f"layer {i} is {tuple(weight.shape)} and takes {width} inputs")
        width = weight.shape[0]


def _check_head(policy: Policy) -> None:
    """Check for two outputs per coin, one least weight per coin, and features within the observation."""
    least, n_assets = policy.least_weight, policy.action_dim
    if least is None:
        return
    n_outputs, last = policy.layers[-1][0].shape[0], policy.feature_columns.stop
    if n_outputs % 2 or not n_outputs or last > policy.state_dim:
        raise ValueError(
            f"a band needs two outputs per coin, of features within the {policy.state_dim} columns of the observation; "
            f"it has {n_outputs} outputs and features up to column {last}"
        )
    if least.shape != (n_assets,) or not bool((least >= 0.0).all()):
        raise ValueError(f"least_weight must be {n_assets} weights of at least 0; it is {least.tolist()}")


def _check_description(policy: Policy) -> None:
    """Check that the header's observation and coins match the weights."""
    layout, tickers = policy.metadata.get("observation_layout"), policy.metadata.get("tickers")
    if layout is not None and sum(width for _, width in layout) != policy.state_dim:
        raise ValueError(f"observation_layout {layout} is not {policy.state_dim} wide")
    n_features = policy.feature_columns.stop - policy.feature_columns.start
    seen = None if layout is None else sum(width for name, width in layout if name == "tech")
    if policy.head == "band" and seen not in (None, n_features):
        raise ValueError(f"the band's network takes {n_features} features, and observation_layout has {seen}")
    if tickers is not None and len(tickers) != policy.action_dim:
        raise ValueError(f"{len(tickers)} tickers for {policy.action_dim} actions")
