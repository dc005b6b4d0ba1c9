"""An agent's whole training state as one safetensors file: networks, optimisers, statistics, random generators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from drl_agents.atomic_file import write_atomically

if TYPE_CHECKING:
    from drl_agents.agents.AgentBase import AgentBase

NETWORKS = ("act", "act_target", "cri", "cri_target")
COUNTERS = ("time_steps", "rollout_start", "gradient_steps")


class AgentStateError(ValueError):
    """An agent's state file that cannot be used. The message names the file and the reason in one line."""


def save_agent_state(agent: AgentBase, path: str | Path) -> None:
    """Write `agent`'s state atomically."""
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in _tensors(agent).items()}
    write_atomically(Path(path), save(tensors, {"agent": type(agent).__name__}))


def load_agent_state(agent: AgentBase, path: str | Path) -> None:
    """Put the state in `path` into `agent`, or change nothing and raise AgentStateError."""
    try:
        stored = load_file(path, device=str(agent.device))
    except (SafetensorError, OSError) as error:
        raise AgentStateError(f"{path} is not a whole agent state file: {error}") from error
    expected = {name: tuple(value.shape) for name, value in _tensors(agent).items() if not _is_optimizer(name)}
    found = {name: tuple(value.shape) for name, value in stored.items() if not _is_optimizer(name)}
    if expected != found:
        different = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        name = different[0]
        raise AgentStateError(
            f"{path} belongs to another agent: {name} has shape {found.get(name)}, expected {expected.get(name)}"
        )
    _restore(agent, stored)


def _is_optimizer(name: str) -> bool:
    return name.startswith("optimizer.")


def _tensors(agent: AgentBase) -> dict[str, Tensor]:
    """Every tensor of the state by its dotted name."""
    tensors = {f"{name}.{key}": value for name in NETWORKS for key, value in getattr(agent, name).state_dict().items()}
    tensors |= {f"obs_norm.{key}": value for key, value in agent.obs_norm.tensors().items()}
    tensors |= {f"extra.{key}": value for key, value in agent.extra_tensors().items()}
    tensors |= {f"counter.{name}": torch.tensor(getattr(agent, name)) for name in COUNTERS}
    tensors |= {"generator": agent.generator.get_state(), "host_generator": agent.host_generator.get_state()}
    for name, optimizer in agent.optimizers().items():
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def _group(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix.`, by the rest of the name."""
    return {name.removeprefix(f"{prefix}."): value for name, value in stored.items() if name.startswith(f"{prefix}.")}


def _restore(agent: AgentBase, stored: dict[str, Tensor]) -> None:
    for name in NETWORKS:
        getattr(agent, name).load_state_dict(_group(stored, name))
    agent.obs_norm.load(_group(stored, "obs_norm"))
    agent.load_extra_tensors(_group(stored, "extra"))
    for name in COUNTERS:
        setattr(agent, name, int(stored[f"counter.{name}"]))
    agent.generator.set_state(stored["generator"].cpu())
    agent.host_generator.set_state(stored["host_generator"].cpu())
    for name, optimizer in agent.optimizers().items():
        _restore_optimizer(optimizer, _group(stored, f"optimizer.{name}"))


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in stored.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
