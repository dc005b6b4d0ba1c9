"""Proximal policy optimisation (Schulman et al. 2017), complete, on elegantrl 0.3.6's class."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from elegantrl.agents.AgentPPO import AgentPPO as StockAgentPPO
from elegantrl.train.config import Config
from torch import Tensor

from drl_agents.agents.advantages import bootstrap_values, generalized_advantages
from drl_agents.agents.AgentBase import AgentBase
from drl_agents.agents.bar_features import SharedBars
from drl_agents.agents.flat_adam import FlatAdam
from drl_agents.agents.mlp_gradient import PRODUCTS, NetGradient, Products, has_onednn
from drl_agents.agents.nets import ActorPPO, CriticPPO, gaussian_log_prob
from drl_agents.agents.normalizer import RunningNorm
from drl_agents.agents.products_choice import choose
from drl_agents.agents.rollout import Rollout, RolloutStep
from drl_agents.policy import normalize

Stats = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # policy loss, value loss, entropy, divergence, clipped share
AUTOGRAD = "autograd"
WAYS = {"blas": 0, "onednn": 1, AUTOGRAD: 3}  # of a gradient step, by their numbers in saved states; 2 is retired
CACHED_ROWS = 1 << 8  # states normalised at once on the CPU
CPU_CHUNK_ROWS, GPU_CHUNK_ROWS = 1 << 11, 1 << 16  # states valued at once


@dataclass(frozen=True)
class PPOSettings:
    """What PPO reads from elegantrl's Config, under elegantrl's names where it has one.

    `repeat_times` is the number of epochs: passes over every sample of a rollout, so the number of gradient steps
    follows `horizon_len * num_envs`.
    """

    n_epochs: int
    gae_lambda: float
    clip_range: float
    entropy_coef: float
    value_coef: float
    max_grad_norm: float
    target_kl: float | None
    action_std_init_log: float
    normalize_values: bool
    gradients: str  # "auto" | "autograd" | "by_hand"

    @classmethod
    def from_args(cls, args: Any) -> PPOSettings:
        """Read `args`, with PPO's usual values where it is silent."""
        return cls(
            n_epochs=max(1, round(args.repeat_times)),
            gae_lambda=getattr(args, "lambda_gae_adv", 0.95),
            clip_range=getattr(args, "ratio_clip", 0.25),
            entropy_coef=float(getattr(args, "lambda_entropy", 0.01)),
            value_coef=getattr(args, "value_coef", 0.5),
            max_grad_norm=args.clip_grad_norm,
            target_kl=getattr(args, "target_kl", None),
            action_std_init_log=getattr(args, "action_std_init_log", -0.5),
            normalize_values=getattr(args, "normalize_values", True),
            gradients=getattr(args, "gradients", "auto"),
        )


@dataclass(frozen=True)
class Samples:
    """Rows to learn from; M of them, in any order."""

    states: Tensor  # (M, S) normalised; or see `_sample_rows`
    actions: Tensor  # (M, A) before the tanh
    logprobs: Tensor  # (M,) under the policy that acted
    advantages: Tensor  # (M,) standardised
    targets: Tensor  # (M,) normalised returns

    def __len__(self) -> int:
        return self.states.shape[0]

    def minibatches(self, n_minibatches: int, order: Tensor, room: Tensor | None = None) -> Iterator[Samples]:
        """Every sample once, in the given order, in parts of nearly equal size; `room` is for the states (M, S)."""
        rest = self.actions[order], self.logprobs[order], self.advantages[order], self.targets[order]
        # One gather per field and epoch; the parts are views.
        shuffled = Samples(torch.index_select(self.states, 0, order, out=room), *rest)
        fields = (shuffled.states, shuffled.actions, shuffled.logprobs, shuffled.advantages, shuffled.targets)
        parts = [field.tensor_split(n_minibatches) for field in fields]
        return (Samples(*part) for part in zip(*parts, strict=True))


@dataclass(frozen=True)
class UpdateStats:
    """Means over the gradient steps of one update."""

    policy_loss: float
    value_loss: float
    entropy: float
    approx_kl: float
    clipped_fraction: float
    gradient_norm: float
    gradient_steps: int
    epochs: int
    learning_rate: float


class AgentPPO(AgentBase, StockAgentPPO):
    """Clipped surrogate, GAE, one joint gradient step for actor and critic per minibatch.

    Differences to elegantrl's: gradient steps follow the number of samples; minibatches are drawn without
    replacement; ends of data are bootstrapped; observations and returns are normalised. An update reads from the device
    twice, for the rows of truncated steps and for its statistics, with bars in place of observations once more for the
    bars it holds, and with `target_kl` once more an epoch.
    """

    act_class = ActorPPO
    cri_class = CriticPPO
    act: ActorPPO
    cri: CriticPPO

    def __init__(
        self, net_dims: Sequence[int], state_dim: int, action_dim: int, gpu_id: int = 0, args: Config | None = None
    ) -> None:
        args = args or Config(agent_class=type(self))
        super().__init__(net_dims, state_dim, action_dim, gpu_id=gpu_id, args=args)
        self.ppo = PPOSettings.from_args(args)
        with torch.no_grad():
            self.act.action_std_log.fill_(self.ppo.action_std_init_log)
        self.trained_parameters = [p for p in (*self.act.parameters(), *self.cri.parameters()) if p.requires_grad]
        self.optimizer = self._optimizer(self.trained_parameters, self.learning_rate)
        self.act_optimizer = self.cri_optimizer = self.optimizer  # elegantrl's names
        self.value_norm = RunningNorm(1, self.device)
        self.flat: FlatAdam | None = None  # these three where gradients may be by hand
        self.by_hand: tuple[NetGradient, NetGradient] | None = None
        self.compiled_loss: Any = None
        self.rooms: dict[str, Tensor] = {}
        self.way = ""  # of WAYS, chosen at the first update
        # Not measured on a GPU: autograd until it is.
        if self.ppo.gradients == "by_hand" or (self.ppo.gradients == "auto" and self.device.type == "cpu"):
            self.flat = FlatAdam(self.optimizer, self.trained_parameters)
            self.by_hand = NetGradient(self.act.net, self.flat), NetGradient(self.cri.net, self.flat)
            self.compiled_loss = compiled_loss() if self.device.type == "cpu" else None
        self.exploring_std = torch.empty((1, self.action_dim), device=self.device)
        self.shared_features: Tensor | None = None  # (U, L * F) normalised, while an update shares them
        self.last_update: UpdateStats | None = None

    @property
    def works_by_hand(self) -> bool:
        """Whether gradient steps go without autograd in the networks."""
        return self.by_hand is not None and self.way != AUTOGRAD

    def take_way(self, way: str) -> None:
        """Make gradient steps by `way`, one of WAYS; "" leaves it to a timing before the next update."""
        self.way = way
        for net in self.by_hand or ():
            net.products = PRODUCTS.get(way, Products)()

    def _prepare_gradients(self, n_samples: int) -> None:
        """Before an update from so many samples: choose a way, take over tensors that were replaced."""
        if self.flat is None:
            return
        if not self.way:
            self.take_way(self._fastest_way(-(-n_samples // math.ceil(n_samples / self.batch_size))))
        if self.works_by_hand:
            self.flat.attach()

    @torch.enable_grad()
    def _fastest_way(self, n_rows: int) -> str:
        """The way that a timing on this machine found the fastest for gradient steps of so many samples."""
        ways = ["blas"]
        if self.device.type == "cpu":
            ways += ["onednn"] * has_onednn() + [AUTOGRAD] * (self.ppo.gradients == "auto")
        if len(ways) == 1:
            return ways[0]
        generator = torch.Generator().manual_seed(0)
        shapes = (n_rows, self.state_dim), (n_rows, self.action_dim), (n_rows,), (n_rows,), (n_rows,)
        samples = Samples(*(torch.randn(shape, generator=generator) for shape in shapes))

        def one_step(way: str) -> None:
            self.take_way(way)
            self._gradients(samples.states, samples)

        sizes = (self.state_dim, *self.net_dims, self.action_dim)
        return choose(sizes, n_rows, {way: functools.partial(one_step, way) for way in ways})

    # --- exploration ------------------------------------------------------------------------------------------------

    def _action_sampler(self, device: torch.device) -> Any:
        if self.exploring_std.device != device:
            self.exploring_std = torch.empty((1, self.action_dim), device=device)
        std = self.exploring_std.copy_(self.act.action_std_log.detach().exp())  # (1, A), where a graph expects it

        def draw(mean: Tensor, slots: RolloutStep, env_action: Tensor) -> None:
            torch.addcmul(mean, slots.noise, std, out=slots.action)
            torch.tanh(slots.action, out=env_action)

        return draw

    def _random_action(self, slots: RolloutStep, env_action: Tensor) -> Tensor:
        """Refused before the environment is stepped: uniform actions have no log-probability under the policy."""
        raise ValueError(f"{type(self).__name__} learns from its own actions only; explore with if_random=False")

    def _rollout_items(self, rollout: Rollout) -> tuple[Tensor, ...]:
        """elegantrl's on-policy tuple: states, actions, logprobs, rewards, undones."""
        logprobs = gaussian_log_prob(rollout.noise, self.act.action_std_log.detach())  # (H, N)
        return rollout.states[:-1], rollout.actions, logprobs, rollout.rewards, (~rollout.done).float()

    # --- learning ---------------------------------------------------------------------------------------------------

    def update_net(self, buffer: Any) -> tuple[float, ...]:
        """Learn from a rollout: (states, actions, logprobs, rewards, undones), as `explore_*_env` returned it.

        Returns:
            Value loss, surrogate objective and mean action deviation, elegantrl's three numbers.
        """
        is_first = self.obs_norm.count == 0
        self._prepare_gradients(buffer[2].numel())
        samples = self._samples(*buffer)
        learning_rate = self.scheduled_learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        n_minibatches = math.ceil(len(samples) / self.batch_size)
        totals = torch.zeros(6, device=self.device)
        room = self._room("shuffled", samples.states)
        epochs = 0
        with torch.enable_grad():
            while epochs < self.ppo.n_epochs:
                kl_before = totals[3].clone()
                order = torch.randperm(len(samples), generator=self.generator, device=self.device)
                for minibatch in samples.minibatches(n_minibatches, order, room):
                    totals += self._gradient_step(minibatch)
                epochs += 1
                if self._policy_moved_enough(totals[3] - kl_before, n_minibatches):
                    break
        n_steps = epochs * n_minibatches
        self.gradient_steps += n_steps
        if not is_first:  # the first rollout's statistics are in already
            self._update_obs_norm(buffer[0].reshape(-1, self.row_dim))
        action_std = self.act.action_std_log.detach().exp().mean()
        *means, std = torch.cat((totals / n_steps, action_std[None])).tolist()  # waits for the gradient steps
        self.last_update = UpdateStats(*means, gradient_steps=n_steps, epochs=epochs, learning_rate=learning_rate)
        return self.last_update.value_loss, -self.last_update.policy_loss, std

    def _room(self, name: str, like: Tensor) -> Tensor:
        """A buffer kept from update to update: fresh memory of some megabytes costs as much as writing to it."""
        room = self.rooms.get(name)
        if room is None or room.shape != like.shape or room.dtype != like.dtype:
            room = self.rooms[name] = torch.empty_like(like)
        return room

    def _policy_moved_enough(self, kl_sum: Tensor, n_minibatches: int) -> bool:
        """Whether the epoch's mean divergence passed the target; reads it back only when there is one."""
        return self.ppo.target_kl is not None and (kl_sum / n_minibatches).item() > self.ppo.target_kl

    @torch.no_grad()
    def _samples(self, states: Tensor, actions: Tensor, logprobs: Tensor, rewards: Tensor, undones: Tensor) -> Samples:
        """Rollout (H, N, ...) -> flat samples with advantages and value targets."""
        if self.normalizes and self.obs_norm.count == 0:
            logprobs = self._adopt_first_statistics(states, actions)
        done = undones < 0.5
        rows = self._sample_rows(states.reshape(-1, self.row_dim))
        values, last_value, final_values, truncated = self._values(states, done, rows)
        next_values = bootstrap_values(values, last_value, final_values, done, truncated)
        advantages = generalized_advantages(rewards, values, next_values, done, self.gamma, self.ppo.gae_lambda)
        returns = advantages + values
        self._update_value_norm(returns)
        return Samples(
            states=rows,
            actions=actions.reshape(-1, self.action_dim),
            logprobs=logprobs.reshape(-1),
            advantages=standardize(advantages).reshape(-1),
            targets=self.cri.normalize_value(returns).reshape(-1),
        )

    def _adopt_first_statistics(self, states: Tensor, actions: Tensor) -> Tensor:
        """Before the first update, normalise by the first rollout and score its actions anew, (H, N).

        The first policy answers every state almost alike (its last layer is near 0), so the scores hardly change,
        while a first update on raw observations could be wasted.
        """
        self._update_obs_norm(states.reshape(-1, self.row_dim))
        parts = [self.act.net(self.act.state_norm(self._full(rows))) for rows in self._in_chunks(states)]
        mean = torch.cat(parts).view(actions.shape)
        log_std = self.act.action_std_log
        return gaussian_log_prob((actions - mean) * (-log_std).exp(), log_std)

    def _values(
        self, states: Tensor, done: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values (H, N) of the states, (N,) after the last, (H, N) where cut off, and the cut-off mask.

        `inputs` are the states as `_sample_rows` returns them, if they are known.

        How episodes ended is read from this agent's storage; a buffer that is not its own ends in terminals.
        """
        if inputs is not None and self.bars is None and self.works_by_hand:
            values = torch.cat([self._value_of_inputs(part) for part in inputs.split(CPU_CHUNK_ROWS)]).view(done.shape)
        else:
            values = self._value_of(states)
        last_value = self._value_of(torch.as_tensor(self.last_state))
        final_values = torch.zeros_like(values)
        truncated = torch.zeros_like(done)
        if self.rollout is not None and self.rollout.states.data_ptr() == states.data_ptr():
            truncated = self.rollout.truncated
            # Waits for the device, once an update and before its gradient steps are queued: valuing all of
            # final_states instead would not, but costs a pass over as many states as the rollout has.
            rows = truncated.nonzero(as_tuple=True)
            final_values[rows] = self._value_of(self.rollout.final_states[rows])
        return values, last_value, final_values, truncated

    def _value_of(self, states: Tensor) -> Tensor:
        """Critic on observations (..., S), or compact ones -> (...)."""
        if not states.numel():
            return states.new_zeros(states.shape[:-1])
        values = [self._value_of_rows(self._full(rows)) for rows in self._in_chunks(states)]
        return torch.cat(values).view(states.shape[:-1])

    def _value_of_rows(self, full: Tensor) -> Tensor:
        """(M, S) -> (M,), by the faster products where there are such."""
        return self._value_of_inputs(self.cri.state_norm(full)) if self.works_by_hand else self.cri(full)

    def _value_of_inputs(self, inputs: Tensor) -> Tensor:
        """Normalised observations (M, S) -> (M,)."""
        assert self.by_hand is not None
        return (self.by_hand[1].forward(inputs) * self.cri.value_std + self.cri.value_avg).squeeze(1)

    def _in_chunks(self, states: Tensor) -> tuple[Tensor, ...]:
        """(..., S) as parts of at most so many rows: what a cache holds on the CPU, else what bounds the memory."""
        n_rows = CPU_CHUNK_ROWS if self.device.type == "cpu" else GPU_CHUNK_ROWS
        return states.reshape(-1, self.row_dim).split(n_rows)

    def _full(self, rows: Tensor) -> Tensor:
        """Observations as the networks see them, (M, S)."""
        return rows if self.bars is None else self.bars.expand(rows)

    def _sample_rows(self, rows: Tensor) -> Tensor:
        """What minibatches are drawn from: (M, S) normalised, or compact rows for `_inputs` to complete.

        Where accounts share bars, the account's columns are normalised and the last one is the row of
        `shared_features`: with at most half as many bars in the rollout as samples in a minibatch, the first layer's
        product with the features is smaller once a bar.
        """
        self.shared_features = None
        if self.bars is None:
            return self._normalized(rows)
        if not self.works_by_hand:
            return rows
        bar, index = rows[:, -1].long().unique(return_inverse=True)  # waits for the device, once an update
        if 2 * len(bar) > min(self.batch_size, len(rows)):
            return rows
        average, std, clip = self.act.state_avg, self.act.state_std, self.act.observation_clip
        of, windows = self.bars.features_of, self.bars.windows_at(bar)
        self.shared_features = normalize(windows, of(average), of(std), clip)
        of = self.bars.account_of
        return torch.cat((normalize(rows[:, :-1], of(average), of(std), clip), index[:, None]), dim=1)

    def _normalized(self, rows: Tensor) -> Tensor:
        """(M, S) in standard deviations, clipped; on the CPU in parts that stay in the cache. Valid until the next."""
        if self.device.type != "cpu":
            return self.act.state_norm(rows)
        room, clip = self._room("normalized", rows), self.act.observation_clip
        for part, out in zip(rows.split(CACHED_ROWS), room.split(CACHED_ROWS), strict=True):
            torch.sub(part, self.act.state_avg, out=out).div_(self.act.state_std).clamp_(-clip, clip)
        return room

    def _inputs(self, rows: Tensor) -> Tensor | SharedBars:
        """The networks' input for a minibatch's rows."""
        if self.bars is None:
            return rows
        if self.shared_features is None:
            return self.act.state_norm(self.bars.expand(rows))
        return SharedBars(rows[:, :-1], self.shared_features, rows[:, -1].long(), self.bars)

    def _update_value_norm(self, returns: Tensor) -> None:
        if not self.ppo.normalize_values:
            return
        is_first = self.value_norm.count == 0
        self.value_norm.update(returns.reshape(-1, 1))
        # The untrained critic is better off predicting the first mean than keeping its random predictions.
        adopt = self.cri.set_value_norm if is_first else self.cri.rescale_values
        adopt(self.value_norm.mean.float(), self.value_norm.std().float())

    def _gradient_step(self, samples: Samples) -> Tensor:
        """One joint step on actor and critic; returns six summed statistics without reading them back."""
        norm, stats = self._gradients(self._inputs(samples.states), samples)
        if self.works_by_hand:
            assert self.flat is not None
            self.flat.step()
        else:
            self.optimizer.step()
        return torch.stack((*stats, norm)).detach()

    def _gradients(self, inputs: Tensor | SharedBars, samples: Samples) -> tuple[Tensor, Stats]:
        """Clipped gradients in `grad` of the parameters -> their norm before, the loss's statistics."""
        if self.works_by_hand:
            return self._gradients_by_hand(inputs, samples)
        assert isinstance(inputs, Tensor)
        loss, stats = self._loss(self.act.net(inputs), self.cri.net(inputs), samples)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained_parameters, self.ppo.max_grad_norm, foreach=True)
        return norm, stats

    def _gradients_by_hand(self, inputs: Tensor | SharedBars, samples: Samples) -> tuple[Tensor, Stats]:
        """The same by hand where the arithmetic is: autograd sees the (B, A) and (B, 1) outputs only."""
        assert self.flat is not None
        assert self.by_hand is not None
        actor, critic = self.by_hand
        by_output, stats = self._output_gradients(actor.forward(inputs), critic.forward(inputs), samples)
        d_mean, d_value, d_log_std = by_output
        actor.backward(d_mean)
        critic.backward(d_value)
        self.flat.gradient_of(self.act.action_std_log).copy_(d_log_std)
        return self.flat.clip(self.ppo.max_grad_norm), stats

    def _output_gradients(self, mean: Tensor, value: Tensor, samples: Samples) -> tuple[Sequence[Tensor], Stats]:
        """Gradients of the loss by the networks' outputs (B, A) and (B, 1) and by the log deviation; its statistics."""
        if self.compiled_loss is not None:
            return self._compiled_gradients(mean, value, samples)
        loss, stats = self._loss(mean.requires_grad_(), value.requires_grad_(), samples)
        return torch.autograd.grad(loss, (mean, value, self.act.action_std_log)), stats

    def _compiled_gradients(self, mean: Tensor, value: Tensor, samples: Samples) -> tuple[Sequence[Tensor], Stats]:
        """The same in one compiled pass."""
        assert self.compiled_loss is not None
        log_std = self.act.action_std_log.detach()
        stats = torch.zeros(5, dtype=torch.float64)
        gradients = torch.empty_like(mean), torch.empty_like(value), torch.empty_like(log_std)
        given = (mean, value, log_std.view(-1), samples.actions, samples.logprobs, samples.advantages, samples.targets)
        written = (*gradients[:2], gradients[2].view(-1), stats)
        self.compiled_loss(
            *(tensor.numpy() for tensor in given), self._kernel_clip_range, self.ppo.value_coef, self.ppo.entropy_coef,
            *(tensor.numpy() for tensor in written),
        )  # fmt: skip
        policy_loss, value_loss, entropy, kl, clipped = stats.float().unbind()
        return gradients, (policy_loss, value_loss, entropy, kl, clipped)

    @property
    def _kernel_clip_range(self) -> float:
        """What `ppo_loss.loss_and_gradient` takes for this class's `_policy_loss`."""
        return self.ppo.clip_range

    def _loss(self, mean: Tensor, value: Tensor, samples: Samples) -> tuple[Tensor, Stats]:
        """Joint loss of the actor's means (B, A) and the critic's normalised values (B, 1), and its parts."""
        log_std = self.act.action_std_log
        logprob = gaussian_log_prob((samples.actions - mean) * (-log_std).exp(), log_std)
        entropy = (log_std + 0.5 + 0.5 * math.log(2.0 * math.pi)).sum()
        policy_loss, kl, clipped = self._policy_loss(logprob, samples)
        value_loss = (value.squeeze(1) - samples.targets).square().mean()
        loss = policy_loss - self.ppo.entropy_coef * entropy + self.ppo.value_coef * value_loss
        return loss, (policy_loss, value_loss, entropy, kl, clipped)

    def _policy_loss(self, logprob: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """Clipped surrogate loss, approximate divergence and share of clipped samples, all scalars.

        The divergence is Schulman's low-variance estimate `mean(ratio - 1 - log ratio)`.
        """
        log_ratio = logprob - samples.logprobs
        ratio = log_ratio.exp()
        limited = ratio.clamp(1.0 - self.ppo.clip_range, 1.0 + self.ppo.clip_range)
        surrogate = torch.minimum(ratio * samples.advantages, limited * samples.advantages)
        kl = (ratio - 1.0 - log_ratio).detach().mean()
        clipped = ((ratio - 1.0).abs() > self.ppo.clip_range).float().mean()
        return -surrogate.mean(), kl, clipped

    def extra_tensors(self) -> dict[str, Tensor]:
        """State beyond networks and observation statistics."""
        tensors = {f"value_norm.{name}": value for name, value in self.value_norm.tensors().items()}
        return tensors | {"products": torch.tensor(WAYS.get(self.way, -1))}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `extra_tensors` returned; a state of an earlier version has no products, or a retired way."""
        number = int(tensors.pop("products", torch.tensor(-1)))
        kept = next((way for way, known in WAYS.items() if known == number), "")
        self.take_way("" if kept == AUTOGRAD and self.ppo.gradients != "auto" else kept)  # a setting wins
        self.value_norm.load({name.removeprefix("value_norm."): value for name, value in tensors.items()})

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One for both networks."""
        return {"optimizer": self.optimizer}


@functools.cache
def compiled_loss() -> Any:
    """The compiled loss; None where numba is missing."""
    try:
        return importlib.import_module("drl_agents.agents.ppo_loss").loss_and_gradient
    except ImportError:
        return None


def standardize(x: Tensor) -> Tensor:
    """Zero mean, unit deviation; all zeros when `x` does not vary."""
    centred = x - x.mean()
    return centred / (centred.square().mean().sqrt() + 1e-8)
