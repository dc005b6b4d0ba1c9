"""The folder as a whole: `import adapters` needs no library, no adapter needs another one, all stay short."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_import_directions import imports
from tests.test_style_limits import code_lines

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("stable_baselines3", "torchrl", "tensordict", "skrl", "rsl_rl")
ADAPTERS = sorted(path for path in (ROOT / "adapters").glob("*.py") if path.stem != "__init__")
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_folder_registers_the_id_and_imports_no_other_library():
    pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    program = (
        "import sys, adapters, gymnasium\n"
        "print(adapters.ENV_ID in gymnasium.registry, 'torch' in sys.modules)\n"
        f"print([name for name in {LIBRARIES} if name in sys.modules])"
    )
    assert run(program).split("\n")[:2] == ["True False", "[]"]


def test_importing_the_folder_works_without_any_library():
    missing = ("gymnasium", *LIBRARIES)
    assert run(f"import sys; sys.modules |= dict.fromkeys({missing}); import adapters; print(adapters.ENV_ID)") == (
        "CryptoAlpaca-v0\n"
    )


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_imports_no_other_adapter(path):
    tops = {name.partition(".")[0] for name in imports(path.read_text(), f"adapters.{path.stem}")}
    assert "adapters" not in tops
    assert "environment_Alpaca_vectorized" in tops


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_has_at_most_90_lines_of_code(path):
    assert len(code_lines(path)) <= 90


def test_every_adapter_has_an_example():
    users = {name for path in EXAMPLES for name in imports(path.read_text(), path.stem)}
    registered = {"gymnasium_vector", "gymnasium_single"}  # their examples use the id
    assert {path.stem for path in ADAPTERS} - registered == {
        name.split(".")[1] for name in users if name.startswith("adapters.")
    }
    assert registered <= {path.stem for path in EXAMPLES}
