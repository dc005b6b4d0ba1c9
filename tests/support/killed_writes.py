"""A write that is killed with SIGKILL before and after every call that its file functions make, one process each."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import drl_agents.atomic_file
import market.files

WRITERS = frozenset({drl_agents.atomic_file.__file__, market.files.__file__})
MOST = 400


def killed_at_every_call(write: Callable[[Path], None], new_folder: Callable[[int], Path]) -> list[Path]:
    """Run `write` in a folder each, killed a moment later every time, until it is not killed -> the folders."""
    folders = []
    for number in range(MOST):
        folders.append(new_folder(number))
        child = os.fork()
        if child == 0:
            sys.setprofile(_kill_at(number))
            write(folders[-1])
            sys.setprofile(None)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return folders
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError(f"more than {MOST} calls")


def _kill_at(number: int) -> Callable[[FrameType, str, object], None]:
    """Calls of built-in functions (open, write, fsync, rename ...) and of our own, as they begin and end."""
    seen = 0

    def on_event(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal seen
        if frame.f_code.co_filename not in WRITERS:
            return
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    return on_event
