"""Worker processes of one study on one machine, supervised by the process that started them.

A worker process runs a module (`train.worker_program`). It receives its orders on standard input, which stays open.
When standard input closes, the parent process has exited, and the worker stops. The worker writes its result to a pipe
before it exits. A killed worker writes no result and is restarted.

The parent blocks signals while a worker starts, and the worker inherits the signal mask. A signal that arrives before
the worker can handle it stays pending.
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

MOST_RESTARTS = 5  # per worker
POLL_S = 0.2
STOP_S = 6.0  # for a worker to end after a signal; the next start repairs the trial of a killed worker
# Additional threads of a worker compete for the cores of other workers. Torch's threads spin while waiting, which then
# costs more than it gains (`train.device`, benchmarks/update.py --threads). Variables set by the user are kept.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
NOISY = ("optuna", "matplotlib", "sqlalchemy")


@dataclass(frozen=True)
class Orders:
    """Input of a worker process."""

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
        """Return what the worker wrote before it exited, or None if it was killed."""
        with open(self.result_fd, "rb") as pipe:
            content = pipe.read()
        assert self.process.stdin is not None
        self.process.stdin.close()
        return pickle.loads(content) if content else None


class _Lines(logging.StreamHandler):
    """Log handler that reports the first write error (a full disk, a closed terminal) and continues."""

    _has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Report a write error once; handle other errors as logging does."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            with suppress(OSError):
                sys.stderr.write(
                    f"the log cannot be written ({error.strerror}); the run continues, but lines are lost\n"
                )


def set_up_logging(level: int | str, prefix: str = "") -> None:
    """Log this program's messages with timestamps to standard output. Libraries log only errors."""
    logging.basicConfig(
        level=level, format=f"%(asctime)s {prefix}%(message)s", datefmt="%Y-%m-%d %H:%M:%S",
        handlers=[_Lines(sys.stdout)],
    )  # fmt: skip
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("environment_Alpaca_vectorized").setLevel(logging.WARNING)  # a study logs its rules itself


class Supervisor:
    """Starts workers, restarts killed workers, and forwards the signal that stops them.

    Args:
        request_of: function that returns a worker's request, given the worker's number, starting at 0, and the
            remaining seconds.
        shared: data of the study.
        n_workers: number of processes.
        interruption: context manager that is already active.
        timeout_s: no trial starts after this time.
        program: module that a worker process runs.
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
        self._kill_s: float | None = None  # time at which workers that were told to stop are killed
        self._n_workers = n_workers

    def run(self) -> Ending:
        """Run until all workers have exited, and return the reason."""
        try:
            for number in range(self._n_workers):
                self._start(number, 0)
            while self._crew:
                self._look_after()
                time.sleep(POLL_S)
        finally:
            for worker in self._crew:  # only after a bug in this class
                worker.process.kill()
        return self._together()

    def _start(self, number: int, restarts: int) -> None:
        read_fd, write_fd = os.pipe()
        # -P: do not import a folder `train` from the current folder.
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
            logger.debug("worker %d exited before it received its request", number + 1)
        self._crew.append(_Worker(number, process, read_fd, restarts))

    def _look_after(self) -> None:
        if self._interruption.received is not None:
            self._stop_all(self._interruption.received)
        if self._kill_s is not None and time.monotonic() > self._kill_s:
            for worker in self._crew:
                logger.warning("worker %d did not stop within %.0f s and was killed", worker.number + 1, STOP_S)
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
            result = Ending(error=f"worker {worker.number + 1} ended with exit code {code}; see the log above")
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
            logger.error("%s; it is not restarted", text)
            self._results.append(Ending(error=text))
            return
        logger.warning("worker %d was killed by %s; restarting (%d of at most %d times)", worker.number + 1, how,
                       worker.restarts + 1, MOST_RESTARTS)  # fmt: skip
        self._start(worker.number, worker.restarts + 1)

    def _stop_all(self, number: int) -> None:
        """Forward a signal to all workers, once."""
        if self._kill_s is not None:
            return
        self._kill_s = time.monotonic() + STOP_S
        for worker in self._crew:
            worker.process.send_signal(number)

    def _together(self) -> Ending:
        """Return the most severe ending of all workers."""
        if self._interruption.received is not None:
            return Ending(signal_number=self._interruption.received)
        kinds = (lambda e: e.error, lambda e: e.repeated_failure, lambda e: e.timed_out, lambda e: e.signal_number)
        for is_worse in kinds:
            for result in self._results:
                if is_worse(result):
                    return result
        return Ending()


def _signal_name(number: int) -> str:
    """Return the name of a signal, such as SIGKILL. Real-time signals have no name."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


@contextmanager
def _blocked_signals() -> Iterator[None]:
    old = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
