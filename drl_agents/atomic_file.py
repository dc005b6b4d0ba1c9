"""Write a file so that a reader, or a crash at any moment, finds the old content or the new one and nothing between."""

import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save
from torch import Tensor


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """The content of a safetensors file.

    Raises:
        MemoryError: there is none; safetensors panics then, with an error that is no `Exception`.
    """
    try:
        return save(dict(tensors), metadata)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise MemoryError(f"out of memory while a file of tensors was made ({error})") from None
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Temporary file in the same folder, flush to disk, rename over `path`, flush the folder.

    Its permissions follow the umask, and a file that it replaces never becomes readable to more users.
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
        # What a write to a full disk raises names no file.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def create_beside(path: Path) -> tuple[int, Path]:
    """Make a hidden file next to `path` whose name no other process uses; pids repeat among containers.

    Returns:
        Its descriptor, open for writing, and its path.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), temporary


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
