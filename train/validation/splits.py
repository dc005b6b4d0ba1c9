"""Purged cross-validation splits over a list of contiguous segments.

There are four designs: combinatorial (every choice of k groups is tested), k-fold (k = 1), and walk-forward with a
rolling or an expanding training window. The first two train on both sides of a test block, the last two only before it.

Bars are numbered over the whole dataset. A segment `(first, last_exclusive)` is a run of bars without a gap. All blocks
are cut at the gaps of the data, so no episode, lookback window or return crosses a gap.

Three distances keep information about a test block out of training (Lopez de Prado 2018, ch. 7 and 12):

* `purge_bars` on BOTH sides of a test block. An observation reaches back by the lookback and by the warm-up of its
  features, and an order decided on bar t is filled on bar t+1. Episodes need no additional distance, because an episode
  never leaves its training segment.
* `embargo_bars` more AFTER a test block, for effects that outlast a window. Near the end of the data the embargo ends
  with the data.
* the validation fold, on which checkpoints are selected, is taken from the ends of the training segments, with the same
  purge before it. Test bars never select anything.

Distances are counted in bars that exist. A gap adds nothing, so the true distance in time can only be longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

from market.errors import UserError

Segment = tuple[int, int]  # first, last_exclusive
Segments = tuple[Segment, ...]
FullPath = tuple[tuple[int, int], ...]  # (index of a split, index of a block in its `test`), in time order


class SplitError(UserError):
    """Raised if the requested splits are impossible. The message says what is missing and what to change."""


@dataclass(frozen=True)
class Split:
    """One division of the data into training and test blocks."""

    train: Segments  # contiguous, in time order, at least `min_train_bars` each
    test: Segments  # contiguous, in time order; adjacent groups remain separate blocks
    test_groups: tuple[int, ...]  # group number of each test block, same length as `test`


def combinatorial_purged_splits(
    segments: Sequence[Segment],
    n_groups: int,
    k_test_groups: int,
    purge_bars: int,
    embargo_bars: int,
    min_train_bars: int = 2,
) -> tuple[Split, ...]:
    """Return one split for every choice of `k_test_groups` test groups out of `n_groups`; the rest is for training.

    Each bar is tested in C(n_groups - 1, k_test_groups - 1) splits, which is also the number of full paths.

    Args:
        segments: contiguous runs of the data, in time order.
        n_groups: number of groups with (nearly) equal numbers of bars.
        k_test_groups: number of groups tested together.
        purge_bars: bars removed from training on each side of a test block.
        embargo_bars: bars removed after a test block, in addition to the purge.
        min_train_bars: training blocks shorter than this are dropped.

    Raises:
        SplitError: an argument is out of range, or a split has no training data.
    """
    check_segments(segments)
    if n_groups < 2 or not 1 <= k_test_groups < n_groups:
        raise SplitError(
            "k_test_groups must be at least 1 and smaller than the number of groups (num_paths + 1); "
            f"received k_test_groups={k_test_groups}, n_groups={n_groups}"
        )
    groups = cut_into_groups(segments, n_groups)
    return tuple(
        _split(segments, groups, chosen, segments, purge_bars, embargo_bars, min_train_bars)
        for chosen in combinations(range(n_groups), k_test_groups)
    )


def rolling_splits(
    segments: Sequence[Segment],
    n_folds: int,
    train_groups: int,
    purge_bars: int,
    embargo_bars: int = 0,
    min_train_bars: int = 2,
) -> tuple[Split, ...]:
    """Return walk-forward splits with a fixed window: train on `train_groups` groups, test on the next, advance by one.

    The data are divided into `n_folds + train_groups` groups. Every bar after the first window is tested once. Training
    ends before the test starts, so only the purge before the test block has an effect.
    """
    check_segments(segments)
    if n_folds < 1 or train_groups < 1:
        raise SplitError(
            f"rolling splits need at least 1 fold and 1 training group; received {n_folds}, {train_groups}"
        )
    first_groups = range(n_folds)
    return _walk_forward(segments, first_groups, train_groups, purge_bars, embargo_bars, min_train_bars)


def expanding_splits(
    segments: Sequence[Segment],
    n_folds: int,
    first_train_groups: int,
    purge_bars: int,
    embargo_bars: int = 0,
    min_train_bars: int = 2,
) -> tuple[Split, ...]:
    """Return walk-forward splits with a growing window: train on all bars before the test block, advance by one group.

    The data are divided into `n_folds + first_train_groups` groups, as for `rolling_splits`. Both test the same blocks,
    but this design also trains on all bars before the rolling window.
    """
    check_segments(segments)
    if n_folds < 1 or first_train_groups < 1:
        raise SplitError(
            f"expanding splits need at least 1 fold and 1 training group; received {n_folds}, {first_train_groups}"
        )
    first_groups = [0] * n_folds
    return _walk_forward(segments, first_groups, first_train_groups, purge_bars, embargo_bars, min_train_bars)


def purged_kfold_splits(
    segments: Sequence[Segment],
    n_folds: int,
    purge_bars: int,
    embargo_bars: int,
    min_train_bars: int = 2,
) -> tuple[Split, ...]:
    """Return k-fold splits: each of `n_folds` groups is tested once, in time order (Lopez de Prado 2018, section 7.4).

    This is the combinatorial design with one test group. It has one path and training data on both sides of a test
    block.
    """
    if n_folds < 2:
        raise SplitError(f"purged k-fold needs at least 2 folds; received {n_folds}")
    return combinatorial_purged_splits(segments, n_folds, 1, purge_bars, embargo_bars, min_train_bars)


def recombined_paths(splits: Sequence[Split]) -> tuple[FullPath, ...]:
    """Return the full paths that the test blocks can form. Each contains every tested bar once, in time order.

    Path p takes every group from the p-th split that tests it. A combinatorial design has C(n_groups - 1, k_test_groups
    - 1) paths; the other designs have one. A gap divides a group into several blocks, and the path takes all of them
    from the same split.

    Returns:
        The parts of each path, each (index of the split, index of the block in that split's `test`).

    Raises:
        SplitError: some groups are tested more often than others, so no full path exists.
    """
    testers: dict[int, list[int]] = {}  # group -> splits that test it
    for i, split in enumerate(splits):
        for group in sorted(set(split.test_groups)):
            testers.setdefault(group, []).append(i)
    counts = {len(indices) for indices in testers.values()}
    if len(counts) != 1:
        raise SplitError(
            f"full paths need every group to be tested equally often; the {len(splits)} splits test some groups "
            f"{min(counts)} times and others {max(counts)} times"
            if counts
            else "there are no splits to join to paths"
        )
    return tuple(tuple(_path_parts(splits, testers, p)) for p in range(counts.pop()))


def n_paths(n_groups: int, k_test_groups: int) -> int:
    """Return how many times a combinatorial design tests each bar."""
    return comb(n_groups - 1, k_test_groups - 1)


def cut_into_groups(segments: Sequence[Segment], n_groups: int) -> tuple[Segments, ...]:
    """Divide the data in time order into groups whose sizes differ by at most one bar. A group is a list of blocks."""
    edges = _group_edges(segments, n_groups)
    return tuple(_by_position(segments, start, end) for start, end in pairwise(edges))


def validation_cut(
    train: Sequence[Segment], fraction: float, purge_bars: int, min_fit_bars: int, min_validation_bars: int
) -> tuple[Segments, Segments]:
    """Take the validation fold from the end of each training segment.

    Each segment contributes its last `fraction`, with `purge_bars` unused bars before it. A segment that would leave
    fewer than `min_fit_bars` or `min_validation_bars` is used entirely for training. If all segments are too short,
    validation is empty.

    Returns:
        (fit, validation), each in time order.
    """
    if not 0.0 <= fraction < 1.0:
        raise SplitError(f"the validation fraction must be at least 0 and below 1; received {fraction}")
    fit: list[Segment] = []
    validation: list[Segment] = []
    for first, last in train:
        cut = last - int((last - first) * fraction)
        is_long = cut - purge_bars - first >= min_fit_bars and last - cut >= max(min_validation_bars, 1)
        fit.append((first, cut - purge_bars) if is_long else (first, last))
        if is_long:
            validation.append((cut, last))
    return tuple(fit), tuple(validation)


def with_warmup(blocks: Iterable[Segment], segments: Sequence[Segment], lookback: int, max_lookback: int) -> Segments:
    """Return blocks with the `lookback - 1` bars before the first traded bar, as an environment needs them.

    An environment's first traded bar is the first bar of its segment plus lookback - 1. The blocks are shifted so that
    this bar is the same for every lookback up to `max_lookback`: the block's own first bar if the data before it have
    no gap, otherwise the first bar with `max_lookback` bars before it. All settings are then compared on the same bars.
    The bars added at the front are observed but never traded. Blocks with fewer than `max_lookback` (at least 2)
    remaining bars are dropped, so that no warm-up reaches back to the start of trading in another block.
    """
    if not 1 <= lookback <= max_lookback:
        raise SplitError(
            f"lookback must be from 1 to the largest of the search space ({max_lookback}); received {lookback}"
        )
    out = []
    for first, last in blocks:
        seam = next(a for a, b in segments if a <= first and last <= b)
        first_traded = max(first, seam + max_lookback - 1)
        if last - first_traded >= max(max_lookback, 2):
            out.append((first_traded - lookback + 1, last))
    return tuple(out)


def bars_in(segments: Iterable[Segment]) -> int:
    """Return the number of bars in a list of blocks."""
    return sum(last - first for first, last in segments)


def check_segments(segments: Sequence[Segment]) -> None:
    """Raise an error if segments are empty, overlap or are out of order."""
    if not segments:
        raise SplitError("the data have no segments, so there is nothing to split")
    for first, last in segments:
        if not 0 <= first < last:
            raise SplitError(f"segments must be (first, last_exclusive) with first < last; received ({first}, {last})")
    for (_, last), (first, _) in pairwise(segments):
        if first < last:
            raise SplitError(
                f"segments must be in time order without overlap; one ends at {last}, and the next starts at {first}"
            )


def subtract(segments: Iterable[Segment], holes: Iterable[Segment]) -> Segments:
    """Return `segments` without the bars of `holes`, as contiguous blocks in order."""
    left = list(segments)
    for hole_first, hole_last in holes:
        pieces = []
        for first, last in left:
            pieces += [(first, min(last, hole_first)), (max(first, hole_last), last)]
        left = [(first, last) for first, last in pieces if first < last]
    return tuple(left)


def _group_edges(segments: Sequence[Segment], n_groups: int) -> list[int]:
    """Return the positions at which the groups start, and the end of the last group."""
    total = bars_in(segments)
    if total < n_groups:
        raise SplitError(f"{total} bars cannot be divided into {n_groups} groups; use more bars or fewer groups")
    return [total * i // n_groups for i in range(n_groups + 1)]


def _walk_forward(
    segments: Sequence[Segment],
    first_groups: Sequence[int],
    train_groups: int,
    purge_bars: int,
    embargo_bars: int,
    min_train_bars: int,
) -> tuple[Split, ...]:
    """Return splits; fold i tests group i + `train_groups` and trains on the groups from `first_groups[i]` up to it."""
    n_groups = len(first_groups) + train_groups
    groups, edges = cut_into_groups(segments, n_groups), _group_edges(segments, n_groups)
    splits = []
    for tested, first in enumerate(first_groups, start=train_groups):
        window = _by_position(segments, edges[first], edges[tested])
        splits.append(_split(segments, groups, (tested,), window, purge_bars, embargo_bars, min_train_bars))
    return tuple(splits)


def _path_parts(splits: Sequence[Split], testers: Mapping[int, Sequence[int]], path: int) -> Iterator[tuple[int, int]]:
    """Return the parts of path number `path`, given the splits that test each group."""
    for group in sorted(testers):
        split = testers[group][path]
        yield from ((split, block) for block, g in enumerate(splits[split].test_groups) if g == group)


def _split(
    segments: Sequence[Segment],
    groups: Sequence[Segments],
    chosen: tuple[int, ...],
    trainable: Sequence[Segment],
    purge_bars: int,
    embargo_bars: int,
    min_train_bars: int,
) -> Split:
    """Return the split that tests the `chosen` groups and trains on the rest of `trainable`."""
    if purge_bars < 0 or embargo_bars < 0:
        raise SplitError(f"purge and embargo must be at least 0 bars; received {purge_bars} and {embargo_bars}")
    blocks = [(g, block) for g in chosen for block in groups[g]]
    train = _keep_out(segments, trainable, [block for _, block in blocks], purge_bars, embargo_bars)
    train = tuple((first, last) for first, last in train if last - first >= min_train_bars)
    if not train:
        raise SplitError(
            f"test groups {list(chosen)} of {len(groups)} leave no training segment of {min_train_bars} bars: "
            f"{bars_in(segments)} bars, purge {purge_bars} on both sides, embargo {embargo_bars}. "
            "Use more bars, or fewer or larger groups"
        )
    return Split(train=train, test=tuple(block for _, block in blocks), test_groups=tuple(g for g, _ in blocks))


def _keep_out(
    segments: Sequence[Segment],
    trainable: Sequence[Segment],
    test: Sequence[Segment],
    purge_bars: int,
    embargo_bars: int,
) -> Segments:
    """Return `trainable` without the test blocks and the bars around them.

    Distances are counted in positions, so they extend across a gap as if the next segment followed directly.
    """
    holes: list[Segment] = []
    for first, last in test:
        start, end = _position(segments, first), _position(segments, last - 1) + 1
        holes += _by_position(segments, start - purge_bars, end + purge_bars + embargo_bars)
    return subtract(trainable, holes)


def _position(segments: Sequence[Segment], bar: int) -> int:
    """Return the number of bars of the data before `bar`."""
    return sum(min(last, bar) - first for first, last in segments if first < bar)


def _by_position(segments: Sequence[Segment], start: int, end: int) -> Segments:
    """Return the blocks with bar numbers `start` to `end` (exclusive) of the data, cut at its gaps."""
    out = []
    before = 0
    for first, last in segments:
        a, b = max(first, first + start - before), min(last, first + end - before)
        if a < b:
            out.append((a, b))
        before += last - first
    return tuple(out)
