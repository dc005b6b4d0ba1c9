"""Who may import whom: one table, held against every import statement, lazy ones included."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = {"environment_Alpaca", "environment_Alpaca_vectorized"}

# A module belongs to the longest prefix that fits it; it may import what is listed, and its own group.
MAY_IMPORT: dict[str, set[str]] = {
    # layer 0: third-party libraries only
    "market": set(),
    "drl_agents": set(),
    "train.config": set(),
    "train.validation": set(),
    # the drop-in stands alone (it looks the two kernels up at run time); the others take their shared structs from it
    "environment_Alpaca_vectorized": set(),
    "environment_Alpaca_kernels": {"environment_Alpaca_vectorized"},
    "environment_Alpaca": {"environment_Alpaca_vectorized"},
    "adapters": {"environment_Alpaca_vectorized"},
    # layer 1
    "train": {"drl_agents", "train.config", *ENVIRONMENTS},
    # layer 2
    "train.study": {"train", "train.config", "train.validation", "market"},
    # hands a study's winner to the layer below live trading; nothing in train.study may know it
    "train.study.handover": {"train.study", "train", "train.config", "train.validation", "market", "drl_agents"},
    "paper_trading": {"market", "drl_agents", "environment_Alpaca_vectorized"},
    "examples": {"adapters", "environment_Alpaca_vectorized"},
    # layer 3
    "drl_agents.elegantrl_models": {"train", "train.config", "drl_agents"},
}
# Layer 4 imports everything below it and is imported by nobody.
PROGRAMS = ("scripts", "benchmarks", "paper_trader_dashboard")
OURS = {prefix.partition(".")[0] for prefix in (*MAY_IMPORT, *PROGRAMS)} | {"tests"}

DROP_IN = ROOT / "environment_Alpaca_vectorized.py"
# NumPy and torch are all that a host needs beside the file.
DROP_IN_PACKAGES = {"numpy", "torch"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str) -> set[str]:
    """Dotted names that `source`, the text of `module`, imports, with the names taken from each module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def group_of(name: str) -> str:
    fits = [prefix for prefix in (*MAY_IMPORT, *PROGRAMS) if name == prefix or name.startswith(prefix + ".")]
    return max(fits, key=len, default=name)


def forbidden(source: str, module: str) -> set[str]:
    group = group_of(module)
    allowed = {group, *MAY_IMPORT[group]}
    ours = {name for name in imports(source, module) if name.partition(".")[0] in OURS}
    return {name for name in ours if group_of(name) not in allowed}


def sources() -> list[Path]:
    tops = {prefix.partition(".")[0] for prefix in MAY_IMPORT}
    files = [*ROOT.glob("*.py"), *(path for top in tops for path in (ROOT / top).rglob("*.py"))]
    return sorted(path for path in files if group_of(module_name(path)) in MAY_IMPORT)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_point_downwards(path):
    assert forbidden(path.read_text(), module_name(path)) == set()


def test_the_drop_in_needs_numpy_and_torch_only():
    tops = {name.partition(".")[0] for name in imports(DROP_IN.read_text(), "environment_Alpaca_vectorized")}
    assert tops - set(sys.stdlib_module_names) == DROP_IN_PACKAGES


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("market.features", "from train.run import train_policy"),
        ("drl_agents.agents.AgentPPO", "import environment_Alpaca"),
        ("train.run", "from train.study import worker"),
        ("train.run", "def f():\n    from market.dataset import Dataset"),
        ("train.study.worker", "from scripts.training import x"),
        ("train.validation.metrics", "from ..run import train_policy"),
        ("train.evaluator", "from tests.support import markets"),
    ],
)
def test_a_wrong_import_is_found(module, line):
    assert forbidden(line, module)


def test_every_part_of_the_repository_is_in_the_table():
    packages = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/__init__.py")}
    files = {path.stem for path in ROOT.glob("*.py")}
    assert packages | files <= OURS
