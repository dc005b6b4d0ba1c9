"""A replacement, or a rollback, that kills itself with SIGKILL before its n-th file operation, for every n.

    python -m tests.support.killed_replacement FOLDER install|rollback

copies FOLDER/start to FOLDER/<n>, and changes the copy in a process of its own until one comes to its end; prints how
many were killed. Interpreter audit events are raised before an operation happens, whoever asks for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from tests.support.made_deployment import write
from train.deploy.folder import Deployments
from train.deploy.loading import read_deployment

OPERATIONS = {
    "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate",
    "shutil.rmtree", "fcntl.flock",
}  # fmt: skip
MOST = 400


def install(folder: Path, name: str = "new", seed: int = 9) -> None:
    """Deploy a made-up policy."""
    deployments = Deployments(folder)
    with deployments.locked():
        deployments.install(
            name, lambda unfinished: write(unfinished, seed, name=name) and None, check, {"candidate": {}}
        )


def check(folder: Path) -> None:
    """As the real one, but for the scores."""
    read_deployment(folder)


def roll_back(folder: Path) -> None:
    """Lead `current` back."""
    deployments = Deployments(folder)
    with deployments.locked():
        deployments.roll_back()


def kill_before(number: int) -> None:
    """Die before the file operation of that number."""
    seen = 0

    def on_event(event: str, _arguments: tuple) -> None:
        nonlocal seen
        if event in OPERATIONS:
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(on_event)


def main(arguments: list[str]) -> int:
    """Kill at every step; 0 when the last one was not killed."""
    root, change = Path(arguments[0]), {"install": install, "rollback": roll_back}[arguments[1]]
    for number in range(MOST):
        folder = root / str(number)
        shutil.copytree(root / "start", folder, symlinks=True)
        child = os.fork()
        if child == 0:
            kill_before(number)
            change(folder)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.stdout.write(f"{number}\n")
            return os.waitstatus_to_exitcode(status)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
