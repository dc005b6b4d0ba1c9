#!/usr/bin/env python3
"""Environment steps per second of the batched class on a GPU, beside the bandwidth its memory traffic allows.

Needs torch, triton and numpy. The market is random: seven coins, 77 features, lookback 5. Before the clock starts the
class is compared with the plain torch step, and actions are drawn. A step's traffic is counted, not measured:
FLOOR_BYTES is what it must read and write per environment, and a large copy on the device says how fast that goes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from environment_Alpaca_vectorized import (
    VectorizedCryptoEnvAlpaca,
    VectorizedCryptoEnvAlpacaOptimized,
)

N_ASSETS, N_FEATURES, LOOKBACK = 7, 77, 5
N_BARS, N_BARS_QUICK = 30_000, 2_000
N_ENVS, N_ENVS_QUICK = (12, 4096, 65_536), (12, 4096)
N_STEPS, N_STEPS_QUICK, REPEATS = 200, 20, 5
FLOOR_BYTES = 3_329  # of one environment in one step: observation read and written, books, reports
NORMS = {"norm_cash": 2.0**-12, "norm_stocks": 2.0**-8, "norm_tech": 1.0, "norm_reward": 2.0**-10, "norm_action": 4.0}
ENV_PARAMS = {
    "cappuccino": {"rules": "cappuccino", "lookback": LOOKBACK, **NORMS},
    "standard": {"rules": "standard", "lookback": LOOKBACK},
}


def random_config(n_bars: int) -> dict[str, np.ndarray]:
    """Log-normal closes of seven coins and features of unit size."""
    rng = np.random.default_rng(0)
    first_price = np.array([95.0, 34.0, 43_000.0, 14.5, 2_300.0, 68.0, 6.4])
    price = first_price * np.exp(np.cumsum(rng.normal(0.0, 0.002, (n_bars, N_ASSETS)), axis=0))
    return {"price_array": price, "tech_array": rng.normal(size=(n_bars, N_FEATURES)).astype(np.float32)}


def draw_actions(n_steps: int, n_envs: int) -> torch.Tensor:
    """(steps, N, A) float32 in [-1, 1] on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    return torch.rand((n_steps, n_envs, N_ASSETS), generator=generator, device="cuda") * 2.0 - 1.0


def check_parity(config: dict[str, np.ndarray], rules: str) -> None:
    """Compare 100 steps with the plain step on the GPU; AssertionError where they differ."""
    options = {"start": "random", "episode_bars": 30, "device": "cuda"}
    plain = VectorizedCryptoEnvAlpaca(config, ENV_PARAMS[rules], 37, **options)
    fast = VectorizedCryptoEnvAlpacaOptimized(config, ENV_PARAMS[rules], 37, **options)
    assert fast._kernel is not None, "triton is missing: only the plain step would be measured"
    assert torch.equal(plain.reset(), fast.reset())
    for action in draw_actions(100, 37):
        want, got = plain.step(action), fast.step(action)
        for expected, received in zip(want[:2], got[:2], strict=True):
            torch.testing.assert_close(received, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(want[2], got[2])
        torch.testing.assert_close(fast.cash, plain.cash, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(fast.stocks, plain.stocks, rtol=1e-9, atol=1e-9)


def seconds_of(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of a callable that queues work on the GPU."""
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def copy_bytes_per_s() -> float:
    """Bandwidth of a copy on the device, bytes read and written."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() * 10 / seconds_of(lambda: [target.copy_(source) for _ in range(10)])


def env_steps_per_s(config: dict[str, np.ndarray], rules: str, n_envs: int, n_steps: int) -> float:
    """Median rate over repeats of n_steps steps, after as many to warm up."""
    env = VectorizedCryptoEnvAlpacaOptimized(
        config, ENV_PARAMS[rules], n_envs, start="random", episode_bars=1000, device="cuda", as_numpy=False
    )
    actions = draw_actions(16, n_envs)
    env.reset()

    def advance() -> None:
        for t in range(n_steps):
            env.step(actions[t % 16])

    advance()
    return n_steps * n_envs / seconds_of(advance)


def main(argv: list[str] | None = None) -> int:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only check that it runs; without a GPU, say so")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("no GPU here")
        return 0 if args.quick else 1
    config = random_config(N_BARS_QUICK if args.quick else N_BARS)
    for rules in ENV_PARAMS:
        check_parity(config, rules)
    bandwidth = copy_bytes_per_s()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copies {bandwidth / 1e9:,.0f} GB/s")
    print(f"{'rules':<12} {'n_envs':>7} {'env steps/s':>15} {'us a step':>10} {'share of the floor':>19}")
    for rules in ENV_PARAMS:
        for n_envs in N_ENVS_QUICK if args.quick else N_ENVS:
            rate = env_steps_per_s(config, rules, n_envs, N_STEPS_QUICK if args.quick else N_STEPS)
            share = rate * FLOOR_BYTES / bandwidth
            print(f"{rules:<12} {n_envs:>7} {rate:>15,.0f} {1e6 * n_envs / rate:>10.1f} {share:>18.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
