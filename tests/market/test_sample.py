import time

import numpy as np
import pandas as pd
import pytest

from market.bars.candles import PRICES, tidy_bars, to_grid
from market.errors import BarsError
from market.names import DEFAULT_TICKERS, TIMEFRAME_SECONDS
from market.sample import _shock_log_mean, sample_bars, synthetic_dataset

TICKERS = ("BTC", "ETH", "PEPE", "NOSUCHCOIN")


@pytest.fixture(scope="module")
def log_returns():
    grid = to_grid(sample_bars("5m", 60_000, TICKERS, seed=0), TICKERS, "sample")
    return np.diff(np.log(grid.close), axis=0)


def test_the_same_arguments_give_the_same_bars_and_another_seed_others():
    first, again, other = (sample_bars("5m", 200, TICKERS, seed) for seed in (4, 4, 5))
    pd.testing.assert_frame_equal(first, again)
    assert not np.array_equal(first["close"], other["close"])
    assert synthetic_dataset("5m", 64, TICKERS, 4).sha256 == synthetic_dataset("5m", 64, TICKERS, 4).sha256


def test_a_coins_path_does_not_depend_on_its_companions():
    together, alone = sample_bars("5m", 200, TICKERS, 1), sample_bars("5m", 200, ("ETH",), 1)
    assert together.loc[together["symbol"] == "ETH/USD", "close"].tolist() == alone["close"].tolist()


@pytest.mark.parametrize("timeframe", TIMEFRAME_SECONDS)
def test_any_timeframe_passes_the_checks_of_real_bars(timeframe):
    bars = sample_bars(timeframe, 300, TICKERS, 2)
    tidy = tidy_bars(bars, "sample")
    grid = to_grid(tidy, TICKERS, "sample")
    assert grid.bar_seconds == TIMEFRAME_SECONDS[timeframe]
    assert len(grid.time) == 300
    assert not grid.missing.any()
    assert (np.diff(np.log(grid.close), axis=0).std(axis=0) > 0).all()


def test_the_next_bar_opens_at_the_last_close():
    bars = sample_bars("5m", 100, ("BTC",))
    assert bars["open"].to_numpy()[1:].tolist() == bars["close"].to_numpy()[:-1].tolist()
    assert bars.loc[0, "open"] == pytest.approx(60_000.0)


def test_seven_coins_and_seventy_thousand_bars_take_seconds():
    began = time.perf_counter()
    dataset = synthetic_dataset("5m", 70_000, DEFAULT_TICKERS)
    assert time.perf_counter() - began < 5.0
    assert dataset.price.shape == (70_000, 7)
    assert dataset.tech.shape == (70_000, 109)
    assert dataset.synthetic


def test_prices_span_pepe_to_bitcoin():
    last = sample_bars("5m", 10, TICKERS).groupby("symbol", observed=True)["close"].last()
    assert last["PEPE/USD"] < 1e-4
    assert last["BTC/USD"] > 1e4


def test_decades_of_daily_bars_stay_numbers():
    bars = sample_bars("1d", 30_000, ("BTC", "PEPE"), start="2010-01-01")
    values = bars[[*PRICES, "volume"]].to_numpy()
    assert np.isfinite(values).all()
    assert (values > 0).all()
    tidy_bars(bars, "sample")


def test_returns_have_fat_tails_and_jumps(log_returns):
    assert (pd.DataFrame(log_returns).kurt() > 5.0).all()
    assert (np.abs(log_returns).max(axis=0) > 8.0 * log_returns.std(axis=0)).all()


def test_volatility_clusters_and_returns_do_not_predict(log_returns):
    for column in pd.DataFrame(log_returns).items():
        returns = column[1]
        assert abs(returns.autocorr(1)) < 0.03
        assert returns.abs().autocorr(1) > 0.1
        assert returns.abs().autocorr(288) > 0.03


@pytest.fixture(scope="module")
def simple_returns():
    """(seeds, coins, bars) of two years of daily bars, close over open."""
    frames = [sample_bars("1d", 730, DEFAULT_TICKERS, seed) for seed in range(150)]
    return np.stack([(bars["close"] / bars["open"] - 1.0).to_numpy().reshape(7, 730) for bars in frames])


def standard_errors_from_zero(by_seed):
    return abs(by_seed.mean()) / (by_seed.std() / np.sqrt(len(by_seed)))


def test_holding_earns_nothing_on_average(simple_returns):
    assert standard_errors_from_zero(simple_returns.mean(axis=(1, 2))) < 3.0


def test_a_volatile_coin_or_time_pays_no_more_than_a_calm_one(simple_returns):
    n_days = 30
    days = np.lib.stride_tricks.sliding_window_view(simple_returns**2, n_days, axis=2)
    known = days.mean(axis=3)[:, :, :-1]  # variance of the month before each bar
    following = simple_returns[:, :, n_days:]
    assert standard_errors_from_zero(((known - known.mean()) * following).mean(axis=(1, 2))) < 3.0


@pytest.mark.parametrize("spread", [0.01, 0.1, 1.0])
def test_the_mean_of_a_clipped_shock_is_exact(spread):
    shocks = np.random.default_rng(0).standard_t(5.0, 1_000_000) / np.sqrt(5.0 / 3.0)
    paid = np.exp(np.clip(spread * np.concatenate([shocks, -shocks]), -0.5, 0.5))
    expected = np.exp(_shock_log_mean(np.array([spread]))[0])
    assert abs(paid.mean() - expected) < 3.0 * (paid[:1_000_000] + paid[1_000_000:]).std() / 2.0 / 1_000.0


def test_coins_move_together(log_returns):
    correlation = np.corrcoef(log_returns.T)
    assert (correlation[np.triu_indices(4, 1)] > 0.25).all()
    assert correlation[0, 1] > 0.6


def test_yearly_volatility_is_that_of_a_large_coin(log_returns):
    yearly = log_returns.std(axis=0) * np.sqrt(365 * 288)
    assert 0.3 < yearly[0] < 1.2


def test_volume_rises_with_the_size_of_the_move():
    bars = sample_bars("5m", 20_000, ("BTC",), 6)
    move = np.abs(np.log(bars["close"] / bars["open"]))
    assert np.corrcoef(np.log(bars["volume"]), move)[0, 1] > 0.3
    assert (bars["volume"] > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("7m", 10), "unknown timeframe '7m'"), (("5m", 0), "at least 1"), (("1d", 10**6), "use fewer bars")],
)
def test_impossible_samples_are_refused(arguments, message):
    with pytest.raises(BarsError, match=message):
        sample_bars(*arguments)
