"""Run real trainers on simulated machines, and break the network between the machines and the database.

    python -m tests.machines [--only WORDS] [--long] [--jobs N] [--list]

Each machine has its own network, host name, process ids, results folder and clock. The clocks differ by two hours. The
database is a PostgreSQL 15 server behind `tests.support.network`, which can delay and drop traffic in each direction.
After every fault, the study must have exactly the requested trials, none of them twice and none RUNNING, and the
reports of all machines must be equal except for their dates. The exit code is 0 if every case passes.
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
    """Run a case. Return True if it passed, and its row of the table."""
    began_s = time.monotonic()
    seen = case.run(folder)
    figures = ("" if seconds is None else f"{seconds:.1f}" for seconds in (seen.said_s, seen.ended_s))
    result = f"FAILED: {'; '.join(seen.problems)}" if seen.problems else "passed"
    line = f"| {case.name} | {' | '.join(figures)} | {time.monotonic() - began_s:.0f} | {result} |"
    print(line, flush=True)
    return not seen.problems, line


def main(argv: Sequence[str]) -> int:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.machines", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="run cases with these words in their names; several: WORDS|WORDS")
    parser.add_argument("--long", action="store_true", help="also run faults of 60 and 150 s, and a power cut")
    parser.add_argument("--jobs", type=int, default=1, help="number of cases that run in parallel (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and exit")
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
    print("| case | logged after (s) | ended after (s) | duration (s) | result |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="machines-") as scratch, ThreadPoolExecutor(args.jobs) as pool:
        Path(scratch).chmod(0o755)
        folders = [Path(scratch) / f"case{i}" for i in range(len(chosen))]
        rows = list(pool.map(row, chosen, folders))
    if args.jobs > 1:
        print("\nin the order of the table:", *(line for _, line in rows), sep="\n")
    return 0 if all(is_good for is_good, _ in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
