"""What several seeds of a trial come to, where some failed and some hardly traded."""

from __future__ import annotations

import math

import pytest

from train.findings.reseed import FIGURES, seed_rows, seeds_text, spread_rows


def split(seed, k, excess, **changed):
    return {"seed": seed, "split": k, "excess_sharpe": excess, **dict.fromkeys(FIGURES, 0.5), **changed}


def test_a_failed_seed_leaves_the_worst_unknown():
    rows = [split(0, 0, 3.0), split(1, 0, 1.0), split(2, 0, 2.0), {"seed": 3, "split": 0, "failed": "disk full"}]
    by_seed = seed_rows(rows)
    table = {row["figure"]: row for row in spread_rows(by_seed)}
    assert table["excess_sharpe"]["mean"] == 1.5
    assert math.isnan(table["excess_sharpe"]["worst"])
    assert math.isnan(table["max_drawdown"]["worst"])
    assert seeds_text(by_seed) == "1 of 3 new seeds failed, so the worst is unknown"
    whole = seed_rows(rows[:3])
    assert {row["figure"]: row["worst"] for row in spread_rows(whole)}["excess_sharpe"] == 1.0
    assert seeds_text(whole) == "0 of 2 new seeds failed"


def test_a_seed_that_hardly_traded_has_no_sharpe_ratio():
    rows = [split(0, 0, 1.0), split(1, 0, 1.0), split(1, 1, 40.0, exposure=0.002)]
    own, idle = seed_rows(rows)
    assert (own["hardly_traded"], idle["hardly_traded"]) == (0, 1)
    assert own["objective"] == 1.0
    assert all(math.isnan(idle[name]) for name in ("objective", "excess_sharpe", "sharpe"))
    assert idle["exposure"] == pytest.approx(0.251)
    assert seeds_text([own, idle]).startswith("0 of 1 new seeds failed; 1 inactive (mean exposure under 1%)")
    assert all(math.isnan(row["mean"]) for row in spread_rows([own, idle]) if row["figure"] == "excess_sharpe")
