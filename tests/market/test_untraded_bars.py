"""Bars in which nobody traded: left out of the file or written flat without volume, no order fills in them."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca
from market.bars.candles import fill_gaps, read_bars, tidy_bars, to_grid
from market.build import dataset_from_bars
from market.describe import quality_lines
from market.sample import sample_bars

COINS = ("BTC", "ETH")
PRICES = ["open", "high", "low", "close"]
N_BARS = 1_500


def market(seed=0, n_bars=N_BARS):
    """5-minute bars of two coins, coin by coin, all with volume."""
    return sample_bars("5m", n_bars, COINS, seed=seed).drop(columns="synthetic")


def spelled(bars, is_hole, is_written):
    """Bars without those of `is_hole`; where `is_written`, a flat bar of volume 0 at the last close stands in place."""
    bars, hole = bars.copy(), is_hole.copy()
    last_close = bars["close"].where(~hole).groupby(bars["symbol"], observed=True).ffill()
    written = hole & is_written & last_close.notna().to_numpy()
    for name in PRICES:
        bars.loc[written, name] = last_close[written]
    bars.loc[written, "volume"] = 0.0
    return tidy_bars(bars[~hole | written], "t")


def holes(rng, n_bars=N_BARS):
    """(2 n_bars,) bool: a few runs of 1 to 9 bars in each coin, none at its end."""
    is_hole = np.zeros((2, n_bars), dtype=bool)
    for coin in is_hole:
        for first in rng.integers(1, n_bars - 10, rng.integers(1, 5)):
            coin[first : first + rng.integers(1, 10)] = True
    return is_hole.ravel()


def built(bars, **options):
    return dataset_from_bars(bars, COINS, options.pop("timeframe", "5m"), source="t", **options)


def simulated(dataset, seed=3):
    """States and filled coins of 12 accounts under random actions, to the end of their segments."""
    env_params = {"rules": "standard", "lookback": 2}
    env = VectorizedCryptoEnvAlpaca(dataset.env_config(), env_params, 12, seed=seed, device="cpu", start="stratified")
    rng, found = np.random.default_rng(seed), [env.reset().numpy()]
    for _ in range(60):
        state, reward, *_ = env.step(rng.uniform(-1, 1, (12, 2)))
        found += [state.numpy(), reward.numpy(), env.filled.numpy(), env.time.numpy()]
    return found


@given(seed=st.integers(0, 10_000), timeframe=st.sampled_from(["5m", "15m"]))
@settings(max_examples=12, deadline=None)
def test_all_spellings_of_a_hole_that_is_filled_make_the_same_dataset_and_the_same_fills(seed, timeframe):
    rng = np.random.default_rng(seed)
    bars, is_hole = market(seed), holes(rng)
    ways = (False, True, rng.random(len(bars)) < 0.5)
    made = [built(spelled(bars, is_hole, way), timeframe=timeframe, max_fill_bars=20) for way in ways]
    left_out = made[0]
    for other in made[1:]:
        assert other.segments == left_out.segments
        for name, array in left_out.arrays.items():
            assert array.tobytes() == other.arrays[name].tobytes(), name
    for one, other in zip(simulated(left_out), simulated(made[1]), strict=True):
        np.testing.assert_array_equal(one, other)


@given(seed=st.integers(0, 10_000), max_fill_bars=st.integers(0, 12))
@settings(max_examples=12, deadline=None)
def test_every_flat_bar_without_volume_is_a_filled_bar_however_long_the_run(seed, max_fill_bars):
    rng = np.random.default_rng(seed)
    bars, is_hole = market(seed), holes(rng)
    is_hole[-rng.integers(1, 400) :] = True  # ETH is delisted
    made = built(spelled(bars, is_hole, True), max_fill_bars=max_fill_bars)
    assert (len(made.segments), len(made.time)) == (1, N_BARS - 256)
    np.testing.assert_array_equal(made.filled, is_hole.reshape(2, -1).T[256:])
    report = made.quality["tickers"]["ETH"]
    assert report["repeated_bars"] == report["filled_bars"] == is_hole[N_BARS:].sum()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None)
def test_a_bar_without_volume_is_flagged_keeps_its_price_and_fills_no_order(seed):
    rng, bars = np.random.default_rng(seed), market(seed)
    is_zero = rng.random(len(bars)) < 0.3
    made = built(tidy_bars(bars.assign(volume=bars["volume"].where(~is_zero, 0.0)), "t"))
    close = bars["close"].to_numpy().reshape(2, -1).T[-len(made.time) :]
    is_flat = (bars["high"] == bars["low"]).to_numpy().reshape(2, -1).T[-len(made.time) :]
    assert not is_flat.any()  # of the sample market
    np.testing.assert_array_equal(made.price, close)
    np.testing.assert_array_equal(made.filled, is_zero.reshape(2, -1).T[-len(made.time) :])
    config = made.env_config()
    env = VectorizedCryptoEnvAlpaca(config, {"rules": "standard", "lookback": 1}, 8, seed=seed, device="cpu")
    env.reset()
    n_filled = 0
    for _ in range(50):
        env.step(rng.uniform(-1, 1, (8, 2)))
        at = env.time.numpy()
        assert not env.filled.numpy()[made.filled[at]].any()
        n_filled += int((env.filled.numpy() != 0).sum())
    assert n_filled > 100


def test_a_delisted_coins_tail_is_no_market():
    is_hole = np.zeros(2 * N_BARS, dtype=bool)
    is_hole[-400:] = True  # the end of ETH
    flat, left_out = (built(spelled(market(), is_hole, way)) for way in (True, False))
    assert len(left_out.time) == N_BARS - 256 - 400
    assert len(flat.time) == N_BARS - 256
    assert flat.filled[-400:, 1].all()
    assert int(flat.filled.sum()) == 400
    report = flat.quality["tickers"]["ETH"]
    assert (report["repeated_bars"], report["zero_volume_bars"], report["bars"]) == (400, 400, N_BARS)
    assert "ETH: 400 of 1500 bars repeat the last close without volume; no order fills in them" in str(flat.quality)
    assert any("repeated" in line for line in quality_lines(flat))


def test_zeros_in_place_of_all_volumes_say_nothing():
    """Nobody knows then; of a coin that has volumes, a volume of 0 is known."""
    bars, is_hole = market(), np.zeros(2 * N_BARS, dtype=bool)
    is_hole[700:720] = is_hole[N_BARS + 1_000 : N_BARS + 1_020] = True
    written = spelled(bars, is_hole, True)
    assert built(written).quality["tickers"]["ETH"]["repeated_bars"] == 20
    unknown = built(written.assign(volume=written["volume"].where(written["symbol"] == "BTC/USD", 0.0)))
    assert "repeated_bars" not in unknown.quality["tickers"]["ETH"]
    assert unknown.quality["tickers"]["BTC"]["repeated_bars"] == 20
    assert not unknown.filled[:, 1].any()


def hourly(*bars):
    """A grid of one coin from (open, high, low, close, volume) an hour."""
    names = ["open", "high", "low", "close", "volume"]
    table = pd.DataFrame(bars, columns=names).assign(symbol="BTC/USD")
    return to_grid(tidy_bars(table.assign(timestamp=1_704_067_200 + 3_600 * np.arange(len(bars))), "t"), ["BTC"], "t")


def test_only_a_flat_bar_at_the_last_close_repeats_it():
    trade, flat, moved, wick = (5, 6, 4, 5, 1.0), (5, 5, 5, 5, 0.0), (7, 7, 7, 7, 0.0), (5, 5.1, 5, 5, 0.0)
    grid = hourly(flat, trade, flat, (5, 5, 5, 5, 2.0), moved, (7, 7, 7, 7, 0.0), wick, flat, trade, flat)
    assert grid.untraded[:, 0].tolist() == [False, False, True, False, True, True, True, True, False, True]
    made = fill_gaps(grid, 3)
    #  before the first volume nobody knows; `moved` and `wick` are prices
    assert made.filled[:, 0].tolist() == [False, False, True, False, False, True, False, True, False, True]
    assert not made.missing.any()


def test_the_minutes_without_trades_of_a_real_file(real_bars_dir):
    bars = read_bars(real_bars_dir / "crypto_1m_gappy_coinbase_2018-04.parquet")
    left_out = bars[bars["symbol"] == "BTC/USD"].astype({"symbol": str})
    times = pd.date_range(left_out["timestamp"].min(), left_out["timestamp"].max(), freq="1min", name="timestamp")
    whole = left_out.set_index("timestamp").reindex(times)
    minutes = whole.index[whole["close"].isna()]
    whole["close"] = whole["close"].ffill()
    whole = whole.fillna({"symbol": "BTC/USD", "volume": 0.0} | dict.fromkeys(PRICES, whole["close"]))
    flat = dataset_from_bars(tidy_bars(whole.reset_index(), "t"), ["BTC"], "1m", source="t")
    before = dataset_from_bars(tidy_bars(left_out, "t"), ["BTC"], "1m", source="t", max_fill_bars=500)
    is_one = np.isin(flat.time, minutes.as_unit("s").asi8 + 60)
    assert (len(minutes), int(is_one.sum()), int(flat.filled.sum())) == (433, 433, 433)
    assert flat.filled[is_one].all()
    report = flat.quality["tickers"]["BTC"]
    assert (report["repeated_bars"], report["filled_bars"], report["missing_bars"]) == (433, 433, 0)
    for name, array in before.arrays.items():
        assert array.tobytes() == flat.arrays[name].tobytes(), name


def test_volumes_that_begin_later_say_nothing_of_the_bars_before():
    """A bar's mark does not depend on later bars."""
    bars = market()
    begins = bars["timestamp"].unique()[900]
    late = bars.assign(volume=bars["volume"].where((bars["symbol"] == "BTC/USD") | (bars["timestamp"] >= begins), 0.0))
    assert not to_grid(tidy_bars(late, "t"), COINS, "t").untraded.any()
