#!/usr/bin/env python3
"""Two choices of the band agent, by measurement: bars of a rollout, and what a dropped order's edge learns.

    python benchmarks/band_choices.py            # writes benchmarks/results/band_choices.json
    python benchmarks/band_choices.py --quick    # one seed, little budget, as a check; writes nothing

Every run trains on fresh bars of a market with AR(1) signals (benchmarks/signal_markets.py), with fees rising over the
first half of the budget, and is judged at full cost on bars that it never saw: the last policy, without a choice among
checkpoints. The share is of the best known: the solved optimum of one coin, the best found rule of seven.

All rollouts hold as many account-bars, so all runs take as many gradient steps: shorter rollouts have more accounts. A
window shorter than a position's life is marked at its end, before the position has paid for its entry, so its gradient
sees entries as worth less than they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.signal_markets import SignalMarket, find_rule, joined, solve_one_coin
from train.config import TrainConfig
from train.env_factory import env_class_for, make_env
from train.evaluator import evaluate_policy, mean_growth
from train.run import build_agent

REPO = Path(__file__).resolve().parents[1]

RESULT = REPO / "benchmarks" / "results" / "band_choices.json"
PARAMS = {"rules": "standard", "lookback": 1, "norm_action": 1.0}
COST_RATE = 0.003
COINS, HORIZONS, USUAL_BARS = (1, 7), (128, 512, 2048), 1024
SAMPLES = 16_384  # account-bars of a rollout: the shorter the rollout, the more accounts, and as many gradient steps
ACCOUNT_BARS, ACCOUNT_BARS_QUICK, TRAIN_BARS, TEST_BARS = 3_000_000, 100_000, 100_000, 60_000
Case = tuple[str, int, bool]  # name, bars of a rollout, whether a dropped order's edge learns as if it had filled
CASES: tuple[Case, ...] = (
    *((f"{bars} bars", bars, True) for bars in HORIZONS),
    ("as if filled", USUAL_BARS, True), ("as dropped", USUAL_BARS, False),
)  # fmt: skip


def learned(market: SignalMarket, case: Case, seed: int, account_bars: int) -> tuple[Any, float]:
    """(the trained policy, share of the touches of the last tenth of the run that led to no fill)."""
    _, horizon_bars, as_if_filled = case
    n_envs = SAMPLES // horizon_bars
    settings = TrainConfig(
        agent="band", n_envs=n_envs, horizon_len=USUAL_BARS, net_dims=(64,), learning_rate=1e-2, seed=seed,
        total_env_steps=account_bars,
    )  # fmt: skip
    options = {"gpu_id": -1, "seed": seed, "start": "random", "compact": True}
    env = make_env(env_class_for(n_envs), market.config(TRAIN_BARS, (seed, 1)), PARAMS, n_envs, **options)
    agent: Any = build_agent(settings, env)
    agent.as_if_filled = as_if_filled
    n_updates = -(-account_bars // SAMPLES)
    dropped = []
    for update in range(n_updates):
        env.cost_factor = min(1.0, 2.0 * update / n_updates)
        agent.update_net(agent.explore_env(env, horizon_bars))
        dropped.append(agent.last_update.dropped)
    return agent.policy(), statistics.fmean(dropped[-max(n_updates // 10, 1) :])


def measured(n_assets: int, seeds: Sequence[int], account_bars: int) -> list[dict[str, Any]]:
    """A row for every choice."""
    market = SignalMarket(n_assets=n_assets)
    best = solve_one_coin(market, COST_RATE).growth if n_assets == 1 else find_rule(market, COST_RATE).growth
    tests = [joined([market.config(TEST_BARS // 2, (seed, 2), mirrored) for mirrored in (False, True)])
             for seed in seeds]  # fmt: skip
    rows = []
    for case in CASES:
        shares, dropped = [], []
        for seed, unseen in zip(seeds, tests, strict=True):
            policy, no_fill = learned(market, case, seed, account_bars)
            shares.append(mean_growth(evaluate_policy(policy, unseen, PARAMS)) / (TEST_BARS // 2 - 1) / best)
            dropped.append(no_fill)
        rows.append({"coins": n_assets, "choice": case[0], "median_share": statistics.median(shares),
                     "shares": shares, "touches_without_fill": statistics.median(dropped)})  # fmt: skip
        print(f"{n_assets} coins, {case[0]:>13}: {rows[-1]['median_share']:6.2f} of the best known "
              f"({min(shares):.2f} to {max(shares):.2f}); {rows[-1]['touches_without_fill']:.0%} of the touches "
              "led to no fill", flush=True)  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one coin, little budget; nothing is written")
    args = parser.parse_args(argv)
    seeds = range(1) if args.quick else range(5)
    account_bars = ACCOUNT_BARS_QUICK if args.quick else ACCOUNT_BARS
    rows = [row for n in COINS[: 1 if args.quick else None] for row in measured(n, seeds, account_bars)]
    if not args.quick:
        about = {"market": "SignalMarket, alpha 1 bp, 30 bp a side", "account_bars": account_bars,
                 "samples": SAMPLES, "test_bars": TEST_BARS}  # fmt: skip
        RESULT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
