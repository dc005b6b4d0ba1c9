"""What the trials of a study share: the data sets, cut into folds, the same for every trial.

Before anything else the last part of the data is cut off, the hold-out: no fold, search space or trial gets an object
that contains its rows. It is recorded by its hash and scored once, for the study's winner (`train.findings.holdout`).

A fold is a split of the rest with a validation slice: fit bars, validation bars (choose the checkpoint), test bars
(score). The distances use the largest lookback of the search space, so the bars of a fold do not depend on a trial's
settings.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from market.dataset import Dataset, load_dataset
from market.errors import BarsError
from market.names import match_symbols, timeframe_name
from market.times import utc_text
from train.records.errors import StudyError
from train.records.stored import Holdout, Origin
from train.study.search_space import LEAST_EPISODE_BARS, MAX_LOOKBACK
from train.study.split_plan import TIMEFRAMES, SplitPlan
from train.validation.splits import (
    Segments,
    Split,
    SplitError,
    bars_in,
    combinatorial_purged_splits,
    expanding_splits,
    purged_kfold_splits,
    rolling_splits,
    subtract,
    validation_cut,
    with_warmup,
)

logger = logging.getLogger(__name__)

SAME_CLOSE = 1e-9  # largest difference between two closes of one moment, as a fraction
WALK_FORWARD_TRAIN_GROUPS = 2  # length of the (first) walk-forward training window, in test blocks
FILL_DELAY_BARS = 1  # an order decided on bar t is filled on bar t + 1
EMBARGO_FRACTION = 0.01  # of all bars (Lopez de Prado 2018, section 7.4.2)
VALIDATION_FRACTION = 0.15  # of every training segment
LEAST_TRADED_BARS = 64  # of a validation slice, and of all test blocks of a fold together


@dataclass(frozen=True)
class Fold:
    """One split of one data set, ready to train on. Blocks are bars of the data set."""

    index: int
    fit: Segments
    validation: Segments  # may be empty when the data is short
    test: Segments
    test_groups: tuple[int, ...]  # of each test block


@dataclass(frozen=True)
class HoldoutRows:
    """The held-out bars themselves; no trial is given one."""

    dataset: Dataset  # purged bars, to be observed only, then held-out ones
    blocks: Segments  # held-out bars, cut at the seams
    about: Holdout


@dataclass(frozen=True)
class FoldedData:
    """A data set without its hold-out, and its folds."""

    timeframe: str
    dataset: Dataset
    folds: tuple[Fold, ...]
    purge_bars: int
    embargo_bars: int
    parent_sha256: str  # of the data set on disk, before coins were chosen and bars cut
    holdout: Holdout | None = None

    @property
    def origin(self) -> Origin:
        """Which bars a result stands on, to write beside it."""
        return Origin(self.dataset.synthetic, self.dataset.label, self.dataset.sha256)

    @property
    def longest_episode_bars(self) -> int:
        """Steps in the longest window that every fold's training data holds."""
        longest = min(max(last - first for first, last in fold.fit) for fold in self.folds)
        return longest - MAX_LOOKBACK


def load_study_data(
    data_dir: Path, timeframe: str | None, tickers: Sequence[str] | None, plan: SplitPlan
) -> tuple[FoldedData, ...]:
    """The data sets a study uses: one, or in multi-timeframe mode every timeframe beside it.

    Args:
        data_dir: a data set, or a folder of data sets named by their timeframes.
        timeframe: of the data set to use; None takes the data set's own.
        tickers: coins to keep, in this order; None keeps all.
        plan: how to divide each.

    Raises:
        StudyError, DatasetError, SplitError: one line that says what is wrong and what to do.
    """
    return tuple(
        fold_data(study, plan, parent, rows.about if rows else None)
        for study, rows, parent in cut_data(data_dir, timeframe, tickers, plan)
    )


def cut_data(
    data_dir: Path, timeframe: str | None, tickers: Sequence[str] | None, plan: SplitPlan
) -> list[tuple[Dataset, HoldoutRows | None, str]]:
    """The data sets of a study, each cut in two: (bars of the study, hold-out, hash of the data set on disk)."""
    folder = _dataset_folder(data_dir, timeframe)
    folders = _siblings(folder) if plan.mode == "multi-timeframe" else (folder,)
    datasets = [load_dataset(f) for f in folders]
    own = timeframe_name(datasets[folders.index(folder)].bar_seconds)
    if timeframe not in (None, own):
        raise StudyError(
            f"--timeframe {timeframe}: {folder} holds {own} bars; pass --timeframe {own} or another folder"
        )
    chosen = common_market([select_tickers(dataset, tickers) for dataset in datasets])
    parents = [dataset.sha256 for dataset in datasets]
    cut = cut_holdout(chosen, plan.holdout_fraction, parents)
    return [(study, rows, parent) for (study, rows), parent in zip(cut, parents, strict=True)]


def cut_holdout(
    datasets: Sequence[Dataset], fraction: float, parents: Sequence[str]
) -> list[tuple[Dataset, HoldoutRows | None]]:
    """Cut the last `fraction` off, the purge before it.

    Data sets of several timeframes are all cut at one time, and their bars for the study end at one time, so that
    trials in different timeframes are compared on the same period: the longest bars have the longest purge, and the
    others lose as much.

    Args:
        datasets: of one market, the shortest bars first.
        fraction: of the bars; 0 holds nothing out.
        parents: hash of each data set on disk.

    Raises:
        StudyError: too few bars for the study, or too few held out to say anything.
    """
    if fraction == 0.0:
        return [(dataset, None) for dataset in datasets]
    longest = datasets[-1]  # its bars open when shorter ones do
    first = len(longest.time) - max(math.floor(fraction * len(longest.time)), 1)
    opens_s = int(longest.time[first]) - longest.bar_seconds
    firsts = [int(np.searchsorted(d.time, opens_s + d.bar_seconds)) for d in datasets]
    purges = [purge_bars_of(d) for d in datasets]
    for d, row, purge in zip(datasets, firsts, purges, strict=True):
        if row <= purge:
            raise StudyError(
                f"--holdout {fraction:g} leaves {row} bars of {timeframe_name(d.bar_seconds)} before it, and {purge} "
                "of them are purged; give more data, or a smaller fraction"
            )
    closes_s = min(int(d.time[row - purge - 1]) for d, row, purge in zip(datasets, firsts, purges, strict=True))
    lasts = [int(np.searchsorted(d.time, closes_s, side="right")) for d in datasets]
    return [
        (d.with_rows(0, last), _holdout_rows(d, last, row, fraction, parent))
        for d, last, row, parent in zip(datasets, lasts, firsts, parents, strict=True)
    ]


def purge_bars_of(dataset: Dataset) -> int:
    """How far information reaches: the longest observation, the bars its features need, and an order's delay."""
    return MAX_LOOKBACK + dataset.warmup_bars + FILL_DELAY_BARS


def fold_data(
    dataset: Dataset, plan: SplitPlan, parent_sha256: str | None = None, holdout: Holdout | None = None
) -> FoldedData:
    """Divide a data set, from which the hold-out was cut off already, and cut the validation slices."""
    purge = purge_bars_of(dataset)
    embargo = math.ceil(EMBARGO_FRACTION * bars_in(dataset.segments))
    min_train = MAX_LOOKBACK + LEAST_EPISODE_BARS
    try:
        splits = _splits(dataset.segments, plan, purge, embargo, min_train)
    except SplitError as error:
        raise SplitError(f"{timeframe_name(dataset.bar_seconds)}: {error}") from error
    folds = tuple(_fold(i, split, dataset, purge, min_train) for i, split in enumerate(splits))
    parent = parent_sha256 or dataset.sha256
    return FoldedData(timeframe_name(dataset.bar_seconds), dataset, folds, purge, embargo, parent, holdout)


def select_tickers(dataset: Dataset, tickers: Sequence[str] | None) -> Dataset:
    """The data set with only these coins' columns, in this order, under a hash of its own."""
    if tickers is None:
        return dataset
    try:
        names = match_symbols(tickers, dataset.tickers)
    except BarsError as error:
        raise StudyError(f"--tickers: {error}") from error
    if names == dataset.tickers:
        return dataset
    return dataset.with_tickers(names)


def common_market(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Timeframes of one market over one period: the data sets cut to the time that all of them cover.

    Raises:
        StudyError: other coins, generated bars beside real ones, other closes, or no time in common. A trial that chose
            among such data sets would win by its market and not by its settings.
    """
    first = datasets[0]
    name = timeframe_name(first.bar_seconds)
    for other in datasets[1:]:
        theirs = timeframe_name(other.bar_seconds)
        if other.tickers != first.tickers:
            raise StudyError(
                f"--mode multi-timeframe: {name} holds {', '.join(first.tickers)} and {theirs} "
                f"{', '.join(other.tickers)}; name the coins they share with --tickers"
            )
        if other.synthetic != first.synthetic:
            kinds = {True: "synthetic", False: "real"}
            raise StudyError(
                f"--mode multi-timeframe: {name} holds {kinds[first.synthetic]} bars and {theirs} "
                f"{kinds[other.synthetic]} ones; build all from the same bars with scripts/data/build_dataset.py"
            )
        if other.venue != first.venue:
            raise StudyError(
                f"--mode multi-timeframe: {name} has the rules of {first.venue.label} and {theirs} others of "
                f"{other.venue.label}; build all with the same --venue"
            )
    opens = max(int(d.time[0]) - d.bar_seconds for d in datasets)
    closes = min(int(d.time[-1]) for d in datasets)
    if opens >= closes:
        raise StudyError("--mode multi-timeframe: the data sets have no period in common; build all from the same bars")
    for other in datasets[1:]:
        _check_same_closes(first, other)
    return [_cut_to(d, opens, closes) for d in datasets]


def _check_same_closes(one: Dataset, other: Dataset) -> None:
    """Refuse data sets that close one moment at two prices, or share no moment; made-up (filled) bars tell nothing."""
    names = f"{timeframe_name(one.bar_seconds)} and {timeframe_name(other.bar_seconds)}"
    time_s, mine, theirs = np.intersect1d(one.time, other.time, return_indices=True)
    if len(time_s) == 0:
        raise StudyError(f"--mode multi-timeframe: {names} have no close in common; build all from the same bars")
    a, b = np.asarray(one.price)[mine], np.asarray(other.price)[theirs]  # (common, A)
    is_real = ~(np.asarray(one.filled)[mine] | np.asarray(other.filled)[theirs])
    differs = is_real & (np.abs(a - b) > SAME_CLOSE * np.maximum(a, b))
    if differs.any():
        bar, coin = map(int, np.argwhere(differs)[0])
        closes = f"{a[bar, coin]:.10g} and {b[bar, coin]:.10g} at {utc_text(time_s[bar])} UTC"
        raise StudyError(
            f"--mode multi-timeframe: {names} are not the same market: {one.tickers[coin]} closes at {closes} "
            f"({int(differs.sum())} of {differs.size} such closes); build all from the same bars with "
            "scripts/data/build_dataset.py"
        )


def _cut_to(dataset: Dataset, opens_s: int, closes_s: int) -> Dataset:
    """Bars that open at or after one time and close at or before the other (UTC seconds)."""
    time_s = np.asarray(dataset.time)
    a, b = np.searchsorted(time_s, (opens_s + dataset.bar_seconds, closes_s + 1)).tolist()
    if (a, b) == (0, len(time_s)):
        return dataset
    name = timeframe_name(dataset.bar_seconds)
    if not any(max(first, a) < min(last, b) for first, last in dataset.segments):
        raise StudyError(f"--mode multi-timeframe: {name} has no bar in the period that all data sets cover")
    logger.info("multi-timeframe: %d of %d bars of %s lie in the period that all share", b - a, len(time_s), name)
    return dataset.with_rows(a, b)


def _holdout_rows(dataset: Dataset, study_last: int, first: int, fraction: float, parent: str) -> HoldoutRows:
    """Rows from `study_last` on, of which those from `first` on are held out and the others purged."""
    n_rows, purged = len(dataset.time), first - study_last
    rows = dataset.with_rows(study_last, n_rows)
    blocks = subtract(rows.segments, [(0, purged)])
    traded = bars_in(with_warmup(blocks, rows.segments, 1, MAX_LOOKBACK))
    if traded < LEAST_TRADED_BARS:
        raise StudyError(
            f"--holdout {fraction:g} holds {traded} bars of {timeframe_name(dataset.bar_seconds)} out that can be "
            f"traded, and {LEAST_TRADED_BARS} are the least that say anything; give more data, a larger fraction, or 0"
        )
    times = {"first_time_s": int(dataset.time[first]), "last_time_s": int(dataset.time[-1])}
    about = Holdout(**times, bars=n_rows - first, purged_bars=purged, sha256=rows.sha256, parent_sha256=parent)
    return HoldoutRows(rows, blocks, about)


def _splits(segments: Segments, plan: SplitPlan, purge: int, embargo: int, min_train: int) -> tuple[Split, ...]:
    """The design that the mode names."""
    n, window = plan.num_paths, WALK_FORWARD_TRAIN_GROUPS
    if plan.mode == "rolling":
        return rolling_splits(segments, n, window, purge, embargo, min_train)
    if plan.mode == "expanding":
        return expanding_splits(segments, n, window, purge, embargo, min_train)
    if plan.mode == "kfold":
        return purged_kfold_splits(segments, n, purge, embargo, min_train)
    return combinatorial_purged_splits(segments, n + 1, plan.k_test_groups, purge, embargo, min_train)


def _fold(index: int, split: Split, dataset: Dataset, purge_bars: int, min_fit_bars: int) -> Fold:
    # The slice's own warm-up is taken from the purged bars before it.
    fit, validation = validation_cut(split.train, VALIDATION_FRACTION, purge_bars, min_fit_bars, LEAST_TRADED_BARS)
    traded = bars_in(with_warmup(split.test, dataset.segments, 1, MAX_LOOKBACK))
    if traded < LEAST_TRADED_BARS:
        raise StudyError(
            f"test block {index} has {traded} bars that can be traded and at least {LEAST_TRADED_BARS} are needed; "
            f"the data has {bars_in(dataset.segments)} bars. Give more data, or a smaller --num-paths"
        )
    return Fold(index, fit, validation, split.test, split.test_groups)


def _dataset_folder(data_dir: Path, timeframe: str | None) -> Path:
    """The data set meant by --data-dir: the folder itself, or the one of that timeframe (else the shortest) inside."""
    inside = [name for name in TIMEFRAMES if (data_dir / name / "manifest.json").exists()]
    if (data_dir / "manifest.json").exists() or not inside:
        return data_dir
    if timeframe is not None and timeframe not in inside:
        raise StudyError(f"--timeframe {timeframe}: {data_dir} holds {', '.join(inside)} only")
    return data_dir / (timeframe or inside[0])


def _siblings(folder: Path) -> tuple[Path, ...]:
    """Data sets of other timeframes beside this one, itself included, shortest bars first.

    They are real data sets built from bars, not resampled here: features cannot be made from closing prices alone.
    """
    found = [folder.parent / name for name in TIMEFRAMES if (folder.parent / name / "manifest.json").exists()]
    if folder not in found or len(found) < 2:
        names = ", ".join(str(f) for f in found) or "none"
        raise StudyError(
            f"--mode multi-timeframe searches over the data sets {folder.parent}/<timeframe>, and fewer than two are "
            f"there ({names}); build more, as scripts/data/build_dataset.py --timeframe 1h --out {folder.parent / '1h'}"
        )
    return tuple(found)
