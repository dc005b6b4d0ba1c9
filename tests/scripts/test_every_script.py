"""Every script explains itself, and importing one does nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.forked_scripts import run_script

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    [
        *(ROOT / "scripts").rglob("*.py"),
        *(ROOT / "benchmarks").rglob("*.py"),
        *(path for path in ROOT.glob("*.py") if path.name != "setup.py"),
    ]
)
HOOKS = ROOT / "scripts" / "site" / "hooks.py"  # loaded by mkdocs
COMMANDS = [path for path in SCRIPTS if '__name__ == "__main__"' in path.read_text()]
SHELL_COMMANDS = [
    ROOT / "start_vectorized_training.sh",
    ROOT / "scripts" / "run_tests.sh",
    ROOT / "scripts" / "check_pages.sh",
    ROOT / "scripts" / "monitoring" / "web_dashboard.sh",
]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("script", COMMANDS, ids=name)
def test_a_script_answers_help_from_any_folder(script, tmp_path):
    result = run(sys.executable, script, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage:")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", COMMANDS, ids=name)
def test_a_script_refuses_an_unknown_flag_by_name(script, tmp_path, tmp_path_factory):
    result = run_script(script, "--no-such-flag", cwd=tmp_path, log_dir=tmp_path_factory.mktemp("streams"))
    assert result.returncode == 2
    assert "--no-such-flag" in result.stderr or "required" in result.stderr


@pytest.mark.parametrize("script", SHELL_COMMANDS, ids=name)
def test_a_shell_script_answers_help_from_any_folder(script, tmp_path):
    result = run("bash", script, "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage:")


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_importing_a_script_does_nothing(script, tmp_path, tmp_path_factory):
    result = run_script(script, cwd=tmp_path, as_main=False, log_dir=tmp_path_factory.mktemp("streams"))
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_everything_under_scripts_is_a_command():
    # setup/ may hold shell libraries; a Python file under scripts/ is there to be run.
    known = (*COMMANDS, HOOKS)
    assert [name(path) for path in SCRIPTS if path.is_relative_to(ROOT / "scripts") and path not in known] == []
