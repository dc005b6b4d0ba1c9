"""The commands and programs on the pages for newcomers run as written, and these pages stay short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NEW = ("own_data", "own_features", "own_reward", "own_agent", "why_lookahead", "why_purging", "why_deflated_sharpe",
       "why_fees")  # fmt: skip
SHORT = (*NEW, "start", "tutorial")
# Runs programs from standard input that are separated by NUL bytes.
RUN_ALL = "import sys\nfor text in sys.stdin.read().split('\\0'): exec(text, {'__name__': 'page'})"
LEAST_WORDS, MOST_WORDS = 200, 500


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


def run(language: str, text: str, folder: Path) -> str:
    """Run a block in a folder as a reader would, with this checkout and the commands of this Python."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[language]
    done = subprocess.run(
        [*program, text], cwd=folder, env=os.environ | {"PYTHONPATH": paths, "PATH": commands},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_tutorial_runs_as_written(tmp_path):
    output = "".join(run(language, text, tmp_path) for language, text in blocks("tutorial", "bash", "python"))
    for said in ("look-ahead: clean", "mean equity after one day", "verdict: Not evidence of skill", "hold BTC"):
        assert said in output, said


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in NEW if blocks(page, "python")])
def test_the_programs_of_a_page_run(page, tmp_path):
    """Each block is complete, so that a reader can copy any of them. All blocks of a page run in one process."""
    programs = [text for _, text in blocks(page, "python")]
    assert programs
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input="\0".join(programs), cwd=tmp_path, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = [float(figure) for figure in re.findall(r"Sharpe ratio ([+-][\d.]+)", done.stdout)]
    if page == "why_lookahead":
        assert abs(figures[0]) < 1.0
        assert figures[1] > 3.0
    if page == "why_deflated_sharpe":
        assert figures[2] > 2.0
        assert figures[3] > 3.0


@pytest.mark.parametrize("page", SHORT)
def test_a_page_for_newcomers_is_short(page):
    words = len((DOCS / f"{page}.md").read_text().split())
    assert LEAST_WORDS <= words <= MOST_WORDS, words
