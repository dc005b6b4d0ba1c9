"""Hindsight optimum on a study's bars, break-even cost of a policy, and the smallest detectable edge."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from environment_Alpaca_vectorized import EnvParams
from train.env_factory import rules_of
from train.records.stored import Rules
from train.study.folds import FoldedData
from train.study.search_tables import FIXED_ENV
from train.study.venue import venue_env
from train.validation.benchmarks import Costs
from train.validation.break_even import TradedSegment, break_even_cost
from train.validation.hindsight import clairvoyant, share_of_hindsight
from train.validation.power import BASIS_POINTS, detectable_edge, market_volatility, power_text

logger = logging.getLogger(__name__)

EXAMPLE_BARS_HELD = 100  # example holding time in the log line on power


@dataclass(frozen=True)
class Tradable:
    """Prices, tradable bars and costs for the hindsight optimum."""

    close: np.ndarray  # (T, A) quote
    is_traded: np.ndarray | None  # (T, A) bool, True if orders of the coin fill on the bar; None: always True
    costs: Costs


@dataclass(frozen=True)
class Attainable:
    """Log growth of an account and of the hindsight optimum on the same bars, summed over all segments."""

    growth: float
    hindsight_growth: float  # growth of the hindsight optimum, after costs
    break_even_cost: float  # cost per side, a fraction of notional, at which the return equals that of equal weight

    @property
    def of_hindsight(self) -> float:
        """Fraction of the hindsight optimum's log growth."""
        return share_of_hindsight(self.growth, self.hindsight_growth)

    def to_json(self) -> dict[str, float | None]:
        """Return the values under their names in result files, with null for undefined values."""
        values = vars(self) | {"of_hindsight": self.of_hindsight}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


def tradable(close: np.ndarray, filled: np.ndarray | None, rules: Rules | EnvParams) -> Tradable:
    """Return the bars together with the costs of an environment.

    Args:
        close: (T, A) quote.
        filled: (T, A) bool, True for filled bars, or None if unknown. A trailing stop and the release of
            stale positions also sell on filled bars. With either of them, every bar counts as tradable, so the bound
            stays valid.
        rules: resolved env_params, from `train.env_factory.rules_of` or as stored.
    """
    sells_unasked = rules.trailing_stop_pct > 0 or rules.stale_bars > 0
    is_traded = None if filled is None or sells_unasked else ~np.asarray(filled)
    fee_rate = min(rules.buy_fee_rate, rules.sell_fee_rate)
    return Tradable(np.asarray(close), is_traded, Costs(rules.initial_capital, fee_rate, rules.slippage_rate))


def attainable(segments: Sequence[TradedSegment], bars: Sequence[np.ndarray], market: Tradable) -> Attainable:
    """Return the result of an account over several segments. `bars` holds the (n + 1,) rows of `market` per segment."""
    hindsight = sum(_hindsight_growth(market, rows) for rows in bars)
    growth = sum(math.log(max(float(s.equity[-1]), 1e-12) / float(s.equity[0])) for s in segments)
    return Attainable(growth, hindsight, break_even_cost(segments, market.costs.slippage_rate))


def _hindsight_growth(market: Tradable, rows: np.ndarray) -> float:
    is_traded = None if market.is_traded is None else market.is_traded[rows]
    return clairvoyant(market.close[rows], market.costs, is_traded).growth


def attainable_by(records: Sequence[Any], market: Tradable) -> Attainable:
    """Return the result of `attainable` for the records of an evaluated policy."""
    segments = [TradedSegment(r.equity, r.benchmark_equity, r.turnover, r.fees) for r in records]
    return attainable(segments, [r.bars for r in records], market)


def log_power(data: Sequence[FoldedData], volume_30d: float | None) -> None:
    """For each dataset, log the edge that covers the costs and the smallest edge that its test bars can detect."""
    for d in data:
        logger.info("power: %s", power_line(d, volume_30d))


def power_line(d: FoldedData, volume_30d: float | None) -> str:
    """Return the `log_power` line for all test bars of a dataset, each counted once."""
    rules = rules_of(FIXED_ENV | {"lookback": 1} | venue_env(d.dataset, volume_30d))
    fee, slippage = rules.buy_fee_rate, rules.slippage_rate
    blocks = sorted({block for fold in d.folds for block in fold.test})
    n_bars = sum(b - a for a, b in _joined(blocks))
    volatility = market_volatility([d.dataset.price[a:b] for a, b in _joined(blocks)])
    if not volatility > 0.0:
        return f"{d.timeframe}: prices are constant, so no edge can be detected"
    edge = detectable_edge(n_bars, volatility, fee + slippage, d.dataset.bars_per_year)
    cost = f"{fee * BASIS_POINTS:.3g} bp fee and {slippage * BASIS_POINTS:.3g} bp slippage"
    return f"{d.timeframe}: {power_text(edge, cost, EXAMPLE_BARS_HELD)}"


def _joined(blocks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge overlapping ranges of a sorted sequence."""
    joined: list[tuple[int, int]] = []
    for a, b in blocks:
        if joined and a < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], b))
        else:
            joined.append((a, b))
    return joined
