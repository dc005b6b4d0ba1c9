"""Advantage actor-critic (Mnih et al. 2016) with PPO's rollouts, advantages and statistics."""

from __future__ import annotations

import torch
from elegantrl.agents.AgentA2C import AgentA2C as StockAgentA2C
from torch import Tensor

from drl_agents.agents.AgentPPO import AgentPPO, Samples


class AgentA2C(AgentPPO, StockAgentA2C):
    """Plain policy gradient without ratio or clipping.

    Only the first pass over a rollout is on-policy, so standard A2C has `repeat_times` 1. As in elegantrl, a larger
    value makes more passes, and `target_kl` can end them early.
    """

    def _policy_loss(self, logprob: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """Return the policy gradient loss, the approximate divergence, and a clipped share of 0."""
        log_ratio = (logprob - samples.logprobs).detach()
        kl = (log_ratio.exp() - 1.0 - log_ratio).mean()
        return -(samples.advantages * logprob).mean(), kl, torch.zeros_like(kl)

    @property
    def _kernel_clip_range(self) -> float:
        """Negative value that selects the loss without a ratio."""
        return -1.0
