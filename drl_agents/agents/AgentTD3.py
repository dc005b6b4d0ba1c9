"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018) on elegantrl 0.3.6's class."""

from __future__ import annotations

from typing import Any

import torch
from elegantrl.agents.AgentTD3 import AgentTD3 as StockAgentTD3
from torch import Tensor

from drl_agents.agents.nets import Actor, CriticTwin
from drl_agents.agents.off_policy import OffPolicyAgent
from drl_agents.agents.rollout import RolloutStep

NOISE_CLIP = 0.5  # bound on exploration and target noise, in action units


class AgentTD3(OffPolicyAgent, StockAgentTD3):
    """TD3 with elegantrl's settings `explore_noise_std`, `policy_noise_std` and `update_freq`."""

    act_class = Actor
    cri_class = CriticTwin
    act: Actor

    def _action_sampler(self, device: torch.device) -> Any:
        def draw(raw: Tensor, slots: RolloutStep, env_action: Tensor) -> None:
            noise = (slots.noise * self.explore_noise_std).clamp_(-NOISE_CLIP, NOISE_CLIP)
            torch.add(raw.tanh_(), noise, out=slots.action)
            env_action.copy_(slots.action.clamp_(-1.0, 1.0))

        return draw

    def _gradient_step(
        self, step: int, states: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor, next_states: Tensor
    ) -> Tensor:
        """Update the critic, and the actor every `update_freq` steps.

        Return critic loss, actor objective and mean target.
        """
        with torch.no_grad():
            noise = (self._noise_like(actions) * self.policy_noise_std).clamp_(-NOISE_CLIP, NOISE_CLIP)
            next_actions = (self.act_target(next_states) + noise).clamp_(-1.0, 1.0)
            targets = rewards + self.gamma * continues * self.cri_target.get_q_min(next_states, next_actions)
        critic_loss = self._learn_critic(states, actions, targets)
        objective = torch.zeros((), device=self.device)
        # Counted over all updates; otherwise an update with one step would always update the actor, or never.
        if (self.gradient_steps + step) % self.update_freq == 0:
            objective = self._learn_actor(states)
        return torch.stack((critic_loss, objective, targets.mean()))

    def _actor_steps(self, n_steps: int) -> int:
        """Return the number of multiples of `update_freq` among the next `n_steps` steps."""
        first, last = self.gradient_steps, self.gradient_steps + n_steps - 1
        return last // self.update_freq - (first - 1) // self.update_freq

    def _learn_actor(self, states: Tensor) -> Tensor:
        """Update the actor on the first critic's value of its actions, then move the target actor."""
        objective = self.cri.q_values(states, self.act(states))[0].mean()
        self._descend(self.act_optimizer, -objective, list(self.act.parameters()))
        self._follow(self.act_target, self.act)
        return objective.detach()
