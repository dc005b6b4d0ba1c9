"""All mutants in the order of the rows of docs/faults.md, and the page docs/mutants.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.mutants import command_line, machines, storage, trading, training
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mutants.md"
MUTANTS = (*training.MUTANTS, *command_line.MUTANTS, *storage.MUTANTS, *machines.MUTANTS, *trading.MUTANTS)
NEVER = "not yet run"
HEAD = """# Mutation tests

Each row shows a fault from [faults.md](faults.md), a code change that breaks the handling of this fault, and the
outcome of the fault's test with this change. The test must fail. Correct outcomes are FAILED and HUNG, which means
that the test had to be killed. `scripts/run_tests.sh --mutants` applies each change to a copy of the repository,
runs the test and writes this page. The changes are defined in `tests/mutants`. `tests/test_mutants.py` checks that
every row of faults.md has at least one such change.

| fault | code change | outcome of the test |
|---|---|---|
"""


def faults() -> dict[str, str]:
    """Return test -> fault for the rows of docs/faults.md."""
    rows = re.findall(r"^\| (.+?) \| .* \| `(tests/\S+::\w+)` \|$", (ROOT / "docs" / "faults.md").read_text(), re.M)
    return {test: fault for fault, test in rows}


def write_page(results: Mapping[Mutant, str]) -> None:
    """Write docs/mutants.md with the new results, and the existing results of all other mutants."""
    before, fault_of = known_results(), faults()
    rows = [
        f"| {fault_of[m.test]} | {m.broken} | {results.get(m) or before.get((fault_of[m.test], m.broken), NEVER)} |\n"
        for m in MUTANTS
    ]
    PAGE.write_text(HEAD + "".join(rows))


def known_results() -> dict[tuple[str, str], str]:
    """Return (fault, change) -> result from the current page."""
    text = PAGE.read_text() if PAGE.exists() else ""
    return {(fault, broken): said for fault, broken, said in re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", text, re.M)}
