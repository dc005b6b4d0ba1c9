"""Preparation of a study: agent, search space, number of environments, and a memory check."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from optuna.distributions import IntDistribution

from train.config import LEAST_BAND_BARS
from train.env_factory import env_class_for
from train.n_envs import Choice, buffer_bytes, choose_n_envs, free_bytes, rollout_bytes
from train.records.defaults import DEFAULT_AGENT
from train.records.errors import StudyError
from train.records.stored import Identity
from train.study.folds import FoldedData
from train.study.search_space import MAX_LOOKBACK, Space, build_space, choices, most_rollout_samples
from train.study.search_tables import FIXED_ENV, TABLES

if TYPE_CHECKING:
    from train.runner.request import StudyRequest

logger = logging.getLogger(__name__)

PROBED_N_ENVS = 16  # large enough that constant memory is negligible
BAND_N_ENVS = 12  # as in the launcher


def choose_agent(asked: str | None, stored: Identity | None, name: str) -> str:
    """Return the requested agent, the study's own agent, or the default for a new study.

    Args:
        asked: value of `--agent`, or None.
        stored: identity of the existing study, or None for a new study.
        name: name of the study.

    Raises:
        StudyError: the study uses a different agent.
    """
    own = None if stored is None else stored.agent
    if own is None or asked == own:
        return asked or DEFAULT_AGENT
    if asked is not None:
        raise StudyError(
            f"--agent {asked}: study {name} uses agent {own}, whose search space differs; omit --agent to resume the "
            "study, or pass a different --study-name"
        )
    if own not in TABLES:
        raise StudyError(
            f"study {name} uses agent {own}, but this version supports {', '.join(TABLES)}; pass a "
            "different --study-name"
        )
    return own


def make_space(request: StudyRequest, data: Sequence[FoldedData], agent: str, stored: Identity | None = None) -> Space:
    """Return the search space for the data and the flags. An existing study keeps its original ranges.

    Args:
        request: the request of the command line.
        data: data of the trials.
        agent: agent whose settings are searched.
        stored: identity of the existing study, or None for a new study.
    """
    longest = min(d.longest_episode_bars for d in data)
    _check_given(request, agent, longest)
    space = build_space(request.use_best_ranges, longest, [d.timeframe for d in data], request.given, agent)
    if stored is not None:
        space = _own_ranges(space, Space.from_json(stored.search_space, agent))
    if request.n_envs is not None:
        _check_n_envs(request.n_envs, space)
    return space


def _own_ranges(space: Space, own: Space) -> Space:
    """Return the study's own ranges with the current flags. The identity check refuses flags that differ."""
    if own.is_narrow != space.is_narrow:
        return space
    names = [name for name in (*own.ranges, *own.given) if name not in space.given]
    ranges = {**space.ranges, **own.ranges}
    return replace(space, ranges={name: ranges[name] for name in names if name in ranges})


def _check_given(request: StudyRequest, agent: str, longest: int) -> None:
    for name in request.given:
        if name not in {setting.name for setting in TABLES[agent].settings}:
            raise StudyError(f"--{name.replace('_', '-')} does not apply to agent {agent}; omit the flag")
    if request.episode_bars is not None and request.episode_bars > longest:
        raise StudyError(
            f"--episode-bars must be at most {longest}, the longest window that fits into the training data of every "
            f"split; received {request.episode_bars}. Provide more data for longer windows"
        )


def _check_n_envs(n_envs: int, space: Space) -> None:
    budget = space.ranges.get("total_env_steps")
    if space.agent == "band" and isinstance(budget, IntDistribution):
        largest = budget.high
        if n_envs * LEAST_BAND_BARS > largest:
            raise StudyError(
                f"--n-envs must be at most {largest // LEAST_BAND_BARS}, so that the largest step budget of a split "
                f"({largest:,}) allows {LEAST_BAND_BARS} bars per environment; received {n_envs}"
            )
    if "rollout_samples" not in space.ranges:
        return
    least = choices(space, "rollout_samples")[0]
    if n_envs > least:
        raise StudyError(
            f"--n-envs must be at most {least}, the smallest number of samples per update (rollout_samples) in the "
            f"search space; received {n_envs}"
        )


def warn_of_small_budget(space: Space) -> None:
    """Log a warning if a small --break-step limits searched settings, so that some of their choices are equivalent."""
    budget = space.given.get("total_env_steps")
    if budget is None:
        return
    most = most_rollout_samples(budget)
    rollouts = [name for name in ("rollout_samples", "batch_size") if name in space.ranges]
    cut = [name for name in rollouts if choices(space, name)[-1] > most]
    if cut:
        logger.warning("--break-step %d: rollouts are limited to %d samples to allow a few updates, so larger "
                       "choices of %s have no effect", budget, most, " and ".join(cut))  # fmt: skip


def automatic_n_envs(
    request: StudyRequest, data: tuple[FoldedData, ...], space: Space, name: str, stored: Identity | None
) -> int:
    """Return the study's number of environments, or the choice of `train.n_envs` for a new study, and log the reason.

    `stored` is the identity of the existing study, or None for a new study.
    """
    if stored is not None:
        n_envs = stored.run.n_envs
        logger.info("--n-envs auto: %d, the number stored in study %s", n_envs, name)
        return n_envs
    devices = request.gpu_ids or (request.gpu_id,)
    choice = choose_for(request.gpu_id, data, space, math.ceil(request.workers / len(devices)))
    logger.info("--n-envs auto: %d: %s", choice.n_envs, choice.reason)
    return choice.n_envs


def choose_for(gpu_id: int, data: tuple[FoldedData, ...], space: Space, workers: int = 1) -> Choice:
    """Choose the number of environments from the memory of the study's largest environment and rollout.

    `workers` processes share the memory of the device.
    """
    if space.agent == "band":
        return Choice(
            BAND_N_ENVS, "the band agent's gradient covers every account over the whole horizon, so few are enough"
        )
    envs = [largest_environment(d, PROBED_N_ENVS, gpu_id) for d in data]
    samples = choices(space, "rollout_samples")
    budget = most_rollout_samples(space.given.get("total_env_steps", sys.maxsize))
    try:
        return choose_n_envs(
            bytes_per_env=max(buffer_bytes(env) for env in envs) // PROBED_N_ENVS,
            rollout_bytes=max(rollout_bytes(samples[-1], env.state_dim, env.action_dim) for env in envs),
            free_bytes=free_bytes(envs[0].device) // workers,
            least_rollout_samples=min(samples[0], budget),
            on_gpu=envs[0].device.type == "cuda",
        )
    except ValueError as error:
        raise StudyError(f"--n-envs auto: {error}") from error


def largest_environment(d: FoldedData, n_envs: int, gpu_id: int) -> Any:
    """Return a batched environment on the whole data with the widest observation of the search space."""
    env_params = FIXED_ENV | {"lookback": MAX_LOOKBACK, "observe_account": True}
    return env_class_for(n_envs)(d.dataset.env_config(), env_params, n_envs=n_envs, gpu_id=gpu_id)


def check_environments(n_envs: int, gpu_id: int, data: tuple[FoldedData, ...]) -> None:
    """Create the study's largest environments and step them once.

    If too many are requested, the error appears here instead of in every trial. Kernels are compiled before the first
    split is timed. Evaluation is always vectorized, so a request for one environment is checked with two.
    """
    for d in data:
        try:
            env = largest_environment(d, max(n_envs, 2), gpu_id)
        except (ValueError, MemoryError) as error:
            raise StudyError(f"--n-envs {n_envs}: {error}") from error
        env.reset()
        env.step(torch.zeros((env.n_envs, env.action_dim)))
