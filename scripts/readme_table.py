#!/usr/bin/env python3
"""Write the measured parts of docs/results.md (all tables) and README.md (comparison) from benchmarks/results/*.json.

With --pictures, also redraw the plots from the same files. Do not edit these numbers manually.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import draw_section, machine_text, section_lines, shown

REPO = Path(__file__).resolve().parents[1]

RESULTS = REPO / "benchmarks" / "results"
BEGIN, END = "<!-- measured:begin (scripts/readme_table.py writes this) -->", "<!-- measured:end -->"
NOTHING = "No results yet. Run the commands below to measure."
TITLES = {
    "peers": "Other projects",
    "step": "Environment steps",
    "scale": "Number of environments",
    "startup": "Startup time",
}
TITLES |= {"rollout": "Exploration", "update": "Update", "trial": "Whole trials", "study": "Whole studies"}
TITLES |= {"dataset": "Building a dataset", "memory": "Memory over many trials", "checkpoint": "Checkpoints"}
TITLES |= {"workers": "Workers", "pruning": "Pruning", "trading": "Paper trading", "adapters": "Adapters"}
TITLES |= {"band": "Learning speed of the band agent", "evaluation": "Policy evaluation"}
PICTURES = {"scale": "Step cost and memory", "memory": "Resident memory after each trial"}
COMPARED = "peers"  # the section that the README shows
OURS, SYNC = "**barwise**", "our scalar class in Gymnasium's `SyncVectorEnv`"
FEATURES = {"vectorized": "vectorized", "coins": "coins", "costs": "costs", "checks": "checks", "trading": "trading"}
# Result files that belong to no machine, in page order: name -> (title, caption of the plot).
OWN_FILES = {
    "capture": (
        "Share of the attainable growth",
        "Share of the attainable growth by signal, cost, coins and history",
    ),
    "calibration": ("Calibration of the verdict", "Deflated Sharpe ratio and PBO of every study"),
    "many_workers": (
        "Many workers of one study",
        "Share of the ideal throughput by number of workers, trial duration and distance to the server",
    ),
    "demonstration": ("Demonstration", ""),
}
GPU_LINE = "There are no GPU results yet. Run `python benchmarks/step.py --gpu 0` to measure your GPU."


def machines(results: Path = RESULTS) -> list[tuple[str, dict[str, Any]]]:
    """Return (file name without .json, content) of every machine's result file."""
    loaded = [(path.stem, json.loads(path.read_text())) for path in sorted(results.glob("*.json"))]
    return [(stem, content) for stem, content in loaded if "sections" in content]


def origin(part: Mapping[str, Any]) -> str:
    """Return one line that describes how a section was measured."""
    versions = f"torch {part['torch']}, commit {part['commit']}, {part['date']}"
    threads = f"{part['threads']} thread{'' if part['threads'] == 1 else 's'}"
    return f"`{part['command']}`, {threads}, {versions}."


def short_blocks(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the README's blocks: one comparison with other projects per machine."""
    blocks = []
    for _, content in found:
        if COMPARED in content["sections"]:
            part = content["sections"][COMPARED]
            heading = f"Environment steps per second on {machine_text(content['machine'])}, {part['threads']} threads "
            heading += f"(commit {part['commit']}, {part['date']}):"
            blocks.append(tidied([heading, "", *comparison_lines(part["rows"])]))
    return blocks


def comparison_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the README's Markdown table: one row per environment class, with the class's rates and features.

    Of our own classes, only the fast class and the scalar class in `SyncVectorEnv` have rows. All numbers of
    environments that a class was measured with share one row.
    """
    columns = {"contender": "environment", "rates": "env-steps/s", "ratios": "barwise speedup"} | FEATURES
    merged: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["contender"]
        is_ours, is_sync = name == rows[0]["contender"], "SyncVectorEnv" in name
        if row.get("own") and not (is_ours or is_sync):
            continue
        name = OURS if is_ours else SYNC if is_sync else name
        entry = merged.setdefault(name, {"contender": name, "rates": [], "ratios": []} | row["features"])
        with_envs = f" (n={row['n_envs']:,})"
        entry["rates"].append(row.get("note") or shown("per_s", row["per_s"]) + with_envs)
        if not is_ours and "note" not in row:
            entry["ratios"].append(shown("ratio", float(row["ratio"])) + "x" + with_envs)
    lines = ["| " + " | ".join(columns.values()) + " |", "|---|---:|---:|" + "---|" * len(FEATURES)]
    for entry in merged.values():
        cells = [
            ", ".join(dict.fromkeys(value)) if isinstance(value, list) else value for value in map(entry.get, columns)
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def long_blocks(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the blocks of docs/results.md: every section of every machine."""
    blocks = []
    for stem, content in found:
        blocks.append(f"## {machine_text(content['machine'])}")
        for name in [name for name in TITLES if name in content["sections"]]:
            part = content["sections"][name]
            lines = [f"### {TITLES[name]}", "", *section_lines(part), "", origin(part)]
            if name in PICTURES:
                lines += ["", f"![{PICTURES[name]}]({picture(stem, name)})"]
            blocks.append(tidied(lines))
    return blocks


def own_block(name: str, results: Path = RESULTS) -> str:
    """Return a section of `OWN_FILES` with its plot, for docs/results.md; empty if the file does not exist."""
    path = results / f"{name}.json"
    if not path.exists():
        return ""
    content, (title, caption) = json.loads(path.read_text()), OWN_FILES[name]
    lines = [f"## {title}", "", *section_lines(content[name]), ""]
    if caption:
        lines += [f"![{caption}](../benchmarks/results/{name}.png)", ""]
    # Calibration does not depend on the machine.
    about = "" if name == "calibration" else f"{machine_text(content['machine'])}. "
    return tidied([*lines, about + origin(content[name])])


def picture(stem: str, section: str) -> str:
    """Return the path of a section's plot, relative to docs/results.md."""
    return f"../benchmarks/results/{stem}_{section}.png"


def tidied(lines: Sequence[str]) -> str:
    """Return the lines as one text in which consecutive blank lines are merged."""
    kept = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(kept).strip()


def render(blocks: Sequence[str], found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the text between the markers."""
    if not blocks:
        return f"{NOTHING}\n\n{GPU_LINE}"
    has_gpu = any(content["machine"]["gpu"] for _, content in found)
    return "\n\n".join([*blocks, *([] if has_gpu else [GPU_LINE])])


def replaced(page: str, text: str, name: str = "README.md") -> str:
    """Return the page with `text` between its markers."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{name} has no markers; restore them: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def pages(results: Path = RESULTS, repo: Path = REPO) -> dict[Path, tuple[str, str]]:
    """Return, for each page, its current text and its text generated from the result files."""
    found = machines(results)
    long = [render(long_blocks(found), found), *(own_block(name, results) for name in OWN_FILES)]
    texts = {repo / "README.md": render(short_blocks(found), found)}
    texts[repo / "docs" / "results.md"] = "\n\n".join(filter(None, long))
    return {path: (path.read_text(), replaced(path.read_text(), text, path.name)) for path, text in texts.items()}


def draw_pictures(results: Path = RESULTS) -> list[Path]:
    """Draw the plots of all sections that have a plot, and return the plots' paths."""
    from benchmarks import calibration_summary, capture_summary, learning, many_workers, memory, scale

    drawn = []
    own = {"capture": capture_summary, "calibration": calibration_summary, "many_workers": many_workers}
    for name, module in (own | {"learning": learning}).items():
        path = results / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text())
            part = content.get(name, content)  # earlier versions wrote learning.json without a section
            drawn.append((module.draw, part, content.get("machine"), path.with_suffix(".png")))
    for stem, content in machines(results):
        for name, module in {"scale": scale, "memory": memory}.items():
            if name in content["sections"]:
                path = results / f"{stem}_{name}.png"
                drawn.append((module.draw, content["sections"][name], content["machine"], path))
    for draw, part, about, path in drawn:
        draw_section(draw, part | ({"machine": machine_text(about)} if about else {}), path)
    return [path for *_, path in drawn]


def main(argv: list[str] | None = None) -> int:
    """Rewrite both pages, or with `--check` report whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing and exit with 1 if a page is out of date")
    parser.add_argument("--pictures", action="store_true", help="redraw the plots in benchmarks/results")
    args = parser.parse_args(argv)
    if args.pictures:
        for path in draw_pictures():
            print(f"drew {path.relative_to(REPO)}")
    is_old = False
    for path, (now, wanted) in pages().items():
        name = path.relative_to(REPO)
        if args.check:
            is_old = is_old or now != wanted
            state = "is up to date" if now == wanted else "is out of date; run: python scripts/readme_table.py"
            print(f"{name} {state}")
            continue
        path.write_text(wanted)
        print(f"wrote {name}")
    return int(is_old)


if __name__ == "__main__":
    sys.exit(main())
