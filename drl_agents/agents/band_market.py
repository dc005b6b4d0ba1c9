"""Environment data that the band agent needs: training bars, prices, account rules, smallest orders.

The agent backpropagates through the account, so it must know the account's rules. An environment that has unsupported
rules or does not report fills is rejected with a message that names the cause.
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

# Settings of an environment that the gradient requires.
NEEDED: dict[str, Any] = {"rules": "standard", "always_allow_close": True, **band_gradient.NEEDED}


def check_environment(env: Any) -> None:
    """Reject an environment in which the band agent cannot learn.

    Raises:
        ValueError: If the class or a setting is unsupported; the message names it and the required value.
    """
    name = type(env).__name__
    for attribute in ("params", "filled", "cost_factor"):
        if not hasattr(env, attribute):
            raise ValueError(
                f'agent "band" learns in the environments of this repository, because it follows their account; {name} '
                f"has no {attribute}"
            )
    if getattr(env, "api", "elegantrl") != "elegantrl":
        raise ValueError(f'agent "band" requires an environment with api="elegantrl"; received {env.api!r}')
    if not (getattr(env, "autoreset", True) or env.as_numpy):
        raise ValueError(
            'agent "band" requires autoreset=True, so that a step restarts finished accounts; received False'
        )
    for setting, needed in NEEDED.items():
        value = getattr(env.params, setting)
        if value != needed:
            raise ValueError(f'agent "band" requires {setting} {needed!r} in env_params; received {value!r}')


@dataclass(frozen=True)
class BandMarket:
    """Bars of a training environment, sharing its memory if both are on the same device.

    Attributes:
        features: maps bars to features as in observations.
        price: (T, A) float64 closes.
        segments: [(first bar with a full lookback, last bar exclusive)] of every segment.
        min_qty: (A,) float64 smallest order in coins.
        qty_increment: (A,) float64 lot size in coins, 0 if there is none.
        trades: (T, A) 0 in bars without trades of a coin; None if all coins trade in every bar.
    """

    features: BarFeatures
    price: Tensor
    segments: tuple[tuple[int, int], ...]
    min_qty: Tensor
    qty_increment: Tensor
    trades: Tensor | None
    source: Any  # the vectorized environment's market, compared by identity; None for one account

    @classmethod
    def of(cls, env: Any, device: torch.device) -> BandMarket:
        """Return the market of a scalar or vectorized environment of this repository, on `device`."""
        lookback, market = env.params.lookback, getattr(env, "market", None)
        if market is None:  # one account has arrays and lists
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
        """Return True if `env` has the same segments, prices, features and smallest orders."""
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
        """Return every bar at which an account can act, in order, (B,) int64."""
        return torch.cat([torch.arange(a, b, device=self.price.device) for a, b in self.segments])

    def feature_statistics(self) -> RunningNorm:
        """Return mean and deviation of the features (L * F,) over the training bars, each counted once."""
        norm = RunningNorm(self.features.width, self.price.device)
        for bars in self.bars().split(CHUNK_ROWS):
            norm.update(self.features.windows_at(bars))
        return norm

    def returns(self) -> tuple[Tensor, Tensor]:
        """Return the mean simple return of each coin (A,) between successive bars, and one volatility of all coins.

        A bar is left out of a coin's mean if the coin has no price in it or in the next bar.
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
        """Return the weights (A,) of the smallest orders for an account with its initial capital.

        The weight is the larger of the smallest notional and the smallest quantity at the coin's mean training price.
        An account that has grown could trade smaller weights; closing them early costs it nothing. An account that has
        lost most of its capital may have a target above this weight but below the smallest order. It then repeats the
        order in every bar, and nothing fills. A relative observation does not contain the equity, so the policy cannot
        detect this.
        """
        prices = torch.cat([self.price[a:b] for a, b in self.segments])
        notional = torch.maximum(self.min_qty * prices.mean(0), torch.tensor(params.min_order_notional))
        return notional / params.initial_capital


def _windows(tech: np.ndarray, norm_tech: float, lookback: int) -> Tensor:
    """Return float32 windows (T - L + 1, L * F) of (T, F) for `BarFeatures`: latest bar first, in shared memory."""
    scaled = tech if norm_tech == 1 else tech.astype(np.float64) * norm_tech
    backwards = torch.from_numpy(np.ascontiguousarray(scaled[::-1], dtype=np.float32)).flatten()
    n_bars, n_features = tech.shape
    return backwards.as_strided((n_bars - lookback + 1, lookback * n_features), (n_features, 1))
