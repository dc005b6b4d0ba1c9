"""Many workers open a study and create trials on a PostgreSQL server at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import optuna
import pytest
from optuna.pruners import NopPruner
from optuna.trial import TrialState

from tests.support.cheap_study import IDENTITY
from train.records.errors import StudyError
from train.store.address import absolute_url
from train.store.database import load_study, open_study, stored_identity
from train.store.lock import study_lock
from train.store.retrying import MADE, patient_storage

HERE = Path("/")


def test_a_study_that_exists_is_opened_while_another_worker_holds_its_lock(postgres):
    url = absolute_url(postgres.new_database("opened"), HERE)
    open_study(url, "s", IDENTITY, False, NopPruner())
    pruner, opened = NopPruner(), list[optuna.Study]()

    def join() -> None:
        assert stored_identity(url, "s", is_there=True) == IDENTITY
        opened.append(open_study(url, "s", IDENTITY, True, pruner))

    with study_lock(url):
        worker = threading.Thread(target=join, daemon=True)
        worker.start()
        worker.join(20.0)
        assert [study.pruner for study in opened] == [pruner]
        with pytest.raises(StudyError, match="has data 'made up', not 'other'"):
            open_study(url, "s", {"data": "other"}, True, pruner)


def test_workers_that_make_trials_at_one_moment_without_the_lock_number_them_in_a_row(postgres):
    url = absolute_url(postgres.new_database("crowded"), HERE)
    open_study(url, "s", IDENTITY, False, NopPruner())
    studies = [load_study(url, "s") for _ in range(6)]
    with ThreadPoolExecutor(len(studies)) as pool:
        made = [future.result() for future in [pool.submit(make, study, 20) for study in studies]]
    numbers = [trial.number for trials in made for trial in trials]
    assert sorted(numbers) == list(range(120))
    by_number = {trial.number: trial for trial in load_study(url, "s").get_trials()}
    for trial in (trial for trials in made for trial in trials):
        found = by_number[trial.number]
        assert (found.state, found._trial_id) == (TrialState.RUNNING, trial._trial_id)
        assert found.system_attrs[MADE] == trial.system_attrs[MADE]
        assert found.datetime_start == trial.datetime_start
        assert abs(datetime.now() - found.datetime_start) < timedelta(minutes=5)


def make(study: optuna.Study, n_trials: int) -> list[optuna.trial.FrozenTrial]:
    """Create trials through the storage, without a sampler."""
    storage = patient_storage(study)
    return [storage._create_new_trial(study._study_id) for _ in range(n_trials)]


def test_a_trial_of_a_study_that_was_deleted_is_not_made(postgres):
    url = absolute_url(postgres.new_database("gone"), HERE)
    study = open_study(url, "s", IDENTITY, False, NopPruner())
    optuna.delete_study(study_name="s", storage=study._storage)
    with pytest.raises(KeyError):
        patient_storage(study)._create_new_trial(study._study_id)
