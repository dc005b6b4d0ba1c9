"""Training state of an agent in one safetensors file: networks, optimizers, statistics, random generators.

The file does not contain the replay memory of off-policy agents. A resumed agent fills a new one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drl_agents.atomic_file import safetensors_bytes, write_atomically

if TYPE_CHECKING:
    from drl_agents.agents.AgentBase import AgentBase

NETWORKS = ("act", "act_target", "cri", "cri_target")
SINCE_LATER = ("extra.products",)  # missing from states saved by earlier versions
COUNTERS = ("time_steps", "rollout_start", "gradient_steps")


GENERATORS = ("generator", "host_generator")
ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
NEVER_NEGATIVE = (".exp_avg_sq", ".step", ".count", ".variance", ".state_std", ".value_std")


class AgentStateError(ValueError):
    """Raised for an unusable state file; the message names the file and the reason in one line."""


def save_agent_state(agent: AgentBase, path: str | Path) -> None:
    """Write the state of `agent` atomically, without the replay memory."""
    write_atomically(Path(path), safetensors_bytes(agent_tensors(agent), {"agent": type(agent).__name__}))


def agent_tensors(agent: AgentBase) -> dict[str, Tensor]:
    """Return CPU copies of every state tensor by dotted name, without the replay memory."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in _tensors(agent).items()}


def load_agent_state(agent: AgentBase, path: str | Path) -> None:
    """Load the state in `path` into `agent`; on error, change nothing and raise AgentStateError.

    The state does not contain the replay memory. The agent keeps its own, which is empty in a new process.
    """
    name, stored = _read(path, agent.device)
    own_name = type(agent).__name__
    if name != own_name:
        raise AgentStateError(f"{path} belongs to a different agent: {name}, expected {own_name}")
    restore_agent(agent, stored, path)


def restore_agent(agent: AgentBase, stored: dict[str, Tensor], path: str | Path) -> None:
    """Restore the result of `agent_tensors`; on error, change nothing and raise AgentStateError, naming `path`."""
    found = {key: (tuple(value.shape), value.dtype) for key, value in stored.items()}
    expected = _expected(agent, stored)
    different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if different:
        key = different[0]
        raise AgentStateError(
            f"{path} belongs to a different agent: {key} is {found.get(key)}, expected {expected.get(key)}"
        )
    for key, value in stored.items():
        _check_values(path, key, value)
    _check_generators(path, agent, stored)
    _restore(agent, stored)


def _read(path: str | Path, device: torch.device) -> tuple[str | None, dict[str, Tensor]]:
    """Return the stored agent's class name and its tensors."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
            return (file.metadata() or {}).get("agent"), tensors
    except (SafetensorError, OSError) as error:
        raise AgentStateError(f"{path} is not a complete agent state file: {error}") from error


def _expected(agent: AgentBase, stored: dict[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and dtype of every tensor that a state of `agent` must have.

    An optimizer has moments only for parameters that it has stepped, so a new optimizer has none. If `stored` has any
    moment of a parameter, all moments of this parameter are expected.
    """
    own = {key: value for key, value in _tensors(agent).items() if not key.startswith("optimizer.")}
    own = {key: value for key, value in own.items() if key in stored or key not in SINCE_LATER}
    for name, optimizer in agent.optimizers().items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            prefix = f"optimizer.{name}.{index}"
            if _group(stored, prefix):
                own |= {f"{prefix}.{key}": parameter for key in ADAM_MOMENTS} | {f"{prefix}.step": torch.zeros(())}
    return {key: (tuple(value.shape), value.dtype) for key, value in own.items()}


def _check_values(path: str | Path, name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise AgentStateError(f"{path}: {name} holds values that are not finite")
    if name.startswith("counter.") or name.endswith(NEVER_NEGATIVE):
        smallest = value.min().item()
        if smallest < 0:
            raise AgentStateError(f"{path}: {name} must not be negative; its smallest value is {smallest}")


def _check_generators(path: str | Path, agent: AgentBase, stored: dict[str, Tensor]) -> None:
    """Try the states on temporary generators."""
    for name in GENERATORS:
        try:
            torch.Generator(getattr(agent, name).device).set_state(stored[name].cpu())
        except RuntimeError as error:
            raise AgentStateError(f"{path}: {name} is not the state of a generator: {error}") from error


def _tensors(agent: AgentBase) -> dict[str, Tensor]:
    """Return every state tensor by its dotted name."""
    tensors = {f"{name}.{key}": value for name in NETWORKS for key, value in getattr(agent, name).state_dict().items()}
    tensors |= {f"obs_norm.{key}": value for key, value in agent.obs_norm.tensors().items()}
    tensors |= {f"extra.{key}": value for key, value in agent.extra_tensors().items()}
    tensors |= {f"counter.{name}": torch.tensor(getattr(agent, name)) for name in COUNTERS}
    tensors |= {name: getattr(agent, name).get_state() for name in GENERATORS}
    for name, optimizer in agent.optimizers().items():
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{key}": torch.as_tensor(value) for key, value in values.items()}
    return tensors


def _group(stored: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name starts with `prefix.`, keyed by the rest of the name."""
    return {name.removeprefix(f"{prefix}."): value for name, value in stored.items() if name.startswith(f"{prefix}.")}


def _restore(agent: AgentBase, stored: dict[str, Tensor]) -> None:
    for name in NETWORKS:
        getattr(agent, name).load_state_dict(_group(stored, name))
    agent.obs_norm.load(_group(stored, "obs_norm"))
    agent.load_extra_tensors(_group(stored, "extra"))
    for name in COUNTERS:
        setattr(agent, name, int(stored[f"counter.{name}"]))
    for name in GENERATORS:
        getattr(agent, name).set_state(stored[name].cpu())
    for name, optimizer in agent.optimizers().items():
        _restore_optimizer(optimizer, _group(stored, f"optimizer.{name}"))


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in stored.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
