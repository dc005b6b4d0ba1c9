"""Share of the attainable log growth on a planted signal that the best trial captured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from market.planted import BandRule, Law, Recipe, best_rule, recipe_of, signal_at
from train.findings.returns import Columns
from train.validation.benchmarks import Costs


@dataclass(frozen=True)
class Captured:
    """Log growth of two accounts on the same test bars, summed over all splits. Every test fold starts in cash."""

    growth: float  # log growth of the trial
    attainable: float  # log growth of the best policy, which sees the signal itself
    n_bars: int

    @property
    def share(self) -> float:
        """Captured fraction, or nan if the best policy earned nothing on these bars."""
        return self.growth / self.attainable if self.attainable > 0.0 else math.nan

    @property
    def share_text(self) -> str:
        """Captured share in percent, rounded down."""
        return "undefined" if math.isnan(self.share) else f"{math.floor(100.0 * self.share)} %"

    @property
    def text(self) -> str:
        """Result in words."""
        per_bar, best = (1e4 * growth / self.n_bars for growth in (self.growth, self.attainable))
        return (
            f"The market is SYNTHETIC with a planted signal. The best trial captured {self.share_text} of the "
            f"attainable growth on its test bars: {per_bar:.2f} bp of log growth per bar. The best policy, which sees "
            f"the signal itself and pays the same costs, earned {best:.2f} bp per bar."
        )


def planted_recipe(labels: Iterable[str]) -> Recipe | None:
    """Return the recipe of the planted market that the study uses, or None for other data."""
    recipes = (recipe_of(label) for label in labels)
    return next((recipe for recipe in recipes if recipe is not None and recipe.law is Law.PLANTED), None)


def captured(
    splits: Mapping[int, Columns], close: np.ndarray, costs: Costs, recipe: Recipe, bar_seconds: int
) -> Captured:
    """Compare the best trial with the best policy for the planted signal.

    Args:
        splits: columns of each split of the trial (`train.study.split_files.write_equity`).
        close: closing prices (T, A) that the bar indices in the columns refer to.
        costs: trading costs of both.
        recipe: recipe of the market.
        bar_seconds: length of a bar in seconds.
    """
    blocks = [block for columns in splits.values() for block in _blocks(columns)]
    cost_rate = costs.fee_rate + costs.slippage_rate
    rule = best_rule(bar_seconds, _volatility([close[bars] for bars, _, _ in blocks]), cost_rate)
    growth = attainable = 0.0
    for bars, time_s, equity in blocks:
        growth += math.log(equity[-1] / equity[0])
        attainable += rule_growth(close[bars], signal_at(recipe, time_s, bar_seconds), rule, cost_rate)
    return Captured(growth, attainable, sum(len(bars) - 1 for bars, _, _ in blocks))


def rule_growth(close: np.ndarray, signal: np.ndarray, rule: BandRule, cost_rate: float) -> float:
    """Return the log growth of an account that follows the rule from cash, valued without a final sale.

    The account invests the same amount in every coin. A decision made after one bar is filled at the next close.

    Args:
        close: closing prices (n + 1, A).
        signal: signal (n + 1,) on the same bars.
        rule: policy to follow.
        cost_rate: cost of an order as a fraction of its notional, paid by buys and sells.
    """
    is_held = np.concatenate([[False], rule.holds(signal)[:-1]])  # (n + 1,) after the orders filled at each close
    change = np.diff(is_held.astype(np.int64), prepend=0)
    bought, sold = np.flatnonzero(change > 0), np.flatnonzero(change < 0)
    ends = np.append(sold, len(close) - 1)[: len(bought)]
    held = [math.log((close[b] / close[a]).mean()) for a, b in zip(bought, ends, strict=True)]
    return sum(held) - len(bought) * math.log1p(cost_rate) + len(sold) * math.log1p(-cost_rate)


def _blocks(columns: Columns) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return bar indices, close times and equity of each segment of a split, each (n + 1,)."""
    cuts = np.flatnonzero(np.diff(columns["segment"])) + 1
    parts: list[Any] = [np.split(columns[name], cuts) for name in ("bar", "time_s", "equity")]
    return list(zip(*parts, strict=True))


def _volatility(closes: Iterable[np.ndarray]) -> float:
    """Return the rounded standard deviation of one-bar returns of equal weight; thresholds are insensitive to it."""
    moves = np.concatenate([np.diff(np.log(close), axis=0).mean(axis=1) for close in closes])
    return round(float(moves.std()), 5)
