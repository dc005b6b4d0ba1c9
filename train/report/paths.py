"""The test paths on the page about a study: curves, and the figures of everybody's accounts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from train.records.account import Metrics

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of random orders; the outer ones are the band


@dataclass(frozen=True)
class RandomOrders:
    """Accounts that trade the notional the policy traded, in random coins and directions."""

    quantiles: np.ndarray  # (5, M) of the compounded accounts, `QUANTILES`
    sharpe: np.ndarray  # (K,) of each account, nan where undefined
    exposure: float  # mean; it is not matched to the policy's
    traded_share: float  # mean of what they traded, over what the policy did: none has room for more than its money
    returns_less: float  # share of the accounts that return less than the policy
    sharpe_below: float  # share of those with a lower Sharpe ratio

    @property
    def median_sharpe(self) -> float:
        """Of the accounts that have one; nan without any."""
        known = self.sharpe[np.isfinite(self.sharpe)]
        return float(np.median(known)) if known.size else math.nan


@dataclass(frozen=True)
class PathView:
    """One test path of the best trial; curves begin at 1 and are compounded over its blocks."""

    title: str
    origin: str
    time_s: np.ndarray  # (M,) UTC
    starts_s: np.ndarray  # of its blocks
    agent: np.ndarray  # (M,)
    equal_weight: np.ndarray  # (M,)
    agent_figures: Metrics
    equal_weight_figures: Metrics
    coins: Mapping[str, np.ndarray] = field(default_factory=dict)  # ticker -> (M,) buy and hold
    coin_figures: Mapping[str, Metrics] = field(default_factory=dict)
    random: RandomOrders | None = None
    hindsight_growth: float = math.nan  # log growth of a trader who knows every later price, after costs
    of_hindsight: float = math.nan  # the agent's share of it
    break_even_cost: float = math.nan  # of one side, a fraction of notional, at which the excess return is 0

    @property
    def hindsight_factor(self) -> str:
        """What that trader multiplies the account by: `3.2`, `41,000`, or a power of ten."""
        power = self.hindsight_growth / math.log(10.0)
        return f"{math.exp(self.hindsight_growth):,.3g}" if power < 3 else f"10 to the power of {power:,.1f}"


def drawdown(curve: np.ndarray) -> np.ndarray:
    """Loss from the running maximum in percent, 0 or negative."""
    return (curve / np.maximum.accumulate(curve) - 1.0) * 100.0
