"""Heartbeat of a running trial. A separate thread writes it to the database every half minute.

Optuna's own heartbeat thread dies with a traceback if the database is briefly unreachable. This thread continues.
"""

from __future__ import annotations

import threading

from optuna.study import Study
from sqlalchemy.exc import IntegrityError

from train.store.retrying import TROUBLES, patient_storage, reason_of
from train.store.waiting import QUIET_S, Wait

SOON_S = 2.0  # pause after a failed heartbeat
JOIN_S = 1.0  # a heartbeat that hangs in the driver is abandoned after this time


class Heartbeat:
    """Context manager that writes heartbeats."""

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
        """Return the wait for the next heartbeat. During training, only this wait notices an unreachable database."""
        return Wait(f"the database {self._storage.database_name} to accept heartbeats", QUIET_S, 0.0)
