"""Columns that know a later bar are found at its lag, in every form; columns of past bars are not suspected."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from market import foresight as module
from market.bars.candles import read_bars
from market.build import dataset_from_bars
from market.dataset import NO_COIN
from market.foresight import FALSE_ALARM, LEAST, TARGETS, foresight, foresight_lines, surprises
from market.lookahead_record import CLEAN, UNEXPLAINED
from market.sample import synthetic_dataset
from tests.support.lookahead_cases import LAGS, leaks, with_columns

# One bar early these still say nothing of the next return or its size: slow averages, strengths without a sign, and the
# open, which is the last close. The calendar is known in advance.
SILENT = {
    "default": {"trend_reacceleration", "day_sin", "day_cos", "week_sin", "week_cos"},
    "host": {"open", "dx", "trend_reacceleration"},
}


@pytest.fixture(scope="module")
def market():
    """70,000 bars of one coin."""
    return synthetic_dataset("5m", 70_000, ("BTC",), seed=3)


def suspicious(dataset):
    return {found.column for found in foresight(dataset) if found.is_suspicious}


def early(dataset, n_bars):
    tech = dataset.tech.copy()
    for first, last in dataset.segments:
        tech[first : last - n_bars] = tech[first + n_bars : last]
    return replace(dataset, tech=tech)


# -------------------------------------------------------------------------------------------------------- found
@pytest.mark.parametrize("lag", LAGS)
def test_a_whole_leak_is_found_in_every_form(market, lag):
    dataset = with_columns(market, leaks(market.price[:, 0], lag))
    found = {f.column.removeprefix("BTC:"): f for f in foresight(dataset)}
    assert [name for name, f in found.items() if not f.is_suspicious] == []
    # A column that changes over m bars shows the bar m - 1 bars later than it entered.
    assert {name: f.lag + f.scale - 1 for name, f in found.items() if f.lag + f.scale - 1 != lag and lag > 12} == {}
    assert {name for name, f in found.items() if f.target == TARGETS[1]} == {"volatility"}


@pytest.mark.parametrize("lag", [1, 12, 48])
def test_a_whole_leak_is_found_in_few_bars(market, lag):
    short = market.with_rows(0, 5_000)
    assert len(suspicious(with_columns(short, leaks(short.price[:, 0], lag)))) == len(leaks(short.price[:, 0], lag))


@pytest.mark.parametrize("features", ["default", "host"])
@pytest.mark.parametrize("n_bars", [1, 48])
def test_our_columns_are_found_where_they_are_early(features, n_bars):
    dataset = synthetic_dataset("5m", 5_000, ("BTC", "PEPE"), 1, features)
    assert suspicious(dataset) == set()
    missed = set(dataset.feature_names) - suspicious(early(dataset, n_bars))
    assert {name.partition(":")[2] for name in missed} <= SILENT[features]


def test_a_single_early_column_is_named():
    dataset = synthetic_dataset("5m", 3_000, ("BTC", "PEPE"), 4)
    tech = dataset.tech.copy()
    column = dataset.feature_names.index("PEPE:rsi_14")
    tech[:-48, column] = tech[48:, column]
    leaking = replace(dataset, tech=tech)
    first, second = foresight(leaking)[:2]
    assert (first.column, first.coin, first.target, first.lag) == ("PEPE:rsi_14", "PEPE", "return", 48)
    assert first.is_suspicious
    assert not second.is_suspicious
    assert "PEPE:rsi_14 correlates with the return of PEPE 48 bars later: +0." in str(first)
    lines = list(foresight_lines(foresight(leaking)))
    assert "34 columns, 1 suspicious" in lines[0]
    assert lines[1:] == [f"  {first}"]


def test_a_column_of_all_coins_is_compared_with_every_coin():
    dataset = synthetic_dataset("5m", 3_000, ("BTC", "PEPE"), 5)
    tech = leaks(dataset.price[:, 1], 12)["return"][:, None].astype(np.float32)
    leaking = replace(dataset, tech=tech, feature_names=("market",), own_coins=(NO_COIN,))
    (found,) = foresight(leaking)
    assert (found.coin, found.lag, found.is_suspicious) == ("PEPE", 12, True)


# ---------------------------------------------------------------------------------------------------- not suspected
def slow_columns(n_bars, n_columns, seed):
    """Random walks and averages of noise that know nothing, at every speed."""
    random = np.random.default_rng(seed)
    walks = np.cumsum(random.standard_normal((n_bars, n_columns)), axis=0)
    speeds = [3, 30, 300, 3_000]
    means = [pd.DataFrame(walks).diff().fillna(0.0).ewm(span=speed).mean().to_numpy() for speed in speeds]
    return np.concatenate([walks, np.sign(walks), np.exp(walks / walks.std()), *means], axis=1)


@pytest.mark.parametrize("n_bars", [2_000, 10_000, 70_000])
def test_slow_columns_are_not_suspected(market, n_bars):
    rows = market.with_rows(0, n_bars)
    columns = slow_columns(n_bars, 10, seed=n_bars)
    assert suspicious(with_columns(rows, {f"slow_{i}": column for i, column in enumerate(columns.T)})) == set()


def test_averages_of_past_bars_are_not_suspected(market):
    log_price = pd.Series(np.log(market.price[:, 0]))
    past = {"price": log_price}
    for bars in (2, 12, 48, 288, 2_016):
        past |= {
            f"return_{bars}": log_price.diff(bars),
            f"mean_{bars}": log_price.rolling(bars).mean(),
            f"volatility_{bars}": log_price.diff().rolling(bars).std(),
            f"highest_{bars}": log_price.rolling(bars).max(),
        }
    columns = {name: column.bfill().to_numpy() for name, column in past.items()}
    columns |= {name: np.where(np.arange(len(column)) < 2_016, 0.0, column) for name, column in columns.items()}
    assert suspicious(with_columns(market, columns)) == set()


def test_the_hour_of_the_day_is_not_suspected_where_volatility_has_one():
    dataset = synthetic_dataset("1h", 6_000, ("BTC",), 9)
    hour = 2.0 * np.pi * (dataset.time % 86_400) / 86_400
    moves = np.diff(np.log(dataset.price[:, 0]), prepend=np.log(dataset.price[0, 0])) * np.exp(0.8 * np.sin(hour))
    market = replace(dataset, price=np.exp(5.0 + np.cumsum(moves))[:, None])
    assert suspicious(with_columns(market, {"day_sin": np.sin(hour), "day_cos": np.cos(hour)})) == set()


def test_the_limit_is_of_all_columns_together():
    dataset = synthetic_dataset("5m", 2_000, ("BTC",), 6)
    random = np.random.default_rng(0)
    n_datasets = 60
    noise = [
        foresight(with_columns(dataset, {f"c{i}": random.standard_normal(2_000) for i in range(40)}))[0].excess
        for _ in range(n_datasets)
    ]
    assert np.mean(np.array(noise) > 1.0) <= 3 * FALSE_ALARM
    assert np.max(noise) > 0.6  # and not far from it: the limit is no larger than it has to be


@pytest.mark.parametrize("features", ["default", "host"])
def test_real_bars_give_no_false_alarm(real_bars_dir, features):
    bars = read_bars(real_bars_dir / "crypto_5m_2024-01_2024-08.parquet")
    tickers = sorted(map(str, bars["symbol"].unique()))
    dataset = dataset_from_bars(bars, tickers, "5m", source="real", features=features)
    assert suspicious(dataset) == set()


def test_real_bars_with_gaps_give_no_false_alarm(real_bars_dir):
    bars = read_bars(real_bars_dir / "crypto_1m_gappy_coinbase_2018-04.parquet")
    dataset = dataset_from_bars(bars, ("BTC/USD", "ETH/USD", "LTC/USD"), "1m", source="real")
    assert suspicious(dataset) == set()


# --------------------------------------------------------------------------------------------------------- arithmetic
def test_the_correlations_are_those_of_two_loops():
    random = np.random.default_rng(0)
    n_bars, n_lags, length = 200, 20, 225
    column, target = (random.standard_normal(n_bars).astype(np.float32) for _ in range(2))
    window = module._spectrum(np.array([1.0, 1.0, -1.0, -1.0], np.float32), length)
    change = (module._spectrum(column, length) * window)[None]
    (row,) = module._later_correlations(change, module._spectrum(target, length)[None], length, n_lags)[0]
    padded = np.concatenate([np.zeros(3), column, np.zeros(3)])
    changes = padded[3:] + padded[2:-1] - padded[1:-2] - padded[:-3]  # (n_bars + 3,)
    spread = np.sqrt((changes**2).sum() * (target**2).sum())
    by_hand = [np.dot(changes[: n_bars - lag], target[lag:]) / spread for lag in range(1, n_lags + 1)]
    np.testing.assert_allclose(row, by_hand, atol=1e-5)


def test_what_a_bar_brings_is_not_known_from_the_bars_before(market):
    for target in surprises(market, 0):
        past = [np.corrcoef(target[lag:], target[:-lag])[0, 1] for lag in (1, 2, 12, 288)]
        assert np.abs(past).max() < LEAST["return"][1]


def test_nothing_that_moves_is_no_suspicion():
    dataset = synthetic_dataset("5m", 400, ("BTC", "ETH"), 7)
    price = dataset.price.copy()
    price[:, 0] = 5.0
    tech = np.zeros_like(dataset.tech)
    assert {f.correlation for f in foresight(replace(dataset, price=price, tech=tech))} == {0.0}
    assert foresight(synthetic_dataset("5m", 40, ("BTC",), 8)) == []


def test_what_was_found_is_in_the_record(market):
    rows = market.with_rows(0, 5_000)
    clean, found = module.tested(with_columns(rows, {"walk": slow_columns(5_000, 1, 1)[:, 0]}))
    assert (clean.standing.kind, clean.record.suspects, len(found)) == (CLEAN, {}, 1)
    leaking, _ = module.tested(with_columns(rows, leaks(rows.price[:, 0], 48)))
    assert leaking.standing.kind == UNEXPLAINED
    assert len(leaking.record.suspects) == len(leaks(rows.price[:, 0], 48))
