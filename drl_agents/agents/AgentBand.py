"""The band agent, which learns no-trade bands from the exact gradient of the account."""

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

SMALLEST_VOLATILITY = 1e-9  # volatility per bar below which a market is considered flat


@dataclass(frozen=True)
class BandSettings:
    """Settings that the agent reads from elegantrl's Config in addition to AgentBase's."""

    max_grad_norm: float
    weight_decay: float
    dropout: float
    remove_drift: bool

    @classmethod
    def from_args(cls, args: Any) -> BandSettings:
        """Read `args`, with the agent's defaults for missing settings."""
        return cls(
            max_grad_norm=args.clip_grad_norm,
            weight_decay=float(getattr(args, "weight_decay", 0.0)),
            dropout=float(getattr(args, "dropout", 0.0)),
            remove_drift=bool(getattr(args, "remove_drift", True)),
        )


@dataclass(frozen=True)
class BandStats:
    """Statistics of one update."""

    objective: float  # mean reward per account-bar
    touched: float  # share of steps and coins at which the weight was outside its band
    dropped: float  # share of the touched edges without a fill
    gradient_norm: float  # before clipping
    learning_rate: float


class AgentBand(AgentBase):
    """Agent that takes one gradient step per rollout, on all bars of the rollout.

    The network maps a bar's features to a band of weights for every coin. Exploration is trading without noise: the
    held weights move into the bands of the bar. `update_net` backpropagates the reward through the accounts.
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
        self.compiles = True  # False: the plain loop, with bit-identical results
        self.as_if_filled = True  # gradient of a dropped order's edge; benchmarks/band_choices.py compares both
        self.loop: Any = None

    def _adamw(self) -> torch.optim.AdamW:
        """Return AdamW that decays the weights but not the biases, because the biases set the position of the bands."""
        linears = self.act.linears()
        decayed = {"params": [linear.weight for linear in linears], "weight_decay": self.band.weight_decay}
        free = {"params": [linear.bias for linear in linears], "weight_decay": 0.0}
        return torch.optim.AdamW([decayed, free], lr=self.learning_rate, eps=self.adam_eps, fused=True)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimizers by name, for saving."""
        return {"optimizer": self.optimizer}

    # --- the market -------------------------------------------------------------------------------------------------

    def prepare_for(self, env: Any) -> None:
        """Read the training bars of `env`: feature scaling, mean returns and smallest orders.

        Raises:
            ValueError: If the gradient does not support the rules of `env`, or `env` is not from this repository.
        """
        check_environment(env)
        extras = env.params.observe_account
        market = BandMarket.of(env, self.device)
        n_features = self.act.columns.stop - self.act.columns.start
        if market.features.width != n_features:
            raise ValueError(
                f'agent "band" was built for {n_features} features per bar, but {type(env).__name__} has '
                f"{market.features.width}; set args.observe_account to {extras}, as in this environment"
            )
        self.market = market
        self.table = EdgeTable(len(market.price), self.action_dim, market.bars())
        self.env_params = env.params
        self._scale_features(market)
        self.mean_return, self.volatility = market.returns()
        self.act.least_weight.copy_(market.least_weight(env.params))

    @torch.no_grad()
    def _scale_features(self, market: BandMarket) -> None:
        """Compute the feature statistics over the training bars; the account's columns are not scaled."""
        if not self.normalizes:
            return
        seen, columns = market.feature_statistics(), self.act.columns
        average, std = torch.zeros(self.state_dim), torch.ones(self.state_dim)
        average[columns], std[columns] = seen.mean.float().cpu(), seen.std().float().cpu()
        self.act.set_state_norm(average, std)

    def observe_bars(self, bars: BarFeatures) -> None:
        """Explore an environment with compact observations; this does not change what is learned."""
        self.bars = bars

    # --- exploration ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def explore_vec_env(self, env: Any, horizon_len: int, if_random: bool = False) -> tuple[Tensor, ...]:
        """Trade `horizon_len` bars with N accounts.

        Returns:
            bars (H, N), actions (H, N, A), filled coins (H, N, A), rewards (H, N) and undones (H, N); these tensors are
            this agent's record.
        """
        record, table = self._begin(env, horizon_len, self.device, if_random)
        rest = (env, torch.as_tensor(self.last_state, dtype=torch.float32), record, table, self.act.least_weight)
        loop = self._compiled_loop(env)
        self.last_state = explore_accounts(*rest) if loop is None else explore_compiled(loop, *rest)
        return self._end(record)

    @torch.no_grad()
    def explore_one_env(self, env: Any, horizon_len: int, if_random: bool = False) -> tuple[Tensor, ...]:
        """Trade `horizon_len` bars with one account and return the same tensors as `explore_vec_env`.

        NumPy observations stay on the host during exploration, and the record then moves to this agent's device. An
        environment with autoreset uses tensors and is treated as a batch of one.
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
        """Start a record of the current accounts on `device`, and compute the edges of the bars that they can reach."""
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
            raise ValueError("the environment trades a different market: call prepare_for with it first")
        if env.params is not self.env_params and env.params != self.env_params:
            raise ValueError(f"the environment has different settings, {_differences(env.params, self.env_params)}: "
                             "call prepare_for with it first")  # fmt: skip
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
        """Return the environment's compiled loop over bars, or None if its step has no such loop."""
        kernel = getattr(getattr(env, "_fast", None), "kernel", None)
        if kernel is None or not self.compiles:
            return None
        if self.loop is None or self.loop.kernel is not kernel:
            package = type(kernel).__module__.rpartition(".")[0]
            self.loop = importlib.import_module(f"{package}.bands").band_loop_of(env)
        return self.loop

    def _draw_masks(self) -> list[Tensor] | None:
        """Draw dropout factors of the hidden units, the same for all bars of a rollout; a share `dropout` of them is 0.

        One smaller network therefore trades the whole rollout, and its gradient is exact.
        """
        if self.band.dropout == 0.0:
            return None
        kept = 1.0 - self.band.dropout
        draws = [torch.rand(width, generator=self.generator, device=self.device) for width in self.net_dims]
        return [(draw < kept).float() / max(kept, 1e-9) for draw in draws]

    def _project(self, bars: Tensor) -> Tensor:
        """Return the edges (U, 2 A) at bars (U,) from the network that trades this rollout."""
        return torch.cat(band_edges(self._raw(bars)), dim=1)

    def _raw(self, bars: Tensor) -> Tensor:
        """Return the edges' logits (U, 2 A) at bars (U,)."""
        assert self.market is not None
        return self.act.raw(self.market.features.windows_at(bars), self.masks)

    # --- learning ---------------------------------------------------------------------------------------------------

    def update_net(self, buffer: Any = None) -> tuple[float, ...]:
        """Take one gradient step on this agent's last rollout.

        Args:
            buffer: the result of `explore_*_env`; ignored, because this agent keeps its own record.

        Returns:
            Minus the objective per account-bar (NaN if the network's edges are NaN), the share of touched account-bars,
            and the gradient norm.
        """
        record, market = self.record, self.market
        if record is None or market is None:
            raise RuntimeError("nothing to learn from: call explore_one_env or explore_vec_env first")
        gradient = self._edge_gradient(record, market)
        learning_rate = self.scheduled_learning_rate()
        norm = self._descend(torch.cat((gradient.lo, gradient.hi), dim=1) * self._unit(), learning_rate)
        self.gradient_steps += 1
        # If the edges are not finite, no account trades, and an account that does not trade has finite rewards.
        assert self.table is not None
        objective = torch.where(self.table.edges.isfinite().all(), record.reward.double().mean(), torch.nan)
        seen = (objective, gradient.touched, gradient.dropped)
        objective, touched, dropped = torch.stack(seen).tolist()
        self.last_update = BandStats(objective, touched, dropped, norm, learning_rate)
        return -objective, touched, norm

    def _edge_gradient(self, record: BandRollout, market: BandMarket) -> BandGradient:
        """Return the gradient of the rollout's summed rewards with respect to the edges of every bar, (T, A) each."""
        assert self.table is not None
        lo, hi = self.table.edges.chunk(2, dim=1)  # per bar, because accounts at the same bar have the same edges
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
        """Return the unit of the objective: account-bars times the reward that one coin's volatility earns in a bar.

        In this unit, a learning rate and a gradient norm bound have the same meaning for any volatility, bar length and
        `norm_reward`.
        """
        assert self.record is not None
        per_bar = self.env_params.norm_reward * max(float(self.volatility), SMALLEST_VOLATILITY)
        return 1.0 / (self.record.reward.numel() * per_bar)

    def _descend(self, by_bar: Tensor, learning_rate: float) -> float:
        """Take one step along the edges' gradient (T, 2 A) and return the norm of the weights' gradient.

        In most bars, no position changes. The network therefore runs again, with gradients, only on bars with a touched
        edge.
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
    """Return the settings whose values differ, as "name received, prepared for other"."""
    pairs = ((name, value, getattr(prepared, name)) for name, value in vars(received).items())
    return "; ".join(f"{name} {value!r}, prepared for {other!r}" for name, value, other in pairs if value != other)
