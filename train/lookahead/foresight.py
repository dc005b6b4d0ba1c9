"""Features that know the next bar, found by their correlation with it: a complement for datasets without their bars.

For each column, and for its change over one bar, two rank correlations (Spearman) are taken within segments: with the
log return over the NEXT bar, t to t + 1, and with that over the bar that has just closed, t - 1 to t. A feature made of
past bars is tied to the return that has just been and hardly to the next one. A feature one bar early is tied to the
next return in place of the last. The same is done with the SIZE of the returns, for columns that measure volatility;
there the next size is truly foretold a little, because volatility comes in clusters.

A column is called suspicious when its correlation with the next return is larger than `least`, more than `least_z`
standard deviations of pure chance from 0 (Fisher: sqrt(n - 3) atanh(r)), and larger by `MARGIN` than that with the last
return: a slow column is tied alike to both. This is statistics, not proof. It finds a column that leads by one bar, and
not a faint or a distant leak.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from market.dataset import NO_COIN, Dataset

LEAST_CORRELATION = 0.2
LEAST_Z = 6.0
MARGIN = 0.1
MOST_ROWS = 20_000  # of a longer dataset every n-th row is looked at
TARGETS = ("return", "size of the return")


@dataclass(frozen=True)
class Foresight:
    """How a column goes with the returns of one coin."""

    column: str
    form: str  # `value` or `change`
    coin: str
    target: str  # one of TARGETS
    forward: float  # correlation with the next bar's
    backward: float  # correlation with the bar's that has just closed
    n_rows: int

    @property
    def z(self) -> float:
        """The forward correlation in standard deviations of chance."""
        return float(np.sqrt(max(self.n_rows - 3, 0)) * np.arctanh(np.clip(self.forward, -0.999999, 0.999999)))

    def is_suspicious(self, least: float = LEAST_CORRELATION, least_z: float = LEAST_Z) -> bool:
        """Whether the next bar shows in the column more than it can by rights."""
        return abs(self.forward) > max(least, abs(self.backward) + MARGIN) and abs(self.z) > least_z

    def __str__(self) -> str:
        """One line for a terminal."""
        return (
            f"{self.column} ({self.form}) against the {self.target} of {self.coin}: {self.forward:+.3f} with the next "
            f"bar (z {self.z:+.0f}), {self.backward:+.3f} with the last, {self.n_rows:,} rows"
        )


def foresight(dataset: Dataset) -> list[Foresight]:
    """Every column's correlations, one for each form and target, most suspicious first.

    A coin's column is held against its own coin, a column that belongs to none against every coin.
    """
    rows = _inner_rows(dataset)
    if len(rows) < 4:
        return []
    log_price = np.log(dataset.price)
    returns = {"next": log_price[rows + 1] - log_price[rows], "last": log_price[rows] - log_price[rows - 1]}
    targets = {
        (target, when): _ranks(values if target == TARGETS[0] else np.abs(values))
        for when, values in returns.items()
        for target in TARGETS
    }
    tech = dataset.tech[rows]
    forms = {"value": _ranks(tech), "change": _ranks(tech - dataset.tech[rows - 1])}
    found = []
    for coin, ticker in enumerate(dataset.tickers):
        own = [i for i, owner in enumerate(dataset.feature_coins) if owner in (coin, NO_COIN)]
        for form, ranks in forms.items():
            for target in TARGETS:
                ahead, behind = (
                    ranks[:, own].T @ targets[target, when][:, coin] / len(rows) for when in ("next", "last")
                )
                found += [
                    Foresight(dataset.feature_names[i], form, ticker, target, float(f), float(b), len(rows))
                    for i, f, b in zip(own, ahead, behind, strict=True)
                ]
    return sorted(found, key=lambda f: (not f.is_suspicious(), f.target != TARGETS[0], -abs(f.forward)))


def _inner_rows(dataset: Dataset) -> np.ndarray:
    """Rows with a neighbour on both sides in their segment, at most MOST_ROWS of them."""
    inner = np.concatenate([np.arange(first + 1, max(last - 1, first + 1)) for first, last in dataset.segments])
    return inner[:: -(-len(inner) // MOST_ROWS) or 1]


def _ranks(values: np.ndarray) -> np.ndarray:
    """(n, columns) ranks with mean 0 and standard deviation 1; 0 throughout where a column never varies."""
    ranks = pd.DataFrame(values).rank().to_numpy()
    ranks = ranks - ranks.mean(axis=0)
    spread = ranks.std(axis=0)
    return ranks / np.where(spread > 0, spread, 1.0)


def foresight_lines(found: list[Foresight], n_shown: int = 3) -> Iterator[str]:
    """The suspicious columns, or the ones nearest to it, for a terminal."""
    suspicious = [f for f in found if f.is_suspicious()]
    columns = {f.column for f in found}
    yield (
        f"features against the next bar: {len(columns)} columns, {len({f.column for f in suspicious})} suspicious "
        f"(rank correlation above {LEAST_CORRELATION:g} and by {MARGIN:g} above that with the last bar, "
        f"z above {LEAST_Z:g})"
    )
    shown = suspicious or [f for f in found if f.target == TARGETS[0]]
    label = "" if suspicious else "highest: "
    yield from (f"  {label}{f}" for f in shown[:n_shown])
