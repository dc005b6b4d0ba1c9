"""Whether trials differ by more than their sampling error, and what that does to the conclusion."""

import numpy as np
import pytest

from train.validation.choice import CHOICE_LEVEL, Choice, choice_of
from train.validation.overfitting import conclusion, estimate_sharpe, finding, pbo_cscv, search_of

N_BARS, N_TRIALS = 4_000, 12
SKILL = 0.1  # Sharpe ratio per bar of a good trial


def noise(seed: int, correlation: float = 0.0) -> np.ndarray:
    """(T, N) returns with a standard deviation of 1 %."""
    rng = np.random.default_rng(seed)
    shared, own = rng.standard_normal((N_BARS, 1)), rng.standard_normal((N_BARS, N_TRIALS))
    return 0.01 * (np.sqrt(correlation) * shared + np.sqrt(1.0 - correlation) * own)


def equally_good(seed: int) -> np.ndarray:
    """Trials that all know the same signal: equal in truth, correlated, different in their errors."""
    return noise(seed, 0.8) + 0.01 * SKILL


def one_good(seed: int) -> np.ndarray:
    returns = noise(seed)
    returns[:, 3] += 0.01 * SKILL
    return returns


def verdict(returns: np.ndarray, holdout: bool | None = None) -> str:
    """The conclusion about the trial with the highest Sharpe ratio."""
    ratios = returns.mean(axis=0) / returns.std(axis=0, ddof=1)
    best = estimate_sharpe(returns[:, int(np.argmax(ratios))])
    return conclusion(best, search_of(ratios), pbo_cscv(returns).pbo, choice_of(returns), holdout)


def test_p_values_of_equal_trials_are_uniform_whatever_their_correlation():
    found = {
        correlation: np.array([choice_of(noise(seed, correlation)[:400], n_draws=1_000).p_value for seed in range(300)])
        for correlation in (0.0, 0.8)
    }
    for p_values in found.values():
        for level in (0.1, 0.5, 0.9):
            assert abs(np.mean(p_values < level) - level) < 3.5 * np.sqrt(level * (1.0 - level) / 300)


@pytest.mark.parametrize("seed", range(6))
def test_equally_good_trials_offer_no_choice_though_pbo_may_be_anything(seed):
    returns = equally_good(seed)
    assert not choice_of(returns).is_real
    assert verdict(returns, holdout=True).startswith("Evidence of skill: ")
    assert "PBO does not apply" in verdict(returns, holdout=True)


def test_pbo_of_equally_good_trials_says_nothing_of_skill():
    found = [pbo_cscv(equally_good(seed)).pbo for seed in range(12)]
    assert min(found) < 0.35
    assert max(found) > 0.65


@pytest.mark.parametrize(("holdout", "said"), [(False, "was not passed."), (None, "has no verdict.")])
def test_without_a_choice_the_holdout_must_be_passed(holdout, said):
    found = verdict(equally_good(0), holdout)
    assert found.startswith("Not evidence of skill: ")
    assert f"but the hold-out {said}" in found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("holdout", [None, True])
def test_one_good_trial_among_noise_is_a_choice_that_pbo_tests(seed, holdout):
    returns = one_good(seed)
    assert choice_of(returns).is_real
    assert verdict(returns, holdout) == ("Evidence of skill: the alpha returns pass the deflated Sharpe ratio and PBO.")


@pytest.mark.slow
def test_a_constant_difference_that_is_real_passes_pbo():
    """So a PBO above 5 % of trials that differ is no sampling error: what was better did not stay better."""
    spreads, found = np.linspace(0.2, 1.0, 40), []
    for seed, spread in enumerate(spreads):
        skill = SKILL * np.random.default_rng(seed).normal(1.0, 0.25 * spread, N_TRIALS)
        returns = noise(seed, 0.8) + 0.01 * skill
        if choice_of(returns).is_real:
            found.append(pbo_cscv(returns).pbo)
    assert len(found) > 10
    assert max(found) <= 0.05


def test_a_difference_that_changes_sides_is_real_and_refused_by_pbo():
    returns = equally_good(4)
    half = N_BARS // 2
    returns[:half, 0] += 0.03 * SKILL
    returns[half:, 0] -= 0.02 * SKILL
    returns[half:, 1] += 0.03 * SKILL
    returns[:half, 1] -= 0.02 * SKILL
    assert choice_of(returns).is_real
    assert "(PBO above one half)" in verdict(returns, holdout=True)


@pytest.mark.slow
def test_noise_alone_hardly_ever_passes_the_deflated_sharpe_and_then_the_holdout_decides():
    found = [verdict(noise(seed)) for seed in range(60)]
    assert not any(text.startswith("Evidence") for text in found)
    assert sum("deflated Sharpe ratio of the alpha returns is" in text for text in found) >= 54


def test_one_bad_trial_among_equally_good_ones_is_no_choice():
    returns = equally_good(1)
    returns[:, 5] -= 0.02 * SKILL
    assert not choice_of(returns).is_real


def test_trials_that_pay_different_fees_differ():
    returns = noise(0) - 0.01 * np.linspace(0.0, 0.2, N_TRIALS)
    assert choice_of(returns).is_real
    assert verdict(returns, holdout=True).startswith("Not evidence of skill: the deflated Sharpe")


def test_a_choice_that_pbo_refuses_is_refused_though_the_holdout_is_passed():
    lead = estimate_sharpe(one_good(0)[:, 3])
    real = Choice(gap=0.1, gap_by_error=0.02, p_value=CHOICE_LEVEL / 2.0)
    said = conclusion(lead, search_of([0.1, 0.09, 0.1]), 0.2, real, holdout=True)
    assert "PBO of the alpha returns is 20.0 %" in said


def test_idle_accounts_and_copies_are_compared_too():
    returns = noise(2)
    returns[:, 1] = 0.0
    returns[:, 4] = returns[:, 5]
    assert 0.0 < choice_of(returns).p_value <= 1.0
    same = np.repeat(returns[:, :1], 4, axis=1)
    assert choice_of(same) == choice_of(same, seed=0)
    assert choice_of(same).p_value > 0.5


def test_the_same_returns_give_the_same_p_value():
    assert choice_of(noise(3)) == choice_of(noise(3))


@pytest.mark.parametrize("returns", [np.zeros((10, 1)), np.zeros(10), np.full((10, 3), np.nan)])
def test_returns_that_cannot_be_compared_are_refused(returns):
    with pytest.raises(ValueError, match="2 trials or more"):
        choice_of(returns)


def test_the_finding_says_how_far_the_best_trial_is_from_the_median_one():
    lead, search = estimate_sharpe(one_good(0)[:, 3]), search_of([0.1, 0.0, 0.01])
    same = finding(lead, search, 100.0, 0.4, Choice(0.02, 0.03, 0.5))
    assert same.endswith(
        "The best trial's annual Sharpe ratio is 0.20 above the median trial's. Among equally good trials the gap "
        "would be about 0.30 (p = 0.5), so the trials do not differ by more than their sampling error (significance "
        "level 0.1 %)."
    )
    other = finding(lead, search, 100.0, 0.4, Choice(0.2, 0.03, 0.0005))
    assert other.endswith(
        "(p = 0.0005), so the trials differ by more than their sampling error (significance level 0.1 %)."
    )


def test_what_another_trial_is_ahead_by_makes_a_choice_no_surer():
    returns = noise(5)
    returns[:, 3] += 0.5 * returns[:, 3].std()
    assert choice_of(returns).is_real
    assert choice_of(returns, winner=3).is_real
    assert not choice_of(returns, winner=0).is_real
