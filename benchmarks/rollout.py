#!/usr/bin/env python3
"""Measure environment steps per second of PPO's exploration, against the bare actor and against elegantrl.

Twelve environments use the standard rules, observations of 393 numbers, and networks with two layers of 128 or 512
units. The "bare" contender does the minimum that exploration needs: the actor's layers on 12 rows per step, and
sampling from noise drawn in advance. It has no environment, no normalization and no storage, and allocates no memory.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks import measuring

WIDTHS, HORIZON_LEN, HORIZON_LEN_QUICK = (128, 512), 128, 4
OURS, BARE = "our explore_vec_env, vectorized environment", "bare actor and sampling"
MOST_OVER_BARE = 1.5
COLUMNS = measuring.columns("contender", "net", "n_envs", per_s="env-steps/s", ratio="our speedup")
ABOUT = (
    "The table shows environment steps per second of PPO's exploration, with standard rules, observations of 393 "
    "numbers and two hidden layers."
)


def bare(width: int, horizon_len: int) -> measuring.Local:
    """Return the actor's layers and the sampling, H times on 12 rows."""
    import torch

    from benchmarks import contenders as who
    from benchmarks.learners import N_ENVS
    from drl_agents.agents.rollout import Layer

    generator = torch.Generator().manual_seed(0)
    made = who.random_layers(width, 0)
    # The agent's own layers use the faster of two products; addmm instead would make the reference time longer.
    layers = [Layer(*layer, N_ENVS, torch.device("cpu"), is_last=layer is made[-1]) for layer in made]
    state, std = torch.randn(N_ENVS, who.STATE_DIM, generator=generator), torch.full((1, who.N_ASSETS), 0.6)
    noise = torch.randn(horizon_len, N_ENVS, who.N_ASSETS, generator=generator).unbind()
    action, env_action = torch.empty_like(noise[0]), torch.empty_like(noise[0])

    def work() -> None:
        for drawn in noise:
            x = state
            for layer in layers:
                x = layer(x)
            torch.addcmul(x, drawn, std, out=action)
            torch.tanh(action, out=env_action)

    return measuring.Local(BARE, N_ENVS, work, horizon_len * N_ENVS)


def contenders(width: int, horizon_len: int, threads: int) -> list[measuring.Local]:
    """Return our agent, the bare actor, and elegantrl's agent over three environments, in this order."""
    from benchmarks import contenders as who
    from benchmarks import learners

    def exploring(name: str, agent: Any, env: Any, n_envs: int) -> measuring.Local:
        return measuring.Local(name, n_envs, lambda: agent.explore_env(env, horizon_len), horizon_len * n_envs)

    n_envs = learners.N_ENVS
    batch = who.batched_env(True, learners.RULES, n_envs)
    timed = [exploring(OURS, learners.our_agent(batch, width, horizon_len, threads), batch, n_envs)]
    timed.append(bare(width, horizon_len))
    for name, env, n in (
        ("explore_vec_env, vectorized environment", who.batched_env(True, learners.RULES, n_envs), n_envs),
        ("explore_vec_env, Python loop of scalar environments", learners.ScalarLoop(n_envs), n_envs),
        ("explore_one_env, scalar environment", who.scalar_env(learners.RULES), 1),
    ):
        timed.append(exploring(f"elegantrl's {name}", learners.stock_agent(env, n, width), env, n))
    return timed


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    horizon_len = HORIZON_LEN_QUICK if args.quick else HORIZON_LEN
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for width in WIDTHS:
        timed = contenders(width, horizon_len, args.threads)
        rates = measuring.interleaved(timed, *measuring.rounds_of(args))
        rows += measuring.rows_against(timed, rates, net=width)
        over_bare = measuring.ratio(rates[1], rates[0])
        what = f"exploration time relative to the bare actor (net {width})"
        checks.append(measuring.check(what, over_bare, most=MOST_OVER_BARE))
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, checks=[] if args.quick else checks)


if __name__ == "__main__":
    sys.exit(measuring.run("rollout", __doc__, measure, learns=False))
