"""Every design against a literal reading of its definition: one loop over bars and pairs of bars, no shared code.

A design is drawn with its data (many sizes, seams anywhere) and its distances; each law is then checked bar by bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import comb

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from train.validation.splits import (
    Split,
    SplitError,
    combinatorial_purged_splits,
    expanding_splits,
    n_paths,
    purged_kfold_splits,
    recombined_paths,
    rolling_splits,
)

many = settings(max_examples=150, deadline=None)


@dataclass(frozen=True)
class Case:
    segments: tuple[tuple[int, int], ...]
    kind: str
    n: int  # groups, or folds of a walk-forward design
    k: int  # groups tested together, or groups of the (first) training window
    purge: int
    embargo: int

    def splits(self) -> tuple[Split, ...]:
        distances = {"purge_bars": self.purge, "embargo_bars": self.embargo, "min_train_bars": 1}
        try:
            match self.kind:
                case "combinatorial":
                    return combinatorial_purged_splits(self.segments, self.n, self.k, **distances)
                case "kfold":
                    return purged_kfold_splits(self.segments, self.n, **distances)
                case "rolling":
                    return rolling_splits(self.segments, self.n, self.k, **distances)
                case _:
                    return expanding_splits(self.segments, self.n, self.k, **distances)
        except SplitError:
            assume(False)
            raise

    @property
    def n_groups(self) -> int:
        return self.n + self.k if self.kind in ("rolling", "expanding") else self.n

    @property
    def bars(self) -> list[int]:
        return [bar for first, last in self.segments for bar in range(first, last)]

    def group_of(self, position: int) -> int:
        """Group of the bar with so many before it: the last group whose share of the data has begun."""
        total = len(self.bars)
        return max(g for g in range(self.n_groups) if total * g // self.n_groups <= position)


@st.composite
def cases(draw, kinds=("combinatorial", "kfold", "rolling", "expanding")):
    at, segments = draw(st.integers(0, 3)), []
    for length in draw(st.lists(st.integers(1, 70), min_size=1, max_size=5)):
        segments.append((at, at + length))
        at += length + draw(st.integers(0, 4))
    kind = draw(st.sampled_from(kinds))
    n = draw(st.integers(2, 6))
    k = draw(st.integers(1, n - 1))
    assume(sum(last - first for first, last in segments) >= 2 * n)
    return Case(tuple(segments), kind, n, k, draw(st.integers(0, 10)), draw(st.integers(0, 8)))


def inside(bar: int, blocks) -> bool:
    return any(first <= bar < last for first, last in blocks)


@many
@given(cases())
def test_a_bar_trains_exactly_when_it_is_far_enough_from_every_tested_bar(case):
    bars = case.bars
    for split in case.splits():
        tested = [i for i, bar in enumerate(bars) if inside(bar, split.test)]
        for i, bar in enumerate(bars):
            # Before a test bar: the purge. After one: purge and embargo, whatever follows it.
            is_near = any(j - case.purge <= i <= j + case.purge + case.embargo for j in tested)
            in_window = case.kind in ("combinatorial", "kfold") or i < tested[0]
            if case.kind == "rolling":
                in_window = in_window and case.group_of(i) >= case.group_of(tested[0]) - case.k
            assert inside(bar, split.train) == (in_window and not is_near), (bar, split)


@many
@given(cases())
def test_no_block_crosses_a_seam_and_blocks_are_in_order(case):
    for split in case.splits():
        for blocks in (split.train, split.test):
            for first, last in blocks:
                assert first < last
                assert any(a <= first and last <= b for a, b in case.segments)
            assert all(last <= first for (_, last), (first, _) in pairwise(blocks))


@many
@given(cases())
def test_every_bar_is_tested_the_stated_number_of_times_in_the_stated_groups(case):
    splits = case.splits()
    wanted = {"combinatorial": comb(case.n - 1, case.k - 1)}.get(case.kind, 1)
    for i, bar in enumerate(case.bars):
        times = sum(inside(bar, split.test) for split in splits)
        is_first_window = case.kind in ("rolling", "expanding") and case.group_of(i) < case.k
        assert times == (0 if is_first_window else wanted)
        for split in splits:
            groups = [g for g, (a, b) in zip(split.test_groups, split.test, strict=True) if a <= bar < b]
            assert groups in ([], [case.group_of(i)])


@many
@given(cases(("rolling", "expanding")))
def test_walk_forward_trains_strictly_before_its_test_and_tests_move_on(case):
    splits = case.splits()
    assert len(splits) == case.n
    for split in splits:
        assert split.train[-1][1] <= split.test[0][0]
    for earlier, later in pairwise(splits):
        assert earlier.test[-1][1] <= later.test[0][0]


@many
@given(cases(("rolling",)))
def test_an_expanding_window_tests_what_the_rolling_one_tests_and_contains_its_training(case):
    rolling = case.splits()
    expanding = expanding_splits(case.segments, case.n, case.k, case.purge, case.embargo, 1)
    for small, large in zip(rolling, expanding, strict=True):
        assert small.test == large.test
        assert all(inside(bar, large.train) for bar in case.bars if inside(bar, small.train))
    assert rolling[0].train == expanding[0].train
    for earlier, later in pairwise(expanding):
        assert all(inside(bar, later.train) for bar in case.bars if inside(bar, earlier.train))


@many
@given(cases())
def test_paths_cover_each_tested_bar_once_by_policies_that_did_not_train_on_it(case):
    splits = case.splits()
    paths = recombined_paths(splits)
    assert len(paths) == (n_paths(case.n, case.k) if case.kind == "combinatorial" else 1)
    tested = [bar for bar in case.bars if any(inside(bar, split.test) for split in splits)]
    for path in paths:
        walked = []
        for split, block in path:
            first, last = splits[split].test[block]
            assert not any(inside(bar, splits[split].train) for bar in range(first, last))
            walked += range(first, last)
        assert walked == tested
    parts = [part for path in paths for part in path]
    assert sorted(parts) == [(i, b) for i, split in enumerate(splits) for b in range(len(split.test))]


def test_kfold_is_the_combinatorial_design_with_one_test_group():
    segments = ((0, 50), (60, 100))
    splits = purged_kfold_splits(segments, 3, purge_bars=2, embargo_bars=1)
    assert splits == combinatorial_purged_splits(segments, 3, 1, 2, 1)
    assert splits[1].train == ((0, 28), (73, 100))  # tests 30..49 and 60..69
    assert recombined_paths(splits) == (((0, 0), (1, 0), (1, 1), (2, 0)),)


def test_expanding_written_out():
    # 50 bars in 5 groups, the first window is 2 of them, 3 bars purged before each test block.
    splits = expanding_splits(((0, 50),), 3, 2, purge_bars=3)
    assert [split.train for split in splits] == [((0, 17),), ((0, 27),), ((0, 37),)]
    assert [split.test for split in splits] == [((20, 30),), ((30, 40),), ((40, 50),)]
    assert recombined_paths(splits) == (((0, 0), (1, 0), (2, 0)),)


def test_paths_of_two_groups_out_of_four_written_out():
    splits = combinatorial_purged_splits(((0, 40),), 4, 2, purge_bars=0, embargo_bars=0)
    # Splits test (0,1) (0,2) (0,3) (1,2) (1,3) (2,3); group 1 is block 1 of split 0, block 0 of splits 3 and 4.
    assert recombined_paths(splits) == (
        ((0, 0), (0, 1), (1, 1), (2, 1)),
        ((1, 0), (3, 0), (3, 1), (4, 1)),
        ((2, 0), (4, 0), (5, 0), (5, 1)),
    )


@pytest.mark.parametrize("splits", [[], [0, 1]], ids=["none", "two of three"])
def test_splits_that_join_to_no_full_path_are_refused(splits):
    design = combinatorial_purged_splits(((0, 30),), 3, 2, 0, 0)
    with pytest.raises(SplitError, match=r"paths need every group|no splits"):
        recombined_paths([design[i] for i in splits])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: purged_kfold_splits(((0, 30),), 1, 0, 0), "at least 2 folds"),
    (lambda: expanding_splits(((0, 30),), 0, 1, 0), "at least 1 fold"),
    (lambda: expanding_splits(((0, 30),), 2, 0, 0), "1 training group"),
    (lambda: expanding_splits((), 2, 1, 0), "no segments"),
    (lambda: expanding_splits(((0, 30),), 2, 1, 10), "no training segment"),
])  # fmt: skip
def test_impossible_designs_are_refused_with_the_reason(make, words):
    with pytest.raises(SplitError, match=words):
        make()
