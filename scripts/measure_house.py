#!/usr/bin/env python3
"""Measure the code: lines per folder, function lengths, string-key reads, suppressions, words of documentation.

A code line contains code, not only blanks, comments or docstrings. Files are formatted first and `# fmt: skip` is
ignored, so dense lines gain nothing. `python scripts/measure_house.py` measures the tracked files. `--at COMMIT`
measures the files of a commit, and `--against COMMIT` prints both versions side by side.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
SUPPRESSIONS = ("sys.path.insert", "noqa: E402", "fmt: skip")
SKIP = re.compile(r"\s*# fmt: (skip|off|on)\b")
ABOUT_STUDIES = ("study", "records", "store", "runner", "findings", "report", "watch", "deploy", "finish")
STUDY = tuple(f"train/{name}" for name in (*ABOUT_STUDIES, "worker_program"))

Measures = dict[str, str]


def unpacked(commit: str | None, folder: Path) -> Path:
    """Copy the tracked files of a commit, or of the work tree, into a folder."""
    if commit is None:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (REPO / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((REPO / name).read_bytes())
        return folder
    archive = subprocess.run(["git", "archive", commit], cwd=REPO, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def formatted(root: Path) -> None:
    """Format every Python file with ruff, without `# fmt: skip` comments."""
    for path in root.rglob("*.py"):
        path.write_text(SKIP.sub("", path.read_text()))
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", "--isolated", "--line-length", "120", str(root)],
                   check=True)  # fmt: skip


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines that contain code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (*FUNCTION, ast.ClassDef, ast.Module)) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def room(path: str) -> str:
    """Return the folder that a file is counted under."""
    parts = path.split("/")
    if len(parts) == 1:
        return "top level"
    return "/".join(parts[:2]) if parts[0] in ("train", "market", "drl_agents") and len(parts) > 2 else parts[0]


def string_key_reads(tree: ast.Module) -> int:
    """Count reads such as `content["name"]` and `content.get("name")`."""
    found = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            found += isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            found += bool(node.args) and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    return found


def measured(root: Path) -> Measures:
    """Return every measure of the files in a folder, and format the files in place."""
    raw = "".join(path.read_text() for path in root.rglob("*.py") if "tests" not in path.relative_to(root).parts)
    suppressions = {name: str(raw.count(name)) for name in SUPPRESSIONS}
    formatted(root)
    lines, lengths, reads = Counter[str](), [], 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        text = path.read_text()
        found, tree = code_lines(text), ast.parse(text)
        is_test = name.startswith("tests/")
        lines["tests" if is_test else "source"] += len(found)
        if is_test:
            continue
        lines[f"  {room(name)}"] += len(found)
        reads += string_key_reads(tree) if name.startswith(STUDY) else 0
        lengths += list(function_lengths(tree, found))
    rows = {f"code lines: {name}" if name in ("source", "tests") else name: f"{n}" for name, n in sorted(lines.items())}
    ordered = sorted(lengths)
    rows |= {
        "function length, median / p90 / max": f"{statistics.median(ordered):.0f} / {ordered[len(ordered) * 9 // 10]} "
        f"/ {ordered[-1]}",
        "functions of at most 20 lines": f"{sum(n <= 20 for n in ordered) / len(ordered):.0%}",
        "string-key reads about a study": str(reads),
        "words of documentation": str(sum(len(path.read_text().split()) for path in documents(root))),
        "lines of README": str(len((root / "README.md").read_text().splitlines())),
    }
    return rows | suppressions


def function_lengths(tree: ast.Module, lines: set[int]) -> Iterator[int]:
    """Yield the number of code lines of every function."""
    for node in ast.walk(tree):
        if isinstance(node, FUNCTION):
            yield len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))


def documents(root: Path) -> list[Path]:
    """Return the documentation pages."""
    return [*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "data").glob("*.md")]


def at(commit: str | None) -> Measures:
    """Return the measures of a commit, or of the work tree."""
    with tempfile.TemporaryDirectory() as folder:
        return measured(unpacked(commit, Path(folder)))


def main(argv: list[str] | None = None) -> int:
    """Parse the flags, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", metavar="COMMIT", help="commit to measure (default: the working tree)")
    parser.add_argument("--against", metavar="COMMIT", help="second commit, printed next to the first")
    args = parser.parse_args(argv)
    now, before = at(args.at), at(args.against) if args.against else {}
    for name in sorted({*now, *before}, key=lambda n: list({**before, **now}).index(n)):
        print(f"{name:<40}" + (f"{before.get(name, '-'):>14}" if before else "") + f"{now.get(name, '-'):>14}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
