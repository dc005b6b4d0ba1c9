"""Rules, intervals, table and picture of the judgement's calibration; and one real study of each kind."""

import copy
import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import calibration, measuring
from benchmarks.calibration_summary import (
    BOTH,
    DEFLATED,
    DRIFTING,
    HOLDOUT,
    KINDS,
    NO_SIGNAL,
    PLANTED,
    RULES,
    VERDICT,
    calls,
    chance_spread,
    interval,
    rate_text,
    studies_to_prove,
    summary,
    table_of,
    trial_spread,
)
from scripts import readme_table
from train.validation.choice import Choice
from train.validation.overfitting import Search, SharpeEstimate, conclusion, expected_maximum_sharpe

LUCKY = dict(zip(calibration.READING, (3.0, 0.97, 0.4, 0.5, 2.5, 4.0, 4.0, 0.99, 0.0), strict=True))
SKILLED = dict(zip(calibration.READING, (9.0, 1.0, 0.99, 0.01, 2.5, 4.0, 9.0, 1.0, 0.0), strict=True))
USUAL = {
    "n_finished": 20,
    "n_compared": 15,
    "pbo_before_costs": 0.5,
    "equal_weight_probabilistic": 0.3,
    "holdout_excess_sharpe": 1.0,
    "holdout_error": 2.0,
    "holdout_lead_errors": 9.0,
    "wall_s": 10.0,
}


def study(kind=NO_SIGNAL, reading=LUCKY, seed=0, **changed) -> dict:
    return copy.deepcopy({"kind": kind, "seed": seed, "account": reading, "lead": reading} | USUAL | changed)


def is_called(rule: str, reading=LUCKY, **changed) -> bool:
    return bool(calls(table_of([study(reading=reading, **changed)]), rule).item())


def test_what_would_prove_a_rate():
    n = studies_to_prove(0.05)
    assert interval(0, n)[1] <= 0.05 < interval(0, n - 1)[1]


def test_a_rate_says_its_interval():
    assert rate_text(pd.Series([True] * 2 + [False] * 38)) == "2 of 40: 5.0 % (0.6 to 16.9 %)"
    assert rate_text(pd.Series([], dtype=bool)) == "none judged"


@pytest.mark.parametrize(("deflated", "pbo", "called"), [(0.95, 0.05, True), (0.94, 0.05, False), (0.95, 0.06, False)])
def test_both_asks_for_both_at_their_thresholds(deflated, pbo, called):
    assert is_called(BOTH, SKILLED | {"deflated": deflated, "pbo": pbo}) is called


def test_what_is_undefined_is_not_called_skilful():
    nothing = dict.fromkeys(("pbo_before_costs", "holdout_excess_sharpe", "holdout_error", "holdout_lead_errors"))
    assert not any(is_called(rule, calibration.UNDEFINED, **nothing) for rule in RULES)


def test_the_holdout_asks_for_two_standard_errors():
    assert not is_called(HOLDOUT, holdout_excess_sharpe=4.0)
    assert is_called(HOLDOUT, holdout_excess_sharpe=4.1)
    assert not is_called(HOLDOUT, holdout_excess_sharpe=4.1, holdout_lead_errors=1.9)


@pytest.mark.parametrize(
    ("p_value", "pbo", "excess", "called"),
    [
        (0.0, 0.05, -1.0, True),  # a choice that PBO passes
        (0.0, 0.06, 9.0, False),  # one that it refuses
        (0.5, 0.60, 9.0, True),  # no choice: the hold-out is passed
        (0.5, 0.01, 3.9, False),  # and not passed
    ],
)
@pytest.mark.parametrize("deflated", [0.99, 0.94])
def test_the_verdict_is_the_reports(p_value, pbo, excess, called, deflated):
    reading = SKILLED | {"pbo": pbo, "choice_p_value": p_value, "deflated": deflated}
    found = is_called(VERDICT, reading, holdout_excess_sharpe=excess)
    assert found is (called and deflated > 0.95)
    lead = SharpeEstimate(0.1 if deflated > 0.95 else 0.01, 2_000)
    passed = excess > 2.0 * USUAL["holdout_error"]
    said = conclusion(lead, Search(2.0, 0.001), pbo, Choice(0.1, 0.1, p_value), holdout=passed)
    assert said.startswith("Evidence") is found


def test_each_kind_is_counted_alone_and_a_target_that_is_missed_is_said():
    studies = [study(reading=SKILLED), study(), *[study(PLANTED, SKILLED)] * 2, study(DRIFTING, n_compared=1)]
    found = summary(studies)
    rows = {row["rule"]: row for row in found["rows"]}
    assert rows.keys() == RULES.keys()
    assert rows[DEFLATED][NO_SIGNAL] == "1 of 2: 50.0 % (1.3 to 98.7 %)"
    assert rows[DEFLATED][DRIFTING] == "none judged"  # its only study had nothing to compare
    assert rows[DEFLATED][PLANTED].startswith("2 of 2: ")
    targets = {item["what"]: item["met"] for item in found["checks"]}
    assert not targets[f"false positive rate ({NO_SIGNAL}; {DEFLATED})"]
    assert targets[f"detection rate ({PLANTED}; {DEFLATED})"]
    assert any(line.startswith("Drifting: 1 more studies") for line in found["notes"])


def test_the_negative_control_counts_what_luck_put_at_nothing_would_call():
    lucky = LUCKY | {"probabilistic": 0.97, "deflated": 0.4, "pbo": 0.04}
    lines = summary([study(reading=lucky), study(), study(PLANTED)])["notes"]
    (line,) = (line for line in lines if "Negative" in line)
    assert "no signal: without deflation, the winner's alpha returns would pass 95 % on 2 of 2" in line
    assert "PBO as well on 1 of 2" in line


def test_the_table_and_targets_on_the_page_are_those_of_its_studies():
    part = json.loads((measuring.RESULTS / "calibration.json").read_text())["calibration"]
    found = summary(part["studies"])
    assert found["rows"] == part["rows"]
    assert found["checks"] == part["checks"]
    assert found["notes"] == part["notes"]


def test_the_planted_market_pays_nothing_for_holding():
    assert calibration.SIGNAL.drift().mean(axis=0) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("seed", [0, 1])
def test_all_coins_of_a_drifting_market_rise_or_fall_alike(seed):
    fair, made = (calibration.make_market(kind, seed, 1_500) for kind in (NO_SIGNAL, DRIFTING))
    added = np.diff(np.log(made.price) - np.log(fair.price), axis=0)
    spread = np.diff(np.log(fair.price), axis=0).mean(axis=1).std()
    np.testing.assert_allclose(added, (1 - 2 * seed) * calibration.DRIFT * spread, atol=1e-6)
    np.testing.assert_array_equal(made.tech, fair.tech)
    np.testing.assert_array_equal(made.filled, fair.filled)


def test_an_account_before_costs_is_the_account_where_nothing_was_traded():
    equity = np.array([100.0, 101.0, 99.0])
    columns = {"equity": equity, "fees": np.zeros(3), "turnover": np.zeros(3)}
    np.testing.assert_allclose(calibration._free_equity(columns), equity / 100.0)
    # 50 traded on the way to bar 1: fee 0.125 and slippage 0.025 are given back
    columns |= {"fees": np.array([0.0, 0.125, 0.0]), "turnover": np.array([0.0, 50.0, 0.0])}
    assert calibration._free_equity(columns)[1] == pytest.approx(1.0 + 0.01 + 0.0015)


@pytest.mark.slow
def test_a_small_run_writes_what_the_page_shows(tmp_path, monkeypatch):
    for name in measuring.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    path = tmp_path / "calibration.json"
    assert calibration.main(["--quick", "--out", str(path)]) == 0
    part = json.loads(path.read_text())["calibration"]
    assert [(s["kind"], s["seed"]) for s in part["studies"]] == [(kind, 0) for kind in KINDS]
    (tmp_path / "calibration.png").unlink()
    assert calibration.main(["--redraw", "--out", str(path)]) == 0
    assert json.loads(path.read_text())["calibration"] == part
    assert (tmp_path / "calibration.png").stat().st_size > 10_000
    assert "| deflated Sharpe and PBO, account | 5.0 % |" in readme_table.own_block("calibration", tmp_path)


def test_the_spread_of_trials_is_read_from_what_luck_is_put_at():
    luck = expected_maximum_sharpe(Search(20, 4.0))  # annual Sharpe ratios of deviation 2
    made = table_of([study(reading=LUCKY | {"luck_sharpe": luck, "sharpe": 3.0, "probabilistic": 0.977249868})])
    assert trial_spread(made).item() == pytest.approx(2.0)
    assert chance_spread(made).item() == pytest.approx(1.5)  # two standard errors above 0
    assert np.isnan(chance_spread(table_of([study(reading=LUCKY | {"probabilistic": 1.0})])).item())


def test_a_page_without_calibration_says_nothing_of_it(tmp_path):
    assert readme_table.own_block("calibration", tmp_path) == ""
