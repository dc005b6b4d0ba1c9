"""How much of a planted signal's pay the best trial earned, and what a report says of a market with a known law."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from market.planted import BandRule, Law, recipe_of
from market.sample import synthetic_dataset
from tests.support import fabricated_study as fabricated
from train.findings.captured import Captured, captured, planted_recipe, rule_growth
from train.report.collect import collect, report_ended_study, write_report
from train.study.folds import fold_data
from train.study.split_plan import SplitPlan
from train.validation.benchmarks import Costs

COSTS = Costs(10_000.0, 0.0025, 0.0005)


def of_law(law: Law, tmp_path):
    """A study of two completed trials on a sample market of that law."""
    data = fold_data(synthetic_dataset("5m", 3_000, ("BTC", "ETH"), law=law), SplitPlan("standard", 3, 2))
    study, folder = fabricated.new_study(tmp_path, data)
    for drift in (0.0, 1e-5):
        fabricated.add_complete(study, folder, data, drift)
    return study, folder


def test_the_rule_buys_and_sells_at_the_close_after_its_decision():
    # s is above 1 after bar 1: bought at the close of bar 2; below -1 after bar 3: sold at the close of bar 4.
    close = np.array([[10.0], [11.0], [20.0], [30.0], [50.0], [70.0]])
    signal = np.array([0.0, 2.0, 0.0, -2.0, 0.0, 0.0])
    found = rule_growth(close, signal, BandRule(1.0, -1.0, 0.0), 0.01)
    assert found == pytest.approx(math.log(50.0 / 20.0) - math.log(1.01) + math.log(0.99))


def test_what_is_still_held_at_the_end_is_valued_and_not_sold():
    close = np.array([[10.0, 4.0], [10.0, 4.0], [20.0, 4.0], [30.0, 4.0]])
    signal = np.array([2.0, 0.0, 0.0, 0.0])
    found = rule_growth(close, signal, BandRule(1.0, -1.0, 0.0), 0.01)
    assert found == pytest.approx(math.log((3.0 + 1.0) / 2.0) - math.log(1.01)), "half of the money in each coin"


def test_a_rule_that_never_buys_earns_nothing():
    close = np.linspace(1.0, 2.0, 8)[:, None]
    assert rule_growth(close, np.zeros(8), BandRule(1.0, -1.0, 0.0), 0.01) == 0.0


def test_an_account_that_follows_the_signal_captures_all_of_the_attainable():
    dataset = synthetic_dataset("5m", 4_000, law=Law.PLANTED)
    bars = np.arange(100, 3_900)
    columns = {"segment": np.zeros(len(bars), int), "bar": bars, "time_s": dataset.time[bars]}
    flat = columns | {"equity": np.full(len(bars), 10_000.0)}
    recipe = recipe_of(dataset.source)
    nothing = captured({0: flat}, dataset.price, COSTS, recipe, 300)
    assert (nothing.growth, nothing.share) == (0.0, 0.0)
    assert nothing.attainable > 0.1
    curve = 10_000.0 * np.exp(nothing.attainable * np.linspace(0.0, 1.0, len(bars)))
    assert captured({0: columns | {"equity": curve}}, dataset.price, COSTS, recipe, 300).share == pytest.approx(1.0)
    twice = captured({0: flat, 1: flat}, dataset.price, COSTS, recipe, 300)
    assert twice.attainable == pytest.approx(2.0 * nothing.attainable)
    assert twice.n_bars == 2 * (len(bars) - 1)


def test_a_share_is_rounded_down_and_undefined_if_nothing_was_attainable():
    assert Captured(0.799, 1.0, 10).share_text == "79 %"
    assert Captured(-0.005, 1.0, 10).share_text == "-1 %"
    assert Captured(0.1, 0.0, 10).share_text == "undefined"


@pytest.mark.parametrize("law", [Law.NO_SIGNAL, Law.FAIR])
def test_only_a_planted_market_has_a_share(law):
    assert planted_recipe([synthetic_dataset("5m", 64, ("BTC",), law=law).label]) is None


def test_the_report_of_a_planted_market_says_the_share_and_labels_it_loudly(tmp_path, caplog):
    study, folder = of_law(Law.PLANTED, tmp_path)
    page, html = collect(study, folder), write_report(study, folder).read_text()
    first, second, *_ = page.verdict.sentences
    assert second.startswith("The market is SYNTHETIC with a planted signal. The best trial captured ")
    assert page.verdict.numbers[0][0] == "share of attainable growth captured"
    assert html.count("SYNTHETIC, planted signal: a generated market") == 2
    assert "<title>made_up (SYNTHETIC, planted signal)</title>" in html
    with caplog.at_level(logging.INFO):
        report_ended_study(study, folder)
    said = [message for message in caplog.messages if message.startswith("verdict: ")]
    assert said[0] == f"verdict: {first}"
    assert "share of attainable growth captured" in said[1]
    assert "Hold-out: " in said[2]


def test_the_report_of_a_market_without_a_signal_says_so_and_has_no_share(tmp_path):
    study, folder = of_law(Law.NO_SIGNAL, tmp_path)
    html = write_report(study, folder).read_text()
    assert html.count("SYNTHETIC, no signal: a generated market") == 2
    assert "attainable growth" not in html
