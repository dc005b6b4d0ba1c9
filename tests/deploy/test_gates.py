"""How sure the held-out bars make a candidate, and what each gate says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from market import lookahead_record
from market.dataset import with_declaration
from market.sample import synthetic_dataset
from tests.support.lookahead_cases import as_checked, leaks, with_columns
from train.deploy.gates import (
    FAILED,
    NOT_ASKED,
    PASSED,
    WAIVED,
    Gate,
    Limits,
    Present,
    early_gates,
    has_failed,
    improvement_gate,
    late_gates,
    level_of_test,
    reason,
    waived_names,
)
from train.deploy.scores import Scored, confidence, serial_inflation
from train.records.errors import StudyError
from train.study.attainable import Attainable
from train.study.folds import cut_holdout, fold_data
from train.study.split_plan import SplitPlan
from train.validation.metrics import measure
from train.validation.overfitting import Search, estimate_sharpe


@pytest.fixture(autouse=True)
def short_data_is_enough(monkeypatch):
    """Bars ahead that columns must be compared with: data sets here are short."""
    monkeypatch.setattr(lookahead_record, "LEAST_LAGS", 0)


REACHED = Attainable(0.0, 0.1, float("nan"))
STRICT, LOOSE = Limits(), Limits(allow_unproven=True)


def scored(returns, benchmark, exposure=0.5, trades=10, weights="w"):
    def account(r, **more):
        return measure([np.cumprod(np.append(1.0, 1.0 + r))], 105_120.0, **more)

    n = len(returns)
    more = {"turnover_notional": [np.zeros(n)], "fees_quote": [np.zeros(n)], "trades": [np.eye(1, n, dtype=int)[0]]}
    agent = replace(account(returns, exposure=[np.full(n + 1, exposure)], **more), trades=trades)
    return Scored(weights, agent, account(benchmark), np.asarray(returns), np.asarray(benchmark), (), REACHED)


def noise(mean, n=2000, seed=0, deviation=0.001):
    """Returns of exactly that mean and deviation."""
    r = np.random.default_rng(seed).normal(size=n)
    return mean + deviation * (r - r.mean()) / r.std()


# -------------------------------------------------------------------------------------------------------- how sure
def test_confidence_is_the_normal_one_of_the_t_statistic():
    # mean / deviation * sqrt(n - 1) = 1.645 for n = 2000 independent returns: 95 %
    returns = noise(1.645 * 0.001 / np.sqrt(1999))
    assert 1.0 <= serial_inflation(returns) < 1.1
    assert confidence(returns) == pytest.approx(0.95, abs=0.01)
    assert confidence(-returns) == pytest.approx(0.05, abs=0.01)
    assert np.isnan(confidence(np.zeros(100)))


def test_returns_that_trend_are_not_taken_for_independent():
    # First-order autoregression with 0.5: the variance of the mean is (1 + 0.5) / (1 - 0.5) = 3 times as large.
    random, n_bars, n_markets = np.random.default_rng(1), 1500, 400
    shocks, r = random.normal(size=(n_markets, n_bars)), np.zeros((n_markets, n_bars))
    for t in range(1, n_bars):
        r[:, t] = 0.5 * r[:, t - 1] + shocks[:, t]
    assert np.mean([serial_inflation(one) for one in r]) == pytest.approx(3.0, rel=0.15)
    found = np.mean([confidence(one) > 0.95 for one in r])
    assert found < 0.09  # 5 % by right; taking them for independent finds 17 %
    assert serial_inflation(np.diff(shocks[0])) == 1.0  # what reverses claims no more than independent bars


def test_an_account_in_cash_is_not_skilled_because_prices_fell():
    market = noise(-0.0002, deviation=0.001)  # falls, surely
    idle = scored(0.05 * market, market, exposure=0.05)
    assert confidence(idle.returns - idle.benchmark_returns) > 0.9999
    assert np.isnan(idle.confidence) or idle.confidence < 0.6
    skilled = scored(0.05 * market + noise(0.0001, seed=1, deviation=0.0005), market, exposure=0.05)
    assert skilled.confidence > 0.9999


# ----------------------------------------------------------------------------------------------------------- levels
def test_the_levels_of_all_tests_add_up_to_alpha_and_each_is_stricter():
    levels = [level_of_test(0.05, test) for test in range(1, 2001)]
    assert levels[:3] == pytest.approx([0.05 / 2, 0.05 / 6, 0.05 / 12])
    assert sum(levels) == pytest.approx(0.05, rel=1e-3)
    assert sum(levels) < 0.05
    assert levels == sorted(levels, reverse=True)


def test_many_candidates_without_skill_pass_once_in_twenty_folders_at_most():
    random, n_bars, n_tests, n_folders = np.random.default_rng(2), 400, 12, 400
    passed = 0
    for _ in range(n_folders):
        tries = random.normal(size=(n_tests, n_bars))
        passed += any(confidence(r) >= 1.0 - level_of_test(0.05, j) for j, r in enumerate(tries, start=1))
    assert passed / n_folders < 0.05 + 0.025  # two standard errors; 46 % at 5 % each


def test_the_same_account_passes_as_the_first_candidate_and_not_as_the_fifth():
    one = scored(noise(0.00006), np.zeros(2000) + 1e-12)
    verdicts = {test: {g.name: g.verdict for g in late_gates(one, test, STRICT)} for test in (1, 5)}
    assert [verdicts[test]["hold-out confidence"] for test in (1, 5)] == [PASSED, FAILED]


# ------------------------------------------------------------------------------------------------------------ gates
def verdicts(gates):
    return {gate.name: gate.verdict for gate in gates}


def test_a_good_candidate_passes_and_each_fault_is_told_by_its_gate():
    flat = noise(0.0, seed=3)
    good = scored(noise(0.0003, seed=4), flat)
    assert set(verdicts(late_gates(good, 1, STRICT)).values()) == {PASSED}
    worse = scored(noise(-0.0003, seed=4), flat)
    assert verdicts(late_gates(worse, 1, STRICT)) == {
        "hold-out in the market": PASSED, "hold-out return": FAILED, "hold-out confidence": FAILED,
        "hold-out drawdown": FAILED,
    }  # fmt: skip
    assert verdicts(late_gates(worse, 1, LOOSE))["hold-out return"] == WAIVED
    assert has_failed(late_gates(worse, 1, LOOSE))  # a drawdown is not a matter of evidence
    deep = scored(np.r_[noise(0.002, 500), np.full(30, -0.02), noise(0.002, 500)], noise(0.0, 1030))
    assert verdicts(late_gates(deep, 1, STRICT))["hold-out drawdown"] == FAILED
    for absent in (scored(good.returns, flat, exposure=0.005), scored(good.returns, flat, trades=0)):
        assert verdicts(late_gates(absent, 1, LOOSE))["hold-out in the market"] == FAILED


def test_a_reason_names_gate_figure_and_threshold():
    worse = scored(noise(-0.0001, seed=4), noise(0.0, seed=3))
    text = reason(late_gates(worse, 2, STRICT))
    assert text.startswith("hold-out return: -")
    assert "required: above that of equal weight | hold-out confidence: 0." in text
    assert "required: at least 99.16 % (test 2 on these bars, level 0.05 / 6)" in text


def test_an_undefined_figure_is_no_evidence():
    idle = scored(np.zeros(100), np.zeros(100), exposure=0.5)
    assert verdicts(late_gates(idle, 1, STRICT))["hold-out confidence"] == FAILED
    assert "undefined" in reason(late_gates(idle, 1, STRICT))


@pytest.fixture(scope="module")
def data():
    market = as_checked(synthetic_dataset("5m", 2500, ("BTC",), seed=1))
    ((study, rows),) = cut_holdout([market], 0.2, ["a"])
    return fold_data(study, SplitPlan("kfold", 2, 2, 0.2), "a", rows.about)


def assessment(mean, n_trials=10, is_evidence=True):
    """Of a winner whose lead has that mean, among trials whose Sharpe ratios vary as those of luck do."""
    return SimpleNamespace(estimate=estimate_sharpe(noise(mean)), search=Search(n_trials, 1.0 / 2000.0),
                           is_evidence=is_evidence, conclusion="As the page says.")  # fmt: skip


def look_ahead(dataset, data, **limits):
    """The gate's verdict and text."""
    gates = early_gates(create_trial(value=1.0), replace(data, dataset=dataset), None, replace(STRICT, **limits))
    (gate,) = [gate for gate in gates if gate.name == "look-ahead"]
    return gate.verdict, gate.text


def test_features_that_were_not_made_again_from_bars_are_refused_or_waived(data):
    old = replace(data.dataset, lookahead=None)
    verdict, text = look_ahead(old, data)
    assert verdict == FAILED
    assert "not checked: features were not rebuilt from cut bars; run scripts/validation/lookahead.py --bars" in text
    verdict, _ = look_ahead(old, data, allow_unchecked=True)
    assert verdict == WAIVED
    waived = early_gates(create_trial(value=1.0), replace(data, dataset=old), None, Limits(allow_unchecked=True))
    assert "look-ahead" in waived_names(waived, STRICT)
    assert look_ahead(data.dataset, data)[0] == PASSED


def test_features_that_later_bars_change_are_refused_whatever_is_waived(data):
    found = as_checked(data.dataset, finding="bar 2024-01-01 10:00: feature BTC:rsi_14 is 1 and 2")
    verdict, text = look_ahead(found, data, allow_unchecked=True, allow_unproven=True)
    assert verdict == FAILED
    assert "look-ahead: found: bar 2024-01-01 10:00: feature BTC:rsi_14 is 1 and 2" in text


@pytest.mark.parametrize("feature_set", ["given", "default"])
def test_columns_of_others_that_know_the_future_are_refused_until_they_are_declared(data, feature_set):
    columns = leaks(data.dataset.price[:, 0], 48)
    by_hand = replace(with_columns(data.dataset, columns), feature_set=feature_set)
    verdict, text = look_ahead(by_hand, data, allow_unchecked=True, allow_unproven=True)
    assert verdict == FAILED
    assert "unexplained: BTC:" in text
    assert "of BTC 48 bars later" in text
    some = with_declaration(by_hand, by_hand.feature_names[1:], "me", "known auction")
    assert look_ahead(some, data)[0] == FAILED
    every = with_declaration(by_hand, by_hand.feature_names, "me", "known auction")
    verdict, text = look_ahead(every, data)
    # Columns under the name of our own set have to be made again all the same.
    assert (verdict, "me: known auction" in text) == ((PASSED, True) if feature_set == "given" else (FAILED, False))


def test_columns_of_others_that_know_nothing_pass(data):
    walk = np.cumsum(np.random.default_rng(0).standard_normal(len(data.dataset.time)))
    verdict, text = look_ahead(with_columns(data.dataset, {"walk": walk}), data)
    assert verdict == PASSED
    assert "1 column compared with later bars, none suspicious" in text


def test_early_gates(data):
    best = create_trial(value=1.0)
    allowed = replace(STRICT, allow_synthetic=True)
    names = ("trial", "data", "look-ahead", "records", "hold-out", "deflated lead", "evidence of skill")
    assert verdicts(early_gates(best, data, assessment(0.0003), allowed)) == dict.fromkeys(names, PASSED)
    assert verdicts(early_gates(best, data, assessment(0.0003), STRICT))["data"] == FAILED
    assert verdicts(early_gates(best, data, assessment(0.00005), allowed))["deflated lead"] == FAILED
    assert verdicts(early_gates(best, data, None, allowed))["deflated lead"] == FAILED
    assert verdicts(early_gates(best, data, None, allowed))["evidence of skill"] == FAILED
    loose = early_gates(best, data, assessment(0.00005, is_evidence=False), replace(allowed, allow_unproven=True))
    assert waived_names(loose, LOOSE) == ["deflated lead", "evidence of skill"]
    assert not has_failed(loose)
    open_gate = early_gates(best, data, assessment(0.00005), replace(allowed, min_deflated_sharpe=0.0))
    assert verdicts(open_gate)["deflated lead"] == NOT_ASKED
    without = early_gates(best, replace(data, holdout=None), assessment(0.0003), replace(allowed, allow_unproven=True))
    assert verdicts(without)["hold-out"] == FAILED
    lucky = early_gates(best, data, assessment(0.0003, is_evidence=False), allowed)[-1]
    assert (lucky.verdict, lucky.figure) == (FAILED, "As the page says")
    old = early_gates(best, data, assessment(0.0003), replace(allowed, allow_unproven=True), n_unverified=2)
    assert verdicts(old)["records"] == FAILED
    assert "2 trials unverified" in reason(old)
    waived = early_gates(best, data, assessment(0.0003), replace(allowed, allow_unverified=True), n_unverified=2)
    assert waived_names(waived, LOOSE) == ["records"]
    pruned = create_trial(state=TrialState.PRUNED)
    assert verdicts(early_gates(pruned, data, assessment(0.0003), allowed))["trial"] == FAILED


def test_the_more_trials_were_tried_the_more_the_winner_must_show(data):
    best, limits = create_trial(value=1.0), replace(STRICT, allow_synthetic=True)
    found = [early_gates(best, data, assessment(0.00007, n), limits)[-2] for n in (1, 10, 500)]
    assert [gate.verdict for gate in found] == [PASSED, FAILED, FAILED]
    assert found[1].value > found[2].value


def test_improvement():
    flat = noise(0.0, seed=3)
    present = scored(noise(0.0002, seed=5), flat, weights="old")
    there = Present("p", True, "", "", present)
    better, same = scored(noise(0.0003, seed=6), flat), scored(noise(0.0002, seed=7), flat)

    def ask(one, other, proven=True, limits=STRICT):
        return improvement_gate(one, other, proven, limits)

    assert ask(better, None).verdict == NOT_ASKED
    assert ask(better, there).verdict == PASSED
    assert ask(better, there).value == pytest.approx(0.1 * np.sqrt(105_120.0 * 1999 / 2000), rel=0.01)
    assert ask(same, there).verdict == FAILED  # equal Sharpe ratios
    assert ask(present, replace(there, scored=better)).verdict == FAILED
    twin = replace(better, weights_sha256="old")
    assert "already deployed" in ask(twin, there).figure
    assert ask(twin, there).verdict == FAILED
    # Proof outranks a figure, both ways.
    assert ask(better, there, proven=False).verdict == FAILED
    assert ask(same, replace(there, proven=False)).verdict == NOT_ASKED
    assert ask(better, replace(there, proven=False), proven=False).verdict == PASSED
    other = Present("p", True, "it has other coins")
    assert ask(better, other).verdict == FAILED
    assert "cannot be compared: it has other coins" in ask(better, other).figure
    assert ask(better, other, limits=replace(STRICT, replace_other=True)).verdict == PASSED


def test_who_asks_for_less_evidence_than_the_defaults_gets_nothing_proven():
    assert waived_names([], STRICT) == waived_names([], Limits(alpha=0.01, min_deflated_sharpe=0.99)) == []
    assert waived_names([], Limits(alpha=0.2)) == ["--alpha 0.2"]
    assert waived_names([], Limits(min_deflated_sharpe=0.0)) == ["--min-deflated-sharpe 0"]
    assert waived_names([], Limits(max_drawdown=0.9, min_improvement=0.0)) == []  # a taste for risk


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": 0.0}, "--alpha must be a number from 0 to 0.5; received 0"),
        ({"alpha": float("nan")}, "--alpha"),
        ({"min_deflated_sharpe": 95.0}, "--min-deflated-sharpe must be a number from 0 to 1; received 95"),
        ({"max_drawdown": -0.1}, "--max-drawdown"),
        ({"min_improvement": float("inf")}, "--min-improvement must be a number at least 0; received inf"),
    ],
)
def test_impossible_limits_are_refused_by_flag(values, words):
    with pytest.raises(StudyError, match=words):
        Limits(**values)


def test_a_gate_is_one_line():
    gate = Gate("name", "0.1", "at least 0.2", FAILED, 0.1)
    assert gate.line == "FAILED        name: 0.1; required: at least 0.2"
