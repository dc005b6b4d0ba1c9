"""Two cases of the simulated machines run with every change. `scripts/run_tests.sh --machines` runs all cases."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutants.table import ROOT

TWO = "SIGTERM, unplugged between trials, 1 workers|lost to the client for 10 s in sampling"


@pytest.mark.slow
def test_trainers_survive_an_unplugged_cable_and_a_link_that_is_lost_while_a_trial_is_taken():
    command = [sys.executable, "-m", "tests.machines", "--jobs", "2", "--only", TWO]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    if "skipped:" in done.stdout:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| passed |") == 4  # each row is printed when its case ends, and again in the table
