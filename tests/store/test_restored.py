"""Workers survive a server that is restored from an earlier copy, and machines may differ in clocks but not in code."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from tests.support import cheap_study
from tests.support.network import Network
from tests.support.postgres_server import PostgresServer, why_not
from train.records.errors import StudyError
from train.records.keys import FAILURE, RETRY_OF, WORKER
from train.records.record_files import plain
from train.runner import worker
from train.store import abandoned, database, lock
from train.store.abandoned import fail_abandoned_trials, queue_lost_retries, refuse_other_code
from train.store.address import absolute_url
from train.store.database import open_study, stored_identity, take_next
from train.store.heartbeat import Heartbeat
from train.store.retrying import TrialLostError
from train.store.trial_end import TrialEnd, tell
from train.store.worker_identity import GRACE_S, this_worker

HERE = Path("/")
MOST_TO_MAKE, MOST_TO_JOIN = 115, 80  # round trips; 219 and 249 in earlier versions


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """Yield a server that a test may replace by an earlier copy."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder) / "server")
        yield server
        server.stop()


def opened(url: str):
    return open_study(absolute_url(url, HERE), "s", cheap_study.IDENTITY, False, NopPruner())


def test_a_worker_whose_server_is_restored_from_an_earlier_copy_reaches_the_target(server, tmp_path, caplog):
    """In the copy, trial 1 is RUNNING. Trials 2 and 3 are lost, trial 3 while it runs."""
    caplog.set_level(logging.INFO)
    url, started = server.new_database("restored"), []

    def on_split(number: int) -> None:
        started.append(number)
        if len(started) == 3:
            server.copy()
        if len(started) == 8:
            server.restore()

    study, ending = cheap_study.work(url, tmp_path, 5, on_split)
    assert ending == worker.Ending()
    assert "trial 3: no longer in the database" in caplog.text
    trials = study.get_trials()
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 5, "FAIL": 1}
    assert [trial.number for trial in trials] == [*range(6)]
    assert trials[1].user_attrs[FAILURE].startswith("killed")  # its end was written to the replaced server
    assert [trial.number for trial in trials if trial.user_attrs.get(RETRY_OF) == [1]] == [2]
    assert len({str(trial.params) for trial in trials}) == 5
    assert all("split_1" in trial.user_attrs for trial in trials if trial.state == TrialState.COMPLETE)


def test_a_trial_that_is_lost_is_not_written_into_another_one_with_its_id(server):
    url = server.new_database("ids")
    study = opened(url)
    server.copy()
    lost = take_next(study, 0)
    server.restore()
    database._open_server.cache_clear()  # as in another worker
    other = take_next(opened(url), 0)
    assert (other.number, other._trial_id) == (lost.number, lost._trial_id)
    with pytest.raises(TrialLostError):
        lost.set_user_attr("a", 1)
    with pytest.raises(TrialLostError):
        tell(study, lost.number, TrialEnd(TrialState.COMPLETE, 1.0))
    found = opened(url).trials[0]
    assert (found.state, "a" in found.user_attrs) == (TrialState.RUNNING, False)


def test_the_heartbeat_of_a_lost_trial_ends_without_a_word(server, caplog):
    study = opened(server.new_database("beats"))
    server.copy()
    trial = take_next(study, 0)
    server.restore()
    with Heartbeat(study, trial._trial_id) as heartbeat:
        heartbeat._thread.join(15.0)
        assert not heartbeat._thread.is_alive()
    assert "foreign key" not in caplog.text


@pytest.mark.parametrize("ahead_s", [-7200, 7200])
def test_the_clock_of_another_machine_neither_hastens_nor_delays_a_retry(postgres, monkeypatch, ahead_s):
    study, now_s = opened(postgres.new_database(f"clock{ahead_s + 7200}")), [1000.0]
    failed = take_next(study, 0)
    failed.suggest_float("x", 0.0, 1.0)
    failed.set_user_attr(FAILURE, "interrupted by SIGTERM")
    study.tell(failed.number, state=TrialState.FAIL)
    unsigned = study.ask()
    real_s = abandoned.time.time()
    monkeypatch.setattr(abandoned.time, "time", lambda: real_s + ahead_s)
    monkeypatch.setattr(abandoned.time, "monotonic", lambda: now_s[0])
    for waited_s, n_queued, is_dead in ((0.0, 0, False), (GRACE_S - 1.0, 0, False), (GRACE_S + 1.0, 1, True)):
        now_s[0] = 1000.0 + waited_s
        queue_lost_retries(study)
        assert fail_abandoned_trials(study) == ([unsigned.number] if is_dead else [])
        assert sum(RETRY_OF in trial.user_attrs for trial in study.trials) == n_queued


def test_a_trainer_with_other_code_is_refused_while_another_one_runs(postgres):
    study = opened(postgres.new_database("code"))
    trial = take_next(study, 0)
    refuse_other_code(study)
    elsewhere = plain(this_worker()) | {"host": "elsewhere", "machine": "of another boot"}
    trial.set_user_attr(WORKER, elsewhere | {"code": "0123456789ab"})
    with pytest.raises(
        StudyError, match=r"elsewhere runs different code .SHA-256 0123456789ab, here .*on all machines"
    ):
        refuse_other_code(study)
    trial.set_user_attr(WORKER, elsewhere | {"code": ""})  # from a version that stored no hash of its code
    refuse_other_code(study)
    study.tell(trial.number, state=TrialState.FAIL)


def test_opening_a_study_costs_few_round_trips(postgres):
    """Open a study as a command does, then as a worker process does."""
    network = Network(postgres.port)
    url = absolute_url(network.of(postgres.new_database("opening")), HERE)
    for most, must_exist in ((MOST_TO_MAKE, False), (MOST_TO_JOIN, True)):
        for cached in (database._open_server, lock._lock_engine):
            cached.cache_clear()  # as in a new process
        before = network.round_trips
        stored_identity(url, "s")
        open_study(url, "s", cheap_study.IDENTITY, must_exist, NopPruner())
        assert network.round_trips - before <= most
