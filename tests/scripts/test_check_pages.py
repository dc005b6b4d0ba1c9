"""The check of the pages says why it is skipped, and then it is no failure."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_pages.sh"


def run(**environment: str) -> subprocess.CompletedProcess:
    """The script with a stand-in for Python, so that no site is built."""
    command = [shutil.which("bash") or "bash", str(SCRIPT)]
    given = os.environ | {"PYTHON": "true"} | environment
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)


def test_a_browser_that_does_not_exist_is_named():
    done = run(BROWSER="/no/such/browser")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "pages were not checked in a browser: BROWSER=/no/such/browser does not exist\n"


def test_without_a_browser_the_check_says_how_to_install_one(tmp_path):
    for name in ("dirname", "true"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = run(PATH=str(tmp_path), BROWSER="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "pages were not checked in a browser: Chromium is not installed; on Debian, run apt-get install chromium\n"
    )


def test_a_site_that_does_not_build_is_a_failure_with_and_without_a_browser():
    assert run(PYTHON="false", BROWSER="/no/such/browser").returncode != 0


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_starts_nothing(flag):
    done = subprocess.run(
        ["bash", str(SCRIPT), flag], env=os.environ | {"PYTHON": "false"}, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"usage: scripts/check_pages.sh")
