"""The laws of the sample market, its planted signal, and the best policy for it."""

from itertools import pairwise

import numpy as np
import pytest

from market.dataset import Dataset
from market.defaults import DEMONSTRATION_SEED
from market.names import DEFAULT_TICKERS
from market.planted import (
    MEAN_LIFE_BARS,
    SIGNAL_PART_BARS,
    BandRule,
    Law,
    Recipe,
    best_rule,
    centred,
    drift_per_signal,
    planted_signal,
    recipe_of,
    signal_at,
    synthetic_kind,
)
from market.sample import sample_bars, synthetic_dataset

COST = 0.003
BAR_S = 300
MOST_BARS = 20_000  # of make_sample.py
DEMONSTRATIONS = (Law.NO_SIGNAL, Law.PLANTED)


@pytest.fixture(scope="module")
def planted() -> Dataset:
    return synthetic_dataset("5m", 20_000, law=Law.PLANTED)


def equal_weight(dataset: Dataset) -> np.ndarray:
    """(T,) an account that buys the same amount of every coin at the first bar."""
    return (dataset.price / dataset.price[0]).mean(axis=1)


@pytest.mark.parametrize("law", DEMONSTRATIONS)
@pytest.mark.parametrize("tickers", [DEFAULT_TICKERS, ("BTC", "ETH", "LTC")], ids=["default", "launcher"])
def test_equal_weight_stays_modest_over_the_default_sample_and_over_each_quarter(law, tickers):
    curve = equal_weight(synthetic_dataset("5m", MOST_BARS, tickers, seed=DEMONSTRATION_SEED, law=law))
    assert 0.95 < curve[-1] < 1.05
    assert (curve / np.maximum.accumulate(curve)).min() > 0.67, "what data/README.md says"
    quarters = curve[np.linspace(0, len(curve) - 1, 5).astype(int)]
    assert (np.abs(np.diff(np.log(quarters))) < 0.2).all()


def test_without_a_signal_the_sample_is_the_fair_game_bar_for_bar():
    fair, nothing = (synthetic_dataset("5m", 500, seed=3, law=law) for law in (Law.FAIR, Law.NO_SIGNAL))
    assert np.array_equal(fair.price, nothing.price)
    assert np.array_equal(fair.tech, nothing.tech)


def test_buying_what_fell_and_selling_what_rose_earns_nothing_without_a_signal():
    """A market whose returns add up to 0 over a part of it comes back from every excursion."""
    earnings = []
    for seed in range(24):
        price = np.log(synthetic_dataset("5m", 12_000, ("BTC", "ETH", "LTC"), seed=seed, law=Law.NO_SIGNAL).price)
        total = np.concatenate([np.zeros((1, 3)), np.cumsum(price, axis=0)])
        window = 2_000
        mean = (total[window:] - total[:-window]) / window
        is_held = price[window - 1 : -1] < mean[:-1] - 0.03
        earnings.append((is_held * np.expm1(np.diff(price[window - 1 :], axis=0))).sum(axis=0).mean())
    assert abs(np.mean(earnings)) < 3.0 * np.std(earnings) / np.sqrt(len(earnings))
    assert np.std(earnings) < 0.2  # so an edge of a tenth of the account would be seen


def test_simple_returns_without_a_signal_are_fair_to_volatile_coins_and_times():
    simple = []
    for seed in range(60):
        bars = sample_bars("1d", 730, DEFAULT_TICKERS, seed, law=Law.NO_SIGNAL)
        simple.append((bars["close"] / bars["open"] - 1.0).to_numpy().reshape(7, 730))
    simple = np.stack(simple)
    months = np.lib.stride_tricks.sliding_window_view(simple**2, 30, axis=2).mean(axis=3)[:, :, :-1]
    paid = ((months - months.mean()) * simple[:, :, 30:]).mean(axis=(1, 2))
    for by_seed in (simple.mean(axis=(1, 2)), paid):
        assert abs(by_seed.mean()) < 3.0 * by_seed.std() / np.sqrt(len(by_seed))


def test_the_sample_without_a_signal_predicts_nothing_and_the_planted_one_does(planted):
    nothing = synthetic_dataset("5m", 20_000, law=Law.NO_SIGNAL)
    signal = signal_at(recipe_of(planted.source), planted.time, BAR_S)
    later = {d.source: np.diff(np.log(d.price), axis=0)[1:].mean(axis=1) for d in (planted, nothing)}
    slope, empty = (np.polyfit(signal[:-2], move, 1)[0] for move in later.values())
    error = later[nothing.source].std() / np.sqrt(20_000)
    assert abs(slope - drift_per_signal(BAR_S)) < 4.0 * error
    assert abs(empty) < 4.0 * error


def test_the_signal_is_an_autoregression_of_variance_one_and_mean_life_48_bars():
    found = [planted_signal(70_000, seed) for seed in range(8)]
    assert np.mean([s.var() for s in found]) == pytest.approx(1.0, abs=0.06)
    after = np.mean([np.corrcoef(s[:-48], s[48:])[0, 1] for s in found])
    # Means of 1,000 bars have a variance of 0.091 (2 x 0.048 x (1 - 0.048)) and are taken out.
    assert after == pytest.approx((np.exp(-48 / MEAN_LIFE_BARS) - 0.091) / (1.0 - 0.091), abs=0.03)


def test_a_straight_line_through_the_default_features_shows_the_signal(planted):
    signal = signal_at(recipe_of(planted.source), planted.time, BAR_S)
    inputs = np.column_stack([planted.tech, np.ones(20_000)]).astype(np.float64)
    line = np.linalg.lstsq(inputs[:10_000], signal[:10_000], rcond=None)[0]
    assert np.corrcoef(inputs[10_000:] @ line, signal[10_000:])[0, 1] > 0.8


def test_the_signal_is_found_again_from_a_part_of_the_dataset(planted):
    whole = signal_at(recipe_of(planted.source), planted.time, BAR_S)
    part = planted.with_rows(5_000, 6_000).with_tickers(("ETH", "BTC"))
    np.testing.assert_array_equal(signal_at(recipe_of(part.source), part.time, BAR_S), whole[5_000:6_000])


def test_parts_are_centred_and_a_short_sample_is_one_part():
    values = np.random.default_rng(0).normal(size=4 * SIGNAL_PART_BARS + 3)
    found = centred(values, SIGNAL_PART_BARS)
    edges = np.linspace(0, len(values), 5).astype(int)
    for first, last in pairwise(edges):
        assert found[first:last].sum() == pytest.approx(0.0, abs=1e-9)
    assert centred(values[:10], SIGNAL_PART_BARS).sum() == pytest.approx(0.0, abs=1e-12)


def test_the_fair_law_is_the_default_and_names_no_recipe():
    dataset = synthetic_dataset("5m", 64, ("BTC",), 3)
    assert dataset.source == "sample market, seed 3"
    assert recipe_of(dataset.source) is None
    assert dataset.label.startswith("SYNTHETIC 5m, ")


@pytest.mark.parametrize("law", DEMONSTRATIONS)
def test_label_and_source_name_the_law_loudly(law):
    dataset = synthetic_dataset("5m", 64, ("BTC",), 3, law=law)
    assert dataset.label.startswith(f"SYNTHETIC, {law.value}, 5m, 1 coin, ")
    assert recipe_of(dataset.label) == recipe_of(dataset.source) == Recipe(law, 3, 320)


@pytest.mark.parametrize("source", ["bars.csv", "my sample market, fair, seed 1, 9 bars", "sample market, seed 1"])
def test_other_sources_name_no_recipe(source):
    assert recipe_of(source) is None
    assert synthetic_kind(source) == "SYNTHETIC"


def test_the_rule_begins_in_cash_and_keeps_its_position_inside_the_band():
    rule = BandRule(buy_above=1.0, sell_below=-1.0, growth=0.0)
    held = rule.holds(np.array([-2.0, 0.5, 1.5, 0.5, -0.9, -1.1, 0.9]))
    assert held.tolist() == [False, False, True, True, True, False, False]


def growth_of(rule: BandRule, signal: np.ndarray, volatility: float, cost: float) -> float:
    """Expected log growth of a bar along a signal: no noise is drawn."""
    held = rule.holds(signal)
    n_switches = np.abs(np.diff(held.astype(int), prepend=0)).sum()
    earned = drift_per_signal(BAR_S) * signal[held] - volatility**2 / 2.0
    return float(earned.sum() - cost * n_switches) / len(signal)


@pytest.fixture(scope="module")
def long_signal() -> np.ndarray:
    return planted_signal(1_000_000, 11)


@pytest.mark.parametrize("cost", [0.0005, COST])
def test_no_band_grows_faster_than_the_solved_one(long_signal, cost):
    best = best_rule(BAR_S, 0.0015, cost)
    own = growth_of(best, long_signal, 0.0015, cost)
    assert own == pytest.approx(best.growth, rel=0.05)
    for buy in (-0.4, 0.0, 0.4):
        for sell in (-0.4, 0.0, 0.4):
            other = BandRule(best.buy_above + buy, best.sell_below + sell, 0.0)
            assert growth_of(other, long_signal, 0.0015, cost) <= own * 1.002


def test_without_costs_the_rule_follows_the_sign_of_what_holding_earns():
    rule = best_rule(BAR_S, 0.0, 0.0)
    assert rule.buy_above == pytest.approx(0.0, abs=1e-6)
    assert rule.sell_below == pytest.approx(0.0, abs=1e-6)
    assert rule.growth == pytest.approx(drift_per_signal(BAR_S) / np.sqrt(2.0 * np.pi), rel=0.01), "of E max(s, 0)"


def test_costs_beyond_what_the_signal_pays_keep_the_rule_in_cash():
    rule = best_rule(BAR_S, 0.0015, 0.2)
    assert rule.buy_above == np.inf
    assert rule.growth == pytest.approx(0.0, abs=1e-9)
