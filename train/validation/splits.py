"""Which bars train and which bars test: purged splits over a list of contiguous segments.

Four designs: combinatorial (every choice of k groups is tested), k-fold (k = 1), and walk-forward with a training
window that rolls or expands. The first two train on both sides of a test block, the last two only before it.

Bars are numbered over the whole data set; a segment `(first, last_exclusive)` is a run of bars without a gap. Every
list of blocks made here is cut at the data's own seams, so no episode, lookback window or return can cross one.

Three distances keep a test block's information out of training (Lopez de Prado 2018, ch. 7 and 12):

* `purge_bars` on BOTH sides of a test block: an observation reaches back by the lookback and by the bars its features
  need to settle, and an order decided on bar t is filled on bar t+1. Episodes need no more, because an episode never
  leaves its training segment.
* `embargo_bars` more AFTER a test block, for what lingers longer than a window. A block that ends near the end of the
  data is embargoed as far as the data goes.
* the validation slice, on which checkpoints are chosen, is cut from the ends of the training segments with the same
  purge before it. Test bars are never used to choose anything.

Distances count bars, and a seam counts as no distance: gaps in time only make the true distance longer.
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
    """Splits that cannot be made; the message says what is missing and what to change."""


@dataclass(frozen=True)
class Split:
    """One division of the data."""

    train: Segments  # contiguous, in time order, at least `min_train_bars` each
    test: Segments  # contiguous, in time order; groups that touch stay separate blocks
    test_groups: tuple[int, ...]  # group number of each test block, same length as `test`


def combinatorial_purged_splits(
    segments: Sequence[Segment],
    n_groups: int,
    k_test_groups: int,
    purge_bars: int,
    embargo_bars: int,
    min_train_bars: int = 2,
) -> tuple[Split, ...]:
    """Every choice of `k_test_groups` out of `n_groups` as test set; the rest trains.

    Each bar is tested in C(n_groups - 1, k_test_groups - 1) splits, which is the number of full paths the results
    can be joined to.

    Args:
        segments: the data's contiguous runs, in time order.
        n_groups: groups of (nearly) equal numbers of bars the data is cut into.
        k_test_groups: groups tested together.
        purge_bars: bars kept out of training on each side of a test block.
        embargo_bars: bars kept out after a test block, beyond the purge.
        min_train_bars: shorter pieces of training data are dropped.

    Raises:
        SplitError: arguments out of range, or a split without training data.
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
    """Walk forward with a window of constant length: train on `train_groups` groups, test on the next, move on by one.

    The data is cut into `n_folds + train_groups` groups; every bar after the first window is tested once. Training ends
    before its test begins, so only the purge before the test block has an effect.
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
    """Walk forward with a window that grows: train on everything before the test block, which moves on by one group.

    The data is cut into `n_folds + first_train_groups` groups, as for `rolling_splits`: both test the same blocks, and
    this one trains on what the other trains on and on all that came before it.
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
    """Each of `n_folds` groups is tested once, in time order, and the rest trains (Lopez de Prado 2018, section 7.4).

    The combinatorial design with one test group: one path, and training data on both sides of a test block.
    """
    if n_folds < 2:
        raise SplitError(f"purged k-fold needs at least 2 folds, of which one is tested; received {n_folds}")
    return combinatorial_purged_splits(segments, n_folds, 1, purge_bars, embargo_bars, min_train_bars)


def recombined_paths(splits: Sequence[Split]) -> tuple[FullPath, ...]:
    """The full paths that the test blocks of a design join to, each through every tested bar once, in time order.

    Path p takes, for every group, the p-th of the splits that test it. A combinatorial design has
    C(n_groups - 1, k_test_groups - 1) paths, the other designs one. A seam cuts a group into several blocks, all of
    which the path takes from the same split.

    Returns:
        Per path its parts, each (index of the split, index of the block in that split's `test`).

    Raises:
        SplitError: some groups are tested more often than others, so no full path exists.
    """
    testers: dict[int, list[int]] = {}  # group -> the splits that test it
    for i, split in enumerate(splits):
        for group in sorted(set(split.test_groups)):
            testers.setdefault(group, []).append(i)
    counts = {len(indices) for indices in testers.values()}
    if len(counts) != 1:
        raise SplitError(
            f"paths need every group tested equally often; the {len(splits)} splits test some groups {min(counts)} "
            f"and others {max(counts)} times"
            if counts
            else "there are no splits to join to paths"
        )
    return tuple(tuple(_path_parts(splits, testers, p)) for p in range(counts.pop()))


def n_paths(n_groups: int, k_test_groups: int) -> int:
    """How many times a combinatorial design tests each bar."""
    return comb(n_groups - 1, k_test_groups - 1)


def cut_into_groups(segments: Sequence[Segment], n_groups: int) -> tuple[Segments, ...]:
    """The data in time order, cut into groups whose sizes differ by at most one bar; a group is a list of blocks."""
    edges = _group_edges(segments, n_groups)
    return tuple(_by_position(segments, start, end) for start, end in pairwise(edges))


def validation_cut(
    train: Sequence[Segment], fraction: float, purge_bars: int, min_fit_bars: int, min_validation_bars: int
) -> tuple[Segments, Segments]:
    """Cut the end of each training segment off for choosing checkpoints.

    Each segment gives its last `fraction`, with `purge_bars` unused bars before it. A segment too short to leave
    `min_fit_bars` and `min_validation_bars` stays whole for fitting. When none is long enough, validation is empty.

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
    """Blocks as an environment needs them: with the `lookback - 1` bars before the first one that trades.

    An environment's first trading bar is its segment's first + lookback - 1. The blocks are moved so that this bar is
    the same for every lookback up to `max_lookback`: a block's own first bar where the data before it has no gap, else
    the first bar with `max_lookback` bars behind it. Settings are then compared on the very same bars. The bars added
    in front are observed, never traded. Blocks with fewer than `max_lookback` bars left to trade (at least 2) are
    dropped: no warm-up then reaches back to where another block begins to trade.
    """
    if not 1 <= lookback <= max_lookback:
        raise SplitError(
            f"lookback must be between 1 and the largest in the search ({max_lookback}); received {lookback}"
        )
    out = []
    for first, last in blocks:
        seam = next(a for a, b in segments if a <= first and last <= b)
        first_traded = max(first, seam + max_lookback - 1)
        if last - first_traded >= max(max_lookback, 2):
            out.append((first_traded - lookback + 1, last))
    return tuple(out)


def bars_in(segments: Iterable[Segment]) -> int:
    """Number of bars in a list of blocks."""
    return sum(last - first for first, last in segments)


def check_segments(segments: Sequence[Segment]) -> None:
    """Refuse segments that are empty, overlap or are out of order."""
    if not segments:
        raise SplitError("the data has no segments, so there is nothing to split")
    for first, last in segments:
        if not 0 <= first < last:
            raise SplitError(f"a segment is (first, last_exclusive) with first < last; received ({first}, {last})")
    for (_, last), (first, _) in pairwise(segments):
        if first < last:
            raise SplitError(
                f"segments must be in time order, none over another; one ends at {last}, the next is at {first}"
            )


def subtract(segments: Iterable[Segment], holes: Iterable[Segment]) -> Segments:
    """What is left of `segments` when the bars of `holes` are taken out; still contiguous blocks in order."""
    left = list(segments)
    for hole_first, hole_last in holes:
        pieces = []
        for first, last in left:
            pieces += [(first, min(last, hole_first)), (max(first, hole_last), last)]
        left = [(first, last) for first, last in pieces if first < last]
    return tuple(left)


def _group_edges(segments: Sequence[Segment], n_groups: int) -> list[int]:
    """Positions at which the groups begin, and the end of the last one."""
    total = bars_in(segments)
    if total < n_groups:
        raise SplitError(f"{total} bars cannot be cut into {n_groups} groups; give more bars or fewer groups")
    return [total * i // n_groups for i in range(n_groups + 1)]


def _walk_forward(
    segments: Sequence[Segment],
    first_groups: Sequence[int],
    train_groups: int,
    purge_bars: int,
    embargo_bars: int,
    min_train_bars: int,
) -> tuple[Split, ...]:
    """Fold i tests group i + `train_groups` and trains on the groups from `first_groups[i]` up to it."""
    n_groups = len(first_groups) + train_groups
    groups, edges = cut_into_groups(segments, n_groups), _group_edges(segments, n_groups)
    splits = []
    for tested, first in enumerate(first_groups, start=train_groups):
        window = _by_position(segments, edges[first], edges[tested])
        splits.append(_split(segments, groups, (tested,), window, purge_bars, embargo_bars, min_train_bars))
    return tuple(splits)


def _path_parts(splits: Sequence[Split], testers: Mapping[int, Sequence[int]], path: int) -> Iterator[tuple[int, int]]:
    """The parts of path number `path`, given which splits test which group."""
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
    """The split that tests the `chosen` groups and trains on what is left of `trainable`."""
    if purge_bars < 0 or embargo_bars < 0:
        raise SplitError(f"purge and embargo are numbers of bars, 0 or more; received {purge_bars} and {embargo_bars}")
    blocks = [(g, block) for g in chosen for block in groups[g]]
    train = _keep_out(segments, trainable, [block for _, block in blocks], purge_bars, embargo_bars)
    train = tuple((first, last) for first, last in train if last - first >= min_train_bars)
    if not train:
        raise SplitError(
            f"no training segment of {min_train_bars} bars is left beside test groups {list(chosen)} of {len(groups)}: "
            f"{bars_in(segments)} bars, purge {purge_bars} on both sides, embargo {embargo_bars}. "
            "Give more bars, or fewer or larger groups"
        )
    return Split(train=train, test=tuple(block for _, block in blocks), test_groups=tuple(g for g, _ in blocks))


def _keep_out(
    segments: Sequence[Segment],
    trainable: Sequence[Segment],
    test: Sequence[Segment],
    purge_bars: int,
    embargo_bars: int,
) -> Segments:
    """`trainable` without the test blocks and the bars around them.

    Distances are counted in positions, so they reach across a seam as if the next segment followed at once.
    """
    holes: list[Segment] = []
    for first, last in test:
        start, end = _position(segments, first), _position(segments, last - 1) + 1
        holes += _by_position(segments, start - purge_bars, end + purge_bars + embargo_bars)
    return subtract(trainable, holes)


def _position(segments: Sequence[Segment], bar: int) -> int:
    """How many bars of the data come before `bar`."""
    return sum(min(last, bar) - first for first, last in segments if first < bar)


def _by_position(segments: Sequence[Segment], start: int, end: int) -> Segments:
    """The blocks that hold the bars number `start` to `end` (exclusive) of the data, cut at its seams."""
    out = []
    before = 0
    for first, last in segments:
        a, b = max(first, first + start - before), min(last, first + end - before)
        if a < b:
            out.append((a, b))
        before += last - first
    return tuple(out)
