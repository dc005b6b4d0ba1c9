#!/usr/bin/env python3
"""Measure the cost of a checkpoint: its size, its write time, and the share of a run that writes one every 30 s.

A short run writes a checkpoint after each update, and the mean is reported. The disk is that of the temporary folder
(TMPDIR). Training never spends more than 1 % of its time on checkpoints, however long one takes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measuring

COLUMNS = measuring.columns(case="network", n_envs="n_envs", mib="MiB", ms="ms to write")
COLUMNS |= {"thousandths": "per mille of the run", "updates": "write time in updates"}
NETS, N_ENVS, N_UPDATES, N_UPDATES_QUICK = ((64, 64), (256, 256, 256)), (1, 12, 512), 12, 3
ROLLOUT_SAMPLES, MOST_THOUSANDTHS = 4096, 10.0


def one_case(net_dims: tuple[int, ...], n_envs: int, n_updates: int, args: argparse.Namespace) -> dict[str, Any]:
    """Return one row."""
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
    """Measure the section."""
    n_updates = N_UPDATES_QUICK if args.quick else N_UPDATES
    cases = [(NETS[0], 12)] if args.quick else [(net, n_envs) for net in NETS for n_envs in N_ENVS]
    rows = [one_case(*case, n_updates, args) for case in cases]
    about = (
        "The table shows the size of a PPO checkpoint and the mean time to collect, hash, write and sync it, over "
        f"{n_updates - 1} checkpoints. Observations have 393 numbers, rollouts have {ROLLOUT_SAMPLES:,} samples, and "
        "an update runs 4 epochs with batches of 512. The per mille column assumes one checkpoint every 30 s."
    )
    largest = max(row["thousandths"] for row in rows)
    what = "per mille of the run (largest case)"
    checks = [] if args.quick else [measuring.check(what, largest, most=MOST_THOUSANDTHS)]
    return measuring.section(args, about, COLUMNS, rows=rows, checks=checks)


if __name__ == "__main__":
    sys.exit(measuring.run("checkpoint", __doc__, measure, gpu=True))
