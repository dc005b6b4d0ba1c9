"""The band agent: it follows the exact gradient of the account back to the edges of a no-trade band."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from elegantrl.train.config import Config
from torch import Tensor, nn

from drl_agents.agents.AgentBase import AgentBase
from drl_agents.agents.band_gradient import BandGradient, BandRecord, band_gradient
from drl_agents.agents.band_market import BandMarket, check_environment
from drl_agents.agents.band_net import ActorBand, logit_gradient
from drl_agents.agents.band_rollout import (
    CHUNK_BARS,
    BandRollout,
    EdgeTable,
    bar_of,
    explore_accounts,
    explore_compiled,
    explore_one_account,
)
from drl_agents.agents.bar_features import BarFeatures
from drl_agents.host_copies import HOST
from drl_agents.policy import band_edges

SMALLEST_VOLATILITY = 1e-9  # of one bar's returns, below which a market stands still


@dataclass(frozen=True)
class BandSettings:
    """What the agent reads from elegantrl's Config beyond AgentBase's."""

    max_grad_norm: float
    weight_decay: float
    dropout: float
    remove_drift: bool

    @classmethod
    def from_args(cls, args: Any) -> BandSettings:
        """Read `args`, with the agent's usual values where it is silent."""
        return cls(
            max_grad_norm=args.clip_grad_norm,
            weight_decay=float(getattr(args, "weight_decay", 0.0)),
            dropout=float(getattr(args, "dropout", 0.0)),
            remove_drift=bool(getattr(args, "remove_drift", True)),
        )


@dataclass(frozen=True)
class BandStats:
    """What one update saw and did."""

    objective: float  # mean reward of an account-bar
    touched: float  # share of steps and coins at which the weight was outside its band
    dropped: float  # share of these at which nothing filled
    gradient_norm: float  # before clipping
    learning_rate: float


class AgentBand(AgentBase):
    """One gradient step a rollout, on all of the rollout's bars.

    The network gives every coin a band of weights from a bar's features. Exploring is trading: no noise, the held
    weights are moved into the bands of the bar. `update_net` follows the reward back through the accounts.
    """

    act: ActorBand

    def __init__(
        self, net_dims: Sequence[int], state_dim: int, action_dim: int, gpu_id: int = 0, args: Config | None = None
    ) -> None:
        args = args or Config(agent_class=type(self))
        n_extras = 2 + action_dim if getattr(args, "observe_account", False) else 0
        self.act_class = functools.partial(ActorBand, n_extras=n_extras)
        self.cri_class = None
        super().__init__(net_dims, state_dim, action_dim, gpu_id=gpu_id, args=args)
        self.band = BandSettings.from_args(args)
        self.action_dim = action_dim
        self.optimizer = self._adamw()
        self.act_optimizer = self.cri_optimizer = self.optimizer  # elegantrl's names
        self.market: BandMarket | None = None
        self.table: EdgeTable | None = None
        self.record: BandRollout | None = None
        self.masks: list[Tensor] | None = None
        self.last_update: BandStats | None = None
        self.compiles = True  # False: the plain loop, which gives the same bits
        self.as_if_filled = True  # what a dropped order's edge learns; benchmarks/band_choices.py compares
        self.loop: Any = None

    def _adamw(self) -> torch.optim.AdamW:
        """Adam with decay of the weights only: the biases say where the bands lie, and 0 is no better a place."""
        linears = self.act.linears()
        decayed = {"params": [linear.weight for linear in linears], "weight_decay": self.band.weight_decay}
        free = {"params": [linear.bias for linear in linears], "weight_decay": 0.0}
        return torch.optim.AdamW([decayed, free], lr=self.learning_rate, eps=self.adam_eps, fused=True)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name, for saving."""
        return {"optimizer": self.optimizer}

    # --- the market -------------------------------------------------------------------------------------------------

    def prepare_for(self, env: Any) -> None:
        """Take over the training bars of `env`: scaling of the features, mean returns, smallest orders.

        Raises:
            ValueError: `env` has other rules than the gradient is written for, or is no environment of ours.
        """
        check_environment(env)
        extras = env.params.observe_account
        market = BandMarket.of(env, self.device)
        n_features = self.act.columns.stop - self.act.columns.start
        if market.features.width != n_features:
            raise ValueError(
                f'agent "band" was built for {n_features} features of a bar, and {type(env).__name__} shows '
                f"{market.features.width}: give args.observe_account, which is {extras} in this environment"
            )
        self.market = market
        self.table = EdgeTable(len(market.price), self.action_dim, market.bars())
        self.env_params = env.params
        self._scale_features(market)
        self.mean_return, self.volatility = market.returns()
        self.act.least_weight.copy_(market.least_weight(env.params))

    @torch.no_grad()
    def _scale_features(self, market: BandMarket) -> None:
        """One pass over the training bars; the account's columns stay as they are."""
        if not self.normalizes:
            return
        seen, columns = market.feature_statistics(), self.act.columns
        average, std = torch.zeros(self.state_dim), torch.ones(self.state_dim)
        average[columns], std[columns] = seen.mean.float().cpu(), seen.std().float().cpu()
        self.act.set_state_norm(average, std)

    def observe_bars(self, bars: BarFeatures) -> None:
        """Explore an environment whose observations name their bar; it makes no difference to what is learned."""
        self.bars = bars

    # --- exploration ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explore_vec_env(self, env: Any, horizon_len: int, if_random: bool = False) -> tuple[Tensor, ...]:
        """Trade `horizon_len` bars with N accounts.

        Returns:
            bars (H, N), actions (H, N, A), filled coins (H, N, A), rewards (H, N), undones (H, N); this agent's record.
        """
        record, table = self._begin(env, horizon_len, self.device, if_random)
        rest = (env, torch.as_tensor(self.last_state, dtype=torch.float32), record, table, self.act.least_weight)
        loop = self._compiled_loop(env)
        self.last_state = explore_accounts(*rest) if loop is None else explore_compiled(loop, *rest)
        return self._end(record)

    @torch.no_grad()
    def explore_one_env(self, env: Any, horizon_len: int, if_random: bool = False) -> tuple[Tensor, ...]:
        """Trade `horizon_len` bars with one account; returns the same.

        NumPy observations come from the host, and what is learned from moves to this agent's device afterwards. An
        environment that restarts its one account by itself speaks tensors and is a batch of one.
        """
        if getattr(env, "autoreset", False):
            return self.explore_vec_env(env, horizon_len, if_random)
        record, table = self._begin(env, horizon_len, HOST, if_random)
        state = torch.as_tensor(self.last_state, dtype=torch.float32, device=HOST)
        if self.device != HOST:
            table = table.on_host()
        last = explore_one_account(env, state, record, table, self.act.least_weight.to(HOST))
        self.last_state = last.to(self.device)
        self.record = record.to(self.device)
        return self._end(self.record)

    def _begin(
        self, env: Any, horizon_len: int, device: torch.device, if_random: bool
    ) -> tuple[BandRollout, EdgeTable]:
        """A record on `device` of the accounts as they are, and the edges of the bars that they can meet."""
        if if_random:
            raise ValueError(f"{type(self).__name__} learns from its own trades only; explore with if_random=False (in "
                             "elegantrl's own loop: args.if_off_policy = False)")  # fmt: skip
        if self.last_state is None:
            raise RuntimeError("agent.last_state is not set: assign it env.reset() before exploring")
        if self.market is None:
            self.prepare_for(env)
        assert self.market is not None
        assert self.table is not None
        if not self.market.is_of(env):
            raise ValueError("the environment trades another market: call prepare_for with it first")
        if env.params is not self.env_params and env.params != self.env_params:
            raise ValueError(f"the environment has other settings, {_differences(env.params, self.env_params)}: call "
                             "prepare_for with it first")  # fmt: skip
        shape = (horizon_len, self.num_envs, self.action_dim)
        if self.record is None or self.record.shape != shape or self.record.action.device != device:
            self.record = BandRollout.allocate(*shape, device)
        self.record.begin(env)
        self.masks = self._draw_masks()
        state = torch.as_tensor(self.last_state, dtype=torch.float32)
        self.table.begin(self._project, bar_of(env, state), horizon_len)
        return self.record, self.table

    def _end(self, record: BandRollout) -> tuple[Tensor, ...]:
        record.reward *= self.reward_scale
        self.rollout_start, self.time_steps = self.time_steps, self.time_steps + len(record.reward)
        return record.bar, record.action, record.filled, record.reward, (~record.done).float()

    def _compiled_loop(self, env: Any) -> Any:
        """The environment's own compiled loop over bars, where its step has one; None otherwise."""
        kernel = getattr(getattr(env, "_fast", None), "kernel", None)
        if kernel is None or not self.compiles:
            return None
        if self.loop is None or self.loop.kernel is not kernel:
            package = type(kernel).__module__.rpartition(".")[0]
            self.loop = importlib.import_module(f"{package}.bands").band_loop_of(env)
        return self.loop

    def _draw_masks(self) -> list[Tensor] | None:
        """Factors of the hidden units: 0 for a share `dropout` of them, the same for all bars of a rollout.

        One smaller network trades the whole rollout, and its gradient is exact.
        """
        if self.band.dropout == 0.0:
            return None
        kept = 1.0 - self.band.dropout
        draws = [torch.rand(width, generator=self.generator, device=self.device) for width in self.net_dims]
        return [(draw < kept).float() / max(kept, 1e-9) for draw in draws]

    def _project(self, bars: Tensor) -> Tensor:
        """Bars (U,) -> edges (U, 2 A) of the network that trades this rollout."""
        return torch.cat(band_edges(self._raw(bars)), dim=1)

    def _raw(self, bars: Tensor) -> Tensor:
        """Bars (U,) -> logits of their edges (U, 2 A)."""
        assert self.market is not None
        return self.act.raw(self.market.features.windows_at(bars), self.masks)

    # --- learning ---------------------------------------------------------------------------------------------------

    def update_net(self, buffer: Any = None) -> tuple[float, ...]:
        """One gradient step on this agent's last rollout.

        Args:
            buffer: what `explore_*_env` returned; ignored, because this agent keeps its own record.

        Returns:
            Minus the objective of an account-bar (not a number where the network's edges are none), share of touched
            account-bars, gradient norm.
        """
        record, market = self.record, self.market
        if record is None or market is None:
            raise RuntimeError("nothing to learn from: call explore_one_env or explore_vec_env first")
        gradient = self._edge_gradient(record, market)
        learning_rate = self.scheduled_learning_rate()
        norm = self._descend(torch.cat((gradient.lo, gradient.hi), dim=1) * self._unit(), learning_rate)
        self.gradient_steps += 1
        # Without finite edges nobody trades, and an account that stands still has finite rewards.
        assert self.table is not None
        objective = torch.where(self.table.edges.isfinite().all(), record.reward.double().mean(), torch.nan)
        seen = (objective, gradient.touched, gradient.dropped)
        objective, touched, dropped = torch.stack(seen).tolist()
        self.last_update = BandStats(objective, touched, dropped, norm, learning_rate)
        return -objective, touched, norm

    def _edge_gradient(self, record: BandRollout, market: BandMarket) -> BandGradient:
        """Of the rollout's summed rewards, by the edges of every bar, (T, A) each."""
        assert self.table is not None
        lo, hi = self.table.edges.chunk(2, dim=1)  # by bar: accounts at the same bar have the same edges
        book = record.book
        steps = BandRecord(
            cash=book["cash"], qty=book["qty"], peak=book["peak"], max_drawdown=book["max_drawdown"], bar=record.bar,
            lo=lo, hi=hi, action=record.action, filled=record.filled, done=record.done, price=market.price,
            min_qty=market.min_qty, qty_increment=market.qty_increment, trades=market.trades,
        )  # fmt: skip
        mean_return = self.mean_return if self.band.remove_drift else None
        return band_gradient(
            steps, self.env_params, cost_factor=record.cost_factor, mean_return=mean_return,
            as_if_filled=self.as_if_filled,
        )  # fmt: skip

    def _unit(self) -> float:
        """Rewards of an account-bar in units of what one coin's volatility earns in a bar.

        With it, a learning rate and a bound on the gradient's norm mean the same on markets of any volatility, for
        bars of any length and for any `norm_reward`.
        """
        assert self.record is not None
        per_bar = self.env_params.norm_reward * max(float(self.volatility), SMALLEST_VOLATILITY)
        return 1.0 / (self.record.reward.numel() * per_bar)

    def _descend(self, by_bar: Tensor, learning_rate: float) -> float:
        """One step along the gradient by the edges, (T, 2 A) -> the norm of the gradient by the weights.

        Most bars move nobody: the network runs again, now with gradients, on those where a band was left.
        """
        moved = by_bar.ne(0.0).any(1).nonzero()[:, 0]
        self.optimizer.zero_grad(set_to_none=True)
        if not len(moved):
            return 0.0
        with torch.enable_grad():
            for bars in moved.split(CHUNK_BARS):
                raw = self._raw(bars)
                raw.backward(-logit_gradient(raw.detach(), by_bar[bars]))
        norm = nn.utils.clip_grad_norm_(self.act.parameters(), self.band.max_grad_norm, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        return norm.item()


def _differences(received: Any, prepared: Any) -> str:
    """The settings whose values differ, as "name received, prepared for other"."""
    pairs = ((name, value, getattr(prepared, name)) for name, value in vars(received).items())
    return "; ".join(f"{name} {value!r}, prepared for {other!r}" for name, value, other in pairs if value != other)
