"""Index sets equal skfolio's wherever both define the same thing.

skfolio knows no seams, so the data is one segment. Its definitions coincide with ours when:

* the number of bars is a multiple of the number of groups. skfolio gives the whole remainder to the last fold, we
  spread it one bar a group;
* `CombinatorialPurgedCV`: `purged_size` bars go on BOTH sides of a test set and `embargo_size` more after it, as here.
  It refuses distances that leave a training fold between two test sets nothing, so purge + embargo < fold - 1;
* `WalkForward`: its `purged_size` bars lie between `train_size` training bars and the test block, where ours are taken
  from the end of the training window. So train_size = window - purge. Nothing follows, so no embargo.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from train.validation.splits import (
    combinatorial_purged_splits,
    expanding_splits,
    n_paths,
    purged_kfold_splits,
    recombined_paths,
    rolling_splits,
)

model_selection = pytest.importorskip("skfolio.model_selection", reason="skfolio, the oracle, is not installed")

many = settings(max_examples=100, deadline=None)


def bars_of(blocks) -> list[int]:
    return [bar for first, last in blocks for bar in range(first, last)]


@st.composite
def designs(draw):
    """(bars in a group, n_groups, k, purge, embargo) within what skfolio accepts."""
    group, n_groups = draw(st.integers(4, 40)), draw(st.integers(3, 8))
    purge = draw(st.integers(0, group - 3))
    return group, n_groups, draw(st.integers(2, n_groups - 1)), purge, draw(st.integers(0, group - 3 - purge))


@many
@given(designs())
def test_combinatorial_index_sets_and_paths_are_the_same(design):
    group, n_groups, k, purge, embargo = design
    data = np.zeros((group * n_groups, 1))
    theirs = model_selection.CombinatorialPurgedCV(n_groups, k, purged_size=purge, embargo_size=embargo)
    expected = list(theirs.split(data))
    assume(all(len(train) for train, _ in expected))
    ours = combinatorial_purged_splits(((0, len(data)),), n_groups, k, purge, embargo, min_train_bars=1)
    assert len(ours) == theirs.n_splits
    for split, (train, tests) in zip(ours, expected, strict=True):
        assert bars_of(split.train) == train.tolist()
        assert [list(range(*block)) for block in split.test] == [test.tolist() for test in tests]
    assert n_paths(n_groups, k) == theirs.n_test_paths
    paths = [[split for split, _ in path] for path in recombined_paths(ours)]
    assert paths == theirs.recombined_paths.T.tolist()  # theirs: groups x paths


@many
@given(designs())
def test_kfold_index_sets_are_the_same(design):
    """skfolio's class refuses one test fold. With all folds but one tested and no purge, what trains there is what a
    k-fold tests: the sets swap."""
    group, n_groups, *_ = design
    data = np.zeros((group * n_groups, 1))
    theirs = model_selection.CombinatorialPurgedCV(n_groups, n_groups - 1)
    ours = purged_kfold_splits(((0, len(data)),), n_groups, 0, 0, min_train_bars=1)
    swapped = [(np.concatenate(tests).tolist(), train.tolist()) for train, tests in theirs.split(data)]
    assert [(bars_of(split.train), bars_of(split.test)) for split in ours] == swapped[::-1]


@many
@given(designs(), st.booleans())
def test_walk_forward_index_sets_are_the_same(design, is_expanding):
    group, n_groups, train_groups, purge, _ = design
    n_folds = n_groups - train_groups
    data = np.zeros((group * n_groups, 1))
    theirs = model_selection.WalkForward(
        test_size=group, train_size=train_groups * group - purge, purged_size=purge, expand_train=is_expanding
    )
    make = expanding_splits if is_expanding else rolling_splits
    ours = make(((0, len(data)),), n_folds, train_groups, purge, 0, 1)
    expected = [(train.tolist(), test.tolist()) for train, test in theirs.split(data)]
    assert [(bars_of(split.train), bars_of(split.test)) for split in ours] == expected
