"""Measure step cost and memory by number of environments, as a table and a plot (`step.py --scale`)."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import contenders as who
from benchmarks import measuring
from train.n_envs import buffer_bytes

N_ENVS, N_ENVS_QUICK = (1, 4, 12, 64, 512, 4096, 16_384, 65_536), (1, 12)
COLUMNS = measuring.columns("rules", "n_envs", per_s="env-steps/s", ns="ns per env-step", share="share of the floor")
COLUMNS["bytes"] = "bytes per environment"
ABOUT = (
    "The table shows the cost of one environment step and the memory of one environment (account state and buffers), "
    "for different numbers of environments. The class is VectorizedCryptoEnvAlpacaOptimized on random bars, "
    "with observations of 393 numbers. All environments share one copy of the bars, which is not included."
)
STYLES = {"cappuccino": ("#d55e00", "o", 12, "-"), "standard": ("#0072b2", "s", 6, "--")}  # sizes: both stay visible


def measure(args: argparse.Namespace, bytes_per_step: int) -> dict[str, Any]:
    """Measure the section "scale"."""
    sizes = N_ENVS_QUICK if args.quick else N_ENVS
    cases = [(rules, n) for rules in who.RULES for n in sizes]
    contenders = [who.batched(True, rules, n, gpu=args.gpu) for rules, n in cases]
    bandwidth = measuring.copy_bandwidth(args.gpu, args.quick)
    *rates, copied = measuring.interleaved([*contenders, bandwidth], *measuring.rounds_of(args))
    rows = []
    for (rules, n), own in zip(cases, rates, strict=True):
        rate = statistics.median(own)
        each = buffer_bytes(who.batched_env(True, rules, n, gpu=args.gpu)) / n
        rows.append({"rules": rules, "n_envs": n, "per_s": round(rate), "ns": 1e9 / rate, "bytes": round(each)})
    floor_ns = 1e9 * bytes_per_step / statistics.median(copied)
    for row in rows:
        row["share"] = floor_ns / row["ns"]
    note = (
        f"Moving {bytes_per_step:,} bytes at the bandwidth of copy_ would take {floor_ns:.0f} ns; this is the floor. "
        "The source and target of copy_ are in main memory. The buffers of up to a few thousand environments fit into "
        "the last-level cache, so the share can exceed 100%."
    )
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, notes=[note], floor_ns=floor_ns)


def draw(part: dict[str, Any], path: Path) -> None:
    """Draw two stacked panels, legible on a phone."""
    figure = measuring.figure((7, 10), part)
    cost, memory = figure.subplots(2, 1, sharex=True)
    for rules, (color, marker, size, line) in STYLES.items():
        own = [row for row in part["rows"] if row["rules"] == rules]
        marks = {"marker": marker, "ms": size, "color": color, "ls": line, "lw": 2.5, "label": f"{rules} rules"}
        cost.plot([row["n_envs"] for row in own], [row["ns"] for row in own], **marks)
        memory.plot([row["n_envs"] for row in own], [row["bytes"] / 1024 for row in own], **marks)
    cost.axhline(part["floor_ns"], color="#555555", linestyle=":", label="copy_ of as many bytes")
    cost.set(xscale="log", yscale="log", title="Cost of a step", ylabel="ns per environment step")
    memory.set(yscale="log", ylim=(1, 20), title="State and buffers", ylabel="KiB per environment")
    memory.set(xlabel="environments stepped together")
    memory.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    sizes = sorted({row["n_envs"] for row in part["rows"]})
    memory.set_xticks(sizes, [f"{n // 1024}k" if n >= 4096 else str(n) for n in sizes])
    memory.minorticks_off()
    for panel in (cost, memory):
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    figure.savefig(path, dpi=110)
