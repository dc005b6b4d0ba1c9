"""The laws of the splits, on generated data layouts."""

from __future__ import annotations

from itertools import pairwise
from math import comb

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from train.validation.splits import (
    Split,
    SplitError,
    bars_in,
    combinatorial_purged_splits,
    cut_into_groups,
    n_paths,
    rolling_splits,
    subtract,
    validation_cut,
    with_warmup,
)


@st.composite
def layouts(draw):
    """Segments with lengths 1..120 and gaps (in bar numbers) 0..5 between them."""
    at, out = draw(st.integers(0, 5)), []
    for length in draw(st.lists(st.integers(1, 120), min_size=1, max_size=5)):
        out.append((at, at + length))
        at += length + draw(st.integers(0, 5))
    return tuple(out)


@st.composite
def designs(draw):
    """(segments, n_groups, k, purge, embargo, min_train_bars)."""
    n_groups = draw(st.integers(2, 7))
    return (
        draw(layouts()),
        n_groups,
        draw(st.integers(1, n_groups - 1)),
        draw(st.integers(0, 12)),
        draw(st.integers(0, 9)),
        draw(st.integers(1, 6)),
    )


def split_or_skip(make, *arguments):
    try:
        return make(*arguments)
    except SplitError:
        assume(False)


def bars_of(blocks) -> set[int]:
    return {bar for first, last in blocks for bar in range(first, last)}


def positions(segments) -> dict[int, int]:
    """Bar number -> how many bars of data come before it."""
    return {bar: i for i, bar in enumerate(sorted(bars_of(segments)))}


def assert_kept_apart(split: Split, segments, purge: int, embargo: int) -> None:
    at = positions(segments)
    train = sorted(at[bar] for bar in bars_of(split.train))
    for first, last in split.test:
        start, end = at[first], at[last - 1]
        for bar in train:
            assert bar < start - purge or bar > end + purge + embargo


def assert_inside_segments(blocks, segments) -> None:
    for first, last in blocks:
        assert first < last
        assert any(a <= first and last <= b for a, b in segments)
    assert all(last <= first for (_, last), (first, _) in pairwise(blocks))


@settings(max_examples=200, deadline=None)
@given(designs())
def test_training_bars_keep_purge_and_embargo_away_from_every_test_block(design):
    segments, _, _, purge, embargo, _ = design
    for split in split_or_skip(combinatorial_purged_splits, *design):
        assert_kept_apart(split, segments, purge, embargo)


@settings(max_examples=200, deadline=None)
@given(designs())
def test_purging_takes_no_more_than_it_must(design):
    segments, _, _, purge, embargo, _ = design
    at = positions(segments)
    for split in split_or_skip(combinatorial_purged_splits, *design[:5], 1):
        test = [(at[first], at[last - 1]) for first, last in split.test]
        allowed = {
            bar for bar, i in at.items() if all(i < start - purge or i > end + purge + embargo for start, end in test)
        }
        assert bars_of(split.train) == allowed


@settings(max_examples=200, deadline=None)
@given(designs())
def test_every_bar_is_tested_equally_often(design):
    segments, n_groups, k, *_ = design
    splits = split_or_skip(combinatorial_purged_splits, *design)
    assert len(splits) == comb(n_groups, k)
    tested = [bar for split in splits for bar in bars_of(split.test)]
    assert {tested.count(bar) for bar in bars_of(segments)} == {n_paths(n_groups, k)}


@settings(max_examples=200, deadline=None)
@given(designs())
def test_blocks_are_contiguous_long_enough_and_never_cross_a_seam(design):
    segments, *_, min_train_bars = design
    for split in split_or_skip(combinatorial_purged_splits, *design):
        assert_inside_segments(split.train, segments)
        assert_inside_segments(split.test, segments)
        assert min(last - first for first, last in split.train) >= min_train_bars
        assert len(split.test_groups) == len(split.test)


@settings(max_examples=100, deadline=None)
@given(layouts(), st.integers(2, 7))
def test_groups_partition_the_data_evenly(segments, n_groups):
    assume(bars_in(segments) >= n_groups)
    groups = cut_into_groups(segments, n_groups)
    assert sorted(bar for group in groups for bar in bars_of(group)) == sorted(bars_of(segments))
    sizes = [bars_in(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=100, deadline=None)
@given(layouts(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 12))
def test_rolling_windows_train_only_on_the_past(segments, n_folds, train_groups, purge):
    splits = split_or_skip(rolling_splits, segments, n_folds, train_groups, purge, 0, 1)
    groups = cut_into_groups(segments, n_folds + train_groups)
    assert len(splits) == n_folds
    for i, split in enumerate(splits):
        assert_kept_apart(split, segments, purge, 0)
        assert_inside_segments(split.train, segments)
        assert max(bars_of(split.train)) < min(bars_of(split.test))
        assert split.test == groups[i + train_groups]
        assert bars_of(split.train) <= {bar for group in groups[i : i + train_groups] for bar in bars_of(group)}


def test_a_block_near_the_end_of_the_data_is_still_embargoed():
    # 100 bars, test group 8 of 10 = bars 80..89, +- 3, then 4 more: of the last group only 97, 98, 99 train.
    split = combinatorial_purged_splits(((0, 100),), 10, 1, purge_bars=3, embargo_bars=4)[8]
    assert split.test == ((80, 90),)
    assert split.train == ((0, 77), (97, 100))
    # An embargo longer than what is left takes all of it, and is not skipped.
    split = combinatorial_purged_splits(((0, 100),), 10, 1, purge_bars=3, embargo_bars=40)[8]
    assert split.train == ((0, 77),)


def test_the_design_of_two_groups_out_of_four_written_out():
    splits = combinatorial_purged_splits(((0, 40),), 4, 2, purge_bars=1, embargo_bars=2)
    assert [s.test_groups for s in splits] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert splits[0].train == ((23, 40),)  # test 0..19, purge 20, embargo 21 22
    assert splits[1].train == ((13, 19), (33, 40))
    assert splits[3].train == ((0, 9), (33, 40))
    assert splits[1].test == ((0, 10), (20, 30))


def test_purge_counts_bars_across_a_seam():
    # Seam between bars 9 and 20: the 4 bars before the test block are 20, 21 and 8, 9.
    split = combinatorial_purged_splits(((0, 10), (20, 30)), 5, 1, purge_bars=4, embargo_bars=0)[3]
    assert split.test == ((22, 26),)
    assert split.train == ((0, 8),)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((), 3, 1, 0, 0), "no segments"),
        ((((5, 5),), 3, 1, 0, 0), "first < last"),
        ((((0, 9), (5, 20)), 3, 1, 0, 0), "time order"),
        ((((0, 90),), 3, 3, 0, 0), "k_test_groups"),
        ((((0, 90),), 3, 0, 0, 0), "k_test_groups"),
        ((((0, 2),), 3, 1, 0, 0), "divided into 3 groups"),
        ((((0, 30),), 3, 2, 20, 0), "no training segment"),
        ((((0, 30),), 3, 1, -1, 0), "at least 0 bars"),
    ],
)
def test_impossible_designs_are_refused_with_the_reason(arguments, words):
    with pytest.raises(SplitError, match=words):
        combinatorial_purged_splits(*arguments)


@settings(max_examples=200, deadline=None)
@given(layouts(), st.floats(0, 0.9), st.integers(0, 10), st.integers(1, 20), st.integers(1, 20))
def test_validation_is_cut_from_the_ends_of_training_segments(train, fraction, purge, min_fit, min_validation):
    fit, validation = validation_cut(train, fraction, purge, min_fit, min_validation)
    assert len(fit) == len(train)
    by_end = {last: first for first, last in validation}
    for (a, b), (first, last) in zip(train, fit, strict=True):
        assert first == a
        if b in by_end:
            assert last == by_end[b] - purge
            assert last - first >= min_fit
            assert b - by_end[b] >= min_validation
        else:
            assert last == b


@settings(max_examples=200, deadline=None)
@given(designs(), st.integers(1, 15), st.data())
def test_the_first_traded_bar_is_the_same_for_every_lookback(design, max_lookback, data):
    segments = design[0]
    lookback = data.draw(st.integers(1, max_lookback))
    for split in split_or_skip(combinatorial_purged_splits, *design):
        moved = with_warmup(split.test, segments, lookback, max_lookback)
        reference = with_warmup(split.test, segments, max_lookback, max_lookback)
        assert [(a + lookback - 1, b) for a, b in moved] == [(a + max_lookback - 1, b) for a, b in reference]
        assert_inside_segments(sorted(moved, key=lambda block: block[1])[:1], segments)
        for first, last in moved:
            assert any(a <= first and last <= b for a, b in segments)
            assert any(a <= first + lookback - 1 and last == b for a, b in split.test)


def test_warm_up_bars_come_from_before_the_block_where_there_is_no_gap():
    segments = ((0, 10), (20, 40))
    blocks = ((0, 10), (20, 30), (30, 35), (35, 40))
    assert with_warmup(blocks, segments, 3, 5) == ((2, 10), (22, 30), (28, 35), (33, 40))


def test_blocks_too_short_to_trade_are_dropped_so_that_warm_up_reaches_no_other_blocks_start():
    assert with_warmup(((10, 12), (12, 40)), ((0, 40),), 5, 5) == ((8, 40),)
    assert with_warmup(((0, 8), (20, 25)), ((0, 8), (20, 40)), 1, 5) == ()


@given(layouts(), layouts())
def test_subtraction_is_that_of_sets(segments, holes):
    assert bars_of(subtract(segments, holes)) == bars_of(segments) - bars_of(holes)
