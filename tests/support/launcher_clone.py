"""A stand-in repository for the launcher: its real shell files, a trainer and an environment made of stubs."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The launcher's own, as the trainer sees them.
DEMONSTRATION = (
    "'--n-trials', '12', '--workers', '2', '--n-envs', '2', '--num-paths', '2', '--k-test-groups', '1', "
    "'--break-step', '1000000', '--use-best-ranges', '--pruner', 'none'"
)
TRAINER = """
import signal, sys, time
print("stub trainer", sys.argv[1:], flush=True)
if "--die" in sys.argv:
    sys.exit("ValueError: the stub was told to die")
if "--complete" in sys.argv:
    print("INFO study s: 4 of 4 trials finished, database d, results in r")
    print("the best hyperparameters")
    sys.exit(0)
if "--stays-in-cash" in sys.argv:
    print("no tradable signal found at these costs")
    sys.exit(5)
if "--ignore-sigterm" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(0.3)
print("Using Vectorized Environments: 12 parallel envs", flush=True)
time.sleep(90)
"""
# Obeys the trader's flags as far as the launcher knows them; --end-with CODE and the like are the stub's own.
TRADER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("stub trader", sys.argv[1:], flush=True)
if "--end-with" in sys.argv:
    print("the stub says why")
    sys.exit(int(sys.argv[sys.argv.index("--end-with") + 1]))
if "--long-bars" in sys.argv:
    time.sleep(90)
print("stub: decided on the bar of 18:05 UTC", flush=True)
if "--long-log" in sys.argv:
    print(("x" * 99 + "\\n") * 20_000, flush=True)
if "--once" in sys.argv:
    os._exit(0)
time.sleep(90)
"""
# Deploys what it is told to, unless it is to refuse.
DEPLOYER = """
import json, os, pathlib, sys
print("stub deployer", sys.argv[1:])
if code := int(os.environ.get("STUB_DEPLOYER_CODE", "0")):
    sys.exit(code)
if "STUB_NOTHING_NEW" not in os.environ:
    deployments = pathlib.Path(__file__).parents[2] / "deployments"
    (deployments / "d1").mkdir(parents=True)
    study = sys.argv[sys.argv.index("--study-name") + 1]
    (deployments / "d1" / "deployment.json").write_text(json.dumps({"study": study}, indent=1))
    (deployments / "current").symlink_to("d1")
"""
DOWNLOAD = """
import os, pathlib, sys
print("stub download", sys.argv[1:])
if error := os.environ.get("STUB_DOWNLOAD_ERROR"):
    sys.exit(error)
bars = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
bars.parent.mkdir(parents=True)
bars.touch()
"""
MAKE_DATASET = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
folder.mkdir(parents=True)
print("stub dataset", sys.argv[1:])
law = "no signal" if "--no-signal" in sys.argv else "planted signal"
sample = {"kind": "synthetic", "source": f"sample market, {law}, seed 0, 20256 bars"}
(folder / "manifest.json").write_text(json.dumps(sample if "make_sample" in sys.argv[0] else {"kind": "real"}))
"""
# Writes down what it was asked to install, and under which constraints.
PIP = """
import pathlib, sys
if "--version" not in sys.argv:
    note = [" ".join(sys.argv[1:])]
    note += [pathlib.Path(f).read_text() for flag, f in zip(sys.argv, sys.argv[1:]) if flag in ("-c", "-r")]
    with open(pathlib.Path(sys.prefix) / "pip-calls.txt", "a") as calls:
        calls.write("\\n".join(note))
    if "-e" in sys.argv:
        repository = sys.argv[sys.argv.index("-e") + 1]
        (pathlib.Path(__file__).parents[1] / "repository.pth").write_text(repository)
"""
TORCH = """
__version__ = "2.99.0+stub"
class cuda:
    is_available = staticmethod(lambda: False)
"""


@dataclass(frozen=True)
class Clone:
    """A folder with blanks in its name that the launcher takes for its repository."""

    root: Path

    @property
    def log(self) -> Path:
        return self.root / "logs" / "worker_vectorized.log"

    @property
    def pid_file(self) -> Path:
        return self.root / "logs" / "worker_vectorized.pid"

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text().split()[0])

    @property
    def trainer(self) -> Path:
        return self.root / "scripts" / "training" / "1_optimize_unified.py"

    @property
    def trader(self) -> Path:
        return self.root / "scripts" / "deployment" / "paper_trade.py"

    @property
    def trader_log(self) -> Path:
        return self.root / "logs" / "paper_trader.log"

    @property
    def trader_pid(self) -> int:
        return int((self.root / "logs" / "paper_trader.pid").read_text().split()[0])

    @property
    def command(self) -> list[str]:
        return ["bash", str(self.root / "start_vectorized_training.sh")]

    def launch(self, *flags: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*self.command, *flags],
            cwd=cwd or self.root.parent,
            env=clean_environment() | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def clean_environment() -> dict[str, str]:
    """Without an active virtual environment, which the launcher would respect."""
    return {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "CONDA_PREFIX")}


def is_running(pid: int) -> bool:
    """Whether the process exists and has not ended (a zombie has)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait_until(condition, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "gave up waiting"
        time.sleep(0.05)


def start_in_own_session(clone: Clone, *flags: str) -> subprocess.Popen:
    """As from a terminal of its own, so that Ctrl-C can be sent to everything in it."""
    return subprocess.Popen(
        [*clone.command, *flags],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def assert_one_line_error(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode != 0
    error = result.stderr.strip()
    assert len(error.splitlines()) == 1, error
    assert all(word in error for word in words), error


def processes_of(clone: Clone) -> list[int]:
    """Processes of this clone's trainer and trader: their paths, in pytest's temporary folder, are nobody else's."""
    wanted = {str(clone.trainer).encode(), str(clone.trader).encode()}
    return [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if wanted & set(read_bytes_if_there(folder / "cmdline").split(b"\0"))
    ]


def read_bytes_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_stub_venv(folder: Path, *, with_torch: bool = True) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next((folder / "lib").glob("python3*")) / "site-packages"
    write(packages / "pip" / "__main__.py", PIP)
    write(packages / "elegantrl.py", "")
    if with_torch:
        write(packages / "torch.py", TORCH)


def make_clone(root: Path) -> Clone:
    shutil.copytree(ROOT / "scripts" / "setup", root / "scripts" / "setup")
    for name in ("start_vectorized_training.sh", "constraints.txt", *(p.name for p in ROOT.glob("requirements*.txt"))):
        shutil.copy(ROOT / name, root / name)
    clone = Clone(root)
    write(root / "barwise" / "__init__.py", "")
    write(clone.trainer, TRAINER)
    write(clone.trader, TRADER)
    write(root / "scripts" / "deployment" / "auto_replace_best_5m.py", DEPLOYER)
    write(root / "scripts" / "data" / "download_bars.py", DOWNLOAD)
    write(root / "scripts" / "data" / "build_dataset.py", MAKE_DATASET)
    write(root / "scripts" / "data" / "make_sample.py", MAKE_DATASET)
    make_stub_venv(root / ".venv")
    return clone
