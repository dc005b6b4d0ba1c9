"""The database commits and the connection dies before the answer: no trial is made, queued, taken or ended twice."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from optuna.pruners import NopPruner
from optuna.trial import TrialState

from tests.support.cut_answers import CutAnswers
from train.records.keys import WORKER
from train.store.abandoned import fail_and_retry
from train.store.address import absolute_url
from train.store.database import open_study, sign, take_next
from train.store.trial_end import TrialEnd, tell


def open_at(url: str):
    return open_study(absolute_url(url, Path("/")), "s", {"data": "made up"}, False, NopPruner())


def fail_one_and_finish_its_retry(study) -> None:
    """All that is ever written about trials."""
    trial = sign(take_next(study, 0))
    trial.suggest_float("x", 0.0, 1.0)
    fail_and_retry(study, study.get_trials()[trial.number], "killed: so it seemed")
    again = sign(take_next(study, 0))
    assert again.number == trial.number + 1
    again.suggest_float("x", 0.0, 1.0)
    tell(study, again.number, TrialEnd(TrialState.COMPLETE, 1.0))


def test_the_answer_to_any_commit_may_be_lost(postgres):
    cutter = CutAnswers(postgres.port)
    url = postgres.new_database("answers").replace(f":{postgres.port}/", f":{cutter.port}/")
    study = open_at(url)
    for n_cut in count(1):
        cutter.cut(n_cut)
        fail_one_and_finish_its_retry(study)
        was_cut = cutter.has_cut()
        trials = study.get_trials()
        assert [t.state.name for t in trials] == ["FAIL", "COMPLETE"] * n_cut, f"after commit {n_cut}"
        assert [t.number for t in trials] == list(range(2 * n_cut))
        assert all(WORKER in t.user_attrs for t in trials)
        assert trials[-1].params == trials[-2].params
        if not was_cut:
            break
    assert n_cut > 10


def test_the_answer_to_any_commit_that_makes_a_study_may_be_lost(postgres):
    cutter = CutAnswers(postgres.port)
    for n_cut in count(1):
        url = postgres.new_database(f"made{n_cut}").replace(f":{postgres.port}/", f":{cutter.port}/")
        open_at(url)  # its tables
        cutter.cut(n_cut)
        study = open_study(absolute_url(url, Path("/")), "other", {"data": "made up"}, False, NopPruner())
        assert study.user_attrs["identity"] == {"data": "made up"}
        if not cutter.has_cut():
            break
    assert n_cut > 3


def test_a_trial_that_another_worker_takes_while_its_answer_is_lost_is_not_queued_again(postgres):
    cutter = CutAnswers(postgres.port)
    url = postgres.new_database("raced")
    other = open_at(url)
    study = open_at(url.replace(f":{postgres.port}/", f":{cutter.port}/"))
    taken: list[int] = []

    def take() -> None:
        if other.get_trials(states=(TrialState.WAITING,)):
            taken.append(take_next(other, 0).number)

    for n_cut in count(1):
        cutter.cut(n_cut, take)
        study.enqueue_trial({"x": 0.5})
        was_cut = cutter.has_cut()
        take()
        assert taken == list(range(n_cut))
        assert len(study.get_trials()) == n_cut
        if not was_cut:
            break
    assert n_cut > 1
