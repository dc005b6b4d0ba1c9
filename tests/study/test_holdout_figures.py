"""What a hold-out says of accounts without skill, in a market that falls."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support.fabricated_study import figures, holdout_score
from train.study.holdout_figures import (
    excess_error,
    found_text,
    is_passed,
    lead_sharpe,
    mean_of,
)
from train.validation.metrics import sharpe


def record(own, market):
    """One stretch of bars: (n,) returns of the account and of equal weight."""
    equity, held = (100.0 * np.cumprod(np.append(1.0, 1.0 + r)) for r in (own, market))
    return SimpleNamespace(equity=equity, benchmark_equity=held)


def said_of(market, own):
    """As `score_holdout` and the page do, for one policy."""
    records, n = [record(own, market)], len(market)
    excess = float(sharpe(own, n)) - float(sharpe(market, n))  # the bars are one year
    error = excess_error(records, n)
    scored = holdout_score(excess_sharpe_error=error, mean_lead_sharpe=lead_sharpe(records, n))
    return found_text(scored, excess, error), excess > 2.0 * error


@pytest.mark.parametrize("annual_sharpe", [-4.0, 0.0, 4.0])
def test_being_seldom_in_a_market_that_falls_is_not_above_chance(annual_sharpe):
    rng, n, repetitions = np.random.default_rng(0), 2_000, 300
    above = by_excess_alone = 0
    for _ in range(repetitions):
        market = 0.001 * rng.normal(annual_sharpe / math.sqrt(n), 1.0, n)
        text, is_excess = said_of(market, market * np.repeat(rng.random(50) < 0.2, n // 50))
        above += text.startswith("above what chance explains")
        by_excess_alone += is_excess
    assert above / repetitions <= 0.0228 + 3.0 * math.sqrt(0.0228 / repetitions)
    if annual_sharpe < 0.0:  # the excess Sharpe alone is fooled
        assert by_excess_alone / repetitions > 0.2


def test_timing_is_above_chance():
    rng = np.random.default_rng(1)
    market = 0.001 * rng.normal(-4.0 / math.sqrt(2_000), 1.0, 2_000)
    text, _ = said_of(market, np.where(rng.random(2_000) < 0.5, np.maximum(market, 0.0), market))
    assert text.startswith("above what chance explains, and so is the Sharpe ratio of alpha returns")


def test_the_mean_of_errors_is_no_smaller_than_the_error_of_the_mean():
    rng = np.random.default_rng(2)
    market = rng.normal(size=500) * 0.001
    policies = [[record(market * (rng.random(500) < 0.3), market)] for _ in range(4)]
    errors = [excess_error(records, 500) for records in policies]
    assert mean_of(errors) == pytest.approx(np.mean(errors))
    assert mean_of([*errors, None]) is None
    assert mean_of([]) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"mean_excess_sharpe": 1.9}, False),
        ({"mean_lead_sharpe": 1.9}, False),
        ({"mean_excess_sharpe": -3.0}, False),
        ({"trial": 5}, None),
        ({"mean_excess_sharpe": None}, None),
        ({"mean_lead_sharpe": None}, None),
        ({"excess_sharpe_error": None}, None),  # kept, and undefined
        ({"agents": (figures(exposure=0.001),)}, None),
        ({"agents": (figures(exposure=math.nan),)}, True),
    ],
)
def test_a_holdout_is_passed_only_by_its_own_trial_with_both_figures_above_two_errors(changes, expected):
    assert is_passed(holdout_score(**changes), 4) is expected


def test_a_holdout_that_was_not_scored_has_no_verdict():
    assert is_passed(None, 4) is None
