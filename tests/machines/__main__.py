"""Real trainers on machines of their own, and a network between them and their database that fails.

    python -m tests.machines [--only WORDS] [--long]

A machine is a network namespace, joined to this one by a cable (a veth pair). The database is a PostgreSQL 15 behind
`tests.support.network`, which loses what goes one way; a cable that is unplugged loses both, and the kernels know that
nothing was acknowledged. For every fault a study of one or two workers is told to stop while it waits, and one goes on
after it; then its trials are counted. Needs root, ip and PostgreSQL 15, and takes about ten minutes; --long adds faults
that last for 60 and 150 s. Exit code: 0 when every case kept its limits.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import optuna

from market.dataset import save_dataset
from market.sample import synthetic_dataset
from tests.support.network import TO_CLIENT, TO_SERVER, Network
from tests.support.postgres_server import PostgresServer, why_not
from train.store.address import absolute_url
from train.store.database import load_study

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "scripts" / "training" / "1_optimize_unified.py"
HOST, MACHINE = "10.203.79.1", "10.203.79.2"
CABLE = ("machines0", "machines1")
NAMESPACE = "machines"
SAID_S, ENDS_S, ENDS_WITH_WORKERS_S, LONGEST_S = 10.0, 5.0, 10.0, 300.0
SPLITS = ("--num-paths", "1", "--k-test-groups", "1", "--n-envs", "4", "--pruner", "none")
FAULTS = ("lost to the server", "lost to the client", "unplugged", "half open", "frozen")


@contextmanager
def machine() -> Iterator[None]:
    """A network namespace whose only way out is the cable."""
    inside = f"ip -n {NAMESPACE}"
    commands = (
        f"ip netns add {NAMESPACE}",
        f"ip link add {CABLE[0]} type veth peer name {CABLE[1]}",
        f"ip link set {CABLE[1]} netns {NAMESPACE}",
        f"ip addr add {HOST}/24 dev {CABLE[0]}",
        f"ip link set {CABLE[0]} up",
        f"{inside} addr add {MACHINE}/24 dev {CABLE[1]}",
        f"{inside} link set {CABLE[1]} up",
        f"{inside} link set lo up",
    )
    try:
        for line in commands:
            subprocess.run(line.split(), check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)  # and the cable with it
        subprocess.run(["ip", "link", "del", CABLE[0]], check=False, stderr=subprocess.DEVNULL)


@dataclass
class Bench:
    """What all cases share."""

    server: PostgresServer
    network: Network
    folder: Path
    n_cases: int = 0

    @contextmanager
    def broken(self, fault: str) -> Iterator[None]:
        """Inside, the database cannot be reached."""
        if fault == "half open":
            self.network.forget()
        self.network.lost = {"lost to the server": {TO_SERVER}, "lost to the client": {TO_CLIENT}}.get(fault, set())
        if fault == "unplugged":
            subprocess.run(["ip", "link", "set", CABLE[0], "down"], check=True)
        try:
            with self.server.frozen() if fault == "frozen" else nullcontext():
                yield
        finally:
            self.network.lost = set()
            subprocess.run(["ip", "link", "set", CABLE[0], "up"], check=True)


class Trainer:
    """One command on the machine, in a folder of its own; its database is its own too."""

    def __init__(self, bench: Bench, n_trials: int, *flags: str) -> None:
        bench.n_cases += 1
        self._folder = bench.folder / f"case{bench.n_cases}"
        self._folder.mkdir()
        self.url = bench.server.new_database(f"case{bench.n_cases}")
        self._log, self._n_trials = self._folder / "log.txt", n_trials
        where = ("--storage", bench.network.of(self.url), "--results-dir", f"{self._folder}/results")
        what = ("--study-name", "s", "--data-dir", f"{bench.folder}/data", "--n-trials", str(n_trials), *SPLITS, *flags)
        self._command = ["ip", "netns", "exec", NAMESPACE, sys.executable, str(SCRIPT), *where, *what]
        self.start()

    def start(self) -> None:
        """The same command, again."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, cwd=self._folder, stdout=log, stderr=log, env=environment)

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text()

    def wait_for(self, words: str, after: int = 0) -> float:
        """Until a line that matches comes -> the seconds that took."""
        began_s = time.monotonic()
        while not re.search(words, self.log[after:]):
            assert self.process.poll() is None, self.log
            assert time.monotonic() - began_s < LONGEST_S, self.log
            time.sleep(0.05)
        return time.monotonic() - began_s

    def stopped(self, number: int = signal.SIGTERM) -> tuple[float, int]:
        """Sends the signal -> seconds until it has ended, exit code."""
        began_s = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(LONGEST_S)
        return time.monotonic() - began_s, code

    def states(self) -> Counter[str]:
        """What became of its trials."""
        trials = load_study(absolute_url(self.url, self._folder), "s").get_trials()
        assert sorted(t.number for t in trials) == list(range(len(trials)))
        return Counter(trial.state.name for trial in trials)

    def finished(self) -> bool:
        """Whether it ends well from here on, with exactly its trials and none that runs."""
        code = self.process.wait(LONGEST_S)
        states = self.states()
        return code in (0, 5) and states["COMPLETE"] + states["PRUNED"] == self._n_trials and not states["RUNNING"]


@dataclass(frozen=True)
class Seen:
    """What a case showed; None: not looked at."""

    case: str
    said_s: float | None
    ended_s: float | None
    is_good: bool

    def row(self) -> str:
        """Of a table."""
        figures = ("" if seconds is None else f"{seconds:.1f}" for seconds in (self.said_s, self.ended_s))
        return f"| {self.case} | {' | '.join(figures)} | {'kept' if self.is_good else 'FAILED'} |"


def told_to_stop(bench: Bench, fault: str, workers: int, moment: str) -> Seen:
    """SIGTERM while a study waits between trials, or while it trains and nobody waits yet."""
    budget = "512" if moment == "between trials" else "60000"
    trainer = Trainer(
        bench, 200 if moment == "between trials" else 1, "--break-step", budget, "--workers", str(workers)
    )
    trainer.wait_for(r"trial 1: value|trial 1: pruned" if moment == "between trials" else "trial 0: learning_rate")
    after, said_s = len(trainer.log), None
    with bench.broken(fault):
        if moment == "between trials":
            said_s = trainer.wait_for("waiting for ", after)
        else:
            time.sleep(2.0)
        ended_s, code = trainer.stopped()
    most_s = ENDS_S if workers == 1 else ENDS_WITH_WORKERS_S
    is_good = ended_s < most_s and code == 143 and "Traceback" not in trainer.log and (said_s or 0.0) < SAID_S + 2.0
    if not is_good:
        print(trainer.log[-6000:], code)
    return Seen(f"{fault}, {moment}, {workers} workers: SIGTERM", said_s, ended_s, is_good)


def goes_on(bench: Bench, fault: str, lasts_s: float) -> Seen:
    """A fault that ends: exactly the trials asked for."""
    trainer = Trainer(bench, 8, "--break-step", "512", "--workers", "2")
    trainer.wait_for("trial 1: ")
    after = len(trainer.log)
    with bench.broken(fault):
        time.sleep(lasts_s)
    is_good = trainer.finished() and "Traceback" not in trainer.log
    said = re.findall(r"waiting for .* for (\d+) s", trainer.log[after:])
    if not is_good:
        print(trainer.log[-6000:], trainer.states())
    return Seen(f"{fault} for {lasts_s:.0f} s, 2 workers", min(map(float, said), default=None), None, is_good)


def cases(bench: Bench, is_long: bool) -> Iterator[tuple[str, Callable[[], Seen]]]:
    """Name -> what to call."""
    for fault in FAULTS:
        for moment in ("between trials", "in a split"):
            for workers in (1, 2):
                yield f"{fault} {moment} {workers}", lambda f=fault, m=moment, w=workers: told_to_stop(bench, f, w, m)
        for lasts_s in (10.0, 60.0, 150.0) if is_long else (10.0,):
            yield f"{fault} for {lasts_s:.0f}", lambda f=fault, s=lasts_s: goes_on(bench, f, s)


def main(argv: Sequence[str]) -> int:
    """Run the cases, print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.machines", description="Networks that fail, and real trainers."
    )
    parser.add_argument("--only", default="", help="cases with these words in their names")
    parser.add_argument("--long", action="store_true", help="also faults of 60 and 150 s")
    args = parser.parse_args(argv)
    missing = why_not() or (os.getuid() != 0 and "not root") or (shutil.which("ip") is None and "no ip (iproute2)")
    if missing:
        print(f"skipped: {missing}")
        return 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="machines-") as scratch, machine():
        folder = Path(scratch)
        folder.chmod(0o755)
        save_dataset(synthetic_dataset("5m", 1500, ("BTC", "ETH"), seed=1), folder / "data")
        server = PostgresServer(folder / "server")
        bench = Bench(server, Network(server.port, address=HOST), folder)
        seen = []
        for name, case in cases(bench, args.long):
            if args.only in name:
                seen.append(case())
                print(seen[-1].row(), flush=True)
        server.stop()
    return 0 if all(case.is_good for case in seen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
