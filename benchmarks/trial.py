#!/usr/bin/env python3
"""Measure whole trials, exploration and update, at equal gradient work: ours, elegantrl's and Stable-Baselines3's.

One turn is a rollout of 3,072 steps (12 environments with 256 steps, or one with 3,072) and its update: 4 epochs with
512 samples per gradient step. Every contender therefore takes 24 gradient steps of the same network. The plain PPO is
one short file over our fast class (benchmarks/plain_ppo.py); it uses our environment and none of our agent. elegantrl's
agent runs on one scalar environment. Stable-Baselines3's PPO runs on a Python loop (DummyVecEnv) over 12 scalar
environments.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from benchmarks import measuring

HORIZON_LEN, HORIZON_LEN_QUICK, BATCH_SIZE, N_EPOCHS = 256, 8, 512, 4
OURS, PLAIN = "ours, vectorized", "plain PPO, vectorized"
SINGLE, BASELINES = "elegantrl, one scalar environment", "Stable-Baselines3, loop of scalar environments"
AIMS = {(BASELINES, 512): 1.5, (SINGLE, 128): 4.5, (SINGLE, 512): 2.5, (SINGLE, 1024): 1.4}
WIDTHS = (128, 512, 1024)
COLUMNS = measuring.columns("contender", "net", "n_envs", per_s="env-steps/s", ratio="our speedup")
COLUMNS["share_update"] = "share of time spent updating"
ABOUT = (
    "The table shows environment steps per second of a whole trial (exploration and update). The gradient work "
    f"is equal: {N_EPOCHS} epochs with batches of {BATCH_SIZE}, observations of 393 numbers and two hidden layers."
)


class Trial:
    """One rollout and its update by an agent with elegantrl's interface; records the time of each."""

    def __init__(self, agent: Any, env: Any, horizon_len: int) -> None:
        self.agent, self.env, self.horizon_len = agent, env, horizon_len
        self.explore_s = self.update_s = 0.0

    def __call__(self) -> None:
        """Run one turn."""
        import torch

        started = time.perf_counter()
        with torch.no_grad():
            items = self.agent.explore_env(self.env, self.horizon_len)
        explored = time.perf_counter()
        self.agent.update_net(items)
        self.explore_s += explored - started
        self.update_s += time.perf_counter() - explored

    @property
    def share_update(self) -> float:
        """Fraction of the time spent updating."""
        return self.update_s / max(self.explore_s + self.update_s, 1e-9)


def elegantrl_contenders(width: int, horizon_len: int, threads: int) -> list[measuring.Local]:
    """Return our agent, the plain PPO over the same class, and elegantrl's agent with one environment."""
    from benchmarks import contenders as who
    from benchmarks import learners
    from benchmarks.plain_ppo import PlainPPO

    n_envs, n_steps = learners.N_ENVS, learners.N_ENVS * horizon_len
    batch_size = min(BATCH_SIZE, n_steps)
    batch, single = who.batched_env(True, learners.RULES, n_envs), who.scalar_env(learners.RULES)
    ours = learners.our_agent(batch, width, horizon_len, threads, batch_size, N_EPOCHS)
    stock = learners.stock_agent(single, 1, width, batch_size, N_EPOCHS)
    own = who.batched_env(True, learners.RULES, n_envs)
    plain = PlainPPO(own, width, batch_size, N_EPOCHS, learners.LEARNING_RATE)
    return [
        measuring.Local(OURS, n_envs, Trial(ours, batch, horizon_len), n_steps),
        measuring.Local(PLAIN, n_envs, Trial(plain, own, horizon_len), n_steps),
        measuring.Local(SINGLE, 1, Trial(stock, single, n_steps), n_steps),
    ]


def baselines_contender(width: int, horizon_len: int) -> measuring.Local:
    """Return Stable-Baselines3's PPO with the same network and settings, over a Python loop of environments."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from benchmarks import contenders as who
    from benchmarks import learners

    n_envs, n_steps = learners.N_ENVS, learners.N_ENVS * horizon_len
    env = DummyVecEnv([lambda seed=seed: who.gymnasium_env(learners.RULES, seed) for seed in range(n_envs)])
    layers = {"net_arch": {"pi": [width, width], "vf": [width, width]}, "activation_fn": torch.nn.ReLU}
    sizes = {"n_steps": horizon_len, "n_epochs": N_EPOCHS, "batch_size": min(BATCH_SIZE, n_steps)}
    options = {"learning_rate": learners.LEARNING_RATE, "policy_kwargs": layers, "device": "cpu"}
    model = PPO("MlpPolicy", env, **sizes, **options)
    return measuring.Local(BASELINES, n_envs, lambda: model.learn(n_steps, reset_num_timesteps=False), n_steps)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    from benchmarks import contenders as who

    horizon_len = HORIZON_LEN_QUICK if args.quick else HORIZON_LEN
    has_baselines = who.is_installed("stable_baselines3")
    rows: list[dict[str, Any]] = []
    for width in WIDTHS[:1] if args.quick else WIDTHS:
        timed = elegantrl_contenders(width, horizon_len, args.threads)
        if has_baselines:
            timed.append(baselines_contender(width, horizon_len))
        rates = measuring.interleaved(timed, *measuring.rounds_of(args))
        for contender, row in zip(timed, measuring.rows_against(timed, rates, net=width), strict=True):
            if isinstance(contender.work, Trial):
                row["share_update"] = contender.work.share_update
            rows.append(row)
    if not has_baselines:
        rows.append(measuring.missing_row(BASELINES, "stable-baselines3"))
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, checks=[] if args.quick else checks(rows))


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the targets for two cores."""
    ratios = {(row["contender"], row.get("net")): row.get("ratio") for row in rows}
    return [
        measuring.check(f"speedup over {name} (net {width})", ratios.get((name, width)), least=least)
        for (name, width), least in AIMS.items()
    ]


if __name__ == "__main__":
    sys.exit(measuring.run("trial", __doc__, measure))
