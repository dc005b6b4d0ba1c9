"""Files that are whole or not there: durable writes, folders swapped in one step, and distrustful .npy reading."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from market.errors import REBUILD, DatasetError

LARGEST_HEADER_BYTES = 4_096
NPY_START = b"\x93NUMPY\x01\x00"
# Dtype, order and sizes, at most three of them.
NPY_HEADER = re.compile(
    r"\{'descr': '(<[fiu][248]|\|[iub]1|\|O)', 'fortran_order': (True|False), "
    r"'shape': \((-?[0-9]{1,20},(?: -?[0-9]{1,20}){0,1}|(?:-?[0-9]{1,20}, ){2}-?[0-9]{1,20}|)\), \} *\n"
)
LONGEST_MAKING_S = 60.0


def sync_file(file: BinaryIO) -> None:
    """Force an open file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's list of names onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes, overwrites: bool = True) -> None:
    """Write a file that holds all of `content`, or what it held before; arguments as of `whole_file`."""
    with whole_file(path, overwrites) as file:
        file.write(content)


def named(error: OSError, path: Path) -> OSError:
    """The same error with the file that was meant: what a write to a full disk raises names none."""
    is_named = error.filename is not None or error.errno is None
    return error if is_named else OSError(error.errno, error.strerror, str(path))


@contextmanager
def whole_file(path: Path, overwrites: bool = True, is_durable: bool = True) -> Iterator[BinaryIO]:
    """An open hidden file next to `path` that takes its place when the block ends well, and is gone otherwise.

    Its writer holds a lock on it, which a kill releases: what a killed writer of the same file left goes first. Its
    permissions follow the umask, and a file that it replaces never becomes readable to more users.

    Args:
        path: of the whole file; its folder is made.
        overwrites: if False, a file that exists stays as it is, also one that another process writes meanwhile.
        is_durable: force the content and the name onto the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        _unlink_if_left_over(leftover)
    unfinished = unfinished_path(path)
    try:
        with os.fdopen(_create(unfinished, path), "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            if is_durable:
                os.fsync(file.fileno())
            _keep_private(file, path)
            _take_place(unfinished, path, overwrites)
        if is_durable:
            sync_folder(path.parent)
    except OSError as error:
        raise named(error, path) from error
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_path(path: Path) -> Path:
    """A hidden name next to `path` that no other process uses, not even one with our pid in another container."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _create(unfinished: Path, path: Path) -> int:
    try:
        return os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _keep_private(file: BinaryIO, path: Path) -> None:
    """Take away the permissions that the file in the same place does not give."""
    with suppress(FileNotFoundError):
        os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode & path.stat().st_mode))


def _take_place(unfinished: Path, path: Path, overwrites: bool) -> None:
    if overwrites:
        unfinished.replace(path)
        return
    with suppress(FileExistsError):
        os.link(unfinished, path)  # in one step, and never over another


def _unlink_if_left_over(unfinished: Path) -> None:
    """Nothing happens to a file that another process is writing, just made, or removes at the same time."""
    try:
        with unfinished.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > LONGEST_MAKING_S:
                unfinished.unlink()
    except OSError:
        return


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` to be filled and put in its place; gone afterwards, whatever happened.

    Its writer holds a lock on it, which a kill releases: that tells a leftover from the work of another process.
    """
    unfinished = unfinished_path(folder)
    unfinished.mkdir()
    lock = os.open(unfinished, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield unfinished
    finally:
        os.close(lock)
        shutil.rmtree(unfinished, ignore_errors=True)


def sweep_leftovers(folder: Path, own_names: frozenset[str]) -> None:
    """Remove hidden folders that a killed save of the same `folder` left beside it.

    Only real folders with a name that `unfinished_folder` or `put_in_place` gives, nothing in them but files in
    `own_names`, and nobody at work on them. An old dataset set aside stays while nothing is in its place.
    """
    suffixes = "tmp|old" if folder.exists() else "tmp"
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}\.({suffixes})")
    for entry in list(folder.parent.iterdir()):
        if pattern.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            _remove_if_left_over(entry, own_names)


def _remove_if_left_over(folder: Path, own_names: frozenset[str]) -> None:
    """Nothing happens to a folder that cannot be read, that another process removes or that one is writing."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names = frozenset(os.listdir(lock))
        # Between its making and its lock a folder is empty.
        is_being_made = not names and time.time() - os.fstat(lock).st_mtime < LONGEST_MAKING_S
        if names <= own_names and not is_being_made:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(lock)


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Rename over nothing or an empty folder; exchange with a dataset that is there, in one step where possible."""
    if not folder.exists() or not any(folder.iterdir()):
        unfinished.rename(folder)
    elif not _exchange(unfinished, folder):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
        folder.rename(aside)
        unfinished.rename(folder)
        shutil.rmtree(aside)
    sync_folder(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically (Linux renameat2); False where the system or file system cannot."""
    at_working_directory, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done = rename(at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange)
    return done == 0


def read_array(path: Path, mmap: bool) -> np.ndarray:
    """An .npy array of numbers, its header checked against the size of its file before anything is allocated.

    Only the header that NumPy's own writer gives a little-endian array is taken: what a header may spell besides is not
    worth the ways in which a damaged one can be misread. Object arrays hold pickled code and are refused.
    """
    try:
        with path.open("rb") as file:
            return _checked_array(file, path, mmap)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); {REBUILD}") from error


def _checked_array(file: BinaryIO, path: Path, mmap: bool) -> np.ndarray:
    header = _npy_header(file)
    if header is None:
        raise DatasetError(f"{path}: not an .npy file or damaged at its start; {REBUILD}")
    descriptor, is_fortran, sizes = header.groups()
    shape, dtype = tuple(map(int, sizes.replace(",", " ").split())), np.dtype(descriptor)
    if dtype.hasobject:
        raise DatasetError(f"{path}: holds Python objects, which are never loaded; {REBUILD}")
    start = file.tell()
    expected_bytes = start + math.prod(shape) * dtype.itemsize
    actual_bytes = os.fstat(file.fileno()).st_size
    if min(shape, default=1) < 1 or expected_bytes != actual_bytes:
        raise DatasetError(
            f"{path}: the header says {expected_bytes} bytes for shape {shape}, the file has {actual_bytes}; {REBUILD}"
        )
    order = "F" if is_fortran == "True" else "C"
    if mmap:
        return np.memmap(file, dtype, "c", start, shape, order)
    return np.fromfile(file, dtype).reshape(shape, order=order)


def _npy_header(file: BinaryIO) -> re.Match[str] | None:
    """The header of an .npy file of format 1.0, whose content starts where this stops reading."""
    if file.read(len(NPY_START)) != NPY_START:
        return None
    n_bytes = int.from_bytes(file.read(2), "little")
    return NPY_HEADER.fullmatch(file.read(min(n_bytes, LARGEST_HEADER_BYTES)).decode("latin1"))
