"""Every example runs as its first line says, and its agent earns money on its generated market."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from examples import ppo_single_file

ROOT = Path(__file__).resolve().parents[2]
# example -> (the package it needs, what its last line says, the least figure there)
EXAMPLES = {
    "gymnasium_vector": ("gymnasium", r"mean sum of rewards (\S+)$", 5.0),
    "gymnasium_single": ("gymnasium", r"account value (\S+) times", 1.05),
    "train_stable_baselines3": ("stable_baselines3", r"(\S+) after training", 4.0),
    "train_torchrl": ("torchrl", r"account value (\S+) times", 1.0),
    "train_skrl": ("skrl", r"account value (\S+) times", 1.0),
    "train_rsl_rl": ("rsl_rl", r"account value (\S+) times", 1.0),
    "ppo_single_file": ("torch", r"mean account value (\S+) times", 1.1),
}


def output_of(example):
    command = [sys.executable, "-m", f"examples.{example}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_and_earns_money(example):
    package, pattern, least = EXAMPLES[example]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    before = {path.name for path in ROOT.iterdir()}
    found = re.findall(pattern, output_of(example), flags=re.MULTILINE)
    assert float(found[-1]) >= least
    assert {path.name for path in ROOT.iterdir()} - before <= {".pytest_cache"}


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*EXAMPLES, "__init__"}


def test_the_single_file_repeats_its_figures_with_the_same_seed(capsys):
    def last_line(seed):
        assert ppo_single_file.main(["--updates", "2", "--n-envs", "8", "--horizon", "16", "--seed", seed]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    assert last_line("0") == last_line("0") != last_line("1")
