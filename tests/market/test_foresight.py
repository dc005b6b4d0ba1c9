"""Columns one bar early go with the next return; columns in time do not."""

from dataclasses import replace

import numpy as np
import pytest
from train.lookahead.foresight import Foresight, foresight, foresight_lines

from market.bars.candles import read_bars
from market.build import dataset_from_bars
from market.sample import synthetic_dataset

# No bar early in these goes with the next return or its size: slow averages, strengths without a sign, and the open,
# which is the last close. The calendar is known in advance.
SILENT = {
    "default": {"trend_reacceleration", "day_sin", "day_cos", "week_sin", "week_cos"},
    "host": {"open", "high", "low", "macd_signal", "dx", "trend_reacceleration", "volume"},
}


def suspicious(dataset):
    return {found.column for found in foresight(dataset) if found.is_suspicious()}


def one_bar_early(dataset):
    tech = dataset.tech.copy()
    for first, last in dataset.segments:
        tech[first : last - 1] = tech[first + 1 : last]
    return replace(dataset, tech=tech)


@pytest.mark.parametrize("features", ["default", "host"])
@pytest.mark.parametrize("seed", range(3))
def test_the_sample_market_is_clean_and_its_columns_one_bar_early_are_found(features, seed):
    dataset = synthetic_dataset("5m", 3_000, ("BTC", "PEPE"), seed, features)
    assert suspicious(dataset) == set()
    missed = set(dataset.feature_names) - suspicious(one_bar_early(dataset))
    assert {name.partition(":")[2] for name in missed} <= SILENT[features]


def test_a_single_early_column_is_named():
    dataset = synthetic_dataset("5m", 1_500, ("BTC", "PEPE"), 4)
    tech = dataset.tech.copy()
    column = dataset.feature_names.index("PEPE:rsi_14")
    tech[:-1, column] = tech[1:, column]
    leaking = replace(dataset, tech=tech)
    assert suspicious(leaking) == {"PEPE:rsi_14"}
    first = foresight(leaking)[0]
    assert (first.column, first.coin) == ("PEPE:rsi_14", "PEPE")
    assert abs(first.forward) > 0.2 > abs(first.backward)
    assert first.z > 6
    assert "1 suspicious" in next(foresight_lines(foresight(leaking)))


@pytest.mark.parametrize("file", ["crypto_5m_2024-01_2024-08.parquet", "crypto_1m_gappy_coinbase_2018-04.parquet"])
@pytest.mark.parametrize("features", ["default", "host"])
def test_real_bars_give_no_false_alarm(real_bars_dir, file, features):
    is_minute = "1m" in file
    bars = read_bars(real_bars_dir / file)
    tickers = ("BTC/USD", "ETH/USD", "LTC/USD") if is_minute else ("BTC", "LTC", "PEPE")
    dataset = dataset_from_bars(bars, tickers, "1m" if is_minute else "5m", source="real", features=features)
    assert suspicious(dataset) == set()


def test_hand_computed_correlations():
    # The value is the next return itself: ranks agree throughout, and every other bar rises.
    dataset = synthetic_dataset("5m", 400, ("BTC",), 5)
    next_return = np.diff(np.log(dataset.price[:, 0]), append=0.0).astype(np.float32)
    leaking = replace(dataset, tech=next_return[:, None], feature_names=("BTC:next",))
    found = next(f for f in foresight(leaking) if f.form == "value" and f.target == "return")
    assert found.forward == pytest.approx(1.0, abs=1e-6)
    assert found.n_rows == 398


def test_a_segment_without_neighbours_is_no_evidence():
    dataset = synthetic_dataset("5m", 40, ("BTC",), 6)
    assert foresight(replace(dataset, segments=tuple((i, i + 2) for i in range(0, 40, 2)))) == []
    few = Foresight("x", "value", "BTC", "return", 0.9, 0.0, 3)
    assert few.z == 0.0
    assert not few.is_suspicious()
