"""Bar feeds: a recorded dataset, or live candles with features computed by the same code as in datasets.

A live feed computes features over a window of `N_WARMUPS` warm-up periods. On 5-minute bars of 2024, the result is
bit-identical to a dataset built from all eight months (tests/paper_trading/test_feeds.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np

from market.bars.candles import PRICES, BarGrid, fill_gaps, segments_of
from market.dataset import Dataset
from market.defaults import DEFAULT_MAX_FILL_BARS
from market.errors import UserError
from market.features import feature_set, segment_features
from market.times import utc_text
from paper_trading.traded_account import Window

N_WARMUPS = 2  # warm-up before the first feature that is used, as a multiple of the feature set's warm-up
Tick = Callable[[], None]


@dataclass(frozen=True)
class Needs:
    """Market data that a deployment requires."""

    tickers: tuple[str, ...]
    bar_seconds: int
    lookback: int
    feature_set: str
    feature_names: tuple[str, ...]


@dataclass(frozen=True)
class Arrival:
    """A closed bar that has arrived."""

    window: Window  # contiguous bars up to this one; shorter than the lookback after a gap
    late_s: float | None = None  # seconds from its close to its arrival; None in a replay
    candles: Mapping[str, list[Any]] = field(
        default_factory=dict
    )  # live: columns (A,) of the bar, None for missing coins
    earlier: tuple[tuple[Any, ...], ...] = ()  # live: (open time, ticker, five values) of new or revised earlier bars
    notes: tuple[str, ...] = ()  # late, missing or revised bars
    here_s: float = field(default_factory=time.perf_counter)  # arrival time, before features are computed


class Feed(Protocol):
    """Interface of a source of consecutive bars."""

    def first(self, needs: Needs) -> Arrival:
        """Return the newest closed bar with its history."""
        ...

    def next(self, after_s: int, tick: Tick) -> Arrival | None:
        """Return the next bar after this close, or None at the end. `tick` is called while waiting."""
        ...

    def again(self, needs: Needs) -> Arrival:
        """Return the last bar again, for a deployment with different needs."""
        ...

    def next_close_s(self, after_s: int) -> int | None:
        """Return the close time of the next bar, or None if there is none."""
        ...


# ------------------------------------------------------------------------------------------------------------ recorded
class DatasetFeed:
    """Feed that replays the rows of a dataset, with a pause of `pace_s` seconds between bars.

    Args:
        dataset: dataset with the deployment's coins and columns.
        first_row: row of the first observed bar; the lookback precedes it.
        last_row: end of the replay, exclusive.
        pace_s: seconds between bars.
        sleep: function that waits for the given seconds and calls its second argument meanwhile.
    """

    def __init__(
        self, dataset: Dataset, first_row: int, last_row: int, pace_s: float, sleep: Callable[[float, Tick], None]
    ) -> None:  # fmt: skip
        self._data, self._row, self._last, self._pace_s, self._sleep = dataset, first_row, last_row, pace_s, sleep
        self._needs: Needs | None = None

    def first(self, needs: Needs) -> Arrival:
        """Return the first bar of the replay."""
        return self.again(needs)

    def again(self, needs: Needs) -> Arrival:
        """Return the current bar."""
        check_columns(needs, self._data)
        self._needs = needs
        return self._arrival()

    def next(self, after_s: int, tick: Tick) -> Arrival | None:
        """Return the bar of the next row, or None at the end."""
        if self._pace_s > 0:
            self._sleep(self._pace_s, tick)
        tick()
        following = int(np.searchsorted(self._data.time, after_s, side="right"))
        if following >= self._last:
            return None
        self._row = following
        return self._arrival()

    def next_close_s(self, after_s: int) -> int | None:
        """Return the close time of the next row, or None at the end."""
        following = int(np.searchsorted(self._data.time, after_s, side="right"))
        return None if following >= self._last else int(self._data.time[following])

    @property
    def n_steps(self) -> int:
        """Number of bars from the current one to the end of its segment or of the replay."""
        end = next(last for first, last in self._data.segments if first <= self._row < last)
        return min(end, self._last) - 1 - self._row

    def _arrival(self) -> Arrival:
        assert self._needs is not None
        begin = next(first for first, last in self._data.segments if first <= self._row < last)
        rows = slice(max(begin, self._row - self._needs.lookback), self._row + 1)
        data = self._data
        return Arrival(Window(data.time[rows], data.price[rows], data.tech[rows], data.filled[rows]))


def check_columns(needs: Needs, dataset: Dataset) -> None:
    """Raise UserError unless the dataset has the same coins, columns and bar length, in the same order."""
    for what, ours, theirs in (
        ("coins", needs.tickers, dataset.tickers),
        ("features", needs.feature_names, dataset.feature_names),
        ("bar seconds", (needs.bar_seconds,), (dataset.bar_seconds,)),
    ):
        if tuple(ours) != tuple(theirs):
            raise UserError(f"the deployment needs {what} {_brief(ours)}; the dataset has {_brief(theirs)}")


def _brief(names: Sequence[Any]) -> str:
    words = [str(name) for name in names]
    return ", ".join(words) if len(words) <= 8 else f"{', '.join(words[:4])}, ... {words[-1]}"


# ---------------------------------------------------------------------------------------------------------------- live
@dataclass(frozen=True)
class Candle:
    """One coin's bar, as sent by the venue."""

    open: float
    high: float
    low: float
    close: float
    volume: float


Candles = Mapping[int, Mapping[str, Candle]]  # open time, UTC seconds -> ticker -> candle


def needed_bars(needs: Needs) -> int:
    """Return the number of bars that a live feed keeps: warm-up, lookback and a reserve for missed bars."""
    warmup = feature_set(needs.feature_set).warmup_bars
    return (N_WARMUPS + 1) * warmup + needs.lookback + 1


class BarStore:
    """Keeps the most recent candles of the deployment's coins and computes their features.

    If only some coins have a bar, the other coins were not traded. Their bars are filled by the same rule, and up to
    the same limit, as in datasets. The series breaks if no coin has a bar, or if the bars of one coin are missing for
    longer.
    """

    def __init__(self, needs: Needs, max_fill_bars: int = DEFAULT_MAX_FILL_BARS) -> None:
        self.needs, self.max_fill_bars = needs, max_fill_bars
        self._bars: dict[int, dict[str, Candle]] = {}  # by open time
        self._changed: list[tuple[int, str]] = []  # since the last call of `taken`

    def add(self, candles: Candles) -> list[str]:
        """Add bars and return a note for each revised bar."""
        notes = []
        for open_s, coins in sorted(candles.items()):
            bar = self._bars.setdefault(open_s, {})
            for ticker, candle in coins.items():
                known = bar.get(ticker)
                if known == candle:
                    continue
                if known is not None:
                    notes.append(f"{ticker}: the bar of {utc_text(open_s + self.needs.bar_seconds)} was revised, close "
                                 f"{known.close:g} -> {candle.close:g}")  # fmt: skip
                bar[ticker] = candle
                self._changed.append((open_s, ticker))
        for open_s in sorted(self._bars)[: -needed_bars(self.needs)]:
            del self._bars[open_s]
        return notes

    def taken(self, open_s: int) -> tuple[tuple[Any, ...], ...]:
        """Return (open time, ticker, five values) of earlier bars that are new or revised since the last call."""
        rows = [
            (at, ticker, *vars(self._bars[at][ticker]).values())
            for at, ticker in dict.fromkeys(self._changed)
            if at < open_s and at in self._bars
        ]
        self._changed = [(at, ticker) for at, ticker in self._changed if at > open_s]
        return tuple(rows)

    def missing(self, open_s: int) -> list[str]:
        """Return the coins without a bar at this open time."""
        bar = self._bars.get(open_s, {})
        return [ticker for ticker in self.needs.tickers if ticker not in bar]

    def newest(self) -> int | None:
        """Return the open time of the newest bar of any coin, or None."""
        return max(self._bars, default=None)

    def candles_at(self, open_s: int) -> dict[str, list[Any]]:
        """Return the columns (A,) of one bar for the journal, with None for missing coins."""
        bar = self._bars.get(open_s, {})
        names = ("open", "high", "low", "close", "volume")
        found = [bar.get(ticker) for ticker in self.needs.tickers]
        return {name: [None if candle is None else getattr(candle, name) for candle in found] for name in names}

    def grid(self, last_open_s: int) -> BarGrid:
        """Return all bars up to this open time on a complete grid, with gaps filled as in a dataset."""
        step, tickers = self.needs.bar_seconds, self.needs.tickers
        first = min(self._bars, default=last_open_s)
        time = np.arange(max(first, last_open_s - needed_bars(self.needs) * step), last_open_s + step, step)
        columns = {name: np.full((len(time), len(tickers)), np.nan) for name in (*PRICES, "volume")}
        rows = {open_s: row for row, open_s in enumerate(time.tolist())}
        places = {ticker: a for a, ticker in enumerate(tickers)}
        known = [(rows[at], places[ticker], candle) for at in self._bars.keys() & rows.keys()
                 for ticker, candle in self._bars[at].items()]  # fmt: skip
        for name, column in columns.items():
            for row, place, candle in known:
                column[row, place] = getattr(candle, name)
        self._stand_in_for_untraded(columns)
        traded = np.maximum.accumulate(columns["volume"] > 0, axis=0)
        none = np.zeros((len(time), len(tickers)), dtype=bool)
        untraded = (columns["volume"] == 0) & traded
        grid = BarGrid(time=time, **columns, filled=none, untraded=untraded, tickers=tickers, bar_seconds=step)
        return fill_gaps(grid, self.max_fill_bars)

    def _stand_in_for_untraded(self, columns: dict[str, np.ndarray]) -> None:
        """Add up to `max_fill_bars` flat bars without volume to coins that have no bar at the end.

        In a dataset, such a gap is filled only if the coin has a later bar. In live trading, that bar is not known yet.
        """
        close = columns["close"]
        is_there = ~np.isnan(close)
        for a in range(close.shape[1]):
            rows = np.flatnonzero(is_there[:, a])
            if len(rows) == 0:
                continue
            last = int(rows[-1])
            for row in range(last + 1, min(len(close), last + 1 + self.max_fill_bars)):
                if not is_there[row].any():
                    break
                for name in PRICES:
                    columns[name][row, a] = close[last, a]
                columns["volume"][row, a] = 0.0

    def window(self, last_open_s: int) -> Window:
        """Return the contiguous bars up to this open time with their features. Leave out bars with incomplete features.

        If the newest bar has no features yet, the window contains only that bar, with features of zero.
        """
        grid, chosen = self.grid(last_open_s), feature_set(self.needs.feature_set)
        runs = segments_of(grid)
        first, last = runs[-1] if runs and runs[-1][1] == len(grid.time) else (len(grid.time), len(grid.time))
        if last - first <= chosen.warmup_bars:
            return _without_features(grid, len(self.needs.feature_names))
        tech = segment_features(grid.rows(first, last), chosen)
        kept = slice(first + chosen.warmup_bars, last)
        # After a gap, a lookback is used as soon as one warm-up precedes each of its rows, as in a dataset.
        n_settled = last - first - N_WARMUPS * chosen.warmup_bars
        usable = slice(-max(n_settled, self.needs.lookback + 1), None)
        untraded = (grid.filled | grid.untraded)[kept]
        return Window((grid.time[kept] + self.needs.bar_seconds)[usable], grid.close[kept][usable], tech[usable],
                      untraded[usable])  # fmt: skip


def _without_features(grid: BarGrid, n_features: int) -> Window:
    """Return a window of only the newest bar. A coin with no price in that bar keeps its previous price."""
    close = grid.close.copy()
    for row in range(1, len(close)):
        close[row] = np.where(np.isnan(close[row]), close[row - 1], close[row])
    tech = np.zeros((1, n_features), np.float32)
    return Window(grid.time[-1:] + grid.bar_seconds, close[-1:], tech, np.isnan(grid.close[-1:]))


def utc(seconds: float) -> datetime:
    """Convert UTC seconds to a datetime."""
    return datetime.fromtimestamp(seconds, UTC)


def until(window: Window, n_back: int, lookback: int) -> Window:
    """Return the window as of `n_back` bars ago, with at most lookback + 1 bars."""
    end = len(window) - n_back
    rows = slice(max(end - lookback - 1, 0), end)
    return replace(window, close_s=window.close_s[rows], price=window.price[rows], tech=window.tech[rows],
                   filled=window.filled[rows])  # fmt: skip
