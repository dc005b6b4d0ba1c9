"""Base class of SAC, TD3 and DDPG: replay of complete transitions, target networks, gradient steps."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from elegantrl.train.config import Config
from torch import Tensor, nn

from drl_agents.agents.AgentBase import AgentBase
from drl_agents.agents.bar_features import BarFeatures
from drl_agents.agents.nets import Critic, CriticTwin
from drl_agents.agents.replay import Replay
from drl_agents.agents.rollout import Rollout

ROUNDING_SLACK = 1e-9  # rounding tolerance, so that ten samples at a rate of 0.1 make one step


class OffPolicyAgent(AgentBase):
    """Agent that learns from its own replay memory, which exploration fills.

    Settings in addition to AgentBase's, with elegantrl's names: `buffer_size` transitions over all environments, and
    `repeat_times` gradient steps per new sample.
    """

    cri: Critic | CriticTwin
    cri_target: Critic | CriticTwin
    has_target_actor = True

    def __init__(
        self, net_dims: Sequence[int], state_dim: int, action_dim: int, gpu_id: int = 0, args: Config | None = None
    ) -> None:
        args = args or Config(agent_class=type(self))
        if getattr(args, "if_use_per", False):
            raise ValueError(
                f"{type(self).__name__} samples its replay uniformly and has no prioritized one: "
                f"if_use_per must be False; received {args.if_use_per}"
            )
        super().__init__(net_dims, state_dim, action_dim, gpu_id=gpu_id, args=args)
        self.cri_target = deepcopy(self.cri)
        self.act_target = deepcopy(self.act) if self.has_target_actor else self.act
        self.act_optimizer = self._optimizer(self.act.parameters(), self.learning_rate)
        self.cri_optimizer = self._optimizer(self.cri.parameters(), self.learning_rate)
        self.replay_capacity = int(getattr(args, "buffer_size", None) or 1_000_000)
        self.replay: Replay | None = None
        self.owed_steps = 0.0  # fractional gradient steps carried over to the next update
        self.last_losses = (0.0, 0.0, 0.0)

    def observe_bars(self, bars: BarFeatures) -> None:
        """Raise an error, because the replay memory holds full observations."""
        raise ValueError(
            f"{type(self).__name__} stores full observations for replay; build its environment without compact"
        )

    # --- exploration ------------------------------------------------------------------------------------------------

    def _finish(self, rollout: Rollout, if_random: bool) -> tuple[Tensor, ...]:
        items = super()._finish(rollout, if_random)
        if self.replay is None:
            self.replay = Replay(self.replay_capacity, self.num_envs, self.state_dim, self.action_dim, self.device)
        self.replay.add(rollout)
        self._update_obs_norm(rollout.states[:-1].reshape(-1, self.state_dim))
        self.owed_steps += 0.0 if if_random else rollout.n_samples * self.repeat_times
        return items

    # --- learning ---------------------------------------------------------------------------------------------------

    def update_net(self, buffer: Any = None) -> tuple[float, ...]:
        """Take `repeat_times` gradient steps per new sample, from this agent's own replay.

        Fractional steps carry over to the next update. An update with less than one whole step changes nothing.

        Args:
            buffer: elegantrl's buffer; ignored, because its successors are wrong at the ends of episodes.

        Returns:
            Means of the critic's loss, the actor's objective and one algorithm-specific number. Without a step, the
            previous values are returned, initially 0.
        """
        if self.replay is None:
            raise RuntimeError("nothing to learn from: call explore_one_env or explore_vec_env first")
        n_steps = int(self.owed_steps + ROUNDING_SLACK)
        if n_steps == 0:
            return self.last_losses
        self.owed_steps -= n_steps
        n_actor_steps = self._actor_steps(n_steps)
        learning_rate = self.scheduled_learning_rate()
        for group in (group for optimizer in self.optimizers().values() for group in optimizer.param_groups):
            group["lr"] = learning_rate
        totals = torch.zeros(3, device=self.device)
        with torch.enable_grad():
            for step in range(n_steps):
                totals += self._gradient_step(step, *self.replay.sample(self.batch_size, self.generator))
        self.gradient_steps += n_steps
        critic_loss, objective, own = totals.tolist()  # the only synchronization of the update
        objective = objective / n_actor_steps if n_actor_steps else self.last_losses[1]
        self.last_losses = (critic_loss / n_steps, objective, own / n_steps)
        return self.last_losses

    def _actor_steps(self, n_steps: int) -> int:
        """Return how many of the next `n_steps` gradient steps update the actor."""
        return n_steps

    def _gradient_step(
        self, step: int, states: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor, next_states: Tensor
    ) -> Tensor:
        """Update the critic, and the actor if due; return three statistics (3,).

        `step` counts within the update; the agent has taken `gradient_steps + step` steps in total.
        """
        raise NotImplementedError

    def _learn_critic(self, states: Tensor, actions: Tensor, targets: Tensor) -> Tensor:
        """Take a step on the sum of the critics' losses against `targets` (B,), then move the target critic."""
        loss = torch.stack([self.criterion(q, targets) for q in self.cri.q_values(states, actions)]).sum()
        self._descend(self.cri_optimizer, loss, list(self.cri.parameters()))
        self._follow(self.cri_target, self.cri)
        return loss.detach()

    def _descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        optimizer.zero_grad(set_to_none=True)
        # Only these parameters receive gradients; the actor's loss must not change the critic's gradients.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm, foreach=True)
        optimizer.step()

    @torch.no_grad()
    def _follow(self, target: nn.Module, current: nn.Module) -> None:
        """Move `target` a fraction `soft_update_tau` towards `current`."""
        for ours, theirs in zip(target.parameters(), current.parameters(), strict=True):
            ours.lerp_(theirs, self.soft_update_tau)

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the fractional gradient steps carried over."""
        return {"owed_steps": torch.tensor(self.owed_steps, dtype=torch.float64)}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `extra_tensors` returned."""
        self.owed_steps = float(tensors["owed_steps"])

    def _noise_like(self, actions: Tensor) -> Tensor:
        """Draw standard normal noise of the shape of `actions`."""
        return torch.randn(actions.shape, generator=self.generator, device=self.device)
