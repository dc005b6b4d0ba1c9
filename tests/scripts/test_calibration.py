"""Counting, intervals, table and picture of the judgement's calibration; and one real study of each kind."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks import calibration
from benchmarks.calibration_summary import (
    BOTH,
    CHECKED,
    CHECKED_LEAD,
    DEFLATED,
    DRIFTING,
    HOLDOUT,
    NAIVE,
    NO_SIGNAL,
    PBO,
    PLANTED,
    POWERFUL,
    RULES,
    VERDICT,
    Count,
    Reading,
    Study,
    chance_spread,
    checks,
    clopper_pearson,
    count,
    draw,
    is_judged,
    notes,
    studies_to_prove,
    table_rows,
    trial_spread,
)
from scripts import readme_table
from train.validation.choice import Choice
from train.validation.overfitting import Search, SharpeEstimate, conclusion, expected_maximum_sharpe

LUCKY = Reading(3.0, 0.97, 0.4, 0.5, 2.5, 4.0, 4.0, 0.99)
SKILLED = Reading(9.0, 1.0, 0.99, 0.01, 2.5, 4.0, 9.0, 1.0)
UNDEFINED = Reading(*[math.nan] * 9)


def study(kind=NO_SIGNAL, reading=LUCKY, seed=0, **changed) -> Study:
    return replace(Study(kind, seed, 20, 15, reading, reading, 0.5, 0.3, 1.0, 2.0, 10.0), **changed)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (1, 20), (3, 40), (19, 20), (20, 20)])
def test_the_interval_is_scipys(k, n):
    theirs = binomtest(k, n).proportion_ci(0.95, method="exact")
    assert clopper_pearson(k, n) == pytest.approx((theirs.low, theirs.high))


def test_none_of_n_is_bounded_by_the_rule_of_its_tail():
    # (1 - p)^20 = 0.025
    assert clopper_pearson(0, 20) == pytest.approx((0.0, 1.0 - 0.025 ** (1 / 20)))


def test_what_would_prove_a_rate():
    n = studies_to_prove(0.05)
    assert clopper_pearson(0, n)[1] <= 0.05 < clopper_pearson(0, n - 1)[1]


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5)])
def test_an_impossible_count_is_refused(k, n):
    with pytest.raises(ValueError, match="0 <= k <= n"):
        clopper_pearson(k, n)


def test_the_interval_holds_the_true_rate_as_often_as_it_says():
    drawn = np.random.default_rng(0).binomial(40, 0.05, 2000)
    held = [low <= 0.05 <= high for low, high in (clopper_pearson(int(k), 40) for k in drawn)]
    assert np.mean(held) >= 0.95


def test_a_count_says_its_interval():
    assert Count(2, 40).text() == "2 of 40: 5.0 % (0.6 to 16.9 %)"
    assert Count(0, 0).text() == "none judged"
    assert Count(0, 0).share is None


def test_each_kind_is_counted_alone():
    studies = [study(), study(reading=SKILLED), study(PLANTED, SKILLED), study(PLANTED, SKILLED)]
    assert count(studies, NO_SIGNAL, NAIVE) == Count(2, 2)
    assert count(studies, NO_SIGNAL, DEFLATED) == Count(1, 2)
    assert count(studies, PLANTED, BOTH) == Count(2, 2)


@pytest.mark.parametrize(("deflated", "pbo", "called"), [(0.95, 0.05, True), (0.94, 0.05, False), (0.95, 0.06, False)])
def test_both_asks_for_both_at_their_thresholds(deflated, pbo, called):
    assert BOTH.calls(study(reading=replace(SKILLED, deflated=deflated, pbo=pbo))) is called


def test_what_is_undefined_is_not_called_skilful():
    undefined = study(reading=UNDEFINED, pbo_before_costs=math.nan, holdout_excess_sharpe=math.nan)
    assert not any(rule.calls(undefined) for rule in RULES)


def test_the_holdout_asks_for_two_standard_errors():
    assert not HOLDOUT.calls(study(holdout_excess_sharpe=4.0))
    assert HOLDOUT.calls(study(holdout_excess_sharpe=4.1))
    assert HOLDOUT.calls(study(holdout_excess_sharpe=4.1, holdout_lead_errors=2.1))
    assert not HOLDOUT.calls(study(holdout_excess_sharpe=4.1, holdout_lead_errors=1.9))


@pytest.mark.parametrize(
    ("p_value", "pbo", "excess", "called"),
    [
        (0.0, 0.05, -1.0, True),   # a choice that PBO passes
        (0.0, 0.06, 9.0, False),   # one that it refuses
        (0.5, 0.60, 9.0, True),    # no choice: the hold-out is passed
        (0.5, 0.01, 3.9, False),   # and not passed
    ],
)  # fmt: skip
@pytest.mark.parametrize("deflated", [0.99, 0.94])
def test_the_verdict_is_the_reports(p_value, pbo, excess, called, deflated):
    reading = replace(SKILLED, pbo=pbo, choice_p_value=p_value, deflated=deflated)
    made = study(reading=reading, holdout_excess_sharpe=excess, holdout_lead_errors=9.0)
    assert VERDICT.calls(made) is (called and deflated > 0.95)
    lead = SharpeEstimate(0.1 if deflated > 0.95 else 0.01, 2_000)
    passed = excess > 2.0 * made.holdout_error
    said = conclusion(lead, Search(2.0, 0.001), pbo, Choice(0.1, 0.1, p_value), holdout=passed)
    assert said.startswith("Evidence") is VERDICT.calls(made)


def test_a_stopped_run_keeps_its_studies_and_a_line_that_was_cut_short_is_run_again(tmp_path):
    path, settings = tmp_path / "c.studies", calibration.Settings(n_trials=4)
    assert calibration.kept_studies(path, settings) == []
    calibration.keep_study(path, settings, study(seed=3, reading=UNDEFINED))
    calibration.keep_study(path, calibration.Settings(n_trials=5), study(seed=4))
    with path.open("a") as file:
        file.write('{"settings": {"n_tri')
    (kept,) = calibration.kept_studies(path, settings)
    assert repr(kept) == repr(study(seed=3, reading=UNDEFINED))


def test_too_many_false_positives_are_a_missed_target_and_said_so():
    studies = [study(reading=SKILLED, seed=i) for i in range(20)] + [study(PLANTED, SKILLED)]
    found = {item["what"]: item for item in checks(studies)}
    assert len(found) == len(CHECKED) + len(POWERFUL)
    assert len(checks([*studies, study(DRIFTING)])) == len(CHECKED) + len(POWERFUL) + len(CHECKED_LEAD)
    assert not found[f"{NO_SIGNAL}, {DEFLATED.name}"]["met"]
    assert found[f"{PLANTED}, {DEFLATED.name}"]["met"]
    assert any(line.startswith(f"{PBO.name}: the whole interval is above") for line in notes(studies, []))
    assert not any("whole interval" in line for line in notes([study(seed=i) for i in range(20)], []))


def test_a_study_with_nothing_to_compare_is_not_judged_and_few_trials_are_told():
    assert is_judged(study(n_compared=2))
    assert not is_judged(study(n_compared=1))
    lines = notes([study(), study(n_compared=9, reading=SKILLED)], [study(n_compared=0)])
    (told,) = (line for line in lines if line.startswith("No signal: 1 more studies"))
    assert "1 of the judged have under 10" in told
    assert "both 1 (account)" in told


def test_the_table_has_a_row_a_rule():
    rows = table_rows([study(), study(PLANTED, SKILLED)])
    assert [row["rule"] for row in rows] == [rule.name for rule in RULES]
    assert rows[2] == {
        "rule": "deflated Sharpe, account", "nominal": "5.0 %",
        NO_SIGNAL: "0 of 1: 0.0 % (0.0 to 97.5 %)", DRIFTING: "none judged",
        PLANTED: "1 of 1: 100.0 % (2.5 to 100.0 %)",
    }  # fmt: skip


def test_the_picture_is_drawn(tmp_path):
    draw([study(), study(PLANTED, SKILLED)], tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


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


def test_the_negative_control_counts_what_luck_put_at_nothing_would_call():
    lucky = replace(LUCKY, probabilistic=0.97, deflated=0.4, pbo=0.04)
    (line,) = (line for line in notes([study(reading=lucky), study(), study(PLANTED)], []) if "Negative" in line)
    assert "no signal: with luck put at 0 the lead of the winner would pass 95 % on 2 of 2" in line
    assert "PBO as well on 1 of 2" in line


def test_an_account_before_costs_is_the_account_where_nothing_was_traded():
    equity = np.array([100.0, 101.0, 99.0])
    columns = {"equity": equity, "fees": np.zeros(3), "turnover": np.zeros(3)}
    np.testing.assert_allclose(calibration._free_equity(columns), equity / 100.0)
    # 50 traded on the way to bar 1: fee 0.125 and slippage 0.025 are given back
    columns |= {"fees": np.array([0.0, 0.125, 0.0]), "turnover": np.array([0.0, 50.0, 0.0])}
    assert calibration._free_equity(columns)[1] == pytest.approx(1.0 + 0.01 + 0.0015)


@pytest.mark.slow
def test_a_small_run_writes_what_the_page_shows(tmp_path, monkeypatch):
    for name in calibration.measuring.THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    path = tmp_path / "calibration.json"
    assert calibration.main(["--quick", "--out", str(path)]) == 0
    part = json.loads(path.read_text())["calibration"]
    assert {s["kind"] for s in part["studies"]} == {NO_SIGNAL, DRIFTING, PLANTED}
    assert part["seeds"] == {NO_SIGNAL: [0], DRIFTING: [0], PLANTED: [0]}
    assert part["settings"]["n_trials"] == calibration.QUICK["n_trials"]
    assert len((tmp_path / "calibration.studies").read_text().splitlines()) == 3
    (tmp_path / "calibration.png").unlink()
    assert calibration.main(["--redraw", "--out", str(path)]) == 0
    assert json.loads(path.read_text())["calibration"] == part
    assert (tmp_path / "calibration.png").is_file()
    assert "| both, account | 5.0 % |" in readme_table.calibration_block(tmp_path)


def test_the_spread_of_trials_is_read_from_what_luck_is_put_at():
    search = Search(20, 4.0)  # annual Sharpe ratios of deviation 2
    luck = expected_maximum_sharpe(search)
    made = study(reading=replace(LUCKY, luck_sharpe=luck, sharpe=3.0, probabilistic=0.977249868))
    assert trial_spread(made) == pytest.approx(2.0)
    assert chance_spread(made) == pytest.approx(1.5)  # two standard errors above 0
    assert math.isnan(chance_spread(study(reading=replace(LUCKY, probabilistic=1.0))))


def test_a_study_is_read_back_as_it_was_written():
    written = json.loads(json.dumps(calibration.plain(asdict(study(reading=UNDEFINED)))))
    assert written["account"]["pbo"] is None
    assert repr(calibration.study_of(written)) == repr(study(reading=UNDEFINED))


def test_a_page_without_calibration_says_nothing_of_it(tmp_path):
    assert readme_table.calibration_block(tmp_path) == ""
