#!/usr/bin/env python3
"""Environment steps per second and memory, for each class and several batch sizes.

Every row runs in a process of its own, so that its memory is its own. The market is the sample market: seven coins,
the features of the repository, lookback 4, rule set "standard". Actions are drawn before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402

from environment_Alpaca import CryptoEnvAlpaca  # noqa: E402
from environment_Alpaca_vectorized import (  # noqa: E402
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
)
from market.names import DEFAULT_TICKERS  # noqa: E402
from market.sample import synthetic_dataset  # noqa: E402

CLASSES = {
    "scalar": CryptoEnvAlpaca,
    "vectorized": VectorizedCryptoEnvAlpaca,
    "optimized": VectorizedCryptoEnvAlpacaOptimized,
}
ENV_PARAMS = {"rules": "standard", "lookback": 4}
N_BARS, N_BARS_QUICK = 70_000, 2_000
N_ENVS, N_ENVS_QUICK = (1, 12, 64, 512, 4096), (1, 12)
REPEATS = 5


def make_env(kind: str, n_envs: int, gpu: int, n_bars: int) -> Any:
    """One environment object of `kind` on the sample market."""
    config = synthetic_dataset("5m", n_bars, DEFAULT_TICKERS, 0).env_config()
    if kind == "scalar":
        return CryptoEnvAlpaca(config, ENV_PARAMS)
    return CLASSES[kind](config, ENV_PARAMS, n_envs=n_envs, gpu_id=gpu, as_numpy=False)


def synchronize(gpu: int) -> None:
    """Wait for the device; a GPU returns before it has worked."""
    if gpu >= 0:
        torch.cuda.synchronize(gpu)


def steps_per_s(env: Any, n_envs: int, gpu: int, seconds: float) -> float:
    """Median over repeats of environment steps per second."""
    actions = draw_actions(env, n_envs)
    env.reset()
    advance(env, actions)  # warm-up: compiles the native loop, fills caches
    rates = []
    for _ in range(REPEATS):
        synchronize(gpu)
        started, n_steps = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / REPEATS:
            advance(env, actions)
            n_steps += len(actions)
            synchronize(gpu)
        rates.append(n_steps * n_envs / (time.perf_counter() - started))
    return float(np.median(rates))


def draw_actions(env: Any, n_envs: int) -> Any:
    """(16, A) or (16, N, A) in [-1, 1], on the environment's device."""
    is_scalar = isinstance(env, CryptoEnvAlpaca)
    shape = (16, env.action_dim) if is_scalar else (16, n_envs, env.action_dim)
    actions = np.random.default_rng(0).random(shape, dtype=np.float32) * 2.0 - 1.0
    return actions if is_scalar else torch.as_tensor(actions, device=env.device)


def advance(env: Any, actions: Any) -> None:
    """One step for each row of actions; only the scalar class has to be reset by its caller."""
    for action in actions:
        if env.step(action)[2] is True:
            env.reset()


def memory_bytes(gpu: int) -> int:
    """Of this process, or of the tensors on the GPU."""
    return torch.cuda.memory_allocated(gpu) if gpu >= 0 else psutil.Process().memory_info().rss


def buffer_bytes(env: Any) -> int:
    """Bytes of the tensors that grow with the number of environments: books and buffers, without the shared market.

    Counted, because a process grows by less: the allocator hands out again what building the market left free.
    """
    kept = [value for name, value in vars(env).items() if name not in ("market", "price_array")]
    storages = [tensor.untyped_storage() for value in kept for tensor in tensors_in(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Tensors in a value, in the values of a dict, or in the fields of a dataclass."""
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else vars(value).values() if is_dataclass(value) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def measure(kind: str, n_envs: int, gpu: int, quick: bool) -> dict[str, Any]:
    """One row of the result."""
    n_bars, seconds = (N_BARS_QUICK, 0.2) if quick else (N_BARS, 5.0)
    env = make_env(kind, n_envs, gpu, n_bars)
    rate = steps_per_s(env, n_envs, gpu, seconds)
    return {
        "class": kind,
        "n_envs": n_envs,
        "state_dim": env.state_dim,
        "env_steps_per_s": round(rate),
        "process_bytes": memory_bytes(gpu),
        "buffer_bytes": buffer_bytes(env),
    }


def measure_apart(kind: str, n_envs: int, args: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a fresh interpreter."""
    command = [sys.executable, __file__, "--row", kind, str(n_envs), "--gpu", str(args.gpu)]
    done = subprocess.run(command + ["--quick"] * args.quick, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def machine(gpu: int) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.processor())  # fmt: skip
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(gpu) if gpu >= 0 else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", type=int, default=-1, help="number of the GPU; -1 = CPU (default)")
    parser.add_argument("--n-envs", type=int, nargs="+", metavar="N", help=f"batch sizes (default: {N_ENVS})")
    parser.add_argument("--quick", action="store_true", help="only check that it runs, on a small market")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON, for the README's table")
    parser.add_argument("--row", nargs=2, metavar=("CLASS", "N"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    args = parse_arguments(argv)
    if args.row:
        print(json.dumps(measure(args.row[0], int(args.row[1]), args.gpu, args.quick)))
        return 0
    sizes = args.n_envs or (N_ENVS_QUICK if args.quick else N_ENVS)
    rows = []
    for kind, n in [("scalar", 1), *((kind, n) for kind in ("vectorized", "optimized") for n in sizes)]:
        rows.append(measure_apart(kind, n, args))
        print(json.dumps(rows[-1]), flush=True)
    if args.out:
        result = {
            "benchmark": "step",
            "date": datetime.now(UTC).date().isoformat(),
            "command": f"python benchmarks/bench_step.py --gpu {args.gpu}",
            "machine": machine(args.gpu),
            "rows": rows,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
