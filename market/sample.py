"""A synthetic market that resembles crypto and contains nothing to learn.

Log price is the coin's level plus beta times a market factor plus the coin's own noise. Volatility clusters over hours
to weeks: log-volatility is a sum of autoregressions, half of it shared. Shocks are Student-t, and there are shared and
individual jumps. Volume rises with volatility and depends on the hour of the day. Highs and lows follow the
distribution of the extremes of a Brownian bridge.

Simple returns are a martingale difference. Given all data before a bar, including the bar's volatility, its mean simple
return is exactly 0. Holding therefore earns nothing on average, and no policy has a positive expected log growth. As a
consequence, log prices fall by about half their variance, and over decades of daily bars a volatile coin loses nearly
all its value. The same arguments produce the same bars, and a coin's path does not depend on the other coins. This law
is `FAIR`, the default of the functions here. The programs use one of the two laws for demonstrations in
`market.planted`: with a planted signal, or without it (`--no-signal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from market.bars.candles import COLUMNS, SYNTHETIC
from market.build import dataset_from_bars
from market.dataset import Dataset
from market.errors import BarsError
from market.features import feature_set
from market.indicators import SECONDS_PER_YEAR
from market.names import DEFAULT_TICKERS, ticker_of, timeframe_seconds
from market.planted import (
    MARKET_VOLATILITY,
    START,
    Law,
    Recipe,
    autoregression,
    drifts,
    generator,
    log_volume_factor,
    planted_signal,
)
from market.times import EARLIEST_S, LATEST_S
from market.venues import ALPACA, Venue

SHOCK_FREEDOM = 5.0  # degrees of freedom of the Student-t shocks
CLUSTER_SECONDS = (7_200.0, 86_400.0, 14 * 86_400.0)  # time constants of log-volatility
CLUSTER_SPREAD = 0.35  # standard deviation of each part of log-volatility
JUMPS_PER_YEAR = 40.0  # number of shared jumps, and of each coin's own jumps
JUMP_SPREAD = 0.02  # log price
LARGEST_SHOCK = 0.5  # log return; without a bound, exp(Student-t) has an infinite mean
LEAST_LOG_RANGE = 1e-6  # keeps high above low
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Coin:
    """Parameters of one synthetic coin."""

    price: float  # quote per coin, at the first bar
    own_volatility: float  # per year, in addition to the market's
    beta: float  # exposure to the market factor
    daily_notional: float  # notional traded per day, quote


COINS = {
    "AAVE": Coin(100.0, 0.75, 1.1, 1e7),
    "AVAX": Coin(35.0, 0.7, 1.2, 5e7),
    "BTC": Coin(60_000.0, 0.2, 1.0, 1.5e9),
    "DOGE": Coin(0.12, 0.8, 1.3, 1e8),
    "ETH": Coin(3_000.0, 0.35, 1.1, 8e8),
    "LINK": Coin(15.0, 0.65, 1.1, 4e7),
    "LTC": Coin(75.0, 0.55, 0.9, 3e7),
    "PEPE": Coin(8e-6, 1.4, 1.4, 2e8),
    "SHIB": Coin(1.8e-5, 0.9, 1.3, 5e7),
    "SOL": Coin(140.0, 0.7, 1.3, 5e8),
    "UNI": Coin(8.0, 0.85, 1.1, 1.2e7),
    "XRP": Coin(0.55, 0.6, 0.9, 1.5e8),
}


def sample_bars(
    timeframe: str = "5m",
    n_bars: int = 70_000,
    tickers: Sequence[str] = DEFAULT_TICKERS,
    seed: int = 0,
    start: str = START,
    law: Law = Law.FAIR,
) -> pd.DataFrame:
    """Return tidy synthetic bars in the format of `market.bars.candles.read_bars`, `n_bars` per ticker.

    Args:
        timeframe: bar length, such as `5m`.
        n_bars: number of bars per ticker.
        tickers: coin names in any form.
        seed: seed of the market.
        start: open time of the first bar, UTC.
        law: law of the returns.

    Raises:
        BarsError: `n_bars` is below 1, or the bars exceed the valid years.
    """
    step = timeframe_seconds(timeframe)
    first = int(np.datetime64(start, "s").astype(np.int64)) // step * step
    if n_bars < 1:
        raise BarsError(f"n_bars must be at least 1; received {n_bars}")
    if first < EARLIEST_S or first + n_bars * step > LATEST_S:
        raise BarsError(f"{n_bars} {timeframe} bars from {start} exceed the years 2009..2099; use fewer bars")
    time = first + step * np.arange(n_bars, dtype=np.int64)
    market = _market(n_bars, step, seed, law)
    coins = [_coin_bars(ticker, time, step, market, seed) for ticker in sorted(tickers)]
    bars = pd.concat(coins, ignore_index=True)
    bars["symbol"] = pd.Categorical(bars["symbol"])
    bars["timestamp"] = pd.to_datetime(bars["timestamp"], unit="s", utc=True).dt.as_unit("s")
    return bars.loc[:, list(COLUMNS)].assign(**{SYNTHETIC: True})


def synthetic_dataset(
    timeframe: str = "5m",
    n_bars: int = 70_000,
    tickers: Sequence[str] = DEFAULT_TICKERS,
    seed: int = 0,
    features: str = "default",
    venue: Venue = ALPACA,
    law: Law = Law.FAIR,
) -> Dataset:
    """Return a dataset of exactly `n_bars` usable rows from the sample market, built like a dataset of real bars."""
    n_made = n_bars + feature_set(features).warmup_bars
    bars = sample_bars(timeframe, n_made, tickers, seed, law=law)
    source = Recipe(law, seed, n_made).text if law.has_recipe else f"sample market, seed {seed}"
    return dataset_from_bars(bars, tickers, timeframe, source=source, features=features, venue=venue)


@dataclass(frozen=True)
class Noise:
    """One unscaled source of returns: the market's, or a coin's own."""

    shocks: np.ndarray  # (T,) Student-t, variance 1
    jumps: np.ndarray  # (T,) log return
    clusters: np.ndarray  # (T,) log-volatility


@dataclass(frozen=True)
class Market:
    """Random factors shared by all coins."""

    noise: Noise
    law: Law
    signal: np.ndarray | None  # (T,), only in a planted market


def _market(n_bars: int, step: int, seed: int, law: Law) -> Market:
    rng = generator(seed, "market")
    signal = planted_signal(n_bars, seed) if law is Law.PLANTED else None
    return Market(_noise(rng, _clusters(rng, n_bars, step), step), law, signal)


def _noise(rng: np.random.Generator, clusters: np.ndarray, step: int) -> Noise:
    n_bars = len(clusters)
    shocks = rng.standard_t(SHOCK_FREEDOM, n_bars) / np.sqrt(SHOCK_FREEDOM / (SHOCK_FREEDOM - 2.0))
    n_jumps = rng.poisson(_jumps_per_bar(step), n_bars)
    return Noise(shocks, rng.standard_normal(n_bars) * JUMP_SPREAD * np.sqrt(n_jumps), clusters)


def _jumps_per_bar(step: int) -> float:
    return JUMPS_PER_YEAR * step / SECONDS_PER_YEAR


def _fair_moves(noise: Noise, volatility: float, jump_weight: float, step: int) -> np.ndarray:
    """Return log returns (T,) whose exponential has mean 1 given the bar's volatility. `volatility` is annual."""
    spread = volatility * np.sqrt(step / SECONDS_PER_YEAR) * np.exp(noise.clusters)
    shocks = np.clip(noise.shocks * spread, -LARGEST_SHOCK, LARGEST_SHOCK)
    # A Poisson number of normal jumps: log E exp = rate x (E exp(one jump) - 1).
    jumps_log_mean = _jumps_per_bar(step) * np.expm1((jump_weight * JUMP_SPREAD) ** 2 / 2.0)
    return shocks - _shock_log_mean(spread) + jump_weight * noise.jumps - jumps_log_mean


def _shock_log_mean(spread: np.ndarray) -> np.ndarray:
    """Return log E exp(clip(spread x shock)) of a Student-t shock of variance 1, (T,), about spread^2 / 2."""
    log_spreads, log_values = _shock_log_mean_table()
    return np.exp(np.interp(np.log(spread), log_spreads, log_values))


@cache
def _shock_log_mean_table() -> tuple[np.ndarray, np.ndarray]:
    """Return log spreads and the logs of `_shock_log_mean` at them, each (K,), by quadrature.

    With t = sqrt(freedom) tan(angle) the Student-t density becomes cos(angle)^(freedom - 1). The shock is symmetric, so
    E exp - 1 = E (cosh - 1) = E 2 sinh^2(half). This form stays accurate for small spreads.
    """
    spreads = np.geomspace(1e-7, 1e2, 600)
    angles = (np.arange(2_000) + 0.5) * (np.pi / 2.0 / 2_000)  # (Q,) midpoints
    masses = np.cos(angles) ** (SHOCK_FREEDOM - 1.0)
    shocks = np.sqrt(SHOCK_FREEDOM - 2.0) * np.tan(angles)
    clipped = np.minimum(np.outer(spreads, shocks), LARGEST_SHOCK)  # (K, Q)
    excess = 2.0 * np.sinh(clipped / 2.0) ** 2 @ (masses / masses.sum())
    return np.log(spreads), np.log(np.log1p(excess))


def _clusters(rng: np.random.Generator, n_bars: int, step: int) -> np.ndarray:
    """Return log-volatility (n_bars,), shifted so that the mean variance factor is 1."""
    parts = [_autoregression(rng, n_bars, step, seconds) for seconds in CLUSTER_SECONDS]
    return CLUSTER_SPREAD * np.sum(parts, axis=0) - len(CLUSTER_SECONDS) * CLUSTER_SPREAD**2


def _autoregression(rng: np.random.Generator, n_bars: int, step: int, seconds: float) -> np.ndarray:
    """Return a stationary Gaussian series (n_bars,) of variance 1 with time constant `seconds`."""
    return autoregression(rng, n_bars, float(np.exp(-step / seconds)))


def _symbol(ticker: str) -> str:
    """Return `BTC/USD` for a coin in dollars and `BTC/EUR` for one in euros."""
    name = ticker_of(ticker)
    return name if "/" in name else f"{name}/USD"


def _coin(ticker: str) -> Coin:
    """Return the coin with that name. A name without an entry gets random parameters derived from the name."""
    name = ticker_of(ticker)
    if name in COINS:
        return COINS[name]
    rng = generator(0, name)
    return Coin(float(10.0 ** rng.uniform(-2, 2)), rng.uniform(0.5, 1.0), rng.uniform(0.8, 1.3), 2e7)


def _coin_bars(ticker: str, time: np.ndarray, step: int, market: Market, seed: int) -> pd.DataFrame:
    """Return tidy bars of one coin. `time` (n_bars,) holds the open times in UTC seconds."""
    coin, rng = _coin(ticker), generator(seed, ticker_of(ticker))
    clusters = 0.5 * market.noise.clusters + 0.5 * _clusters(rng, len(time), step)
    shared = _fair_moves(market.noise, coin.beta * MARKET_VOLATILITY, coin.beta, step)
    own = _fair_moves(_noise(rng, clusters, step), coin.own_volatility, 1.0, step)
    moves = shared + own if market.signal is None else shared + own + drifts(market.signal, step)
    log_close = np.log(coin.price) + np.cumsum(moves)
    log_open = np.concatenate([[np.log(coin.price)], log_close[:-1]])
    yearly = np.hypot(coin.beta * MARKET_VOLATILITY, coin.own_volatility)
    spread = yearly * np.sqrt(step / SECONDS_PER_YEAR) * np.exp(clusters)
    high, low = _extremes(rng, log_open, log_close, spread)
    notional = _notional(rng, time, step, coin, clusters, np.abs(log_close - log_open) / spread)
    if market.signal is not None:
        notional *= np.exp(log_volume_factor(market.signal))
    columns = {"timestamp": time, "symbol": _symbol(ticker), "open": np.exp(log_open), "high": high}
    return pd.DataFrame(columns | {"low": low, "close": np.exp(log_close), "volume": notional / np.exp(log_close)})


def _extremes(
    rng: np.random.Generator, log_open: np.ndarray, log_close: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return high and low (n_bars,) of a Brownian path from open to close, each sampled by inversion."""
    middle, half = (log_open + log_close) / 2.0, np.abs(log_close - log_open) / 2.0
    u, v = rng.uniform(np.finfo(float).tiny, 1.0, (2, len(spread)))
    above = np.sqrt(half**2 - spread**2 * np.log(u) / 2.0) + LEAST_LOG_RANGE
    below = np.sqrt(half**2 - spread**2 * np.log(v) / 2.0) + LEAST_LOG_RANGE
    return np.exp(middle + above), np.exp(middle - below)


def _notional(
    rng: np.random.Generator, time: np.ndarray, step: int, coin: Coin, clusters: np.ndarray, move: np.ndarray
) -> np.ndarray:
    """Return the traded notional (n_bars,), quote currency.

    It is higher in volatile times, on large moves and in the UTC afternoon.
    """
    hour = 2.0 * np.pi * (time % DAY_SECONDS) / DAY_SECONDS
    slow = 0.5 * _autoregression(rng, len(time), step, 3_600.0)
    noise = 0.4 * rng.standard_normal(len(time))
    log_level = clusters + 0.3 * np.minimum(move, 5.0) - 0.35 * np.cos(hour - np.pi / 6.0) + slow + noise
    return coin.daily_notional * step / DAY_SECONDS * np.exp(log_level)
