#!/usr/bin/env python3
"""What a checkpoint costs: its size, the time to write one, and the part of a run that writes one every 30 s.

A run of a few updates writes one after each of them, and the mean is taken. The disk is the one with the temporary
folder (TMPDIR). A run never spends more than 1 % of its time on them, whatever one costs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measuring

COLUMNS = measuring.columns(case="network", n_envs="n_envs", mib="MiB", ms="ms to write")
COLUMNS |= {"thousandths": "thousandths of a run", "updates": "updates that take as long"}
NETS, N_ENVS, N_UPDATES, N_UPDATES_QUICK = ((64, 64), (256, 256, 256)), (1, 12, 512), 12, 3
ROLLOUT_SAMPLES, MOST_THOUSANDTHS = 4096, 10.0


def one_case(net_dims: tuple[int, ...], n_envs: int, n_updates: int, args: argparse.Namespace) -> dict[str, Any]:
    """A row."""
    from benchmarks import contenders as who
    from benchmarks import learners
    from train.checkpoint import CHECKPOINT, EVERY_S, Checkpoints
    from train.config import TrainConfig
    from train.run import train_policy

    sizes = {"n_envs": n_envs, "net_dims": net_dims, "horizon_len": ROLLOUT_SAMPLES // n_envs, "batch_size": 512}
    budget = {"total_env_steps": n_updates * ROLLOUT_SAMPLES, "eval_every_updates": n_updates}
    settings = TrainConfig(gpu_id=args.gpu, cpu_threads=args.threads, **sizes, **budget)
    with tempfile.TemporaryDirectory() as folder:
        where = Checkpoints(Path(folder), every_s=0.0)
        result = train_policy(settings, who.config(), who.RULES[learners.RULES], folder, checkpoints=where)
        mib = (Path(folder) / CHECKPOINT).stat().st_size / 2**20
    write_s = result.checkpoint_s / result.n_checkpoints
    update_s = (result.history[-1].explore_s + result.history[-1].update_s) / n_updates
    row = {"case": "-".join(map(str, net_dims)), "n_envs": n_envs, "mib": mib, "ms": 1e3 * write_s}
    return row | {"thousandths": 1e3 * write_s / EVERY_S, "updates": write_s / update_s}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section."""
    n_updates = N_UPDATES_QUICK if args.quick else N_UPDATES
    cases = [(NETS[0], 12)] if args.quick else [(net, n_envs) for net in NETS for n_envs in N_ENVS]
    rows = [one_case(*case, n_updates, args) for case in cases]
    about = (
        f"A checkpoint of a PPO run: size, and mean time to collect, hash, write and sync it, over {n_updates - 1} of "
        f"them, for observations of 393 numbers and rollouts of {ROLLOUT_SAMPLES} samples (4 epochs of 512 a step). "
        "The last but one column is of a run which writes one every 30 s."
    )
    largest = max(row["thousandths"] for row in rows)
    checks = [] if args.quick else [measuring.check("thousandths of a run, largest", largest, most=MOST_THOUSANDTHS)]
    return measuring.section(args, about, COLUMNS, rows=rows, checks=checks)


if __name__ == "__main__":
    sys.exit(measuring.run("checkpoint", __doc__, measure, gpu=True))
