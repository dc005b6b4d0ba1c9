"""The distribution: what a wheel holds, what installing it asks for, and a study that runs from it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"adapters", "barwise", "drl_agents", "environment_Alpaca_kernels", "market", "paper_trading", "train"}
# What happens to be in the environment is used; nothing is downloaded.
OFFLINE = ["--no-index", "--no-build-isolation", "--no-deps"]


def pip(*arguments: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Clone the repository and its uncommitted changes, because a build writes into the folder that it builds."""
    copy = tmp_path_factory.mktemp("checkout") / "a folder with blanks"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    command = ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, changed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
        else:
            (copy / name).unlink(missing_ok=True)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    gone = checkout / "build" / "lib" / "train" / "of_an_earlier_build.py"  # setuptools would put it into the wheel
    gone.parent.mkdir(parents=True, exist_ok=True)
    gone.touch()
    pip("wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps", "-w", str(folder), str(checkout))
    return next(folder.glob("barwise-*.whl"))


def test_the_wheel_holds_the_packages_their_templates_and_the_version_of_the_code(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
        version = content.read("train/records/code_version.txt").decode().strip()
        metadata = content.read(next(name for name in names if name.endswith("METADATA"))).decode()
    tops = {name.partition("/")[0] for name in names if "/" in name and ".dist-info" not in name}
    assert tops == PACKAGES
    tracked = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "train/of_an_earlier_build.py" not in names
    assert {name for name in tracked.stdout.split() if (ROOT / name).is_file()} <= set(names)
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", version)
    assert "License-Expression: MIT" in metadata


def test_requirements_are_lower_bounds_that_a_torch_of_the_users_satisfies(wheel):
    with zipfile.ZipFile(wheel) as content:
        name = next(name for name in content.namelist() if name.endswith("METADATA"))
        lines = re.findall(r"^Requires-Dist: (.*)$", content.read(name).decode(), re.MULTILINE)
    asked = [Requirement(line) for line in lines]
    runtime = [r for r in asked if r.marker is None]
    assert all(spec.operator == ">=" for r in runtime for spec in r.specifier)
    (torch,) = (r for r in runtime if r.name == "torch")
    for version in ("2.13.0+rocm6.4", "2.9.1+cu128", "2.13.0+cpu"):
        assert torch.specifier.contains(version, prereleases=True)
    assert "elegantrl" not in {r.name for r in asked}  # its own requirements cannot be built
    names = [r.name for r in runtime]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("version", ["2.9.1+rocm6.4", "2.8.0+cu128"])
def test_an_installed_torch_is_never_replaced(version, tmp_path):
    """pip, told of another torch than ours, wants to install this repository and nothing else."""
    known = tmp_path / f"torch-{version}.dist-info"
    known.mkdir()
    (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    said = pip(
        "install", "--dry-run", "--quiet", "--no-index", "--no-build-isolation", "--ignore-installed", "--no-deps",
        "-c", "constraints.txt", "--report", "-", ".", PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert [found["metadata"]["name"] for found in json.loads(said)["install"]] == ["barwise"]
    checked = pip("install", "--dry-run", "-c", "constraints.txt", "--no-index", "-r", "requirements.txt",
                  PYTHONPATH=str(tmp_path))  # fmt: skip
    assert f"torch>=2.6 in {tmp_path}" in " ".join(checked.split())
    assert "Would install" not in checked


def outside(folder: Path, *code: str) -> subprocess.CompletedProcess:
    """Python with this environment's packages and the wheel, but without the checkout."""
    return subprocess.run([str(folder / "bin" / "python"), *code], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": ""}, check=False)  # fmt: skip


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *OFFLINE, "--target", str(packages), str(wheel)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Appended by a .pth file, so the wheel's modules come first; an editable install there is not followed.
    (packages / "others.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    return folder


def test_the_package_imports_without_elegantrl_and_without_the_checkout(installed):
    code = (
        "import sys; sys.modules['elegantrl'] = None\n"
        "import barwise, train.records.provenance as p\n"
        "print(barwise.__file__); print(p.home()); print(p.code_version())\n"
        "barwise.VectorizedCryptoEnvAlpacaOptimized, barwise.load_dataset, barwise.load_policy"
    )
    done = outside(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    where, home, version = done.stdout.split()
    assert Path(where).is_relative_to(installed)
    assert Path(home) == installed  # default paths lie in the current folder
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", version)


@pytest.mark.slow
def test_a_study_of_two_trials_runs_from_the_wheel(installed):
    small = ("--n-trials", "2", "--gpu", "-1", "--n-envs", "4", "--break-step", "2000", "--workers", "2")
    for command in (
        ("make-sample", "--n-bars", "4000", "--out", "data/5m"),
        ("optimize", *small, "--study-name", "s"),
        ("report", "--study-name", "s"),
    ):
        done = outside(installed, "-m", "barwise", *command)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    page = installed / "train_results" / "s" / "report.html"
    assert page.stat().st_size > 10_000
    settings = json.loads(next(page.parent.glob("trial_*/settings.json")).read_text())
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", settings["code_version"])
    assert (installed / "databases" / "optuna_cappuccino.db").is_file()
