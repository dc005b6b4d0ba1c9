"""Compute what planted markets allow: the solved optimum, the dual bound, the hindsight optimum, and leak detection.

    python benchmarks/bounds.py            # writes benchmarks/results/bounds.json
    python benchmarks/bounds.py --quick    # smoke test: short segments; writes nothing

Three policies trade each market in the environment: the best known rule; the same rule with look-ahead to the return
after its fill; and a policy with look-ahead over the 20 bars after its fill. The exit code is 1 if the first policy is
reported as a leak, or if neither of the others is. Either look-ahead policy alone may earn too little to be detected on
40 segments. A rule for a weak signal trades too rarely to gain from one bar of look-ahead. Twenty bars are too long for
a strong signal that changes every 25 bars.

At a 99 % interval, an honest policy is reported as a leak once in 200 times.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import measuring
from benchmarks.planted_markets import AnnouncedMarket, law_of, solve_plan
from benchmarks.signal_bound import signal_law
from benchmarks.signal_markets import SignalMarket, solve_one_coin
from train.evaluator import evaluate_policy
from train.validation.benchmarks import Costs
from train.validation.dual_bound import Law, against_bound, dual_bound
from train.validation.hindsight import clairvoyant

FEE_RATE, SLIPPAGE_RATE = 0.0025, 0.0005
COST_RATE = FEE_RATE + SLIPPAGE_RATE
PARAMS = {"rules": "standard", "lookback": 1, "norm_action": 1.0, "min_order_notional": 0.0}
N_SEGMENTS, BARS, QUICK_BARS = 40, 3000, 1000
AHEAD_SCALE = 1000.0
FAR_BARS = 20
SEERS = ("peeking", "far_seeing")
COLUMNS = measuring.columns("market", "optimum", bound="dual bound, 99 %", hindsight="hindsight optimum")
COLUMNS |= {"rule": "best rule, traded", "peeking_found": "1 bar ahead", "far_seeing_found": "20 bars ahead"}
ABOUT = (
    "The table shows log growth in bp per bar, with a fee of 25 bp and slippage of 5 bp per side, over "
    f"{N_SEGMENTS} segments of {BARS:,} bars."
)


@dataclass(frozen=True)
class Case:
    """A market and what is known about it."""

    name: str
    config: dict[str, Any]
    signal: np.ndarray  # (T, ...) shown by the features
    law: Law
    optimum: float  # log growth per bar
    rule: Callable[[Tensor], Tensor]  # the best known policy


def cases(n_bars: int) -> Iterator[Case]:
    """Yield the announced markets and the signals of docs/results.md, each with its own seed."""
    for seed, (size, volatility) in enumerate(((0.0015, 0.005), (0.0008, 0.005), (0.0004, 0.004))):
        market = AnnouncedMarket(rise=size, fall=-size, volatility=volatility)
        config = market.config(N_SEGMENTS * n_bars, seed)
        law, optimum = law_of(market, COST_RATE, n_bars), solve_plan(market, COST_RATE).growth
        shown = market.regime_shown(config["tech_array"])
        yield Case(f"announced trend {size:.2%}", config, shown, law, optimum, market.follow)
    for seed, alpha in enumerate((0.7e-4, 1.0e-4, 1.5e-4), start=3):
        signal = SignalMarket(alpha=alpha)
        config, best = signal.config(N_SEGMENTS * n_bars, seed), solve_one_coin(signal, COST_RATE)
        shown, law = config["tech_array"][:, 0].astype(np.float64), signal_law(signal, COST_RATE)
        yield Case(f"AR(1) signal {alpha * 1e4:.1f} bp", config, shown, law, best.growth, best.act)


def with_leak(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with later returns as extra features per coin: over the next 20 bars, then over one."""
    log_price = np.log(config["price_array"])
    ahead = []
    for n_bars in (FAR_BARS, 1):
        later = np.zeros(log_price.shape)
        later[: -n_bars - 1] = AHEAD_SCALE * (log_price[n_bars + 1 :] - log_price[1:-n_bars])
        ahead.append(later)
    return {**config, "tech_array": np.hstack((config["tech_array"], *ahead)).astype(np.float32)}


def peeking(rule: Callable[[Tensor], Tensor], n_assets: int) -> Callable[[Tensor], Tensor]:
    """Return the rule with look-ahead: it does not sell before a rise or buy before a fall."""

    def act(state: Tensor) -> Tensor:
        order, ahead = rule(state), state[:, -n_assets:]
        return torch.where((order > 0.0) == (ahead > 0.0), order, 0.0)

    return act


def far_seeing(n_assets: int) -> Callable[[Tensor], Tensor]:
    """Return a policy that buys the coin with the highest 20-bar gain.

    It buys only if the gain pays for a round trip, and sells coins that lose as much.
    """
    least = AHEAD_SCALE * 2.0 * COST_RATE

    def act(state: Tensor) -> Tensor:
        ahead = state[:, -2 * n_assets : -n_assets]
        best = torch.zeros_like(ahead).scatter(1, ahead.argmax(1, keepdim=True), 1.0)
        into_best = torch.where(ahead.amax(1, keepdim=True) > least, 2.0 * best - 1.0, 0.0)
        return torch.where(ahead < -least, -1.0, into_best)

    return act


def measured(case: Case, n_bars: int) -> dict[str, Any]:
    """Return one row, with rates in bp per bar."""
    edges = [(i * n_bars, (i + 1) * n_bars) for i in range(N_SEGMENTS)]
    config, n_assets = with_leak(case.config) | {"segments": edges}, case.config["price_array"].shape[1]
    # An account has n - 1 decisions on n bars, and purchases of the last decision have no bar left to earn on.
    bound = dual_bound([case.signal[a : b - 2] for a, b in edges], case.law, cash=0)
    costs = Costs(1.0, FEE_RATE, SLIPPAGE_RATE)
    hindsight = [clairvoyant(config["price_array"][a:b], costs).growth for a, b in edges]

    scale = 1e4 / n_bars
    row = {"market": case.name, "optimum": case.optimum * 1e4, "dual_bound": bound.mean * scale}
    row["dual_bound_interval"] = [end * scale for end in bound.interval]
    row["hindsight"] = float(np.mean(hindsight)) * scale
    policies = {"rule": case.rule, "peeking": peeking(case.rule, n_assets), "far_seeing": far_seeing(n_assets)}
    for who, policy in policies.items():
        found = against_bound([r.growth for r in evaluate_policy(policy, config, PARAMS)], bound)
        row |= {who: found.growth * scale, f"{who}_is_leak": found.is_leak}
    return row


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return one row per market, and checks of which policies are reported as leaks."""
    n_bars = QUICK_BARS if args.quick else BARS
    rows = [measured(case, n_bars) for case in cases(n_bars)]
    checks = []
    for row in rows:
        low, high = row["dual_bound_interval"]
        row["bound"] = f"{row['dual_bound']:.3f} ({low:.3f} to {high:.3f})"
        for who in SEERS:
            row[f"{who}_found"] = f"{row[who]:.3f} ({'LEAK' if row[f'{who}_is_leak'] else 'not found'})"
        n_found = sum(row[f"{who}_is_leak"] for who in SEERS)
        checks.append(measuring.check(f"leaks among honest policies ({row['market']})", row["rule_is_leak"], most=0))
        checks.append(measuring.check(f"look-ahead policies detected ({row['market']})", n_found, least=1))
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, checks=checks, cost_rate=COST_RATE)


def main() -> int:
    """Measure, print and write; the exit code is 1 if a leak verdict is wrong."""
    args = measuring.parsed(__doc__, own_file="bounds.json")
    part = measure(args)
    return measuring.keep(args, "bounds", part) or int(not all(check["met"] for check in part["checks"]))


if __name__ == "__main__":
    sys.exit(main())
