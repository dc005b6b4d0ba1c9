#!/usr/bin/env python3
"""Cost of PPO's update by gradient step, beside elegantrl's and beside the machine's matrix products.

A rollout of 12 environments times 512 steps, 4 epochs, 2048 samples a gradient step: 12 gradient steps an update.
elegantrl's update is given as many. What counts are the FLOPs of the matrix products of forward and backward of actor
and critic, without the input's gradient at the first layer, over the whole time of update_net, advantages included;
the share is of one product of 2048x512x512 on the same threads, timed in the same rounds: torch.mm's or oneDNN's,
whichever made more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from benchmarks import measuring  # noqa: E402 - the repository is not installed

WIDTHS, BATCH_SIZE, HORIZON_LEN, N_EPOCHS = (128, 512, 1024), 2048, 512, 4
LEAST_SHARE, LEAST_SHARE_WIDTH = 0.8, 512
COLUMNS = {
    "contender": "contender", "net": "net", "ms": "ms per gradient step", "per_s": "samples/s",
    "ratio": "ours, times this", "share": "share of the faster product's rate",
}  # fmt: skip
ABOUT = (
    f"update_net of PPO at {BATCH_SIZE} samples a gradient step, {N_EPOCHS} epochs of a rollout of 12 environments, "
    "observations of 393 numbers, two hidden layers. Samples count once an epoch."
)


def contenders(width: int, quick: bool, threads: int) -> list[measuring.Local]:
    """Ours and elegantrl's, with the same number of samples through gradient steps."""
    from benchmarks import contenders as who
    from benchmarks import learners

    batch_size, horizon_len = (48, 8) if quick else (BATCH_SIZE, HORIZON_LEN)
    n_samples = horizon_len * learners.N_ENVS * N_EPOCHS
    env = who.batched_env(True, learners.RULES, learners.N_ENVS)
    ours = learners.our_agent(env, width, horizon_len, threads, batch_size, N_EPOCHS)
    # elegantrl makes horizon_len * repeat_times / batch_size gradient steps, whatever the number of environments.
    stock = learners.stock_agent(env, learners.N_ENVS, width, batch_size, N_EPOCHS * learners.N_ENVS)
    with learners.gradients(False):
        our_items, stock_items = ours.explore_env(env, horizon_len), stock.explore_env(env, horizon_len)
    return [
        measuring.Local("ours", None, lambda: ours.update_net(our_items), n_samples),
        measuring.Local("elegantrl", None, lambda: stock.update_net(stock_items), n_samples),
    ]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section."""
    from benchmarks import learners

    products = measuring.matmul_rates(*((64, 64, 64) if args.quick else (2048, 512, 512)))
    rows: list[dict[str, Any]] = []
    peaks: dict[str, list[float]] = {product.name: [] for product in products}
    for width in WIDTHS[: 1 if args.quick else None]:
        timed = contenders(width, args.quick, args.threads)
        rates = measuring.interleaved([*timed, *products], *measuring.rounds_of(args))
        rates, made = rates[: len(timed)], rates[len(timed) :]
        for product, own in zip(products, made, strict=True):
            peaks[product.name] += own
        allowed = [max(of_round) / learners.gemm_flops(width) for of_round in zip(*made, strict=True)]
        for row, own in zip(measuring.rows_of(timed, rates, "ours", {}), rates, strict=True):
            row |= {"net": width, "ms": 1e3 * BATCH_SIZE / row["per_s"]}
            rows.append(row | {"ratio": measuring.ratio(rates[0], own), "share": measuring.ratio(own, allowed)})
    shares = [row["share"] for row in rows if row["contender"] == "ours" and row["net"] == LEAST_SHARE_WIDTH]
    target = measuring.check(f"share of the faster product's rate, net {LEAST_SHARE_WIDTH}", min(shares, default=None),
                             least=LEAST_SHARE)  # fmt: skip
    medians = {name: statistics.median(own) for name, own in peaks.items()}
    note = "GFLOP/s of 2048 x 512 x 512: " + ", ".join(f"{n} {r / 1e9:,.0f}" for n, r in medians.items()) + "."
    return measuring.section(
        args, ABOUT, COLUMNS, rows=rows, notes=[note], checks=[] if args.quick else [target],
        matmul_flops_per_s={name: round(rate) for name, rate in medians.items()},
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = measuring.arguments(__doc__, gpu=False).parse_args(argv)
    measuring.with_threads(args)
    import torch

    torch.set_num_threads(args.threads)
    measuring.finish(args, "update", measure(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
