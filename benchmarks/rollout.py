#!/usr/bin/env python3
"""Exploring and updating rates of PPO by number of environments, width of the network and torch threads.

The market is the sample market: seven coins, the features of the repository, lookback 4, rule set "standard". A
rollout is 2048 samples whatever the number of environments; an update is 4 passes in minibatches of 512. The fastest
of the repeats counts: on a shared machine the others measure the neighbours.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

import torch  # noqa: E402

from market.names import DEFAULT_TICKERS  # noqa: E402
from market.sample import synthetic_dataset  # noqa: E402
from train.config import TrainConfig  # noqa: E402
from train.device import prepare_device  # noqa: E402
from train.env_factory import env_class_for, make_env  # noqa: E402
from train.run import build_agent  # noqa: E402

ENV_PARAMS = {"rules": "standard", "lookback": 4}
N_BARS, N_BARS_QUICK = 70_000, 2_000
ROLLOUT_SAMPLES, N_EPOCHS, BATCH_SIZE = 2048, 4, 512
N_ENVS, WIDTHS = (1, 12, 64, 512), (128, 512)


def fastest_s(work: Callable[[], Any], repeats: int, gpu: int) -> float:
    """Seconds of the fastest run, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if gpu >= 0:
            torch.cuda.synchronize(gpu)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def measure(config: dict[str, Any], n_envs: int, width: int, threads: int, gpu: int, repeats: int) -> dict[str, Any]:
    """One row of the result. Rates count samples of environments; an update's are counted once an epoch."""
    prepare_device(gpu, threads)
    settings = TrainConfig(
        n_envs=n_envs, horizon_len=max(1, ROLLOUT_SAMPLES // n_envs), net_dims=(width, width), n_epochs=N_EPOCHS,
        batch_size=BATCH_SIZE, gpu_id=gpu, cpu_threads=threads, episode_bars=512,
    )  # fmt: skip
    env = make_env(env_class_for(n_envs), config, ENV_PARAMS, n_envs, gpu_id=gpu, seed=0, start="random")
    agent = build_agent(settings, env)
    items = agent.explore_env(env, settings.horizon_len)
    samples = settings.horizon_len * n_envs
    explore_s = fastest_s(lambda: agent.explore_env(env, settings.horizon_len), repeats, gpu)
    update_s = fastest_s(lambda: agent.update_net(items), repeats, gpu)
    return {
        "n_envs": n_envs, "net_width": width, "threads": threads, "state_dim": env.state_dim,
        "explore_steps_per_s": round(samples / explore_s),
        "update_samples_per_s": round(samples * N_EPOCHS / update_s),
        "env_steps_per_s": round(samples / (explore_s + update_s)),
    }  # fmt: skip


def cpu_name() -> str:
    """As the kernel calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=int, default=-1, help="number of the GPU; -1 = CPU (default)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads (default 1 2)")
    parser.add_argument("--repeats", type=int, default=7, help="the fastest counts (default 7)")
    parser.add_argument("--quick", action="store_true", help="only check that it runs, on a small market")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    args = parser.parse_args(argv)
    config = synthetic_dataset("5m", N_BARS_QUICK if args.quick else N_BARS, DEFAULT_TICKERS, 0).env_config()
    cases = [(n, w, t) for t in args.threads for w in WIDTHS for n in N_ENVS]
    rows = []
    for n_envs, width, threads in cases[:1] if args.quick else cases:
        rows.append(measure(config, n_envs, width, threads, args.gpu, 1 if args.quick else args.repeats))
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        machine = {"cpu": cpu_name(), "python": platform.python_version(), "torch": torch.__version__}
        machine["gpu"] = torch.cuda.get_device_name(args.gpu) if args.gpu >= 0 else None
        date = datetime.now(UTC).date().isoformat()
        result = {"benchmark": "rollout", "date": date, "machine": machine, "rows": rows}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
