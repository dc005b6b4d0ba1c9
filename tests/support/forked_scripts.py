"""Scripts run in processes that have the large libraries loaded already: the same run, without a second of imports.

A forked child finds torch, pandas and the others imported. What a script imports by itself, and that it can be run from
anywhere, is for a process of its own to show (`--help` in tests/scripts/test_every_script.py).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

LOADED = ["torch", "pandas", "optuna", "matplotlib.figure", "scipy.stats", "numba", "sqlalchemy", "pyarrow.parquet",
          "elegantrl.train.config", "alpaca.data.historical.crypto", "talib"]  # fmt: skip
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LOADED)


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    returncode: int
    stdout: str
    stderr: str


def run_script(script: Path, *arguments: str, cwd: Path, as_main: bool = True, log_dir: Path) -> Ended:
    """Run a script as a program, or only import it; `log_dir` gets its two streams."""
    out, err = log_dir / "stdout", log_dir / "stderr"
    process = SERVER.Process(target=_child, args=(str(script), arguments, str(cwd), as_main, str(out), str(err)))
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{script} {arguments} runs for more than 120 s")
    return Ended(process.exitcode, out.read_text(), err.read_text())


def _child(script: str, arguments: tuple[str, ...], cwd: str, as_main: bool, out: str, err: str) -> None:
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(cwd)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))  # as when it is run
    code = 1
    try:
        _import(script) if not as_main else runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _import(script: str) -> None:
    import random

    before = random.getstate()
    runpy.run_path(script, run_name="script_under_test")
    assert random.getstate() == before, "seeded the global generator"
    torch = sys.modules.get("torch")
    assert torch is None or not torch.cuda.is_initialized(), "touched the GPU"
