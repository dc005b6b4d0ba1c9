#!/usr/bin/env python3
"""Measure PPO's update per gradient step: ours, a plain one and elegantrl's, relative to the machine's matrix products.

The rollout has 12 environments with 512 steps, and the update runs 4 epochs, at the sizes of the search space. Our
agent uses the gradient implementation that it selected on this machine. The rows below it force one implementation
each. The plain update (benchmarks/plain_ppo.py) uses torch.autograd and fused Adam with the same preprocessing.
elegantrl's agent takes the same number of gradient steps. The FLOPs are those of the matrix products in the forward and
backward passes of actor and critic, without the input gradient of the first layer. They are divided by the whole time
of update_net, including the advantages. The share is relative to one product of 2048x512x512 on the same threads, timed
in the same rounds, with torch.mm or oneDNN, whichever is faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from benchmarks import measuring

HORIZON_LEN, N_EPOCHS = 512, 4
SIZES = [(width, rows) for width in (32, 64, 128, 256) for rows in (128, 512, 1024, 2048)]  # of the search space
SIZES += [(512, 2048), (1024, 2048)]
SEARCHED = 256  # largest width in the search space
OURS, PLAIN, STOCK = "ours", "plain", "elegantrl"
LEAST_SHARE, LEAST_SHARE_WIDTH, LEAST_RATIO, LEAST_OF_BEST = 0.8, 512, 1.2, 0.95
COLUMNS = measuring.columns("contender", "net", batch="batch size", ms="ms per gradient step", per_s="samples/s")
COLUMNS |= {"ratio": "our speedup", "share": "share of the product's rate", "chosen": "selected implementation"}
ABOUT = (
    f"The table shows the speed of PPO's update_net, which runs {N_EPOCHS} epochs over a rollout of {HORIZON_LEN} "
    "steps in 12 environments, with observations of 393 numbers and two hidden layers. Each sample is counted once per "
    "epoch. The share is relative to the faster of two matrix products on the same threads. Rows such as "
    '"ours, blas" force one gradient implementation.'
)


def contenders(width: int, batch_size: int, quick: bool, threads: int) -> list[measuring.Local]:
    """Return our agent, our agent with each forced implementation, the plain PPO and elegantrl's PPO.

    All use the same number of samples for gradient steps.
    """
    import torch

    from benchmarks import contenders as who
    from benchmarks import learners
    from benchmarks.plain_ppo import PlainPPO
    from drl_agents.agents.mlp_gradient import has_onednn

    batch_size, horizon_len = (48, 8) if quick else (batch_size, HORIZON_LEN)
    n_samples = horizon_len * learners.N_ENVS * N_EPOCHS
    env = who.batched_env(True, learners.RULES, learners.N_ENVS)

    def ours(way: str) -> Any:
        agent = learners.our_agent(env, width, horizon_len, threads, batch_size, N_EPOCHS)
        agent.take_way(way)
        return agent

    ways = ("blas", *["onednn"] * has_onednn(), "autograd")
    agents = {OURS: ours("")} | {f"{OURS}, {way}": ours(way) for way in ways}
    agents[PLAIN] = PlainPPO(env, width, batch_size, N_EPOCHS, learners.LEARNING_RATE)
    # elegantrl takes horizon_len * repeat_times / batch_size gradient steps for any number of environments.
    agents[STOCK] = learners.stock_agent(env, learners.N_ENVS, width, batch_size, N_EPOCHS * learners.N_ENVS)
    with torch.no_grad():
        items = {name: agent.explore_env(env, horizon_len) for name, agent in agents.items()}
    agents[OURS].update_net(items[OURS])
    timed = [
        measuring.Local(name, None, lambda agent=agent, own=items[name]: agent.update_net(own), n_samples)
        for name, agent in agents.items()
    ]
    timed[0].row["chosen"] = agents[OURS].way
    return timed


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    from benchmarks import learners

    products = measuring.matmul_rates(*((64, 64, 64) if args.quick else (2048, 512, 512)))
    rows: list[dict[str, Any]] = []
    of_best: list[float] = []  # our speed relative to the fastest forced implementation
    peaks: dict[str, list[float]] = {product.name: [] for product in products}
    for width, batch_size in SIZES[: 1 if args.quick else None]:
        timed = contenders(width, batch_size, args.quick, args.threads)
        rates = measuring.interleaved([*timed, *products], *measuring.rounds_of(args))
        rates, made = rates[: len(timed)], rates[len(timed) :]
        for product, own in zip(products, made, strict=True):
            peaks[product.name] += own
        allowed = [max(of_round) / learners.gemm_flops(width) for of_round in zip(*made, strict=True)]
        forced = [own for item, own in zip(timed, rates, strict=True) if item.name.startswith(f"{OURS}, ")]
        of_best.append(measuring.ratio(rates[0], max(forced, key=statistics.median)))
        for row, own in zip(measuring.rows_against(timed, rates, net=width, batch=batch_size), rates, strict=True):
            rows.append(row | {"ms": 1e3 * batch_size / row["per_s"], "share": measuring.ratio(own, allowed)})
    medians = {name: statistics.median(own) for name, own in peaks.items()}
    rates_text = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in medians.items())
    note = f"Rates of a 2048 x 512 x 512 product: {rates_text}."
    targets = [] if args.quick else checks(rows, min(of_best))
    products_per_s = {name: round(rate) for name, rate in medians.items()}
    return measuring.section(
        args, ABOUT, COLUMNS, rows=rows, notes=[note], checks=targets, matmul_flops_per_s=products_per_s
    )


def checks(rows: list[dict[str, Any]], of_best: float) -> list[dict[str, Any]]:
    """Return the targets."""
    shares = [row["share"] for row in rows if row["contender"] == OURS and row["net"] == LEAST_SHARE_WIDTH]
    what = f"share of the product's rate (net {LEAST_SHARE_WIDTH})"
    slowest = "speed relative to the fastest implementation (slowest size)"
    found = [measuring.check(slowest, of_best, least=LEAST_OF_BEST)]
    found.append(measuring.check(what, min(shares), least=LEAST_SHARE))
    for row in rows:
        if row["contender"] == PLAIN and row["net"] <= SEARCHED:
            what = f"speedup over plain PPO (net {row['net']}, batch size {row['batch']:,})"
            found.append(measuring.check(what, row["ratio"], least=LEAST_RATIO))
    return found


if __name__ == "__main__":
    sys.exit(measuring.run("update", __doc__, measure))
