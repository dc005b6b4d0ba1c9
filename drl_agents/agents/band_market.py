"""What the band agent takes from an environment: its training bars, its prices, its account, its smallest orders.

The agent follows the gradient back through the account, so it must know the account's rules. An environment with other
rules, or one that does not report what was filled, is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drl_agents.agents import band_gradient
from drl_agents.agents.bar_features import BarFeatures
from drl_agents.agents.normalizer import CHUNK_ROWS, RunningNorm

# Settings of an environment under which the account is the one that the gradient follows.
NEEDED: dict[str, Any] = {"rules": "standard", "always_allow_close": True, **band_gradient.NEEDED}


def check_environment(env: Any) -> None:
    """Refuse an environment in which the band agent cannot learn.

    Raises:
        ValueError: naming the class, or the setting with its value and the value that is needed.
    """
    name = type(env).__name__
    for attribute in ("params", "filled", "cost_factor"):
        if not hasattr(env, attribute):
            raise ValueError(
                f'agent "band" learns in the environments of this repository, because it follows their account; {name} '
                f"has no {attribute}"
            )
    if getattr(env, "api", "elegantrl") != "elegantrl":
        raise ValueError(f'agent "band" needs an environment with api="elegantrl"; received {env.api!r}')
    if not (getattr(env, "autoreset", True) or env.as_numpy):
        raise ValueError('agent "band" needs autoreset=True, so that a step restarts finished accounts; received False')
    for setting, needed in NEEDED.items():
        value = getattr(env.params, setting)
        if value != needed:
            raise ValueError(f'agent "band" needs {setting} {needed!r} in env_params; received {value!r}')


@dataclass(frozen=True)
class BandMarket:
    """The bars of a training environment, shared with it where it is on the agent's device.

    Attributes:
        features: (bar -> features) as observations have them.
        price: (T, A) float64 closes.
        segments: [(first bar with a full lookback, last bar exclusive)] of every segment.
        min_qty: (A,) float64 smallest order in coins.
        qty_increment: (A,) float64, 0 where any quantity will do.
        trades: (T, A) 0 where nobody traded the coin in the bar; None: all trade in every bar.
    """

    features: BarFeatures
    price: Tensor
    segments: tuple[tuple[int, int], ...]
    min_qty: Tensor
    qty_increment: Tensor
    trades: Tensor | None
    source: Any  # the batch's own market: the same object is the same market; None for one account

    @classmethod
    def of(cls, env: Any, device: torch.device) -> BandMarket:
        """Those of a scalar or batched environment of this repository, on `device`."""
        lookback, market = env.params.lookback, getattr(env, "market", None)
        if market is None:  # one account: arrays and lists
            windows = _windows(env.tech_array, env.params.norm_tech, lookback)
            price = torch.from_numpy(np.ascontiguousarray(env.price_array, dtype=np.float64))
            segments, trades = env.segments, torch.from_numpy(np.array(env.trades, dtype=np.float32))
            trades = None if bool(trades.all()) else trades
            smallest = torch.tensor([env.min_qty, env.qty_increment], dtype=torch.float64)
        else:
            windows, price, trades = market.windows, market.price, market.trades
            segments = zip(market.segment_first.tolist(), market.segment_end.tolist(), strict=True)
            smallest = torch.stack((market.min_qty, market.qty_increment))
        usable = tuple((a + lookback - 1, b) for a, b in segments if b - a > lookback)
        features = BarFeatures(windows.to(device), len(price) - 1, 1 + env.action_dim)
        trades = None if trades is None else trades.to(device)
        min_qty, increment = smallest.to(device)
        return cls(features, price.to(device), usable, min_qty, increment, trades, market)

    def is_of(self, env: Any) -> bool:
        """Whether `env` trades these bars: the same segments, prices, features and smallest orders."""
        if self.source is not None and self.source is getattr(env, "market", None):
            return True
        other = BandMarket.of(env, self.price.device)
        if self.segments != other.segments or self.features.windows.shape != other.features.windows.shape:
            return False
        if (self.trades is None) != (other.trades is None):
            return False
        mine, theirs = self._tensors(), other._tensors()
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def _tensors(self) -> list[Tensor]:
        known = (self.price, self.features.windows, self.min_qty, self.qty_increment, self.trades)
        return [tensor for tensor in known if tensor is not None]

    def bars(self) -> Tensor:
        """Every bar that an account can stand at, in order, (B,) int64."""
        return torch.cat([torch.arange(a, b, device=self.price.device) for a, b in self.segments])

    def feature_statistics(self) -> RunningNorm:
        """Mean and deviation of the features (L * F,) over the training bars, each counted once."""
        norm = RunningNorm(self.features.width, self.price.device)
        for bars in self.bars().split(CHUNK_ROWS):
            norm.update(self.features.windows_at(bars))
        return norm

    def returns(self) -> tuple[Tensor, Tensor]:
        """Simple returns between successive training bars: mean of each coin (A,), and one volatility over all coins.

        A coin without a price at either bar is left out of its mean.
        """
        parts = []
        for a, b in self.segments:
            before, after = self.price[a : b - 1], self.price[a + 1 : b]
            is_priced = (before > 0) & (after > 0)
            parts.append(torch.where(is_priced, after / torch.where(is_priced, before, 1.0) - 1.0, torch.nan))
        returns = torch.cat(parts)  # (B, A)
        mean = returns.nanmean(0).nan_to_num(0.0)
        deviation = (returns - mean).square().nanmean().sqrt().nan_to_num(0.0)
        return mean, deviation

    def least_weight(self, params: Any) -> Tensor:
        """Weights (A,) that the smallest orders are worth to an account with its initial capital.

        The larger of the smallest notional and of the smallest quantity at the coin's mean price in training. An
        account that has grown may trade smaller weights than these; closing them early then costs it nothing. One that
        has lost most of its capital cannot: a target between this weight and what the order is worth to it then asks
        again every bar, and nothing fills. A relative observation does not show the equity, so nothing here can know.
        """
        prices = torch.cat([self.price[a:b] for a, b in self.segments])
        notional = torch.maximum(self.min_qty * prices.mean(0), torch.tensor(params.min_order_notional))
        return notional / params.initial_capital


def _windows(tech: np.ndarray, norm_tech: float, lookback: int) -> Tensor:
    """(T, F) -> (T - L + 1, L * F) float32 windows as `BarFeatures` wants them: the latest bar first, one overlap."""
    scaled = tech if norm_tech == 1 else tech.astype(np.float64) * norm_tech
    backwards = torch.from_numpy(np.ascontiguousarray(scaled[::-1], dtype=np.float32)).flatten()
    n_bars, n_features = tech.shape
    return backwards.as_strided((n_bars - lookback + 1, lookback * n_features), (n_features, 1))
