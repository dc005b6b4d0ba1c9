"""Workers of a study through the real code; only the training of a split is a stand-in that takes a moment.

    python -m tests.support.cheap_study crowd URL FOLDER WORKERS LATER TARGET

forks WORKERS processes, kills the first with SIGKILL in the middle of a trial and forks LATER more, and

    python -m tests.support.cheap_study one URL FOLDER TARGET HOW

is one worker that ends as HOW says: `kept`: SIGKILL when a value is kept and not told yet; `elsewhere`: it says that it
is another machine's, beats every second, and its first split takes a minute.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.pruners import NopPruner
from optuna.study import Study

from tests.support.real_study import data
from train.records.account import Metrics
from train.runner import worker
from train.runner.worker import Ending, Limits, run_worker
from train.store import database as storage
from train.store.address import absolute_url
from train.store.database import open_study
from train.study.interruption import Interruption
from train.study.objective import Objective, RunSettings
from train.study.progress import Reporter
from train.study.search_space import build_space
from train.study.split import SplitOutcome

IDENTITY = {"data": "made up"}
SPLIT_S = 0.1


def outcome(fold: int, sharpe: float) -> SplitOutcome:
    agent, other = (Metrics(100, 0.01, 0.1, 0.2, s, 1.0, 0.05, 2.0, 0.001, 3, 0.5) for s in (sharpe, 0.0))
    return SplitOutcome(fold, agent, other, 1000, 5e4, 1e4, 0.01)


def work(url: str, folder: Path, target: int, on_split: Callable[[int], Any] | None = None) -> tuple[Study, Ending]:
    """One worker in this process; `on_split` is called with the number of the trial in each of its two splits."""
    parsed = absolute_url(url, folder)
    study = open_study(parsed, "s", IDENTITY, False, NopPruner())
    space, interruption = build_space(longest_episode_bars=data().longest_episode_bars), Interruption()

    def runner(settings, data, fold, out_dir, origin, on_progress=None, checkpoints=None) -> SplitOutcome:
        if on_split is not None:
            on_split(origin.trial)
        time.sleep(SPLIT_S)
        return outcome(fold.index, 1.0 + origin.trial)

    settings = RunSettings(4, 0, -1, folder / "results", "test")
    reporter = Reporter(study, space, len(data().folds), target)
    objective = Objective(space, [data()], settings, reporter, interruption, runner)
    with interruption:
        return study, run_worker(study, objective, parsed, Limits(target), interruption)


def crowd(url: str, folder: Path, n_workers: int, n_later: int, target: int) -> int:
    """0 when every worker but the killed one ended well."""
    worker.WAIT_S = 0.2
    data()
    read_fd, write_fd = os.pipe()

    def start(is_victim: bool) -> int:
        pid = os.fork()
        if pid == 0:
            said = []

            def hang(_: int) -> None:
                if is_victim and not said:
                    said.append(os.write(write_fd, b"!"))
                    time.sleep(60)

            ending = work(url, folder, target, hang)[1]
            os._exit(0 if ending == Ending() else 1)
        return pid

    victim, *others = [start(is_victim=i == 0) for i in range(n_workers)]
    os.read(read_fd, 1)
    os.kill(victim, signal.SIGKILL)
    others += [start(is_victim=False) for _ in range(n_later)]
    assert os.waitpid(victim, 0)[1] == signal.SIGKILL
    return max(os.waitpid(pid, 0)[1] for pid in others)


def one(url: str, folder: Path, target: int, how: str) -> int:
    """As the module says."""
    if how == "kept":
        keep = worker.keep

        def keep_and_die(*arguments: Any) -> None:
            keep(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)

        worker.keep = keep_and_die
        work(url, folder, target)
    else:
        socket.gethostname = lambda: "elsewhere"
        storage.HEARTBEAT_S = 1
        work(url, folder, target, lambda _: time.sleep(60))
    return 1


if __name__ == "__main__":
    what, url, folder, *rest = sys.argv[1:]
    if what == "crowd":
        sys.exit(bool(crowd(url, Path(folder), *map(int, rest))))
    sys.exit(one(url, Path(folder), int(rest[0]), rest[1]))
