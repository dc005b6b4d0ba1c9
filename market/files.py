"""Atomic file and folder writes, and strict reading of .npy files."""

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
# Dtype, memory order and at most three sizes.
NPY_HEADER = re.compile(
    r"\{'descr': '(<[fiu][248]|\|[iub]1|\|O)', 'fortran_order': (True|False), "
    r"'shape': \((-?[0-9]{1,20},(?: -?[0-9]{1,20}){0,1}|(?:-?[0-9]{1,20}, ){2}-?[0-9]{1,20}|)\), \} *\n"
)
LONGEST_MAKING_S = 60.0


def sync_file(file: BinaryIO) -> None:
    """Flush an open file to disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes, overwrites: bool = True) -> None:
    """Write `content` to a file atomically. The arguments are those of `whole_file`."""
    with whole_file(path, overwrites) as file:
        file.write(content)


def named(error: OSError, path: Path) -> OSError:
    """Return the error with the path of the file. Errors from a full disk do not name the file."""
    is_named = error.filename is not None or error.errno is None
    return error if is_named else OSError(error.errno, error.strerror, str(path))


@contextmanager
def whole_file(path: Path, overwrites: bool = True, is_durable: bool = True) -> Iterator[BinaryIO]:
    """Open a hidden file next to `path`. It replaces `path` if the block succeeds and is deleted otherwise.

    The writer holds a lock, which is released if the process is killed. Files of killed writers are therefore detected
    and deleted first. Permissions follow the umask, and a replaced file never becomes readable to more users.

    Args:
        path: path of the final file. Its folder is created.
        overwrites: if False, an existing file is kept, even if another process creates it in the meantime.
        is_durable: if True, flush content and directory entry to disk.
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
    """Return a hidden path next to `path` with a random suffix, so that no other process uses the same path."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _create(unfinished: Path, path: Path) -> int:
    try:
        return os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _keep_private(file: BinaryIO, path: Path) -> None:
    """Remove permissions that the existing file at `path` does not grant."""
    with suppress(FileNotFoundError):
        os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode & path.stat().st_mode))


def _take_place(unfinished: Path, path: Path, overwrites: bool) -> None:
    if overwrites:
        unfinished.replace(path)
        return
    with suppress(FileExistsError):
        os.link(unfinished, path)  # atomic, and never replaces another file


def _unlink_if_left_over(unfinished: Path) -> None:
    """Delete an abandoned file. Files that a different process writes, deletes or has just created are left alone."""
    try:
        with unfinished.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > LONGEST_MAKING_S:
                unfinished.unlink()
    except OSError:
        return


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """Create a hidden folder next to `folder`, to be filled and moved into place. It is always deleted afterwards.

    The writer holds a lock, which is released if the process is killed. The lock distinguishes abandoned folders from
    those in use.
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
    """Delete hidden folders that a killed save of the same `folder` left next to it.

    Only real folders named by `unfinished_folder` or `put_in_place` are deleted, if they are unlocked and hold only
    files in `own_names`. A replaced dataset that was moved aside is kept while `folder` does not exist.
    """
    suffixes = "tmp|old" if folder.exists() else "tmp"
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}\.({suffixes})")
    for entry in list(folder.parent.iterdir()):
        if pattern.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            _remove_if_left_over(entry, own_names)


def _remove_if_left_over(folder: Path, own_names: frozenset[str]) -> None:
    """Delete an abandoned folder. Unreadable folders and folders that a different process uses are left alone."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        names = frozenset(os.listdir(lock))
        # A folder is empty between its creation and its lock.
        is_being_made = not names and time.time() - os.fstat(lock).st_mtime < LONGEST_MAKING_S
        if names <= own_names and not is_being_made:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return
    finally:
        os.close(lock)


def put_in_place(unfinished: Path, folder: Path) -> None:
    """Move a folder to `folder`. An existing dataset is replaced, atomically if the file system supports it."""
    if not folder.exists() or not any(folder.iterdir()):
        unfinished.rename(folder)
    elif not _exchange(unfinished, folder):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
        folder.rename(aside)
        unfinished.rename(folder)
        shutil.rmtree(aside)
    sync_folder(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically (Linux renameat2). Return False if the system does not support it."""
    at_working_directory, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done = rename(at_working_directory, os.fsencode(one), at_working_directory, os.fsencode(other), exchange)
    return done == 0


def read_array(path: Path, mmap: bool) -> np.ndarray:
    """Read a numeric .npy array. Its header is checked against the file size before memory is allocated.

    Only headers of little-endian arrays in NumPy's own format are accepted, because a damaged header in another form
    could be misread. Object arrays contain pickled code and are rejected.

    Raises:
        DatasetError: the file cannot be read or is not such an array.
    """
    try:
        with path.open("rb") as file:
            return _checked_array(file, path, mmap)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); {REBUILD}") from error


def _checked_array(file: BinaryIO, path: Path, mmap: bool) -> np.ndarray:
    header = _npy_header(file)
    if header is None:
        raise DatasetError(f"{path}: not an .npy file, or its header is damaged; {REBUILD}")
    descriptor, is_fortran, sizes = header.groups()
    shape, dtype = tuple(map(int, sizes.replace(",", " ").split())), np.dtype(descriptor)
    if dtype.hasobject:
        raise DatasetError(f"{path}: holds Python objects, which are never loaded; {REBUILD}")
    start = file.tell()
    expected_bytes = start + math.prod(shape) * dtype.itemsize
    actual_bytes = os.fstat(file.fileno()).st_size
    if min(shape, default=1) < 1 or expected_bytes != actual_bytes:
        raise DatasetError(
            f"{path}: shape {shape} requires {expected_bytes} bytes, but the file has {actual_bytes}; {REBUILD}"
        )
    order = "F" if is_fortran == "True" else "C"
    if mmap:
        return np.memmap(file, dtype, "c", start, shape, order)
    return np.fromfile(file, dtype).reshape(shape, order=order)


def _npy_header(file: BinaryIO) -> re.Match[str] | None:
    """Read and match the header of an .npy file of format 1.0. The file position is then at its content."""
    if file.read(len(NPY_START)) != NPY_START:
        return None
    n_bytes = int.from_bytes(file.read(2), "little")
    return NPY_HEADER.fullmatch(file.read(min(n_bytes, LARGEST_HEADER_BYTES)).decode("latin1"))
