#!/usr/bin/env python3
"""Measure how fast the band agent learns: account-bars per second, where the time goes, and the time to a good policy.

A learning round trades a rollout, backpropagates the reward through the accounts, and takes one gradient step. Its time
is split into trading, network and gradient recursion. The baseline is PPO on the same market with the same number of
accounts. PPO's rate covers exploration and four epochs of updates.

The second table trains both agents until their policy earns 0.9 of the best known growth. One set of bars decides when
training stops, and a second set confirms the result.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring
from benchmarks.planted_markets import AnnouncedMarket
from benchmarks.signal_markets import SignalMarket, solve_one_coin
from train.config import TrainConfig
from train.env_factory import env_class_for, make_env
from train.evaluator import evaluate_policy, mean_growth
from train.run import LAST_POLICY, Progress, build_agent, train_policy

COLUMNS = measuring.columns(contender="agent", n_assets="coins", n_bars="bars", n_envs="accounts")
COLUMNS |= {"per_s": "account-bars/s", "share_network": "network", "share_recursion": "recursion"}
COLUMNS |= {"share_trading": "trading", "ratio": "times PPO's speed"}
# Coins, bars, accounts: the first value of each is the base case, and one of the three changes at a time.
COINS, BARS, ACCOUNTS = (7, 1, 23), (30_000, 5_000, 200_000), (64, 1, 12, 512)
SIZES = [(n_assets, BARS[0], ACCOUNTS[0]) for n_assets in COINS]
SIZES += [(COINS[0], n_bars, ACCOUNTS[0]) for n_bars in BARS[1:]]
SIZES += [(COINS[0], BARS[0], n_envs) for n_envs in ACCOUNTS[1:]]
SIZES_QUICK = [(2, 3_000, 4)]
N_FEATURES_PER_COIN, N_SHARED_FEATURES, LOOKBACK, WIDTH, HORIZON_BARS = 10, 7, 5, 128, 2_048
GOOD, GOOD_SEEDS, LIMIT_S, LIMIT_S_QUICK = 0.9, 3, 30.0, 3.0
PPO_SAMPLES = 4_096
KNOWN_PARAMS = {"rules": "standard", "lookback": 1, "norm_action": 1.0}
# Evaluated about every quarter of a second of learning.
BAND = dict(agent="band", n_envs=16, horizon_len=1_024, net_dims=(64,), learning_rate=1e-2, eval_every_updates=16)
PPO = dict(agent="ppo", n_envs=64, horizon_len=128, net_dims=(32, 32), learning_rate=3e-3, eval_every_updates=2)
LEARNERS = {"band": BAND, "ppo": PPO | {"batch_size": 2_048, "episode_bars": 256, "action_std_init_log": -1.0}}
GOOD_COLUMNS = measuring.columns(contender="agent", market="market", learning_s="learning time, s")
GOOD_COLUMNS |= {"gradient_steps": "gradient steps", "reached": "runs that reached it", "share": "best share"}


def market(n_assets: int, n_bars: int) -> dict[str, Any]:
    """Return random walks and noise features; seven coins have 77 features, as in a default dataset."""
    rng = np.random.default_rng(0)
    price = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.002, (n_bars, n_assets)), axis=0))
    n_features = n_assets * N_FEATURES_PER_COIN + N_SHARED_FEATURES
    return {"price_array": price, "tech_array": rng.normal(0.0, 1.0, (n_bars, n_features)).astype(np.float32)}


class Learner:
    """One agent on one market; each call of `learn` is one learning round."""

    def __init__(self, name: str, size: tuple[int, int, int], args: argparse.Namespace) -> None:
        n_assets, n_bars, n_envs = size
        self.horizon_len = min(HORIZON_BARS, n_bars // 2) if name == "band" else max(PPO_SAMPLES // n_envs, 1)
        sizes = {"n_envs": n_envs, "horizon_len": self.horizon_len, "net_dims": (WIDTH, WIDTH), "batch_size": 512}
        budget = {"learning_rate": 1e-6, "total_env_steps": 10**9, "n_epochs": 4}
        settings = TrainConfig(agent=name, cpu_threads=args.threads, gpu_id=args.gpu, **sizes, **budget)
        params = {"rules": "standard", "lookback": LOOKBACK, "norm_action": 1.0}
        options = {"gpu_id": args.gpu, "seed": 0, "start": "random"}
        self.env = make_env(env_class_for(n_envs), market(n_assets, n_bars), params, n_envs, **options)
        self.agent: Any = build_agent(settings, self.env)
        self.timed = measuring.Local(name, n_envs, self.learn, self.horizon_len * n_envs, measuring.waiter(args.gpu))

    def learn(self) -> None:
        """Explore once and update once."""
        self.agent.update_net(self.agent.explore_env(self.env, self.horizon_len))

    def shares(self, rounds: int) -> dict[str, float]:
        """Return the fraction of a band agent's learning round spent in each part; trading is the remainder."""
        seconds = {"network": 0.0, "recursion": 0.0}
        for part, name in (("network", "_project"), ("recursion", "_edge_gradient"), ("network", "_descend")):
            setattr(self.agent, name, counted(part, getattr(self.agent, name), seconds))
        started = time.perf_counter()
        for _ in range(rounds):
            self.learn()
        total = time.perf_counter() - started
        shares = {f"share_{part}": spent / total for part, spent in seconds.items()}
        return shares | {"share_trading": 1.0 - sum(shares.values())}


def counted(part: str, method: Callable[..., Any], seconds: dict[str, float]) -> Callable[..., Any]:
    """Wrap a method and add its time to a part; nested calls of the same part are counted once."""

    def call(*args: Any, **kwargs: Any) -> Any:
        before, started = seconds[part], time.perf_counter()
        result = method(*args, **kwargs)
        seconds[part] = before + time.perf_counter() - started
        return result

    return call


def speed_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure both agents at every size, in alternation."""
    rows = []
    for size in SIZES_QUICK if args.quick else SIZES:
        learners = [Learner(name, size, args) for name in ("band", "ppo")]
        timed = [learner.timed for learner in learners]
        band, ppo = measuring.interleaved(timed, *measuring.rounds_of(args))
        about = dict(zip(("n_assets", "n_bars", "n_envs"), size, strict=True))
        row = {"contender": "band", **about, "per_s": round(statistics.median(band))}
        row |= learners[0].shares(1 if args.quick else 5) | {"ratio": measuring.ratio(band, ppo)}
        rows += [row, {"contender": "PPO", **about, "per_s": round(statistics.median(ppo))}]
        print(rows[-2], rows[-1], file=sys.stderr, flush=True)
    return rows


class Enough(Exception):  # noqa: N818 - not a failure
    """Raised to stop training because the policy is good enough or the time limit is reached."""


def known_market(name: str) -> tuple[Any, Any]:
    """Return the market with that name and its best known policy."""
    if name == "announced":
        announced = AnnouncedMarket(rise=0.0015, fall=-0.0015, volatility=0.005, n_noise_features=4)
        return announced, announced.follow
    signal = SignalMarket(alpha=1.5e-4)
    return signal, solve_one_coin(signal, 0.003).act


def time_to_good(name: str, market_name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the learning time and gradient steps until the policy earns `GOOD` of the best known growth.

    The policy must reach this on two sets of bars that it was not trained on. The first set is evaluated at intervals.
    The second is evaluated when the first one passes. Evaluation time is not counted. A run that never reaches the
    target reports its best share.
    """
    train_bars, unseen_bars = (3_000, 3_000) if args.quick else (60_000, 30_000)
    limit_s = LIMIT_S_QUICK if args.quick else LIMIT_S
    known, rule = known_market(market_name)
    train = known.config(train_bars, 3 * seed + 1)
    looks, unseen = (known.config(unseen_bars, 3 * seed + k) for k in (2, 3))
    best_looks, best_unseen = (mean_growth(evaluate_policy(rule, bars, KNOWN_PARAMS)) for bars in (looks, unseen))
    seen: dict[str, Any] = {"learning_s": 0.0, "gradient_steps": 0, "share": -1.0, "is_good": False}
    settings = TrainConfig(seed=seed, total_env_steps=10**9, cpu_threads=args.threads, **LEARNERS[name])
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):

        def on_progress(progress: Progress) -> None:
            if progress.validation_score is None:
                return
            share = progress.validation_score / best_looks
            if share >= GOOD:
                confirmed = evaluate_policy(Path(folder) / LAST_POLICY, unseen, KNOWN_PARAMS)
                share = min(share, mean_growth(confirmed) / best_unseen)
            seen["share"], seen["is_good"] = max(seen["share"], share), share >= GOOD
            seen["learning_s"] = progress.explore_s + progress.update_s
            seen["gradient_steps"] = progress.gradient_steps
            if seen["is_good"] or seen["learning_s"] > limit_s:
                raise Enough

        train_policy(settings, train, KNOWN_PARAMS, folder, validation_config=looks, on_progress=on_progress)
    return {"contender": name, "market": market_name, "seed": seed, **seen}


def until_good(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row per learner and market: medians over the seeds, and the number of successful runs."""
    rows = []
    for market_name, name in product(("announced", "signal"), LEARNERS):
        runs = [time_to_good(name, market_name, seed, args) for seed in range(1 if args.quick else GOOD_SEEDS)]
        n_good = sum(run["is_good"] for run in runs)
        row = {"contender": name, "market": market_name, "reached": f"{n_good} of {len(runs)}", "runs": runs}
        row["share"] = statistics.median(run["share"] for run in runs)
        if 2 * n_good > len(runs):
            for key in ("learning_s", "gradient_steps"):
                row[key] = statistics.median(run[key] if run["is_good"] else math.inf for run in runs)
        rows.append(row)
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    rows = speed_rows(args)
    good = until_good(args)
    about = (
        "The table shows the training throughput (exploration and update together, in account-bars per second) on one "
        f"market with lookback {LOOKBACK}. It also shows how the band agent's time splits between network, recursion "
        f"and trading. The band agent has {WIDTH}-{WIDTH} units, rollouts of {HORIZON_BARS:,} bars and one gradient "
        f"step per rollout. PPO has rollouts of {PPO_SAMPLES:,} samples and 4 epochs with batches of 512. Account-bars "
        "are the number of accounts times the number of bars."
    )
    until = (
        f"The next table shows the training time until the policy earns {GOOD:g} of the best known log growth on two "
        f"sets of unseen bars, at full cost and without a fee ramp. Training stops after {LIMIT_S:g} s. "
        f"Values are medians over {GOOD_SEEDS} seeds, each with its own market and initial weights."
    )
    notes = [until, "", *measuring.table_lines(GOOD_COLUMNS, good)]
    return measuring.section(args, about, COLUMNS, rows=rows, notes=notes, until_good=good)


if __name__ == "__main__":
    sys.exit(measuring.run("band", __doc__, measure, gpu=True))
