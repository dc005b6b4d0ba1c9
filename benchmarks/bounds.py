"""What can be earned on the planted markets: the solved optimum, the dual bound, hindsight, and who is above the bound.

    python benchmarks/bounds.py            # writes benchmarks/results/bounds.json
    python benchmarks/bounds.py --quick    # short segments, as a check; writes nothing

Three policies trade each market in the environment: the known best rule; the same rule, which also sees the return
after its fill; and one that sees the return of the 20 bars after its fill. Exit code 1 if the first is called a leak,
or neither of the others is. One of them alone may earn too little to be found on 40 segments: a rule for a weak signal
trades too seldom for one bar to help it, and 20 bars are far where a strong signal changes every 25.

An honest policy is called a leak once in 200 times, which is what a 99 % interval means.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.planted_markets import AnnouncedMarket, law_of, solve_plan
from benchmarks.signal_bound import signal_law
from benchmarks.signal_markets import SignalMarket, solve_one_coin
from train.evaluator import evaluate_policy
from train.validation.benchmarks import Costs
from train.validation.dual_bound import AgainstBound, Law, against_bound, dual_bound
from train.validation.hindsight import clairvoyant

ROOT = Path(__file__).resolve().parents[1]

FEE_RATE, SLIPPAGE_RATE = 0.0025, 0.0005
COST_RATE = FEE_RATE + SLIPPAGE_RATE
PARAMS = {"rules": "standard", "lookback": 1, "norm_action": 1.0, "min_order_notional": 0.0}
N_SEGMENTS, BARS, QUICK_BARS = 40, 3000, 1000
AHEAD_SCALE = 1000.0
FAR_BARS = 20
SEERS = ("peeking", "far_seeing")
RESULT = ROOT / "benchmarks" / "results" / "bounds.json"


@dataclass(frozen=True)
class Case:
    """A market with what is known of it."""

    name: str
    config: dict[str, Any]
    signal: np.ndarray  # (T, ...) that the features show
    law: Law
    optimum: float  # log growth per bar
    rule: Callable[[Tensor], Tensor]  # the best known policy


def cases(n_bars: int) -> Iterator[Case]:
    """The three announced markets and the three signals of docs/results.md, each from a seed of its own."""
    for seed, (size, volatility) in enumerate(((0.0015, 0.005), (0.0008, 0.005), (0.0004, 0.004))):
        market = AnnouncedMarket(rise=size, fall=-size, volatility=volatility)
        config = market.config(N_SEGMENTS * n_bars, seed)
        yield Case(f"announced trend {size:.2%}", config, market.regime_shown(config["tech_array"]),
                   law_of(market, COST_RATE, n_bars), solve_plan(market, COST_RATE).growth, market.follow)  # fmt: skip
    for seed, alpha in enumerate((0.7e-4, 1.0e-4, 1.5e-4), start=3):
        signal = SignalMarket(alpha=alpha)
        config, optimum = signal.config(N_SEGMENTS * n_bars, seed), solve_one_coin(signal, COST_RATE)
        shown = config["tech_array"][:, 0].astype(np.float64)
        yield Case(f"AR(1) signal {alpha * 1e4:.1f} bp", config, shown, signal_law(signal, COST_RATE),
                   optimum.growth, optimum.act)  # fmt: skip


def with_leak(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what comes after the next fill as further features, of each coin: 20 bars' return, one bar's."""
    log_price = np.log(config["price_array"])
    ahead = []
    for n_bars in (FAR_BARS, 1):
        later = np.zeros(log_price.shape)
        later[: -n_bars - 1] = AHEAD_SCALE * (log_price[n_bars + 1 :] - log_price[1:-n_bars])
        ahead.append(later)
    return {**config, "tech_array": np.hstack((config["tech_array"], *ahead)).astype(np.float32)}


def peeking(rule: Callable[[Tensor], Tensor], n_assets: int) -> Callable[[Tensor], Tensor]:
    """The rule, except that it sells nothing before a rise and buys nothing before a fall."""

    def act(state: Tensor) -> Tensor:
        order, ahead = rule(state), state[:, -n_assets:]
        return torch.where((order > 0.0) == (ahead > 0.0), order, 0.0)

    return act


def far_seeing(n_assets: int) -> Callable[[Tensor], Tensor]:
    """Into the coin that gains most in 20 bars, if that pays a round trip; out of coins that lose as much."""
    least = AHEAD_SCALE * 2.0 * COST_RATE

    def act(state: Tensor) -> Tensor:
        ahead = state[:, -2 * n_assets : -n_assets]
        best = torch.zeros_like(ahead).scatter(1, ahead.argmax(1, keepdim=True), 1.0)
        into_best = torch.where(ahead.amax(1, keepdim=True) > least, 2.0 * best - 1.0, 0.0)
        return torch.where(ahead < -least, -1.0, into_best)

    return act


def measured(case: Case, n_bars: int) -> dict[str, Any]:
    """One row: rates in bp per bar."""
    edges = [(i * n_bars, (i + 1) * n_bars) for i in range(N_SEGMENTS)]
    config, n_assets = with_leak(case.config) | {"segments": edges}, case.config["price_array"].shape[1]
    # An account on n bars has n - 1 decisions, and what the last one buys has no bar left to earn on.
    bound = dual_bound([case.signal[a : b - 2] for a, b in edges], case.law, cash=0)
    costs = Costs(1.0, FEE_RATE, SLIPPAGE_RATE)
    hindsight = [clairvoyant(config["price_array"][a:b], costs).growth for a, b in edges]

    def judged(policy: Callable[[Tensor], Tensor]) -> AgainstBound:
        return against_bound([r.growth for r in evaluate_policy(policy, config, PARAMS)], bound)

    rule, peek, far = judged(case.rule), judged(peeking(case.rule, n_assets)), judged(far_seeing(n_assets))
    scale = 1e4 / n_bars
    return {
        "market": case.name,
        "optimum": case.optimum * 1e4,
        "dual_bound": bound.mean * scale,
        "dual_bound_interval": [end * scale for end in bound.interval],
        "hindsight": float(np.mean(hindsight)) * scale,
        "rule": rule.growth * scale,
        "rule_minus_bound": [end * scale for end in rule.difference],
        "rule_is_leak": rule.is_leak,
        "peeking": peek.growth * scale,
        "peeking_is_leak": peek.is_leak,
        "far_seeing": far.growth * scale,
        "far_seeing_is_leak": far.is_leak,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, bp per bar."""
    lines = ["| market | optimum | dual bound, 99 % | hindsight | best rule, traded | sees 1 bar | sees 20 bars |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        low, high = row["dual_bound_interval"]
        seen = " | ".join(f"{row[who]:.3f} ({'LEAK' if row[f'{who}_is_leak'] else 'not found'})" for who in SEERS)
        lines.append(f"| {row['market']} | {row['optimum']:.3f} | {row['dual_bound']:.3f} ({low:.3f} to {high:.3f}) | "
                     f"{row['hindsight']:.2f} | {row['rule']:.3f} | {seen} |")  # fmt: skip
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short segments; nothing is written")
    args = parser.parse_args(argv)
    n_bars = QUICK_BARS if args.quick else BARS
    rows = [measured(case, n_bars) for case in cases(n_bars)]
    print(table(rows))
    if not args.quick:
        about = {"n_segments": N_SEGMENTS, "bars": n_bars, "cost_rate": COST_RATE, "unit": "bp per bar"}
        RESULT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    is_right = [any(row[f"{who}_is_leak"] for who in SEERS) and not row["rule_is_leak"] for row in rows]
    return 0 if all(is_right) else 1


if __name__ == "__main__":
    sys.exit(main())
