"""A table of allowed imports between packages is compared with every import statement, including lazy ones."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = {"environment_Alpaca", "environment_Alpaca_vectorized"}

GROUND = {
    "market.errors",
    "market.symbols",
    "market.names",
    "market.files",
    "market.times",
    "market.codec",
    "market.defaults",
}
MARKET = {"market", "market.bars", *GROUND}
ONE_RUN = {"train", "train.records", "drl_agents", *ENVIRONMENTS}
ONE_TRIAL = {"train.study", "train.store", "train.validation", *ONE_RUN, *MARKET}

# A module belongs to its longest matching prefix. It may import the listed packages and its own package.
MAY_IMPORT: dict[str, set[str]] = {
    # the drop-in file imports nothing (it finds the kernels at run time); the others import shared structs from it
    "environment_Alpaca_vectorized": set(),
    "environment_Alpaca_kernels": {"environment_Alpaca_vectorized"},
    "environment_Alpaca": {"environment_Alpaca_vectorized"},
    "adapters": {"environment_Alpaca_vectorized"},
    "examples": {"adapters", "barwise", *ONE_TRIAL},
    "drl_agents": set(),
    "drl_agents.elegantrl_models": {"train", "drl_agents"},
    # market: base modules, bars, datasets, sources
    "market.errors": set(),
    "market.defaults": set(),
    "market.times": {"market.errors"},
    "market.symbols": {"market.errors"},
    "market.names": {"market.errors", "market.symbols"},
    "market.files": {"market.errors"},
    "market.codec": {"market.errors"},
    "market.bars": GROUND,
    "market": {"market.bars", *GROUND},
    "market.sources": MARKET,
    # train, layer by layer
    "train.records": {*MARKET},
    "train.validation": {"market.errors", "train.records"},
    "train": ONE_RUN,
    "train.store": {"train.records", *MARKET},
    "train.study": ONE_TRIAL,
    "train.runner": ONE_TRIAL,
    "train.findings": ONE_TRIAL,
    "train.watch": {"train.study", "train.store", "train.records", *MARKET},
    "train.lookahead": ONE_TRIAL,
    "train.report": {"train.findings", *ONE_TRIAL},
    "train.deploy": {"train.findings", *ONE_TRIAL},
    "train.finish": {"train.runner", "train.findings", "train.report", *ONE_TRIAL},
    "train.worker_program": {"train.runner", "train.report", *ONE_TRIAL},
    "paper_trading": {"market.sources", "train.deploy", "train.report", "train.watch", *ONE_TRIAL},
}
MOST_LAYERS = 6  # layers of train, above market
# Programs may import everything, and nothing imports them.
PROGRAMS = ("barwise", "scripts", "benchmarks", "paper_trader_dashboard")
OURS = {prefix.partition(".")[0] for prefix in (*MAY_IMPORT, *PROGRAMS)} | {"tests"}

DROP_IN = ROOT / "environment_Alpaca_vectorized.py"
# Besides the file, a host needs only NumPy and torch.
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
        ("train.runner.worker", "from scripts.training import x"),
        ("train.validation.metrics", "from ..run import train_policy"),
        ("train.evaluator", "from tests.support import markets"),
    ],
)
def test_a_wrong_import_is_found(module, line):
    assert forbidden(line, module)


# Settings, tables and checks of the drop-in. The specification computes all else by itself: no order, fill, fee or
# reward of the fast path may reach it.
SPECIFICATION_MAY_TAKE = {
    "EnvParams", "CAPPUCCINO_LIMITS", "COLUMN_LIMITS", "EQUITY_FLOOR", "HELD_BARS_SCALE", "INCREMENT_SLACK",
    "TARGET_WEIGHT", "check_arrays",
}  # fmt: skip


def taken_from_the_drop_in(source: str) -> set[str]:
    module = "environment_Alpaca_vectorized"
    names = {name for name in imports(source, "environment_Alpaca") if name.partition(".")[0] == module}
    return {name.removeprefix(module).removeprefix(".") or "all of it" for name in names}


def test_the_specification_shares_nothing_that_computes():
    assert taken_from_the_drop_in((ROOT / "environment_Alpaca.py").read_text()) <= SPECIFICATION_MAY_TAKE


@pytest.mark.parametrize(
    "line",
    ["from environment_Alpaca_vectorized import smallest_orders", "from environment_Alpaca_vectorized import *",
     "import environment_Alpaca_vectorized", "def f():\n    from environment_Alpaca_vectorized import step as s"],
)  # fmt: skip
def test_an_import_that_computes_is_found(line):
    assert taken_from_the_drop_in(line) - SPECIFICATION_MAY_TAKE


def test_every_part_of_the_repository_is_in_the_table():
    packages = {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("*/__init__.py")}
    files = {path.stem for path in ROOT.glob("*.py")}
    assert packages | files - {"setup"} <= OURS


def layer_of(package: str, allowed: dict[str, set[str]], above: tuple[str, ...] = ()) -> int:
    """Return the length of the longest import chain within train that starts at a package."""
    assert package not in above, f"circle: {' -> '.join((*above, package))}"
    below = [r for r in allowed[package] if r.partition(".")[0] == "train" and r != package]
    return 1 + max((layer_of(r, allowed, (*above, package)) for r in below), default=0)


def test_train_has_few_floors_and_no_circle():
    packages = [package for package in MAY_IMPORT if package.partition(".")[0] == "train"]
    assert max(layer_of(package, MAY_IMPORT) for package in packages) <= MOST_LAYERS


def test_a_circle_is_found():
    with pytest.raises(AssertionError, match="circle"):
        layer_of("train", MAY_IMPORT | {"train.records": {"train"}})


def test_every_folder_has_a_line_of_its_own_and_says_who_may_come_in():
    for folder in sorted({path.parent for top in ("train", "market") for path in (ROOT / top).rglob("*.py")}):
        assert folder.relative_to(ROOT).as_posix().replace("/", ".") in MAY_IMPORT
        assert len((ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or "").split()) > 12, folder


def test_no_two_modules_have_the_same_name():
    """Programs are named after what they do, and tests after what they test."""
    shared = ("__init__", "errors", "defaults")  # every package may have its own
    names = [path.stem for path in sources() if path.stem not in shared and path.parent.name != "examples"]
    assert sorted({name for name in names if names.count(name) > 1}) == []
