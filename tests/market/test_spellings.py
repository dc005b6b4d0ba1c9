"""Two spellings of a coin, two pairs of a coin, several currencies and renamed coins, on every way in."""

import logging

import numpy as np
import pandas as pd
import pytest

from barwise.commands.build_dataset import main as build_dataset
from market.bars.candles import read_bars, to_grid, write_bars
from market.bars.own_files import file_bars
from market.build import dataset_from_bars
from market.dataset import make_dataset
from market.errors import BarsError, DatasetError
from market.sample import sample_bars
from market.sources.binance import Binance
from market.sources.download import download
from market.sources.periods import Period

N_BARS = 600  # per coin
HALF = 300


@pytest.fixture(scope="module")
def bars():
    """Tidy real-looking bars of BTC and ETH in dollars; the symbols are text."""
    made = sample_bars("5m", N_BARS, ("BTC", "ETH"), seed=3).drop(columns="synthetic")
    return made.assign(symbol=made["symbol"].astype(str))


def renamed(bars, first, second):
    """BTC's first half of the bars under one symbol and its second half under another."""
    middle = bars["timestamp"].min() + pd.Timedelta(minutes=5 * HALF)
    is_btc, is_first = bars["symbol"] == "BTC/USD", bars["timestamp"] < middle
    return bars.assign(symbol=np.where(~is_btc, bars["symbol"], np.where(is_first, first, second)))


def written(bars, path):
    write_bars(bars, path)
    return path


@pytest.mark.parametrize(("first", "second"), [
    ("BTC/USD", "BTCUSD"), ("btc", "BTC"), ("BTC-USD", "COINBASE:BTCUSD"), ("XBTUSD", "btc_usd"),
    ("BTC/USDT:USDT", "BTC-USDT-SWAP"),
])  # fmt: skip
def test_two_spellings_of_a_pair_are_one_coin(bars, tmp_path, caplog, first, second):
    path = written(renamed(bars, first, second), tmp_path / "bars.csv")
    whole = read_bars(written(bars, tmp_path / "whole.csv"))
    with caplog.at_level(logging.WARNING, "market"):
        grid = to_grid(read_bars(path), ["BTC", "ETH"], "bars.csv")
    expected = to_grid(whole, ["BTC", "ETH"], "whole.csv")
    assert np.array_equal(grid.close, expected.close)
    assert grid.tickers == ("BTC", "ETH")
    for text in (f"{first} ({HALF} bars)", f"{second} ({HALF} bars)", "which are spellings of one pair"):
        assert text in caplog.text
    joined = file_bars([path], ["BTC", "ETH"])
    assert len(joined) == 2 * N_BARS


def test_spellings_in_two_files_are_joined(bars, tmp_path):
    halves = renamed(bars, "BTC/USD", "BTCUSD")
    first = written(halves[halves["symbol"] != "BTCUSD"], tmp_path / "a.csv")
    second = written(halves[halves["symbol"] == "BTCUSD"], tmp_path / "b.csv")
    assert file_bars([first, second])["symbol"].value_counts().to_dict() == {"BTC/USD": N_BARS, "ETH/USD": N_BARS}


def test_spellings_that_say_the_same_bar_twice_keep_it_once_and_those_that_differ_are_refused(bars, tmp_path):
    copies = bars[bars["symbol"] == "BTC/USD"].head(40).assign(symbol="BTCUSD")
    same = read_bars(written(pd.concat([bars, copies]), tmp_path / "same.csv"))
    assert len(same) == 2 * N_BARS
    other = copies.assign(volume=copies["volume"] + 1.0)
    with pytest.raises(
        BarsError, match=r"BTC/USD \(600 bars\) and BTCUSD \(40 bars\) .* 40 bars at the same time differ"
    ):
        read_bars(written(pd.concat([bars, other]), tmp_path / "other.csv"))


def test_a_coins_other_pair_is_named_with_its_rows(bars, tmp_path, caplog):
    both = pd.concat([bars, bars[bars["symbol"] == "BTC/USD"].assign(symbol="BTC/USDT")])
    with caplog.at_level(logging.WARNING, "market"):
        to_grid(read_bars(written(both, tmp_path / "bars.csv")), ["BTC", "ETH"], "bars.csv")
    assert "using BTC/USD, dropping BTC/USDT: BTC/USD (600 bars), BTC/USDT (600 bars)" in caplog.text


def test_two_pairs_of_a_coin_are_both_kept_where_all_symbols_are(bars, tmp_path, caplog):
    both = pd.concat([bars, bars[bars["symbol"] == "BTC/USD"].assign(symbol="BTC/USDT")])
    with caplog.at_level(logging.WARNING, "market"):
        longer = file_bars([written(both, tmp_path / "bars.csv")], None, "15m")
    assert set(longer["symbol"]) == {"BTC/USD", "BTC/USDT", "ETH/USD"}
    assert "dropping" not in caplog.text


def test_a_file_of_a_pair_without_a_mark_is_read_under_the_name_that_says_what_it_is(bars, tmp_path):
    path = written(renamed(bars, "METISBTC", "METISBTC"), tmp_path / "bars.csv")
    assert set(file_bars([path], ["METIS/BTC"], "15m")["symbol"]) == {"METIS/BTC"}
    assert to_grid(read_bars(path), ["METISBTC/USD", "ETH"], "bars.csv").tickers == ("METISBTC/USD", "ETH")
    for door in (lambda: file_bars([path], ["METISBTC"]), lambda: to_grid(read_bars(path), ["METISBTC"], "bars.csv")):
        with pytest.raises(BarsError, match="write METISBTC/USD or METIS/BTC"):
            door()


def test_a_coin_that_goes_on_in_another_pair_is_refused_with_both_on_every_way_in(bars, tmp_path, capsys):
    path = written(renamed(bars, "BTC", "BTCUSDT"), tmp_path / "bars.csv")
    message = r"BTC.* \(300 bars\) and .*BTC.* \(300 bars\) are both BTC and do not overlap; pass"
    read = read_bars(path)
    for door in (lambda t: to_grid(read, t, "bars.csv"), lambda t: file_bars([path], t)):
        with pytest.raises(BarsError, match=message):
            door(["BTC/USD", "ETH"])
        door(["BTCUSDT", "ETH"])
    assert build_dataset(["--bars", str(path), "--tickers", "BTC/USD", "ETH", "--out", str(tmp_path / "o")]) == 2
    assert "do not overlap" in capsys.readouterr().err


def test_a_perpetual_and_its_spot_pair_are_never_joined(bars, tmp_path):
    path = written(renamed(bars, "BTC/USDT:USDT", "BTC/USDT"), tmp_path / "bars.csv")
    with pytest.raises(BarsError, match="do not overlap"):
        to_grid(read_bars(path), ["BTC", "ETH"], "bars.csv")
    only = read_bars(path).query("symbol == 'BTC/USDT:USDT'")
    dataset = dataset_from_bars(only, ["BTC"], "5m", source="bars.csv", features="host")
    assert any("perpetual contract, traded here as BTC/USDT" in line for line in dataset.quality["warnings"])
    assert dataset.env_config()["min_order_qty"] == dataset.venue.rules["BTC"].min_order_qty
    assert dataset.venue.order_rules(dataset.tickers).min_order_notional == 10.0


def test_currencies_are_never_mixed_on_any_way_in(bars, tmp_path):
    table = bars.assign(symbol=bars["symbol"].replace({"BTC/USD": "BTCUSDT", "ETH/USD": "ETHBTC"}))
    path = written(table, tmp_path / "bars.csv")
    tickers, message = ["BTC", "ETHBTC"], "mix the currencies BTC, USD"
    with pytest.raises(BarsError, match=message):
        to_grid(read_bars(path), tickers, "bars.csv")
    with pytest.raises(BarsError, match=message):
        file_bars([path], tickers)
    with pytest.raises(BarsError, match="unknown ticker ETH; available: BTCUSDT, ETHBTC"):
        to_grid(read_bars(path), ["BTC", "ETH"], "bars.csv")
    alone = to_grid(read_bars(path), ["ETHBTC"], "bars.csv")
    assert alone.tickers == ("ETH/BTC",)
    parts = {
        "price": np.ones((50, 2)),
        "tech": np.zeros((50, 2), np.float32),
        "time": 1_700_000_100 + 300 * np.arange(50),
    }
    parts |= {"bar_seconds": 300, "segments": [(0, 50)], "source": "made by hand", "synthetic": True}
    with pytest.raises(DatasetError, match=message):
        make_dataset(tickers=("BTCUSDT", "ETHBTC"), feature_names=("BTCUSDT:x", "ETHBTC:x"), **parts)


def test_currencies_are_not_mixed_in_a_download():
    start = pd.Timestamp("2024-01-01", tz="UTC").to_pydatetime()
    period = Period(start, start.replace(day=3))
    with pytest.raises(BarsError, match="mix the currencies BTC, USD"):
        download(Binance("5m"), ["BTC", "ETH/BTC"], "5m", period, lambda done, total: None, None)


def test_coins_that_never_overlap_are_named_with_their_dates(bars, tmp_path):
    path = written(renamed(bars, "MATIC/USD", "POL/USD"), tmp_path / "bars.csv")
    with pytest.raises(BarsError) as caught:
        dataset_from_bars(read_bars(path), ["ETH", "MATIC", "POL"], "5m", source="bars.csv")
    opens = bars["timestamp"].drop_duplicates().sort_values()
    last, first = (f"{opens.iloc[i]:%Y-%m-%d %H:%M}" for i in (HALF - 1, HALF))
    assert f"MATIC ends {last} and POL begins {first}, so no bar has both" in str(caught.value)
    assert "use one symbol for all its bars" in str(caught.value)
    one_name = read_bars(path).assign(symbol=lambda t: t["symbol"].astype(str).replace("MATIC/USD", "POL/USD"))
    joined = dataset_from_bars(
        read_bars(written(one_name, tmp_path / "pol.csv")), ["ETH", "POL"], "5m", source="pol.csv", features="host"
    )
    assert joined.quality["used_bars"] == len(joined.time) > HALF
