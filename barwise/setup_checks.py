"""Is this machine ready to train? One finding a part, each with what to do about it.

Runs on a bare Python too, so everything beside the standard library is imported where it is asked about: a package that
is missing is a finding and not a crash. Nothing is installed, made or changed, but for a file of no bytes that is
written and removed to see whether a folder can be written.
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
SETUP = "./start_vectorized_training.sh makes the environment and keeps a torch that is there"
REQUIREMENT = re.compile(r"^([A-Za-z0-9_.-]+)\s*(==|>=)\s*([0-9][0-9A-Za-z.]*)")
LOW_DISK_BYTES, NO_DISK_BYTES = 5 << 30, 512 << 20  # a trial keeps some MB; SQLite needs room for its log
LOW_MEMORY_BYTES = 2 << 30
WIDTH = 100  # of a line


@dataclass(frozen=True)
class Finding:
    """What was looked at and how it is."""

    part: str
    state: str  # OK, NOTE: works, and there is something to know, BAD: training will not work
    text: str
    remedy: str = ""  # what to do; empty where there is nothing to do


@dataclass(frozen=True)
class Places:
    """What is looked at."""

    repo: Path
    data_dir: Path | None  # a dataset, or a folder of datasets; None: the repository's own
    storage: str  # URL of the study's database; a relative SQLite path starts at `here`
    here: Path


def examine(places: Places) -> list[Finding]:
    """Every finding, in the order to mend them in."""
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
    """A line a finding, its remedy under it; long ones go on in the same column."""
    lines = []
    for f in findings:
        lines += _wrapped(f"{f.state:<4}  {f.part:<13} ", f.text)
        if f.remedy:
            lines += _wrapped(f"{'':<20}-> ", f.remedy)
    return "\n".join(lines)


def _wrapped(first: str, text: str) -> list[str]:
    """Never broken within a word or a path, which are to be copied."""
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * len(first),
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- software
def python() -> Iterator[Finding]:
    """The interpreter."""
    text = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        yield Finding("python", BAD, text, f"{least} or newer is needed; activate an environment that has it")
    else:
        yield Finding("python", OK, text)


def packages(repo: Path) -> Iterator[Finding]:
    """What requirements.txt and requirements-elegantrl.txt ask for."""
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
            other.append(f"{name} {found} (asked for: {relation}{version})")
    n = len(wanted) - len(missing)
    if missing:
        yield Finding("packages", BAD, f"{n} of {len(wanted)}; missing: {', '.join(missing)}", _how_to_install(missing))
    else:
        yield Finding("packages", OK, f"all {n} of the requirement files")
    if other:
        yield Finding("versions", NOTE, "; ".join(other), "nothing was tested with these; a torch is never replaced")


def requirements(*files: Path) -> Iterator[tuple[str, str, str]]:
    """(name, == or >=, version) of every line that asks for a package."""
    for path in files:
        for line in path.read_text().splitlines():
            match = REQUIREMENT.match(line)
            if match:
                yield match.group(1), match.group(2), match.group(3)


def installed_requirements() -> Iterator[tuple[str, str, str]]:
    """The same of the installed wheel, which has no requirement files."""
    for line in metadata.requires("barwise") or []:
        match = REQUIREMENT.match(line) if "extra ==" not in line else None
        if match:
            yield match.group(1), match.group(2), match.group(3)


def _satisfies(found: str, relation: str, version: str) -> bool:
    """Compared by the numbers of the release; a build such as +cpu makes no difference."""

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
        return f"no environment is active: source .venv/bin/activate, if there is one; {SETUP}"
    return SETUP


# ------------------------------------------------------------------------------------------------------------ devices
def devices() -> Iterator[Finding]:
    """Processor, memory, GPU, and the compiled step."""
    memory = _available_memory()
    text = f"{os.cpu_count()} cores, {_size(memory)} of memory free" if memory else f"{os.cpu_count()} cores"
    if memory and memory < LOW_MEMORY_BYTES:
        yield Finding("machine", NOTE, text, "close what else runs, or train with a smaller --n-envs")
    else:
        yield Finding("machine", OK, text)
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("device", BAD, f"torch does not import: {_first_line(error)}", SETUP)
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
            remedy = "does another program use it up?"
            yield Finding("device", BAD, f"GPU {number}, {name}: {_first_line(error)}", remedy)
            continue
        yield Finding("device", OK, f"GPU {number}: {name}, {_size(free)} of {_size(total)} free; {build}")


def _no_gpu(build: str, kind: str) -> Finding:
    has_nvidia, has_amd = Path("/dev/nvidiactl").exists(), Path("/dev/kfd").exists()
    if has_amd and kind != "ROCm":
        remedy = "an AMD card is here: install a ROCm build of torch into .venv; it will be kept"
    elif has_nvidia and kind != "CUDA":
        remedy = "an NVIDIA card is here: install a CUDA build of torch into .venv; it will be kept"
    elif has_nvidia or has_amd:
        remedy = "a card is here that torch cannot use: does its driver fit this torch? (nvidia-smi, rocm-smi)"
    else:
        return Finding("device", OK, f"CPU only; {build}")
    return Finding("device", NOTE, f"no GPU for torch; {build}", remedy)


def _compiled_step(torch: Any) -> Finding:
    name = "triton" if torch.cuda.is_available() else "numba"
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        text = f"{name} does not import ({_first_line(error)}): the plain, slow step is used"
        return Finding("fast step", NOTE, text, SETUP)
    return Finding("fast step", OK, f"{name} {metadata.version(name)}")


def first_uses() -> Iterator[Finding]:
    """What comparing the native steps with the plain one showed on their first use, for each device."""
    try:
        from train.native_steps import known_steps

        known = known_steps()
    except (ImportError, RuntimeError) as error:
        yield Finding("first use", NOTE, f"not looked into: {_first_line(error)}", SETUP)
        return
    for step in known:
        if step.is_used:
            yield Finding("first use", OK, f"{step.name}: {step.text}")
        else:
            remedy = f"the plain step runs where that holds; remove {step.file} to try the other one again"
            yield Finding("first use", NOTE, f"{step.name}: {step.text}", remedy)
    if not known:
        yield Finding("first use", OK, "no native step of this code was tried here yet; the first environment does it")


def _available_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


# --------------------------------------------------------------------------------------------------- data and database
def datasets(folder: Path, is_named: bool = False) -> Iterator[Finding]:
    """Every dataset in the folder, its hash checked; a folder that somebody named has to have one."""
    manifest = "manifest.json"
    found = [folder] if (folder / manifest).exists() else [p.parent for p in sorted(folder.glob(f"*/{manifest}"))]
    if not found:
        if is_named:
            yield Finding("data", BAD, f"no dataset in {folder}", "name the folder that holds manifest.json")
            return
        remedy = "./start_vectorized_training.sh downloads bars or makes a sample; or scripts/data/download_bars.py"
        yield Finding("data", NOTE, f"no dataset in {folder}", remedy)
        return
    try:
        from market.dataset import load_dataset
        from market.errors import DatasetError
    except ImportError as error:
        yield Finding("data", NOTE, f"{len(found)} in {folder}, not looked into: {_first_line(error)}")
        return
    for path in found:
        try:
            yield Finding("data", OK, f"{path.name}: {load_dataset(path).label}")
        except DatasetError as error:
            yield Finding("data", BAD, _first_line(error), f"move {path} away and build it again: data/README.md")


def database(storage: str, here: Path) -> Iterator[Finding]:
    """Whether the study's database opens; nothing is made or locked."""
    try:
        from sqlalchemy.exc import SQLAlchemyError

        from train.records.errors import StudyError
        from train.store.address import LOCK_TIMEOUT_S, absolute_url, shown_url, sqlite_path
    except ImportError as error:
        yield Finding("database", NOTE, f"not looked into: {_first_line(error)}")
        return
    try:
        url = absolute_url(storage, here)
    except StudyError as error:
        yield Finding("database", BAD, str(error), "give --storage as you do to the trainer")
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
        remedy = "is the server up, are the name and the password right, is its driver installed?"
        yield Finding("database", BAD, f"{shown}: {_first_line(error)}", remedy)
        return
    finally:
        if engine is not None:
            engine.dispose()
    yield Finding("database", OK, f"{shown}: {_named(names)}")


def _study_names(connection: Any) -> list[str]:
    """Of a database that may have no tables yet; through Optuna they would be made."""
    import sqlalchemy

    if not sqlalchemy.inspect(connection).has_table("studies"):
        return []
    return list(connection.execute(sqlalchemy.text("SELECT study_name FROM studies ORDER BY study_name")).scalars())


def _sqlite(path: Path) -> Finding:
    import sqlite3

    if not path.exists():
        return Finding("database", OK, f"{path}: not there yet; the first study makes it")
    remedy = "restore it from a copy, or move it away to start afresh"
    if path.stat().st_size == 0:
        return Finding("database", BAD, f"{path}: empty", remedy)
    try:
        # A database with a write-ahead log and none beside it is open nowhere; read plainly, SQLite would make one.
        is_unused = _head(path)[18:19] == b"\x02" and not Path(f"{path}-wal").exists()
        how = "immutable=1" if is_unused else "mode=ro"
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=2)
        try:
            names = [name for (name,) in connection.execute("SELECT study_name FROM studies ORDER BY study_name")]
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return Finding("database", NOTE, f"{path}: locked by another program", "look again; fuser shows which")
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
    """Where the trainer writes: can it, and is there room."""
    for name in ("logs", "databases", "train_results"):
        folder = repo / name
        there = folder if folder.exists() else repo
        reason = _why_not_writable(there)
        if reason:
            remedy = f"ls -ld '{there}' shows its owner, df -h the room"
            yield Finding(name, BAD, f"{there}: cannot be written: {reason}", remedy)
            continue
        free = shutil.disk_usage(there).free
        text = f"{folder} can be {'written' if folder.exists() else 'made'}, {_size(free)} free"
        if free < NO_DISK_BYTES:
            yield Finding(name, BAD, text, "make room: old studies in train_results/ take most")
        elif free < LOW_DISK_BYTES:
            yield Finding(name, NOTE, text, "make room before a long study: each trial keeps some MB")
        else:
            yield Finding(name, OK, text)


def _why_not_writable(folder: Path) -> str:
    """Empty where a file can be made in the folder; it is removed."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def trainer(pid_file: Path) -> Iterator[Finding]:
    """Whether a trainer of this folder runs: the launcher's pid file, its process still the one that was started."""
    try:
        pid, ticks = pid_file.read_text().splitlines()[:2]
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
    except (OSError, ValueError):
        yield Finding("trainer", OK, "none runs in this folder")
        return
    if stat.rpartition(")")[2].split()[19] != ticks.strip():  # field 22: start time; another process has the number now
        yield Finding("trainer", OK, "none runs in this folder; the last one has ended")
    else:
        yield Finding("trainer", OK, f"runs (pid {pid}); ./start_vectorized_training.sh --status")


def keys() -> Iterator[Finding]:
    """Alpaca's keys, which training does without; they are never shown."""
    known = [name for name in ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY") if os.environ.get(name)]
    if len(known) == 1:
        remedy = "export both, or neither"
        yield Finding("keys", NOTE, f"only {known[0]} is set; Alpaca needs both for trading and asset rules", remedy)
    else:
        yield Finding("keys", OK, "Alpaca's are set" if known else "none of Alpaca's set; training needs none")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1024**3:.1f} GB" if n_bytes >= 1024**3 else f"{n_bytes / 1024**2:.0f} MB"
