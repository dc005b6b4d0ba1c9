"""Live bars make the columns of a data set, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from market.bars.candles import read_bars
from market.build import dataset_from_bars
from market.dataset import Dataset
from market.errors import UserError
from market.features import FEATURE_SETS
from market.sample import sample_bars, synthetic_dataset
from paper_trading.feeds import BarStore, Candle, DatasetFeed, Needs, check_columns, needed_bars

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "crypto_5m_2024-01_2024-08.parquet"
STEP = 300


def needs_of(dataset: Dataset, lookback: int = 5) -> Needs:
    return Needs(dataset.tickers, STEP, lookback, dataset.feature_set, dataset.feature_names)


def candles(table: pd.DataFrame, tickers: tuple[str, ...]) -> dict[int, dict[str, Candle]]:
    """A tidy table by open time and ticker."""
    found: dict[int, dict[str, Candle]] = {}
    opens = table["timestamp"].dt.as_unit("s").astype("int64")
    values = table[["open", "high", "low", "close", "volume"]].to_numpy()
    for open_s, symbol, row in zip(opens, table["symbol"].astype(str), values, strict=True):
        ticker = symbol.partition("/")[0]
        if ticker in tickers:
            found.setdefault(int(open_s), {})[ticker] = Candle(*map(float, row))
    return found


def check_rows(table: pd.DataFrame, dataset: Dataset, rows: list[int]) -> None:
    """A feed that saw only the bars it asks for, compared with a data set built from all of them."""
    needs = needs_of(dataset)
    every = candles(table, dataset.tickers)
    for row in rows:
        last_open = int(dataset.time[row]) - STEP
        first_open = last_open - (needed_bars(needs) - 1) * STEP
        store = BarStore(needs)
        store.add({open_s: bar for open_s, bar in every.items() if first_open <= open_s <= last_open})
        window = store.window(last_open)
        n = needs.lookback + 1
        assert len(window) >= n
        own = slice(row - n + 1, row + 1)
        np.testing.assert_array_equal(window.close_s[-n:], dataset.time[own])
        np.testing.assert_array_equal(window.price[-n:], dataset.price[own])
        np.testing.assert_array_equal(window.filled[-n:], dataset.filled[own])
        np.testing.assert_array_equal(window.tech[-n:], dataset.tech[own])


def test_live_columns_are_those_of_a_data_set_on_real_bars():
    if not REAL.is_file():
        pytest.skip("needs the real bars in ../shared/data")
    tickers = ("BTC", "ETH", "LINK", "LTC", "UNI", "AAVE", "AVAX")
    table = read_bars(REAL)
    first = table["timestamp"].min()
    table = table[table["timestamp"] < first + pd.Timedelta(days=20)]
    dataset = dataset_from_bars(table, tickers, "5m", source="real bars")
    rows = np.random.default_rng(0).integers(1_000, len(dataset.time), 60).tolist()
    check_rows(table, dataset, rows)


@pytest.mark.parametrize("features", list(FEATURE_SETS))
def test_live_columns_are_those_of_a_data_set_with_holes(features):
    tickers = ("BTC", "ETH")
    table = sample_bars("5m", 2200, tickers)
    random = np.random.default_rng(1)
    table = table[random.random(len(table)) > 0.01]  # one bar in a hundred is missing
    dataset = dataset_from_bars(table, tickers, "5m", source="s", synthetic=True, features=features)
    assert dataset.filled.any()
    assert len(dataset.segments) == 1
    # A fill is known to be one once a later bar is there; the newest bar has a test of its own.
    rows = [row for row in random.integers(1_000, len(dataset.time), 40).tolist() if not dataset.filled[row].any()]
    check_rows(table, dataset, rows)


def test_a_coin_without_a_bar_was_not_traded_for_three_bars_then_the_series_breaks():
    tickers = ("BTC", "ETH")
    dataset = synthetic_dataset(n_bars=40, tickers=tickers)
    every = candles(sample_bars("5m", 900, tickers), tickers)
    needs, opens = needs_of(dataset), sorted(every)
    store = BarStore(needs)
    store.add({open_s: every[open_s] for open_s in opens[:800]})
    last = every[opens[799]]["ETH"].close
    for n in range(1, 4):
        store.add({opens[799 + n]: {"BTC": every[opens[799 + n]]["BTC"]}})
        window = store.window(opens[799 + n])
        assert window.filled[-1].tolist() == [False, True]
        assert window.price[-1, 1] == last
        assert len(window) > needs.lookback
    store.add({opens[803]: {"BTC": every[opens[803]]["BTC"]}})
    window = store.window(opens[803])
    assert len(window) == 1
    assert window.price[-1, 1] == last
    assert window.filled[-1].tolist() == [False, True]


def test_a_revised_bar_is_named_and_used():
    dataset = synthetic_dataset(n_bars=40, tickers=("BTC", "ETH"))
    store = BarStore(needs_of(dataset))
    assert store.add({0: {"BTC": Candle(1.0, 2.0, 1.0, 2.0, 5.0)}}) == []
    assert store.add({0: {"BTC": Candle(1.0, 2.0, 1.0, 2.0, 5.0)}}) == []
    (note,) = store.add({0: {"BTC": Candle(1.0, 2.0, 1.0, 1.5, 5.0)}})
    assert "revised, close 2 -> 1.5" in note
    assert store.taken(300) == ((0, "BTC", 1.0, 2.0, 1.0, 1.5, 5.0),)
    assert store.taken(300) == ()


def test_the_store_holds_no_more_than_it_needs():
    dataset = synthetic_dataset(n_bars=40, tickers=("BTC",))
    store = BarStore(needs_of(dataset))
    for n in range(3 * needed_bars(store.needs)):
        store.add({n * STEP: {"BTC": Candle(1.0, 1.0, 1.0, 1.0, 1.0)}})
    assert len(store._bars) == needed_bars(store.needs)


def test_a_data_set_of_another_market_is_refused_by_name():
    dataset = synthetic_dataset(n_bars=40, tickers=("BTC", "ETH"))
    turned = dataset.with_tickers(("ETH", "BTC"))
    with pytest.raises(UserError, match="the deployment needs coins BTC, ETH; the dataset has ETH, BTC"):
        check_columns(needs_of(dataset), turned)


def test_a_recording_gives_one_bar_after_the_other_and_ends():
    dataset = synthetic_dataset(n_bars=40, tickers=("BTC",))
    ticks: list[float] = []
    feed = DatasetFeed(dataset, 10, 13, 0.5, lambda seconds, tick: ticks.append(seconds))
    arrival = feed.first(needs_of(dataset))
    assert feed.n_steps == 2
    seen = [arrival.window.bar_s]
    while (arrival := feed.next(seen[-1], lambda: None)) is not None:
        seen.append(arrival.window.bar_s)
    assert seen == dataset.time[10:13].tolist()
    assert ticks == [0.5, 0.5, 0.5]
