from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.build import dataset_from_bars
from market.candles import PRICES, read_bars, to_grid
from market.errors import BarsError
from market.features import CLIP, FEATURES, WARMUP_BARS, CoinBars, coin_features, feature_names, segment_features
from market.names import DEFAULT_TICKERS
from market.sample import sample_bars

N_BARS = 400


def market(seed=0, n_bars=N_BARS, tickers=("BTC", "PEPE")):
    """(open, high, low, close, volume), each (T, A)."""
    grid = to_grid(sample_bars("5m", n_bars, tickers, seed), tickers, "sample")
    return [grid.open, grid.high, grid.low, grid.close, grid.volume]


def features(columns):
    return segment_features(*columns, bar_seconds=300)


def is_causal(compute, columns, cut):
    """No row before `cut` changes when every later bar is scrambled or cut off."""
    rng = np.random.default_rng(cut)
    scrambled = [column.copy() for column in columns]
    for column in scrambled:
        column[cut:] *= rng.uniform(0.2, 5.0, (1, column.shape[1]))
    n_rows = cut - WARMUP_BARS
    full = compute(columns)[:n_rows]
    same_after_scrambling = np.array_equal(full, compute(scrambled)[:n_rows])
    return same_after_scrambling and np.array_equal(full, compute([column[:cut] for column in columns]))


def test_eleven_named_features_per_coin():
    assert len(FEATURES) == 11
    names = feature_names(DEFAULT_TICKERS)
    assert len(names) == 77
    assert names[0] == "AAVE:log_return_1"
    assert names[11] == "AVAX:log_return_1"


@given(seed=st.integers(0, 50), cut=st.integers(WARMUP_BARS + 1, N_BARS - 1))
@settings(max_examples=25, deadline=None)
def test_a_row_is_a_function_of_the_rows_up_to_it(seed, cut):
    assert is_causal(features, market(seed), cut)


def test_a_planted_leak_is_found():
    def leaking(columns):
        out = features(columns)
        out[:-1, 0] = out[1:, 0]
        return out

    assert not is_causal(leaking, market(), 250)


def test_one_coin_does_not_change_another():
    columns = market()
    changed = [column * np.array([1.0, 3.0]) for column in columns]
    alone = [column[:, :1] for column in columns]
    np.testing.assert_array_equal(features(changed)[:, :11], features(columns)[:, :11])
    np.testing.assert_array_equal(features(alone), features(columns)[:, :11])


@pytest.mark.parametrize("scale", [1e-4, 0.37, 1e6])
def test_features_do_not_depend_on_the_unit_of_price_or_volume(scale):
    open_, high, low, close, volume = market()
    scaled = [column * scale for column in (open_, high, low, close)]
    np.testing.assert_allclose(
        features([*scaled, volume / scale]), features([open_, high, low, close, volume]), atol=1e-4
    )


def hostile(name):
    open_, high, low, close, volume = market(seed=2, tickers=("BTC",))
    if name == "constant":
        return [np.ones_like(close) * 5.0] * 4 + [np.zeros_like(close)]
    if name == "flat after trading":
        for column in (open_, high, low, close):
            column[150:] = close[149]
        volume[150:] = 0.0
    if name == "tick of the smallest price":
        return [np.round(c / close[0] * 8) * 1e-8 for c in (open_, high, low, close)] + [volume]
    if name == "jump by a thousand":
        for column in (open_, high, low, close):
            column[200:] *= 1_000.0
    if name == "huge volume":
        volume[200] = 1e300
    return [open_, high, low, close, volume]


@pytest.mark.parametrize(
    "name", ["constant", "flat after trading", "tick of the smallest price", "jump by a thousand", "huge volume"]
)
def test_hostile_markets_give_finite_clipped_features(name):
    out = features(hostile(name))
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert np.abs(out).max() <= CLIP


def test_a_flat_market_is_neutral():
    names = list(FEATURES)
    out = features(hostile("constant"))
    neutral = [name for name in names if name != "volatility"]
    np.testing.assert_array_equal(out[:, [names.index(name) for name in neutral]], 0.0)


def test_a_segment_no_longer_than_the_warm_up_has_no_rows():
    short = [column[:WARMUP_BARS] for column in market()]
    assert features(short).shape == (0, 22)


def test_hand_computed_values():
    # A log price that rises by a fixed step in even bars and stands in odd ones; volume doubles at the last bar.
    n_bars = 161
    log_close = 0.01 * np.repeat(np.arange(n_bars), 2)[:n_bars]
    close = np.exp(log_close)
    volume = np.ones(n_bars)
    volume[-1] = 2.0
    coin = CoinBars(close, close, close, close, volume, bar_seconds=300)
    out = dict(zip(FEATURES, coin_features(coin)[-1], strict=True))
    spread = 0.005 * np.sqrt(96 / 95)  # of 48 returns of 0.01 and 48 of 0
    assert log_close[-1] - log_close[-2] == pytest.approx(0.01)
    assert out["log_return_1"] == pytest.approx(0.01 / spread, rel=1e-5)
    assert out["log_return_12"] == pytest.approx(0.06 / (spread * np.sqrt(12)), rel=1e-5)
    assert out["volatility"] == pytest.approx(2 * np.log(spread * np.sqrt(365 * 288) / 0.8), rel=1e-5)
    assert out["volume_ratio"] == pytest.approx((2 - 1) / (2 + 1) / 0.33, rel=1e-5)
    assert out["channel_position"] == pytest.approx(1 / 0.6, rel=1e-5)
    assert out["rsi_14"] == pytest.approx(1 / 0.22, rel=1e-5)
    assert out["direction_14"] == pytest.approx(1 / 0.3, rel=1e-5)


def test_bars_before_the_warm_up_hardly_matter():
    columns = market(seed=5, n_bars=1_500)
    full, late = features(columns), features([column[700:] for column in columns])
    difference = np.abs(full[700:] - late)
    assert difference.max() < 0.02  # of a spread near 1, at the worst row
    assert difference.mean() < 1e-4


@pytest.fixture(scope="module")
def real_features(real_bars_dir):
    bars = read_bars(real_bars_dir / "crypto_5m_2024-01_2024-08.parquet")
    return dataset_from_bars(bars, [*DEFAULT_TICKERS, "PEPE", "SHIB"], "5m", source="real").tech


def test_on_real_bars_every_feature_is_finite_centred_and_spread_near_one(real_features):
    assert np.isfinite(real_features).all()
    spread = real_features.std(axis=0, dtype=np.float64)
    assert ((spread > 0.5) & (spread < 2.0)).all()
    assert (np.abs(real_features.mean(axis=0, dtype=np.float64)) < 1.5).all()
    assert (np.abs(real_features) >= CLIP).mean() < 1e-4


def test_real_prefixes_give_the_same_rows(real_bars_dir):
    bars = read_bars(real_bars_dir / "crypto_5m_2024-01_2024-08.parquet")
    grid = to_grid(bars, ["BTC", "PEPE"], "real")
    columns = [getattr(grid, name)[:5_000] for name in (*PRICES, "volume")]
    assert all(is_causal(features, columns, cut) for cut in (129, 1_000, 2_345, 4_999))


# ---------------------------------------------------------------------------------------------- the pipeline


def test_rows_are_usable_bars_with_closing_times(bars):
    dataset = dataset_from_bars(bars, ["ETH", "BTC/USD"], "5m", source="sample", synthetic=True)
    grid = to_grid(bars, ["ETH", "BTC"], "sample")
    assert dataset.price.tolist() == grid.close[WARMUP_BARS:].tolist()
    assert dataset.time.tolist() == (grid.time[WARMUP_BARS:] + 300).tolist()
    assert dataset.segments == ((0, 600 - WARMUP_BARS),)
    assert dataset.feature_names[11] == "BTC:log_return_1"


def test_row_i_of_the_features_belongs_to_row_i_of_the_prices(bars):
    dataset = dataset_from_bars(bars, ["ETH", "BTC"], "5m", source="sample")
    for a, ticker in enumerate(dataset.tickers):
        last_return = dataset.tech[1:, dataset.feature_names.index(f"{ticker}:log_return_1")]
        assert (np.sign(last_return) == np.sign(np.diff(dataset.price[:, a]))).all()


def test_a_gap_splits_segments_and_each_has_its_own_warm_up(bars):
    stamps = sorted(bars["timestamp"].unique())
    holed = bars[~((bars["symbol"] == "BTC/USD") & bars["timestamp"].isin(stamps[300:310]))]
    dataset = dataset_from_bars(holed, ["BTC", "ETH"], "5m", source="sample")
    first, second = 300 - WARMUP_BARS, 600 - 310 - WARMUP_BARS
    assert dataset.segments == ((0, first), (first, first + second))
    alone = dataset_from_bars(bars[bars["timestamp"] >= stamps[310]], ["BTC", "ETH"], "5m", source="sample")
    np.testing.assert_array_equal(dataset.tech[first:], alone.tech)


def test_too_few_bars_say_how_many_are_needed(bars):
    with pytest.raises(BarsError, match="is 50; at least 160 are needed"):
        dataset_from_bars(bars, ["BTC"], "1h", source="sample")


def test_resampled_features_come_from_resampled_bars(bars):
    whole = dataset_from_bars(bars, ["BTC"], "15m", source="sample")
    own = dataset_from_bars(bars, ["BTC"], "5m", source="sample")
    assert whole.bar_seconds == 900
    at_close = np.isin(own.time, whole.time)
    assert whole.price.tolist() == own.price[at_close].tolist()


def test_dates_are_half_open(bars):
    start, end = (pd.Timestamp(text, tz="UTC") for text in ("2024-01-01 01:00", "2024-01-02 00:00"))
    dataset = dataset_from_bars(bars, ["BTC"], "5m", source="sample", start=start, end=end)
    assert dataset.time[-1] == end.timestamp()
    assert dataset.time[0] == start.timestamp() + 300 * (WARMUP_BARS + 1)


def test_datasets_are_values(dataset):
    assert replace(dataset, source="x").sha256 == dataset.sha256
