"""Advantage actor-critic (Mnih et al. 2016) with PPO's rollouts, advantages and statistics."""

from __future__ import annotations

import torch
from elegantrl.agents.AgentA2C import AgentA2C as StockAgentA2C
from torch import Tensor

from drl_agents.agents.AgentPPO import AgentPPO, Samples


class AgentA2C(AgentPPO, StockAgentA2C):
    """The plain policy gradient: no ratio, no clipping.

    Only the first pass over a rollout is on-policy, so `repeat_times` of 1 is A2C proper; more passes are taken when
    asked for, as elegantrl does, and `target_kl` can stop them.
    """

    def _policy_loss(self, logprob: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """Loss whose gradient is the policy gradient; divergence; no sample is ever clipped."""
        log_ratio = (logprob - samples.logprobs).detach()
        kl = (log_ratio.exp() - 1.0 - log_ratio).mean()
        return -(samples.advantages * logprob).mean(), kl, torch.zeros_like(kl)

    @property
    def _kernel_clip_range(self) -> float:
        """No ratio."""
        return -1.0
