"""Scripts run in processes that have the large libraries loaded already: the same run, without two seconds of imports.

A forked child finds torch, pandas and the others imported. What a script imports by itself, and that it can be run from
anywhere, is for a process of its own to show (`--help` in tests/scripts/test_every_script.py).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the server, and so torch in it, starts
LOADED = ["torch", "pandas", "optuna", "matplotlib.figure", "scipy.stats", "numba", "sqlalchemy", "pyarrow.parquet",
          "elegantrl.train.config", "alpaca.data.historical.crypto", "talib"]  # fmt: skip
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LOADED)
TIMEOUT_S = 120


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    returncode: int
    stdout: str
    stderr: str


class Forked:
    """A script that runs, under the names of `subprocess.Popen`; both streams may be one file, which is appended to.

    `before` is called in the new process, first.
    """

    def __init__(
        self, script: Path, *arguments: str, cwd: Path, out: Path, err: Path, as_main: bool = True,
        before: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        texts = (str(script), arguments, str(cwd), as_main, str(out), str(err))
        self._process = SERVER.Process(target=_child, args=(before, *texts), daemon=True)  # ends with the tests
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or minus the signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """Until it has ended."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise TimeoutError(f"{self._process} runs for more than {timeout} s")
        return code

    def send_signal(self, number: int) -> None:
        """To the process, which must run."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def run_script(script: Path, *arguments: str, cwd: Path, as_main: bool = True, log_dir: Path) -> Ended:
    """Run a script as a program, or only import it; `log_dir` gets its two streams."""
    out, err = log_dir / "stdout", log_dir / "stderr"
    for old in (out, err):
        old.unlink(missing_ok=True)
    code = Forked(script, *arguments, cwd=cwd, out=out, err=err, as_main=as_main).wait()
    return Ended(code, out.read_text(), err.read_text())


def _child(
    before: Callable[[], None] | None, script: str, arguments: tuple[str, ...], cwd: str, as_main: bool, out: str,
    err: str,
) -> None:  # fmt: skip
    if before is not None:
        before()
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(cwd)
    sys.argv = [script, *arguments]
    sys.orig_argv = [sys.executable, *sys.argv]
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
