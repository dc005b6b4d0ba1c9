"""The table of expectations in docs/trading.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "trading.md"


def test_every_expectation_has_a_test():
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 17))
    for row in rows:
        named = re.findall(r"`tests/paper_trading/(test_\w+\.py)(?:::(test_\w+))?`", row)
        assert named, row
        for file, test in named:
            text = (HERE / file).read_text()
            assert not test or f"def {test}(" in text, f"{file} has no {test}"


def test_every_module_of_the_table_is_there():
    rows = [line for line in PAGE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    modules = {name for row in rows for name in re.findall(r"`paper_trading/(\w+\.py)`", row.split("|")[3])}
    package = HERE.parents[1] / "paper_trading"
    assert modules
    assert {name for name in modules if not (package / name).is_file()} == set()
