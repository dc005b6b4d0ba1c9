"""From an observation to an action, and what to say about it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from drl_agents.policy import Policy

Array = np.ndarray


@dataclass(frozen=True)
class Decision:
    """What the policy wants at a bar; all arrays are (A,)."""

    observation_sha256: str
    action: Array  # float32, as the policy gave it
    target: Array  # float64, shares of the account that the action asks for
    lo: Array | None  # float64, the band's edges
    hi: Array | None


def act(policy: Policy, observation: Array) -> Array:
    """(S,) float32 -> (A,) float32."""
    return policy(torch.from_numpy(observation)).numpy()


def decide(policy: Policy, observation: Array, weights: Array, norm_action: float) -> Decision:
    """Ask the policy.

    Args:
        policy: that decides.
        observation: (S,) float32.
        weights: (A,) shares of the account that are held.
        norm_action: an action of 1 trades 1 / norm_action of the account.
    """
    action = act(policy, observation)
    target = np.clip(weights + action.astype(np.float64) / norm_action, 0.0, 1.0)
    lo = hi = None
    if policy.head == "band":
        edges = policy.band(torch.from_numpy(observation)[policy.feature_columns])
        lo, hi = (edge.numpy().astype(np.float64) for edge in edges)
    return Decision(hashlib.sha256(observation.tobytes()).hexdigest(), action, target, lo, hi)
