#!/usr/bin/env python3
"""Environment steps per second of PPO's exploration, beside the bare cost of its actor and beside elegantrl's.

Twelve environments, standard rules, observations of 393 numbers, networks of two layers of 128 or 512 units. "Bare" is
what no exploration can do without: the actor's layers on 12 rows at every step, into memory that is there, and the
sampling from noise that was drawn before; no environment, no normalising, nothing stored.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from typing import Any

from benchmarks import measuring

WIDTHS, HORIZON_LEN, HORIZON_LEN_QUICK = (128, 512), 128, 4
OURS, BARE = "ours, explore_vec_env over the batched environment", "bare actor and sampling"
MOST_OVER_BARE = 1.5
COLUMNS = {
    "contender": "contender", "net": "net", "n_envs": "n_envs", "per_s": "env-steps/s", "ratio": "ours, times this",
}  # fmt: skip
ABOUT = (
    "Environment steps per second of exploring with PPO, standard rules, observations of 393 numbers, two hidden "
    "layers."
)


def bare(width: int, horizon_len: int) -> measuring.Local:
    """The actor's layers and the sampling, H times on 12 rows."""
    import torch

    from benchmarks import contenders as who
    from benchmarks.learners import N_ENVS
    from drl_agents.agents.rollout import Layer

    dims = (who.STATE_DIM, width, width, who.N_ASSETS)
    generator = torch.Generator().manual_seed(0)
    made = [(torch.randn(b, a, generator=generator) / a**0.5, torch.zeros(b)) for a, b in pairwise(dims)]
    # The agent's own layers, which take the faster of two products: addmm in their place would make the yardstick long.
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
    """Ours first, then the bare actor, then elegantrl's agent over three environments."""
    from benchmarks import contenders as who
    from benchmarks import learners

    n_envs = learners.N_ENVS
    batch, same_batch = (who.batched_env(True, learners.RULES, n_envs) for _ in range(2))
    loop, single = learners.ScalarLoop(n_envs), who.scalar_env(learners.RULES)
    agents = [
        (OURS, learners.our_agent(batch, width, horizon_len, threads), batch, n_envs),
        ("elegantrl's explore_vec_env over the batched environment", learners.stock_agent(same_batch, n_envs, width),
         same_batch, n_envs),
        ("elegantrl's explore_vec_env over a Python loop of scalar ones", learners.stock_agent(loop, n_envs, width),
         loop, n_envs),
        ("elegantrl's explore_one_env over a scalar one", learners.stock_agent(single, 1, width), single, 1),
    ]  # fmt: skip
    timed = [
        measuring.Local(name, n, lambda agent=agent, env=env: agent.explore_env(env, horizon_len), horizon_len * n)
        for name, agent, env, n in agents
    ]
    return [timed[0], bare(width, horizon_len), *timed[1:]]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section."""
    horizon_len = HORIZON_LEN_QUICK if args.quick else HORIZON_LEN
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for width in WIDTHS:
        timed = contenders(width, horizon_len, args.threads)
        rates = measuring.interleaved(timed, *measuring.rounds_of(args))
        own = measuring.rows_of(timed, rates, OURS, {})
        for row, rate in zip(own, rates, strict=True):
            rows.append(row | {"net": width, "ratio": measuring.ratio(rates[0], rate)})
        over_bare = measuring.ratio(rates[1], rates[0])
        checks.append(measuring.check(f"time of exploring over the bare actor's, net {width}", over_bare,
                                      most=MOST_OVER_BARE))  # fmt: skip
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, checks=[] if args.quick else checks)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = measuring.arguments(__doc__, gpu=False).parse_args(argv)
    measuring.with_threads(args)
    import torch

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)  # as elegantrl's training loop does
    measuring.finish(args, "rollout", measure(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
