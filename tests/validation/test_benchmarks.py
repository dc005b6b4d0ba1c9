"""Benchmarks against arithmetic, against the environment's own, and against what chance allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.markets import params_of
from tests.support.train_cases import small_market
from train.evaluator import EpisodeRecord, evaluate_policy
from train.validation.benchmarks import (
    Account,
    Benchmarks,
    Costs,
    benchmarks_of,
    buy_and_hold_each,
    cash_only,
    draws_of,
    equal_weight,
    joined_draws,
    measure_accounts,
    measure_draws,
    random_orders,
    turnover_gap,
)
from train.validation.metrics import measure

SEGMENTS = [(0, 60), (70, 200), (200, 300)]
FEE_RATE, SLIPPAGE_RATE, CAPITAL = 0.0025, 0.0005, 10_000.0
COSTS = Costs(CAPITAL, FEE_RATE, SLIPPAGE_RATE)
FREE = Costs(100.0, 0.0)
PRICE = np.array([[10.0, 4.0], [20.0, 2.0], [5.0, 8.0]])


def random_closes(seed: int, n_points: int, n_assets: int = 3, drift: float = 0.0) -> np.ndarray:
    """A martingale without drift: each close is the last times a factor of mean 1."""
    rng = np.random.default_rng(seed)
    factors = 1.0 + drift + 0.05 * rng.choice([-1.0, 1.0], (n_points, n_assets))
    return np.cumprod(factors, axis=0) * rng.uniform(0.1, 1000.0, n_assets)


def draws(close: np.ndarray, turnover: np.ndarray, costs: Costs, n_draws: int = 50, seed: int = 0) -> Account:
    return random_orders(close, turnover, costs, n_draws, np.random.default_rng(seed))


# ----------------------------------------------------------------------------------------------------- buy and hold
def test_without_fees_it_is_arithmetic():
    # 100 in equal parts: 5 coins of 10 and 12.5 coins of 4.
    found = equal_weight(PRICE, FREE)
    np.testing.assert_allclose(found.equity, [100.0, 5 * 20 + 12.5 * 2, 5 * 5 + 12.5 * 8])
    np.testing.assert_allclose(buy_and_hold_each(PRICE, FREE).equity, [[100.0, 200.0, 50.0], [100.0, 50.0, 200.0]])
    np.testing.assert_array_equal(cash_only(PRICE, FREE).equity, [100.0] * 3)
    np.testing.assert_array_equal(found.exposure, [0.0, 1.0, 1.0])


def test_the_fee_is_paid_out_of_the_cash_and_in_the_first_return():
    # 101 buys coins for 100 and pays 1; all of it on the first bar.
    found = equal_weight(PRICE, Costs(101.0, 0.01))
    np.testing.assert_allclose(found.equity, [101.0, 125.0, 125.0])
    np.testing.assert_allclose(found.turnover, [100.0, 0.0])
    np.testing.assert_allclose(found.fees, [1.0, 0.0])
    np.testing.assert_array_equal(found.trades, [2, 0])
    each = buy_and_hold_each(PRICE, Costs(101.0, 0.01))
    np.testing.assert_allclose(each.fees, [[1.0, 0.0]] * 2)
    np.testing.assert_array_equal(each.trades, [[1, 0]] * 2)


def test_a_coin_without_a_first_price_has_no_share():
    price = np.array([[10.0, 0.0], [20.0, 3.0]])
    np.testing.assert_allclose(equal_weight(price, FREE).equity, [100.0, 200.0])
    np.testing.assert_array_equal(equal_weight(price, FREE).trades, [1])
    each = buy_and_hold_each(price, FREE)
    assert each.equity[0].tolist() == [100.0, 200.0]
    assert math.isnan(each.equity[1, 1])
    np.testing.assert_array_equal(equal_weight(np.array([[0.0, 0.0], [1.0, 1.0]]), FREE).equity, [100.0, 100.0])


# ------------------------------------------------------------------------------------------- beside a real policy
@pytest.fixture(scope="module")
def market():
    return small_market(segments=SEGMENTS)


@pytest.fixture(scope="module")
def records(market) -> list[EpisodeRecord]:
    """A policy that trades all the time, at the rules the study runs by."""

    def zigzag(state):
        return torch.tanh(torch.stack((state.sum(1), state[:, -1] - state[:, 0]), dim=1))

    return evaluate_policy(zigzag, market, params_of("standard"))


@pytest.fixture(scope="module")
def beside(market, records) -> Benchmarks:
    closes = [np.asarray(market["price_array"], dtype=np.float64)[r.bars] for r in records]
    return benchmarks_of(closes, [r.turnover for r in records], COSTS, n_draws=40, seed=3)


def test_equal_weight_is_the_environments(records, beside):
    assert len(records) == len(SEGMENTS)
    for record, ours in zip(records, beside.equal_weight, strict=True):
        assert record.equity[0] == CAPITAL
        np.testing.assert_allclose(ours.equity[1:], record.benchmark_equity[1:], rtol=1e-9)
        assert ours.equity[0] == record.equity[0]


def test_its_figures_are_those_the_study_compares_with(records, beside):
    # as train.study.split.equal_weight_metrics joins them
    joined = [np.concatenate([r.equity[:1], r.benchmark_equity[1:]]) for r in records]
    expected, found = measure(joined, 365.0 * 288.0), measure_accounts(beside.equal_weight, 365.0 * 288.0).at()
    for name in ("bars", "sharpe", "total_return", "max_drawdown", "max_drawdown_bars", "hit_rate"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6), name
    assert found.trades == 2 * len(records)
    assert 0.9 < found.exposure < 1.0


def test_what_is_kept_of_the_draws_gives_their_figures(records, beside):
    kept = joined_draws([draws_of([account]) for account in beside.random])
    found, whole = measure_draws(kept, 365.0 * 288.0), measure_accounts(beside.random, 365.0 * 288.0)
    for name, values in vars(whole).items():
        if name in ("turnover", "fees", "exposure"):  # added up in another order
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-12)
        else:
            np.testing.assert_array_equal(getattr(found, name), np.broadcast_to(values, 40), name)
    traded = np.concatenate([record.turnover for record in records])
    gap = turnover_gap(kept, traded)
    np.testing.assert_allclose(gap, 1.0 - sum(a.turnover.sum(axis=1) for a in beside.random) / traded.sum(), atol=1e-12)


def test_random_orders_trade_what_the_policy_traded(records, beside):
    for record, found in zip(records, beside.random, strict=True):
        assert record.turnover.sum() > CAPITAL
        assert np.all(np.abs(turnover_gap(found, record.turnover)) < 0.01)


def test_every_benchmark_is_on_the_bars_and_the_cash_of_the_policy(records, beside):
    for accounts in (beside.equal_weight, beside.coins, beside.cash, beside.random):
        for record, account in zip(records, accounts, strict=True):
            assert account.equity.shape[-1] == len(record.bars)
            assert np.all(account.equity[..., 0] == record.equity[0])
            for name in ("turnover", "fees", "trades"):
                assert getattr(account, name).shape[-1] == len(record.bars) - 1


def test_the_figures_of_many_draws_over_segments_are_each_draws(beside):
    batch = measure_accounts(beside.random, 50.0)
    assert batch.sharpe.shape == (40,)
    one = measure(
        [account.equity[7] for account in beside.random],
        50.0,
        turnover_notional=[account.turnover[7] for account in beside.random],
    )
    assert batch.at(7).sharpe == pytest.approx(one.sharpe)
    assert batch.at(7).turnover == pytest.approx(one.turnover)
    assert measure_accounts(beside.coins, 50.0).sharpe.shape == (2,)
    assert measure_accounts(beside.cash, 50.0).at().total_return == 0.0


def test_segments_are_drawn_on_their_own(market, records, beside):
    closes = [np.asarray(market["price_array"], dtype=np.float64)[r.bars] for r in records]
    turnover = [r.turnover for r in records]
    again = benchmarks_of([closes[0], *closes[1:]], [turnover[0] * 0.5, *turnover[1:]], COSTS, n_draws=40, seed=3)
    np.testing.assert_array_equal(again.random[1].equity, beside.random[1].equity)
    other = benchmarks_of(closes, turnover, COSTS, n_draws=40, seed=4)
    assert not np.array_equal(other.random[1].equity, beside.random[1].equity)
    assert len({tuple(row) for row in beside.random[0].equity}) == 40


# --------------------------------------------------------------------------------------------------- random orders
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 3.0), st.sampled_from([COSTS, Costs(CAPITAL, 0.0), Costs(CAPITAL, 0.2)]))
def test_random_orders_never_short_never_borrow_and_never_trade_more(seed, size, costs):
    close = random_closes(seed, 40)
    rng = np.random.default_rng(seed)
    wanted = np.where(rng.random(39) < 0.5, rng.random(39) * size * CAPITAL, 0.0)
    found = draws(close, wanted, costs, seed=seed)
    assert np.all(found.exposure >= 0.0)
    assert np.all(found.exposure <= 1.0 + 1e-9)
    assert np.all(found.equity >= 0.0)
    assert np.all(np.cumsum(found.turnover, axis=1) <= np.cumsum(wanted) * (1.0 + 1e-9) + 1e-6)
    assert np.all(found.fees <= found.turnover * costs.fee_rate * (1.0 + costs.slippage_rate) + 1e-9)
    assert np.all(found.fees >= found.turnover * costs.fee_rate * (1.0 - costs.slippage_rate) - 1e-9)
    assert np.all((found.trades > 0) == (found.turnover > 0.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.01, 0.5))
def test_a_turnover_that_an_account_can_bear_is_matched_to_rounding(seed, size):
    close = random_closes(seed, 60)
    wanted = np.append(np.full(29, size * CAPITAL), np.zeros(30))  # room at the end for what had to wait
    gap = turnover_gap(draws(close, wanted, COSTS, seed=seed), wanted)
    np.testing.assert_allclose(gap, 0.0, atol=1e-6)


def test_an_account_accounts_for_every_quote():
    # constant prices: what is gone is fees and slippage
    close = np.full((30, 3), [3.0, 50.0, 0.2])
    found = draws(close, np.full(29, 4_000.0), COSTS)
    paid = found.fees.sum(axis=1) + SLIPPAGE_RATE * found.turnover.sum(axis=1)
    np.testing.assert_allclose(CAPITAL - found.equity[:, -1], paid, rtol=1e-9)
    np.testing.assert_allclose(found.turnover.sum(axis=1), 29 * 4_000.0)


def test_an_order_is_filled_at_the_close_its_step_leads_to():
    # The price doubles on the way to the first fill and halves after it: holding before the fill would have won.
    close = np.array([[1.0], [2.0], [1.0]])
    found = draws(close, np.array([CAPITAL, 0.0]), Costs(CAPITAL, 0.0))
    np.testing.assert_allclose(found.equity, np.tile([CAPITAL, CAPITAL, CAPITAL / 2], (50, 1)))
    np.testing.assert_allclose(found.exposure, np.tile([0.0, 1.0, 1.0], (50, 1)))


def test_without_an_edge_the_costs_are_all_there_is_to_lose():
    gains = []
    for seed in range(300):
        found = draws(random_closes(seed, 25), np.full(24, 3_000.0), COSTS, n_draws=10, seed=seed)
        paid = found.fees.sum(axis=1) + SLIPPAGE_RATE * found.turnover.sum(axis=1)
        gains.append(np.mean(found.equity[:, -1] - CAPITAL + paid))
        assert np.all(paid > 0.0)
    # draws on one market share its luck: each market is one observation
    assert abs(np.mean(gains)) < 4.0 * np.std(gains) / math.sqrt(len(gains))


def test_orders_go_to_every_coin_and_in_both_directions():
    close = np.full((40, 3), 1.0)
    found = draws(close, np.full(39, 1_000.0), Costs(CAPITAL, 0.0), n_draws=200)
    rises = np.diff(found.exposure, axis=1)
    assert 0.4 < np.mean(rises > 0) < 0.7
    assert 0.3 < np.mean(rises < 0) < 0.6
    tripled = np.vstack([close, [[3.0, 1.0, 1.0]], [[1.0, 3.0, 1.0]], [[1.0, 1.0, 3.0]]])
    ends = draws(tripled, np.append(np.full(39, 1_000.0), np.zeros(3)), Costs(CAPITAL, 0.0), n_draws=200)
    held = (ends.equity[:, -3:] - ends.equity[:, 39:40]).mean(axis=0)
    np.testing.assert_allclose(held, held.mean(), rtol=0.15)


def test_a_fair_coin_says_what_comes_first():
    # Half in coins after the first step, with cash and coins for either direction on the second.
    found = draws(np.ones((3, 2)), np.array([5_000.0, 1_000.0]), Costs(CAPITAL, 0.0), n_draws=2_000)
    rise = found.exposure[:, 2] - found.exposure[:, 1]
    np.testing.assert_allclose(np.abs(rise), 0.1)
    assert np.mean(rise > 0) == pytest.approx(0.5, abs=4.0 * 0.5 / math.sqrt(2_000))


def test_what_had_no_room_is_traded_on_later_steps():
    wanted = np.array([2.5 * CAPITAL, 0.0, 0.0])
    found = draws(np.ones((4, 2)), wanted, Costs(CAPITAL, 0.0))
    assert set(np.round(found.turnover[:, 0])) == {CAPITAL, 2 * CAPITAL}
    np.testing.assert_allclose(turnover_gap(found, wanted), 0.0, atol=1e-9)


def test_later_prices_change_nothing_before_them():
    close = random_closes(0, 30)
    poisoned = close.copy()
    poisoned[20:] *= np.array([7.0, 0.1, 3.0])
    ours, theirs = draws(close, np.full(29, 2_000.0), COSTS), draws(poisoned, np.full(29, 2_000.0), COSTS)
    np.testing.assert_array_equal(ours.equity[:, :20], theirs.equity[:, :20])
    np.testing.assert_array_equal(ours.turnover[:, :19], theirs.turnover[:, :19])


def test_the_same_seed_gives_the_same_accounts():
    close, wanted = random_closes(0, 30), np.full(29, 2_000.0)
    ours, again, other = (draws(close, wanted, COSTS, seed=seed).equity for seed in (5, 5, 6))
    np.testing.assert_array_equal(ours, again)
    assert not np.array_equal(ours, other)


def test_a_policy_that_never_trades_is_matched_by_cash():
    found = draws(random_closes(0, 10), np.zeros(9), COSTS)
    assert np.all(found.equity == CAPITAL)
    np.testing.assert_array_equal(turnover_gap(found, np.zeros(9)), 0.0)


def test_what_cannot_be_traded_is_reported():
    # A single step that trades three times the account: an account of cash buys all it can, and sells it again.
    close = np.ones((2, 2))
    found = draws(close, np.array([3.0 * CAPITAL]), Costs(CAPITAL, 0.0), n_draws=400)
    gap = turnover_gap(found, np.array([3.0 * CAPITAL]))
    assert sorted(set(np.round(gap, 9))) == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


def test_a_coin_without_a_price_is_not_traded():
    close = np.ones((20, 2))
    close[:10, 1] = 0.0
    found = draws(close, np.full(19, 1_000.0), Costs(CAPITAL, 0.0))
    assert np.all(found.trades[:, :9] <= 2)
    np.testing.assert_allclose(found.equity, CAPITAL)
    nothing = draws(np.zeros((5, 2)), np.full(4, 1_000.0), Costs(CAPITAL, 0.0))
    assert np.all(nothing.turnover == 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Costs(100.0, 0.25 * 100), "0.0025 is 0.25 %\\); received 25.0"),
        (lambda: Costs(0.0, 0.0), "initial_capital must be above 0"),
        (lambda: equal_weight(np.ones(4), FREE), r"closes must have shape \(n \+ 1, A\).*received \(4,\)"),
        (lambda: equal_weight(np.array([[1.0], [np.nan]]), FREE), "finite and at least 0"),
        (lambda: draws(PRICE, np.ones(3), FREE), r"2 values, one per step.*received shape \(3,\)"),
        (lambda: draws(PRICE, np.array([1.0, -1.0]), FREE), "1 values below 0 or nan"),
    ],
)
def test_a_wrong_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
