"""Atomic file writes: after a crash at any moment, a reader finds the old content or the new content."""

import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the content of a safetensors file.

    Raises:
        MemoryError: If memory is exhausted; safetensors raises an error that is not an `Exception`.
    """
    try:
        return save(dict(tensors), metadata)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise MemoryError(f"out of memory while a file of tensors was made ({error})") from None
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file in the same folder, sync it, rename it to `path`, and sync the folder.

    Its permissions follow the umask. A replaced file never becomes readable to more users.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = create_beside(path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                os.fchmod(handle, stat.S_IMODE(os.fstat(handle).st_mode & path.stat().st_mode))
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        # The error of a write to a full disk does not name the file.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def create_beside(path: Path) -> tuple[int, Path]:
    """Create a hidden file next to `path` with a unique name; process ids are not unique across containers.

    Returns:
        Its descriptor, open for writing, and its path.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), temporary


def sync_folder(folder: Path) -> None:
    """Sync `folder`, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
