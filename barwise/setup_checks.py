"""Checks that this machine is ready to train. Every reported problem comes with a remedy.

The checks also run on a bare Python: third-party packages are imported inside the checks, so a missing package is
reported and does not crash the program. Nothing is installed or changed, except for a temporary file that tests whether
a folder is writable.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

OK, NOTE, BAD = "ok", "note", "BAD"
LEAST_PYTHON = (3, 11)
SETUP = "./start_vectorized_training.sh creates the environment and keeps an installed torch"
REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)\s*(==|>=)\s*([0-9][0-9A-Za-z.]*)")
LOW_DISK_BYTES, NO_DISK_BYTES = 5 << 30, 512 << 20  # a trial stores a few MB; SQLite needs space for its log
LOW_MEMORY_BYTES = 2 << 30
WIDTH = 100  # of a line, characters


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    part: str
    state: str  # OK; NOTE: works, with a remark; BAD: training will not work
    text: str
    remedy: str = ""  # what to do; empty if nothing is to be done


@dataclass(frozen=True)
class Places:
    """The paths and the database to check."""

    repo: Path
    data_dir: Path | None  # a dataset, or a folder of datasets; None: the repository's own
    storage: str  # URL of the study's database; a relative SQLite path starts at `here`
    here: Path


def examine(places: Places) -> list[Finding]:
    """Run all checks and return the findings in the order in which to fix them."""
    return [
        *python(),
        *packages(places.repo),
        *devices(),
        *(datasets(places.repo / "data") if places.data_dir is None else datasets(places.data_dir, is_named=True)),
        *database(places.storage, places.here),
        *folders(places.repo),
        *trainer(places.repo / "logs" / "worker_vectorized.pid"),
        *keys(),
    ]


def report(findings: Iterable[Finding]) -> str:
    """Format each finding, with its remedy on the next lines, wrapped to the line width."""
    lines = []
    for f in findings:
        lines += _wrapped(f"{f.state:<4}  {f.part:<13} ", f.text)
        if f.remedy:
            lines += _wrapped(f"{'':<20}-> ", f.remedy)
    return "\n".join(lines)


def _wrapped(first: str, text: str) -> list[str]:
    """Wrap a text without breaking words or paths, so that they can be copied."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first),
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- software
def python() -> Iterator[Finding]:
    """Check the version of the Python interpreter."""
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        yield Finding("python", BAD, text, f"{least} or newer is required; activate an environment that has it")
    else:
        yield Finding("python", OK, text)


def packages(repo: Path) -> Iterator[Finding]:
    """Check the packages of requirements.txt and requirements-elegantrl.txt."""
    files = [repo / "requirements.txt", repo / "requirements-elegantrl.txt"]
    wanted = list(requirements(*files)) if files[0].is_file() else list(installed_requirements())
    missing, other = [], []
    for name, relation, version in wanted:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if not _satisfies(found, relation, version):
            other.append(f"{name} {found} (required: {relation}{version})")
    n = len(wanted) - len(missing)
    if missing:
        yield Finding("packages", BAD, f"{n} of {len(wanted)}; missing: {', '.join(missing)}", _how_to_install(missing))
    else:
        yield Finding("packages", OK, f"all {n} required packages are installed")
    if other:
        yield Finding(
            "versions", NOTE, "; ".join(other), "these versions are untested; an installed torch is never replaced"
        )


def requirements(*files: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (name, == or >=, version) of each requirement in the files."""
    for path in files:
        for line in path.read_text().splitlines():
            match = REQUIREMENT.match(line)
            if match:
                yield match.group(1), match.group(2), match.group(3)


def installed_requirements() -> Iterator[tuple[str, str, str]]:
    """Yield the requirements of the installed wheel, which has no requirement files."""
    for line in metadata.requires("barwise") or []:
        match = REQUIREMENT.match(line) if "extra ==" not in line else None
        if match:
            yield match.group(1), match.group(2), match.group(3)


def _satisfies(found: str, relation: str, version: str) -> bool:
    """Return True if the version satisfies the requirement, ignoring build tags such as +cpu."""

    def release(text: str) -> list[int]:
        digits = re.match(r"[0-9.]+", text)
        return [int(part) for part in digits.group(0).strip(".").split(".")] if digits else []

    have, want = release(found), release(version)
    have += [0] * (len(want) - len(have))
    return have[: len(want)] == want if relation == "==" else have >= want


def _how_to_install(missing: list[str]) -> str:
    if missing == ["elegantrl"]:
        return "pip install --no-deps -r requirements-elegantrl.txt"
    if sys.prefix == sys.base_prefix:
        return f"no environment is active; run source .venv/bin/activate if it exists; {SETUP}"
    return SETUP


# ------------------------------------------------------------------------------------------------------------ devices
def devices() -> Iterator[Finding]:
    """Check the processor, memory, GPUs and native steps."""
    memory = _available_memory()
    text = f"{os.cpu_count()} cores, {_size(memory)} of memory free" if memory else f"{os.cpu_count()} cores"
    if memory and memory < LOW_MEMORY_BYTES:
        yield Finding("machine", NOTE, text, "close other programs, or train with a smaller --n-envs")
    else:
        yield Finding("machine", OK, text)
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("device", BAD, f"torch cannot be imported: {_first_line(error)}", SETUP)
        return
    yield from _gpus(torch)
    yield _compiled_step(torch)
    yield from first_uses()


def _gpus(torch: Any) -> Iterator[Finding]:
    kind = "ROCm" if getattr(torch.version, "hip", None) else "CUDA" if torch.version.cuda else "CPU"
    build = f"torch {torch.__version__}, a {kind} build"
    if not torch.cuda.is_available():
        yield _no_gpu(build, kind)
        return
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        try:
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            remedy = "check whether another program uses all of its memory"
            yield Finding("device", BAD, f"GPU {number}, {name}: {_first_line(error)}", remedy)
            continue
        yield Finding("device", OK, f"GPU {number}: {name}, {_size(free)} of {_size(total)} free; {build}")


def _no_gpu(build: str, kind: str) -> Finding:
    has_nvidia, has_amd = Path("/dev/nvidiactl").exists(), Path("/dev/kfd").exists()
    if has_amd and kind != "ROCm":
        remedy = "this machine has an AMD GPU: install a ROCm build of torch into .venv; it will be kept"
    elif has_nvidia and kind != "CUDA":
        remedy = "this machine has an NVIDIA GPU: install a CUDA build of torch into .venv; it will be kept"
    elif has_nvidia or has_amd:
        remedy = "torch cannot use this GPU: check that its driver supports this torch (nvidia-smi, rocm-smi)"
    else:
        return Finding("device", OK, f"CPU only; {build}")
    return Finding("device", NOTE, f"no GPU for torch; {build}", remedy)


def _compiled_step(torch: Any) -> Finding:
    name = "triton" if torch.cuda.is_available() else "numba"
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        text = f"{name} cannot be imported ({_first_line(error)}): the slower PyTorch step is used"
        return Finding("fast step", NOTE, text, SETUP)
    return Finding("fast step", OK, f"{name} {metadata.version(name)}")


def first_uses() -> Iterator[Finding]:
    """Report the recorded first-use comparison of each native step with the PyTorch step, per device."""
    try:
        from train.native_steps import known_steps

        known = known_steps()
    except (ImportError, RuntimeError) as error:
        yield Finding("first use", NOTE, f"not checked: {_first_line(error)}", SETUP)
        return
    for step in known:
        if step.is_used:
            yield Finding("first use", OK, f"{step.name}: {step.text}")
        else:
            remedy = f"the PyTorch step runs instead; remove {step.file} to test the native step again"
            yield Finding("first use", NOTE, f"{step.name}: {step.text}", remedy)
    if not known:
        yield Finding("first use", OK, "no native step has been tested yet; the first environment tests it")


def _available_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


# ----------------------------------------------------------------------------------------------- datasets and database
def datasets(folder: Path, is_named: bool = False) -> Iterator[Finding]:
    """Verify the hash of every dataset in the folder; with `is_named` an empty folder is BAD."""
    manifest = "manifest.json"
    found = [folder] if (folder / manifest).exists() else [p.parent for p in sorted(folder.glob(f"*/{manifest}"))]
    if not found:
        if is_named:
            yield Finding("data", BAD, f"no dataset in {folder}", "give the folder that contains manifest.json")
            return
        remedy = "run ./start_vectorized_training.sh, which downloads bars or makes a sample dataset"
        yield Finding("data", NOTE, f"no dataset in {folder}", remedy)
        return
    try:
        from market.dataset import load_dataset
        from market.errors import DatasetError
    except ImportError as error:
        yield Finding("data", NOTE, f"{len(found)} in {folder}, not checked: {_first_line(error)}")
        return
    for path in found:
        try:
            yield Finding("data", OK, f"{path.name}: {load_dataset(path).label}")
        except DatasetError as error:
            yield Finding("data", BAD, _first_line(error), f"move {path} elsewhere and rebuild it; see data/README.md")


def database(storage: str, here: Path) -> Iterator[Finding]:
    """Check that the study database can be opened, without creating or locking anything."""
    try:
        from sqlalchemy.exc import SQLAlchemyError

        from train.records.errors import StudyError
        from train.store.address import LOCK_TIMEOUT_S, absolute_url, shown_url, sqlite_path
    except ImportError as error:
        yield Finding("database", NOTE, f"not checked: {_first_line(error)}")
        return
    try:
        url = absolute_url(storage, here)
    except StudyError as error:
        yield Finding("database", BAD, str(error), "pass the same --storage as to the trainer")
        return
    path = sqlite_path(url)
    if path is not None:
        yield _sqlite(path)
        return
    shown = shown_url(url)
    engine = None
    try:
        from train.store.server_connection import server_engine

        engine = server_engine(url, LOCK_TIMEOUT_S)
        with engine.connect() as connection:
            names = _study_names(connection)
    except (SQLAlchemyError, ImportError) as error:
        remedy = "check that the server runs, the user name and password are correct and the driver is installed"
        yield Finding("database", BAD, f"{shown}: {_first_line(error)}", remedy)
        return
    finally:
        if engine is not None:
            engine.dispose()
    yield Finding("database", OK, f"{shown}: {_named(names)}")


def _study_names(connection: Any) -> list[str]:
    """Return all study names; unlike Optuna, create no tables in an empty database."""
    import sqlalchemy

    if not sqlalchemy.inspect(connection).has_table("studies"):
        return []
    return list(connection.execute(sqlalchemy.text("SELECT study_name FROM studies ORDER BY study_name")).scalars())


def _sqlite(path: Path) -> Finding:
    import sqlite3

    if not path.exists():
        return Finding("database", OK, f"{path}: does not exist yet; the first study creates it")
    remedy = "restore it from a backup, or move it elsewhere to start from scratch"
    if path.stat().st_size == 0:
        return Finding("database", BAD, f"{path}: empty", remedy)
    try:
        # A database in WAL mode without a -wal file is not open anywhere; a normal read would create that file.
        is_unused = _head(path)[18:19] == b"\x02" and not Path(f"{path}-wal").exists()
        how = "immutable=1" if is_unused else "mode=ro"
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=2)
        try:
            names = [name for (name,) in connection.execute("SELECT study_name FROM studies ORDER BY study_name")]
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return Finding(
                "database", NOTE, f"{path}: locked by another program", "try again; fuser shows which program"
            )
        return Finding("database", BAD, f"{path}: {error}", remedy)
    except sqlite3.DatabaseError as error:
        return Finding("database", BAD, f"{path}: {error}", remedy)
    return Finding("database", OK, f"{path}: {_named(names)}, {_size(path.stat().st_size)}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(100)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} stud{'y' if len(names) == 1 else 'ies'}" + (f" ({shown})" if names else "")


# ------------------------------------------------------------------------------------------------- folders and process
def folders(repo: Path) -> Iterator[Finding]:
    """Check that the trainer's output folders are writable and have enough disk space."""
    for name in ("logs", "databases", "train_results"):
        folder = repo / name
        there = folder if folder.exists() else repo
        reason = _why_not_writable(there)
        if reason:
            remedy = f"ls -ld '{there}' shows its owner, df -h the free space"
            yield Finding(name, BAD, f"{there}: not writable: {reason}", remedy)
            continue
        free = shutil.disk_usage(there).free
        text = f"{folder} can be {'written' if folder.exists() else 'created'}, {_size(free)} free"
        if free < NO_DISK_BYTES:
            yield Finding(name, BAD, text, "free disk space: old studies in train_results/ use the most")
        elif free < LOW_DISK_BYTES:
            yield Finding(name, NOTE, text, "free disk space before a long study: each trial stores a few MB")
        else:
            yield Finding(name, OK, text)


def _why_not_writable(folder: Path) -> str:
    """Return why no file can be created in the folder, or "" if a temporary file can."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def trainer(pid_file: Path) -> Iterator[Finding]:
    """Report whether the process in the launcher's pid file is still the trainer of this folder."""
    try:
        pid, ticks = pid_file.read_text().splitlines()[:2]
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, ValueError):
        yield Finding("trainer", OK, "not running in this folder")
        return
    if stat.rpartition(")")[2].split()[19] != ticks.strip():  # field 22: start time; the pid was reused
        yield Finding("trainer", OK, "not running in this folder; the last one has ended")
    else:
        yield Finding("trainer", OK, f"running (pid {pid}); see ./start_vectorized_training.sh --status")


def keys() -> Iterator[Finding]:
    """Check the Alpaca API keys, which training does not need. Their values are never shown."""
    known = [name for name in ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY") if os.environ.get(name)]
    if len(known) == 1:
        remedy = "export both variables, or neither"
        yield Finding("keys", NOTE, f"only {known[0]} is set; Alpaca needs both for trading and asset rules", remedy)
    else:
        yield Finding("keys", OK, "Alpaca keys are set" if known else "no Alpaca keys set; training needs none")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1024**3:.1f} GB" if n_bytes >= 1024**3 else f"{n_bytes / 1024**2:.0f} MB"
