"""The break-even fee against arithmetic, and against trading again in the environment at that fee."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.support.markets import params_of, random_config
from train.evaluator import EpisodeRecord, evaluate_policy
from train.validation.break_even import TradedSegment, break_even_cost, growth_by_cost

SLIPPAGE = 0.0005


def segment_of(record: EpisodeRecord) -> TradedSegment:
    return TradedSegment(record.equity, record.benchmark_equity, record.turnover, record.fees)


def traded(config, policy, fee: float, slippage: float = SLIPPAGE) -> list[EpisodeRecord]:
    params = params_of("standard", norm_action=1.0, fee_rate=fee, slippage_rate=slippage, min_order_notional=0.0)
    return evaluate_policy(policy, config | {"min_order_qty": np.zeros(2)}, params)


def follow(state):
    """Towards a weight that the newest features name: (N, S) -> (N, A), sized by equity."""
    return torch.sigmoid(state[:, 3:5]) * 0.5 - state[:, 1:3]


@pytest.fixture(scope="module")
def market():
    """Coins that rise after their own feature was high."""
    config = random_config(1500, 2, 2, seed=3, volatility=0.004, segments=[(0, 700), (700, 1500)])
    lift = 0.004 * np.roll(config["tech_array"], 2, axis=0)
    config["price_array"] = config["price_array"] * np.exp(np.cumsum(lift, axis=0))
    return config


def test_one_round_trip_by_hand():
    # All of 100 into a coin that rises by 10 % while equal weight stays: two sides of c each.
    equity = np.array([100.0, 100.0, 110.0, 110.0])
    segment = TradedSegment(equity, np.full(4, 100.0), np.array([100.0, 0.0, 110.0]), np.zeros(3))
    assert break_even_cost([segment], 0.0) == pytest.approx(1.0 - 1.0 / math.sqrt(1.1))


def test_costs_that_were_paid_are_added_back():
    # The same account at 1 % fee and 0.5 % slippage: 1.5 % of what it trades is lost, the break-even is the same.
    kept = 1.0 - 0.015
    equity = np.array([100.0, 100.0 * kept, 110.0 * kept, 110.0 * kept**2])
    notional = np.array([100.0, 0.0, 110.0 * kept])
    segment = TradedSegment(equity, np.full(4, 100.0), notional, 0.01 * notional)
    growth = growth_by_cost([segment], 0.005)
    assert growth.gross == pytest.approx(math.log(1.1))
    assert growth.at(0.015) == pytest.approx(math.log(equity[-1] / 100.0))
    assert break_even_cost([segment], 0.005) == pytest.approx(1.0 - 1.0 / math.sqrt(1.1))


def test_an_account_behind_without_costs_has_one_below_zero_and_one_that_never_traded_has_none():
    equity = np.array([100.0, 100.0, 98.0])
    behind = TradedSegment(equity, np.full(3, 100.0), np.array([100.0, 0.0]), np.zeros(2))
    assert break_even_cost([behind], 0.0) == pytest.approx(1.0 - 1.0 / 0.98)
    idle = TradedSegment(np.full(3, 100.0), np.full(3, 90.0), np.zeros(2), np.zeros(2))
    assert math.isnan(break_even_cost([idle], 0.0))
    ruined = TradedSegment(np.array([100.0, 0.0, 0.0]), np.full(3, 90.0), np.array([50.0, 0.0]), np.zeros(2))
    assert math.isnan(break_even_cost([ruined], 0.0))
    hardly = TradedSegment(np.full(3, 100.0), np.full(3, 90.0), np.array([1.0, 0.0]), np.zeros(2))
    assert break_even_cost([hardly], 0.0) == 1.0


def test_the_recorded_growth_is_that_at_the_recorded_cost(market):
    records = traded(market, follow, 0.002)
    growth = growth_by_cost([segment_of(r) for r in records], SLIPPAGE)
    paid = sum(r.fees.sum() + SLIPPAGE * r.turnover.sum() for r in records) / sum(r.turnover.sum() for r in records)
    assert growth.at(paid) == pytest.approx(sum(r.growth for r in records), abs=2e-4)
    assert growth.excess(paid) == pytest.approx(growth.at(paid) - growth.benchmark)


@pytest.mark.parametrize("fee", [0.0, 0.001, 0.003])
def test_trading_again_at_the_break_even_fee_earns_what_equal_weight_did(market, fee):
    records = traded(market, follow, fee)
    segments = [segment_of(r) for r in records]
    cost = break_even_cost(segments, SLIPPAGE)
    assert cost > 0.0005
    again = traded(market, follow, cost - SLIPPAGE)  # that side in all, slippage as it was
    growth = growth_by_cost(segments, SLIPPAGE)
    left = sum(r.growth for r in again) - growth.benchmark
    lost_to_costs = growth.gross - growth.benchmark
    assert abs(left) < 0.02 * lost_to_costs
