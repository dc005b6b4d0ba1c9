"""Proximal policy optimization (Schulman et al. 2017) on elegantrl 0.3.6's class."""

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
WAYS = {"blas": 0, "onednn": 1, AUTOGRAD: 3}  # implementation -> its number in saved states; 2 is no longer used
CACHED_ROWS = 1 << 8  # rows normalized at once on the CPU
CPU_CHUNK_ROWS, GPU_CHUNK_ROWS = 1 << 11, 1 << 16  # rows per critic call


@dataclass(frozen=True)
class PPOSettings:
    """Settings that PPO reads from elegantrl's Config, with elegantrl's names where they exist.

    `repeat_times` is the number of epochs, which are passes over a rollout. The number of gradient steps is therefore
    proportional to `horizon_len * num_envs`.
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
        """Read `args`, with PPO's defaults for missing settings."""
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
    """M training samples in any order."""

    states: Tensor  # (M, S) normalized, or compact rows, see `_sample_rows`
    actions: Tensor  # (M, A) before the tanh
    logprobs: Tensor  # (M,) under the policy that acted
    advantages: Tensor  # (M,) standardized
    targets: Tensor  # (M,) normalized returns

    def __len__(self) -> int:
        return self.states.shape[0]

    def minibatches(self, n_minibatches: int, order: Tensor, room: Tensor | None = None) -> Iterator[Samples]:
        """Return minibatches of nearly equal size that cover every sample once in the given order.

        `room` is an optional buffer for the states (M, S).
        """
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
    """PPO with clipped surrogate, GAE, and one joint gradient step for actor and critic per minibatch.

    It differs from elegantrl's class in four ways. The number of gradient steps is proportional to the number of
    samples. Minibatches are drawn without replacement. Truncated episodes are bootstrapped. Observations and returns
    are normalized. An update synchronizes with the device twice: for the rows of truncated steps and for its
    statistics. Compact observations add one synchronization, and `target_kl` adds one per epoch.
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
        self.flat: FlatAdam | None = None  # these three are set if manual gradients are possible
        self.by_hand: tuple[NetGradient, NetGradient] | None = None
        self.compiled_loss: Any = None
        self.rooms: dict[str, Tensor] = {}
        self.way = ""  # a key of WAYS, selected at the first update
        # Manual gradients have not been measured on a GPU yet, so a GPU uses autograd.
        if self.ppo.gradients == "by_hand" or (self.ppo.gradients == "auto" and self.device.type == "cpu"):
            self.flat = FlatAdam(self.optimizer, self.trained_parameters)
            self.by_hand = NetGradient(self.act.net, self.flat), NetGradient(self.cri.net, self.flat)
            self.compiled_loss = compiled_loss() if self.device.type == "cpu" else None
        self.exploring_std = torch.empty((1, self.action_dim), device=self.device)
        self.shared_features: Tensor | None = None  # (U, L * F) normalized, during an update that shares them
        self.last_update: UpdateStats | None = None

    @property
    def works_by_hand(self) -> bool:
        """True if gradient steps do not use autograd within the networks."""
        return self.by_hand is not None and self.way != AUTOGRAD

    def take_way(self, way: str) -> None:
        """Select a gradient implementation from WAYS; "" selects the fastest one before the next update."""
        self.way = way
        for net in self.by_hand or ():
            net.products = PRODUCTS.get(way, Products)()

    def _prepare_gradients(self, n_samples: int) -> None:
        """Select a gradient implementation for `n_samples` and attach replaced tensors, before an update."""
        if self.flat is None:
            return
        if not self.way:
            self.take_way(self._fastest_way(-(-n_samples // math.ceil(n_samples / self.batch_size))))
        if self.works_by_hand:
            self.flat.attach()

    @torch.enable_grad()
    def _fastest_way(self, n_rows: int) -> str:
        """Return the gradient implementation that is fastest on this machine for `n_rows` samples."""
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
        std = self.exploring_std.copy_(self.act.action_std_log.detach().exp())  # (1, A), where a graph reads it

        def draw(mean: Tensor, slots: RolloutStep, env_action: Tensor) -> None:
            torch.addcmul(mean, slots.noise, std, out=slots.action)
            torch.tanh(slots.action, out=env_action)

        return draw

    def _random_action(self, slots: RolloutStep, env_action: Tensor) -> Tensor:
        """Raise ValueError: uniform actions have no log-probability under the policy."""
        raise ValueError(f"{type(self).__name__} learns from its own actions only; explore with if_random=False")

    def _rollout_items(self, rollout: Rollout) -> tuple[Tensor, ...]:
        """Return elegantrl's on-policy tuple: states, actions, logprobs, rewards, undones."""
        logprobs = gaussian_log_prob(rollout.noise, self.act.action_std_log.detach())  # (H, N)
        return rollout.states[:-1], rollout.actions, logprobs, rollout.rewards, (~rollout.done).float()

    # --- learning ---------------------------------------------------------------------------------------------------

    def update_net(self, buffer: Any) -> tuple[float, ...]:
        """Learn from a rollout (states, actions, logprobs, rewards, undones) returned by `explore_*_env`.

        Returns:
            Value loss, surrogate objective and mean action deviation, as elegantrl's agents do.
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
        if not is_first:  # the statistics already include the first rollout
            self._update_obs_norm(buffer[0].reshape(-1, self.row_dim))
        action_std = self.act.action_std_log.detach().exp().mean()
        *means, std = torch.cat((totals / n_steps, action_std[None])).tolist()  # waits for the gradient steps
        self.last_update = UpdateStats(*means, gradient_steps=n_steps, epochs=epochs, learning_rate=learning_rate)
        return self.last_update.value_loss, -self.last_update.policy_loss, std

    def _room(self, name: str, like: Tensor) -> Tensor:
        """Return a buffer that is reused across updates, because allocating megabytes costs as much as writing them."""
        room = self.rooms.get(name)
        if room is None or room.shape != like.shape or room.dtype != like.dtype:
            room = self.rooms[name] = torch.empty_like(like)
        return room

    def _policy_moved_enough(self, kl_sum: Tensor, n_minibatches: int) -> bool:
        """Return True if the epoch's mean divergence exceeds `target_kl`; without a target, do not synchronize."""
        return self.ppo.target_kl is not None and (kl_sum / n_minibatches).item() > self.ppo.target_kl

    @torch.no_grad()
    def _samples(self, states: Tensor, actions: Tensor, logprobs: Tensor, rewards: Tensor, undones: Tensor) -> Samples:
        """Convert a rollout (H, N, ...) into flat samples with advantages and value targets."""
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
        """Normalize by the first rollout before the first update, and recompute its log-probabilities (H, N).

        The first policy maps all states to almost the same action, because its last layer is near 0. The
        log-probabilities therefore change little, whereas a first update on raw observations could be wasted.
        """
        self._update_obs_norm(states.reshape(-1, self.row_dim))
        parts = [self.act.net(self.act.state_norm(self._full(rows))) for rows in self._in_chunks(states)]
        mean = torch.cat(parts).view(actions.shape)
        log_std = self.act.action_std_log
        return gaussian_log_prob((actions - mean) * (-log_std).exp(), log_std)

    def _values(
        self, states: Tensor, done: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return values (H, N) of states, (N,) of the last states, (H, N) of truncated states, and the truncation mask.

        `inputs` are the states as returned by `_sample_rows`, if available. Truncation is read from this agent's
        storage. In any other buffer, every episode end is terminal.
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
            # Synchronizes with the device once per update, before its gradient steps are queued. Evaluating all of
            # final_states would avoid this, but would need an extra pass over as many states as the rollout has.
            rows = truncated.nonzero(as_tuple=True)
            final_values[rows] = self._value_of(self.rollout.final_states[rows])
        return values, last_value, final_values, truncated

    def _value_of(self, states: Tensor) -> Tensor:
        """Return values (...) of full or compact observations (..., S)."""
        if not states.numel():
            return states.new_zeros(states.shape[:-1])
        values = [self._value_of_rows(self._full(rows)) for rows in self._in_chunks(states)]
        return torch.cat(values).view(states.shape[:-1])

    def _value_of_rows(self, full: Tensor) -> Tensor:
        """Return values (M,) of full observations (M, S), with the faster matrix products if available."""
        return self._value_of_inputs(self.cri.state_norm(full)) if self.works_by_hand else self.cri(full)

    def _value_of_inputs(self, inputs: Tensor) -> Tensor:
        """Return values (M,) of normalized observations (M, S)."""
        assert self.by_hand is not None
        return (self.by_hand[1].forward(inputs) * self.cri.value_std + self.cri.value_avg).squeeze(1)

    def _in_chunks(self, states: Tensor) -> tuple[Tensor, ...]:
        """Split (..., S) into chunks of rows that fit the cache on the CPU, or limit the memory on a GPU."""
        n_rows = CPU_CHUNK_ROWS if self.device.type == "cpu" else GPU_CHUNK_ROWS
        return states.reshape(-1, self.row_dim).split(n_rows)

    def _full(self, rows: Tensor) -> Tensor:
        """Return full observations (M, S)."""
        return rows if self.bars is None else self.bars.expand(rows)

    def _sample_rows(self, rows: Tensor) -> Tensor:
        """Return the rows to draw minibatches from: normalized (M, S), or compact rows for `_inputs` to expand.

        If accounts share bars, the account's columns are normalized, and the last column is a row of `shared_features`.
        This requires at most half as many bars in the rollout as samples in a minibatch. The first layer then computes
        its product with the features once per bar.
        """
        self.shared_features = None
        if self.bars is None:
            return self._normalized(rows)
        if not self.works_by_hand:
            return rows
        bar, index = rows[:, -1].long().unique(return_inverse=True)  # synchronizes with the device once per update
        if 2 * len(bar) > min(self.batch_size, len(rows)):
            return rows
        average, std, clip = self.act.state_avg, self.act.state_std, self.act.observation_clip
        of, windows = self.bars.features_of, self.bars.windows_at(bar)
        self.shared_features = normalize(windows, of(average), of(std), clip)
        of = self.bars.account_of
        return torch.cat((normalize(rows[:, :-1], of(average), of(std), clip), index[:, None]), dim=1)

    def _normalized(self, rows: Tensor) -> Tensor:
        """Return clipped z-scores (M, S), valid until the next call; on the CPU, chunks stay in the cache."""
        if self.device.type != "cpu":
            return self.act.state_norm(rows)
        room, clip = self._room("normalized", rows), self.act.observation_clip
        for part, out in zip(rows.split(CACHED_ROWS), room.split(CACHED_ROWS), strict=True):
            torch.sub(part, self.act.state_avg, out=out).div_(self.act.state_std).clamp_(-clip, clip)
        return room

    def _inputs(self, rows: Tensor) -> Tensor | SharedBars:
        """Return the networks' input for a minibatch's rows."""
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
        # An untrained critic predicts better by returning the first mean than by keeping its random predictions.
        adopt = self.cri.set_value_norm if is_first else self.cri.rescale_values
        adopt(self.value_norm.mean.float(), self.value_norm.std().float())

    def _gradient_step(self, samples: Samples) -> Tensor:
        """Take one joint step on actor and critic; return six statistics without synchronizing."""
        norm, stats = self._gradients(self._inputs(samples.states), samples)
        if self.works_by_hand:
            assert self.flat is not None
            self.flat.step()
        else:
            self.optimizer.step()
        return torch.stack((*stats, norm)).detach()

    def _gradients(self, inputs: Tensor | SharedBars, samples: Samples) -> tuple[Tensor, Stats]:
        """Write clipped gradients into the parameters' `grad`; return their norm before clipping and the statistics."""
        if self.works_by_hand:
            return self._gradients_by_hand(inputs, samples)
        assert isinstance(inputs, Tensor)
        loss, stats = self._loss(self.act.net(inputs), self.cri.net(inputs), samples)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained_parameters, self.ppo.max_grad_norm, foreach=True)
        return norm, stats

    def _gradients_by_hand(self, inputs: Tensor | SharedBars, samples: Samples) -> tuple[Tensor, Stats]:
        """Compute clipped gradients and statistics without autograd in the networks.

        Autograd only processes the outputs (B, A) and (B, 1).
        """
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
        """Return loss gradients w.r.t. the outputs (B, A) and (B, 1) and the log deviation, and the loss statistics."""
        if self.compiled_loss is not None:
            return self._compiled_gradients(mean, value, samples)
        loss, stats = self._loss(mean.requires_grad_(), value.requires_grad_(), samples)
        return torch.autograd.grad(loss, (mean, value, self.act.action_std_log)), stats

    def _compiled_gradients(self, mean: Tensor, value: Tensor, samples: Samples) -> tuple[Sequence[Tensor], Stats]:
        """Return loss gradients and statistics from one compiled pass."""
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
        """Clip range that makes `ppo_loss.loss_and_gradient` equal to this class's `_policy_loss`."""
        return self.ppo.clip_range

    def _loss(self, mean: Tensor, value: Tensor, samples: Samples) -> tuple[Tensor, Stats]:
        """Return the joint loss of action means (B, A) and normalized values (B, 1), and its parts."""
        log_std = self.act.action_std_log
        logprob = gaussian_log_prob((samples.actions - mean) * (-log_std).exp(), log_std)
        entropy = (log_std + 0.5 + 0.5 * math.log(2.0 * math.pi)).sum()
        policy_loss, kl, clipped = self._policy_loss(logprob, samples)
        value_loss = (value.squeeze(1) - samples.targets).square().mean()
        loss = policy_loss - self.ppo.entropy_coef * entropy + self.ppo.value_coef * value_loss
        return loss, (policy_loss, value_loss, entropy, kl, clipped)

    def _policy_loss(self, logprob: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
        """Return clipped surrogate loss, approximate divergence and share of clipped samples, all scalars.

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
        """Return the state to save in addition to networks and observation statistics."""
        tensors = {f"value_norm.{name}": value for name, value in self.value_norm.tensors().items()}
        return tensors | {"products": torch.tensor(WAYS.get(self.way, -1))}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `extra_tensors` returned.

        States saved by earlier versions lack `products`, or name an implementation that no longer exists.
        """
        number = int(tensors.pop("products", torch.tensor(-1)))
        kept = next((way for way, known in WAYS.items() if known == number), "")
        self.take_way("" if kept == AUTOGRAD and self.ppo.gradients != "auto" else kept)  # the setting has priority
        self.value_norm.load({name.removeprefix("value_norm."): value for name, value in tensors.items()})

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the joint optimizer of both networks by name."""
        return {"optimizer": self.optimizer}


@functools.cache
def compiled_loss() -> Any:
    """Return the compiled loss, or None without numba."""
    try:
        return importlib.import_module("drl_agents.agents.ppo_loss").loss_and_gradient
    except ImportError:
        return None


def standardize(x: Tensor) -> Tensor:
    """Return `x` with zero mean and unit deviation; all zeros if `x` is constant."""
    centred = x - x.mean()
    return centred / (centred.square().mean().sqrt() + 1e-8)
