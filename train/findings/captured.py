"""How much of what a planted signal pays the best trial earned: its log growth over that of the best policy."""

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
    """Log growth on the same test bars, every block begun in cash; all splits together."""

    growth: float  # of the trial
    attainable: float  # of the best policy, which sees the signal itself
    n_bars: int

    @property
    def share(self) -> float:
        """nan if the best policy earned nothing on these bars."""
        return self.growth / self.attainable if self.attainable > 0.0 else math.nan

    @property
    def share_text(self) -> str:
        """Rounded down, in percent."""
        return "undefined" if math.isnan(self.share) else f"{math.floor(100.0 * self.share)} %"

    @property
    def text(self) -> str:
        """One sentence."""
        per_bar, best = (1e4 * growth / self.n_bars for growth in (self.growth, self.attainable))
        return (
            f"The market is SYNTHETIC with a planted signal. The best trial captured {self.share_text} of the "
            f"attainable growth on its test bars: {per_bar:.2f} bp of log growth per bar. The best policy, which sees "
            f"the signal itself and pays the same costs, earned {best:.2f} bp per bar."
        )


def planted_recipe(labels: Iterable[str]) -> Recipe | None:
    """The recipe of the planted market that a study stands on; None on any other data."""
    recipes = (recipe_of(label) for label in labels)
    return next((recipe for recipe in recipes if recipe is not None and recipe.law is Law.PLANTED), None)


def captured(
    splits: Mapping[int, Columns], close: np.ndarray, costs: Costs, recipe: Recipe, bar_seconds: int
) -> Captured:
    """The best trial beside the best policy.

    Args:
        splits: columns of each split of the trial (`train.study.split_files.write_equity`).
        close: (T, A) of the data that the columns' bars count.
        costs: of both.
        recipe: of the market.
        bar_seconds: length of a bar.
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
    """Log growth of an account that follows the rule from cash, valued without a sale at the end.

    The same amount goes into every coin. What is decided after one bar is filled at the close of the next.

    Args:
        close: (n + 1, A).
        signal: (n + 1,) of the same bars.
        rule: the policy.
        cost_rate: of the notional of one order: buys pay, sells receive this fraction less.
    """
    is_held = np.concatenate([[False], rule.holds(signal)[:-1]])  # (n + 1,) after the fills at each close
    change = np.diff(is_held.astype(np.int64), prepend=0)
    bought, sold = np.flatnonzero(change > 0), np.flatnonzero(change < 0)
    ends = np.append(sold, len(close) - 1)[: len(bought)]
    held = [math.log((close[b] / close[a]).mean()) for a, b in zip(bought, ends, strict=True)]
    return sum(held) - len(bought) * math.log1p(cost_rate) + len(sold) * math.log1p(-cost_rate)


def _blocks(columns: Columns) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Bars, close times and equity of each segment of a split, each (n + 1,)."""
    cuts = np.flatnonzero(np.diff(columns["segment"])) + 1
    parts: list[Any] = [np.split(columns[name], cuts) for name in ("bar", "time_s", "equity")]
    return list(zip(*parts, strict=True))


def _volatility(closes: Iterable[np.ndarray]) -> float:
    """Standard deviation of a bar's return of all coins in equal parts, rounded: the thresholds hardly depend on it."""
    moves = np.concatenate([np.diff(np.log(close), axis=0).mean(axis=1) for close in closes])
    return round(float(moves.std()), 5)
