"""Evaluation of the policy at an observation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from drl_agents.policy import Policy

Array = np.ndarray


@dataclass(frozen=True)
class Decision:
    """Decision of the policy at a bar. All arrays have shape (A,)."""

    observation_sha256: str
    action: Array  # float32, output of the policy
    target: Array  # float64, weights that the action aims for
    lo: Array | None  # float64, edges of the band
    hi: Array | None


def act(policy: Policy, observation: Array) -> Array:
    """Return the action (A,) float32 for an observation (S,) float32."""
    return policy(torch.from_numpy(observation)).numpy()


def decide(policy: Policy, observation: Array, weights: Array, norm_action: float) -> Decision:
    """Return the policy's decision.

    Args:
        policy: the deployed policy.
        observation: (S,) float32 observation.
        weights: (A,) current weights.
        norm_action: inverse of the fraction of equity that an action of 1 trades.
    """
    action = act(policy, observation)
    target = np.clip(weights + action.astype(np.float64) / norm_action, 0.0, 1.0)
    lo = hi = None
    if policy.head == "band":
        edges = policy.band(torch.from_numpy(observation)[policy.feature_columns])
        lo, hi = (edge.numpy().astype(np.float64) for edge in edges)
    return Decision(hashlib.sha256(observation.tobytes()).hexdigest(), action, target, lo, hi)
