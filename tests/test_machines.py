"""One case of the bench of machines that runs with every change; `scripts/run_tests.sh --machines` runs all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutants.table import ROOT


@pytest.mark.slow
def test_a_trainer_on_a_machine_whose_cable_is_unplugged_says_so_and_ends():
    done = subprocess.run([sys.executable, "-m", "tests.machines", "--only", "unplugged between trials 1"], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    if "skipped:" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kept" in done.stdout
