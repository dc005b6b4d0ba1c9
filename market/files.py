"""Files that are whole or not there: durable writes, folders swapped in one step, and distrustful .npy reading."""

from __future__ import annotations

import ast
import ctypes
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from market.errors import REBUILD, DatasetError

LARGEST_HEADER_BYTES = 4_096


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
    """An .npy array whose header agrees with the size of its file, checked before anything is allocated.

    Object arrays hold pickled code and are refused.
    """
    try:
        with path.open("rb") as file:
            shape, dtype = _npy_header(file)
            expected_bytes = file.tell() + math.prod(shape) * dtype.itemsize
            actual_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); {REBUILD}") from error
    except (ValueError, TypeError, SyntaxError, EOFError) as error:
        raise DatasetError(f"{path}: not an .npy file or damaged at its start; {REBUILD}") from error
    if dtype.hasobject:
        raise DatasetError(f"{path}: holds Python objects, which are never loaded; {REBUILD}")
    if min(shape, default=1) < 1 or expected_bytes != actual_bytes:
        raise DatasetError(
            f"{path}: the header says {expected_bytes} bytes for shape {shape}, the file has {actual_bytes}; {REBUILD}"
        )
    return np.load(path, mmap_mode="c" if mmap else None, allow_pickle=False)


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    length_bytes = 2 if version[0] == 1 else 4
    n_bytes = int.from_bytes(file.read(length_bytes), "little")
    if n_bytes > LARGEST_HEADER_BYTES:
        raise ValueError("header too long")
    header = ast.literal_eval(file.read(n_bytes).decode("latin1"))
    shape = tuple(int(size) for size in header["shape"])
    return shape, np.lib.format.descr_to_dtype(header["descr"])
