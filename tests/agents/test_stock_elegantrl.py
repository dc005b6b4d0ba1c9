"""Unmodified elegantrl 0.3.6 drives the environments, with its agents and with ours: the documentation is the test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "elegantrl.md").read_text(), re.DOTALL)


def run_as_written(code: str, folder: Path) -> str:
    """A process of its own: elegantrl seeds, sets threads and switches gradients off for the whole process."""
    (folder / "example.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("block", [0, 1], ids=["stock agents", "our agents"])
def test_the_documented_example_trains_ppo_and_sac(block, tmp_path):
    output = run_as_written(BLOCKS[block], tmp_path)
    assert output.count("UsedTime") == 2
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"crypto_PPO_0", "crypto_SAC_0"}
    for folder in folders:
        assert (tmp_path / folder / "LearningCurve.jpg").exists()
        assert (tmp_path / folder / "agent_state.safetensors").exists() == (block == 1)


def test_the_example_uses_the_installed_elegantrl():
    from importlib.metadata import version

    assert version("elegantrl") == "0.3.6"
    assert len(BLOCKS) == 2
