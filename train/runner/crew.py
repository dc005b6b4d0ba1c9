"""Several workers of one study on one machine: processes of their own, looked after by the one that started them.

A worker process runs a module (`train.worker_program`). It gets its orders on standard input, which stays open: when
it ends the parent is gone, and the worker stops. What came of it is written to a pipe before it exits; a worker that
was killed has written nothing, and is started again.

Signals are blocked while a worker starts, by the parent and so in the worker too: one that comes before the worker
listens waits for it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from train.records.provenance import ROOT, is_checkout
from train.runner.sharing import SharedData
from train.runner.worker import Ending
from train.study.interruption import SIGNALS, Interruption

logger = logging.getLogger(__name__)

MOST_RESTARTS = 5  # of one worker
POLL_S = 0.2
STOP_S = 6.0  # that a worker has to end after a signal; a trial of one that is killed is mended by the next start
# A second thread of a worker takes the core of another, and torch's threads, which spin while they wait, then cost more
# than they give (`train.device`, benchmarks/update.py --threads). A variable that the user has set stays.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
NOISY = ("optuna", "matplotlib", "sqlalchemy")


@dataclass(frozen=True)
class Orders:
    """What a worker process is told."""

    request: Any  # train.runner.request.StudyRequest, for one worker
    data: SharedData
    number: int
    log_level: int


@dataclass(frozen=True)
class _Worker:
    """A running worker process."""

    number: int
    process: subprocess.Popen[bytes]
    result_fd: int
    restarts: int

    def result(self) -> Ending | None:
        """What it wrote before it exited; None when it was killed."""
        with open(self.result_fd, "rb") as pipe:
            content = pipe.read()
        assert self.process.stdin is not None
        self.process.stdin.close()
        return pickle.loads(content) if content else None


class _Lines(logging.StreamHandler):
    """A line that cannot be written (the disk is full, the terminal gone) is no reason to stop; said once."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """As logging does, for every other error."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            with suppress(OSError):
                sys.stderr.write(f"the log cannot be written ({error.strerror}): the run goes on, lines are lost\n")


def set_up_logging(level: int | str, prefix: str = "") -> None:
    """Lines of our own on standard output, with the time; of the libraries only errors."""
    logging.basicConfig(
        level=level, format=f"%(asctime)s {prefix}%(message)s", datefmt="%Y-%m-%d %H:%M:%S",
        handlers=[_Lines(sys.stdout)],
    )  # fmt: skip
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("environment_Alpaca_vectorized").setLevel(logging.WARNING)  # a study names its rules itself


class Supervisor:
    """Starts workers, starts killed ones again, and hands on the signal that ends them.

    Args:
        request_of: number of a worker, counted from 0, and seconds left -> its request.
        shared: the study's data.
        n_workers: processes.
        interruption: must be in use.
        timeout_s: no trial begins after this.
        program: the module that a worker process runs.
    """

    def __init__(
        self,
        request_of: Callable[[int, float | None], Any],
        shared: SharedData,
        n_workers: int,
        interruption: Interruption,
        timeout_s: float | None,
        program: str,
    ) -> None:
        self._request_of, self._shared, self._interruption = request_of, shared, interruption
        self._program = program
        self._end_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._crew: list[_Worker] = []
        self._results: list[Ending] = []
        self._kill_s: float | None = None  # when those that were told to stop are killed
        self._n_workers = n_workers

    def run(self) -> Ending:
        """Until all have ended -> why."""
        try:
            for number in range(self._n_workers):
                self._start(number, 0)
            while self._crew:
                self._look_after()
                time.sleep(POLL_S)
        finally:
            for worker in self._crew:  # only after a mistake of ours
                worker.process.kill()
        return self._together()

    def _start(self, number: int, restarts: int) -> None:
        read_fd, write_fd = os.pipe()
        # -P: a folder `train` of the host whose folder this runs in is not ours.
        command = [sys.executable, "-P", "-m", self._program, str(write_fd)]
        environment = ONE_THREAD | os.environ
        if is_checkout():
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment |= {"PYTHONPATH": os.pathsep.join(paths)}
        with _blocked_signals():
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=(write_fd, *self._shared.fds), env=environment
            )
        os.close(write_fd)
        left_s = None if self._end_s is None else max(self._end_s - time.monotonic(), 1e-3)
        log_level = logging.getLogger().getEffectiveLevel()
        orders = Orders(self._request_of(number, left_s), self._shared, number + 1, log_level)
        assert process.stdin is not None
        try:
            process.stdin.write(pickle.dumps(orders))
            process.stdin.flush()
        except BrokenPipeError:
            logger.debug("worker %d ended before it was told anything", number + 1)
        self._crew.append(_Worker(number, process, read_fd, restarts))

    def _look_after(self) -> None:
        if self._interruption.received is not None:
            self._stop_all(self._interruption.received)
        if self._kill_s is not None and time.monotonic() > self._kill_s:
            for worker in self._crew:
                logger.warning("worker %d: did not stop in %.0f s; killed", worker.number + 1, STOP_S)
                worker.process.kill()
            self._kill_s = float("inf")
        for worker in [w for w in self._crew if w.process.poll() is not None]:
            self._crew.remove(worker)
            self._ended(worker)

    def _ended(self, worker: _Worker) -> None:
        result, code = worker.result(), worker.process.returncode
        if result is None and self._kill_s is not None:
            return
        if result is None and code >= 0:
            result = Ending(error=f"worker {worker.number + 1} ended with exit code {code}, see above")
        if result is not None:
            self._results.append(result)
            if result.error or result.repeated_failure:
                self._stop_all(signal.SIGTERM)
            return
        how = _signal_name(-code)
        if worker.restarts == MOST_RESTARTS:
            n_times = worker.restarts + 1
            times = f"{n_times} times, the last time" if n_times > 1 else "1 time,"
            text = f"worker {worker.number + 1} was killed {times} by {how}"
            logger.error("%s; not started again", text)
            self._results.append(Ending(error=text))
            return
        logger.warning("worker %d: killed by %s; started again (%d of at most %d times)", worker.number + 1, how,
                       worker.restarts + 1, MOST_RESTARTS)  # fmt: skip
        self._start(worker.number, worker.restarts + 1)

    def _stop_all(self, number: int) -> None:
        """Once."""
        if self._kill_s is not None:
            return
        self._kill_s = time.monotonic() + STOP_S
        for worker in self._crew:
            worker.process.send_signal(number)

    def _together(self) -> Ending:
        """One ending for all: the worst of theirs."""
        if self._interruption.received is not None:
            return Ending(signal_number=self._interruption.received)
        kinds = (lambda e: e.error, lambda e: e.repeated_failure, lambda e: e.timed_out, lambda e: e.signal_number)
        for is_worse in kinds:
            for result in self._results:
                if is_worse(result):
                    return result
        return Ending()


def _signal_name(number: int) -> str:
    """Such as SIGKILL; real-time signals have no name."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


@contextmanager
def _blocked_signals() -> Iterator[None]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
