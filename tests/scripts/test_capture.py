"""The capture curve: shares, resuming, table, targets and picture; and one real run."""

import argparse
import json
from dataclasses import replace

import pytest

from benchmarks import capture, capture_points, measuring
from benchmarks.capture_points import LEARNERS, POINTS, growth_per_bar, shares, unseen_bars, yardstick
from benchmarks.capture_summary import PANELS, TARGETS, TITLES, checks, draw, table_rows
from benchmarks.signal_markets import solve_one_coin
from scripts import readme_table
from train.evaluator import evaluate_policy


def run(point, learner, seed, share, **changed) -> dict:
    made = {"point": point, "learner": learner, "seed": seed, "share": share}
    return made | {"traded": 0.1, "cost_share": 0.001, "cpu_s": 10.0} | changed


def fabricated() -> list[dict]:
    number = {learner: place for place, learner in enumerate(LEARNERS)}
    return [
        run(point, learner, seed, None if point == "no signal" else 0.2 * number[learner] + 0.1 * seed)
        for point, learner, seed in capture.jobs_of(is_quick=False)
        if seed < 3
    ]


def test_every_point_is_shown_and_every_shown_point_exists():
    in_panels = {name for _, ticks in PANELS.values() for name in ticks.values()}
    assert in_panels | {"no signal"} == POINTS.keys() == TITLES.keys()
    assert TARGETS.keys() <= in_panels


@pytest.mark.parametrize("cost_bp", [5.0, 15.0, 30.0])
def test_fee_and_slippage_add_up_to_the_cost(cost_bp):
    params = replace(POINTS["base"], cost_bp=cost_bp).env_params
    assert params["fee_rate"] + params["slippage_rate"] == pytest.approx(cost_bp * 1e-4)
    assert params["fee_rate"] == pytest.approx(5.0 * params["slippage_rate"])


def test_the_learners_differ_in_the_ramp_as_their_names_say():
    assert {name: settings.fee_ramp > 0.0 for name, settings in LEARNERS.items()} == {
        "PPO": False, "PPO, tuned": False, "PPO, tuned, ramp": True, "band": False, "band, ramp": True,
    }  # fmt: skip
    for name in ("band", "PPO, tuned"):
        ramp = LEARNERS[f"{name}, ramp"]
        assert ramp == replace(LEARNERS[name], fee_ramp=ramp.fee_ramp)


def test_policies_are_judged_on_bars_of_other_seeds_than_they_were_trained_on():
    train = capture_points.train_bars(POINTS["base"], 0, is_quick=True)["tech_array"]
    test = unseen_bars("base", is_quick=True)["tech_array"]
    assert not (train[:2_000] == test[:2_000]).any()


def test_the_optimum_has_share_one_and_cash_has_none():
    name = "cost 5"
    optimum = growth_per_bar(evaluate_policy(yardstick(name).act, unseen_bars(name, True), POINTS[name].env_params))
    assert shares(name, optimum, is_quick=True)[0] == pytest.approx(1.0)
    assert shares(name, 0.0, is_quick=True) == (0.0, 0.0)
    assert shares("no signal", 0.0) == (None, None)


def test_a_policy_for_other_costs_has_a_share_below_one():
    name = "cost 15"
    careless = solve_one_coin(POINTS[name].market, 0.0)
    growth = growth_per_bar(evaluate_policy(careless.act, unseen_bars(name, True), POINTS[name].env_params))
    assert shares(name, growth, is_quick=True)[0] < 0.6


def test_a_budget_or_a_market_that_changes_makes_a_run_old(monkeypatch):
    before = capture.identity_of("base", "band")
    assert capture.identity_of("base", "band") == before != capture.identity_of("cost 5", "band")
    longer = replace(LEARNERS["band"], total_env_steps=LEARNERS["band"].total_env_steps + 1)
    monkeypatch.setitem(LEARNERS, "band", longer)
    assert capture.identity_of("base", "band") != before


def test_a_stopped_benchmark_resumes_with_the_jobs_that_are_missing_old_or_cut_short(tmp_path, capsys):
    args = argparse.Namespace(quick=False, out=tmp_path / "result.json", processes=1)
    measured = []

    def work(name, seed):
        measured.append((name, seed))
        return {"growth": seed}

    def resumed(jobs, identity="new"):
        measured.clear()
        return measuring.resumed(args, jobs, work, lambda job: identity)

    assert resumed([("a", 1), ("b", 2)]) == [{"growth": 1}, {"growth": 2}]
    assert resumed([("b", 2), ("c", 3)]) == [{"growth": 2}, {"growth": 3}]
    assert measured == [("c", 3)]
    with (tmp_path / "result.jobs").open("a") as file:
        file.write('[["new", "d", 4], {"gro')
    resumed([("a", 1), ("d", 4)])
    assert measured == [("d", 4)]
    resumed([("a", 1)], identity="other")
    assert measured == [("a", 1)]


def test_the_table_has_the_median_and_the_range_of_every_point():
    rows = {row["point"]: row for row in table_rows(fabricated(), {"base": "solved optimum, 0.139 bp"})}
    assert rows[TITLES["base"]]["band"] == "0.70 (0.60 to 0.80)"
    assert rows[TITLES["base"]]["yardstick"] == "solved optimum, 0.139 bp"
    assert rows["no signal"]["PPO"] == "0.10 accounts, 0.10%"
    assert rows["CPU seconds per run"]["PPO"] == "10.0 (10.0 to 10.0)"


def test_the_better_learner_is_held_against_the_target_and_every_seed_against_stillness():
    runs = [*fabricated(), run("no signal", "PPO", 9, None, traded=0.6, cost_share=0.003, cpu_s=21.0)]
    found = {item["what"]: item for item in checks(runs)}
    share = "median share of the attainable growth"
    assert found[f"{share} (alpha 0.7 bp; band, ramp)"]["measured"] == pytest.approx(0.9)
    assert found[f"{share} (alpha 0.7 bp; band, ramp)"]["met"]
    assert not found[f"{share} (alpha 1.5 bp; band, ramp)"]["met"]
    assert found[f"{share} (one history of 30,000 bars; band, ramp)"]["met"]
    assert not found["accounts traded in 10,000 bars (no signal, worst seed, PPO)"]["met"]
    assert found["accounts traded in 10,000 bars (no signal, worst seed, band)"]["met"]
    assert not found["CPU seconds (longest run)"]["met"]


def test_table_and_targets_on_the_page_are_those_of_its_runs_and_the_picture_is_drawn(tmp_path):
    part = json.loads((measuring.RESULTS / "capture.json").read_text())["capture"]
    point_of = {title: point for point, title in TITLES.items()}
    yardsticks = {point_of[row["point"]]: row["yardstick"] for row in part["rows"] if row["point"] in point_of}
    assert table_rows(part["runs"], yardsticks) == part["rows"]
    assert checks(part["runs"]) == part["checks"]
    draw(part, tmp_path / "capture.png")
    assert (tmp_path / "capture.png").stat().st_size > 20_000
    text = readme_table.own_block("capture")
    assert "| one history of 30,000 bars |" in text
    assert "](../benchmarks/results/capture.png)" in text


@pytest.mark.slow
def test_a_real_run_reports_its_costs_and_its_seconds():
    found = capture_points.measure("no signal", "PPO", 0, is_quick=True)
    assert found["share"] is None
    assert found["cpu_s"] > 0.0
    assert found["cost_share"] == pytest.approx(0.003 * found["traded"], rel=0.2, abs=1e-6)
