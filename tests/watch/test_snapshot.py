"""What the dashboard reads with SQL is what Optuna itself says."""

from __future__ import annotations

import math
import random
from datetime import UTC, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Engine, event, text
from sqlalchemy.engine import make_url

from barwise import setup_checks
from tests.support.fabricated_study import identity
from tests.support.made_studies import NOW, SPACE, close, make_study, split_figures, trial, url_of
from train.records.errors import StudyError
from train.records.keys import FAILURE
from train.store.database import open_study
from train.store.worker_identity import this_worker
from train.study.eligibility import best_trial
from train.watch.pace import best_so_far
from train.watch.reading import UnavailableError, read
from train.watch.snapshot import take_snapshot

COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    TrialState[name] for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
)


def utc(moment):
    return None if moment is None else moment.astimezone(UTC)


def snapshot(folder, name="s"):
    return take_snapshot(url_of(folder), name)


def test_every_trial_is_as_optuna_has_it(tmp_path):
    rng = random.Random(3)
    states = rng.choices([COMPLETE, PRUNED, FAIL, RUNNING, WAITING], k=30)
    trials = [
        trial(state, rng.gauss(0, 1) if state == COMPLETE else None, minutes_ago=rng.uniform(0, 99), splits=(0.5, -1.5))
        for state in states
    ]
    study = make_study(tmp_path, trials)
    seen = snapshot(tmp_path)
    known = study.get_trials()
    read = [(t.number, t.state, t.started, t.ended, t.value) for t in seen.trials]
    values = [t.value if t.state == COMPLETE else None for t in known]
    rows = [(t.number, t.state.name, utc(t.datetime_start), utc(t.datetime_complete)) for t in known]
    assert read == [(*row, value) for row, value in zip(rows, values, strict=True)]
    assert (seen.best.number, seen.best.value) == (study.best_trial.number, study.best_value)
    assert dict(seen.best.params) == study.best_params
    assert list(seen.best.params) == list(SPACE)
    assert seen.best.splits == {0: 0.5, 1: -1.5}
    assert seen.user_attrs == study.user_attrs
    assert seen.maximize


def test_a_pruned_trial_and_a_value_that_is_not_finite_are_never_best(tmp_path):
    trials = [trial(value=1.0), trial(value=math.inf), trial(PRUNED, splits=(9.0,)), trial(value=-math.inf)]
    make_study(tmp_path, trials)
    seen = snapshot(tmp_path)
    assert (seen.best.number, seen.best.value) == (0, 1.0)
    assert [t.value for t in seen.trials] == [1.0, None, None, None]


def test_a_trial_that_breaks_a_bound_is_never_best(tmp_path):
    study = make_study(tmp_path, [trial(value=0.1)])
    for bound, value in ((0.2, 0.9), (-0.2, 0.5)):
        asked = study.ask()
        asked.set_constraint("max_drawdown", bound)
        asked.set_constraint("min_trades", -1.0)
        study.tell(asked, value)
    found = take_snapshot(url_of(tmp_path), "s")
    assert [t.violates for t in found.trials] == [{}, {"max_drawdown": 0.2}, {}]
    assert found.trials[1].value == 0.9  # shown, though never best
    assert (found.best.number, found.best.value) == (2, 0.5)
    assert best_trial(study).number == 2
    assert best_so_far(found.trials, maximize=True) == [0.1, 0.5]


def test_reasons_and_rates_are_those_of_the_trials_that_ended_last(tmp_path):
    trials = [trial(FAIL, minutes_ago=90, **{FAILURE: "old"})]
    trials += [trial(PRUNED, minutes_ago=30 - i, pruned=f"reason {i}") for i in range(7)]
    # The fastest split of the trial that ended last but one; the last one failed before its first split ended.
    trials += [trial(value=0.1, minutes_ago=2, split_2=split_figures(7.0, 8.0), split_10=split_figures(5.0, 6.0))]
    trials += [trial(FAIL, minutes_ago=1, **{FAILURE: "split 0: loss is nan"})]
    make_study(tmp_path, trials)
    seen = snapshot(tmp_path)
    assert seen.reasons[9] == "split 0: loss is nan"
    assert seen.reasons[7] == "reason 6"
    assert 0 not in seen.reasons
    assert (seen.rates.trial, seen.rates.explore_steps_per_s, seen.rates.update_samples_per_s) == (8, 5.0, 6.0)


def test_running_trials_name_their_worker_and_the_age_of_its_heartbeat(tmp_path):
    study = make_study(tmp_path, [trial(RUNNING, worker=vars(this_worker())), trial(RUNNING)])
    study._storage.record_heartbeat(study.get_trials()[0]._trial_id)
    first, second = snapshot(tmp_path).running
    assert first.worker == vars(this_worker())
    assert 0.0 <= first.heartbeat_age_s < 5.0
    assert (second.worker, second.heartbeat_age_s) == (None, None)


def test_without_a_name_the_study_with_the_newest_trial_is_taken(tmp_path):
    make_study(tmp_path, [trial(value=1.0, minutes_ago=5)], name="newer")
    make_study(tmp_path, [trial(value=1.0, minutes_ago=50)], name="older")
    make_study(tmp_path, [], name="empty")
    seen = snapshot(tmp_path, None)
    assert (seen.name, seen.other_studies) == ("newer", ("empty", "older"))
    with pytest.raises(StudyError, match="has no study x; its studies: empty, newer, older"):
        snapshot(tmp_path, "x")


@pytest.mark.parametrize("states", [[], [FAIL, FAIL], [PRUNED], [WAITING], [RUNNING]])
def test_a_study_without_a_completed_trial_has_no_best(tmp_path, states):
    make_study(tmp_path, [trial(state) for state in states])
    seen = snapshot(tmp_path)
    assert seen.best is None
    assert seen.rates is None
    assert len(seen.trials) == len(states)


def test_studies_of_other_programs_are_read_as_what_they_are(tmp_path):
    url = url_of(tmp_path).render_as_string()
    other = optuna.create_study(storage=url, study_name="other", direction="minimize")
    other.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2, n_trials=5)
    optuna.create_study(storage=url, study_name="two", directions=["minimize", "maximize"])
    seen = snapshot(tmp_path, "other")
    assert not seen.maximize
    assert seen.best.value == other.best_value
    assert seen.user_attrs == {}
    two = snapshot(tmp_path, "two")
    assert (two.n_objectives, two.best) == (2, None)


def test_a_frame_of_many_trials_asks_no_more_than_one_of_few(tmp_path):
    """Of hundreds of trials no attribute is loaded but those of the last few."""
    rows, queries = [], []

    def count(connection, cursor, statement, parameters, context, many):
        if statement.lstrip().startswith("SELECT") and "sqlite_master" not in statement:
            queries.append(statement)

    make_study(tmp_path, [trial(value=float(i), split_0=split_figures(), padding="x" * 999) for i in range(8)])
    event.listen(Engine, "after_cursor_execute", count)
    try:
        for n_more in (0, 40):
            study = make_study(tmp_path, [trial(value=0.0, split_0=split_figures()) for _ in range(n_more)])
            queries.clear()
            seen = snapshot(tmp_path)
            rows.append((len(queries), len(seen.trials)))
    finally:
        event.remove(Engine, "after_cursor_execute", count)
    close(study)
    assert rows == [(rows[0][0], 8), (rows[0][0], 48)]
    assert rows[0][0] <= 12
    of_trials = [query for query in queries if "trial_user_attributes" in query]
    assert of_trials
    assert all("trial_id IN (" in query for query in of_trials)


def test_times_are_those_that_were_written(tmp_path):
    make_study(tmp_path, [trial(value=1.0, minutes_ago=3, took_s=60.5)])
    (seen,) = snapshot(tmp_path).trials
    assert seen.ended == NOW - timedelta(minutes=3)
    assert (seen.ended - seen.started).total_seconds() == 60.5


@pytest.mark.slow
def test_a_server_is_read_as_a_file_is(postgres):
    url = make_url(postgres.new_database("watched"))
    with pytest.raises(StudyError, match="contains no Optuna study"):
        take_snapshot(url, None)
    study = open_study(url, "s", identity(), False, optuna.pruners.NopPruner())
    study.add_trials([trial(value=1.0, splits=(0.5,), split_0=split_figures(7.0, 8.0)), trial(PRUNED, pruned="worse")])
    study.add_trial(trial(RUNNING, worker=vars(this_worker())))
    study._storage.record_heartbeat(study.get_trials()[2]._trial_id)
    seen = take_snapshot(url, "s")
    assert [t.state for t in seen.trials] == ["COMPLETE", "PRUNED", "RUNNING"]
    assert [t.ended for t in seen.trials] == [utc(t.datetime_complete) for t in study.trials]
    assert dict(seen.best.params) == study.best_params
    assert seen.best.splits == {0: 0.5}
    assert seen.reasons == {1: "worse"}
    assert seen.rates.explore_steps_per_s == 7.0
    assert 0.0 <= seen.running[0].heartbeat_age_s < 5.0
    (finding,) = setup_checks.database(url.render_as_string(hide_password=False), Path("/"))
    assert (finding.state, "1 study (s)" in finding.text) == (setup_checks.OK, True), finding.text
    with pytest.raises(UnavailableError, match="read-only"):
        read(url, lambda connection: connection.execute(text("DELETE FROM trials")))


def test_nothing_in_a_study_is_obeyed_by_the_terminal(tmp_path):
    evil = "\x1b[2J\x1b]0;owned\x07a\x9bb\x08"
    study = make_study(tmp_path, [trial(PRUNED, pruned=evil)], label=evil)
    study.set_user_attr("deep", {evil: [evil]})
    seen = snapshot(tmp_path)
    assert seen.user_attrs["data"] == ["ab"]
    assert seen.user_attrs["deep"] == {"ab": ["ab"]}
    assert seen.reasons == {0: "ab"}
