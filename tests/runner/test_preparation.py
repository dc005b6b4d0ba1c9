"""What is refused before a study begins."""

import pytest

from train.records.errors import StudyError
from train.runner.preparation import _check_n_envs
from train.study.search_space import build_space


def test_a_band_with_more_accounts_than_its_budget_has_bars_for_is_refused():
    space = build_space(agent="band")
    _check_n_envs(1_200, space)
    with pytest.raises(StudyError, match=r"--n-envs 1201: the largest budget of a split, 1,200,000 .* at most 1200"):
        _check_n_envs(1_201, space)
