"""The solved optima of the AR(1) markets: against closed forms, against each other, and traded in the environment."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import dawsn
from scipy.stats import norm

from benchmarks.signal_markets import (
    BestCoinRule,
    SignalMarket,
    find_rule,
    joined,
    rule_growth,
    solve_one_coin,
    solve_two_coins,
)
from train.evaluator import evaluate_policy

COST_RATE = 0.003
PARAMS = {"rules": "standard", "lookback": 1, "norm_action": 1.0}
SLOW = SignalMarket(mean_life_bars=300.0)  # near continuous time, where the closed forms hold


def threshold(cost_rate, market):
    """Threshold of a linear cost and a cap on the position, for an Ornstein-Uhlenbeck signal in continuous time.

    de Lataillade et al., arXiv 1203.5957. The worth D(s) of holding one more obeys D'' - s D' = -(alpha / theta) s
    between the thresholds, with D(q) = cost and D'(q) = 0, so q - sqrt(2) dawson(q / sqrt(2)) = cost theta / alpha.
    """
    relative_cost = cost_rate / (market.alpha * market.mean_life_bars)
    return brentq(lambda q: q - math.sqrt(2.0) * dawsn(q / math.sqrt(2.0)) - relative_cost, 0.0, 4.0)


def rates_of(market, cost_rate):
    return market.alpha, market.volatility**2 / 2.0, cost_rate


# ----------------------------------------------------------------------------------------------------- the market
def test_signals_have_unit_variance_and_the_mean_life_asked_for():
    market = SignalMarket(n_assets=3)
    signals = market.signals(400_000, np.random.default_rng(0))
    assert np.std(signals, axis=0) == pytest.approx(1.0, abs=0.04)  # 4 standard errors
    after = [np.mean(signals[k:] * signals[:-k]) / np.mean(signals**2) for k in (1, 48)]
    assert after == pytest.approx([math.exp(-1 / 48), math.exp(-1.0)], abs=0.02)


def test_the_feature_is_the_signal_of_the_return_after_the_coming_fill():
    market = SignalMarket(alpha=0.01, volatility=0.001, mean_life_bars=0.1, n_noise_features=0)
    config = market.config(20_000, 0)
    returns, shown = np.diff(np.log(config["price_array"][:, 0])), config["tech_array"][:, 0]
    by_delay = [np.corrcoef(shown[: len(returns) - delay], returns[delay:])[0, 1] for delay in (0, 1, 2)]
    assert by_delay[1] > 0.99
    assert max(abs(by_delay[0]), abs(by_delay[2])) < 0.03


def test_a_mirrored_stretch_has_the_same_signals_and_the_opposite_noise():
    market = SignalMarket()
    config, mirrored = market.config(500, 3), market.config(500, 3, mirrored=True)
    assert np.array_equal(config["tech_array"], mirrored["tech_array"])
    both = np.diff(np.log(config["price_array"]) + np.log(mirrored["price_array"]), axis=0)[1:, 0]
    expected = 2.0 * (market.alpha * config["tech_array"][:-2, 0] - market.volatility**2 / 2.0)
    assert both == pytest.approx(expected, abs=1e-9)


def test_the_chain_keeps_the_variance_and_the_persistence_of_the_process():
    market = SignalMarket()
    points, chances = market.switching(121)
    assert chances.sum(1) == pytest.approx(1.0)
    middle = np.abs(points) < 3.0
    assert (chances @ points)[middle] == pytest.approx(market.persistence * points[middle], abs=1e-6)
    share = np.linalg.matrix_power(chances, 4096)[60]
    assert share @ points**2 == pytest.approx(1.0, abs=2e-3)


# ----------------------------------------------------------------------------------------------------- closed forms
def test_without_costs_the_optimum_is_the_mean_of_the_positive_part():
    market = SignalMarket()
    found = solve_one_coin(market, 0.0, is_additive=True)
    assert found.growth == pytest.approx(market.alpha / math.sqrt(2.0 * math.pi), rel=1e-3)
    assert found.buy_above == pytest.approx(0.0, abs=1e-6)
    assert found.sell_below == pytest.approx(0.0, abs=1e-6)


def test_without_costs_log_growth_is_that_of_the_kelly_weight():
    market = SignalMarket()
    variance = market.volatility**2

    def growth(signal):
        weight = np.clip(market.alpha * signal / variance, 0.0, 1.0)
        return (weight * market.alpha * signal - weight**2 * variance / 2.0) * norm.pdf(signal)

    found = solve_one_coin(market, 0.0)
    assert found.growth == pytest.approx(quad(growth, 0.0, 8.0, points=[variance / market.alpha])[0], rel=2e-3)


def test_without_a_signal_it_never_trades():
    found = solve_one_coin(SignalMarket(alpha=0.0), COST_RATE, n_signals=21, n_weights=3)
    assert found.growth == pytest.approx(0.0, abs=1e-9)
    assert found.buy_above == math.inf
    assert np.all(found.lo == 0.0)


@pytest.mark.parametrize("cost_rate", [0.001, 0.005, 0.02])
def test_a_linear_cost_with_a_cap_gives_the_threshold_rule(cost_rate):
    found = solve_one_coin(SLOW, cost_rate, is_additive=True, n_signals=361, n_weights=5)
    assert set(found.lo) | set(found.hi) == {0.0, 1.0}
    assert found.buy_above == pytest.approx(-found.sell_below, abs=1e-6)
    # A process looked at once a bar overshoots a threshold by 0.5826 of a step's deviation (Chernoff and Petkau 1986).
    overshoot = 0.5826 * math.sqrt(1.0 - SLOW.persistence**2)
    wanted = threshold(cost_rate, SLOW)
    assert found.buy_above == pytest.approx(wanted - overshoot, abs=0.01)
    # The smooth fit of both value functions at q gives a gain of alpha times the normal density there.
    assert found.growth == pytest.approx(SLOW.alpha * norm.pdf(wanted), rel=0.01)


def test_a_finer_grid_changes_the_optimum_by_less_than_a_thousandth():
    market = SignalMarket()
    coarse, fine = (solve_one_coin(market, COST_RATE, n_signals=n, n_weights=w) for n, w in ((241, 41), (361, 21)))
    assert coarse.growth == pytest.approx(fine.growth, rel=1e-3)
    assert coarse.growth == pytest.approx(0.139e-4, rel=5e-3)


# ----------------------------------------------------------------------------------------------------- by simulation
def test_the_thresholds_earn_the_solved_growth_and_no_nearby_ones_earn_more():
    market = SignalMarket()
    found = solve_one_coin(market, COST_RATE)
    rates = rates_of(market, COST_RATE)
    signals = market.signals(4_000_000, np.random.default_rng(1))

    def growth(buy_above, sell_below, part):
        return rule_growth(part, buy_above, sell_below, 99.0, *rates)

    parts = np.array([growth(found.buy_above, found.sell_below, part) for part in np.split(signals, 40)])
    error = parts.std(ddof=1) / math.sqrt(len(parts))
    assert error < 0.025 * found.growth
    assert parts.mean() == pytest.approx(found.growth, abs=3.0 * error)
    best = growth(found.buy_above, found.sell_below, signals)
    for buy, sell in ((0.3, 0.0), (-0.3, 0.0), (0.0, 0.3), (0.0, -0.3)):
        assert growth(found.buy_above + buy, found.sell_below + sell, signals) < best


def growths_in_the_environment(market, act, seeds, n_bars):
    """(seeds,) log growth per bar of every stretch with its mirror image, and accounts traded per bar."""
    pairs = [market.config(n_bars, seed, mirrored) for seed in seeds for mirrored in (False, True)]
    records = evaluate_policy(act, joined(pairs), PARAMS)
    growth = np.array([record.growth / len(record.turnover) for record in records])
    turnover = np.mean([(record.turnover / record.equity[:-1]).mean() for record in records])
    return growth.reshape(-1, 2).mean(1), turnover


@pytest.mark.slow
def test_the_solved_policy_earns_the_optimum_in_the_environment():
    market = SignalMarket()
    found = solve_one_coin(market, COST_RATE)
    n_bars, seeds = 4_000, range(80)  # 320,000 bars, each traded twice
    growth, turnover = growths_in_the_environment(market, found.act, seeds, n_bars)
    error = growth.std(ddof=1) / math.sqrt(len(growth))
    assert error < 0.1 * found.growth
    assert growth.mean() == pytest.approx(found.growth, abs=3.0 * error)
    assert turnover * 1000.0 == pytest.approx(4.2, abs=0.3)
    # The same signals without the noise: the environment's account against the solver's, nearly without sampling error.
    rates = rates_of(market, COST_RATE)
    model = np.mean([
        rule_growth(market.config(n_bars, seed)["tech_array"][:, :1].astype(float), found.buy_above, found.sell_below,
                    99.0, *rates)
        for seed in seeds
    ])  # fmt: skip
    assert growth.mean() == pytest.approx(model, abs=0.03 * found.growth)


# ----------------------------------------------------------------------------------------------------- several coins
def test_one_purse_earns_more_than_one_coin_and_less_than_two_purses():
    one = solve_one_coin(SignalMarket(), COST_RATE).growth
    assert 1.3 * one < solve_two_coins(SignalMarket(n_assets=2), COST_RATE, n_signals=41, parts=1) < 2.0 * one


def test_two_coins_without_costs_hold_the_better_one():
    # The mean of the best of 0 and two normal variables; the variance drag is made negligible.
    market = SignalMarket(n_assets=2, alpha=1e-4, volatility=1e-6)
    points, masses = np.polynomial.hermite_e.hermegauss(201)
    better = np.maximum(0.0, np.maximum(points[:, None], points[None]))
    expected = market.alpha * masses @ better @ masses / masses.sum() ** 2
    assert solve_two_coins(market, 0.0, parts=1) == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
def test_the_best_rule_of_two_coins_earns_nearly_the_optimum_and_not_more():
    market = SignalMarket(n_assets=2)
    optimum = solve_two_coins(market, COST_RATE)
    rule = find_rule(market, COST_RATE)
    assert 0.95 * optimum < rule.growth < 1.03 * optimum  # its 2,000,000 bars leave a standard error of 2 %


def test_the_rule_trades_in_the_environment_what_it_counts():
    market, rule = SignalMarket(n_assets=3, alpha=2e-4), BestCoinRule(3, 1.2, -0.8, 2.0)
    seeds, n_bars = range(12), 4_000
    growth, _ = growths_in_the_environment(market, rule.act, seeds, n_bars)
    signals = [market.config(n_bars, seed)["tech_array"][:, :3].astype(float) for seed in seeds]
    counted = np.mean([rule_growth(s, 1.2, -0.8, 2.0, *rates_of(market, COST_RATE)) for s in signals])
    assert growth.mean() == pytest.approx(counted, rel=0.05)
