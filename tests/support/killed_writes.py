"""Writes that are killed with SIGKILL around every file operation, and in the middle of the bytes, one process each.

Whoever writes is seen: `kill_at_operation` stops at every file operation of Python and of built-in functions, in any
module; `kill_at_byte` has the kernel end a process that makes any file longer than so many bytes, native code too.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

# Of `os`, `io`, `fcntl` and of open files; looking at files changes nothing.
OPERATIONS = frozenset({
    "open", "write", "writelines", "pwrite", "flush", "close", "truncate", "ftruncate", "fsync", "fdatasync", "rename",
    "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir", "chmod", "flock", "sendfile", "copy_file_range",
})  # fmt: skip
MODULES = frozenset({"posix", "io", "_io", "fcntl"})
MOST = 400


def killed_at_every_moment(write: Callable[[Path], None], new_folder: Callable[[int], Path]) -> list[Path]:
    """Run `write` in a folder each, killed a moment later every time, until it is not killed -> the folders."""
    folders: list[Path] = []

    def new() -> Path:
        folders.append(new_folder(len(folders)))
        return folders[-1]

    run_to_the_end(write, new, (partial(kill_at_byte, 2**n - 1) for n in itertools.count()), signal.SIGXFSZ)
    n_killed = len(folders) - 1  # the last one came to its end
    run_to_the_end(write, new, (partial(kill_at_operation, n) for n in range(MOST)), signal.SIGKILL)
    return [*folders[:n_killed], *folders[n_killed + 1 :]]


def run_to_the_end(
    write: Callable[[Path], None], new: Callable[[], Path], kills: Iterable[Callable[[], None]], how: signal.Signals
) -> int:
    """Run `write` in a child for each of `kills`, which arm what ends it, until one ends by itself.

    Returns:
        How many were killed.
    """
    for number, arm in enumerate(kills):
        folder = new()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                arm()
                write(folder)
                sys.setprofile(None)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return number
        assert os.WTERMSIG(status) == how
    raise AssertionError("there is no end of moments to be killed at")


def kill_at_operation(number: int) -> None:
    """From now on die at the n-th beginning or end of a file operation, whichever function asks for it."""
    seen = 0

    def on_event(_frame: FrameType, event: str, argument: Any) -> None:
        nonlocal seen
        if event not in ("c_call", "c_return") or not is_file_operation(argument):
            return
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    sys.setprofile(on_event)


def is_file_operation(function: Any) -> bool:
    """Whether a built-in function changes files."""
    owner = getattr(function, "__self__", None)
    is_of_files = isinstance(owner, io.IOBase) or getattr(owner, "__name__", "") in MODULES
    return is_of_files and function.__name__ in OPERATIONS


def kill_at_byte(n_bytes: int) -> None:
    """From now on the kernel ends this process when it makes a file longer than this."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
