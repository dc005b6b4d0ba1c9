#!/usr/bin/env python3
"""Cost of PPO's update by gradient step: ours, a plain one and elegantrl's, beside the machine's matrix products.

A rollout of 12 environments times 512 steps and 4 epochs, at the sizes that the search uses. Ours makes its gradient
steps in the way that its timing on this machine chose; the rows below it are forced to one way each. The plain update
(benchmarks/plain_ppo.py) is torch.autograd and fused Adam with the same preparations; elegantrl's is given as many
gradient steps. What counts are the FLOPs of the matrix products of forward and backward of actor and critic, without
the input's gradient at the first layer, over the whole time of update_net, advantages included; the share is of one
product of 2048x512x512 on the same threads, timed in the same rounds: torch.mm's or oneDNN's, whichever made more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from benchmarks import measuring

HORIZON_LEN, N_EPOCHS = 512, 4
SIZES = [(width, rows) for width in (32, 64, 128, 256) for rows in (128, 512, 1024, 2048)]  # of the search
SIZES += [(512, 2048), (1024, 2048)]
SEARCHED = 256  # widths up to this
OURS, PLAIN, STOCK = "ours", "plain", "elegantrl"
LEAST_SHARE, LEAST_SHARE_WIDTH, LEAST_RATIO, LEAST_OF_BEST = 0.8, 512, 1.2, 0.95
COLUMNS = measuring.columns("contender", "net", batch="samples a step", ms="ms per gradient step", per_s="samples/s")
COLUMNS |= {"ratio": "ours, times this", "share": "share of the faster product's rate", "chosen": "chosen at the start"}
ABOUT = (
    f"update_net of PPO, {N_EPOCHS} epochs of a rollout of 12 environments times {HORIZON_LEN}, observations of 393 "
    "numbers, two hidden layers. Samples count once an epoch. Rows such as "
    '"ours, blas" are forced to one way of a gradient step.'
)


def contenders(width: int, batch_size: int, quick: bool, threads: int) -> list[measuring.Local]:
    """Ours, ours by every way, the plain one and elegantrl's, with as many samples through gradient steps each."""
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
    # elegantrl makes horizon_len * repeat_times / batch_size gradient steps, whatever the number of environments.
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
    """The section."""
    from benchmarks import learners

    products = measuring.matmul_rates(*((64, 64, 64) if args.quick else (2048, 512, 512)))
    rows: list[dict[str, Any]] = []
    of_best: list[float] = []  # ours, times the fastest of the forced ways
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
    note = "GFLOP/s of 2048 x 512 x 512: " + ", ".join(f"{n} {r / 1e9:,.0f}" for n, r in medians.items()) + "."
    targets = [] if args.quick else checks(rows, min(of_best))
    products_per_s = {name: round(rate) for name, rate in medians.items()}
    return measuring.section(
        args, ABOUT, COLUMNS, rows=rows, notes=[note], checks=targets, matmul_flops_per_s=products_per_s
    )


def checks(rows: list[dict[str, Any]], of_best: float) -> list[dict[str, Any]]:
    """What is aimed at."""
    shares = [row["share"] for row in rows if row["contender"] == OURS and row["net"] == LEAST_SHARE_WIDTH]
    what = f"share of the faster product's rate, net {LEAST_SHARE_WIDTH}"
    found = [measuring.check("ours, times the fastest way, least of all sizes", of_best, least=LEAST_OF_BEST)]
    found.append(measuring.check(what, min(shares), least=LEAST_SHARE))
    for row in rows:
        if row["contender"] == PLAIN and row["net"] <= SEARCHED:
            what = f"times the plain one, net {row['net']}, {row['batch']} samples"
            found.append(measuring.check(what, row["ratio"], least=LEAST_RATIO))
    return found


if __name__ == "__main__":
    sys.exit(measuring.run("update", __doc__, measure))
