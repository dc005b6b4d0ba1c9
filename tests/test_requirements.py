"""What the code imports is what the requirement files name: an environment set up from them lacks nothing."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ("requirements-bench.txt",)  # peers, imported where they are installed
OURS = "environment_Alpaca_kernels market drl_agents train barwise paper_trading scripts benchmarks"
RUNTIME = OURS.split()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required(*files: str) -> set[str]:
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    return {canonical(re.split(r"[=<>\[; ]", line)[0]) for line in lines if line and not line.startswith("#")}


def imported_packages(paths: list[Path]) -> set[str]:
    """Distributions behind the top-level modules that the files import."""
    modules: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add((node.module or "").partition(".")[0])
    ours = {path.stem for path in ROOT.glob("*.py")} | {folder.name for folder in ROOT.iterdir() if folder.is_dir()}
    others = modules - set(sys.stdlib_module_names) - ours
    known = packages_distributions()
    return {canonical(known[module][0] if module in known else module) for module in others}


def runtime_files() -> list[Path]:
    own = [path for path in ROOT.glob("*.py") if path.name != "setup.py"]
    # Runs in the virtual environments of other projects, which peers.py creates.
    elsewhere = ROOT / "benchmarks" / "peer_environments.py"
    return [*own, *(path for folder in RUNTIME for path in (ROOT / folder).rglob("*.py") if path != elsewhere)]


def test_the_programs_import_runtime_requirements_only():
    paths = runtime_files()
    with_torch = {"triton"}  # a torch for a GPU brings its own; without one nothing imports it
    with_boto3 = {"botocore"}
    optional = ("requirements-artifacts.txt", "requirements-postgresql.txt")
    files = ("requirements.txt", *optional, "requirements-elegantrl.txt", "requirements-docs.txt", *BENCHMARKS)
    known = required(*files) | with_torch | with_boto3
    assert imported_packages(paths) - known == set()


def test_the_adapters_and_examples_import_runtime_and_adapter_requirements_only():
    paths = [path for folder in ("adapters", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert imported_packages(paths) - required("requirements.txt", "requirements-adapters.txt") == set()


def test_the_tests_import_nothing_else_but_developer_requirements():
    paths = list((ROOT / "tests").rglob("*.py"))
    files = ("requirements.txt", "requirements-elegantrl.txt",
             *(f"requirements-{extra}.txt" for extra in ("dev", "adapters", "docs")))  # fmt: skip
    local = {"example", "script-under-test"}
    assert imported_packages(paths) - required(*files) - local == set()


def test_every_runtime_requirement_is_imported_or_a_program():
    paths = runtime_files()
    unused = required("requirements.txt") - imported_packages(paths)
    programs_and_plug_ins = {"scipy", "nvidia-ml-py"}
    assert unused <= programs_and_plug_ins
