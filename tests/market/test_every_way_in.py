"""One set of checks: what one way in refuses or leaves out, every other does, too."""

import logging
import pickle
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import environment_Alpaca_vectorized as drop_in
from barwise.commands import build_dataset, find_lookahead, import_host_data
from environment_Alpaca import CryptoEnvAlpaca
from market import defaults
from market.bars.candles import PRICES, tidy_bars, write_bars
from market.bars.own_files import file_bars
from market.build import dataset_from_bars
from market.dataset import load_dataset, make_dataset, save_dataset
from market.errors import BarsError, DatasetError
from market.host_import import dataset_from_host
from market.sample import sample_bars

N_BARS, OPEN = 60, 1_704_067_200 + 300 * np.arange(60)  # 2024-01-01
ENVIRONMENTS = {
    "scalar": CryptoEnvAlpaca,
    "vectorized": drop_in.VectorizedCryptoEnvAlpaca,
    "optimized": drop_in.VectorizedCryptoEnvAlpacaOptimized,
}
BAD_PRICES = (0.0, -0.0, -1.0, np.nan, np.inf, -np.inf, 5e-324, 1e-310, 9e-101, 2e100, 1e300)
BAD_FEATURES = (np.nan, np.inf, -np.inf, 1e39, -3.5e38, 5.9e50, -1e300)


def arrays():
    rng = np.random.default_rng(0)
    price = np.exp(np.cumsum(rng.normal(0, 0.01, (N_BARS, 2)), axis=0)) * [60_000.0, 3_000.0]
    return {"price_array": price, "tech_array": rng.normal(size=(N_BARS, 4))}


def given_dataset(price_array, tech_array):
    with np.errstate(over="ignore"):
        tech = tech_array.astype(np.float32)
    names = [f"{coin}:f{i}" for coin in ("BTC", "ETH") for i in range(2)]
    return make_dataset(price=price_array, tech=tech, time=OPEN + 300, tickers=("BTC", "ETH"), feature_names=names,
                        bar_seconds=300, segments=[(0, N_BARS)], source="t", synthetic=False)  # fmt: skip


def come_in(way, folder, values, rules="standard", **settings):
    """Bring the arrays in by one of WAYS."""
    if way in ENVIRONMENTS:
        norms = {} if rules == "standard" else dict.fromkeys(drop_in.NORMS, 2.0**-8)
        options = {} if way == "scalar" else {"device": "cpu", "native_step": False}
        return ENVIRONMENTS[way](values | {"min_order_qty": 0.0}, {"rules": rules, "lookback": 2} | norms | settings,
                                 **options)  # fmt: skip
    if way == "dataset":
        return given_dataset(**values)
    folder.mkdir(exist_ok=True)
    if way == "load":
        if not (folder / "manifest.json").exists():
            save_dataset(given_dataset(**arrays()), folder)
        for name, array in values.items():
            kept = np.load(folder / f"{name}.npy")
            with np.errstate(over="ignore"):
                np.save(folder / f"{name}.npy", array.astype(kept.dtype))
        return load_dataset(folder)
    for name, array in (values | {"time_array": OPEN}).items():
        (folder / name).write_bytes(pickle.dumps(array))
    return dataset_from_host(folder, ("BTC", "ETH"), 300)


WAYS = (*ENVIRONMENTS, "dataset", "load", "host")
PLACES = st.tuples(st.integers(0, N_BARS - 1), st.integers(0, 1))
spoilt = st.one_of(
    st.tuples(st.just("price_array"), st.sampled_from(BAD_PRICES)),
    st.tuples(st.just("tech_array"), st.sampled_from(BAD_FEATURES)),
)


@pytest.mark.parametrize("way", WAYS)
def test_good_arrays_come_in(way, tmp_path):
    come_in(way, tmp_path / "in", arrays())


@pytest.mark.parametrize("way", WAYS)
@given(place=PLACES, bad=spoilt)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bad_value_is_refused_with_its_array_bar_and_value(way, place, bad, tmp_path):
    values, (name, value) = arrays(), bad
    values[name][place] = value
    with pytest.raises((ValueError, DatasetError)) as caught:
        come_in(way, tmp_path / way, values)
    assert name in str(caught.value)
    assert str(place[0]) in str(caught.value)


@given(place=PLACES, value=st.sampled_from(BAD_PRICES), name=st.sampled_from(PRICES))
@settings(max_examples=40, deadline=None)
def test_bars_with_such_a_price_are_refused(place, value, name):
    bars = sample_bars("5m", N_BARS, ("BTC", "ETH"))
    bars.loc[place[0] + N_BARS * place[1], name] = value
    with pytest.raises(BarsError):
        tidy_bars(bars, "t")


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("rules", drop_in.RULES)
def test_features_must_fit_float32_under_every_rule_set_also_once_scaled(env, rules, tmp_path):
    values = arrays()
    values["tech_array"][7, 3] = 2e38
    come_in(env, tmp_path, values, rules, norm_tech=1.0)
    with pytest.raises(ValueError, match=r"is 2e\+38 at bar 7, column 3 \(1 such values\); it must be between -.*38"):
        come_in(env, tmp_path, values, rules, norm_tech=2.0)
    with pytest.raises(ValueError, match=r"tech_array is 2e\+38 at bar 7"):
        come_in(env, tmp_path, {**values, "tech_array": values["tech_array"].astype(np.float32)}, rules, norm_tech=-2.0)
    values["tech_array"][7, 3] = 5.9e50
    come_in(env, tmp_path, values, rules, norm_tech=1e-50)
    come_in(env, tmp_path, values, rules, norm_tech=0.0)
    values["tech_array"][7, 3] = np.inf
    with pytest.raises(ValueError, match="tech_array is inf at bar 7, column 3"):
        come_in(env, tmp_path, values, rules, norm_tech=0.0)


@pytest.mark.parametrize("env", ENVIRONMENTS)
@pytest.mark.parametrize("rules", [name for name in drop_in.RULES if name != "standard"])
def test_rules_of_hosts_take_a_bar_without_a_price(env, rules, tmp_path):
    values = arrays()
    values["price_array"][30, 0] = 0.0
    come_in(env, tmp_path, values, rules)
    values["price_array"][30, 0] = -1.0
    with pytest.raises(ValueError, match="price_array is -1 at bar 30, column 0"):
        come_in(env, tmp_path, values, rules)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_agrees_on_the_smallest_and_the_largest_price(way, tmp_path):
    for edge, beyond in ((defaults.LEAST_PRICE, 0.0), (defaults.MOST_PRICE, np.inf)):
        values = arrays()
        values["price_array"][30, 1] = edge
        come_in(way, tmp_path, values) if way != "load" else given_dataset(**values)
        values["price_array"][30, 1] = np.nextafter(edge, beyond)
        with pytest.raises((ValueError, DatasetError), match="price_array"):
            come_in(way, tmp_path, values)


# ---------------------------------------------------------------------------------------------- bars still open


def recent(now, n_later):
    """400 bars of 5 minutes, of which the one around `now` has not closed and `n_later` lie in the future."""
    first = pd.Timestamp(now).floor("5min") - pd.Timedelta(minutes=5 * (399 - n_later))
    bars = sample_bars("5m", 400, ("BTC",)).drop(columns="synthetic")
    return bars.assign(timestamp=pd.date_range(first, periods=400, freq="5min").as_unit("s"))


@given(minutes=st.integers(0, 60 * 24 * 365), seconds=st.integers(0, 299), n_later=st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_every_way_for_bars_keeps_exactly_the_closed_ones(minutes, seconds, n_later, tmp_path_factory):
    now = datetime(2024, 3, 1, tzinfo=UTC) + timedelta(minutes=minutes, seconds=seconds)
    bars, folder = recent(now, n_later), tmp_path_factory.mktemp("bars")
    last_close = int(now.timestamp()) // 300 * 300
    made = dataset_from_bars(bars, ["BTC"], "5m", source="t", now=now)
    assert made.time[-1] == last_close
    write_bars(bars, folder / "b.parquet")
    assert file_bars([folder / "b.parquet"], now=now)["timestamp"].max().timestamp() + 300 == last_close
    host = {"price_array": bars[["close"]].to_numpy(), "tech_array": np.ones((400, 2)),
            "time_array": bars["timestamp"].dt.tz_localize(None).to_numpy()}  # fmt: skip
    for name, array in host.items():
        (folder / name).write_bytes(pickle.dumps(array))
    assert dataset_from_host(folder, ["BTC"], 300, now=now).time[-1] == last_close
    assert dataset_from_host(folder, ["BTC"], 300, now=now, synthetic=True).time[-1] == last_close + 300 * (n_later + 1)
    assert len(dataset_from_bars(bars, ["BTC"], "5m", source="t", now=now, synthetic=True).time) == 400 - 256


def test_the_line_says_how_many_and_which(caplog):
    now = datetime(2024, 3, 1, 12, 3, tzinfo=UTC)
    with caplog.at_level(logging.WARNING):
        dataset_from_bars(recent(now, 0), ["BTC"], "5m", source="b.csv", now=now)
    assert caplog.messages == ["b.csv: dropped 1 bar that has not closed yet: BTC/USD opens 2024-03-01 12:00 UTC"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        dataset_from_bars(recent(now, 2), ["BTC"], "5m", source="b.csv", now=now)
    (line,) = caplog.messages
    assert line.endswith("have not closed yet: BTC/USD opens 2024-03-01 12:00 .. 2024-03-01 12:10 UTC")
    with pytest.raises(BarsError, match="no bar has closed yet"):
        dataset_from_bars(recent(now, 2), ["BTC"], "5m", source="b.csv", now=now - timedelta(days=9))


def test_close_stamps_are_closes_here_too(tmp_path):
    """A bar stamped 12:05, its close, has closed at 12:05; one stamped 12:05 as its open has not."""
    now = datetime(2024, 3, 1, 12, 5, tzinfo=UTC)
    bars = recent(now, 0)  # the last one is stamped 12:05
    assert dataset_from_bars(tidy_bars(bars, "t", "close"), ["BTC"], "5m", source="t", now=now).time[-1] % 3_600 == 300
    assert dataset_from_bars(tidy_bars(bars, "t", "open"), ["BTC"], "5m", source="t", now=now).time[-1] % 3_600 == 300
    assert len(dataset_from_bars(tidy_bars(bars, "t", "close"), ["BTC"], "5m", source="t", now=now).time) == 144
    assert len(dataset_from_bars(tidy_bars(bars, "t", "open"), ["BTC"], "5m", source="t", now=now).time) == 143


def test_the_programs_leave_open_bars_out(tmp_path, caplog):
    bars = recent(datetime.now(UTC), 30)
    write_bars(bars, tmp_path / "b.csv")
    from_bars = ["--bars", str(tmp_path / "b.csv"), "--tickers", "BTC", "--timeframe", "5m"]
    host = {"price_array": bars[["close"]].to_numpy(), "tech_array": np.ones((400, 2)),
            "time_array": bars["timestamp"].dt.tz_localize(None).to_numpy()}  # fmt: skip
    for name, array in host.items():
        (tmp_path / name).write_bytes(pickle.dumps(array))
    from_host = ["--host-folder", str(tmp_path), "--tickers", "BTC", "--timeframe", "5m"]
    for program, arguments in ((build_dataset, from_bars), (import_host_data, from_host)):
        out = tmp_path / program.__name__
        assert program.main([*arguments, "--out", str(out)]) == 0
        assert caplog.text.count("not closed yet") == 1
        caplog.clear()
        assert load_dataset(out).time[-1] <= datetime.now(UTC).timestamp()
    assert find_lookahead.main([*from_bars, "--cuts", "2"]) in (0, 1)
    assert caplog.text.count("not closed yet") == 1
