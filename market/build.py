"""From tidy bars to a dataset: the one pipeline for exchange files, downloads and the sample market."""

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
    """Align, fill short gaps, resample, cut into segments, compute features, drop warm-up.

    Args:
        bars: as `market.bars.candles.read_bars` returns them.
        tickers: names in any form, in the order of the dataset's columns.
        timeframe: of the dataset; the bars' own or a longer one.
        source: where the bars come from, kept in the manifest and used in errors.
        synthetic: True for made-up bars; bars that are marked so make it True by themselves.
        start: first bar open, UTC, included.
        end: bar opens before this, UTC.
        max_fill_bars: missing source bars filled in each gap, from its first on; a longer gap splits the data.
        features: name of the feature set.
        venue: where the coins are traded: order rules and fees.
        offset_s: the bars open this many seconds after the UTC grid, 57600 for days that open at 16:00 UTC.
        now: bars that close after this are left out, which is logged; None is the clock's time. Synthetic bars stay.

    Returns:
        A dataset whose rows are exactly the usable bars: every row belongs to a segment.
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
            f"{source}: {span}, so no bar has both; if a coin was renamed, give its bars one symbol in the file, else "
            "leave one of the two out of --tickers"
        )
    longest = max((last - first for first, last in segments_of(grid)), default=0)
    return (
        f"{source}: the longest run of {timeframe_name(grid.bar_seconds)} bars that {', '.join(grid.tickers)} all have "
        f"is {longest}; at least {warmup + MIN_SEGMENT_BARS} are needed ({warmup} of them warm-up); "
        f"give a longer period, a shorter timeframe, or fewer tickers ({span})"
    )
