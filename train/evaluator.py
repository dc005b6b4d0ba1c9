"""Deterministic evaluation: every segment from its first bar to its last, all of them in one batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drl_agents.policy_file import load_policy
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized

log = logging.getLogger(__name__)

Act = Callable[[Tensor], Tensor]          # observations (N, S) -> actions (N, A)
# (steps, N) each, as the environment reports them after a step and before a restart.
STEP_FIELDS = ("turnover", "fees", "trades")


@dataclass(frozen=True)
class EpisodeRecord:
    """One segment traded from its first usable bar to its last. `steps` is the number of decisions.

    An account that is ruined on the way stays at what is left of it, without coins or orders, to the segment's end: the
    equal-weight portfolio is measured on the same bars whatever the policy did.
    """

    segment: tuple[int, int]      # first, last exclusive
    bars: np.ndarray              # (steps + 1,) int64, rows of the price array
    equity: np.ndarray            # (steps + 1,) quote
    benchmark_equity: np.ndarray  # (steps + 1,) quote, equal weight bought at bars[0], fees paid
    turnover: np.ndarray          # (steps,) quote, traded notional
    fees: np.ndarray              # (steps,) quote
    trades: np.ndarray            # (steps,) int64, orders filled
    exposure: np.ndarray          # (steps + 1,) share of equity not in cash

    @property
    def growth(self) -> float:
        """Log of final over first equity."""
        return float(np.log(max(self.equity[-1], 1e-12) / self.equity[0]))


Score = Callable[[Sequence[EpisodeRecord]], float]


def mean_growth(records: Sequence[EpisodeRecord]) -> float:
    """Mean log growth over the segments: what the growth term of the reward adds up to."""
    return float(np.mean([record.growth for record in records]))


def evaluate_policy(
    policy: Act | str | Path,
    config: Mapping[str, Any],
    env_params: Mapping[str, Any],
    *,
    gpu_id: int = -1,
    env_kwargs: Mapping[str, Any] | None = None,
) -> list[EpisodeRecord]:
    """Trade every segment of `config` once with the mean action.

    Args:
        policy: observations -> actions, on the device asked for; a `Policy` is moved there; a path is loaded.
        config: arrays and segments; a segment without room for a step is left out, with a warning.
        env_params: rules and settings, as in training.
        gpu_id: -1 is the CPU.
        env_kwargs: further named parameters of the environment, such as its fees.
    """
    if isinstance(policy, str | Path):
        policy = load_policy(policy)
    segments = [(int(a), int(b)) for a, b in config.get("segments") or [(0, len(config["price_array"]))]]
    options = {**(env_kwargs or {}), "gpu_id": gpu_id, "start": "first", "episode_bars": None, "as_numpy": False}
    env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, n_envs=len(segments), **options)
    act = policy.to(env.device) if hasattr(policy, "to") else policy     # type: ignore[attr-defined]
    usable = env.market.usable_segment.tolist()
    for i in sorted(set(range(len(segments))) - set(usable)):
        log.warning("Segment %d to %d is too short for one step and is not evaluated", *segments[i])
    last_bars = env.market.episode_limit[usable].tolist()
    first_bars, tracks, ends, qty = _trade(act, env)
    records = _records([segments[i] for i in usable], first_bars, tracks, ends)
    price = config["price_array"]
    return [_to_the_end(r, last, price, q) for r, last, q in zip(records, last_bars, qty[: len(usable)], strict=True)]


@torch.no_grad()
def _trade(act: Act, env: Any) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Run all environments for the longest segment.

    Returns (N,) first bars, fields by time, (N,) steps to each first end, and (N, A) coins of each first episode's
    equal-weight portfolio.

    Environments that finish early restart and go on; their later rows are cut off. Nothing is read back before the
    end of the loop.
    """
    n_steps, n_envs = env.max_step, env.n_envs
    names = ("equity", "benchmark_equity", "exposure", *STEP_FIELDS)
    tracks = {name: torch.zeros((n_steps + 1, n_envs), dtype=torch.float64, device=env.device) for name in names}
    done = torch.zeros((n_steps, n_envs), dtype=torch.bool, device=env.device)
    state = env.reset()
    first_bars = env.time.cpu().numpy().copy()
    benchmark_qty = env.book.benchmark_qty.cpu().numpy().copy()  # a restart buys others
    tracks["equity"][0], tracks["benchmark_equity"][0] = env.total_asset, env.book.benchmark
    for t in range(n_steps):
        state, _, done[t], info = env.step(act(state))
        for name in ("equity", "benchmark_equity", *STEP_FIELDS):
            tracks[name][t + 1] = info[name]
        tracks["exposure"][t + 1] = _exposure(env, info, state, done[t])
    ends = done.int().argmax(0) + 1
    return first_bars, {name: track.cpu().numpy() for name, track in tracks.items()}, ends.cpu().numpy(), benchmark_qty


def _exposure(env: Any, info: Mapping[str, Tensor], state: Tensor, done: Tensor) -> Tensor:
    """Share of equity in coins (N,), before any restart: the first column of an observation is the cash."""
    cash = torch.where(done, info["final_state"][:, 0], state[:, 0]).double()
    if env.params.observation == "relative":
        return 1.0 - cash
    return 1.0 - cash / env.params.norm_cash / info["equity"]


def _to_the_end(record: EpisodeRecord, last_bar: int, price_array: Any, qty: np.ndarray) -> EpisodeRecord:
    """The record, continued flat from ruin to the segment's last bar; `qty` (A,) is the equal-weight portfolio's."""
    ruined_bar, n_left = int(record.bars[-1]), last_bar - int(record.bars[-1])
    if n_left == 0:
        return record
    log.warning("Segment %d to %d: ruined at bar %d, %d bars before its end; the account stays at %.2f",
                *record.segment, ruined_bar, n_left, record.equity[-1])  # fmt: skip
    bars = np.arange(ruined_bar + 1, last_bar + 1)
    tails = {
        "bars": bars,
        "equity": np.full(n_left, record.equity[-1]),
        "benchmark_equity": np.asarray(price_array[bars[0] : bars[-1] + 1], dtype=np.float64) @ qty,
        **{name: np.zeros(n_left, getattr(record, name).dtype) for name in ("turnover", "fees", "trades", "exposure")},
    }
    return replace(record, **{name: np.concatenate((getattr(record, name), tail)) for name, tail in tails.items()})


def _records(
    segments: Sequence[tuple[int, int]],
    first_bars: np.ndarray,
    tracks: Mapping[str, np.ndarray],
    ends: np.ndarray,
) -> list[EpisodeRecord]:
    """One record per usable segment: environment i plays the i-th of them; any further ones repeat."""
    records = []
    for i, segment in enumerate(segments):
        n = int(ends[i])
        state_rows = {name: tracks[name][: n + 1, i].copy() for name in ("equity", "benchmark_equity", "exposure")}
        step_rows = {name: tracks[name][1 : n + 1, i].copy() for name in ("turnover", "fees")}
        trades = tracks["trades"][1 : n + 1, i].astype(np.int64)
        bars = np.arange(first_bars[i], first_bars[i] + n + 1)
        records.append(EpisodeRecord(segment=segment, bars=bars, trades=trades, **state_rows, **step_rows))
    return records
