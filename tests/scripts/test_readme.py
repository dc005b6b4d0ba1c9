"""The README's commands, flags, links and figures are the repository's."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    parts = [str(part) for part in command]
    return subprocess.run(parts, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_example_runs_with_one_copied_file(tmp_path):
    shutil.copy(ROOT / "environment_Alpaca_vectorized.py", tmp_path)
    (example,) = blocks("python")
    (tmp_path / "example.py").write_text(example)
    result = run(sys.executable, "example.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "dtype=torch.float64" in result.stdout


def test_compare_answers_as_the_readme_says():
    result = run(sys.executable, ROOT / "environment_Alpaca_vectorized.py", "--compare")
    assert result.returncode == 0, result.stderr
    assert "equal over 1000 steps" in result.stdout


@pytest.mark.parametrize(
    "script", sorted(set(re.findall(r"(?:scripts|benchmarks|tests)/[\w/]+\.(?:py|sh)|\w+\.sh", README))), ids=str
)
def test_a_named_script_exists(script):
    assert (ROOT / script).is_file()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))), ids=str)
def test_a_link_leads_somewhere(target):
    assert (ROOT / target).is_file()


def test_the_flags_of_the_trainer_exist():
    table = README.partition("`--help` has them all")[2].partition("Where results go")[0]
    command = next(block for block in blocks("bash") if "1_optimize_unified.py" in block)
    flags = set(re.findall(r"--[a-z][a-z-]+", table + command))
    known = run(sys.executable, ROOT / "scripts" / "training" / "1_optimize_unified.py", "--help").stdout
    assert {flag for flag in flags if flag not in known} == set()


def test_every_figure_comes_from_the_result_files():
    result = run(sys.executable, ROOT / "scripts" / "readme_table.py", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("st*_*.json")), ids=lambda p: p.name)
def test_a_result_file_of_the_table_says_how_it_was_made(path):
    result = json.loads(path.read_text())
    assert {"benchmark", "command", "date", "machine"} <= result.keys()
