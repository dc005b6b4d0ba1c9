"""Every row of docs/faults.md names an existing test, and the page has all its sections."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| fault ")]


def test_the_page_has_its_sections_and_rows():
    assert re.findall("^## (.*)", PAGE, re.M) == [
        "Training and files", "Command line and launcher", "Study storage", "The paper trader"]  # fmt: skip
    assert len(ROWS) > 40


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[0].strip("| "))
def test_a_row_has_four_cells_and_its_test_exists(row):
    fault, before, now, test = row.strip("| ").split(" | ")
    assert all((fault, before, now))
    path, _, name = test.strip("`").partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
