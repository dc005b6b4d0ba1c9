"""Equal weight, cash and the best constant band beside a study's trials."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from optuna.trial import create_trial

from tests.support.fabricated_study import figures, new_study, split_attributes
from train.findings import yardsticks
from train.findings.stored_trial import open_stored
from train.findings.yardsticks import (
    CASH,
    CONSTANT_BAND,
    EQUAL_WEIGHT,
    ConstantBand,
    YardsticksOfBars,
    YardstickSplit,
    band_env,
    beside,
    choose_bands,
    grid,
    read_yardsticks,
    trade_bands,
    write_yardsticks,
    yardstick_lines,
)
from train.report.collect import collect
from train.report.page import render
from train.study.split import equal_weight_metrics


@pytest.fixture(scope="module")
def env(folded):
    return band_env(folded, None)


def test_every_band_of_the_grid_is_one():
    for n_coins in (1, 3, 7):
        for band in grid(n_coins):
            assert all(0.0 < lo < hi <= 1.0 for lo, hi in zip(band.lo, band.hi, strict=True))
            assert sum(band.lo) <= 1.0


def test_a_constant_band_holds_every_weight_between_its_edges(folded, env):
    band = ConstantBand((0.1, 0.2, 0.0), (0.15, 0.25, 0.0))
    (records,) = trade_bands([band], [folded.folds[0].test], folded, env)
    for record in records:
        assert record.trades.sum() >= 2  # it buys two coins
        assert record.exposure[2:].min() > 0.29
        assert record.exposure.max() < 0.41
        assert record.fees.sum() > 0.0  # at the venue's costs


def test_bands_traded_together_trade_as_each_alone(folded, env):
    bands = [grid(3)[0], grid(3)[-1], grid(3)[4].without(1)]
    blocks = [folded.folds[0].test, folded.folds[1].test, folded.folds[0].fit]
    together = trade_bands(bands, blocks, folded, env)
    for band, block, records in zip(bands, blocks, together, strict=True):
        (alone,) = trade_bands([band], [block], folded, env)
        for one, other in zip(records, alone, strict=True):
            assert np.array_equal(one.equity, other.equity)


def test_the_chosen_band_is_the_one_that_earned_most_before_the_test(folded, env):
    chosen = choose_bands(folded, env)
    for fold, band in zip(folded.folds, chosen, strict=True):
        blocks = tuple(sorted((*fold.fit, *fold.validation)))
        others = [band, *grid(3)]
        growth = [sum(r.growth for r in found) for found in trade_bands(others, [blocks] * len(others), folded, env)]
        assert growth[0] >= max(growth) - 1e-9


def test_the_choice_does_not_see_the_test_bars(folded, env):
    """Prices of the first split's test bars times seven change nothing of its band."""
    fold = folded.folds[0]
    price = folded.dataset.price.copy()
    for first, last in fold.test:
        price[first:last] *= np.linspace(1.0, 7.0, last - first)[:, None]
    poisoned = replace(folded, dataset=replace(folded.dataset, price=price))
    assert choose_bands(poisoned, env)[0] == choose_bands(folded, env)[0]


def test_equal_weight_does_not_depend_on_the_band_beside_it(folded, env):
    bands, test = [grid(3)[0], grid(3)[5]], folded.folds[2].test
    one, other = (equal_weight_metrics(r, 100.0) for r in trade_bands(bands, [test, test], folded, env))
    assert (one.total_return, one.sharpe) == (other.total_return, other.sharpe)


def test_trials_are_counted_against_every_yardstick(folded, tmp_path):
    study, _ = new_study(tmp_path, folded)
    for mean in (-0.2, 0.01, 0.05):
        returns = (mean - 0.1, mean + 0.1)
        attributes = split_attributes(*(figures(total_return=r) for r in returns))
        study.add_trial(create_trial(value=0.0, user_attrs=attributes))
    of_band, held = figures(total_return=-0.3, sharpe=math.nan), figures(total_return=0.02)
    split = YardstickSplit(0, ConstantBand((), ()), of_band, held)
    found = {y.name: y for y in beside(study, {"5m": YardsticksOfBars({}, (), (split, split))})}
    assert [(found[n].n_beaten_by, found[n].n_trials) for n in (EQUAL_WEIGHT, CASH, CONSTANT_BAND)] == [
        (1, 3), (2, 3), (3, 3),
    ]  # fmt: skip
    assert found[CASH].mean_return == 0.0
    assert math.isnan(found[CONSTANT_BAND].mean_sharpe)
    (line,) = yardstick_lines(list(found.values()))
    assert line == (
        "reference strategies, mean return per split (and how many of 3 completed trials beat it): equal weight +2.00% "
        "(beaten by 1), cash +0.00% (beaten by 2), best constant band -30.00% (beaten by 3)"
    )


def test_a_study_computes_them_once_and_its_page_shows_them(tiny_study, monkeypatch):
    """`run_study` of the fixture has computed them."""
    stored = open_stored(tiny_study.url, tiny_study.name, tiny_study.results)
    content = json.loads((tiny_study.folder / "yardsticks.json").read_text())
    assert len(content["timeframes"]["5m"]["splits"]) == 3
    trial = stored.study.trials[0].user_attrs
    for split in content["timeframes"]["5m"]["splits"]:
        known = trial[f"split_{split['fold']}"]["equal_weight"]["total_return"]
        assert split[EQUAL_WEIGHT]["total_return"] == pytest.approx(known, abs=1e-9)
        assert split[CONSTANT_BAND].keys() - split[EQUAL_WEIGHT].keys() == {"turnover", "fees", "trades"}  # not kept
    monkeypatch.setattr(yardsticks, "compute", lambda *_: pytest.fail("computed again"))
    write_yardsticks(stored.study, tiny_study.folder, [], None)
    page = render(collect(stored.study, tiny_study.folder))
    assert "Reference strategies" in page
    assert "best constant band" in page


def test_those_of_another_study_are_not_shown(tiny_study, folded, tmp_path):
    study, folder = new_study(tmp_path, folded)
    folder.mkdir(exist_ok=True)
    (folder / "yardsticks.json").write_text((tiny_study.folder / "yardsticks.json").read_text())
    assert read_yardsticks(study, folder) == []
    assert yardstick_lines([]) == []


def test_a_failure_is_logged_and_raises_nothing(folded, tmp_path, monkeypatch, caplog):
    study, folder = new_study(tmp_path, folded)
    monkeypatch.setattr(yardsticks, "compute", lambda *_: (_ for _ in ()).throw(MemoryError()))
    write_yardsticks(study, folder, [folded], None)
    assert "could not compute the reference strategies: MemoryError" in caplog.text
    assert not (folder / "yardsticks.json").exists()
