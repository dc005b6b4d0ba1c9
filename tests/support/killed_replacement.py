"""A replacement, or a rollback, that kills itself with SIGKILL around its n-th file operation, for every n.

    python -m tests.support.killed_replacement FOLDER install|rollback

copies FOLDER/start to FOLDER/<n>, and changes the copy in a process of its own until one comes to its end; prints how
many were killed.
"""

from __future__ import annotations

import itertools
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

from tests.support.killed_writes import kill_at_operation, run_to_the_end
from tests.support.made_deployment import write
from train.deploy.folder import Deployments
from train.deploy.loading import read_deployment

MOST = 2000


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


def main(arguments: list[str]) -> int:
    """Kill at every step; prints how many there are."""
    root, change = Path(arguments[0]), {"install": install, "rollback": roll_back}[arguments[1]]
    numbers = itertools.count()

    def new() -> Path:
        return shutil.copytree(root / "start", root / str(next(numbers)), symlinks=True)

    n_killed = run_to_the_end(change, new, (partial(kill_at_operation, n) for n in range(MOST)), signal.SIGKILL)
    sys.stdout.write(f"{n_killed}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
