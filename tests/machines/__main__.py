"""Real trainers on machines of their own, and a network between them and their database that fails.

    python -m tests.machines [--only WORDS] [--long] [--jobs N] [--list]

A machine has a network, a host name, process ids, a results folder and a clock of its own; the clocks are two hours
apart. The database is a PostgreSQL 15 behind `tests.support.network`, which delays and loses what goes one way. After
every fault the study must have exactly the trials that were asked for, none twice and none RUNNING, and the reports of
all machines must be equal but for their dates. Exit code: 0 if every case kept that.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna

from tests.machines.cases import Case, cases
from tests.machines.machine import missing


def row(case: Case, folder: Path) -> tuple[bool, str]:
    """Run a case; return whether it kept its promises, and its row of the table."""
    began_s = time.monotonic()
    seen = case.run(folder)
    figures = ("" if seconds is None else f"{seconds:.1f}" for seconds in (seen.said_s, seen.ended_s))
    result = f"FAILED: {'; '.join(seen.problems)}" if seen.problems else "kept"
    line = f"| {case.name} | {' | '.join(figures)} | {time.monotonic() - began_s:.0f} | {result} |"
    print(line, flush=True)
    return not seen.problems, line


def main(argv: Sequence[str]) -> int:
    """Run the cases, print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.machines", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases with these words in their names; several: WORDS|WORDS")
    parser.add_argument("--long", action="store_true", help="also faults of 60 and 150 s, and a machine that vanishes")
    parser.add_argument("--jobs", type=int, default=1, help="cases that run side by side (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases, and run none")
    args = parser.parse_args(argv)
    chosen = [case for case in cases() if any(words in case.name for words in args.only.split("|"))]
    chosen = [case for case in chosen if args.long or not case.is_long]
    if args.list:
        print(*(case.name for case in chosen), sep="\n")
        return 0
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print("| case | reported after (s) | ended after (s) | took (s) | result |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="machines-") as scratch, ThreadPoolExecutor(args.jobs) as pool:
        Path(scratch).chmod(0o755)
        folders = [Path(scratch) / f"case{i}" for i in range(len(chosen))]
        rows = list(pool.map(row, chosen, folders))
    if args.jobs > 1:
        print("\nin the order of the table:", *(line for _, line in rows), sep="\n")
    return 0 if all(is_good for is_good, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
