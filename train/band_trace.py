"""The band of a policy beside what its account held: what a picture of it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drl_agents.policy import Policy
from drl_agents.policy_file import load_policy
from environment_Alpaca_vectorized import EnvParams
from train.evaluator import EpisodeRecord, evaluate_policies


@dataclass(frozen=True)
class BandTrace:
    """One segment; rows are the record's bars. Edges stand where their orders filled, a bar after the decision."""

    lo: np.ndarray  # (n + 1, A) lower edges; nan on the first bar, at which nothing fills
    hi: np.ndarray  # (n + 1, A)
    weight: np.ndarray  # (n + 1, A) share of the account in each coin after the bar's orders


def evaluate_with_band(
    path: str | Path, config: Mapping[str, Any], env_params: Mapping[str, Any], *, gpu_id: int = -1
) -> tuple[list[EpisodeRecord], list[BandTrace]]:
    """`evaluate_policy` of a policy file, and the band on every segment; no bands of a policy without.

    Args:
        path: of the policy.
        config: arrays and segments.
        env_params: rules and settings, as in training.
        gpu_id: -1 is the CPU.
    """
    policy = load_policy(path)
    segments = config.get("segments") or [(0, len(config["price_array"]))]
    has_band = policy.head == "band"
    (records,) = evaluate_policies([policy], [segments], config, env_params, gpu_id=gpu_id, keep_qty=has_band)
    return records, [trace_band(policy, record, config, env_params) for record in records] if has_band else []


def trace_band(
    policy: Policy, record: EpisodeRecord, config: Mapping[str, Any], env_params: Mapping[str, Any]
) -> BandTrace:
    """The band of one segment, from a record with `qty`."""
    assert record.qty is not None
    p = EnvParams.from_mapping(env_params)
    lo, hi = policy.to("cpu").band(torch.as_tensor(_features(config["tech_array"], record.bars[:-1], p)))
    price = np.asarray(config["price_array"])[record.bars].astype(np.float64)
    equity = np.where(record.equity > 0.0, record.equity, 1.0)[:, None]
    return BandTrace(_filled_later(lo), _filled_later(hi), record.qty * price / equity)


def _features(tech: Any, bars: np.ndarray, p: EnvParams) -> np.ndarray:
    """(n, L * F) float32 features at each bar as the observation has them: the newest bar first."""
    rows: Sequence[np.ndarray] = [np.asarray(tech)[bars - back] for back in range(p.lookback)]
    return (np.concatenate(rows, axis=1) * p.norm_tech).astype(np.float32)


def _filled_later(edge: torch.Tensor) -> np.ndarray:
    values = edge.double().numpy()
    return np.vstack((np.full((1, values.shape[1]), np.nan), values))
