#!/usr/bin/env python3
"""Measure which leaks the look-ahead check of feature columns detects; prints the table in docs/lookahead.md.

    python benchmarks/foresight_power.py            # about ten minutes on one core
    python benchmarks/foresight_power.py --quick    # smoke test with few bars

A leaking column is rho times the return of the next k bars plus noise, both with variance 1, so rho is its correlation.
Each value is the share of such columns detected in one dataset, on the sample market without a signal.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from scipy.signal import lfilter

from market.dataset import Dataset, make_dataset
from market.foresight import foresight
from market.sample import synthetic_dataset

LAGS, CORRELATIONS = (1, 12, 48, 288, 2016), (0.7, 0.3, 0.1, 0.05)
MEAN_LIFE_BARS = 48.0
WHITE, SLOW, AS_SLOW = "white", f"mean life {MEAN_LIFE_BARS:g} bars", "as slow as the leak"


def noise(kind: str, lag: int, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Return noise (columns, T) of variance 1."""
    shocks = random.standard_normal((shape[0], shape[1] + lag))
    if kind == SLOW:
        shocks = lfilter([1.0], [1.0, -np.exp(-1.0 / MEAN_LIFE_BARS)], shocks, axis=1)
    elif kind == AS_SLOW:  # sums of `lag` shocks, because the leak is a sum of `lag` returns
        total = np.cumsum(shocks, axis=1)
        shocks = total[:, lag:] - total[:, :-lag]
    found = shocks[:, : shape[1]]
    return found / found.std(axis=1, keepdims=True)


def share_found(market: Dataset, lag: int, kind: str, correlation: float, n_columns: int) -> float:
    """Return the share of leaking columns that the check reports as suspicious."""
    log_price, random = np.log(market.price[:, 0]), np.random.default_rng([lag, len(market.time)])
    n_bars = len(log_price)
    move = log_price[np.minimum(np.arange(n_bars) + lag, n_bars - 1)] - log_price
    rest = np.sqrt(1.0 - correlation**2) * noise(kind, lag, (n_columns, n_bars), random)
    names = ("price", "time", "tickers", "bar_seconds", "segments", "source", "synthetic")
    dataset = make_dataset(
        tech=(correlation * move / move.std() + rest).T.astype(np.float32),
        feature_names=[f"BTC:leak_{i}" for i in range(n_columns)],
        **{name: getattr(market, name) for name in names},
    )
    return sum(found.is_suspicious for found in foresight(dataset)) / n_columns


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke test with few bars")
    args = parser.parse_args(argv)
    sizes, n_columns = ((3_000,), 4) if args.quick else ((20_000, 70_000, 200_000), 60)
    print("| bars ahead | noise | bars | " + " | ".join(f"{rho:g}" for rho in CORRELATIONS) + " |")
    print("|---|---|---|" + "---|" * len(CORRELATIONS))
    for n_bars in sizes:
        market = synthetic_dataset("5m", n_bars, ("BTC",), seed=11)
        for lag in (lag for lag in LAGS if 4 * lag < n_bars):
            for kind in (WHITE, SLOW, AS_SLOW):
                shares = [share_found(market, lag, kind, rho, n_columns) for rho in CORRELATIONS]
                cells = " | ".join(f"{share:.0%}".replace("%", " %") for share in shares)
                print(f"| {lag} | {kind} | {n_bars:,} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
