"""Why a trial cannot be the best, said once; and a study whose policies stay in cash ends with a finding."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from tests.support.fabricated_study import figures, split_attributes
from train import finish
from train.records.keys import TARGET
from train.report.collect import collect
from train.runner.worker import Ending
from train.study.eligibility import (
    NO_SIGNAL,
    NO_SIGNAL_CODE,
    has_no_signal,
    ineligible_text,
    no_best_text,
    stayed_in_cash,
    why_ineligible,
)
from train.study.objective import Bounds
from train.study.progress import ending_text, summary_lines
from train.watch.snapshot import take_snapshot

BOUNDS = Bounds(max_drawdown=0.5, min_trades=10)


def with_agent(outcome, **changes):
    return replace(outcome, agent=replace(outcome.agent, **changes))


def completed(drawdowns=(0.1,), fees=0.0, trades=20) -> FrozenTrial:
    agents = [figures(max_drawdown=d, fees=fees, trades=trades) for d in drawdowns]
    trial = create_trial(value=-3.0, user_attrs=split_attributes(*agents))
    trial.number = 7
    beyond = {"max_drawdown": max(drawdowns) - 0.5, "min_trades": 10.0 - trades}
    trial.system_attrs = {f"constraints:{name}": value for name, value in beyond.items()}
    return trial


@pytest.mark.parametrize(
    ("trial", "why"),
    [
        (completed((0.2, 0.62), fees=0.41),
         "it lost 62 % of the account (bound 50 %), 41 % of the account went to fees"),
        (completed((0.62,), fees=0.01), "it lost 62 % of the account (bound 50 %)"),
        (completed(trades=3), "it traded 3 times on a split (minimum 10)"),
        (completed(trades=1), "it traded 1 time on a split (minimum 10)"),
        (completed((0.9,), fees=0.3, trades=0),
         "it lost 90 % of the account (bound 50 %), it traded 0 times on a split (minimum 10), 30 % of the account "
         "went to fees"),
    ],
)  # fmt: skip
def test_an_ineligible_trial_is_explained_with_its_figure_and_the_bound(trial, why):
    assert ineligible_text(trial) == f"trial 7 is not eligible to be best: {why}"


def test_an_eligible_trial_needs_no_explanation():
    assert why_ineligible(completed()) == ineligible_text(completed()) == ""


def test_a_bound_without_figures_is_named():
    trial = create_trial(value=1.0)
    trial.system_attrs = {"constraints:max_drawdown": 0.1}
    assert why_ineligible(trial) == "it violates --max-drawdown"


def test_the_log_the_dashboard_and_the_page_say_the_same(lab, make_outcome):
    lab.bounds = BOUNDS
    lab.runner.results = [with_agent(make_outcome(k, -4.0, trades=50), max_drawdown=0.62, fees=0.41) for k in range(6)]
    study, _ = lab.run(1)
    why = "it lost 62 % of the account (bound 50 %), 41 % of the account went to fees"
    (trial,) = study.trials
    assert ending_text(trial) == f"value -4.0000, not eligible to be best: {why}"
    assert take_snapshot(lab.url, "s").reasons == {0: why}
    page = collect(study, lab.folder)
    assert page.trials[0].reason == why
    none = "the completed trial is not eligible to be best: --max-drawdown violated by 1"
    assert none in page.verdict.sentences[0]
    assert summary_lines(study)[-1] == f"there is no best trial: {none}"


def test_a_study_without_a_best_trial_says_of_what_kind_its_trials_are():
    assert no_best_text(0, 0, 0, []) == "no trial completed"
    assert no_best_text(0, 3, 1, [], 3) == "no trial completed (3 pruned, 1 failed); 3 stayed in cash"
    broken = ["max_drawdown", "min_trades", "max_drawdown"]
    assert no_best_text(4, 1, 0, broken) == (
        "none of 4 completed trials is eligible to be best: --max-drawdown violated by 2, --min-trades violated by 1 "
        "(1 pruned)"
    )
    assert no_best_text(1, 0, 0, []) == "the completed trial is not eligible to be best: no finite value"


# ------------------------------------------------------------------------------------------------------ staying in cash
def never_traded(make_outcome):
    return with_agent(make_outcome(0, math.nan, trades=0, exposure=0.0), max_drawdown=0.0, turnover=0.0, fees=0.0)


def conclude(study: optuna.Study, folder) -> int:
    return finish._conclude(study, Ending(), SimpleNamespace(n_trials=2), finish._write_pages(study, folder))


def test_a_study_whose_policies_stay_in_cash_ends_with_a_finding_and_a_code_of_its_own(lab, make_outcome, caplog):
    caplog.set_level("INFO")
    lab.bounds = BOUNDS
    # One never trades, one is in the market for nothing, one completes: it buys twice and holds.
    few = [make_outcome(k, 0.1, trades=2) for k in range(6)]
    lab.runner.results = [never_traded(make_outcome), make_outcome(0, 5.0, exposure=0.001), *few]
    study, _ = lab.run(3)
    assert [t.state for t in study.trials] == [TrialState.PRUNED, TrialState.PRUNED, TrialState.COMPLETE]
    assert [stayed_in_cash(t) for t in study.trials] == [True, True, False]
    assert has_no_signal(study)
    assert conclude(study, lab.folder) == NO_SIGNAL_CODE == 5
    assert NO_SIGNAL in caplog.messages
    assert collect(study, lab.folder).verdict.sentences[0] == "No tradable signal found at these costs."


def test_a_study_that_loses_its_accounts_is_no_such_finding(lab, make_outcome):
    lab.bounds = BOUNDS
    ruined = [with_agent(make_outcome(k, -4.0, trades=50), max_drawdown=0.9) for k in range(6)]
    lab.runner.results = [*ruined, *ruined, never_traded(make_outcome)]
    study, _ = lab.run(3)
    assert [stayed_in_cash(t) for t in study.trials] == [False, False, True]
    assert not has_no_signal(study)
    assert conclude(study, lab.folder) == 1
    assert NO_SIGNAL not in summary_lines(study)


def test_a_trial_that_lost_its_account_and_then_stood_still_did_not_stay_in_cash(lab, make_outcome):
    lab.bounds = BOUNDS
    lab.runner.results = [with_agent(make_outcome(0, -4.0, trades=50), max_drawdown=0.9), never_traded(make_outcome)]
    study, _ = lab.run(1)
    assert study.trials[0].state == TrialState.PRUNED
    assert not stayed_in_cash(study.trials[0])
    assert not has_no_signal(study)


def test_a_study_with_a_best_trial_or_without_all_its_trials_is_no_such_finding(lab, make_outcome):
    lab.runner.results = [never_traded(make_outcome)]
    study, _ = lab.run(1)
    study.set_user_attr(TARGET, 2)
    assert not has_no_signal(study)  # more trials are to come
    study.set_user_attr(TARGET, 1)
    assert has_no_signal(study)
    lab.runner.results = [1.0] * 6
    study, _ = lab.run(2)
    assert not has_no_signal(study)


def test_a_study_without_a_trial_found_nothing(lab):
    assert not has_no_signal(lab.open())
