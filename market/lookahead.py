"""Look-ahead analysis of the dataset pipeline: does any row change if only later bars change?

The dataset is built from all bars. For each of several cuts in time it is built again from changed bars:

* truncated: all source bars that open at or after the cut are removed.
* scrambled: these bars are kept, but their prices and volumes are replaced (`scramble`).

Every row of either build that closes at or before the cut must exist in both builds, with bit-identical price,
features and `filled`. Both builds run the same code, so no rounding tolerance is needed.

By rule, later bars may decide whether a row exists in two cases, which are not leaks of a value:

* The first `max_fill_bars` missing bars of a run are filled if the coin trades again, however late. A run that is still
  open at the end of the bars is not filled. The truncated build is therefore not compared from the first missing bar of
  any coin up to the cut.
* A segment enters a dataset once it has `MIN_SEGMENT_BARS` rows. Rows of a shorter segment that is open at the cut are
  not compared in the truncated build either.

Such rows are reported as undecided. The scrambled build compares their VALUES, because the same bars are present and
missing in it. A filled row reveals only that the coin trades again at some later time, and the simulator executes no
orders in it. The report counts filled rows.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pandas as pd
from msgspec import structs

from market.bars.candles import PRICES, BarGrid, fill_gaps, to_grid
from market.bars.quality import has_report
from market.bars.spellings import chosen_symbols
from market.build import dataset_from_bars
from market.dataset import Dataset
from market.defaults import FEATURE_SET_NAMES, MIN_SEGMENT_BARS
from market.errors import BarsError, DatasetError
from market.names import timeframe_name
from market.times import utc_text

Build = Callable[[pd.DataFrame], Dataset]
CUTS, MOST_SECONDS = 8, 60.0
OWN_BARS = "pass the bars from which it was built, or rebuild it"
SLOWER = 1.2  # duration of a build of changed bars, relative to the original build
LARGEST_LOG_FACTOR = 1.5  # largest factor by which a price is scrambled, up or down: from 1 / 4.5 to 4.5


@dataclass(frozen=True)
class Cut:
    """A time up to which bars are known."""

    time_s: int  # UTC seconds; source bars that open at or after this are unknown
    kind: str  # why this time was chosen

    def __str__(self) -> str:
        """Describe the cut for a report."""
        return f"{utc_text(self.time_s)} ({self.kind})"


@dataclass(frozen=True)
class RowDifference:
    """The first row that changes if later bars change."""

    time_s: int  # UTC seconds, close of the row's bar
    column: str  # `price BTC`, `filled BTC`, `feature BTC:rsi_14`, `row`, or `dataset refused (why)`
    full: float  # value with all bars; for `row` 1 if it exists, otherwise 0
    other: float  # value with the changed bars
    n_columns: int  # columns that differ in this row
    cut: Cut
    variant: str  # `truncated` or `scrambled`

    @property
    def is_refusal(self) -> bool:
        """True if no dataset can be built from the changed bars."""
        return self.column.startswith("dataset refused")

    def __str__(self) -> str:
        """Describe the difference in one line."""
        if self.is_refusal:
            what = f"{self.column}, so rows before the cut depend on bars after it"
        elif self.column == "row":
            there = "exists only with the later bars" if self.full else "exists only without the later bars"
            what = f"the row {there}"
        else:
            more = f" (and {self.n_columns - 1} more columns)" if self.n_columns > 1 else ""
            what = f"{self.column} is {self.full:.9g} and {self.other:.9g}, off by {self.other - self.full:.3g}{more}"
        return f"bar {utc_text(self.time_s)}: {what}; bars {self.variant} from {self.cut}"


@dataclass(frozen=True)
class BarsReport:
    """Result of the look-ahead analysis of a pipeline."""

    differences: tuple[RowDifference, ...]  # the first difference of each cut and variant
    cuts: tuple[Cut, ...]
    rows_compared: int  # total over all cuts and variants
    undecided_rows: int  # total over all cuts: rows whose existence was not known at the cut
    filled_rows: int  # rows of the dataset in which some coin had no trades

    @property
    def first(self) -> RowDifference | None:
        """The difference with the earliest bar. A refusal is returned only if there is no other difference."""
        return min(self.differences, key=lambda found: (found.is_refusal, found.time_s), default=None)


def compare_cuts(
    full: Dataset,
    bars: pd.DataFrame,
    build: Build,
    grid: BarGrid,
    max_fill_bars: int,
    n_cuts: int,
    seed: int,
    on_run: Callable[[], object] = lambda: None,
) -> BarsReport:
    """Rebuild the dataset with different later bars and compare the results.

    Args:
        full: result of `build` on all bars.
        bars: tidy bars, as returned by `market.bars.candles.read_bars`.
        build: pipeline under test. It must be deterministic.
        grid: the same bars and coins on their own time grid, without fills.
        max_fill_bars: number of bars that `build` fills per gap.
        n_cuts: number of cuts.
        seed: seed of the cuts and the scrambled bars.
        on_run: callback after each of the 2 * n_cuts builds.
    """
    rng, grid = np.random.default_rng(seed), fill_gaps(grid, 0)  # bars that repeat the last close become missing
    cuts = choose_cuts(full, grid, max_fill_bars, n_cuts, rng)
    found, n_compared, n_undecided = [], 0, 0
    for cut in cuts:
        known = _known_until(full, grid, cut)
        closed = int(np.searchsorted(full.time, cut.time_s, side="right"))
        for variant, until_s in (("truncated", known), ("scrambled", cut.time_s)):
            changed = truncate(bars, cut) if variant == "truncated" else scramble(bars, cut, rng)
            found.append(_rebuilt_difference(full, build, changed, until_s, cut, variant))
            n_compared += int(np.searchsorted(full.time, until_s, side="right"))
            on_run()
        n_undecided += closed - int(np.searchsorted(full.time, known, side="right"))
    differences = tuple(difference for difference in found if difference is not None)
    n_filled = int(full.filled.any(axis=1).sum())
    return BarsReport(differences, cuts, n_compared, n_undecided, n_filled)


# ------------------------------------------------------------------------------------------------- a dataset's own bars
def checked(
    dataset: Dataset,
    bars: pd.DataFrame,
    tickers: Sequence[str] | None = None,
    *,
    n_cuts: int = CUTS,
    seed: int = 0,
    most_seconds: float = MOST_SECONDS,
    on_run: Callable[[int], object] = lambda n_runs: None,
) -> tuple[Dataset, BarsReport]:
    """Return the dataset with an updated look-ahead record, and the report.

    The build settings are read from the manifest. The dataset rebuilt from the given bars must be bit-identical.

    Args:
        dataset: a dataset made by `market.build.dataset_from_bars`, in this process or earlier.
        bars: its source bars, as returned by `market.bars.candles.read_bars`.
        tickers: tickers passed to the original build; None uses those of the dataset.
        n_cuts: number of cuts. Fewer are used to stay within `most_seconds`, but at least one.
        seed: seed of the cuts and the scrambled bars.
        most_seconds: time limit for all builds, estimated from the first.
        on_run: callback after each build, with the total number of builds.

    Raises:
        BarsError: there are too few bars for a cut, or the bars cannot be used.
        DatasetError: the bars make a different dataset.
    """
    source, quality = dataset.source, dataset.quality
    if dataset.feature_set not in FEATURE_SET_NAMES or not has_report(quality, dataset.tickers):
        raise DatasetError(f"{source}: this program did not compute its columns from bars, so it cannot rebuild them")
    tickers = tuple(tickers or dataset.tickers)
    bars = bars.loc[bars["symbol"].isin(chosen_symbols(bars, tickers, source))]
    first_s, step = quality["source_first_open_s"], quality["source_bar_seconds"]
    start, end = (datetime.fromtimestamp(first_s + step * n, UTC) for n in (0, quality["source_bars"]))
    fill, offset_s = quality["max_fill_bars"], int(dataset.time[0] % dataset.bar_seconds)
    build = partial(
        dataset_from_bars,
        tickers=tickers,
        timeframe=timeframe_name(dataset.bar_seconds),
        source=source,
        synthetic=dataset.synthetic,
        start=start,
        end=end,
        max_fill_bars=fill,
        features=dataset.feature_set,
        venue=dataset.venue,
        offset_s=offset_s,
    )
    with _quiet():
        began_s = time.monotonic()
        try:
            again = build(bars)
        except BarsError as error:
            raise DatasetError(f"{source}: these bars make no dataset ({error}); {OWN_BARS}") from error
        n_runs = most_seconds / (time.monotonic() - began_s) / SLOWER  # builds that fit the time limit
        n_cuts = max(int(min(n_cuts, (n_runs - 1.0) / 2.0)), 1)
        on_run(2 * n_cuts + 1)
        _refuse_other(dataset, again)
        grid = to_grid(bars, tickers, source, start, end, offset_s)
        report = compare_cuts(dataset, bars, build, grid, fill, n_cuts, seed, lambda: on_run(2 * n_cuts + 1))
    seen = {"bars_sha256": bars_hash(bars), "cuts": len(report.cuts), "rows_compared": report.rows_compared}
    # A clean result at other cuts does not refute an earlier finding.
    finding = dataset.record.finding or ("" if report.first is None else str(report.first))
    record = structs.replace(dataset.record, **seen, finding=finding).sealed()
    return replace(dataset, lookahead=record), report


def bars_hash(bars: pd.DataFrame) -> str:
    """Return the SHA-256 of times, symbols, prices and volumes in table order."""
    digest = hashlib.sha256(_open_seconds(bars).tobytes())
    digest.update("\n".join(bars["symbol"].astype(str)).encode())
    for name in (*PRICES, "volume"):
        digest.update(bars[name].to_numpy(dtype=np.float64).tobytes())
    return digest.hexdigest()


def _refuse_other(dataset: Dataset, again: Dataset) -> None:
    """Raise DatasetError if the rebuilt dataset has different values."""
    if (dataset.tickers, dataset.feature_names) != (again.tickers, again.feature_names):
        other = "columns differ"
    else:
        last_s = int(max(dataset.time[-1], again.time[-1]))
        found = first_difference(dataset, again, last_s, Cut(last_s, ""), "")
        other = "" if found is None else f"{found.column} differs at {utc_text(found.time_s)}"
    if other:
        raise DatasetError(f"{dataset.source}: these bars make a different dataset ({other}); {OWN_BARS}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings about the bars, which the original build has already logged."""
    logger = logging.getLogger("market")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# ------------------------------------------------------------------------------------------------- other futures
def truncate(bars: pd.DataFrame, cut: Cut) -> pd.DataFrame:
    """Return the bars that opened before the cut."""
    return bars.loc[_open_seconds(bars) < cut.time_s]


def scramble(bars: pd.DataFrame, cut: Cut, rng: np.random.Generator) -> pd.DataFrame:
    """Return the same table with different prices and volumes from the cut onward. No bar appears or disappears.

    Random factors change open, close and the range around them, so returns, ranges and bodies all differ. The bars stay
    valid: low <= open, close <= high. Volumes are shuffled among the coin's later bars and scaled.
    """
    later = np.flatnonzero(_open_seconds(bars) >= cut.time_s)
    factor = np.exp(rng.uniform(-LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR, (4, len(later))))
    changed = {name: bars[name].to_numpy(copy=True) for name in (*PRICES, "volume")}
    opens, closes = changed["open"][later] * factor[0], changed["close"][later] * factor[1]
    changed["open"][later], changed["close"][later] = opens, closes
    changed["high"][later] = np.maximum(opens, closes) * (1.0 + rng.uniform(0.0, 0.2, len(later)))
    changed["low"][later] = np.minimum(opens, closes) * (1.0 - rng.uniform(0.0, 0.2, len(later)))
    symbol = bars["symbol"].cat.codes.to_numpy()[later]
    shuffled = later[np.lexsort((rng.random(len(later)), symbol))]
    by_symbol = later[np.argsort(symbol, kind="stable")]
    changed["volume"][by_symbol] = changed["volume"][shuffled]
    changed["volume"][later] *= factor[2]
    return bars.assign(**changed)


def _open_seconds(bars: pd.DataFrame) -> np.ndarray:
    return bars["timestamp"].dt.as_unit("s").astype("int64").to_numpy()


# ------------------------------------------------------------------------------------------------- where to cut
def choose_cuts(
    full: Dataset, grid: BarGrid, max_fill_bars: int, n_cuts: int, rng: np.random.Generator
) -> tuple[Cut, ...]:
    """Choose cuts in time order: random times and times at which pipelines tend to fail, one kind after another.

    No cut is before the first segment has `MIN_SEGMENT_BARS` rows, because a shorter dataset cannot be built.

    Raises:
        BarsError: fewer than one cut is requested, or no bar is late enough.
    """
    if n_cuts < 1:
        raise BarsError(f"the number of cuts must be at least 1; received {n_cuts}")
    first, last = full.segments[0]
    earliest = full.time[min(first + MIN_SEGMENT_BARS, last) - 1]
    pools = {}
    for kind, times in _candidates(full, grid, max_fill_bars):
        times = np.unique(times[(times >= earliest) & (times <= grid.time[-1])])
        if len(times):
            pools[kind] = rng.permutation(times)
    if not pools:
        raise BarsError(
            f"no bar is later than {utc_text(earliest)}, so there are no later bars to change; use more bars"
        )
    chosen: dict[int, str] = {}
    for turn in range(max(map(len, pools.values()))):
        for kind, times in pools.items():
            if turn < len(times) and len(chosen) < n_cuts:
                chosen.setdefault(int(times[turn]), kind)
    return tuple(Cut(time_s, kind) for time_s, kind in sorted(chosen.items()))


def _candidates(full: Dataset, grid: BarGrid, max_fill_bars: int) -> Iterator[tuple[str, np.ndarray]]:
    step, filled = grid.bar_seconds, fill_gaps(grid, max_fill_bars).filled.any(axis=1)
    firsts = np.array([first for first, _ in full.segments])
    lasts = np.array([last - 1 for _, last in full.segments])
    enough = np.minimum(firsts + MIN_SEGMENT_BARS - 1, lasts)  # row with which a segment is long enough to be kept
    resumes = np.flatnonzero(~grid.missing[1:].any(axis=1) & grid.missing[:-1].any(axis=1)) + 1
    yield "anywhere", grid.time
    yield "in a filled run", grid.time[filled] + step
    yield "right after a gap", grid.time[resumes] + step
    yield "start of a segment", full.time[np.concatenate([firsts, enough, np.maximum(enough - 1, firsts)])]
    yield "end of a segment", full.time[lasts]
    if full.bar_seconds > step:
        # Dataset times are closes, which equal the open of the next bar.
        yield "edge of a resampled bar", full.time
        yield "inside a resampled bar", np.concatenate([full.time - step, full.time + step])


def _known_until(full: Dataset, grid: BarGrid, cut: Cut) -> int:
    """Return the UTC seconds up to which a row's existence was known at the cut.

    Up to this time every coin had bars, and the segment had enough rows to be kept.
    """
    n_known = int(np.searchsorted(grid.time, cut.time_s))
    missing = grid.missing[:n_known]
    last_real = n_known - 1 - (~missing[::-1]).argmax(axis=0)  # (A,), as every coin has a bar before any cut
    until = min(cut.time_s, int(grid.time[last_real.min()]) + grid.bar_seconds)
    n_rows = int(np.searchsorted(full.time, until, side="right"))
    for first, last in full.segments:
        if first < n_rows < last and n_rows - first < MIN_SEGMENT_BARS:
            return int(full.time[first]) - 1
    return until


# ------------------------------------------------------------------------------------------------- comparison
def _rebuilt_difference(
    full: Dataset, build: Build, changed: pd.DataFrame, until_s: int, cut: Cut, variant: str
) -> RowDifference | None:
    """Return the first difference from the build of changed bars. A failed build differs in the first row."""
    try:
        other = build(changed)
    except (BarsError, DatasetError) as error:
        column = f"dataset refused ({error})"
        return RowDifference(int(full.time[0]), column, 1.0, 0.0, len(full.feature_names), cut, variant)
    return first_difference(full, other, until_s, cut, variant)


def first_difference(full: Dataset, other: Dataset, until_s: int, cut: Cut, variant: str) -> RowDifference | None:
    """Return the first row closing at or before `until_s` that is not bit-identical in both datasets, or None."""
    n_full = int(np.searchsorted(full.time, until_s, side="right"))
    n_other = int(np.searchsorted(other.time, until_s, side="right"))
    in_one_only = np.setxor1d(full.time[:n_full], other.time[:n_other])
    if len(in_one_only):
        time_s = int(in_one_only[0])
        n_full = int(np.searchsorted(full.time, time_s))
        n_other = int(np.searchsorted(other.time, time_s))
        is_in_full = n_full < len(full.time) and full.time[n_full] == time_s
        row = RowDifference(time_s, "row", float(is_in_full), float(not is_in_full), 1, cut, variant)
    else:
        row = None
    # Both datasets have the same rows up to there.
    differs, names, values = [], [], []
    for prefix, columns, name in (
        ("price", full.tickers, "price"),
        ("filled", full.tickers, "filled"),
        ("feature", full.feature_names, "tech"),
    ):
        ours, theirs = getattr(full, name)[:n_full], getattr(other, name)[:n_other]
        differs.append(bits(ours) != bits(theirs))
        names += [f"{prefix} {column}" for column in columns]
        values.append((ours, theirs))
    is_different = np.concatenate(differs, axis=1)
    rows = is_different.any(axis=1)
    if not rows.any():
        return row
    bar = int(rows.argmax())
    column = int(is_different[bar].argmax())
    ours, theirs = (np.concatenate([pair[side][bar].astype(np.float64) for pair in values]) for side in (0, 1))
    count = int(is_different[bar].sum())
    return RowDifference(
        int(full.time[bar]), names[column], float(ours[column]), float(theirs[column]), count, cut, variant
    )


def bits(values: np.ndarray) -> np.ndarray:
    """Return the array reinterpreted as integers, so that NaN equals NaN and nothing is rounded."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def summary_lines(report: BarsReport, tickers: Sequence[str]) -> Iterator[str]:
    """Yield a summary of the comparison for a terminal, without the verdict."""
    kinds = [cut.kind for cut in report.cuts]
    counted = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    yield f"bars to dataset: {len(report.cuts)} cuts ({counted}), each with later bars removed and changed"
    yield f"  {report.rows_compared:,} rows of {len(tickers)} coins compared bit by bit"
    if report.undecided_rows:
        yield (
            f"  {report.undecided_rows:,} rows before a cut were undecided at the cut (an open run of missing "
            "bars, or a segment that was too short); their values were compared only in the scrambled builds"
        )
    if report.filled_rows:
        yield (
            f"  note: in {report.filled_rows:,} rows some coin had no trades; the simulator fills no "
            "order of that coin there"
        )
