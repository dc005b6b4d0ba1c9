"""Before a study begins: its agent, its search space, its number of environments, and whether they fit."""

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

PROBED_N_ENVS = 16  # enough that what does not grow with their number hardly counts
BAND_N_ENVS = 12  # as the launcher's


def choose_agent(asked: str | None, stored: Identity | None, name: str) -> str:
    """The agent that was asked for, the study's own, or the default of a new study.

    Args:
        asked: `--agent`, None where it was not given.
        stored: identity of the study of that name, None where there is none.
        name: of the study.

    Raises:
        StudyError: the study has another agent.
    """
    own = None if stored is None else stored.agent
    if own is None or asked == own:
        return asked or DEFAULT_AGENT
    if asked is not None:
        raise StudyError(
            f"--agent {asked}: study {name} was begun with {own}, and trials of different agents cannot share a search "
            f"space; leave --agent out to resume it, or give another --study-name"
        )
    if own not in TABLES:
        raise StudyError(f"study {name} was begun with agent {own}; this version searches {', '.join(TABLES)}")
    return own


def make_space(request: StudyRequest, data: Sequence[FoldedData], agent: str, stored: Identity | None = None) -> Space:
    """The search space that fits the data and the flags; a study keeps the ranges that it was begun with.

    Args:
        request: what is asked for.
        data: what the trials train on.
        agent: whose settings are searched.
        stored: the study's identity, None for a new study.
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
    """The study's own ranges under today's flags; the study's identity refuses flags that differ."""
    if own.is_narrow != space.is_narrow:
        return space
    names = [name for name in (*own.ranges, *own.given) if name not in space.given]
    ranges = {**space.ranges, **own.ranges}
    return replace(space, ranges={name: ranges[name] for name in names if name in ranges})


def _check_given(request: StudyRequest, agent: str, longest: int) -> None:
    for name in request.given:
        if name not in {setting.name for setting in TABLES[agent].settings}:
            raise StudyError(f"--{name.replace('_', '-')} has no meaning for agent {agent}, which has no such setting")
    if request.episode_bars is not None and request.episode_bars > longest:
        raise StudyError(
            f"--episode-bars {request.episode_bars}: the shortest of the splits' longest training segments holds "
            f"windows of {longest} bars; give fewer, or more data"
        )


def _check_n_envs(n_envs: int, space: Space) -> None:
    budget = space.ranges.get("total_env_steps")
    if space.agent == "band" and isinstance(budget, IntDistribution):
        largest = budget.high
        if n_envs * LEAST_BAND_BARS > largest:
            raise StudyError(
                f"--n-envs {n_envs}: the largest budget of a split, {largest:,} account-bars, has fewer than "
                f"{LEAST_BAND_BARS} bars for each of so many; give at most {largest // LEAST_BAND_BARS}"
            )
    if "rollout_samples" not in space.ranges:
        return
    least = choices(space, "rollout_samples")[0]
    if n_envs > least:
        raise StudyError(
            f"--n-envs {n_envs}: an update takes rollout_samples of all environments together, and the "
            f"smallest choice is {least}: more environments than that would be another setting; give at most {least}"
        )


def warn_of_small_budget(space: Space) -> None:
    """Say which searched settings a small --break-step cuts, so that some of their choices are the same run."""
    budget = space.given.get("total_env_steps")
    if budget is None:
        return
    most = most_rollout_samples(budget)
    rollouts = [name for name in ("rollout_samples", "batch_size") if name in space.ranges]
    cut = [name for name in rollouts if choices(space, name)[-1] > most]
    if cut:
        logger.warning("--break-step %d: a rollout holds at most %d samples, so that there are a few updates; %s above "
                       "that are cut to it and change nothing", budget, most, " and ".join(cut))  # fmt: skip


def automatic_n_envs(
    request: StudyRequest, data: tuple[FoldedData, ...], space: Space, name: str, stored: Identity | None
) -> int:
    """The study's own number of environments; for a new study the one that `train.n_envs` chooses. Logs why.

    `stored` is the identity of the study of that name, None for a new one.
    """
    if stored is not None:
        n_envs = stored.run.n_envs
        logger.info("--n-envs auto: %d, the number that study %s began with", n_envs, name)
        return n_envs
    devices = request.gpu_ids or (request.gpu_id,)
    choice = choose_for(request.gpu_id, data, space, math.ceil(request.workers / len(devices)))
    logger.info("--n-envs auto: %d: %s", choice.n_envs, choice.reason)
    return choice.n_envs


def choose_for(gpu_id: int, data: tuple[FoldedData, ...], space: Space, workers: int = 1) -> Choice:
    """Count the bytes of the study's largest environment and of its largest rollout, and choose.

    `workers` processes share the device's memory.
    """
    if space.agent == "band":
        return Choice(BAND_N_ENVS, "a band's gradient follows every account over the whole horizon, so few are enough")
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
    """A batched environment on the whole data with the widest observation that the study searches."""
    env_params = FIXED_ENV | {"lookback": MAX_LOOKBACK, "observe_account": True}
    return env_class_for(n_envs)(d.dataset.env_config(), env_params, n_envs=n_envs, gpu_id=gpu_id)


def check_environments(n_envs: int, gpu_id: int, data: tuple[FoldedData, ...]) -> None:
    """Build the largest environments of the study and step them once.

    Too many of them are refused here, and not in every trial; and kernels are compiled before the clock of the first
    split runs. Evaluation is always vectorized, so one environment is stood in for by two.
    """
    for d in data:
        try:
            env = largest_environment(d, max(n_envs, 2), gpu_id)
        except (ValueError, MemoryError) as error:
            raise StudyError(f"--n-envs {n_envs}: {error}") from error
        env.reset()
        env.step(torch.zeros((env.n_envs, env.action_dim)))
