"""Program of a worker process (`train.runner.crew`): python -m train.worker_program RESULT_FD."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from functools import partial

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError

from market.errors import DatasetError
from train.records.errors import StudyError
from train.report.artifacts import picture_of
from train.runner.crew import Orders, set_up_logging
from train.runner.session import open_request, work_on
from train.runner.worker import Ending
from train.store.artifact_files import pictures_in
from train.store.lock import wait_for_database
from train.store.retrying import reason_of
from train.study.interruption import SIGNALS, Interrupted, Interruption
from train.study.progress import Reporter
from train.validation.splits import SplitError


class WorkerReporter(Reporter):
    """Reporter without progress bars, because the bars of several workers would overwrite one another."""

    hides_bars = True


def main(result_fd: int) -> None:
    """Execute the orders and write the result. Signals are blocked before and after that."""
    orders: Orders = pickle.load(sys.stdin.buffer)
    set_up_logging(orders.log_level, f"worker {orders.number}: ")
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    with Interruption() as interruption:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        ending = _work(orders, interruption)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with suppress(BrokenPipeError):  # the parent was killed, so nothing reads the result
        os.write(result_fd, pickle.dumps(ending))
    gc.freeze()  # as in `train.finish`


def _work(orders: Orders, interruption: Interruption) -> Ending:
    try:
        # The parent reached the server, but the server may be restarting now.
        wait_for_database(orders.request.storage)
        opened = open_request(orders.request, orders.data.open())
        around_trial = partial(picture_of, pictures=pictures_in(opened.study.user_attrs))
        return work_on(opened, orders.request, interruption, around_trial, WorkerReporter)
    except (StudyError, DatasetError, SplitError) as error:
        return Ending(error=f"worker {orders.number}: {error}")
    except Interrupted as signal:
        return Ending(signal_number=signal.signal_number)
    except (DBAPIError, StorageInternalError) as error:
        return Ending(error=f"worker {orders.number}: the database failed: {reason_of(error)}")


def _stop_with_parent() -> None:
    """Stop when standard input closes, because the parent process has then exited.

    The read bypasses Python's buffer, whose lock would still be held at exit.
    """
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]))
