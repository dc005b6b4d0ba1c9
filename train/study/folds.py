"""Datasets of a study, divided into splits that all trials share.

The hold-out, the last part of the data, is removed first. No split, search space or trial receives an object that
contains its rows. The study records its hash, and the winner is scored on it once (`train.findings.holdout`).

Each split has three parts: fit bars to train on, validation bars to select the checkpoint, and test bars to score on.
The purge uses the largest lookback of the search space, so the bars of a split do not depend on a trial's settings.
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

SAME_CLOSE = 1e-9  # largest allowed difference between two closes of the same time, as a fraction
WALK_FORWARD_TRAIN_GROUPS = 2  # length of the (first) walk-forward training window, in test folds
FILL_DELAY_BARS = 1  # an order decided on bar t is filled on bar t + 1
EMBARGO_FRACTION = 0.01  # fraction of all bars (Lopez de Prado 2018, section 7.4.2)
VALIDATION_FRACTION = 0.15  # fraction of every training segment
LEAST_TRADED_BARS = 64  # smallest validation fold, and smallest total of a split's test folds


@dataclass(frozen=True)
class Fold:
    """One split of one dataset, as ranges of bar indices."""

    index: int
    fit: Segments
    validation: Segments  # may be empty if the data is short
    test: Segments
    test_groups: tuple[int, ...]  # group number of each test fold


@dataclass(frozen=True)
class HoldoutRows:
    """Bars of the hold-out. No trial receives them."""

    dataset: Dataset  # purged bars, which are only observed, then the hold-out
    blocks: Segments  # segments of the hold-out
    about: Holdout


@dataclass(frozen=True)
class FoldedData:
    """A dataset without its hold-out, with its splits."""

    timeframe: str
    dataset: Dataset
    folds: tuple[Fold, ...]
    purge_bars: int
    embargo_bars: int
    parent_sha256: str  # hash of the dataset on disk, before coins were selected and bars cut
    holdout: Holdout | None = None

    @property
    def origin(self) -> Origin:
        """Record of the bars that a result was computed on."""
        return Origin(self.dataset.synthetic, self.dataset.label, self.dataset.sha256)

    @property
    def longest_episode_bars(self) -> int:
        """Number of steps in the longest window that fits into the training data of every split."""
        longest = min(max(last - first for first, last in fold.fit) for fold in self.folds)
        return longest - MAX_LOOKBACK


def load_study_data(
    data_dir: Path, timeframe: str | None, tickers: Sequence[str] | None, plan: SplitPlan
) -> tuple[FoldedData, ...]:
    """Load the dataset of a study, or in multi-timeframe mode one dataset per timeframe in the parent folder.

    Args:
        data_dir: a dataset, or a folder of datasets named by their timeframes.
        timeframe: timeframe of the dataset to use. None uses the dataset's own timeframe.
        tickers: coins to keep, in this order. None keeps all coins.
        plan: how to divide each dataset.

    Raises:
        StudyError, DatasetError, SplitError: the data cannot be used. The message says what is wrong and what to do.
    """
    return tuple(
        fold_data(study, plan, parent, rows.about if rows else None)
        for study, rows, parent in cut_data(data_dir, timeframe, tickers, plan)
    )


def cut_data(
    data_dir: Path, timeframe: str | None, tickers: Sequence[str] | None, plan: SplitPlan
) -> list[tuple[Dataset, HoldoutRows | None, str]]:
    """Load the datasets of a study and separate their hold-outs.

    Returns:
        For each dataset: the bars of the study, the hold-out, and the hash of the dataset on disk.
    """
    folder = _dataset_folder(data_dir, timeframe)
    folders = _siblings(folder) if plan.mode == "multi-timeframe" else (folder,)
    datasets = [load_dataset(f) for f in folders]
    own = timeframe_name(datasets[folders.index(folder)].bar_seconds)
    if timeframe not in (None, own):
        raise StudyError(f"--timeframe {timeframe}: {folder} has {own} bars; pass --timeframe {own} or another folder")
    chosen = common_market([select_tickers(dataset, tickers) for dataset in datasets])
    parents = [dataset.sha256 for dataset in datasets]
    cut = cut_holdout(chosen, plan.holdout_fraction, parents)
    return [(study, rows, parent) for (study, rows), parent in zip(cut, parents, strict=True)]


def cut_holdout(
    datasets: Sequence[Dataset], fraction: float, parents: Sequence[str]
) -> list[tuple[Dataset, HoldoutRows | None]]:
    """Separate the last `fraction` of the bars, and drop the purge before them.

    The hold-outs of several timeframes begin at the same time, and the study's bars end at the same time, so that
    trials in different timeframes are compared on the same period. The longest bars need the longest purge, so the
    other timeframes drop the same amount of time.

    Args:
        datasets: datasets of one market, the shortest bars first.
        fraction: fraction of the bars to hold out. 0 holds nothing out.
        parents: hash of each dataset on disk.

    Raises:
        StudyError: too few bars remain for the study, or the hold-out is too short to be conclusive.
    """
    if fraction == 0.0:
        return [(dataset, None) for dataset in datasets]
    longest = datasets[-1]  # every long bar opens together with a short bar
    first = len(longest.time) - max(math.floor(fraction * len(longest.time)), 1)
    opens_s = int(longest.time[first]) - longest.bar_seconds
    firsts = [int(np.searchsorted(d.time, opens_s + d.bar_seconds)) for d in datasets]
    purges = [purge_bars_of(d) for d in datasets]
    for d, row, purge in zip(datasets, firsts, purges, strict=True):
        if row <= purge:
            raise StudyError(
                f"--holdout {fraction:g} leaves {row} bars of {timeframe_name(d.bar_seconds)} for the study, but "
                f"{purge} must be purged; provide more data, or a smaller fraction"
            )
    closes_s = min(int(d.time[row - purge - 1]) for d, row, purge in zip(datasets, firsts, purges, strict=True))
    lasts = [int(np.searchsorted(d.time, closes_s, side="right")) for d in datasets]
    return [
        (d.with_rows(0, last), _holdout_rows(d, last, row, fraction, parent))
        for d, last, row, parent in zip(datasets, lasts, firsts, parents, strict=True)
    ]


def purge_bars_of(dataset: Dataset) -> int:
    """Return the number of bars over which information can leak: observation, feature warm-up and order delay."""
    return MAX_LOOKBACK + dataset.warmup_bars + FILL_DELAY_BARS


def fold_data(
    dataset: Dataset, plan: SplitPlan, parent_sha256: str | None = None, holdout: Holdout | None = None
) -> FoldedData:
    """Divide a dataset without its hold-out into splits, and cut the validation folds."""
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
    """Return the dataset with only these coins, in this order. Its hash differs from that of the original."""
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
    """Cut datasets of several timeframes to the period that all of them cover.

    Raises:
        StudyError: the datasets differ in coins, closes, venue or origin (synthetic or real), or have no period in
            common. A comparison of trials would then reflect their markets instead of their settings.
    """
    first = datasets[0]
    name = timeframe_name(first.bar_seconds)
    for other in datasets[1:]:
        theirs = timeframe_name(other.bar_seconds)
        if other.tickers != first.tickers:
            raise StudyError(
                f"--mode multi-timeframe: {name} has {', '.join(first.tickers)} but {theirs} has "
                f"{', '.join(other.tickers)}; select the common coins with --tickers"
            )
        if other.synthetic != first.synthetic:
            kinds = {True: "synthetic", False: "real"}
            raise StudyError(
                f"--mode multi-timeframe: {name} has {kinds[first.synthetic]} bars but {theirs} has "
                f"{kinds[other.synthetic]} bars; build all datasets from the same bars with "
                "scripts/data/build_dataset.py"
            )
        if other.venue != first.venue:
            raise StudyError(
                f"--mode multi-timeframe: {name} uses the rules of {first.venue.label} but {theirs} uses "
                f"{other.venue.label}; build all datasets with the same --venue"
            )
    opens = max(int(d.time[0]) - d.bar_seconds for d in datasets)
    closes = min(int(d.time[-1]) for d in datasets)
    if opens >= closes:
        raise StudyError(
            "--mode multi-timeframe: the datasets have no period in common; build all datasets from the same bars"
        )
    for other in datasets[1:]:
        _check_same_closes(first, other)
    return [_cut_to(d, opens, closes) for d in datasets]


def _check_same_closes(one: Dataset, other: Dataset) -> None:
    """Raise StudyError if two datasets differ in a close or have no closing time in common. Filled bars are ignored."""
    names = f"{timeframe_name(one.bar_seconds)} and {timeframe_name(other.bar_seconds)}"
    time_s, mine, theirs = np.intersect1d(one.time, other.time, return_indices=True)
    if len(time_s) == 0:
        raise StudyError(
            f"--mode multi-timeframe: {names} have no closing time in common; build all datasets from the same bars"
        )
    a, b = np.asarray(one.price)[mine], np.asarray(other.price)[theirs]  # (common, A)
    is_real = ~(np.asarray(one.filled)[mine] | np.asarray(other.filled)[theirs])
    differs = is_real & (np.abs(a - b) > SAME_CLOSE * np.maximum(a, b))
    if differs.any():
        bar, coin = map(int, np.argwhere(differs)[0])
        closes = f"{a[bar, coin]:.10g} and {b[bar, coin]:.10g} at {utc_text(time_s[bar])} UTC"
        raise StudyError(
            f"--mode multi-timeframe: {names} are not the same market: {one.tickers[coin]} closes at {closes} "
            f"({int(differs.sum())} of {differs.size} closes differ); build all datasets from the same bars"
        )


def _cut_to(dataset: Dataset, opens_s: int, closes_s: int) -> Dataset:
    """Keep the bars that open at or after `opens_s` and close at or before `closes_s` (UTC seconds)."""
    time_s = np.asarray(dataset.time)
    a, b = np.searchsorted(time_s, (opens_s + dataset.bar_seconds, closes_s + 1)).tolist()
    if (a, b) == (0, len(time_s)):
        return dataset
    name = timeframe_name(dataset.bar_seconds)
    if not any(max(first, a) < min(last, b) for first, last in dataset.segments):
        raise StudyError(f"--mode multi-timeframe: {name} has no bar in the period that all datasets cover")
    logger.info("multi-timeframe: %d of %d bars of %s lie in the common period", b - a, len(time_s), name)
    return dataset.with_rows(a, b)


def _holdout_rows(dataset: Dataset, study_last: int, first: int, fraction: float, parent: str) -> HoldoutRows:
    """Return the rows from `study_last`: those before `first` are purged, the others are the hold-out."""
    n_rows, purged = len(dataset.time), first - study_last
    rows = dataset.with_rows(study_last, n_rows)
    blocks = subtract(rows.segments, [(0, purged)])
    traded = bars_in(with_warmup(blocks, rows.segments, 1, MAX_LOOKBACK))
    if traded < LEAST_TRADED_BARS:
        raise StudyError(
            f"--holdout {fraction:g} leaves {traded} tradable bars of {timeframe_name(dataset.bar_seconds)} in the "
            f"hold-out, but at least {LEAST_TRADED_BARS} are required; provide more data, a larger fraction, or 0"
        )
    times = {"first_time_s": int(dataset.time[first]), "last_time_s": int(dataset.time[-1])}
    about = Holdout(**times, bars=n_rows - first, purged_bars=purged, sha256=rows.sha256, parent_sha256=parent)
    return HoldoutRows(rows, blocks, about)


def _splits(segments: Segments, plan: SplitPlan, purge: int, embargo: int, min_train: int) -> tuple[Split, ...]:
    """Return the splits of the mode in `plan`."""
    n, window = plan.num_paths, WALK_FORWARD_TRAIN_GROUPS
    if plan.mode == "rolling":
        return rolling_splits(segments, n, window, purge, embargo, min_train)
    if plan.mode == "expanding":
        return expanding_splits(segments, n, window, purge, embargo, min_train)
    if plan.mode == "kfold":
        return purged_kfold_splits(segments, n, purge, embargo, min_train)
    return combinatorial_purged_splits(segments, n + 1, plan.k_test_groups, purge, embargo, min_train)


def _fold(index: int, split: Split, dataset: Dataset, purge_bars: int, min_fit_bars: int) -> Fold:
    # The validation fold takes its warm-up from the purged bars before it.
    fit, validation = validation_cut(split.train, VALIDATION_FRACTION, purge_bars, min_fit_bars, LEAST_TRADED_BARS)
    traded = bars_in(with_warmup(split.test, dataset.segments, 1, MAX_LOOKBACK))
    if traded < LEAST_TRADED_BARS:
        raise StudyError(
            f"split {index} has {traded} tradable test bars, but at least {LEAST_TRADED_BARS} are required; the data "
            f"has {bars_in(dataset.segments)} bars. Provide more data, or a smaller --num-paths"
        )
    return Fold(index, fit, validation, split.test, split.test_groups)


def _dataset_folder(data_dir: Path, timeframe: str | None) -> Path:
    """Return the dataset folder for --data-dir: itself, or its subfolder of that timeframe (default: the shortest)."""
    inside = [name for name in TIMEFRAMES if (data_dir / name / "manifest.json").exists()]
    if (data_dir / "manifest.json").exists() or not inside:
        return data_dir
    if timeframe is not None and timeframe not in inside:
        raise StudyError(f"--timeframe {timeframe}: {data_dir} has only {', '.join(inside)}; choose one of these")
    return data_dir / (timeframe or inside[0])


def _siblings(folder: Path) -> tuple[Path, ...]:
    """Return the datasets of all timeframes in the parent folder, shortest bars first.

    Every timeframe needs a dataset built from bars, because features cannot be computed from resampled closes.
    """
    found = [folder.parent / name for name in TIMEFRAMES if (folder.parent / name / "manifest.json").exists()]
    if folder not in found or len(found) < 2:
        names = ", ".join(f.name for f in found) or "none"
        raise StudyError(
            f"--mode multi-timeframe requires at least two datasets {folder.parent}/<timeframe>; found {names}. "
            f"Build more, for example with scripts/data/build_dataset.py --timeframe 1h --out {folder.parent / '1h'}"
        )
    return tuple(found)
