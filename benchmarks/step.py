#!/usr/bin/env python3
"""Environment steps per second: our environments beside other people's, and beside what the memory allows.

    python benchmarks/step.py              # the table: every contender at 12 and 4096 environments
    python benchmarks/step.py --scale      # cost of a step and memory by number of environments, with a picture
    python benchmarks/step.py --startup    # seconds from starting Python to the first step
    python benchmarks/step.py --gpu 0      # the fast class alone, on a GPU

The market is benchmarks/contenders.py's: 7 assets, 77 feature columns, lookback 5, so an observation has 393 numbers;
30 000 bars. Actions are drawn beforehand. Ratios are to elegantrl 0.3.6's StockTradingVmapEnv, whose observation is as
wide. The floor: 3,329 bytes moved per environment step (an observation of 393 float32 read and written, and 185 bytes
beside it) at the bandwidth of torch's copy_ of 256 MiB of float32 on the same threads, bytes read and bytes written
both counted, timed in the same rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import measuring

FEW, MANY, GPU_N_ENVS = 12, 4096, (12, 4096, 65_536)
BYTES_PER_STEP = 3_329
COLUMNS = measuring.columns("contender", "n_envs", per_s="env-steps/s", ratio="times the peer")
COLUMNS["share"] = "share of the floor"
MODES = (
    ("--scale", {"action": "store_true", "help": "cost of a step and memory by number of environments"}),
    ("--startup", {"action": "store_true", "help": "seconds from starting Python to the first step"}),
)
ABOUT = (
    "Environment steps per second. 7 assets, 77 feature columns, lookback 5 (393 numbers an observation), 30 000 bars, "
    "random actions drawn beforehand."
)
LEAST_RATIO_FEW, LEAST_RATIO_MANY, LEAST_SHARE = 400.0, 18.0, 0.6


def cpu_contenders(quick: bool) -> tuple[list[Any], list[dict[str, Any]]]:
    """Everybody, and the rows of those who are not installed."""
    from benchmarks import contenders as who

    rules = ("standard",) if quick else ("cappuccino", "standard")
    many = 64 if quick else MANY
    asynchronous = [who.gymnasium_vector("Async", rule, FEW) for rule in rules]  # first: it forks
    ours_few = [who.batched(fast, rule, FEW) for rule in rules for fast in (True, False)]
    scalar = [who.scalar_loop(rule, n) for rule in rules for n in (1, FEW)]
    synchronous = [who.gymnasium_vector("Sync", rule, FEW) for rule in rules]
    ours_many = [who.batched(True, rule, many, start) for rule in rules for start in ("random", "first")]
    ours_many += [who.batched(False, rule, many) for rule in rules]
    few = [who.elegantrl_vmap(FEW), who.empty_step(FEW), *ours_few, *scalar, *synchronous, *asynchronous]
    all_ = [*few, who.elegantrl_vmap(many), *ours_many]
    if not who.is_installed("gym_trading_env"):
        return all_, [measuring.missing_row(who.TRADING_ENV, "gym-trading-env", 1)]
    return [*all_, who.gym_trading_env()], []


def gpu_contenders(gpu: int, quick: bool) -> list[Any]:
    """The fast class; needs nothing but NumPy, torch and this repository."""
    from benchmarks import contenders as who

    sizes = GPU_N_ENVS[:1] if quick else GPU_N_ENVS
    cases = [(n, rule, start) for n in sizes for rule in who.RULES for start in ("random", "first")]
    return [who.batched(True, rule, n, start, gpu) for n, rule, start in cases if n > FEW or start == "random"]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section "step"."""
    from benchmarks import contenders as who

    on_cpu = args.gpu < 0
    contenders, missing = cpu_contenders(args.quick) if on_cpu else (gpu_contenders(args.gpu, args.quick), [])
    bandwidth = measuring.copy_bandwidth(args.gpu, args.quick)
    rates = measuring.interleaved([*contenders, bandwidth], *measuring.rounds_of(args))
    allowed = [rate / BYTES_PER_STEP for rate in rates[-1]]
    on_one_bar = {c.name: allowed for c in contenders if c.name.endswith("one bar")}
    rows = measuring.rows_of(contenders, rates[:-1], who.PEER, on_one_bar)
    copied = sorted(rates[-1])[len(rates[-1]) // 2]
    notes = [f"Floor: {BYTES_PER_STEP:,} bytes per step at the {copied / 1e9:.1f} GB/s of copy_."]
    if on_cpu:
        notes.append("A share above 100%: copy_ goes to memory; on one bar all read the same features, kept near.")
        notes.append(f"The peer is {who.PEER} with as many environments; for one environment, with {FEW}.")
    content = {"rows": [*rows, *missing], "notes": notes, "copy_bytes_per_s": round(copied)}
    content["checks"] = checks(rows) if on_cpu and not args.quick else []
    return measuring.section(args, ABOUT, COLUMNS, peer=who.PEER, unit="env-steps/s", **content)


def checks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The targets, each held against the slower of the two rule sets."""
    ours = [row for row in rows if row["contender"].startswith("VectorizedCryptoEnvAlpacaOptimized")]

    def worst(key: str, few: bool, ending: str) -> float:
        found = [row for row in ours if row["contender"].endswith(ending) and (row["n_envs"] == FEW) == few]
        return min(row[key] for row in found)

    few, many = worst("ratio", True, "random bars"), worst("ratio", False, "random bars")
    share = worst("share", False, "one bar")
    return [
        measuring.check(f"{FEW} environments, times the peer", few, least=LEAST_RATIO_FEW),
        measuring.check(f"{MANY:,} environments on random bars, times the peer", many, least=LEAST_RATIO_MANY),
        measuring.check(f"{MANY:,} environments on one bar, share of the floor", share, least=LEAST_SHARE),
    ]


def main() -> int:
    """Measure, print, write."""
    args = measuring.parsed(__doc__, gpu=True, learns=False, options=MODES)  # elegantrl explores without gradients
    if args.scale:
        from benchmarks import scale

        return measuring.keep(args, "scale", scale.measure(args, BYTES_PER_STEP), scale.draw)
    if args.startup:
        from benchmarks import startup

        return measuring.keep(args, "startup", startup.measure(args))
    return measuring.keep(args, "step", measure(args))


if __name__ == "__main__":
    sys.exit(main())
