#!/usr/bin/env python3
"""List every message of the programs: errors, log lines, printed lines and help texts, with file and line.

Read the list from top to bottom before a release. Placeholders appear as `…`.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
LOG_METHODS = ("debug", "info", "warning", "error", "exception", "critical")
PRINTING = ("print", "echo", "say")
HELP = ("help", "description", "epilog")
LEFT_OUT = ("tests/", "benchmarks/", "examples/")


@dataclass(frozen=True)
class Message:
    """Text that a user may see, with its location in the code."""

    kind: str  # "error", "log", "print" or "help"
    file: str
    line: int
    text: str


def text_of(node: ast.expr) -> str:
    """Return the text of a string expression with `…` for placeholders, or "" if the expression has no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    if isinstance(node, ast.IfExp):
        return " | ".join(filter(None, (text_of(node.body), text_of(node.orelse))))
    return ""


def called(node: ast.Call) -> str:
    """Return the last name of the called function, such as `error` for `parser.error(...)`."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def kind_of(node: ast.Call) -> str:
    """Return the kind of message that a call produces from its first argument, or "" if it produces none."""
    name = called(node)
    if name in LOG_METHODS and isinstance(node.func, ast.Attribute):
        return "error" if getattr(node.func.value, "id", "") == "parser" else "log"
    if name in PRINTING:
        return "print"
    return "error" if name.endswith(("Error", "Exit")) and name[0].isupper() else ""


def messages_of(source: str, file: str) -> Iterator[Message]:
    """Yield the messages of a module's source text."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if (kind := kind_of(node)) and node.args and (text := text_of(node.args[0])):
            yield Message(kind, file, node.lineno, text)
        for keyword in node.keywords:
            if keyword.arg in HELP and (text := text_of(keyword.value)):
                yield Message("help", file, keyword.value.lineno, text)


def all_messages() -> list[Message]:
    """Return the messages of all programs, by file and line."""
    listed = subprocess.run(["git", "-C", REPO, "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout
    files = [file for file in listed.splitlines() if not file.startswith(LEFT_OUT)]
    found = [message for file in files for message in messages_of((REPO / file).read_text(), file)]
    return sorted(found, key=lambda message: (message.file, message.line))


def main(argv: list[str] | None = None) -> int:
    """Print the list, and then the number of messages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("error", "log", "print", "help"), help="list messages of this kind only")
    args = parser.parse_args(argv)
    found = [message for message in all_messages() if args.kind in (None, message.kind)]
    for message in found:
        print(f"{message.file}:{message.line} [{message.kind}] {message.text.strip()}")
    print(f"{len(found)} messages", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
