"""Base class of all agents on elegantrl 0.3.6: seeding, exploration, observation statistics, saving."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from elegantrl.agents.AgentBase import AgentBase as StockAgentBase
from elegantrl.train.config import Config
from torch import Tensor

from drl_agents.agents.agent_state import load_agent_state, save_agent_state
from drl_agents.agents.bar_features import BarFeatures
from drl_agents.agents.bar_forward import ExpandedForward, ProjectedForward
from drl_agents.agents.nets import NormBuffers, PolicyNet
from drl_agents.agents.normalizer import CHUNK_ROWS, RunningNorm
from drl_agents.agents.rollout import PolicyForward, Rollout, RolloutStep, Take, explore_batch, explore_single
from drl_agents.agents.step_graphs import CudaGraph, StepGraphs
from drl_agents.host_copies import HOST, staging_for
from drl_agents.policy import Policy

Forward = PolicyForward | ProjectedForward
STATE_FILE = "agent_state.safetensors"


class AgentBase(StockAgentBase):
    """elegantrl's agent with this repository's exploration; subclasses define action sampling and learning.

    Args:
        net_dims: widths of the hidden layers.
        state_dim: S.
        action_dim: A.
        gpu_id: index of the GPU; -1 or an unavailable GPU selects the CPU.
        args: elegantrl's Config. Optional additional fields are `random_seed`, `normalize_observations`, `lr_schedule`
            ("constant" or "linear" over `break_step` time steps) and `adam_eps`.
    """

    act: PolicyNet
    cri: NormBuffers
    num_envs: int
    last_state: Tensor | None

    def __init__(
        self, net_dims: Sequence[int], state_dim: int, action_dim: int, gpu_id: int = 0, args: Config | None = None
    ) -> None:
        args = args or Config()
        seed = int(getattr(args, "random_seed", 0) or 0)
        # elegantrl's networks draw their weights from torch's global generator, which is restored afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            super().__init__(list(net_dims), state_dim, action_dim, gpu_id=gpu_id, args=args)
        self.net_dims = tuple(net_dims)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.host_generator = torch.Generator(HOST).manual_seed(seed)
        self.normalizes = bool(getattr(args, "normalize_observations", True))
        if not self.normalizes:
            for net in self._norm_nets():
                net.observation_clip = math.inf  # the bound is in standard deviations, not in raw units
        self.obs_norm = RunningNorm(state_dim, self.device)
        self.lr_schedule = getattr(args, "lr_schedule", "constant")
        self.adam_eps = float(getattr(args, "adam_eps", 1e-5))
        self.schedule_steps = float(getattr(args, "break_step", float("inf")))  # time steps of one environment
        self.time_steps = 0  # steps taken so far by each environment, without random warm-ups
        self.rollout_start = 0  # time_steps at the start of the current rollout
        self.gradient_steps = 0
        self.bars: BarFeatures | None = None  # set by `observe_bars`
        self.forward: Forward | None = None  # the actor's forward pass during exploration
        self.forward_memory: tuple[object, ...] = ()
        self.env_action = torch.empty(0)
        # None without a GPU; tests may pass any class that can record and replay.
        on_gpu = self.device.type == "cuda"
        self.graphs = StepGraphs(functools.partial(CudaGraph, self.device)) if on_gpu else None
        self.rollout: Rollout | None = None
        self.host_rollout: Rollout | None = None  # staging buffer if one NumPy environment feeds a GPU

    # --- exploration ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explore_one_env(self, env: Any, horizon_len: int, if_random: bool = False) -> tuple[Tensor, ...]:
        """Collect `horizon_len` steps from an environment with NumPy states; return elegantrl's tuple.

        The actor runs on the host next to the environment, so no step waits for a GPU.
        """
        rollout = self._storage(horizon_len)
        host = rollout if self.device == HOST else self._host_storage(rollout)
        host.wait()
        self._fill_from(host, lambda choose: explore_single(env, host, choose), if_random)
        if host is not rollout:
            rollout.copy_from(host)
        return self._finish(rollout, if_random)

    @torch.no_grad()
    def explore_vec_env(self, env: Any, horizon_len: int, if_random: bool = False) -> tuple[Tensor, ...]:
        """Collect `horizon_len` steps from N environments at once; return elegantrl's tuple.

        The tensors are this agent's storage and are valid until its next exploration.
        """
        if self.bars is not None and env.market.windows.data_ptr() != self.bars.windows.data_ptr():
            raise ValueError("the environment shows bars of a different market: call observe_bars with its features")
        rollout = self._storage(horizon_len)
        is_graphed = self.graphs is not None and not if_random and getattr(env, "is_capturable", False)

        def replay(take: Take) -> None:
            assert self.graphs is not None
            self.graphs.run(env, rollout, self.forward, take)

        run = replay if is_graphed else None
        self._fill_from(rollout, lambda choose: explore_batch(env, rollout, choose, run), if_random)
        return self._finish(rollout, if_random)

    def observe_bars(self, bars: BarFeatures) -> None:
        """Explore an environment with compact observations; S remains the width of full observations."""
        self.bars = bars

    def prepare_for(self, env: Any) -> None:
        """Read what the agent needs from the training environment, and reject an unsuitable environment.

        Most agents accept any environment and need nothing.
        """

    @property
    def row_dim(self) -> int:
        """Width of an observation in the environment and in the rollout."""
        return self.state_dim if self.bars is None else self.bars.compact_dim(self.state_dim)

    def _storage(self, horizon_len: int) -> Rollout:
        shape = (horizon_len, self.num_envs, self.row_dim, self.action_dim)
        if self.rollout is None or self.rollout.shape != shape:
            self.rollout = Rollout(*shape, self.device)
        return self.rollout

    def _host_storage(self, rollout: Rollout) -> Rollout:
        if self.host_rollout is None or self.host_rollout.shape != rollout.shape:
            self.host_rollout = Rollout(*rollout.shape, HOST, staging_for(self.device))
        return self.host_rollout

    def _fill_from(self, rollout: Rollout, explore: Any, if_random: bool) -> None:
        if self.last_state is None:
            raise RuntimeError("agent.last_state is not set: assign it env.reset() before exploring")
        rollout.states[0].copy_(torch.as_tensor(self.last_state))
        self._draw_noise(rollout, if_random)
        forward = self._forward_on(rollout.device, rollout.shape[0])
        env_action, draw = self.env_action, self._action_sampler(rollout.device)

        def choose(slots: RolloutStep) -> Tensor:
            if if_random:
                return self._random_action(slots, env_action)
            draw(forward(slots.state), slots, env_action)
            return env_action

        explore(choose)

    def _forward_on(self, device: torch.device, horizon_len: int) -> Forward:
        """Return the actor's forward pass with its current weights; the object is reused if its memory is unchanged."""
        norm = (self.act.state_avg, self.act.state_std, self.act.observation_clip)
        layers = self.act.raw_layers()
        tensors = (*norm[:2], *(tensor for layer in layers for tensor in layer))
        memory = (device, self.num_envs, self.bars, horizon_len, *(tensor.data_ptr() for tensor in tensors))
        if self.forward is None or memory != self.forward_memory:
            kind = PolicyForward
            if self.bars is not None:
                # On a GPU, finding new bars would synchronize with the device, so full rows are used.
                expanded = functools.partial(ExpandedForward, bars=self.bars)
                projected = functools.partial(ProjectedForward, bars=self.bars, horizon_len=horizon_len)
                kind = projected if device.type == "cpu" else expanded
            self.forward, self.forward_memory = kind(norm, layers, self.num_envs, device), memory
            self.env_action = torch.empty((self.num_envs, self.action_dim), device=device)
        else:
            self.forward.refresh()
        return self.forward

    def _draw_noise(self, rollout: Rollout, if_random: bool) -> None:
        """Draw all random numbers of a rollout at once: uniform for a warm-up, otherwise standard normal."""
        generator = self.generator if rollout.device == self.device else self.host_generator
        if if_random:
            rollout.noise.uniform_(-1.0, 1.0, generator=generator)
        else:
            rollout.noise.normal_(generator=generator)

    def _action_sampler(self, device: torch.device) -> Any:
        """Return a function (raw actor output, slots, env_action) that writes the stored and the executed action."""
        raise NotImplementedError

    def _random_action(self, slots: RolloutStep, env_action: Tensor) -> Tensor:
        slots.action.copy_(slots.noise)
        return env_action.copy_(slots.noise)

    def _finish(self, rollout: Rollout, if_random: bool) -> tuple[Tensor, ...]:
        rollout.rewards *= self.reward_scale
        self.last_state = rollout.states[-1]
        if not if_random:
            self.rollout_start, self.time_steps = self.time_steps, self.time_steps + rollout.shape[0]
        return self._rollout_items(rollout)

    def _rollout_items(self, rollout: Rollout) -> tuple[Tensor, ...]:
        """Return elegantrl's off-policy tuple: states, actions, rewards, undones."""
        return rollout.states[:-1], rollout.actions, rollout.rewards, (~rollout.done).float()

    # --- learning ---------------------------------------------------------------------------------------------------

    def _norm_nets(self) -> list[NormBuffers]:
        """Return every network that normalizes observations."""
        nets = {id(net): net for net in (self.act, self.act_target, self.cri, self.cri_target)}
        return list(nets.values())

    @torch.no_grad()
    def _update_obs_norm(self, rows: Tensor) -> None:
        """Merge full or compact observations (M, S) into the running statistics and copy them to the networks."""
        if not self.normalizes:
            return
        for chunk in rows.split(CHUNK_ROWS):
            self.obs_norm.update(chunk if self.bars is None else self.bars.expand(chunk))
        average, std = self.obs_norm.mean.float(), self.obs_norm.std().float()
        for net in self._norm_nets():
            net.set_state_norm(average, std)

    def _optimizer(self, parameters: Any, learning_rate: float) -> torch.optim.Adam:
        """Return fused Adam without elegantrl's weight decay of 1 %, which pulls a policy towards 0."""
        trainable = [p for p in parameters if p.requires_grad]
        return torch.optim.Adam(trainable, lr=learning_rate, eps=self.adam_eps, fused=True)

    def scheduled_learning_rate(self) -> float:
        """Return the learning rate of the current update: constant, or decreasing linearly over `break_step`.

        The rate depends on the steps taken before the current rollout: the first of K updates uses the full rate, the
        last one 1/K of it. elegantrl's own loop makes one update beyond `break_step`, with a rate of 0.
        """
        if self.lr_schedule == "constant" or self.schedule_steps == float("inf"):
            return self.learning_rate
        return self.learning_rate * max(0.0, 1.0 - self.rollout_start / self.schedule_steps)

    # --- saving ----------------------------------------------------------------------------------------------------

    def policy(self) -> Policy:
        """Return a detached copy of the deterministic policy on the CPU."""
        return self.act.to_policy().to(HOST)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers by name, for saving."""
        return {"act_optimizer": self.act_optimizer, "cri_optimizer": self.cri_optimizer}

    def extra_tensors(self) -> dict[str, Tensor]:
        """Return the state to save in addition to networks, optimizers and observation statistics."""
        return {}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `extra_tensors` returned."""

    def save_or_load_agent(self, cwd: str, if_save: bool) -> None:
        """Save or load everything needed to resume training, as one safetensors file in `cwd`.

        elegantrl pickles whole modules instead, which torch >= 2.6 refuses to load.
        """
        path = os.path.join(cwd, STATE_FILE)
        if if_save:
            save_agent_state(self, path)
        elif os.path.isfile(path):
            load_agent_state(self, path)
