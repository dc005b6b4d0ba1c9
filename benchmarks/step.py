#!/usr/bin/env python3
"""Measure environment steps per second, relative to other environments and to the memory bandwidth.

    python benchmarks/step.py              # the table: every contender at 12 and 4096 environments
    python benchmarks/step.py --scale      # step cost and memory by number of environments, with a plot
    python benchmarks/step.py --startup    # seconds from starting Python to the first step
    python benchmarks/step.py --gpu 0      # only the fast class, on a GPU

The market comes from benchmarks/contenders.py: 7 assets, 77 feature columns, lookback 5 and 30,000 bars, so an
observation has 393 numbers. Actions are drawn in advance. The first baseline is Gymnasium's SyncVectorEnv over the
scalar class with the same rules. The second is elegantrl 0.3.6's StockTradingVmapEnv with observations of the same
size. The floor is the time to move 3,329 bytes per environment step: an observation of 393 float32 read and written,
plus 185 bytes. Its bandwidth is that of torch's copy_ of 256 MiB of float32 on the same threads, with bytes read and
bytes written both counted, timed in the same rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import measuring

FEW, MANY, GPU_N_ENVS = 12, 4096, (12, 4096, 65_536)
BYTES_PER_STEP = 3_329
COLUMNS = measuring.columns("contender", "n_envs", per_s="env-steps/s", sync_ratio="times SyncVectorEnv")
COLUMNS |= {"ratio": "times elegantrl", "share": "share of the floor"}
MODES = (
    ("--scale", {"action": "store_true", "help": "measure step cost and memory by number of environments"}),
    ("--startup", {"action": "store_true", "help": "measure the seconds from starting Python to the first step"}),
)
ABOUT = (
    "The table shows environment steps per second. The market has 7 assets, 77 feature columns, lookback 5 (393 "
    "numbers per observation) and 30,000 bars. Random actions are drawn in advance."
)
SYNC_NOTE = (
    f"SyncVectorEnv is Gymnasium's vector environment. It runs the scalar class with the same rules and {FEW} "
    "environments. The speed relative to SyncVectorEnv is a ratio of medians."
)
LEAST_SYNC_RATIO, LEAST_RATIO_FEW, LEAST_RATIO_MANY, LEAST_SHARE = 100.0, 400.0, 18.0, 0.6


def cpu_contenders(quick: bool) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return all contenders, and the rows of libraries that are not installed."""
    from benchmarks import contenders as who

    rules = ("standard",) if quick else ("cappuccino", "standard")
    many = 64 if quick else MANY
    asynchronous = [who.gymnasium_vector("Async", rule, FEW) for rule in rules]  # first, because it forks
    ours_few = [who.batched(fast, rule, FEW) for rule in rules for fast in (True, False)]
    scalar = [who.scalar_loop(rule, n) for rule in rules for n in (1, FEW)]
    synchronous = [who.gymnasium_vector("Sync", rule, FEW) for rule in rules]
    ours_many = [who.batched(True, rule, many, start) for rule in rules for start in ("random", "first")]
    ours_many += [who.batched(False, rule, many) for rule in rules]
    few = [*synchronous, *ours_few, *scalar, *asynchronous, who.elegantrl_vmap(FEW), who.empty_step(FEW)]
    all_ = [*few, who.elegantrl_vmap(many), *ours_many]
    if not who.is_installed("gym_trading_env"):
        return all_, [measuring.missing_row(who.TRADING_ENV, "gym-trading-env", 1)]
    return [*all_, who.gym_trading_env()], []


def gpu_contenders(gpu: int, quick: bool) -> list[Any]:
    """Return contenders of the fast class, which needs only NumPy, torch and this repository."""
    from benchmarks import contenders as who

    sizes = GPU_N_ENVS[:1] if quick else GPU_N_ENVS
    cases = [(n, rule, start) for n in sizes for rule in who.RULES for start in ("random", "first")]
    return [who.batched(True, rule, n, start, gpu) for n, rule, start in cases if n > FEW or start == "random"]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section "step"."""
    from benchmarks import contenders as who

    on_cpu = args.gpu < 0
    contenders, missing = cpu_contenders(args.quick) if on_cpu else (gpu_contenders(args.gpu, args.quick), [])
    bandwidth = measuring.copy_bandwidth(args.gpu, args.quick)
    rates = measuring.interleaved([*contenders, bandwidth], *measuring.rounds_of(args))
    allowed = [rate / BYTES_PER_STEP for rate in rates[-1]]
    on_one_bar = {c.name: allowed for c in contenders if c.name.endswith("one bar")}
    rows = with_sync_ratios(measuring.rows_of(contenders, rates[:-1], who.PEER, on_one_bar))
    copied = sorted(rates[-1])[len(rates[-1]) // 2]
    notes = [f"The floor is {BYTES_PER_STEP:,} bytes per step at copy_'s bandwidth of {copied / 1e9:.1f} GB/s."]
    if on_cpu:
        notes.append(
            "A share can exceed 100%, because copy_ uses main memory. If all environments are on the same bar, they "
            "read the same features from the cache."
        )
        notes.append(SYNC_NOTE)
        notes.append(
            f"The elegantrl baseline is StockTradingVmapEnv with the same number of environments, or {FEW} for a "
            "single environment."
        )
    content = {"rows": [*rows, *missing], "notes": notes, "copy_bytes_per_s": round(copied)}
    content["checks"] = checks(rows) if on_cpu and not args.quick else []
    return measuring.section(args, ABOUT, COLUMNS, peer=who.PEER, unit="env-steps/s", **content)


def with_sync_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the speed of each of our classes relative to SyncVectorEnv with the same rules."""
    rules = {row["contender"]: row["contender"].split(", ")[1] for row in rows if "CryptoEnvAlpaca" in row["contender"]}
    sync = {rules[row["contender"]]: row["per_s"] for row in rows if row["contender"].startswith("gymnasium Sync")}
    rated = {name: sync[own] for name, own in rules.items() if own in sync}
    return [
        row | {"sync_ratio": row["per_s"] / rated[row["contender"]]} if row["contender"] in rated else row
        for row in rows
    ]


def checks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the targets. Each is compared with the result of the slower of the two rule sets."""
    ours = [row for row in rows if row["contender"].startswith("VectorizedCryptoEnvAlpacaOptimized")]

    def worst(key: str, few: bool, ending: str) -> float:
        found = [row for row in ours if row["contender"].endswith(ending) and (row["n_envs"] == FEW) == few]
        return min(row[key] for row in found)

    sync = worst("sync_ratio", True, "random bars")
    few, many = worst("ratio", True, "random bars"), worst("ratio", False, "random bars")
    share = worst("share", False, "one bar")
    return [
        measuring.check(f"speedup over Gymnasium SyncVectorEnv ({FEW} environments)", sync, least=LEAST_SYNC_RATIO),
        measuring.check(f"speedup over elegantrl's VmapEnv ({FEW} environments)", few, least=LEAST_RATIO_FEW),
        measuring.check(
            f"speedup over elegantrl's VmapEnv ({MANY:,} environments, random bars)", many, least=LEAST_RATIO_MANY
        ),
        measuring.check(f"share of the bandwidth floor ({MANY:,} environments, one bar)", share, least=LEAST_SHARE),
    ]


def main() -> int:
    """Measure, print and write."""
    args = measuring.parsed(__doc__, gpu=True, learns=False, options=MODES)  # as in elegantrl's exploration
    if args.scale:
        from benchmarks import scale

        return measuring.keep(args, "scale", scale.measure(args, BYTES_PER_STEP), scale.draw)
    if args.startup:
        from benchmarks import startup

        return measuring.keep(args, "startup", startup.measure(args))
    return measuring.keep(args, "step", measure(args))


if __name__ == "__main__":
    sys.exit(main())
