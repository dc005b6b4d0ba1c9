"""A network that loses, forgets or delays: the study says so, ends at a signal, goes on later, and asks seldom.

Waits are shortened here. `python -m tests.machines` has the real ones, with real trainers.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import text

from barwise import setup_checks
from market.sample import synthetic_dataset
from tests.support import cheap_study
from tests.support.network import TO_CLIENT, TO_SERVER, Network
from train.records.errors import StudyError
from train.records.keys import WORKER
from train.runner import worker
from train.runner.session import make_pruner
from train.store import heartbeat, server_connection, waiting
from train.store.address import absolute_url
from train.store.database import load_study, open_study, take_next
from train.store.heartbeat import Heartbeat
from train.store.lock import reach, study_lock
from train.store.retrying import MADE, TAKEN, patient_storage
from train.store.server_storage import ServerStorage, together
from train.study.folds import FoldedData, fold_data
from train.study.interruption import Interrupted, Interruption
from train.study.objective import DEFAULT_BOUNDS, Bounds, Objective, RunSettings
from train.study.progress import Reporter
from train.study.search_space import build_space
from train.study.split import SplitOutcome
from train.study.split_plan import SplitPlan
from train.watch.reading import UnavailableError, read

HERE = Path("/")
FAULTS = ("to the server", "to the client", "both ways", "half open", "frozen")
MOST_ROUND_TRIPS, MOST_UNDER_THE_LOCK = 80, 25


@pytest.fixture
def network(postgres) -> Network:
    """To the server, without a delay."""
    return Network(postgres.port)


@pytest.fixture
def short(monkeypatch) -> None:
    """Waits of tenths of a second."""
    for module in (server_connection, waiting, heartbeat):
        monkeypatch.setattr(module, "QUIET_S", 0.3)
    monkeypatch.setattr(server_connection, "ANSWER_S", 0.8)
    monkeypatch.setattr(server_connection, "GRACE_AFTER_SIGNAL_S", 0.3)


def study_at(network: Network, postgres, name: str) -> tuple[optuna.Study, object]:
    url = absolute_url(network.of(postgres.new_database(name)), HERE)
    return open_study(url, "s", cheap_study.IDENTITY, False, NopPruner()), url


@contextmanager
def broken(fault: str, network: Network, postgres) -> Iterator[None]:
    """A network or a server that does not answer, without a word."""
    if fault == "half open":
        network.forget()
        network.lost = {TO_CLIENT}  # a new connection is made and never greeted
    else:
        network.lost = {TO_SERVER: {TO_SERVER}, TO_CLIENT: {TO_CLIENT}, "both ways": {TO_SERVER, TO_CLIENT}}.get(
            fault, set()
        )
    with postgres.frozen() if fault == "frozen" else nullcontext():
        yield
    network.lost = set()


def signal_in(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_does_not_answer_is_reported_ends_at_a_signal_and_is_used_again(
    postgres, network, short, caplog, monkeypatch, fault
):
    monkeypatch.setattr(server_connection, "ANSWER_S", 5.0)  # longer than the test lasts: a signal is heard before
    study, url = study_at(network, postgres, f"silent{FAULTS.index(fault)}")
    with study_lock(url):  # its connection is kept
        pass
    with Interruption(), broken(fault, network, postgres):
        signal_in(0.5)
        began_s = time.monotonic()
        with pytest.raises(Interrupted), study_lock(url):
            pass
        with pytest.raises(Interrupted):  # the server has had its time: not a second grace
            study.get_trials()
        assert time.monotonic() - began_s < 2.0
    said = re.compile(
        r"waiting for the (database|lock) .* for \d+ s: the server did not answer for \d+ s; nothing is lost"
    )
    assert [line for line in caplog.messages if said.match(line)]
    monkeypatch.setattr(server_connection, "ANSWER_S", 0.8)
    patient_storage(study).engine.dispose()
    assert study.get_trials() == []  # by a new connection
    with broken(fault, network, postgres):
        thread = threading.Thread(target=lambda: study.enqueue_trial({"x": 0.5}))
        thread.start()
        thread.join(0.4)
        assert thread.is_alive()
    thread.join(8.0)
    assert [t.state for t in study.get_trials()] == [TrialState.WAITING]


def test_a_name_that_does_not_resolve_and_a_greeting_that_never_comes_are_reported_and_end_at_a_signal(
    postgres, network, short, caplog, monkeypatch
):
    hangs, resolve = threading.Event(), socket.getaddrinfo

    def never(host, *rest, **options):
        if host != "dbhost":
            return resolve(host, *rest, **options)
        hangs.wait(30.0)
        raise socket.gaierror("so long")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    network.lost = {TO_CLIENT}
    monkeypatch.setattr(server_connection, "ANSWER_S", 1.4)
    for url in (postgres.url().replace("127.0.0.1", "dbhost"), network.of(postgres.url())):
        caplog.clear()
        with Interruption():
            signal_in(0.5)
            began_s = time.monotonic()
            with pytest.raises(Interrupted):
                reach(absolute_url(url, HERE))
            assert time.monotonic() - began_s < 2.0
        assert "no connection was made for" in caplog.text
        with pytest.raises(StudyError, match="no connection was made for 1 s"):  # without a signal
            reach(absolute_url(url, HERE))
    hangs.set()


def test_heartbeats_do_not_wait_behind_a_query_that_is_not_answered(postgres, network, monkeypatch):
    study, url = study_at(network, postgres, "beats")
    trial, storage = take_next(study, 0), patient_storage(study)
    monkeypatch.setattr(storage, "get_heartbeat_interval", lambda: 0.1)
    with Heartbeat(study, trial._trial_id), server_connection.server_engine(url).connect() as other:
        time.sleep(0.5)  # there has been one
        other.execute(text("SELECT * FROM trials FOR UPDATE"))
        hung = threading.Thread(target=lambda: trial.set_user_attr("a", 1), daemon=True)
        hung.start()
        time.sleep(0.2)
        beats = [storage.engine.connect().execute(text("SELECT max(heartbeat) FROM trial_heartbeats")).scalar()
                 for _ in range(2) if not time.sleep(0.5)]  # fmt: skip
        assert hung.is_alive()
        other.rollback()
        hung.join(5.0)
    assert beats[0] < beats[1]


def test_a_lost_network_is_reported_by_heartbeats_while_nothing_else_asks(postgres, network, short, caplog):
    study, _ = study_at(network, postgres, "mute")
    trial = take_next(study, 0)
    network.lost = {TO_SERVER}
    with Heartbeat(study, trial._trial_id):
        time.sleep(1.0)
    assert "to accept heartbeats for 0 s: the server did not answer" in caplog.text
    network.lost = set()


def test_what_only_reads_gives_up_and_says_why(postgres, network, short, monkeypatch):
    monkeypatch.setattr("train.watch.reading.ANSWER_S", 0.3)
    monkeypatch.setattr("train.store.address.LOCK_TIMEOUT_S", 0.3)
    url = absolute_url(network.of(postgres.url()), HERE)
    network.lost = {TO_CLIENT}
    began_s = time.monotonic()
    with pytest.raises(UnavailableError, match="cannot be read now: no connection was made"):
        read(url, lambda connection: None)
    (finding,) = setup_checks.database(network.of(postgres.url()), HERE)
    assert "no connection was made" in str(finding)
    assert time.monotonic() - began_s < 3.0
    network.lost = set()


# ------------------------------------------------------------------------------------------------------- round trips
@cache
def six_splits() -> FoldedData:
    return fold_data(synthetic_dataset("5m", 4500, ("BTC", "ETH"), seed=1), SplitPlan("standard", 5, 1))


def objective_of(study: optuna.Study, folder: Path, interruption: Interruption, bounds: Bounds) -> Objective:
    """The real one with all settings of PPO and six splits; nothing is trained."""
    space = build_space(longest_episode_bars=six_splits().longest_episode_bars, agent="ppo")
    assert len(space.ranges) >= 27
    assert len(six_splits().folds) == 6

    def runner(settings, data, fold, out_dir, origin, on_progress=None, checkpoints=None) -> SplitOutcome:
        return cheap_study.outcome(fold.index, random.Random(f"{origin.trial} {fold.index}").gauss(1.0, 1.0))

    run = RunSettings(4, 0, -1, folder / "results", "test", bounds=bounds)
    return Objective(space, [six_splits()], run, Reporter(study, space, 6, 13), interruption, runner)


def test_a_trial_costs_few_round_trips_and_fewer_while_others_wait_for_the_lock(
    postgres, network, tmp_path, monkeypatch
):
    url = absolute_url(network.of(postgres.new_database("trips")), HERE)
    study = open_study(url, "s", cheap_study.IDENTITY, False, make_pruner("wilcoxon"))
    began, under_the_lock = [], []
    lock = worker.study_lock

    @contextmanager
    def counted(*arguments) -> Iterator:
        began.append(network.round_trips)
        with lock(*arguments) as is_held:
            n_before = network.round_trips
            yield is_held
            under_the_lock.append(network.round_trips - n_before)

    monkeypatch.setattr(worker, "study_lock", counted)
    interruption = Interruption()
    with interruption:
        objective = objective_of(study, tmp_path, interruption, DEFAULT_BOUNDS)  # the best keep none, which costs more
        assert worker.run_worker(study, objective, url, worker.Limits(13), interruption) == worker.Ending()
    each = np.diff([*began, network.round_trips])
    assert len(each) == 13
    assert max(each) <= MOST_ROUND_TRIPS, each
    assert max(under_the_lock) + 1 <= MOST_UNDER_THE_LOCK, under_the_lock  # and the one that lets go of it


def plain_storage(url) -> RDBStorage:
    """Optuna's own; its text would be bytes here, because the server has no encoding."""
    options = {"connect_args": {"client_encoding": "utf8"}}
    return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options)


def told(study: optuna.Study, folder: Path) -> list:
    """Run eleven trials, one more than TPE begins with, and read them by Optuna's own storage."""
    interruption = Interruption()
    objective = objective_of(study, folder, interruption, Bounds(0.5, 3))
    with interruption:
        for _ in range(11):
            trial = take_next(study, 0)
            try:
                study.tell(trial, objective(trial))
            except optuna.TrialPruned:
                study.tell(trial, state=TrialState.PRUNED)
    return study.get_trials()


def content(trial) -> list:
    """What a trial consists of, in its order and its types; without times, process numbers and tokens."""
    attributes = {key: value for key, value in trial.user_attrs.items() if key != WORKER}
    system = {key: value for key, value in trial.system_attrs.items() if key not in (MADE, TAKEN)}
    parts = (list(trial.params.items()), list(trial.distributions.items()), sorted(attributes.items()),
             sorted(system.items()), sorted(trial.intermediate_values.items()))  # fmt: skip
    return [trial.number, trial.state, repr(trial.values), *map(repr, parts)]


def test_a_study_that_is_written_together_equals_one_of_optunas_own_storage(postgres, tmp_path):
    found = {}
    for name in ("ours", "plain"):
        url = absolute_url(postgres.new_database(name), HERE)
        study = open_study(url, "s", cheap_study.IDENTITY, False, make_pruner("wilcoxon"))
        assert isinstance(patient_storage(study), ServerStorage)
        by_optuna = optuna.load_study(study_name="s", storage=plain_storage(url), pruner=make_pruner("wilcoxon"))
        told(study if name == "ours" else by_optuna, tmp_path / name)
        found[name] = [[content(trial) for trial in s.get_trials()] for s in (study, by_optuna)]
        assert study.best_trial.number == by_optuna.best_trial.number
        assert patient_storage(study)._get_stale_trial_ids(study._study_id) == []
    assert found["ours"][0] == found["ours"][1]  # ours, read by both
    assert found["ours"] == found["plain"]
    assert {row[1] for row in found["ours"][0]} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_what_is_written_together_is_seen_before_anything_else_and_not_in_a_finished_trial(postgres):
    url = absolute_url(postgres.new_database("together"), HERE)
    study = open_study(url, "s", cheap_study.IDENTITY, False, NopPruner())
    trial = take_next(study, 0)
    with together(study):
        trial.suggest_float("x", 0.0, 1.0)
        trial.set_user_attr("a", 1)
        trial.set_user_attr("a", 2)
        assert patient_storage(study).get_trial(trial._trial_id).user_attrs["a"] == 2
        trial.set_user_attr("b", float("inf"))
    other = take_next(study, 0)
    with pytest.raises(ValueError, match="Cannot set different distribution kind"), together(load_study(url, "s")):
        optuna.Trial(load_study(url, "s"), other._trial_id).suggest_categorical("x", ("a", "b"))
    study.tell(trial.number, state=TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError), together(study):
        trial.set_user_attr("a", 3)
    with pytest.raises(UpdateFinishedTrialError):
        trial.report(1.0, 0)
    assert study.trials[0].user_attrs["a"] == 2
    assert study.trials[0].intermediate_values == {}
    with pytest.raises(KeyError):
        patient_storage(study).get_trial(99)


def test_values_that_are_no_numbers_are_kept_as_optuna_keeps_them(postgres):
    url = absolute_url(postgres.new_database("numbers"), HERE)
    study = open_study(url, "s", cheap_study.IDENTITY, False, NopPruner())
    trial, values = take_next(study, 0), [float("nan"), float("inf"), float("-inf"), 1.0, 0.1, 1e-300]
    for step, value in enumerate(values):
        trial.report(value, step)
    by_optuna = optuna.load_study(study_name="s", storage=plain_storage(url))
    for found in (study.trials[0], by_optuna.trials[0]):
        assert repr(list(found.intermediate_values.values())) == repr(values)
