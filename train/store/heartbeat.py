"""A sign of life of a running trial, written to the database every half minute by a thread of its own.

Optuna's own thread ends, with a traceback, when the database is away for a moment. This one goes on.
"""

from __future__ import annotations

import threading

from optuna.study import Study
from sqlalchemy.exc import IntegrityError

from train.store.retrying import TROUBLES, patient_storage, reason_of
from train.store.waiting import QUIET_S, Wait

SOON_S = 2.0  # after a beat that failed
JOIN_S = 1.0  # a beat that hangs in the database's driver is left behind


class Heartbeat:
    """Beats while in use as a context manager."""

    def __init__(self, study: Study, trial_id: int) -> None:
        self._storage, self._trial_id = patient_storage(study), trial_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat of trial {trial_id}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(JOIN_S)

    def _beat(self) -> None:
        pause_s, wait = 0.0, None
        while not self._ended.wait(pause_s):
            wait = wait or self._wait()
            pause_s = float(self._storage.get_heartbeat_interval() or 0)
            try:
                with wait.is_current():
                    self._storage.record_heartbeat(self._trial_id)
            except IntegrityError:  # the server was restored from a copy without the trial: `TrialLostError` follows
                return
            except TROUBLES as error:
                wait.say(reason_of(error))
                pause_s = min(pause_s, SOON_S)
            else:
                wait.is_over()
                wait = None

    def _wait(self) -> Wait:
        """For the next heartbeat: while a split is trained, nothing else would say that the database is away."""
        return Wait(f"the database {self._storage.database_name} to take heartbeats", QUIET_S, 0.0)
