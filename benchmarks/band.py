#!/usr/bin/env python3
"""How fast the band agent learns: account-bars a second and where the time goes, and how soon it is good.

A learning round trades a rollout, follows the reward back through the accounts, and takes one gradient step. Its time
is divided into trading, network and gradient recursion. PPO on the same market, with as many accounts, is the peer:
what it learns a second, exploring and four epochs of updates together.

The second table trains both until their policy earns 0.9 of the known best, on bars that decide when training ends and
on others that confirm it.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import measuring

COLUMNS = {
    "contender": "agent", "n_assets": "coins", "n_bars": "bars", "n_envs": "accounts", "per_s": "account-bars/s",
    "share_network": "network", "share_recursion": "recursion", "share_trading": "trading", "ratio": "times PPO",
}  # fmt: skip
# (coins, bars, accounts): the middle one, then one of the three at a time.
SIZES = ((7, 30_000, 64), (1, 30_000, 64), (23, 30_000, 64), (7, 5_000, 64), (7, 200_000, 64), (7, 30_000, 1),
         (7, 30_000, 12), (7, 30_000, 512))  # fmt: skip
SIZES_QUICK = ((2, 3_000, 4),)
N_FEATURES_PER_COIN, N_SHARED_FEATURES, LOOKBACK, WIDTH, HORIZON_BARS = 10, 7, 5, 128, 2_048
GOOD, GOOD_SEEDS, LIMIT_S, LIMIT_S_QUICK = 0.9, 3, 30.0, 3.0
PPO_SAMPLES = 4_096
KNOWN_PARAMS = {"rules": "standard", "lookback": 1, "norm_action": 1.0}
# Looked at about every quarter of a second of learning.
LEARNERS: dict[str, dict[str, Any]] = {
    "band": {"agent": "band", "n_envs": 16, "horizon_len": 1_024, "net_dims": (64,), "learning_rate": 1e-2,
             "eval_every_updates": 16},
    "ppo": {"agent": "ppo", "n_envs": 64, "horizon_len": 128, "net_dims": (32, 32), "learning_rate": 3e-3,
            "batch_size": 2_048, "episode_bars": 256, "action_std_init_log": -1.0, "eval_every_updates": 2},
}  # fmt: skip
GOOD_COLUMNS = {
    "contender": "agent", "market": "market", "learning_s": "seconds of learning", "gradient_steps": "gradient steps",
    "reached": "runs that got there", "share": "best share seen",
}  # fmt: skip


def market(n_assets: int, n_bars: int) -> dict[str, Any]:
    """Random walks and noise: seven coins have 77 features, as the default ones of a dataset."""
    import numpy as np

    rng = np.random.default_rng(0)
    price = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.002, (n_bars, n_assets)), axis=0))
    n_features = n_assets * N_FEATURES_PER_COIN + N_SHARED_FEATURES
    return {"price_array": price, "tech_array": rng.normal(0.0, 1.0, (n_bars, n_features)).astype(np.float32)}


class Learner:
    """One agent on one market; a call is one learning round."""

    def __init__(self, name: str, size: tuple[int, int, int], args: argparse.Namespace) -> None:
        from train.config import TrainConfig
        from train.env_factory import env_class_for, make_env
        from train.run import build_agent

        n_assets, n_bars, n_envs = size
        horizon_len = min(HORIZON_BARS, n_bars // 2) if name == "band" else max(PPO_SAMPLES // n_envs, 1)
        self.settings = TrainConfig(
            agent=name, n_envs=n_envs, horizon_len=horizon_len, net_dims=(WIDTH, WIDTH), learning_rate=1e-6,
            total_env_steps=10**9, cpu_threads=args.threads, gpu_id=args.gpu, n_epochs=4, batch_size=512,
        )  # fmt: skip
        params = {"rules": "standard", "lookback": LOOKBACK, "norm_action": 1.0}
        options = {"gpu_id": args.gpu, "seed": 0, "start": "random"}
        self.env = make_env(env_class_for(n_envs), market(n_assets, n_bars), params, n_envs, **options)
        self.agent: Any = build_agent(self.settings, self.env)
        self.seconds = {"network": 0.0, "recursion": 0.0}
        if name == "band":
            for part, method in (("network", "_project"), ("recursion", "_edge_gradient"), ("network", "_descend")):
                setattr(self.agent, method, self._timed(part, getattr(self.agent, method)))

    def _timed(self, part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, its time counted; a part that runs inside another of the same name is counted once."""
        running: dict[str, bool] = self.__dict__.setdefault("running", {})

        def call(*args: Any, **kwargs: Any) -> Any:
            if running.get(part):
                return method(*args, **kwargs)
            running[part], started = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                running[part] = False
                self.seconds[part] += time.perf_counter() - started

        return call

    def learn(self) -> None:
        """Explore and update once."""
        self.agent.update_net(self.agent.explore_env(self.env, self.settings.horizon_len))

    def shares(self, rounds: int) -> dict[str, float]:
        """Parts of a learning round's time, the rest being trading."""
        self.seconds |= dict.fromkeys(self.seconds, 0.0)
        started = time.perf_counter()
        for _ in range(rounds):
            self.learn()
        total = time.perf_counter() - started
        shares = {f"share_{part}": seconds / total for part, seconds in self.seconds.items()}
        return shares | {"share_trading": 1.0 - sum(shares.values())}


def speed_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Both agents at every size, timed in turn."""
    rounds, seconds = measuring.rounds_of(args)
    rows = []
    for size in SIZES_QUICK if args.quick else SIZES:
        learners = [Learner(name, size, args) for name in ("band", "ppo")]
        timed = [
            measuring.Local(
                learner.settings.agent, size[2], learner.learn, float(learner.settings.horizon_len * size[2]),
                wait=measuring.waiter(args.gpu),
            )
            for learner in learners
        ]  # fmt: skip
        band, ppo = measuring.interleaved(timed, rounds, seconds)
        about = dict(zip(("n_assets", "n_bars", "n_envs"), size, strict=True))
        shares = learners[0].shares(1 if args.quick else 5)
        rows.append({"contender": "band", **about, "per_s": round(statistics.median(band)), **shares,
                     "ratio": measuring.ratio(band, ppo)})  # fmt: skip
        rows.append({"contender": "PPO", **about, "per_s": round(statistics.median(ppo))})
        print(rows[-2], rows[-1], file=sys.stderr, flush=True)
    return rows


class Enough(Exception):  # noqa: N818 - not a failure
    """The policy is good, or the time is over."""


@dataclass(frozen=True)
class Known:
    """A market whose best policy is known."""

    train: dict[str, Any]  # training config
    looks: dict[str, Any]  # of bars that decide when training ends
    unseen: dict[str, Any]  # of bars that confirm it
    best: tuple[float, float]  # log growth of the best policy on the two


def known_market(name: str, seed: int, quick: bool) -> Known:
    """The market of that name with bars of three seeds of its own."""
    from benchmarks.planted_markets import AnnouncedMarket
    from benchmarks.signal_markets import SignalMarket, solve_one_coin
    from train.evaluator import evaluate_policy, mean_growth

    train_bars, unseen_bars = (3_000, 3_000) if quick else (60_000, 30_000)
    if name == "announced":
        market = AnnouncedMarket(rise=0.0015, fall=-0.0015, volatility=0.005, n_noise_features=4)
        rule: Any = market.follow
    else:
        market = SignalMarket(alpha=1.5e-4)
        rule = solve_one_coin(market, 0.003).act
    looks, unseen = (market.config(unseen_bars, 3 * seed + k) for k in (2, 3))
    best = tuple(mean_growth(evaluate_policy(rule, bars, KNOWN_PARAMS)) for bars in (looks, unseen))
    return Known(market.config(train_bars, 3 * seed + 1), looks, unseen, (best[0], best[1]))


def time_to_good(name: str, market_name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of exploring and updating, and gradient steps, until the policy earns `GOOD` of the best.

    It must do so on two sets of bars that it was not trained on: one that is looked at now and then, and, when that
    says so, another. The looks are not counted. A run that never gets there has its best share instead.
    """
    from train.config import TrainConfig
    from train.evaluator import evaluate_policy, mean_growth
    from train.run import LAST_POLICY, Progress, train_policy

    known = known_market(market_name, seed, args.quick)
    limit_s = LIMIT_S_QUICK if args.quick else LIMIT_S
    seen: dict[str, Any] = {"learning_s": 0.0, "gradient_steps": 0, "share": -1.0, "is_good": False}
    settings = TrainConfig(seed=seed, total_env_steps=10**9, cpu_threads=args.threads, **LEARNERS[name])
    with tempfile.TemporaryDirectory() as folder:

        def on_progress(progress: Progress) -> None:
            learning_s = progress.explore_s + progress.update_s
            if progress.validation_score is None:
                return
            share = progress.validation_score / known.best[0]
            if share >= GOOD:
                confirmed = evaluate_policy(Path(folder) / LAST_POLICY, known.unseen, KNOWN_PARAMS)
                share = min(share, mean_growth(confirmed) / known.best[1])
            seen["share"] = max(seen["share"], share)
            seen["is_good"] = share >= GOOD
            seen["learning_s"], seen["gradient_steps"] = learning_s, progress.gradient_steps
            if seen["is_good"] or learning_s > limit_s:
                raise Enough

        with contextlib.suppress(Enough):
            train_policy(settings, known.train, KNOWN_PARAMS, folder, validation_config=known.looks,
                         on_progress=on_progress)  # fmt: skip
    return {"contender": name, "market": market_name, "seed": seed, **seen}


def until_good(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each learner and market: medians over the seeds, and how many of them got there."""
    rows = []
    for market in ("announced", "signal"):
        for name in LEARNERS:
            runs = [time_to_good(name, market, seed, args) for seed in range(1 if args.quick else GOOD_SEEDS)]
            reached = [run for run in runs if run["is_good"]]
            row = {"contender": name, "market": market, "reached": f"{len(reached)} of {len(runs)}",
                   "share": statistics.median(run["share"] for run in runs), "runs": runs}  # fmt: skip
            if 2 * len(reached) > len(runs):
                row |= {key: statistics.median(run[key] if run["is_good"] else math.inf for run in runs)
                        for key in ("learning_s", "gradient_steps")}  # fmt: skip
            rows.append(row)
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section."""
    rows = speed_rows(args)
    good = until_good(args)
    about = (
        f"Learning rounds of the band agent ({WIDTH}-{WIDTH} units, rollouts of {HORIZON_BARS:,} bars, one gradient "
        f"step) and of PPO (rollouts of {PPO_SAMPLES:,} samples, 4 epochs of 512 a step) on one market, lookback "
        f"{LOOKBACK}: account-bars a second through exploring and updating, and where the band agent's time goes."
    )
    notes = [
        f"Until the policy earns {GOOD:g} of the known best's log growth on two sets of unseen bars, full costs, no "
        f"fee ramp; given up after {LIMIT_S:g} s of learning; medians of {GOOD_SEEDS} markets and initialisations:",
        "",
        *measuring.table_lines(GOOD_COLUMNS, good),
    ]
    return measuring.section(args, about, COLUMNS, rows=rows, notes=notes, until_good=good)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = measuring.arguments(__doc__).parse_args(argv)
    measuring.with_threads(args)
    measuring.finish(args, "band", measure(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
