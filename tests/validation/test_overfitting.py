"""Deflated Sharpe, track record length and PBO against the papers' numbers and against computations of another kind."""

from __future__ import annotations

import math
import time
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from train.validation.overfitting import (
    Search,
    SharpeEstimate,
    conclusion,
    deflated_sharpe,
    earning,
    effective_trials,
    estimate_sharpe,
    expected_maximum_sharpe,
    finding,
    minimum_track_record_length,
    pbo_cscv,
    probabilistic_sharpe,
    search_of,
)

# ---------------------------------------------------------------------------------------- published examples
# 2014, "A numerical example": five years of 250 daily returns, annual Sharpe 2.5, variance of the trials' annual
# Sharpe ratios one half.
WINNER = SharpeEstimate(2.5 / math.sqrt(250.0), 1250, skew=-3.0, kurtosis=10.0)


def tried(n_trials: float) -> Search:
    return Search(n_trials, 0.5 / 250.0)


def test_the_deflated_sharpe_of_the_papers_example():
    assert expected_maximum_sharpe(tried(100)) == pytest.approx(0.1132, abs=5e-5)
    assert deflated_sharpe(WINNER, tried(100)) == pytest.approx(0.9004, abs=5e-5)


def test_46_trials_would_have_been_few_enough_and_normal_returns_allow_88():
    assert deflated_sharpe(WINNER, tried(46)) == pytest.approx(0.9505, abs=5e-5)
    normal = SharpeEstimate(WINNER.sharpe, 1250)
    assert deflated_sharpe(normal, tried(88)) == pytest.approx(0.9505, abs=5e-5)


def test_the_probabilistic_sharpe_of_the_papers_hedge_fund():
    # 2012: two years of monthly returns, Sharpe 0.458 (annual 1.59): 0.982 if they were normal, 0.913 as they are.
    assert probabilistic_sharpe(SharpeEstimate(0.458, 24)) == pytest.approx(0.982, abs=5e-4)
    assert probabilistic_sharpe(SharpeEstimate(0.458, 24, -2.448, 10.164)) == pytest.approx(0.913, abs=5e-4)


@pytest.mark.parametrize(
    ("per_year", "skew", "kurtosis", "years"),
    [(252, 0.0, 3.0, 2.73), (52, 0.0, 3.0, 2.83), (12, 0.0, 3.0, 3.24), (12, -0.72, 5.78, 4.99)],
)
def test_the_track_record_lengths_of_the_paper(per_year, skew, kurtosis, years):
    # 2012: an annual Sharpe of 2 to be above 1 at 95 %, by the spacing of returns; the last is a hedge fund index.
    estimate = SharpeEstimate(2.0 / math.sqrt(per_year), 100, skew, kurtosis)
    needed = minimum_track_record_length(estimate, 1.0 / math.sqrt(per_year))
    assert needed / per_year == pytest.approx(years, abs=0.006)


# ------------------------------------------------------------------------------------- independent computations
def test_the_moments_are_scipys():
    r = np.random.default_rng(0).gamma(2.0, 0.01, 400) - 0.015
    found = estimate_sharpe(r)
    assert found.sharpe == pytest.approx(r.mean() / r.std(ddof=1))
    assert (found.skew, found.kurtosis) == pytest.approx((stats.skew(r), stats.kurtosis(r, fisher=False)))
    assert found.n_returns == 400


@given(st.floats(-0.5, 0.5), st.integers(2, 5000), st.floats(-3.0, 3.0), st.floats(0.0, 10.0), st.floats(-0.3, 0.3))
def test_the_probabilistic_sharpe_is_its_formula(ratio, n, skew, extra, benchmark):
    kurtosis = 1.0 + skew**2 + extra  # no distribution has less
    error = math.sqrt((1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2) / (n - 1))
    if error > 1e-6:
        expected = stats.norm.cdf(ratio, loc=benchmark, scale=error)
        found = probabilistic_sharpe(SharpeEstimate(ratio, n, skew, kurtosis), benchmark)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(st.floats(0.01, 0.5), st.floats(-2.0, 2.0), st.floats(0.1, 10.0), st.floats(0.6, 0.999))
def test_a_track_record_of_the_least_length_reaches_the_confidence_exactly(ratio, skew, extra, confidence):
    estimate = SharpeEstimate(ratio, 100, skew, 1.0 + skew**2 + extra)
    n = minimum_track_record_length(estimate, 0.005, confidence)
    at_that_length = SharpeEstimate(ratio, n, skew, estimate.kurtosis)  # type: ignore[arg-type]
    if n >= 2.0:
        assert probabilistic_sharpe(at_that_length, 0.005) == pytest.approx(confidence, abs=1e-9)


def test_the_confidence_is_right_for_drawn_samples():
    # True Sharpe 0: what is called x % confident happens (100 - x) % of the time, for skewed returns too.
    rng = np.random.default_rng(1)
    r = rng.gamma(4.0, 0.01, (4000, 500)) - 0.04
    confidence = np.array([probabilistic_sharpe(estimate_sharpe(row)) for row in r])
    for level in (0.1, 0.5, 0.9):
        assert np.mean(confidence > level) == pytest.approx(1.0 - level, abs=0.03)


@pytest.mark.parametrize("n", [2, 5, 10, 46, 100, 1000])
def test_the_expected_maximum_is_near_that_of_normal_draws(n):
    def density(x: float) -> float:
        return x * n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1)

    exact = integrate.quad(density, -10.0, 10.0)[0]
    found = expected_maximum_sharpe(Search(n, 4.0))
    assert found == pytest.approx(2.0 * exact, rel=0.03 if n >= 10 else 0.08)


def test_a_single_trial_is_not_deflated():
    alone = search_of([1.3], 250.0)
    assert alone == Search(1.0, 0.0)
    assert deflated_sharpe(WINNER, alone) == probabilistic_sharpe(WINNER)


def test_the_search_of_a_study_counts_trials_without_a_sharpe():
    annual = [1.0, 2.0, math.nan, 3.0]
    found = search_of(annual, 100.0)
    assert found == Search(4.0, pytest.approx(1.0 / 100.0))
    assert search_of(annual, 100.0, n_trials=2.5).n_trials == 2.5


def test_effective_trials_go_from_one_to_all():
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(20_000, 1)), rng.normal(size=(20_000, 10))
    assert effective_trials(own) == pytest.approx(10.0, abs=0.1)
    assert effective_trials(common + own) == pytest.approx(0.5 + 0.5 * 10, abs=0.1)
    assert effective_trials(np.repeat(common, 10, axis=1)) == pytest.approx(1.0)
    assert effective_trials(np.concatenate([common, -common], axis=1)) == 2.0
    assert effective_trials(np.concatenate([common, np.zeros_like(common)], axis=1)) == 2.0
    assert effective_trials(common) == 1.0


def test_what_is_not_defined_is_nan():
    flat = estimate_sharpe([0.0, 0.0, 0.0])
    assert math.isnan(probabilistic_sharpe(flat))
    assert math.isnan(minimum_track_record_length(flat))
    assert math.isnan(probabilistic_sharpe(estimate_sharpe([])))
    assert math.isnan(probabilistic_sharpe(SharpeEstimate(1.0, 100, skew=5.0, kurtosis=3.0)))  # kurtosis < 1 + skew^2
    assert math.isnan(search_of([math.nan, 1.0]).sharpe_variance)
    assert math.isnan(deflated_sharpe(WINNER, search_of([math.nan, 1.0])))
    assert math.isnan(deflated_sharpe(WINNER, Search(0, 0.1)))
    assert math.isnan(search_of([math.nan]).sharpe_variance)


def test_a_sharpe_below_its_benchmark_has_no_long_enough_track_record():
    assert minimum_track_record_length(SharpeEstimate(0.1, 50), 0.1) == math.inf
    with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
        minimum_track_record_length(WINNER, confidence=95.0)


# ---------------------------------------------------------------------------------------------------------- PBO
def literal_pbo(returns: np.ndarray, n_blocks: int) -> dict[str, list[float]]:
    """The paper's steps, one combination after the other, without a thought for speed."""
    n_bars, n_trials = returns.shape
    edges = [int(i * n_bars / n_blocks) for i in range(n_blocks + 1)]
    blocks = [returns[a:b] for a, b in pairwise(edges)]

    def sharpes(matrix: np.ndarray) -> np.ndarray:
        columns = [matrix[:, j] for j in range(n_trials)]
        return np.array([0.0 if not c.any() else c.mean() / c.std(ddof=1) for c in columns])

    out: dict[str, list[float]] = {"logit": [], "chosen": [], "in": [], "out": [], "all": []}
    for inside in combinations(range(n_blocks), n_blocks // 2):
        train = sharpes(np.concatenate([blocks[i] for i in inside]))
        test = sharpes(np.concatenate([blocks[i] for i in range(n_blocks) if i not in inside]))
        best = int(np.argmax(train))
        relative_rank = stats.rankdata(np.round(test, 9))[best] / (n_trials + 1)
        out["logit"].append(math.log(relative_rank / (1 - relative_rank)))
        out["chosen"].append(best)
        out["in"].append(train[best])
        out["out"].append(test[best])
        out["all"].extend(test)
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 7), st.sampled_from([2, 4, 6, 8]), st.integers(0, 30), st.booleans())
def test_pbo_equals_the_literal_algorithm(seed, n_trials, n_blocks, extra, has_idle):
    rng = np.random.default_rng(seed)
    r = rng.normal(rng.normal(0.0, 0.1, n_trials), 1.0, (4 * n_blocks + extra, n_trials)) * 0.01 + 0.002
    if has_idle:
        r[:, 0] = 0.0
        r[: len(r) // 2, -1] = 0.0  # began to trade late
    found, expected = pbo_cscv(r, n_blocks), literal_pbo(r, n_blocks)
    np.testing.assert_allclose(found.logits, expected["logit"], atol=1e-12)
    np.testing.assert_array_equal(found.chosen, expected["chosen"])
    np.testing.assert_allclose(found.in_sample, expected["in"], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(found.out_of_sample, expected["out"], rtol=1e-7, atol=1e-12)
    assert found.pbo == np.mean(np.array(expected["logit"]) <= 0.0)
    assert found.probability_of_loss == np.mean(np.array(expected["out"]) < 0.0)
    for share, values in ((found.chosen_share, expected["out"]), (found.any_share, expected["all"])):
        up_to = np.mean(np.array(values)[:, None] <= found.sharpe_grid[1:-1], axis=0)
        np.testing.assert_allclose(share[1:-1], up_to, atol=1e-12)
    if n_blocks > 2 and np.ptp(found.in_sample) > 1e-6:
        line = stats.linregress(expected["in"], expected["out"])
        assert found.degradation_slope == pytest.approx(line.slope, rel=1e-5, abs=1e-9)
        assert found.degradation_intercept == pytest.approx(line.intercept, rel=1e-5, abs=1e-9)


def test_the_choice_among_noise_is_a_coin_toss():
    # Bars of noise are independent, so the half that chose says nothing about the other: the rank of the choice is
    # uniform, and with an even number of trials the lower half has probability 1/2. One data set is one draw with
    # strongly dependent combinations; the mean over data sets is 1/2.
    values = [pbo_cscv(np.random.default_rng(seed).normal(size=(200, 20)), 8).pbo for seed in range(150)]
    assert np.mean(values) == pytest.approx(0.5, abs=4.0 * np.std(values) / math.sqrt(len(values)))


def test_a_trial_that_is_truly_better_is_not_overfitted():
    r = np.random.default_rng(0).normal(size=(1600, 20))
    r[:, 3] += 0.3
    found = pbo_cscv(r)
    assert found.pbo < 0.01
    assert np.all(found.chosen == 3)
    assert found.probability_of_loss == 0.0
    # the choice dominates a trial drawn at random
    assert np.all(found.chosen_share <= found.any_share)
    assert found.chosen_share[0] <= 1.0 / 20.0
    assert found.chosen_share[-1] == found.any_share[-1] == 1.0


def reversing_trials() -> np.ndarray:
    """Each of 8 trials wins in one block and pays for it in all the others: the mean of every trial is the same."""
    r = np.random.default_rng(0).normal(0.0, 0.05, (160, 8))
    r -= r.mean(axis=0)
    for trial in range(8):
        r[:, trial] -= 0.2
        r[trial * 20 : trial * 20 + 20, trial] += 1.6
    return r


def test_performance_that_reverses_is_overfitted():
    found = pbo_cscv(reversing_trials(), 8)
    assert found.pbo == 1.0
    assert found.probability_of_loss == 1.0
    assert found.chosen_share.mean() > found.any_share.mean()


def test_what_is_won_in_one_half_of_a_fixed_sum_is_lost_in_the_other():
    r = np.random.default_rng(0).normal(size=(480, 12))
    found = pbo_cscv(r - r.mean(axis=0), 8)
    assert found.degradation_slope == pytest.approx(-1.0, abs=0.1)
    assert found.degradation_intercept == pytest.approx(0.0, abs=0.02)
    assert found.pbo > 0.99
    assert found.probability_of_loss == 1.0


def test_equal_trials_share_the_middle_rank():
    r = np.repeat(np.random.default_rng(0).normal(size=(64, 1)), 5, axis=1)
    found = pbo_cscv(r, 4)
    np.testing.assert_array_equal(found.logits, 0.0)
    assert found.pbo == 1.0  # the middle is no success


def test_scaled_copies_of_a_trial_are_equal_to_it():
    base = np.random.default_rng(0).normal(0.01, 0.02, 80)
    found = pbo_cscv(np.stack([base, 3.0 * base, 0.1 * base], axis=1), 8)
    np.testing.assert_allclose(found.logits, 0.0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_neither_leverage_nor_the_order_of_trials_matters(seed):
    rng = np.random.default_rng(seed)
    r = rng.normal(0.01, 1.0, (70, 6))
    order = rng.permutation(6)
    found, other = pbo_cscv(r, 6), pbo_cscv(r[:, order] * rng.uniform(0.5, 2.0, 6) * 1e-4, 6)
    np.testing.assert_allclose(other.logits, found.logits, atol=1e-9)
    np.testing.assert_array_equal(order[other.chosen], found.chosen)


def test_idle_trials_do_not_flatter_a_winner_that_loses():
    r = np.zeros((80, 10))
    r[:, 0] = reversing_trials()[:80, 0]
    found = pbo_cscv(r, 4)
    lost = (found.chosen == 0) & (found.out_of_sample < 0.0)
    assert lost.any()
    assert np.all(found.logits[lost] == math.log(1.0 / 10.0))


@pytest.mark.parametrize(
    ("change", "n_blocks", "message"),
    [
        (lambda r: r[:, :1], 4, r"N >= 2 and T >= 8 \(2 bars per block\); received \(40, 1\)"),
        (lambda r: r[:7], 4, r"received \(7, 3\)"),
        (lambda r: r, 5, "even number from 2 to 20; received 5"),
        (lambda r: r, 22, "received 22"),
        (lambda r: np.where(np.arange(3) == 1, np.nan, r), 4, r"trials \[1\] have returns that are not finite"),
        (lambda r: np.where(np.arange(3) == 2, 0.01, r), 4, r"trials \[2\] have a constant nonzero return"),
    ],
)
def test_data_that_cannot_be_compared_is_refused(change, n_blocks, message):
    with pytest.raises(ValueError, match=message):
        pbo_cscv(change(np.random.default_rng(0).normal(size=(40, 3))), n_blocks)


def test_the_paper_sized_problem_takes_seconds():
    r = np.random.default_rng(0).normal(size=(2000, 500)) * 1e-3
    started = time.process_time()
    found = pbo_cscv(r)
    assert len(found.logits) == 12_870
    assert time.process_time() - started < 20.0


# ------------------------------------------------------------------------------------------------------ in plain words
def test_a_lucky_winner_is_called_lucky():
    assert finding(WINNER, tried(100), 250.0, pbo=0.3) == (
        "Luck alone would give the best of 100 trials an annual Sharpe ratio of about 1.8. The winner has 2.50. "
        "Deflated Sharpe ratio (1 minus the p-value, corrected for the number of trials): 90.0 %. The best trial on "
        "one half of the data falls into the lower half of the trials on the other half 30.0 % of the time."
    )
    assert conclusion(WINNER, tried(100), 0.0) == (
        "Not evidence of skill: the deflated Sharpe ratio of the alpha returns is 90.0 %; at least 95.0 % is needed."
    )


@pytest.mark.parametrize(
    ("n_trials", "pbo", "beginning"),
    [
        (10, 0.05, "Evidence of skill: "),
        (1, 0.0, "Evidence of skill: "),
        (46, None, "Not evidence of skill: the alpha returns pass the deflated Sharpe ratio, but too few trials"),
        (47, 0.0, "Not evidence of skill: the deflated Sharpe ratio of the alpha returns is 94.9 %"),
        (10, 0.0501, "Not evidence of skill: the PBO of the alpha returns is 5.1 %; at most 5.0 %"),
        (10, 0.51, "Not evidence of skill: choosing the best trial does worse than chance"),
        (10, math.nan, "Not evidence of skill: the winner cannot be judged, because a figure is undefined"),
        (math.nan, 0.0, "Not evidence of skill: the winner cannot be judged, because a figure is undefined"),
    ],
)
def test_the_thresholds_of_the_conclusion(n_trials, pbo, beginning):
    assert conclusion(WINNER, tried(n_trials), pbo).startswith(beginning)


@pytest.mark.parametrize(
    ("n_trials", "words"),
    [(46, "Holding coins may earn that, too"), (47, "may have earned no more"), (math.nan, "cannot be judged")],
)
def test_what_an_account_earned_is_never_called_skill(n_trials, words):
    said = earning(WINNER, tried(n_trials))
    assert words in said
    assert "skill" not in said


def test_a_figure_never_looks_better_than_the_threshold_it_missed():
    almost = next(n for n in np.arange(46.0, 47.0, 0.01) if deflated_sharpe(WINNER, tried(n)) < 0.95)
    assert "number of trials): 94.9 %." in finding(WINNER, tried(almost), 250.0)
    assert "the other half 5.1 % of the time" in finding(WINNER, tried(10), 250.0, 0.0501)
    single = finding(WINNER, search_of([2.5], 250.0), 250.0)
    assert "a single trial, with an annual Sharpe ratio of 2.50. " in single
    assert "undefined" in finding(WINNER, tried(math.nan), 250.0)
