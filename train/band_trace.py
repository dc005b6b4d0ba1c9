"""Band edges and held weights of a policy, the data of a band chart."""

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
    """Band of one segment on the record's bars; edges are at the bar of their fills, one bar after the decision."""

    lo: np.ndarray  # (n + 1, A) lower edges; nan on the first bar, on which no order fills
    hi: np.ndarray  # (n + 1, A)
    weight: np.ndarray  # (n + 1, A) weight of each coin after the bar's orders


def evaluate_with_band(
    path: str | Path, config: Mapping[str, Any], env_params: Mapping[str, Any], *, gpu_id: int = -1
) -> tuple[list[EpisodeRecord], list[BandTrace]]:
    """Run `evaluate_policy` on a policy file and also return the band on every segment; empty for other policies.

    Args:
        path: policy file.
        config: arrays and segments.
        env_params: rules and settings, as in training.
        gpu_id: GPU number; -1 is the CPU.
    """
    policy = load_policy(path)
    segments = config.get("segments") or [(0, len(config["price_array"]))]
    has_band = policy.head == "band"
    (records,) = evaluate_policies([policy], [segments], config, env_params, gpu_id=gpu_id, keep_qty=has_band)
    return records, [trace_band(policy, record, config, env_params) for record in records] if has_band else []


def trace_band(
    policy: Policy, record: EpisodeRecord, config: Mapping[str, Any], env_params: Mapping[str, Any]
) -> BandTrace:
    """Return the band of one segment from a record with `qty`."""
    assert record.qty is not None
    p = EnvParams.from_mapping(env_params)
    lo, hi = policy.to("cpu").band(torch.as_tensor(_features(config["tech_array"], record.bars[:-1], p)))
    price = np.asarray(config["price_array"])[record.bars].astype(np.float64)
    equity = np.where(record.equity > 0.0, record.equity, 1.0)[:, None]
    return BandTrace(_filled_later(lo), _filled_later(hi), record.qty * price / equity)


def _features(tech: Any, bars: np.ndarray, p: EnvParams) -> np.ndarray:
    """Return float32 features (n, L * F) at each bar in the order of the observation, newest bar first."""
    rows: Sequence[np.ndarray] = [np.asarray(tech)[bars - back] for back in range(p.lookback)]
    return (np.concatenate(rows, axis=1) * p.norm_tech).astype(np.float32)


def _filled_later(edge: torch.Tensor) -> np.ndarray:
    values = edge.double().numpy()
    return np.vstack((np.full((1, values.shape[1]), np.nan), values))
