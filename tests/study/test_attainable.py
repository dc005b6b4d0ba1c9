"""What a study says of hindsight, break-even costs and power, and where it says it."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
from msgspec import UNSET

from tests.support import fabricated_study as fabricated
from train.env_factory import rules_of
from train.records.keys import SETTINGS
from train.records.record_files import decode, read_record
from train.records.results import closes_file, read_filled, trial_folder
from train.records.stored import SplitResult, TrialSettings
from train.report.collect import collect, write_report
from train.report.curves import read_market
from train.study.attainable import attainable_by, log_power, power_line, tradable
from train.study.split import ATTAINABLE, outcome_json, outcome_of
from train.validation.break_even import TradedSegment, break_even_cost
from train.validation.hindsight import clairvoyant

RULES = rules_of(fabricated.ENV)


@pytest.fixture(scope="module")
def made(folded, tmp_path_factory):
    study, folder = fabricated.new_study(tmp_path_factory.mktemp("results"), folded)
    fabricated.add_complete(study, folder, folded, 3e-5)
    return study, folder


def test_the_line_on_power_counts_every_tested_bar_once_and_names_the_costs(folded, caplog):
    with caplog.at_level(logging.INFO):
        log_power([folded], None)
    (line,) = [r.message for r in caplog.records]
    tested = {bar for fold in folded.folds for a, b in fold.test for bar in range(a, b)}
    assert f"over {len(tested):,} bars: " in line
    assert "5m: a round trip costs 60 bp (25 bp fee and 5 bp slippage on each side)" in line


def test_prices_that_stand_still_can_show_no_edge(folded):
    flat = replace(folded, dataset=replace(folded.dataset, price=np.ones_like(folded.dataset.price)))
    assert power_line(flat, None).endswith("prices are constant, so no edge can be detected")


def test_bars_that_stand_for_missing_ones_do_not_trade_unless_an_account_sells_unasked():
    close, filled = np.ones((4, 2)), np.eye(4, 2, dtype=bool)
    assert tradable(close, None, RULES).is_traded is None
    np.testing.assert_array_equal(tradable(close, filled, RULES).is_traded, ~filled)
    for rule in ({"trailing_stop_pct": 0.1}, {"stale_bars": 48}):
        assert tradable(close, filled, replace(RULES, **rule)).is_traded is None


def test_segments_add_up(folded):
    records = fabricated.records_of(folded.dataset, folded.folds[0].test, np.random.default_rng(0), 0.0)
    bars = tradable(folded.dataset.price, folded.dataset.filled, RULES)
    found = attainable_by(records, bars)
    assert len(records) == 2
    parts = [clairvoyant(bars.close[r.bars], bars.costs, bars.is_traded[r.bars]).growth for r in records]
    assert found.hindsight_growth == pytest.approx(sum(parts))
    assert found.growth == pytest.approx(sum(np.log(r.equity[-1] / r.equity[0]) for r in records))
    assert found.of_hindsight == pytest.approx(found.growth / sum(parts))
    segments = [TradedSegment(r.equity, r.benchmark_equity, r.turnover, r.fees) for r in records]
    assert found.break_even_cost == break_even_cost(segments, 0.0005)
    assert found.to_json().keys() == {"growth", *ATTAINABLE}


def test_an_undefined_figure_is_null_in_a_file_and_absent_ones_of_an_earlier_version_are_nan(folded, tmp_path):
    (outcome, *_) = fabricated.write_trial(tmp_path, folded, 0, 0, 0.0)
    content = outcome_json(replace(outcome, break_even_cost=float("nan")))
    assert content["break_even_cost"] is None
    read = decode(content, SplitResult, "result.json")
    assert read.break_even_cost is None
    assert outcome_of(read).of_hindsight == outcome.of_hindsight
    old = decode({name: value for name, value in content.items() if name not in ATTAINABLE}, SplitResult, "result.json")
    assert {getattr(old, name) for name in ATTAINABLE} == {UNSET}
    assert np.isnan([getattr(outcome_of(old), name) for name in ATTAINABLE]).all()


def test_the_page_shows_the_share_of_hindsight_beside_every_curve(made):
    study, folder = made
    page, html = collect(study, folder), write_report(study, folder).read_text()
    assert len(page.paths) == 3
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    for path, caption in zip(page.paths, captions, strict=True):
        assert path.of_hindsight == pytest.approx(np.log(path.agent[-1]) / path.hindsight_growth)
        assert f"{path.of_hindsight:.2%}".replace("%", "\u00a0%") in caption.replace("\u2212", "-")
        assert "of the hindsight optimum" in caption
    assert html.count("With perfect knowledge of later prices") == 3
    assert html.count("would have earned as much as equal weight") >= 3


def test_closes_of_an_earlier_version_count_every_bar_as_traded(made, folded):
    _, folder = made
    settings = read_record(trial_folder(folder, 0) / SETTINGS, TrialSettings)
    np.testing.assert_array_equal(read_filled(folder, "5m", folded.dataset.sha256), folded.dataset.filled)
    known = read_market(folder, "5m", settings).bars
    np.testing.assert_array_equal(known.is_traded, ~folded.dataset.filled)
    path = closes_file(folder, "5m")
    with np.load(path) as file:
        old = {name: file[name] for name in file.files if name != "filled"}
    np.savez_compressed(path, **old)
    assert read_market(folder, "5m", settings).bars.is_traded is None
