"""The study's loop on real SQLite files; only the training of a split is a stand-in."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from datetime import datetime, timedelta

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.pruners import WilcoxonPruner
from optuna.trial import TrialState, create_trial

from train.config import TrainConfig
from train.records.keys import FAILURE, RETRY_OF, WORKER
from train.runner.worker import SAME_FAILURES_ALLOWED, Ending
from train.store.abandoned import fail_abandoned_trials, queue_retry
from train.store.worker_identity import start_ticks, this_worker
from train.study.eligibility import best_trial
from train.study.identity import warn_of_other_code
from train.study.objective import Objective, score, split_seed
from train.study.progress import summary_lines

N_FOLDS = 6  # 4 groups, 2 tested


def states(study):
    return Counter(trial.state.name for trial in study.get_trials())


def test_the_target_counts_finished_trials_of_the_study_and_not_of_the_run(lab):
    lab.run(2)
    study, _ = lab.run(3)
    assert states(study) == {"COMPLETE": 3}
    study, ending = lab.run(3)
    assert states(study) == {"COMPLETE": 3}
    assert (ending.signal_number, ending.repeated_failure, ending.timed_out) == (None, None, False)
    assert len(lab.runner.calls) == 3 * N_FOLDS


def test_the_value_is_mean_excess_sharpe_minus_a_tenth_of_its_spread(lab):
    sharpes = [1.0, 2.0, 3.0, -1.0, 0.5, 0.0]
    lab.runner.results = list(sharpes)
    study, _ = lab.run(1)
    trial = study.trials[0]
    assert trial.value == pytest.approx(np.mean(sharpes) - 0.1 * np.std(sharpes))
    assert trial.value == pytest.approx(score(sharpes))
    assert trial.intermediate_values == dict(enumerate(sharpes))
    assert trial.user_attrs["split_3"]["agent"]["sharpe"] == -1.0


def test_a_failed_split_fails_its_trial_with_the_reason_and_the_study_goes_on(lab):
    lab.runner.results = [1.0, ValueError("loss is nan at update 3")]
    study, _ = lab.run(2)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert study.trials[0].user_attrs[FAILURE] == "split 1: ValueError: loss is nan at update 3"


def test_the_same_failure_five_times_in_a_row_ends_the_run(lab):
    lab.runner.results = [RuntimeError(f"loss of {i} is broken") for i in range(9)]
    study, ending = lab.run(3)
    assert "is broken" in ending.repeated_failure
    assert states(study) == {"FAIL": 5}


def test_out_of_memory_twice_in_each_of_five_trials_ends_the_run(lab):
    lab.runner.results = [RuntimeError(f"out of memory after {i} bytes") for i in range(19)]
    study, ending = lab.run(3)
    assert "out of memory" in ending.repeated_failure
    assert states(study) == {"FAIL": 5}
    assert [call[0].train["n_envs"] for call in lab.runner.calls] == [4, 2] * 5


def test_four_equal_failures_and_another_one_do_not_end_the_run(lab):
    lab.runner.results = [RuntimeError("a")] * 4 + [RuntimeError("b")] + [RuntimeError("a")] * 4
    study, ending = lab.run(1)
    assert ending.repeated_failure is None
    assert states(study) == {"FAIL": 9, "COMPLETE": 1}


def test_a_mistake_in_the_program_stops_the_run_and_leaves_no_running_trial(lab):
    lab.runner.results = [KeyError("no such field")]
    with pytest.raises(KeyError):
        lab.run(1)
    assert states(lab.open()) == {"FAIL": 1}


@pytest.mark.parametrize("mistake", [ValueError, KeyError, TypeError])
def test_a_mistake_outside_of_a_split_leaves_no_running_trial_either(lab, monkeypatch, mistake):
    def broken(*_):
        raise mistake("no such field")

    monkeypatch.setattr(Objective, "_write_settings", broken)
    with pytest.raises(mistake):
        lab.run(1)
    assert states(lab.open()) == {"FAIL": 1}


@pytest.mark.parametrize("undefined", [math.nan, math.inf, -math.inf])
def test_an_undefined_sharpe_is_never_best_and_counts_as_finished(lab, undefined):
    lab.runner.results = [0.5, undefined]
    study, _ = lab.run(1)
    assert states(study) == {"PRUNED": 1}
    assert best_trial(study) is None
    assert "split 1" in study.trials[0].user_attrs["pruned"]
    assert "there is no best trial: no trial completed (1 pruned)" in summary_lines(study)[-1]


@pytest.mark.parametrize("exposure", [0.0009, 0.0, math.nan])
def test_an_account_hardly_in_the_market_is_never_best_however_high_its_sharpe(lab, make_outcome, exposure):
    lab.runner.results = [0.5] * N_FOLDS + [50.0, make_outcome(1, 50.0, exposure=exposure)]
    study, _ = lab.run(2)
    assert states(study) == {"COMPLETE": 1, "PRUNED": 1}
    assert best_trial(study).number == study.best_trial.number == 0
    assert study.trials[1].user_attrs["pruned"].startswith("split 1: inactive, its mean exposure")
    assert study.trials[1].value == 50.0  # Optuna's: the last report


def test_a_trial_that_is_worse_on_every_split_is_pruned(lab):
    lab.pruner = WilcoxonPruner(p_threshold=0.1)
    lab.runner.results = [3.0, 3.1, 3.2, 3.3, 3.4, 3.5, -1.0, -1.1, -1.2, -1.3]
    study, _ = lab.run(2)
    assert states(study) == {"COMPLETE": 1, "PRUNED": 1}
    assert len(study.trials[1].intermediate_values) == 4
    assert "worse than the best" in study.trials[1].user_attrs["pruned"]


def test_no_trial_begins_after_the_timeout(lab):
    study, ending = lab.run(10_000, timeout_s=0.5)
    assert ending.timed_out
    assert 0 < len(study.trials) < 10_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_fails_the_running_trial_and_queues_it_again(lab, number):
    lab.runner.results = [1.0] * N_FOLDS + [1.0, lambda: os.kill(os.getpid(), number)]
    study, ending = lab.run(3)
    assert ending.signal_number == number
    assert states(study) == {"COMPLETE": 1, "FAIL": 1, "WAITING": 1}
    assert study.trials[1].user_attrs[FAILURE] == f"interrupted by {signal.Signals(number).name}"
    lab.interruption.received = None
    study, _ = lab.run(3)
    assert states(study) == {"COMPLETE": 3, "FAIL": 1}
    assert study.trials[2].params == study.trials[1].params
    assert study.trials[2].user_attrs[RETRY_OF] == [1]


def test_signal_handlers_are_given_back(lab):
    before = signal.getsignal(signal.SIGTERM)
    lab.run(1)
    assert signal.getsignal(signal.SIGTERM) is before


def dead_worker() -> dict:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return vars(this_worker()) | {"pid": process.pid}


def test_a_killed_trial_is_failed_at_once_tried_again_and_not_counted(lab):
    study, _ = lab.run(1)
    lost = study.ask()
    lost.suggest_float("learning_rate", 1e-5, 3e-3, log=True)
    lost.set_user_attr(WORKER, dead_worker())
    study, _ = lab.run(2)
    assert states(study) == {"COMPLETE": 2, "FAIL": 1}
    assert study.trials[1].user_attrs[FAILURE].startswith("killed")
    assert study.trials[2].params["learning_rate"] == study.trials[1].params["learning_rate"]


def test_a_trial_whose_workers_number_belongs_to_a_later_process_is_failed_at_once(lab):
    study = lab.open()
    later = {"pid": os.getppid(), "started_ticks": start_ticks(os.getppid())}
    for began in (later, later | {"started_ticks": later["started_ticks"] - 1}):
        trial = study.ask()
        trial.suggest_float("learning_rate", 1e-5, 3e-3, log=True)
        trial.set_user_attr(WORKER, vars(this_worker()) | began)
    assert fail_abandoned_trials(study) == [1]
    assert states(study) == {"RUNNING": 1, "FAIL": 1, "WAITING": 1}


def test_a_trial_is_given_up_after_two_retries(lab):
    study = lab.open()
    for _ in range(3):
        lost = study.ask()
        lost.suggest_float("learning_rate", 1e-5, 3e-3, log=True)
        lost.set_user_attr(WORKER, dead_worker())
        fail_abandoned_trials(study)
    assert [t.user_attrs.get(RETRY_OF) for t in study.trials] == [None, [0], [0, 1]]


def test_a_trial_that_its_user_interrupts_is_always_tried_again(lab):
    """A job with a time limit shorter than a trial goes on from checkpoint to checkpoint."""
    study = lab.open()
    study.ask().suggest_float("learning_rate", 1e-5, 3e-3, log=True)
    for number in range(5):
        lost = study.get_trials()[number]
        study.tell(number, state=TrialState.FAIL)
        queue_retry(study, lost, was_killed=False)
        study.ask()
    assert [t.user_attrs.get(RETRY_OF) for t in study.trials] == [None, *([*range(n)] for n in range(1, 6))]
    for number in range(5, 8):  # what killed it before is still counted
        lost = study.get_trials()[number]
        study.tell(number, state=TrialState.FAIL)
        queue_retry(study, lost, was_killed=True)
        study.ask()
    assert [t.user_attrs.get(RETRY_OF, [])[:1] for t in study.trials[5:]] == [[0], [0], [0], []]


@pytest.mark.parametrize(("reason", "kills"), [("killed: its process ended", 1), ("interrupted by SIGTERM", 0)])
def test_settings_are_queued_though_a_kill_came_between_failing_and_queueing(lab, reason, kills):
    space = {"learning_rate": FloatDistribution(1e-5, 3e-3, log=True)}
    lost = create_trial(state=TrialState.FAIL, params={"learning_rate": 1e-3}, distributions=space,
                        user_attrs={FAILURE: reason})  # fmt: skip
    lost.datetime_complete = datetime.now() - timedelta(minutes=5)
    just_now = copy.deepcopy(lost)
    just_now.datetime_complete = datetime.now()
    lab.open().add_trials([lost, just_now])
    study, _ = lab.run(3)
    assert states(study) == {"COMPLETE": 3, "FAIL": 2}
    (retried,) = [t for t in study.trials if RETRY_OF in t.user_attrs]
    assert (retried.user_attrs[RETRY_OF], retried.user_attrs["kills"]) == ([0], kills)
    assert retried.params["learning_rate"] == 1e-3


def test_a_running_trial_of_a_living_worker_is_left_alone(lab):
    study = lab.open()
    other = study.ask()
    other.set_user_attr(
        WORKER, vars(this_worker()) | {"pid": os.getppid(), "started": 1.0, "started_ticks": start_ticks(os.getppid())}
    )
    study, ending = lab.run(2, timeout_s=0.01)
    assert study.trials[0].state == TrialState.RUNNING
    assert ending.timed_out


def test_a_stopped_study_goes_on_as_an_uninterrupted_one(lab, tmp_path_factory, folded):
    study, _ = lab.run(4)
    whole = [trial.params for trial in study.trials]
    lab.folder = tmp_path_factory.mktemp("other")
    for target in (1, 3, 4):
        study, _ = lab.run(target)
    assert [trial.params for trial in study.trials] == whole
    assert len({str(params) for params in whole}) == 4
    lab.folder, lab.seed = tmp_path_factory.mktemp("third"), 1
    study, _ = lab.run(1)
    assert study.trials[0].params != whole[0]


def test_queued_trials_share_what_they_were_queued_with_and_nothing_else(lab):
    study = lab.open()
    for _ in range(3):
        study.enqueue_trial({"learning_rate": 1e-3})
    study, _ = lab.run(4)
    assert [t.params["learning_rate"] for t in study.trials[:3]] == [1e-3] * 3
    ranges = study.trials[0].distributions
    others = [n for n, range_ in ranges.items() if isinstance(range_, FloatDistribution) and n != "learning_rate"]
    assert others
    assert all(len({t.params[name] for t in study.trials}) == 4 for name in others)


def test_a_trial_samples_what_tpe_seeded_by_its_number_samples(lab, tmp_path_factory):
    study, _ = lab.run(3)
    whole = [trial.params for trial in study.trials]
    for number, params in enumerate(whole):
        other = optuna.create_study(direction="maximize")
        other.add_trials(study.trials[:number])
        seed = lab.seed * 1_000_003 + number
        other.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        assert other.ask(study.trials[number].distributions).params == params


@pytest.mark.parametrize(
    ("queued", "words"),
    [
        ({"net_width": 48}, "net_width must be one of"),
        ({"learning_rate": 10.0}, "1e-05 to 0.003; received 10.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a number from"),
        ({"learning_rate": "fast"}, "; received fast"),
        ({"learning_rate": True}, "; received True"),
        ({"learning_rate": None}, "; received None"),
        ({"net_depth": 1.5}, "net_depth must be an integer from"),
        ({"net_width": [64]}, "; received [64]"),
        ({"lerning_rate": 1e-3}, "lerning_rate is not a setting of this study"),
        ({"learning_rate": 10.0, "net_width": 48}, "; net_width must be one of"),
    ],
)
def test_a_trial_that_is_queued_outside_the_space_fails_and_the_next_one_runs(lab, queued, words, caplog):
    caplog.set_level("INFO")
    study = lab.open()
    for _ in range(SAME_FAILURES_ALLOWED + 1):  # not even so many end the run
        study.enqueue_trial(queued)
    study, ending = lab.run(1)
    assert ending == Ending()
    assert states(study) == {"FAIL": SAME_FAILURES_ALLOWED + 1, "COMPLETE": 1}
    reason = study.trials[0].user_attrs[FAILURE]
    assert reason.startswith("queued outside the search space: ")
    assert words in reason
    assert f"trial 0: FAILED: {reason}" in caplog.messages  # it took no time that could be said


def test_a_trial_that_is_queued_inside_the_space_runs_as_it_is(lab):
    study = lab.open()
    study.enqueue_trial({"learning_rate": 1e-3, "net_width": 64, "net_depth": 2.0})
    study, _ = lab.run(1)
    assert states(study) == {"COMPLETE": 1}
    assert study.trials[0].params["net_width"] == 64


def test_split_seeds_differ_between_splits_and_not_between_trials(lab):
    lab.run(2)
    seeds = [settings.train["seed"] for settings, *_ in lab.runner.calls]
    assert seeds[:N_FOLDS] == seeds[N_FOLDS:]
    assert len(set(seeds)) == N_FOLDS
    assert seeds[0] == split_seed(0, 0)


def test_every_trial_leaves_complete_settings(lab):
    lab.run(1)
    settings = json.loads((lab.folder / "results" / "trial_0" / "settings.json").read_text())
    assert settings["train"]["n_envs"] == 4
    assert len(settings["train"]["seed"]) == N_FOLDS
    assert settings["env"]["rules"] == "standard"
    assert settings["data"]["sha256"] == lab.folded.dataset.sha256
    assert settings["data"]["parent_sha256"] == lab.folded.parent_sha256
    assert settings["data"]["tickers"] == ["BTC", "ETH", "LTC"]
    resolved = settings["env_resolved"]
    assert (resolved["buy_fee_rate"], resolved["sell_fee_rate"], resolved["slippage_rate"]) == (0.0025, 0.0025, 0.0005)
    assert resolved["initial_capital"] == 10_000.0
    assert set(settings["train"]) == {f.name for f in fields(TrainConfig)}
    assert "SYNTHETIC" in settings["data"]["label"]
    assert len(settings["folds"]) == N_FOLDS


def test_trials_of_another_version_of_the_code_are_warned_of(lab, caplog):
    study, _ = lab.run(1)
    warn_of_other_code(study, "test")
    assert "code:" not in caplog.text
    warn_of_other_code(study, "newer")
    assert "this is version newer, but earlier trials ran test" in caplog.text
