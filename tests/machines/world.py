"""World of one case: machines, a study's database and artifact store, and the networks between them."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
from optuna.trial import TrialState

from market.dataset import save_dataset
from market.sample import synthetic_dataset
from tests.machines.machine import Machine
from tests.support.moto_server import BUCKET, MotoServer
from tests.support.network import TO_CLIENT, TO_SERVER, Network
from tests.support.postgres_server import PostgresServer
from train.store.address import absolute_url
from train.store.database import FINISHED, load_study

REPO = Path(__file__).resolve().parents[2]
CLOCKS_S = (0.0, -7200.0, 7200.0)  # offsets of the machines' clocks; all machines start with the same process ids
LONGEST_S = 600.0
FLAGS = ("--study-name", "s", "--num-paths", "1", "--k-test-groups", "1", "--n-envs", "4", "--pruner", "none")
FAULTS = ("lost to the server", "lost to the client", "unplugged", "half open", "frozen", "killed")
_starting = threading.Lock()


class Program:
    """Program on a machine, with its results in the machine's own folder."""

    def __init__(self, world: World, number: int, command: Sequence[str], variables: dict[str, str]) -> None:
        self.folder = world.folder / f"machine{number}"
        self.folder.mkdir(exist_ok=True)
        self._log = self.folder / f"log{time.monotonic_ns()}.txt"
        self._world, self._number, self._command, self._variables = world, number, command, variables
        self.start()

    def start(self) -> None:
        """Start the command, or restart it."""
        machine = self._world.machines[self._number]
        self.process = machine.start([sys.executable, *self._command], self.folder, self._log, self._variables)

    @property
    def log(self) -> str:
        """Complete output of the program."""
        return self._log.read_text()

    @property
    def page(self) -> Path:
        """Path of the report that the program writes at its end."""
        return self.folder / "results" / "s" / "report.html"

    def wait_for(self, words: str, after: int = 0) -> float:
        """Wait for a matching line in the log, and return the seconds waited."""
        began_s = time.monotonic()
        while not re.search(words, self.log[after:]):
            assert self.process.poll() is None, f"ended with {self.process.returncode}"
            assert time.monotonic() - began_s < LONGEST_S, f"no line matches {words}"
            time.sleep(0.02)
        return time.monotonic() - began_s

    def signalled(self, number: int) -> tuple[float, int]:
        """Send a signal: SIGTERM to the command alone, others to all its processes, as a terminal does.

        Returns:
            Seconds until the command ended, and its exit code.
        """
        began_s = time.monotonic()
        for process in psutil.Process(self.process.pid).children(recursive=number != signal.SIGTERM):
            process.send_signal(number)
        code = self.process.wait(LONGEST_S)
        return time.monotonic() - began_s, code


class World:
    """Environment of one case.

    Args:
        folder: folder for all files; the server's user must have access.
        n_machines: number of machines, created immediately. Programs are started later.
        n_trials: target of the study.
        has_bucket: True if the artifact store is an S3 bucket, False if it is a folder that all machines share.
    """

    def __init__(self, folder: Path, n_machines: int, n_trials: int, has_bucket: bool = False) -> None:
        self.folder, self.n_trials = folder, n_trials
        folder.mkdir()
        folder.chmod(0o755)
        save_dataset(synthetic_dataset("5m", 1500, ("BTC", "ETH"), seed=1), folder / "data")
        with _starting:  # each server searches for a free port first
            self.server = PostgresServer(folder / "server")
            self.moto = MotoServer()
            if has_bucket:
                self.moto.start()
                self.moto.client().create_bucket(Bucket=BUCKET)
            self.machines = [Machine(f"machine{i}", CLOCKS_S[i]) for i in range(n_machines)]
        self.url = self.server.new_database("studies")
        self.networks = [Network(self.server.port, address=m.host_address) for m in self.machines]
        self.bucket_networks = [Network(self.moto.port, address=m.host_address) for m in self.machines]
        self.artifacts = f"s3://{BUCKET}/files" if has_bucket else str(folder / "store")
        self.programs: list[Program] = []

    def remove(self) -> None:
        """Stop all machines and servers."""
        for machine in self.machines:
            machine.remove()
        self.moto.kill()
        self.server.stop()

    def train(self, number: int, *flags: str, repo: Path = REPO, data: str = "data") -> Program:
        """Start a trainer on a machine."""
        flags = ("--n-trials", str(self.n_trials), "--data-dir", str(self.folder / data), *FLAGS, *flags)
        flags = (*flags, "--artifacts", self.artifacts, "--results-dir", f"{self.folder}/machine{number}/results")
        program = self.run(number, repo / "scripts" / "training" / "1_optimize_unified.py", *flags, repo=repo)
        self.programs.append(program)
        return program

    def run(self, number: int, script: Path, *flags: str, repo: Path = REPO) -> Program:
        """Start a program on a machine, connected to the study's database."""
        storage = self.networks[number].of(self.url)
        there = self.bucket_networks[number]
        variables = self.moto.variables() | {
            "AWS_ENDPOINT_URL_S3": f"http://{self.machines[number].host_address}:{there.port}", "PYTHONPATH": str(repo)
        }  # fmt: skip
        return Program(self, number, (str(script), "--storage", storage, *flags), variables)

    @contextmanager
    def broken(self, fault: str) -> Iterator[None]:
        """Disconnect machine 0 from the database in this context. A frozen or killed server affects all machines."""
        network = self.networks[0]
        if fault == "half open":
            network.forget()
        network.lost = {"lost to the server": {TO_SERVER}, "lost to the client": {TO_CLIENT}}.get(fault, set())
        if fault == "killed":
            self.server.stop("immediate")
        around = {"unplugged": self.machines[0].unplugged, "frozen": self.server.frozen}.get(fault)
        try:
            if around is None:
                yield
            else:
                with around():
                    yield
        finally:
            network.lost = set()
            if fault == "killed":
                self.server.start()

    def n_finished(self) -> int:
        """Return the number of finished trials."""
        with psycopg.connect(self.url) as connection:
            rows = connection.execute("SELECT count(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')").fetchone()
        return rows[0] if rows else 0

    def problems(self, n_failed: int | None = None) -> list[str]:
        """Wait until all programs end, and check the study.

        Args:
            n_failed: number of trials that may have failed; None means any number.

        Returns:
            The violated conditions; empty if there are none.
        """
        codes = [program.process.wait(LONGEST_S) for program in self.programs]
        found = [f"exit codes {codes}"] if set(codes) - {0, 5} else []
        trials = load_study(absolute_url(self.url, self.folder), "s").get_trials()
        states = Counter(trial.state.name for trial in trials)
        finished = [trial for trial in trials if trial.state in FINISHED]
        if len(finished) != self.n_trials or states["RUNNING"] or states["WAITING"]:
            found.append(f"trials: {dict(states)}, expected {self.n_trials}")
        if n_failed is not None and states["FAIL"] > n_failed:
            found.append(
                f"{states['FAIL']} trials failed: {[t.user_attrs for t in trials if t.state == TrialState.FAIL]}"
            )
        if [trial.number for trial in trials] != list(range(len(trials))):
            found.append(f"trial numbers: {[trial.number for trial in trials]}")
        if len({str(trial.params) for trial in finished}) != len(finished):
            found.append("two finished trials have the same settings")
        found += [f"{p.folder.name} printed a traceback" for p in self.programs if "Traceback" in p.log]
        return found + self._unequal_pages()

    def _unequal_pages(self) -> list[str]:
        """Compare the reports of all machines except for their dates. A single one is compared with a new report."""
        ended = [p for p in self.programs if p.process.returncode in (0, 5)]
        if len(ended) < 2:
            fresh = self.run(0, REPO / "scripts" / "validation" / "report.py", "--study-name", "s",
                             "--results-dir", str(self.folder / "machine0" / "fresh"))  # fmt: skip
            assert fresh.process.wait(LONGEST_S) == 0, fresh.log
            pages = [p.page for p in ended] + [self.folder / "machine0" / "fresh" / "s" / "report.html"]
        else:
            pages = [p.page for p in ended]
        texts = [re.sub(r"Written [^.]* UTC", "", page.read_text()) for page in pages]
        if len(set(texts)) == 1 and "are missing" not in texts[0]:
            return []
        differ = [
            "  ".join(pair) for pair in zip(*(t.splitlines() for t in texts[:2]), strict=False) if len(set(pair)) > 1
        ]
        return [f"reports differ or lack files: {[line[:400] for line in differ[:3]]}"]

    def logs(self) -> str:
        """Return the last lines of all programs' logs."""
        return "\n".join(f"--- {p.folder.name}, exit code {p.process.poll()}\n{p.log[-5000:]}" for p in self.programs)
