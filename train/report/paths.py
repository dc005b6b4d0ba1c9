"""Test paths on the report page: equity curves and metrics of all accounts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from train.records.account import Metrics

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the random-order accounts; the outer two bound the shaded area


@dataclass(frozen=True)
class RandomOrders:
    """Accounts that trade the same notional as the policy, in random coins and directions."""

    quantiles: np.ndarray  # (5, M) equity curves of the compounded accounts at `QUANTILES`
    sharpe: np.ndarray  # (K,) Sharpe ratio of each account, nan if undefined
    exposure: float  # mean exposure; not matched to that of the policy
    traded_share: float  # mean notional traded / notional the policy traded; below 1 if cash or coins ran out
    returns_less: float  # fraction of the accounts with a lower return than the policy
    sharpe_below: float  # fraction of the accounts with a lower Sharpe ratio than the policy

    @property
    def median_sharpe(self) -> float:
        """Median Sharpe ratio of the accounts in which it is defined, or nan if there are none."""
        known = self.sharpe[np.isfinite(self.sharpe)]
        return float(np.median(known)) if known.size else math.nan


@dataclass(frozen=True)
class PathView:
    """One test path of the best trial; curves start at 1 and are compounded over its accounts."""

    title: str
    origin: str
    time_s: np.ndarray  # (M,) UTC
    starts_s: np.ndarray  # UTC start of each account
    agent: np.ndarray  # (M,)
    equal_weight: np.ndarray  # (M,)
    agent_figures: Metrics
    equal_weight_figures: Metrics
    coins: Mapping[str, np.ndarray] = field(default_factory=dict)  # ticker -> (M,) buy and hold
    coin_figures: Mapping[str, Metrics] = field(default_factory=dict)
    random: RandomOrders | None = None
    hindsight_growth: float = math.nan  # log growth of the hindsight optimum, after costs
    of_hindsight: float = math.nan  # the agent's log growth as a fraction of the hindsight optimum
    break_even_cost: float = math.nan  # cost per side, a fraction of notional, at which the excess return is 0

    @property
    def hindsight_factor(self) -> str:
        """Growth factor of the hindsight optimum as text: `3.2`, `41,000`, or a power of ten."""
        power = self.hindsight_growth / math.log(10.0)
        return f"{math.exp(self.hindsight_growth):,.3g}" if power < 3 else f"10 to the power of {power:,.1f}"


def drawdown(curve: np.ndarray) -> np.ndarray:
    """Return the loss from the running maximum in percent, 0 or negative."""
    return (curve / np.maximum.accumulate(curve) - 1.0) * 100.0
