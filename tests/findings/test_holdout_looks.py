"""A hold-out that others have looked at asks for more."""

import pytest
from scipy.special import ndtr

from tests.support.fabricated_study import holdout_score
from train.study.holdout_figures import errors_asked, is_passed


def scored(looks, mean=2.2):
    return holdout_score(mean_excess_sharpe=mean, mean_lead_sharpe=mean, earlier_looks=("s",) * looks)


def test_the_first_look_asks_for_two_errors_and_all_together_spend_twice_its_level():
    assert errors_asked(scored(0)) == 2.0
    assert errors_asked(scored(1)) == pytest.approx(2.43, abs=0.01)
    assert errors_asked(scored(40)) > 4.0
    assert sum(ndtr(-errors_asked(scored(k))) for k in range(3000)) < 2.0 * ndtr(-2.0)


def test_a_result_that_passes_first_is_too_little_after_another_study():
    assert is_passed(scored(0), 4)
    assert not is_passed(scored(1), 4)
    assert is_passed(scored(1, mean=2.5), 4)
