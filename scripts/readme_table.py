#!/usr/bin/env python3
"""Write the measured tables of README.md from benchmarks/results/*.json. Figures reach the README in no other way."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
README = REPO / "README.md"
RESULTS = REPO / "benchmarks" / "results"
BEGIN, END = "<!-- measured:begin (scripts/readme_table.py writes this) -->", "<!-- measured:end -->"


def step_section(result: dict[str, Any]) -> list[str]:
    """Rates by class and batch size, and the memory that one more environment takes."""
    columns = sorted({row["n_envs"] for row in result["rows"]})
    by_class: dict[str, dict[int, dict[str, Any]]] = {}
    for row in result["rows"]:
        by_class.setdefault(row["class"], {})[row["n_envs"]] = row
    lines = [
        f"`{result['command']}`, {machine_text(result)}. Environment steps per second:",
        "",
        "| class | " + " | ".join(f"n_envs {n}" for n in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, rows in by_class.items():
        cells = [f"{rows[n]['env_steps_per_s']:,}" if n in rows else "" for n in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    fast = by_class["optimized"]
    return [*lines, "", memory_text(fast)]


def memory_text(rows: dict[int, dict[str, Any]]) -> str:
    """Bytes of books and buffers per environment, and of the whole process."""
    many = max(rows)
    each, process = rows[many]["buffer_bytes"] / many, rows[many]["process_bytes"]
    return (
        f"Memory, optimized class, observation of {rows[many]['state_dim']} numbers: {each / 2**10:,.1f} KiB of books "
        f"and buffers for one environment; the whole process at n_envs {many:,}, market and libraries included: "
        f"{process / 2**20:,.0f} MiB."
    )


def study_section(result: dict[str, Any]) -> list[str]:
    """Wall time of a study by number of environments, and where the time goes."""
    lines = [
        f"`{result['command']}`, {machine_text(result)}. {result['trials']} trials of {result['splits']} splits, "
        f"{result['break_step']:,} environment steps each, {result['data']}:",
        "",
        "| n_envs | study, s | explore, env-steps/s | update, samples/s |",
        "|---:|---:|---:|---:|",
    ]
    return lines + [
        f"| {row['n_envs']} | {row['wall_s']:.0f} | {row['explore_steps_per_s']:,.0f} "
        f"| {row['update_samples_per_s']:,.0f} |"
        for row in result["rows"]
    ]


def machine_text(result: dict[str, Any]) -> str:
    """`2 cores of a ..., torch 2.13.0, 2026-11-23`."""
    machine = result["machine"]
    device = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    return f"{device}, torch {machine['torch']}, {result['date']}"


SECTIONS = {"step": step_section, "study": study_section}


def render(results: Path = RESULTS) -> str:
    """The text between the markers."""
    blocks = []
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        if result.get("benchmark") in SECTIONS:
            blocks.append("\n".join(SECTIONS[result["benchmark"]](result)))
    return "\n\n".join(blocks) or "Nothing is measured yet: the commands below do it."


def replaced(readme: str, table: str) -> str:
    """The README with `table` between its markers."""
    before, found, rest = readme.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"README.md lost its markers: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    """Rewrite README.md, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when it is not up to date")
    args = parser.parse_args(argv)
    old = README.read_text()
    new = replaced(old, render())
    if args.check:
        print("README.md is up to date" if new == old else "README.md is old; run: python scripts/readme_table.py")
        return int(new != old)
    README.write_text(new)
    print(f"wrote {README}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
