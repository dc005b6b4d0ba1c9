#!/usr/bin/env python3
"""Write the measured parts of docs/results.md (every table) and README.md (targets) from benchmarks/results/*.json.

Figures reach the two pages in no other way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measuring import check_line, machine_text, section_lines

REPO = Path(__file__).resolve().parents[1]

RESULTS = REPO / "benchmarks" / "results"
BEGIN, END = "<!-- measured:begin (scripts/readme_table.py writes this) -->", "<!-- measured:end -->"
NOTHING = "Nothing is measured yet: the commands below do it."
TITLES = {"step": "Stepping", "scale": "Number of environments", "startup": "Starting up", "rollout": "Exploring"}
TITLES |= {"update": "Updating", "trial": "Whole trials", "study": "Whole studies", "dataset": "Bars to a dataset"}
TITLES |= {"memory": "Memory over many trials", "checkpoint": "Checkpoints", "workers": "Workers", "pruning": "Pruning"}
TITLES |= {"trading": "Paper trading"}
TITLES |= {"adapters": "Through the adapters", "band": "The band agent's learning", "evaluation": "Evaluating policies"}
PICTURES = {"scale": "Cost of a step and memory", "memory": "Resident memory after each trial"}
SHORT = ("step", "trial")  # whose targets the README shows
# Name of a result file that is not a machine's: its title, and the caption of its picture. In the page's order.
OWN_FILES = {
    "capture": (
        "How much of the attainable growth is earned?",
        "Share of the attainable growth by signal, cost, coins and history",
    ),
    "calibration": ("Is a winner called skilful?", "Deflated Sharpe and PBO of every study"),
    "many_workers": (
        "Many workers of one study",
        "Share of the ideal throughput by number of workers, length of a trial and distance to the server",
    ),
    "demonstration": ("The demonstration", ""),
}
GPU_LINE = "Not yet measured on a GPU: `python benchmarks/step.py --gpu 0` does it."


def machines(results: Path = RESULTS) -> list[tuple[str, dict[str, Any]]]:
    """(name of the file without .json, content) of every machine's result file."""
    loaded = [(path.stem, json.loads(path.read_text())) for path in sorted(results.glob("*.json"))]
    return [(stem, content) for stem, content in loaded if "sections" in content]


def origin(part: Mapping[str, Any]) -> str:
    """How a section was made."""
    versions = f"torch {part['torch']}, commit {part['commit']}, {part['date']}"
    threads = f"{part['threads']} thread{'' if part['threads'] == 1 else 's'}"
    return f"`{part['command']}`, {threads}, {versions}."


def short_blocks(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """For the README: targets of the main sections, met and missed; the tables are in docs/results.md."""
    blocks = []
    for _, content in found:
        sections = content["sections"]
        for name in [name for name in SHORT if name in sections]:
            part = sections[name]
            when = f"commit {part['commit']}, {part['date']}"
            lines = [f"**{TITLES[name]}**, {machine_text(content['machine'])} ({when})", ""]
            lines += map(check_line, part.get("checks", []))
            blocks.append(tidied(lines))
    return blocks


def long_blocks(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """For docs/results.md: every section of every machine."""
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
    """For docs/results.md: a section of `OWN_FILES`, with its picture where it has one; nothing if there is no file."""
    path = results / f"{name}.json"
    if not path.exists():
        return ""
    content, (title, caption) = json.loads(path.read_text()), OWN_FILES[name]
    lines = [f"## {title}", "", *section_lines(content[name]), ""]
    if caption:
        lines += [f"![{caption}](../benchmarks/results/{name}.png)", ""]
    about = (
        "" if name == "calibration" else f"{machine_text(content['machine'])}. "
    )  # of the judgement, not of a machine
    return tidied([*lines, about + origin(content[name])])


def picture(stem: str, section: str) -> str:
    """Of a section in PICTURES, as docs/results.md links to it."""
    return f"../benchmarks/results/{stem}_{section}.png"


def tidied(lines: Sequence[str]) -> str:
    """Text without two blank lines in a row."""
    kept = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(kept).strip()


def render(blocks: Sequence[str], found: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """The text between the markers."""
    if not blocks:
        return f"{NOTHING}\n\n{GPU_LINE}"
    has_gpu = any(content["machine"]["gpu"] for _, content in found)
    return "\n\n".join([*blocks, *([] if has_gpu else [GPU_LINE])])


def replaced(page: str, text: str, name: str = "README.md") -> str:
    """The page with `text` between its markers."""
    before, found, rest = page.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"{name} lost its markers: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def pages(results: Path = RESULTS, repo: Path = REPO) -> dict[Path, tuple[str, str]]:
    """Page -> its text now, and its text from the result files."""
    found = machines(results)
    long = [render(long_blocks(found), found), *(own_block(name, results) for name in OWN_FILES)]
    texts = {repo / "README.md": render(short_blocks(found), found)}
    texts[repo / "docs" / "results.md"] = "\n\n".join(filter(None, long))
    return {path: (path.read_text(), replaced(path.read_text(), text, path.name)) for path, text in texts.items()}


def main(argv: list[str] | None = None) -> int:
    """Rewrite both pages, or with --check say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a page is old")
    args = parser.parse_args(argv)
    is_old = False
    for path, (now, wanted) in pages().items():
        name = path.relative_to(REPO)
        if args.check:
            print(f"{name} is up to date" if now == wanted else f"{name} is old; run: python scripts/readme_table.py")
            is_old = is_old or now != wanted
            continue
        path.write_text(wanted)
        print(f"wrote {name}")
    return int(is_old)


if __name__ == "__main__":
    sys.exit(main())
