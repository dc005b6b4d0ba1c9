"""The systemd unit and the container recipe: what systemd says of the unit, and that both fit the repository."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from paper_trading.presence import BusyError, lock_path
from paper_trading.trader_program import HALTED
from tests.support.launcher_clone import ROOT
from tests.support.programs import parser_of

DEPLOYMENT = ROOT / "scripts" / "deployment"
UNIT = (DEPLOYMENT / "paper-trader.service").read_text()
RECIPE = (DEPLOYMENT / "Containerfile").read_text()
PAGE = (ROOT / "docs" / "trading_operations.md").read_text()
PLACE = "/opt/barwise"


def setting(name: str) -> list[str]:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.M)
    return value.split()


def verify(text: str, folder: Path) -> subprocess.CompletedProcess:
    """Ask systemd, with an interpreter where the unit expects one."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    unit = folder / "paper-trader.service"
    unit.write_text(text.replace(PLACE, str(folder)))
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@needs_systemd
def test_systemd_takes_the_unit_without_a_word(tmp_path):
    result = verify(UNIT, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "paper-trader" not in result.stderr, "units of this machine may have words of their own"


@needs_systemd
@pytest.mark.parametrize(
    ("old", "new"),
    [("Restart=on-failure", "Restart=sometimes"), ("NoNewPrivileges=yes", "NewPrivileges=no"),
     (f"ExecStart={PLACE}", "ExecStart=/nowhere")],
)  # fmt: skip
def test_systemd_notices_what_is_wrong(tmp_path, old, new):
    assert UNIT.count(old) == 1
    assert "paper-trader.service" in verify(UNIT.replace(old, new), tmp_path).stderr


def test_the_unit_starts_the_trader_by_its_path_and_names_a_key_file_for_root_alone():
    python, script, *flags = setting("ExecStart")
    assert (python, script) == (f"{PLACE}/.venv/bin/python", f"{PLACE}/scripts/deployment/paper_trade.py")
    assert (ROOT / Path(script).relative_to(PLACE)).is_file()
    parser_of("trade").parse_args(flags)
    (key_file,) = setting("EnvironmentFile")
    assert f"install -m 600 /dev/null {key_file} " in UNIT


def test_what_a_restart_does_not_put_right_is_not_restarted():
    assert set(map(int, setting("RestartPreventExitStatus"))) == {2, BusyError.exit_code, HALTED}
    assert setting("Restart") == ["on-failure"]
    assert "143" in setting("SuccessExitStatus")


def test_the_exit_codes_of_the_page_are_those_of_the_traders_help():
    codes = " ".join((parser_of("trade").epilog or "").split()).partition("Exit codes:")[2]
    help_says = {int(code) for code in re.findall(r"(?:^|;) (\d) ", codes)}
    (section,) = re.findall(r"^## Exit codes\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    page_says = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", section, re.M) for code in row.split(",")}
    assert page_says - {129, 130, 143} == help_says
    assert {2, BusyError.exit_code, HALTED} <= help_says


def test_the_lock_of_the_account_is_seen_from_inside_the_unit():
    """A /tmp of the unit's own would hide it from a trader that is started by hand."""
    assert setting("PrivateTmp") == ["no"]
    assert lock_path("paper-1a2b3c4d", Path("/x")).parent != Path("/x"), "no longer in the folder for temporary files?"
    assert setting("ReadWritePaths") == [f"{PLACE}/trading", "/tmp"]


def test_the_container_has_all_packages_and_nothing_that_may_hold_secrets():
    copied = [line.split()[:-1] for line in re.findall(r"^COPY (.*)$", RECIPE, re.M)]
    sources = {path.relative_to(ROOT).as_posix() for words in copied for word in words for path in ROOT.glob(word)}
    assert all(any(ROOT.glob(word)) for words in copied for word in words)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]}
    assert packages | modules | {"paper_trading", "scripts", "constraints.txt", "requirements.txt"} <= sources
    tracked = subprocess.run(["git", "ls-files", *sources], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split("/")[0] for line in tracked.splitlines()} == sources


def test_the_container_runs_as_a_user_of_its_own_and_names_no_host():
    assert re.findall(r"^FROM (.*)$", RECIPE, re.M) == ["python:3.11-slim"]
    assert re.findall(r"^USER (.*)$", RECIPE, re.M) == ["trader"]
    assert "://" not in RECIPE
    for path in re.findall(r"/app/(scripts/[\w/.]+)", RECIPE):
        assert (ROOT / path).is_file(), path
