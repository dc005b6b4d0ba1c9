#!/usr/bin/env python3
"""Compare two choices of the band agent: the rollout length, and the gradient at the edge behind a dropped order.

    python benchmarks/band_choices.py            # writes benchmarks/results/band_choices.json
    python benchmarks/band_choices.py --quick    # smoke test: one seed, a small budget; writes nothing

Each run trains on fresh bars of a market with AR(1) signals (benchmarks/signal_markets.py). Fees ramp up over the first
half of the budget. The last policy is evaluated at full cost on unseen bars; no checkpoint is selected. Its share is
relative to the best known growth: the solved optimum for one coin, the best rule found for seven.

All rollouts hold the same number of account-bars, so all runs take the same number of gradient steps. Shorter rollouts
have more accounts. A rollout shorter than a position's lifetime values the position before it has paid for its entry,
so its gradient makes entries look worse than they are.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import measuring
from benchmarks.signal_markets import SignalMarket, find_rule, joined, solve_one_coin
from train.config import TrainConfig
from train.env_factory import env_class_for, make_env
from train.evaluator import evaluate_policy, mean_growth
from train.run import build_agent

PARAMS = {"rules": "standard", "lookback": 1, "norm_action": 1.0}
COST_RATE = 0.003
COINS, HORIZONS, USUAL_BARS = (1, 7), (128, 512, 2048), 1024
SAMPLES = 16_384  # account-bars per rollout; a shorter rollout has more accounts and the same number of gradient steps
ACCOUNT_BARS, ACCOUNT_BARS_QUICK, TRAIN_BARS, TEST_BARS = 3_000_000, 100_000, 100_000, 60_000
SEEDS = 5
# Name -> bars per rollout, and True if a dropped order's edge receives the gradient of a filled order.
CASES = {f"{bars} bars": (bars, True) for bars in HORIZONS}
CASES |= {"as if filled": (USUAL_BARS, True), "as dropped": (USUAL_BARS, False)}
COLUMNS = measuring.columns("choice", "coins", median_share="median share of the best known growth", spread="range")
COLUMNS["touches_without_fill"] = "edges touched without a fill"
ABOUT = (
    f"The table compares two design choices of the band agent, with {SEEDS} seeds, {ACCOUNT_BARS:,} account-bars, an "
    f"AR(1) signal of 1 bp, a cost of 30 bp per side, and rollouts of {SAMPLES:,} account-bars."
)


def learned(market: SignalMarket, case: str, seed: int, account_bars: int) -> tuple[Any, float]:
    """Train a policy; return it, and the share of touched edges without a fill over the last tenth of the run."""
    horizon_bars, as_if_filled = CASES[case]
    n_envs = SAMPLES // horizon_bars
    sizes = {"n_envs": n_envs, "horizon_len": USUAL_BARS, "net_dims": (64,), "total_env_steps": account_bars}
    settings = TrainConfig(agent="band", learning_rate=1e-2, seed=seed, **sizes)
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


def choices(n_assets: int, seeds: Sequence[int], account_bars: int) -> list[dict[str, Any]]:
    """Return one row per choice."""
    market = SignalMarket(n_assets=n_assets)
    best = solve_one_coin(market, COST_RATE).growth if n_assets == 1 else find_rule(market, COST_RATE).growth
    rows = []
    for case in CASES:
        shares, dropped = [], []
        for seed in seeds:
            policy, no_fill = learned(market, case, seed, account_bars)
            unseen = joined([market.config(TEST_BARS // 2, (seed, 2), mirrored) for mirrored in (False, True)])
            shares.append(mean_growth(evaluate_policy(policy, unseen, PARAMS)) / (TEST_BARS // 2 - 1) / best)
            dropped.append(no_fill)
        row = {"coins": n_assets, "choice": case, "median_share": statistics.median(shares), "shares": shares}
        row |= {"spread": f"{min(shares):.2f} to {max(shares):.2f}", "touches_without_fill": statistics.median(dropped)}
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return one row per number of coins and choice; `--quick` has one coin, one seed and a small budget."""
    coins, seeds = (COINS[:1], range(1)) if args.quick else (COINS, range(SEEDS))
    account_bars = ACCOUNT_BARS_QUICK if args.quick else ACCOUNT_BARS
    rows = [row for n_assets in coins for row in choices(n_assets, seeds, account_bars)]
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, account_bars=account_bars, test_bars=TEST_BARS)


if __name__ == "__main__":
    sys.exit(measuring.run("band_choices", __doc__, measure, own_file="band_choices.json"))
