"""A disk of a few kilobytes, or one that cannot be written, in a folder, for one process and those it starts.

It is a tmpfs in a mount namespace of that process's own, so nothing is left of it. From outside its files are under
`seen_by(pid, folder)`.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
READ_ONLY, RECURSIVE, PRIVATE = 1, 0x4000, 0x40000
LIBC = ctypes.CDLL(None, use_errno=True)


def why_not() -> str | None:
    """The reason why this machine lets nobody mount anything, None where it does."""
    code = "import sys, pathlib; from tests.support.small_disk import mount; mount(pathlib.Path(sys.argv[1]), 4096)"
    done = subprocess.run([sys.executable, "-c", code, "/mnt"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no disk can be mounted here: {done.stderr.strip().splitlines()[-1]}"


def mount(folder: Path, n_bytes: int, *, read_only: bool = False) -> None:
    """Put an empty disk in the place of `folder`, for this process only."""
    user, group = os.getuid(), os.getgid()
    _checked(LIBC.unshare(NEW_MOUNTS | (0 if user == 0 else NEW_USER)))
    if user != 0:  # somebody must own the files
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _checked(LIBC.mount(None, b"/", None, RECURSIVE | PRIVATE, None))
    flags = READ_ONLY if read_only else 0
    _checked(LIBC.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={n_bytes}".encode()))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def seen_by(pid: int, folder: Path) -> Path:
    """The folder as that process sees it."""
    return Path(f"/proc/{pid}/root{folder}")


def fill(folder: Path) -> Path:
    """Leave no room on its disk -> the file that took it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                if file.write(bytes(size)) < size:
                    size //= 2
            except OSError:
                size //= 2
    return filler
