"""Every example runs as its first line says and prints the answer to its question."""

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 40
FEES = (ROOT / "docs" / "why_fees.md").read_text()
# example -> (the package it needs, the figure on its last line, the least value of that figure)
TRAINED = {
    "gymnasium_vector": ("gymnasium", r"mean sum of rewards (\S+)$", 5.0),
    "gymnasium_single": ("gymnasium", r"account value (\S+) times", 1.05),
    "train_stable_baselines3": ("stable_baselines3", r"(\S+) after training", 4.0),
    "train_torchrl": ("torchrl", r"account value (\S+) times", 1.0),
    "train_skrl": ("skrl", r"account value (\S+) times", 1.0),
    "train_rsl_rl": ("rsl_rl", r"account value (\S+) times", 1.0),
    "own_training_loop": ("torch", r"mean account value (\S+) times", 1.05),
}
# example -> what it prints
ANSWERS = {
    "against_equal_weight": r"policy: return \+.*\n *equal weight: return .*\nmean excess return per bar \+",
    "cost_of_fees": re.escape(re.findall(r"```text\n(.*?)```", FEES, re.DOTALL)[0]),  # as the page quotes it
    "on_gpu": r"4096 accounts on (?:cpu|cuda:0), stepped by (?:numba|triton): mean equity \d,\d{3}\n",
    "own_csv": r"SYNTHETIC 1h, 2 coins, .*, source bars.csv\nobservations \(8, \d+\), features of a bar: BTC:",
    "own_reward": r"Optimized: mean reward -0\.0\d+\nLossAverse: mean reward -0\.[1-9]",
    "save_and_load_policy": r"trained on BTC, ETH\nsame actions: True\n",
    "steps_per_second": r"4096 environments: +[\d,]{7,} environment steps per second \(numba\)",
    "trade_log": r"bar_close_utc_s,account,coin,quantity,price,equity\r?\n\d{10},\d,(?:BTC|ETH),-?\d+\.\d{6},",
}
NOTEBOOKS = {"read_study"}
PATHS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")


@pytest.mark.slow
@pytest.mark.parametrize("example", TRAINED)
def test_an_example_runs_and_earns_money(example):
    package, pattern, least = TRAINED[example]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    before = {path.name for path in ROOT.iterdir()}
    command = [sys.executable, "-m", f"examples.{example}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = re.findall(pattern, done.stdout, flags=re.MULTILINE)
    assert float(found[-1]) >= least
    assert {path.name for path in ROOT.iterdir()} - before <= {".pytest_cache"}


@pytest.mark.slow
@pytest.mark.parametrize("example", ANSWERS)
def test_an_example_prints_its_answer(example, capsys, monkeypatch, tmp_path):
    """In this process, because each new one would import torch again."""
    monkeypatch.setattr(sys, "argv", [example])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runpy.run_module(f"examples.{example}", run_name="__main__")
    assert re.search(ANSWERS[example], capsys.readouterr().out)


def test_every_example_is_run():
    assert {path.stem for path in PATHS} == TRAINED.keys() | ANSWERS.keys()
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == NOTEBOOKS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_an_example_is_short_and_begins_with_its_question(path):
    first, *rest = path.read_text().splitlines()
    assert len(rest) < MAX_LINES
    assert re.fullmatch(rf'"""[A-Z][^?]+\? Run: python -m examples\.{path.stem}(?: \[[\w.]+\])?\."""', first)
