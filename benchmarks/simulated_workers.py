"""Simulate many workers of one study on one machine. Only the training of a split is replaced by a wait.

Each worker is a process that is forked after the imports. It uses the production code to open the study, take trials
under the lock, sample settings, send heartbeats, write files, send them to the artifact store and report progress. The
database is a real PostgreSQL server behind a network that delays every byte. Eight workers share a host name, as on one
machine.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg

from benchmarks.delayed_network import Network
from benchmarks.studies import NAME, ended_study
from market.dataset import save_dataset
from market.files import write_whole
from market.sample import synthetic_dataset
from train.checkpoint import Checkpoints
from train.records.account import Metrics
from train.records.results import split_folder
from train.records.stored import PolicyOrigin
from train.run import Progress
from train.runner import session, worker
from train.runner.request import StudyRequest
from train.runner.worker import no_hook
from train.store.address import absolute_url
from train.study.folds import Fold, FoldedData, load_study_data
from train.study.interruption import Interruption
from train.study.objective import Objective
from train.study.search_space import Resolved
from train.study.split import SplitOutcome
from train.study.split_plan import SplitPlan
from train.worker_program import WorkerReporter

PLAN = SplitPlan("standard", 3, 2)  # the default: six splits
N_SPLITS, N_BARS, N_ENVS, AGENT = 6, 4_500, 12, "ppo"
WORKERS_A_HOST = 8
REPORT_S = 1.0  # between two progress reports of a split
NEVER = 10**9  # target number of trials that a study never reaches
OPENED, ASKED, HELD, TRAINED = "opened", "asked", "held", "trained"
MOST_CONNECTIONS = 1_000
SERVER = ("listen_addresses=127.0.0.1", f"max_connections={MOST_CONNECTIONS}", "shared_buffers=256MB")
MIB, GIB = 2**20, 2**30
PR_SET_PDEATHSIG = 1  # prctl(2)
MIB_PER_WORKER = 68  # including the server's memory for its connections
MEMORY = Path("/dev/shm")
LONGEST_OPENING_S, SETTLE_S = 120.0, 3.0


@dataclass(frozen=True)
class Case:
    """Number of workers, round-trip time to the server, and training time of a trial."""

    workers: int
    round_trip_ms: float
    trial_s: float


@dataclass(frozen=True)
class Stage:
    """Resources that all cases share: the study's data, the files of a real split, and the server."""

    server: Any  # tests.support.postgres_server.PostgresServer
    data: tuple[FoldedData, ...]
    request: StudyRequest
    files: Path
    scratch: Path


@contextmanager
def stage() -> Iterator[Stage]:
    """Start the server, and run one real trial to obtain its files."""
    from tests.support.postgres_server import PostgresServer

    market = synthetic_dataset("5m", N_BARS, ("BTC", "ETH"), seed=1)
    with ExitStack() as stack:
        # Real machines have separate disks. Here the results are in memory, so that only the server uses the disk.
        places = (MEMORY if MEMORY.is_dir() else None, None)
        folders = (tempfile.TemporaryDirectory(prefix="workers-", dir=place) for place in places)
        scratch, disk = (Path(stack.enter_context(folder)) for folder in folders)
        disk.chmod(0o755)  # the server runs as another user
        few = {"n_trials": 1, "break_step": 2_000, "pruner": "none"}
        with ended_study(market, plan=PLAN, agent=AGENT, n_envs=N_ENVS, **few) as ended:
            shutil.copytree(split_folder(ended.folder, 0, 0), scratch / "files")
        save_dataset(market, scratch / "data")
        server = PostgresServer(disk / "server", settings=SERVER)
        stack.callback(server.stop)
        storage = absolute_url(server.url(), scratch)
        where = {"storage": storage, "results_dir": scratch / "results", "data_dir": scratch / "data"}
        request = StudyRequest(NEVER, NAME, plan=PLAN, agent=AGENT, n_envs=N_ENVS, **where)
        data = load_study_data(request.data_dir, None, None, PLAN)
        yield Stage(server, data, request, scratch / "files", scratch)


# ----------------------------------------------------------------------------------------------------------- one worker
class Simulated:
    """Worker that runs the production code, traces its actions, and waits instead of training.

    Args:
        case: simulated case.
        files: folder with the files of a real split.
        trace: file for lines `what begin end`, in seconds of `time.monotonic`.
        first: duration of the first trial as a fraction of the others, so that trials do not end simultaneously.
    """

    def __init__(self, case: Case, files: Path, trace: Path, first: float) -> None:
        self._split_s, self._files, self._first = case.trial_s / N_SPLITS, files, first
        self._trace = os.open(trace, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        self._first_trial: int | None = None

    def run(self, request: StudyRequest, data: tuple[FoldedData, ...]) -> None:
        """Work until the process is killed."""
        session.Objective = partial(Objective, runner=self.split)  # pyright: ignore[reportAttributeAccessIssue]
        worker.study_lock = partial(self.lock, worker.study_lock)
        began_s = time.monotonic()
        with Interruption() as interruption:
            opened = session.open_request(request, data)
            self.note(OPENED, began_s, time.monotonic())
            ending = session.work_on(opened, request, interruption, no_hook, WorkerReporter)
        raise RuntimeError(f"a worker ended: {ending}")

    def note(self, what: str, begin_s: float, end_s: float) -> None:
        """Add a line to the trace."""
        os.write(self._trace, f"{what} {begin_s!r} {end_s!r}\n".encode())

    @contextmanager
    def lock(self, study_lock: Any, *arguments: Any) -> Iterator[Any]:
        """Trace when `study_lock` is requested and held."""
        began_s = time.monotonic()
        with study_lock(*arguments) as is_held:
            held_s = time.monotonic()
            self.note(ASKED, began_s, held_s)
            yield is_held
        self.note(HELD, held_s, time.monotonic())

    def split(
        self,
        settings: Resolved,
        data: FoldedData,
        fold: Fold,
        out_dir: Path,
        origin: PolicyOrigin,
        on_progress: Callable[[Progress], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> SplitOutcome:
        """Wait for the duration of a split, report progress, and write the files of a split."""
        if self._first_trial is None:
            self._first_trial = origin.trial
        lasts_s = self._split_s * (self._first if origin.trial == self._first_trial else 1.0)
        began_s, steps = time.monotonic(), settings.train["total_env_steps"]
        self.note(TRAINED, began_s, began_s + lasts_s)
        while (left_s := began_s + lasts_s - time.monotonic()) > 0.0:
            time.sleep(min(left_s, REPORT_S))
            if on_progress is not None:
                done = min((time.monotonic() - began_s) / lasts_s, 1.0)
                on_progress(Progress(int(done * steps), steps, 1, 1, 1.0, 1.0, 0.0, 0.0, (), None, False))
        for path in self._files.iterdir():
            write_whole(out_dir / path.name, path.read_bytes())
        # The sign alternates, so that no trial is worse than the best on most splits and none is pruned.
        shift = random.Random(origin.trial).uniform(-0.5, 0.5) * (-1) ** fold.index
        return outcome(fold.index, 1.0 + shift, steps, lasts_s)


def outcome(fold: int, sharpe: float, steps: int, wall_s: float) -> SplitOutcome:
    """Return the metrics of a split, in which only the Sharpe ratio varies."""
    agent, other = (Metrics(100, 0.01, 0.1, 0.2, s, 1.0, 0.05, 2.0, 0.001, 30, 0.5) for s in (sharpe, 0.0))
    return SplitOutcome(fold, agent, other, steps, 5e4, 1e4, wall_s)


# ------------------------------------------------------------------------------------------------------------- one case
@dataclass(frozen=True)
class Sample:
    """Resources that the processes of a case have used so far."""

    at_s: float
    workers_cpu_s: float
    server_cpu_s: float
    network_cpu_s: float
    round_trips: int


class Crowd:
    """Context manager that runs the workers of a case and kills them at its end."""

    def __init__(self, stage: Stage, case: Case, window_s: float) -> None:
        self._stage, self._case, self._window_s = stage, case, window_s
        self._folder = Path(tempfile.mkdtemp(dir=stage.scratch, prefix="case-"))
        self._database = f"w{case.workers}_{self._folder.name.removeprefix('case-')}".lower()
        self._network = Network(stage.server.port)
        self._pids: list[int] = []
        self._url = stage.server.new_database(self._database)

    def __enter__(self) -> Crowd:
        (self._folder / "store").mkdir()
        request = replace(self._stage.request, artifacts=f"file://{self._folder}/store", workers=1)
        made = self._fork(lambda: session.open_request(self._request(request, self._url, "made"), self._stage.data))
        if os.waitpid(made, 0)[1]:
            raise SystemExit("the study could not be created, see above")
        self._network.delay(self._case.round_trip_ms / 2e3)
        through = replace(self._request(request, self._network.through(self._url), ""), resume=True)
        gc.freeze()  # memory that a process does not modify stays shared
        for number in range(self._case.workers):
            self._pids.append(self._fork(partial(self._work, number, through)))
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)
        gc.unfreeze()
        self._network.close()

    def _request(self, request: StudyRequest, url: str, machine: str) -> StudyRequest:
        return replace(request, storage=absolute_url(url, self._folder), results_dir=self._folder / machine)

    def _fork(self, work: Any) -> int:
        """Run `work` in a forked process that ends with exit code 0 or 1, and return its pid."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # killed when this program ends for any reason
        Path("/proc/self/oom_score_adj").write_text("1000")  # killed first if memory runs out
        has_worked = False
        try:
            work()
            has_worked = True
        finally:
            if not has_worked:
                traceback.print_exc()
            os._exit(0 if has_worked else 1)

    def _work(self, number: int, request: StudyRequest) -> None:
        host = f"machine-{number // WORKERS_A_HOST}"
        socket.gethostname = lambda: host
        first = (number + 0.5) / self._case.workers
        simulated = Simulated(self._case, self._stage.files, self._folder / f"trace-{number}", first)
        simulated.run(replace(request, results_dir=self._folder / host), self._stage.data)

    # ------------------------------------------------------------------------------------------------- measuring
    def measure(self) -> dict[str, Any]:
        """Wait until the workers have reached a steady state, measure them for the window, and return a row."""
        began_s = time.monotonic()
        self._wait_until_open(began_s + LONGEST_OPENING_S)
        time.sleep(self._case.trial_s + SETTLE_S)
        psutil.cpu_percent()
        first = self._sample()
        measured_ms = self._round_trips_ms(first.at_s + self._window_s)
        last, busy = self._sample(), psutil.cpu_percent()
        if dead := [pid for pid in self._pids if os.waitpid(pid, os.WNOHANG)[0]]:
            self._pids = [pid for pid in self._pids if pid not in dead]
            raise SystemExit(f"{len(dead)} workers ended, see above")
        row = self._row(began_s, first, last) | self._sizes() | self._states()
        return row | {"measured_rtt_ms": statistics.median(measured_ms), "share_machine": busy / 100.0}

    def _round_trips_ms(self, end_s: float) -> list[float]:
        """Query the server through the network every second until `end_s`, and return the milliseconds per answer."""
        took_ms: list[float] = []
        with psycopg.connect(self._network.through(self._url), autocommit=True) as connection:
            while (left_s := end_s - time.monotonic()) > 0.0:
                time.sleep(min(left_s, 1.0))
                asked_s = time.monotonic()
                connection.execute("SELECT 1")
                took_ms.append(1e3 * (time.monotonic() - asked_s))
        return took_ms

    def _wait_until_open(self, end_s: float) -> None:
        while time.monotonic() < end_s and len(self._lines(OPENED)) < self._case.workers:
            time.sleep(0.5)

    def _lines(self, what: str) -> list[tuple[float, float]]:
        """Return (begin, end) in seconds of every traced action of this kind."""
        lines = [line.split() for path in self._folder.glob("trace-*") for line in path.read_text().splitlines()]
        return [(float(line[1]), float(line[2])) for line in lines if line[0] == what]

    def _sample(self) -> Sample:
        workers, network = map(psutil.Process, self._pids), psutil.Process(self._network.pid)
        workers_s, server_s = cpu_s(workers), cpu_s(self._server_processes())
        return Sample(time.monotonic(), workers_s, server_s, cpu_s([network]), self._network.round_trips)

    def _server_processes(self) -> list[psutil.Process]:
        pid = int((self._stage.server.folder / "data" / "postmaster.pid").read_text().split()[0])
        return [psutil.Process(pid), *psutil.Process(pid).children()]

    def _row(self, began_s: float, first: Sample, last: Sample) -> dict[str, Any]:
        window, lasts_s = (first.at_s, last.at_s), last.at_s - first.at_s
        trained, held = self._lines(TRAINED), self._lines(HELD)
        trials = inside(trained, window) / self._case.trial_s
        asked = [end - begin for begin, end in self._lines(ASKED) if window[0] <= end < window[1]]
        opened = [end for _, end in self._lines(OPENED)]
        case = self._case
        return {
            "workers": case.workers, "rtt_ms": case.round_trip_ms, "trial_s": case.trial_s,
            "share_ideal": trials * case.trial_s / (case.workers * lasts_s),
            "trials_per_min": 60.0 * trials / lasts_s,
            "lock_ms": 1e3 * statistics.mean(e - b for b, e in held if first.at_s <= b < last.at_s),
            "share_locked": inside(held, window) / lasts_s,
            "wait_s": statistics.mean(asked) if asked else None,
            "opening_s": max(opened) - began_s if len(opened) == case.workers else None,
            "round_trips": (last.round_trips - first.round_trips) / max(trials, 1.0),
            "worker_cpu_s": (last.workers_cpu_s - first.workers_cpu_s) / max(trials, 1.0),
            "server_cpu_s": (last.server_cpu_s - first.server_cpu_s) / max(trials, 1.0),
            "share_cpu": cores(first, last) / len(os.sched_getaffinity(0)),
        }  # fmt: skip

    def _sizes(self) -> dict[str, Any]:
        """Return the memory of workers and server, and the number of connections."""
        own = [psutil.Process(pid).memory_full_info().uss for pid in self._pids]
        server = self._server_processes()
        with psycopg.connect(self._stage.server.url()) as connection:
            ask = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
            ((n_connections,),) = connection.execute(ask, [self._database]).fetchall()
        return {
            "worker_mib": statistics.mean(own) / MIB, "connections": n_connections,
            "server_mib": total(server, lambda process: process.memory_full_info().pss) / MIB,
        }  # fmt: skip

    def _states(self) -> dict[str, int]:
        """Count the trials of the study by their state."""
        with psycopg.connect(self._url, client_encoding="utf8") as connection:
            found = dict(connection.execute("SELECT state::text, count(*) FROM trials GROUP BY 1").fetchall())
        return {name: found.get(name.upper(), 0) for name in ("complete", "running", "pruned", "fail")}


def inside(spans: Sequence[tuple[float, float]], window: tuple[float, float]) -> float:
    """Return the total seconds of the spans inside the window."""
    return sum(max(min(end, window[1]) - max(begin, window[0]), 0.0) for begin, end in spans)


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds that the processes have used so far."""
    return total(processes, lambda process: sum(process.cpu_times()[:2]))


def total(processes: Iterable[psutil.Process], measure: Callable[[psutil.Process], float]) -> float:
    """Sum a measurement over processes. Processes that have just ended, such as helpers of the server, are skipped."""
    found = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found += measure(process)
    return found


def cores(first: Sample, last: Sample) -> float:
    """Return the CPU cores that workers, server and network used in total between two samples."""
    names = ("workers_cpu_s", "server_cpu_s", "network_cpu_s")
    return sum(getattr(last, name) - getattr(first, name) for name in names) / (last.at_s - first.at_s)


def run_case(stage: Stage, case: Case, window_s: float) -> dict[str, Any]:
    """Run the workers of a case, or as many as fit into memory, measure them for the window, and return a row."""
    fits = int((psutil.virtual_memory().available - 2 * GIB) / (MIB_PER_WORKER * MIB))
    if fits < case.workers:
        print(f"memory for {fits} of {case.workers} workers; close other programs to run more", file=sys.stderr)
        case = replace(case, workers=max(fits, 1))
    with Crowd(stage, case, window_s) as crowd:
        return crowd.measure()
