from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from market.bars.candles import PRICES, read_bars, to_grid
from market.build import dataset_from_bars
from market.defaults import WARMUP_BARS
from market.errors import BarsError, DatasetError
from market.features import (
    CLIP,
    DEFAULT,
    FEATURE_SETS,
    HOST,
    calendar_cycles,
    calendar_features,
    coin_features,
    feature_set,
    segment_features,
)
from market.indicators import CoinBars
from market.names import DEFAULT_TICKERS, TIMEFRAME_SECONDS
from market.sample import sample_bars

N_BARS = 600
WIDTH = len(DEFAULT)
SETS = sorted(FEATURE_SETS)


def market(seed=0, n_bars=N_BARS, tickers=("BTC", "PEPE")):
    """A BarGrid of the sample market."""
    return to_grid(sample_bars("5m", n_bars, tickers, seed), tickers, "sample")


def features(grid, name="default"):
    return segment_features(grid, feature_set(name))


def with_columns(grid, change):
    """The grid with `change(name, column)` in place of every price and volume column."""
    return replace(grid, **{name: change(name, getattr(grid, name)) for name in (*PRICES, "volume")})


def is_causal(compute, grid, cut):
    """No row before `cut` changes when every later bar is scrambled or cut off."""
    rng = np.random.default_rng(cut)

    def scramble(_, column):
        scrambled = column.copy()
        scrambled[cut:] *= rng.uniform(0.2, 5.0, (1, column.shape[1]))
        return scrambled

    n_rows = cut - WARMUP_BARS
    full = compute(grid)[:n_rows]
    same_after_scrambling = np.array_equal(full, compute(with_columns(grid, scramble))[:n_rows])
    return same_after_scrambling and np.array_equal(full, compute(grid.rows(0, cut)))


def test_columns_are_named_coin_by_coin_and_the_calendar_comes_last():
    names = feature_set("default").names(DEFAULT_TICKERS, 300)
    assert len(names) == 7 * 15 + 4
    assert names[0] == "AAVE:log_return_1"
    assert names[15] == "AVAX:log_return_1"
    assert names[-4:] == ("time:day_sin", "time:day_cos", "time:week_sin", "time:week_cos")
    assert len(feature_set("host").names(DEFAULT_TICKERS, 300)) == 7 * 14
    assert list(HOST)[:5] == ["open", "high", "low", "close", "volume"]


def test_an_unknown_set_is_refused_with_what_there_is():
    with pytest.raises(BarsError, match="unknown feature set 'best'; choose one of default, host"):
        feature_set("best")


@pytest.mark.parametrize("name", SETS)
@given(seed=st.integers(0, 50), cut=st.integers(WARMUP_BARS + 1, N_BARS - 1))
@settings(max_examples=15, deadline=None)
def test_a_row_is_a_function_of_the_rows_up_to_it(name, seed, cut):
    assert is_causal(lambda grid: features(grid, name), market(seed), cut)


@pytest.mark.parametrize("name", SETS)
def test_a_planted_leak_is_found_in_any_column(name):
    n_columns = len(FEATURE_SETS[name].columns)
    for column in range(n_columns):

        def leaking(grid, column=column):
            out = features(grid, name)
            out[:-1, column] = out[1:, column]
            return out

        cuts = range(WARMUP_BARS + 20, N_BARS, 40)  # a breakout is 0 in most bars, the next one's too
        assert not all(is_causal(leaking, market(), cut) for cut in cuts), list(FEATURE_SETS[name].columns)[column]


@pytest.mark.parametrize("name", SETS)
def test_one_coin_does_not_change_another(name):
    grid = market()
    width = len(FEATURE_SETS[name].columns)
    changed = with_columns(grid, lambda _, column: column * np.array([1.0, 3.0]))
    alone = replace(with_columns(grid, lambda _, column: column[:, :1]), tickers=("BTC",))
    np.testing.assert_array_equal(features(changed, name)[:, :width], features(grid, name)[:, :width])
    np.testing.assert_array_equal(features(alone, name)[:, :width], features(grid, name)[:, :width])


@pytest.mark.parametrize("scale", [1e-4, 0.37, 1e6])
def test_default_features_do_not_depend_on_the_unit_of_price_or_volume(scale):
    grid = market()
    scaled = with_columns(grid, lambda name, column: column / scale if name == "volume" else column * scale)
    np.testing.assert_allclose(features(scaled), features(grid), atol=1e-4)


def hostile(name):
    grid = market(seed=2, tickers=("BTC",))
    if name == "constant":
        return with_columns(grid, lambda name, column: np.full_like(column, 0.0 if name == "volume" else 5.0))
    if name == "flat after trading":

        def stop(name, column):
            return np.concatenate([column[:300], np.full_like(column[300:], 0.0 if name == "volume" else 7.0)])

        return with_columns(grid, stop)
    if name == "tick of the smallest price":
        first = grid.close[0]
        return with_columns(grid, lambda n, c: c if n == "volume" else np.round(c / first * 8) * 1e-8)
    if name == "jump by a thousand":
        late = np.where(np.arange(N_BARS)[:, None] >= 300, 1_000.0, 1.0)
        return with_columns(grid, lambda n, c: c if n == "volume" else c * late)
    huge = grid.volume.copy()
    huge[300] = 1e300 if name == "huge volume" else 1e37  # raw columns are stored as float32, up to 3e38
    return replace(grid, volume=huge)


HOSTILE = ["constant", "flat after trading", "tick of the smallest price", "jump by a thousand"]


@pytest.mark.parametrize(
    ("which", "name"),
    [*((which, name) for which in SETS for name in HOSTILE), ("default", "huge volume"), ("host", "large volume")],
)
def test_hostile_markets_give_finite_features(which, name):
    out = features(hostile(name), which)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    if which == "default":
        assert np.abs(out).max() <= CLIP


def test_a_flat_market_is_neutral():
    names = list(DEFAULT)
    out = features(hostile("constant"))
    neutral = [name for name in names if name != "volatility"]
    np.testing.assert_array_equal(out[:, [names.index(name) for name in neutral]], 0.0)


def test_a_raw_volume_beyond_float32_is_refused_by_name():
    bars = sample_bars("5m", 400, ("BTC",))
    bars.loc[300, "volume"] = 1e39
    with pytest.raises(DatasetError, match="tech_array BTC:volume at bar 44 is inf"):
        dataset_from_bars(bars, ["BTC"], "5m", source="sample", features="host")
    assert np.isfinite(dataset_from_bars(bars, ["BTC"], "5m", source="sample").tech).all()


def test_a_segment_no_longer_than_the_warm_up_has_no_rows():
    assert features(market().rows(0, WARMUP_BARS)).shape == (0, 2 * WIDTH + 4)


def stairs():
    """A log price that rises by a fixed step in even bars and stands in odd ones; volume doubles at the last bar."""
    n_bars = 301
    close = np.exp(0.01 * np.repeat(np.arange(n_bars), 2)[:n_bars])
    volume = np.ones(n_bars)
    volume[-1] = 2.0
    return CoinBars(close, close, close, close, volume, bar_seconds=300)


def test_hand_computed_values():
    out = dict(zip(DEFAULT, coin_features(stairs(), DEFAULT)[-1], strict=True))
    spread = 0.005 * np.sqrt(96 / 95)  # of 48 returns of 0.01 and 48 of 0
    assert out["log_return_1"] == pytest.approx(0.01 / spread, rel=1e-5)
    assert out["log_return_12"] == pytest.approx(0.06 / (spread * np.sqrt(12)), rel=1e-5)
    assert out["volatility"] == pytest.approx(2 * np.log(spread * np.sqrt(365 * 288) / 0.8), rel=1e-5)
    assert out["volume_ratio"] == pytest.approx((2 - 1) / (2 + 1) / 0.3, rel=1e-5)
    assert out["range_breakout"] == pytest.approx(2 * 2 / (2 + 1) / 0.41, rel=1e-5)
    assert out["channel_position"] == pytest.approx(1 / 0.63, rel=1e-5)
    assert out["rsi_14"] == pytest.approx(1 / 0.25, rel=1e-5)
    assert out["direction_14"] == pytest.approx(1 / 0.31, rel=1e-5)
    assert out["trend_reacceleration"] == pytest.approx(0.0, abs=1e-5)  # ADX stands at 100
    raw = dict(zip(HOST, coin_features(stairs(), HOST)[-1], strict=True))
    assert raw["range_breakout_volume"] == 2.0
    assert raw["rsi"] == pytest.approx(100.0)
    assert raw["dx"] == pytest.approx(100.0)


def test_a_close_inside_the_previous_range_is_no_breakout():
    price = np.full(301, 100.0)
    high, low, close = price + 1.0, price - 1.0, price.copy()
    close[-3:] = [101.0, 99.0, 101.5]  # on the upper edge, on the lower edge, above
    high[-1] = 101.5
    columns = coin_features(CoinBars(price, high, low, close, np.ones(301), bar_seconds=300), HOST)
    assert columns[-3:, list(HOST).index("range_breakout_volume")].tolist() == [0.0, 0.0, 1.0]


def test_the_calendar_goes_round_once_a_day_and_once_a_week():
    close_s = np.arange(0, 14 * 86_400, 300, dtype=np.int64)
    turn = calendar_features(close_s, 300)
    assert turn.shape == (len(close_s), 4)
    np.testing.assert_allclose(turn[:288, :2], turn[288 : 2 * 288, :2], atol=1e-6)
    np.testing.assert_allclose(turn[: 7 * 288], turn[7 * 288 :], atol=1e-5)
    np.testing.assert_allclose(turn.std(axis=0), 1.0, rtol=1e-3)
    assert turn[72].tolist()[:2] == pytest.approx([np.sqrt(2.0), 0.0], abs=1e-6)  # 06:00


@pytest.mark.parametrize(("timeframe", "step"), [("5m", 300), ("1h", 3_600), ("4h", 14_400)])
def test_the_calendar_of_a_row_is_that_of_the_bars_close(timeframe, step):
    bars = sample_bars(timeframe, WARMUP_BARS + 50, ("BTC",))
    dataset = dataset_from_bars(bars, ["BTC"], timeframe, source="sample")
    closes = bars["timestamp"].dt.as_unit("s").astype("int64").to_numpy()[WARMUP_BARS:] + step
    np.testing.assert_array_equal(dataset.time, closes)
    for name, turn, period in (("day_sin", np.sin, 86_400), ("day_cos", np.cos, 86_400), ("week_sin", np.sin, 604_800)):
        column = dataset.tech[:, dataset.feature_names.index(f"time:{name}")]
        np.testing.assert_allclose(column, np.sqrt(2.0) * turn(2 * np.pi * closes / period), atol=1e-3)


@pytest.mark.parametrize("timeframe", TIMEFRAME_SECONDS)
def test_no_calendar_column_is_constant_at_any_timeframe(timeframe):
    step = TIMEFRAME_SECONDS[timeframe]
    turn = calendar_features(np.arange(0, 140 * 86_400, step, dtype=np.int64), step)
    assert (turn.std(axis=0) > 0.5).all()
    assert turn.shape[1] == len(calendar_cycles(step)) == {"12h": 3, "1d": 2}.get(timeframe, 4)


def test_the_spreads_are_those_of_the_sample_market():
    tech = dataset_from_bars(sample_bars("5m", 70_000), DEFAULT_TICKERS, "5m", source="sample").tech
    spread = [tech[:, i : 7 * WIDTH : WIDTH].std(dtype=np.float64) for i in range(WIDTH)]
    np.testing.assert_allclose(spread, 1.0, atol=0.05)


# ------------------------------------------------------------------------------------------------------- on real bars

NAMES = "AAVE ATOM AVAX BCH BTC DOGE ETC ETH LINK LTC MATIC NEAR OP PEPE SHIB SOL UNI XRP"
COINS = NAMES.split()


@pytest.fixture(scope="module")
def real_bars(real_bars_dir):
    return read_bars(real_bars_dir / "crypto_5m_2024-01_2024-08.parquet")


@pytest.fixture(scope="module")
def real_grid(real_bars):
    return to_grid(real_bars, COINS, "real")


@pytest.mark.parametrize("name", SETS)
def test_on_real_bars_every_feature_is_finite_and_none_is_constant(real_bars, name):
    dataset = dataset_from_bars(real_bars, COINS, "5m", source="real", features=name)
    assert np.isfinite(dataset.tech).all()
    for column in range(dataset.tech.shape[1]):
        values = dataset.tech[:, column].astype(np.float64)
        moves = np.abs(values - values.mean()).max()
        assert moves > 1e-3 * np.abs(values).max(), dataset.feature_names[column]
        if ":range_breakout" not in dataset.feature_names[column]:
            assert np.unique(values[:5_000]).size > 20, dataset.feature_names[column]  # PEPE: ticks of 1 %


def test_on_real_bars_default_features_are_centred_with_a_spread_near_one(real_bars):
    tech = dataset_from_bars(real_bars, COINS, "5m", source="real").tech
    spread = tech.std(axis=0, dtype=np.float64)
    assert ((spread > 0.5) & (spread < 2.0)).all()
    assert (np.abs(tech.mean(axis=0, dtype=np.float64)) < 1.5).all()
    assert (np.abs(tech) >= CLIP).mean() < 1e-4


def test_features_keep_their_digits_in_float32_from_pepe_to_btc(real_grid):
    for name in SETS:
        chosen = feature_set(name)
        for a in (COINS.index("PEPE"), COINS.index("BTC")):
            columns = [np.ascontiguousarray(getattr(real_grid, c)[:5_000, a]) for c in (*PRICES, "volume")]
            bars = CoinBars(*columns, bar_seconds=300)
            stored = coin_features(bars, chosen.columns)[WARMUP_BARS:].astype(np.float64)
            for i, (column, feature) in enumerate(chosen.columns.items()):
                exact = np.clip(feature.compute(bars)[WARMUP_BARS:] / feature.spread, -feature.clip, feature.clip)
                error = np.abs(stored[:, i] - exact).max()
                assert error < 1e-4 * exact.std(), (name, COINS[a], column)


@pytest.mark.parametrize("name", SETS)
def test_real_prefixes_give_the_same_rows(real_grid, name):
    grid = real_grid.rows(0, 5_000)
    assert all(is_causal(lambda bars: features(bars, name), grid, cut) for cut in (257, 1_000, 2_345, 4_999))


@pytest.mark.parametrize("name", SETS)
def test_bars_before_the_warm_up_move_no_value_by_a_thousandth_of_its_spread(real_grid, name):
    n_later = 200
    grid = real_grid.rows(0, 20_000)
    full = features(grid, name).astype(np.float64)
    spread = full.std(axis=0)
    for start in np.random.default_rng(0).integers(1, 20_000 - WARMUP_BARS - n_later, 60):
        late = features(grid.rows(start, start + WARMUP_BARS + n_later), name)
        effect = np.abs(late - full[start : start + n_later]) / spread
        assert effect.max() < 1e-3, grid.time[start]


def quiet(name, close, n_flat):
    """One coin's bars with `n_flat` quiet ones after bar 400: flat, or of one tick now and then."""
    n_bars = len(close)
    low, high = close * np.exp(-0.001), close * np.exp(0.001)
    volume = np.exp(np.random.default_rng(1).normal(size=n_bars))
    inside = slice(400, 400 + n_flat)
    tick = {"flat": 0.0, "ticks of a millionth": 1e-6, "ticks of a ten thousandth": 1e-4}[name]
    steps = np.cumsum(np.random.default_rng(2).choice([-1, 0, 0, 0, 1], n_flat)) * tick
    close[inside] = close[399] * (1.0 + steps)
    high[inside], low[inside] = close[inside], close[inside]
    volume[inside] = 0.0
    return CoinBars(close.copy(), high, low, close, volume, bar_seconds=300)


def rows_of(bars, first, last):
    return CoinBars(
        *(getattr(bars, name)[first:last] for name in (*PRICES, "volume")),
        bar_seconds=300,
    )


@pytest.mark.parametrize("which", SETS)
@pytest.mark.parametrize("name", ["flat", "ticks of a millionth", "ticks of a ten thousandth"])
@pytest.mark.parametrize("price", [1e-5, 60_000.0])
@pytest.mark.parametrize("spread", [0.0005, 0.002])
def test_a_segment_that_starts_in_a_quiet_market_settles_as_any_other(which, name, price, spread):
    moves = np.random.default_rng(0).normal(0, spread, 3_000)
    bars = quiet(name, price * np.exp(np.cumsum(moves)), 700)
    columns = FEATURE_SETS[which].columns
    full = coin_features(bars, columns).astype(np.float64)
    typical = full[WARMUP_BARS:].std(axis=0)
    for start in (*range(380, 480, 7), *range(480, 1_200, 41)):
        late = coin_features(rows_of(bars, start, start + WARMUP_BARS + 200), columns)[WARMUP_BARS:]
        effect = np.abs(late - full[start + WARMUP_BARS :][:200]) / typical
        worst = int(effect.max(axis=0).argmax())
        assert effect.max() < 1e-3, (start, list(columns)[worst])


def hosts_columns(bars):
    """The hosts' fourteen columns of one coin, from the description of their processor; an independent computation."""
    frame = pd.DataFrame({name: getattr(bars, name) for name in (*PRICES, "volume")})
    exact = {name: frame[name] for name in (*PRICES, "volume")}
    exact["macd"] = frame["close"].ewm(span=12, adjust=False).mean() - frame["close"].ewm(span=26, adjust=False).mean()
    exact["macd_signal"] = exact["macd"].ewm(span=9, adjust=False).mean()
    exact["macd_hist"] = exact["macd"] - exact["macd_signal"]
    move = frame["close"].diff()
    gain, loss = move.clip(lower=0), (-move).clip(lower=0)
    wilder = {"alpha": 1 / 14, "adjust": False}
    exact["rsi"] = 100 * gain.ewm(**wilder).mean() / (gain + loss).ewm(**wilder).mean()
    typical = (frame["high"] + frame["low"] + frame["close"]) / 3
    mean = typical.rolling(14).mean()
    deviation = typical.rolling(14).apply(lambda v: np.abs(v - v.mean()).mean(), raw=True)
    exact["cci"] = (typical - mean) / (0.015 * deviation)
    last = frame["close"].shift()
    true_range = np.maximum(frame["high"], last) - np.minimum(frame["low"], last)
    up, down = frame["high"].diff(), -frame["low"].diff()
    plus = up.where((up > down) & (up > 0), 0.0).ewm(**wilder).mean()
    minus = down.where((down > up) & (down > 0), 0.0).ewm(**wilder).mean()
    exact["dx"] = 100 * (plus - minus).abs() / (plus + minus)
    atr = true_range.ewm(**wilder).mean()
    exact["atr_regime_shift"] = atr / atr.rolling(50).mean() - 1
    above = frame["close"] > frame["high"].shift().rolling(20).max()
    below = frame["close"] < frame["low"].shift().rolling(20).min()
    volume = frame["volume"] / frame["volume"].shift().rolling(20).mean()
    exact["range_breakout_volume"] = (above.astype(float) - below) * volume
    exact["trend_reacceleration"] = exact["dx"].ewm(**wilder).mean().diff().diff()
    return exact


@pytest.mark.parametrize("ticker", ["BTC", "PEPE"])
def test_the_hosts_columns_equal_an_independent_computation(real_grid, ticker):
    a = COINS.index(ticker)
    columns = [np.ascontiguousarray(getattr(real_grid, c)[:6_000, a]) for c in (*PRICES, "volume")]
    bars = CoinBars(*columns, bar_seconds=300)
    expected = hosts_columns(bars)
    assert list(expected) == list(HOST)
    for name, feature in HOST.items():
        # Later rows: pandas starts its averages from the first bar, TA-Lib from a mean.
        ours, theirs = feature.compute(bars)[1_000:], expected[name].to_numpy()[1_000:]
        np.testing.assert_allclose(ours, theirs, atol=1e-7 * np.std(theirs), err_msg=name)


# ---------------------------------------------------------------------------------------------- the pipeline


def test_rows_are_usable_bars_with_closing_times(bars):
    dataset = dataset_from_bars(bars, ["ETH", "BTC/USD"], "5m", source="sample", synthetic=True)
    grid = to_grid(bars, ["ETH", "BTC"], "sample")
    assert dataset.price.tolist() == grid.close[WARMUP_BARS:].tolist()
    assert dataset.time.tolist() == (grid.time[WARMUP_BARS:] + 300).tolist()
    assert dataset.segments == ((0, 600 - WARMUP_BARS),)
    assert dataset.feature_names[WIDTH] == "BTC:log_return_1"


def test_row_i_of_the_features_belongs_to_row_i_of_the_prices(bars):
    dataset = dataset_from_bars(bars, ["ETH", "BTC"], "5m", source="sample")
    for a, ticker in enumerate(dataset.tickers):
        last_return = dataset.tech[1:, dataset.feature_names.index(f"{ticker}:log_return_1")]
        assert (np.sign(last_return) == np.sign(np.diff(dataset.price[:, a]))).all()


def test_a_gap_splits_segments_and_each_has_its_own_warm_up(bars):
    stamps = sorted(bars["timestamp"].unique())
    holed = bars[~((bars["symbol"] == "BTC/USD") & bars["timestamp"].isin(stamps[300:310]))]
    dataset = dataset_from_bars(holed, ["BTC", "ETH"], "5m", source="sample")
    first, second = 303 - WARMUP_BARS, 600 - 310 - WARMUP_BARS  # the gap's first three bars are filled
    assert dataset.segments == ((0, first), (first, first + second))
    alone = dataset_from_bars(bars[bars["timestamp"] >= stamps[310]], ["BTC", "ETH"], "5m", source="sample")
    np.testing.assert_array_equal(dataset.tech[first:], alone.tech)


def test_too_few_bars_say_how_many_are_needed(bars):
    with pytest.raises(BarsError, match="has 50 bars; at least 288 are required"):
        dataset_from_bars(bars, ["BTC"], "1h", source="sample")


def test_resampled_features_come_from_resampled_bars():
    bars = sample_bars("5m", 1_000, ("BTC",), seed=3)
    whole = dataset_from_bars(bars, ["BTC"], "15m", source="sample")
    own = dataset_from_bars(bars, ["BTC"], "5m", source="sample")
    assert whole.bar_seconds == 900
    at_close = np.isin(own.time, whole.time)
    assert whole.price.tolist() == own.price[at_close].tolist()


def test_dates_are_half_open(bars):
    start, end = (pd.Timestamp(text, tz="UTC") for text in ("2024-01-01 01:00", "2024-01-02 02:00"))
    dataset = dataset_from_bars(bars, ["BTC"], "5m", source="sample", start=start, end=end)
    assert dataset.time[-1] == end.timestamp()
    assert dataset.time[0] == start.timestamp() + 300 * (WARMUP_BARS + 1)


def test_datasets_are_values(dataset):
    assert replace(dataset, source="x").sha256 == dataset.sha256
