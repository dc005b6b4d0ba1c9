"""Columns belong to coins by their place, whatever the coins are called: every subset in every order, by value."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.dataset import DatasetError, coins_by_name, load_dataset, make_dataset, save_dataset
from market.describe import feature_groups
from market.venues import ALPACA
from train.study.folds import select_tickers

N_BARS, N_FEATURES, N_SHARED = 40, 3, 2
SHARED = 9_000.0
HARD = ["BTC", "BTC:X", "BTC:X:Y", "BTC/USDT:USDT", "ETH/USDT:USDT", "BTC-USD", "BTC_USD.P", "time", "BTC ", "column_0"]

separated = st.lists(st.sampled_from(["BTC", "ETH", "X", "time", "f0"]), min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from([":", "/", "-", "_", ".", " ", "::"]).map(lambda mark: mark.join(words))
)


def planted(tickers, order=None, is_explicit=True):
    """A dataset whose every value says its coin: price 1 + a, feature f of coin a 100 a + f; features in any order."""
    coins = [*(a for a in range(len(tickers)) for _ in range(N_FEATURES)), *[-1] * N_SHARED]
    values = [
        *(100.0 * a + f for a in range(len(tickers)) for f in range(N_FEATURES)),
        *(SHARED + i for i in range(N_SHARED)),
    ]
    names = [f"{ticker}:f{f}" for ticker in tickers for f in range(N_FEATURES)]
    names += [f"time:shared_{i}" for i in range(N_SHARED)]
    order = range(len(names)) if order is None else order
    names, values, coins = ([column[i] for i in order] for column in (names, values, coins))
    return make_dataset(
        price=np.tile(1.0 + np.arange(len(tickers)), (N_BARS, 1)),
        tech=np.tile(np.float32(values), (N_BARS, 1)),
        time=1_700_000_100 + 300 * np.arange(N_BARS),
        tickers=tickers,
        feature_names=names,
        bar_seconds=300,
        segments=[(0, N_BARS)],
        source="planted",
        synthetic=True,
        feature_coins=coins if is_explicit else None,
    )


def check_selection(dataset, tickers):
    """The selected columns are those of these coins, in their order; the shared ones come last."""
    places = [dataset.tickers.index(ticker) for ticker in tickers]
    selected = dataset.with_tickers(tickers)
    assert selected.price[0].tolist() == [1.0 + place for place in places]
    expected = {a: sorted(100.0 * place + f for f in range(N_FEATURES)) for a, place in enumerate(places)}
    found = {a: sorted(selected.tech[0, np.array(selected.feature_coins) == a].tolist()) for a in range(len(places))}
    assert found == expected
    assert sorted(selected.tech[0, -N_SHARED:].tolist()) == [SHARED + i for i in range(N_SHARED)]
    assert selected.tech.shape[1] == len(tickers) * N_FEATURES + N_SHARED
    assert [coin for coin in selected.feature_coins if coin >= 0] == sorted(c for c in selected.feature_coins if c >= 0)
    assert selected.venue.order_rules(selected.tickers).min_order_notional == 10.0
    assert select_tickers(dataset, list(tickers)).sha256 in (selected.sha256, dataset.sha256)
    return selected


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_subset_in_any_order_has_its_own_columns(data):
    names = st.one_of(st.sampled_from(HARD), separated).filter(lambda name: not ends_in_another_currency(name))
    tickers = data.draw(st.lists(names, min_size=1, max_size=5, unique=True))
    order = data.draw(st.permutations(range(len(tickers) * N_FEATURES + N_SHARED)))
    chosen = data.draw(st.lists(st.sampled_from(tickers), min_size=1, unique=True))
    selected = check_selection(planted(tickers, order), chosen)
    again = data.draw(st.permutations(chosen))
    twice = selected.with_tickers(again)
    assert twice.price[0].tolist() == [1.0 + tickers.index(ticker) for ticker in again]
    if "time" not in tickers and "f0" not in str(tickers):
        check_selection(planted(tickers, order, is_explicit=False), chosen)


def ends_in_another_currency(name):
    """Whether the name is a pair in BTC or ETH, which cannot stand beside coins in dollars."""
    return name.strip().endswith(("/BTC", "/ETH", "-BTC", "-ETH", "_BTC", "_ETH", ":BTC", ":ETH", " BTC", " ETH"))


@pytest.mark.parametrize("tickers", [("ETH/USDT:USDT", "BTC/USDT:USDT"), ("LTC/USDT:USDT",)])
def test_perpetuals_have_their_own_columns_and_order_rules(tickers):
    market = planted(("BTC/USDT:USDT", "ETH/USDT:USDT", "LTC/USDT:USDT"), is_explicit=False)
    selected = check_selection(market, tickers)
    coins = [ticker.partition("/")[0] for ticker in tickers]
    assert selected.env_config()["min_order_qty"].tolist() == [ALPACA.rules[coin].min_order_qty for coin in coins]


def test_the_coins_of_columns_are_kept_in_the_manifest(tmp_path):
    market = planted(("time", "BTC"))
    assert market.feature_coins != coins_by_name(market.tickers, market.feature_names)
    save_dataset(market, tmp_path / "d")
    loaded = load_dataset(tmp_path / "d")
    assert loaded.feature_coins == market.feature_coins == (0, 0, 0, 1, 1, 1, -1, -1)
    assert loaded.sha256 == market.sha256
    check_selection(loaded, ("BTC",))
    assert feature_groups(loaded) == {"f0": [0, 3], "f1": [1, 4], "f2": [2, 5], "shared_0": [6], "shared_1": [7]}


@pytest.mark.parametrize("coins", [None, [1, 0, 0, 1, 1, 1, -1, -1], [0] * 7, [0] * 7 + [2]])
def test_a_manifest_with_other_coins_of_columns_is_refused(tmp_path, coins):
    save_dataset(planted(("time", "BTC")), tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"feature_coins": coins}))
    with pytest.raises(DatasetError, match=r"edited|feature_coins"):
        load_dataset(tmp_path / "d")


def test_a_manifest_of_an_earlier_version_is_read_by_the_longest_name(tmp_path):
    market = planted(("BTC", "BTC/USDT:USDT", "ETH/USDT:USDT"))
    save_dataset(market, tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["feature_coins"]
    path.write_text(json.dumps(manifest))
    loaded = load_dataset(tmp_path / "d")
    assert loaded.feature_coins == market.feature_coins
    assert loaded.sha256 == market.sha256
    check_selection(loaded, ("ETH/USDT:USDT", "BTC"))
