"""Construction of a dataset from tidy bars, used for exchange files, downloads and the sample market."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pandas as pd

from market.bars.candles import SYNTHETIC, BarGrid, fill_gaps, is_synthetic, resample, segments_of, to_grid
from market.bars.quality import account_of_bars, gap_report, warn_of_few
from market.bars.spellings import perpetual_warnings
from market.dataset import Dataset, make_dataset
from market.defaults import DEFAULT_MAX_FILL_BARS, MIN_SEGMENT_BARS
from market.errors import BarsError
from market.features import feature_set, segment_features
from market.names import match_symbols, timeframe_name, timeframe_seconds
from market.times import utc_text
from market.venues import ALPACA, Venue


def dataset_from_bars(
    bars: pd.DataFrame,
    tickers: Sequence[str],
    timeframe: str,
    *,
    source: str,
    synthetic: bool = False,
    start: datetime | None = None,
    end: datetime | None = None,
    max_fill_bars: int = DEFAULT_MAX_FILL_BARS,
    features: str = "default",
    venue: Venue = ALPACA,
    offset_s: int = 0,
    now: datetime | None = None,
) -> Dataset:
    """Build a dataset: align bars, fill short gaps, resample, split into segments, compute features, drop warm-up.

    Args:
        bars: tidy bars, as returned by `market.bars.candles.read_bars`.
        tickers: coin names in any form, in the order of the dataset's columns.
        timeframe: timeframe of the dataset, equal to that of the bars or longer.
        source: origin of the bars, stored in the manifest and named in errors.
        synthetic: if True, the bars are synthetic. Bars marked as synthetic are always treated as synthetic.
        start: open time of the first bar, UTC, inclusive.
        end: upper bound of open times, UTC, exclusive.
        max_fill_bars: number of missing source bars to fill at the start of each gap. Longer gaps split the data.
        features: name of the feature set.
        venue: venue of the coins, with its order rules and fees.
        offset_s: offset of the bars' open times from the UTC grid in seconds. 57600 for days from 16:00 UTC.
        now: bars that close after this time are dropped with a warning; None is the current time. Synthetic bars are
            kept.

    Returns:
        A dataset of all usable bars. Every row belongs to a segment.

    Raises:
        BarsError: no run of bars is long enough, or the bars cannot be used.
    """
    bar_seconds, chosen = timeframe_seconds(timeframe), feature_set(features)
    bars = bars.assign(**{SYNTHETIC: True}) if synthetic else bars
    fine = fill_gaps(to_grid(bars, tickers, source, start, end, offset_s, now), max_fill_bars)
    grid, warmup = resample(fine, bar_seconds, offset_s), chosen.warmup_bars
    runs = [run for run in segments_of(grid) if run[1] - run[0] >= warmup + MIN_SEGMENT_BARS]
    if not runs:
        raise BarsError(_too_few(grid, source, warmup))
    symbols = match_symbols(tickers, map(str, bars["symbol"].unique()))
    gaps = gap_report(fine, max_fill_bars)
    gaps["warnings"] = [*perpetual_warnings(symbols), *gaps["warnings"]]
    rows = np.concatenate([np.arange(first + warmup, last) for first, last in runs])
    ends = np.cumsum([last - first - warmup for first, last in runs])
    return make_dataset(
        price=grid.close[rows],
        tech=np.concatenate([segment_features(grid.rows(first, last), chosen) for first, last in runs]),
        time=grid.time[rows] + bar_seconds,
        filled=(grid.filled | grid.untraded)[rows],
        tickers=grid.tickers,
        feature_set=features,
        feature_names=chosen.names(grid.tickers, bar_seconds),
        feature_coins=chosen.coins(len(grid.tickers), bar_seconds),
        warmup_bars=warmup,
        bar_seconds=bar_seconds,
        segments=list(zip([0, *ends[:-1]], ends, strict=True)),
        source=source,
        synthetic=is_synthetic(bars),
        venue=venue,
        quality=warn_of_few(gaps | account_of_bars(grid, runs, warmup)),
    )


def _too_few(grid: BarGrid, source: str, warmup: int) -> str:
    there = [grid.time[~missing] for missing in grid.missing.T]
    ends = {ticker: int(opens[-1]) for ticker, opens in zip(grid.tickers, there, strict=True) if len(opens)}
    begins = {ticker: int(opens[0]) for ticker, opens in zip(grid.tickers, there, strict=True) if len(opens)}
    ended, begun = min(ends, key=lambda ticker: ends[ticker]), max(begins, key=lambda ticker: begins[ticker])
    span = f"{ended} ends {utc_text(ends[ended])} and {begun} begins {utc_text(begins[begun])}"
    if ends[ended] < begins[begun]:
        return (
            f"{source}: {span}, so no bar has both; if a coin was renamed, use one symbol for all its bars, otherwise "
            "remove one of the two from --tickers"
        )
    longest = max((last - first for first, last in segments_of(grid)), default=0)
    return (
        f"{source}: the longest run of {timeframe_name(grid.bar_seconds)} bars shared by {', '.join(grid.tickers)} "
        f"has {longest} bars; at least {warmup + MIN_SEGMENT_BARS} are required ({warmup} of them warm-up); "
        f"use a longer period, a shorter timeframe or fewer tickers ({span})"
    )
