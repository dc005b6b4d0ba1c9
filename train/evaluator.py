"""Deterministic evaluation of policies: every segment is traded from first to last bar in one batch.

Each environment belongs to one pair of policy and segment, and every policy acts on its own rows. The records of a
policy are bit-identical whatever other policies are in the batch.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drl_agents.policy import BAND_NEEDS, Policy
from drl_agents.policy_file import load_policy
from environment_Alpaca_vectorized import EnvParams, NoNativeStep, VectorizedCryptoEnvAlpacaOptimized
from train.messages import warn_once

log = logging.getLogger(__name__)

Act = Callable[[Tensor], Tensor]  # observations (N, S) -> actions (N, A)
# (N,) first bars, fields by time, (N,) steps to the end of each first episode, and (N, A) coins of its equal-weight
# portfolio.
Traded = tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]
# (steps, N) each, as reported by the environment after a step and before a restart.
STEP_FIELDS = ("turnover", "fees", "trades")
ROWS = ("price_array", "tech_array", "time_array", "filled_array")  # config entries with one row per bar


@dataclass(frozen=True)
class EpisodeRecord:
    """One segment, traded from its first usable bar to its last; `steps` is the number of decisions.

    A ruined account keeps its remaining equity, without coins or orders, until the end of the segment. The equal-weight
    portfolio is therefore measured on the same bars for every policy.
    """

    segment: tuple[int, int]  # first, last exclusive
    bars: np.ndarray  # (steps + 1,) int64, row indices of the price array
    equity: np.ndarray  # (steps + 1,) quote
    benchmark_equity: np.ndarray  # (steps + 1,) quote, equal weight bought at bars[0] with fees
    turnover: np.ndarray  # (steps,) traded notional, quote
    fees: np.ndarray  # (steps,) quote
    trades: np.ndarray  # (steps,) int64, number of filled orders
    exposure: np.ndarray  # (steps + 1,) fraction of equity in coins
    # (steps + 1, A) coins, or None if not recorded. The last values of an episode are rounded to float32, because they
    # are taken from the last observation after the account was reset.
    qty: np.ndarray | None = None
    stepped_by: str = ""  # step implementation: "numba", "triton" or "torch"

    @property
    def growth(self) -> float:
        """Log of final equity over initial equity."""
        return float(np.log(max(self.equity[-1], 1e-12) / self.equity[0]))


Score = Callable[[Sequence[EpisodeRecord]], float]


def step_of(records: Iterable[EpisodeRecord]) -> str:
    """Return the step implementation that produced the records; an empty string if there are none."""
    return ", ".join(sorted({record.stepped_by for record in records}))


def mean_growth(records: Sequence[EpisodeRecord]) -> float:
    """Return the mean log growth over the segments, which is the sum of the growth term of the reward."""
    return float(np.mean([record.growth for record in records]))


def evaluate_policy(
    policy: Act | str | Path,
    config: Mapping[str, Any],
    env_params: Mapping[str, Any],
    *,
    gpu_id: int = -1,
    env_kwargs: Mapping[str, Any] | None = None,
) -> list[EpisodeRecord]:
    """Trade every segment of `config` once with the mean action and return the records.

    Args:
        policy: function from observations to actions on the selected device; a `Policy` is moved there, and a path is
            loaded.
        config: arrays and segments. Segments too short for a step are skipped with a warning; if all are, there are no
            records.
        env_params: rules and settings, as in training.
        gpu_id: GPU number; -1 is the CPU.
        env_kwargs: additional named parameters of the environment, such as fees.

    Raises:
        ValueError: the observation of the `Policy` differs, or a band cannot trade under these settings.
    """
    mine = config.get("segments") or [(0, len(config["price_array"]))]
    return evaluate_policies([policy], [mine], config, env_params, gpu_id=gpu_id, env_kwargs=env_kwargs)[0]


def policy_facts(path: str | Path) -> dict[str, Any]:
    """Return the metadata of a policy file, or raise a ValueError that names the file if it cannot be used."""
    return load_policy(path).metadata


def evaluate_policies(
    policies: Sequence[Act | str | Path],
    segments: Sequence[Sequence[tuple[int, int]]],
    config: Mapping[str, Any],
    env_params: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    gpu_id: int = -1,
    env_kwargs: Mapping[str, Any] | None = None,
    keep_qty: bool = False,
) -> list[list[EpisodeRecord]]:
    """Trade several policies at once, each on its own segments, and return a list of records per policy.

    Policies with the same rules and settings share one batched environment, so there is one environment per distinct
    `env_params`.

    Args:
        policies: see `evaluate_policy`.
        segments: segments of each policy; those too short for a step are skipped with a warning.
        config: arrays and names; its own segments are ignored.
        env_params: settings of all policies, or one per policy.
        gpu_id: GPU number; -1 is the CPU.
        env_kwargs: additional named parameters of the environments, such as fees.
        keep_qty: fill `qty` of the records.
    """
    each = [env_params] * len(policies) if isinstance(env_params, Mapping) else list(env_params)
    if not len(policies) == len(segments) == len(each):
        raise ValueError(
            f"every policy needs segments and env_params; received {len(policies)} policies, {len(segments)} lists of "
            f"segments and {len(each)} env_params"
        )
    options = {**(env_kwargs or {}), "gpu_id": gpu_id, "start": "first", "episode_bars": None, "as_numpy": False}
    loaded = [load_policy(policy) if isinstance(policy, str | Path) else policy for policy in policies]
    groups: dict[EnvParams, list[int]] = {}
    for i, params in enumerate(each):
        groups.setdefault(EnvParams.from_mapping(params), []).append(i)
    records: dict[int, list[EpisodeRecord]] = {}
    for members in groups.values():
        mine = [[(int(a), int(b)) for a, b in segments[i]] for i in members]
        acts = [loaded[i] for i in members]
        found = _evaluate_group(acts, mine, config, each[members[0]], options, keep_qty)
        records.update(zip(members, found, strict=True))
    return [records[i] for i in range(len(policies))]


def _evaluate_group(
    policies: Sequence[Act],
    segments: Sequence[Sequence[tuple[int, int]]],
    config: Mapping[str, Any],
    env_params: Mapping[str, Any],
    options: Mapping[str, Any],
    keep_qty: bool,
) -> list[list[EpisodeRecord]]:
    """Evaluate policies with the same rules in one environment that holds only the bars of their usable segments."""
    p, n_bars = EnvParams.from_mapping(env_params), len(config["price_array"])
    mine = [usable_segments(s, n_bars, p) for s in segments]
    every = [segment for s in mine for segment in s]
    if not every:
        return [[] for _ in policies]
    cropped, offset = cropped_config(config, every)
    env = VectorizedCryptoEnvAlpacaOptimized(cropped, env_params, n_envs=len(every), **options)
    for policy in policies:
        _check_fit(policy, env)
    first_bars, tracks, ends, bought = _trade(policies, [len(s) for s in mine], env, keep_qty)
    found = _records(every, first_bars + offset, tracks, ends)
    records = iter(replace(record, stepped_by=env.stepped_by) for record in found)
    last_bars, coins = iter((env.market.episode_limit.cpu().numpy() + offset).tolist()), iter(bought)
    price = config["price_array"]
    return [[_to_the_end(next(records), next(last_bars), price, next(coins)) for _ in s] for s in mine]


def _check_fit(policy: Act, env: Any) -> None:
    if not isinstance(policy, Policy):
        return
    if (policy.state_dim, policy.action_dim) != (env.state_dim, env.action_dim):
        raise ValueError(
            f"the policy was trained on observations of {policy.state_dim} columns for {policy.action_dim} coins, but "
            f"these settings give {env.state_dim} columns for {env.action_dim}; check lookback, features and coins"
        )
    for name, needed in BAND_NEEDS.items() if policy.head == "band" else ():
        if (value := getattr(env.params, name)) != needed:
            raise ValueError(f"{name} must be {needed!r} for a band policy; received {value!r}")


def usable_segments(segments: Sequence[tuple[int, int]], n_bars: int, p: EnvParams) -> list[tuple[int, int]]:
    """Return the segments that are long enough for a step; the others are logged.

    Raises:
        ValueError: a segment is outside the bars.
    """
    if any(a < 0 or b > n_bars or a >= b for a, b in segments):
        raise ValueError(f"segments must be (first, last_exclusive) within the {n_bars} bars; received {segments}")
    least = p.lookback + 1 + (p.lookback if p.ends_lookback_early else 0)
    for a, b in segments:
        if b - a < least:
            log.warning("segment %d to %d is too short for one step and is not evaluated", a, b)
    return [(a, b) for a, b in segments if b - a >= least]


def cropped_config(config: Mapping[str, Any], segments: Sequence[tuple[int, int]]) -> tuple[dict[str, Any], np.ndarray]:
    """Return the config without bars outside all segments, and by how many bars each segment moved, (G,).

    An environment uses only the segment's own bars. Cropping avoids checking, converting and copying a long market for
    a short test slice at every checkpoint.
    """
    runs: list[list[int]] = []
    for a, b in sorted(segments):
        if runs and a <= runs[-1][1]:
            runs[-1][1] = max(runs[-1][1], b)
        else:
            runs.append([a, b])
    first = np.array([a for a, _ in runs])
    moved = first - np.cumsum([0, *(b - a for a, b in runs)])[:-1]
    offset = moved[np.searchsorted(first, [a for a, _ in segments], side="right") - 1]
    n_bars = len(config["price_array"])
    rows = {
        name: np.concatenate([config[name][a:b] for a, b in runs])
        for name in ROWS
        if name in config and np.shape(config[name])[:1] == (n_bars,)
    }
    inside = [(a - by, b - by) for (a, b), by in zip(segments, offset.tolist(), strict=True)]
    return {**config, **rows, "segments": inside}, offset


def joint_act(policies: Sequence[Act], n_rows: Sequence[int], device: torch.device) -> Act:
    """Return one function (N, S) -> (N, A) for policies that own consecutive rows of an observation.

    Every policy multiplies its own rows, as it would alone. A batched product of stacked weights would add in a
    different order, and an action that differs by rounding can fall below a venue's minimum order.

    Args:
        policies: policies in row order.
        n_rows: number of rows of each policy.
        device: device of the observations; a `Policy` is moved there.
    """
    acts = [policy.to(device) if hasattr(policy, "to") else policy for policy in policies]  # type: ignore[attr-defined]
    if len(acts) == 1:
        return acts[0]
    edges = np.cumsum([0, *n_rows]).tolist()
    parts = [(slice(a, b), act) for act, (a, b) in zip(acts, pairwise(edges), strict=True) if b > a]
    return lambda state: torch.cat([act(state[rows]) for rows, act in parts])


@torch.no_grad()
def _trade(policies: Sequence[Act], n_rows: Sequence[int], env: Any, keep_qty: bool) -> Traded:
    """Run all environments for the longest segment, in a compiled loop if possible."""
    trader = _compiled_trader(policies, n_rows, env, keep_qty)
    if trader is not None:
        return trader.trade()
    return _trade_plainly(joint_act(policies, n_rows, env.device), env, keep_qty)


def _compiled_trader(policies: Sequence[Act], n_rows: Sequence[int], env: Any, keep_qty: bool) -> Any:
    """Return the compiled loop for these policies and this environment, or None if the torch loop must be used.

    The torch loop is used for functions that are not policies of this project, on a GPU, for the plain step, and if
    numba is missing or fails.
    """
    if env.stepped_by != "numba" or env.compact:
        return None
    known = (_as_policy(policy) for policy in policies)
    ours = [policy for policy in known if policy is not None]
    if len(ours) < len(policies):
        return None
    try:
        return importlib.import_module("train.policy_loop").Trader(ours, n_rows, env, keep_qty)
    except (ImportError, NoNativeStep) as reason:
        warn_once(log, f"policies are evaluated with the much slower torch loop: {reason}")
        return None


def _as_policy(act: Act) -> Policy | None:
    """Return the policy (or an agent's actor) on the CPU if its weights are float32, otherwise None."""
    policy: Any = act.to_policy() if hasattr(act, "to_policy") else act  # type: ignore[attr-defined]
    if type(policy) is not Policy or any(weight.dtype != torch.float32 for weight, _ in policy.layers):
        return None
    return policy.to("cpu")


def _trade_plainly(act: Act, env: Any, keep_qty: bool) -> Traded:
    """Trade with one call of the policies and one step per bar: the reference for the compiled loop, on any device.

    Environments that finish early restart and continue; their later rows are discarded. Nothing is copied from the
    device before the end of the loop.
    """
    n_steps, n_envs = env.max_step, env.n_envs
    names = ("equity", "benchmark_equity", "exposure", *STEP_FIELDS)
    tracks = {name: torch.zeros((n_steps + 1, n_envs), dtype=torch.float64, device=env.device) for name in names}
    done = torch.zeros((n_steps, n_envs), dtype=torch.bool, device=env.device)
    if keep_qty:
        shape = (n_steps + 1, n_envs, env.action_dim)
        tracks["qty"] = torch.zeros(shape, dtype=torch.float64, device=env.device)
    state = env.reset()
    first_bars = env.time.cpu().numpy().copy()
    benchmark_qty = env.book.benchmark_qty.cpu().numpy().copy()  # copied, because a restart changes the quantities
    tracks["equity"][0], tracks["benchmark_equity"][0] = env.total_asset, env.book.benchmark
    for t in range(n_steps):
        action, bar = act(state), env.book.bar if keep_qty else None
        state, _, done[t], info = env.step(action)
        for name in ("equity", "benchmark_equity", *STEP_FIELDS):
            tracks[name][t + 1] = info[name]
        tracks["exposure"][t + 1] = _exposure(env, info, state, done[t])
        if bar is not None:
            tracks["qty"][t + 1] = _coins(env, info, done[t], env.market.price[bar + 1])
    ends = done.int().argmax(0) + 1
    return first_bars, {name: track.cpu().numpy() for name, track in tracks.items()}, ends.cpu().numpy(), benchmark_qty


def _exposure(env: Any, info: Mapping[str, Tensor], state: Tensor, done: Tensor) -> Tensor:
    """Return each account's exposure (N,), measured before it restarts. Cash is the first column of an observation."""
    cash = torch.where(done, info["final_state"][:, 0], state[:, 0]).double()
    if env.params.observation == "relative":
        return 1.0 - cash
    return 1.0 - cash / env.params.norm_cash / info["equity"]


def _coins(env: Any, info: Mapping[str, Tensor], done: Tensor, price: Tensor) -> Tensor:
    """Return each account's coins (N, A), read before it restarts; `price` (N, A) is from the bar just traded."""
    seen = info["final_state"][:, 1 : 1 + env.action_dim].double()
    if env.params.observation == "relative":
        left = torch.where(price > 0, seen * info["equity"][:, None] / price, 0.0)
    else:
        left = seen / env.params.norm_stocks
    return torch.where(done[:, None], left, env.stocks)


def _to_the_end(record: EpisodeRecord, last_bar: int, price_array: Any, qty: np.ndarray) -> EpisodeRecord:
    """Return the record, continued unchanged from ruin to the last bar; `qty` (A,) is the equal-weight portfolio."""
    ruined_bar, n_left = int(record.bars[-1]), last_bar - int(record.bars[-1])
    if n_left == 0:
        return record
    log.warning("segment %d to %d: ruined at bar %d, %d bars before its end; equity stays at %.2f",
                *record.segment, ruined_bar, n_left, record.equity[-1])  # fmt: skip
    bars = np.arange(ruined_bar + 1, last_bar + 1)
    tails = {
        "bars": bars,
        "equity": np.full(n_left, record.equity[-1]),
        "benchmark_equity": np.asarray(price_array[bars[0] : bars[-1] + 1], dtype=np.float64) @ qty,
        **{name: np.zeros(n_left, getattr(record, name).dtype) for name in ("turnover", "fees", "trades", "exposure")},
    }
    if record.qty is not None:
        tails["qty"] = np.zeros((n_left, record.qty.shape[1]))
    return replace(record, **{name: np.concatenate((getattr(record, name), tail)) for name, tail in tails.items()})


def _records(
    segments: Sequence[tuple[int, int]],
    first_bars: np.ndarray,
    tracks: Mapping[str, np.ndarray],
    ends: np.ndarray,
) -> list[EpisodeRecord]:
    """Return one record per usable segment; environment i trades segment i, and additional environments repeat."""
    records = []
    for i, segment in enumerate(segments):
        n = int(ends[i])
        state_rows = {name: tracks[name][: n + 1, i].copy() for name in ("equity", "benchmark_equity", "exposure")}
        step_rows: dict[str, Any] = {name: tracks[name][1 : n + 1, i].copy() for name in ("turnover", "fees")}
        trades = tracks["trades"][1 : n + 1, i].astype(np.int64)
        bars = np.arange(first_bars[i], first_bars[i] + n + 1)
        qty = tracks["qty"][: n + 1, i].copy() if "qty" in tracks else None
        records.append(EpisodeRecord(segment=segment, bars=bars, trades=trades, qty=qty, **state_rows, **step_rows))
    return records
