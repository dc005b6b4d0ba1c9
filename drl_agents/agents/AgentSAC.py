"""Soft actor-critic (Haarnoja et al. 2018, "SAC algorithms and applications") on elegantrl 0.3.6's class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from elegantrl.agents.AgentSAC import AgentSAC as StockAgentSAC
from elegantrl.train.config import Config
from torch import Tensor

from drl_agents.agents.nets import LOG_STD_RANGE, ActorSAC, CriticTwin
from drl_agents.agents.off_policy import OffPolicyAgent
from drl_agents.agents.rollout import RolloutStep

ALPHA_LOG_RANGE = (-16.0, 2.0)  # as in elegantrl


class AgentSAC(OffPolicyAgent, StockAgentSAC):
    """SAC with twin critics and a learned temperature; the target entropy is -A or `args.target_entropy`."""

    act_class = ActorSAC
    cri_class = CriticTwin
    act: ActorSAC
    has_target_actor = False

    def __init__(
        self, net_dims: Sequence[int], state_dim: int, action_dim: int, gpu_id: int = 0, args: Config | None = None
    ) -> None:
        super().__init__(net_dims, state_dim, action_dim, gpu_id=gpu_id, args=args)
        self.alpha_optimizer = self._optimizer([self.alpha_log], self.learning_rate)

    def _action_sampler(self, device: torch.device) -> Any:
        def draw(raw: Tensor, slots: RolloutStep, env_action: Tensor) -> None:
            mean, log_std = raw.chunk(2, dim=1)
            torch.addcmul(mean, slots.noise, log_std.clamp(*LOG_STD_RANGE).exp_(), out=slots.action)
            slots.action.tanh_()
            env_action.copy_(slots.action)

        return draw

    def _gradient_step(
        self, step: int, states: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor, next_states: Tensor
    ) -> Tensor:
        """Update critic, temperature and actor; return critic loss, actor objective and temperature."""
        alpha = self.alpha_log.detach().exp()
        with torch.no_grad():
            next_actions, next_logprob = self.act.sample(next_states, self._noise_like(actions))
            next_values = self.cri_target.get_q_min(next_states, next_actions) - alpha * next_logprob
            targets = rewards + self.gamma * continues * next_values
        critic_loss = self._learn_critic(states, actions, targets)
        own_actions, logprob = self.act.sample(states, self._noise_like(actions))
        # elegantrl's target_entropy has the opposite sign.
        self._descend(
            self.alpha_optimizer, (self.alpha_log * (self.target_entropy - logprob).detach()).mean(), [self.alpha_log]
        )
        with torch.no_grad():
            self.alpha_log.clamp_(*ALPHA_LOG_RANGE)
        objective = (self.cri.get_q_min(states, own_actions) - alpha * logprob).mean()
        self._descend(self.act_optimizer, -objective, list(self.act.parameters()))
        return torch.stack((critic_loss, objective.detach(), alpha[0]))

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the temperature in addition to the state of every off-policy agent."""
        return {**super().extra_tensors(), "alpha_log": self.alpha_log.detach()}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `extra_tensors` returned."""
        super().load_extra_tensors(tensors)
        with torch.no_grad():
            self.alpha_log.copy_(tensors["alpha_log"])

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers of actor, critic and temperature by name."""
        return {**super().optimizers(), "alpha_optimizer": self.alpha_optimizer}
