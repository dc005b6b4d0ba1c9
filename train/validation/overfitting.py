"""Statistics of selection bias: probabilistic and deflated Sharpe ratio, minimum track record length and PBO.

Sharpe ratios in this module are PER BAR: mean over standard deviation (n - 1) of one-bar returns. Multiply by
sqrt(bars per year) for the annual ratio, and the variance of several ratios by bars per year. Kurtosis is 3 for a
normal distribution. Undefined inputs give nan.

    PSR, MinTRL  Bailey and Lopez de Prado 2012, "The Sharpe Ratio Efficient Frontier"
    DSR          Bailey and Lopez de Prado 2014, "The Deflated Sharpe Ratio"
    PBO          Bailey, Borwein, Lopez de Prado and Zhu 2015, "The Probability of Backtest Overfitting"

All of them assume that bars are independent. Serially correlated returns make them overconfident. A "confidence" is one
minus a p-value: the probability that chance alone would give a lower value. It is not the probability of skill.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import inf, isfinite, isnan, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from train.records.defaults import LEAST_CONFIDENCE
from train.validation.choice import CHOICE_LEVEL, Choice
from train.validation.metrics import LEAST_RELATIVE_SPREAD, sharpe

LARGEST_PBO = 0.05  # above: no evidence of skill; above 0.5: choosing the best in-sample is harmful
MAX_BLOCKS = 20  # 184,756 combinations
CHUNK = 512  # combinations processed at a time


# ------------------------------------------------------------------------------------------ Sharpe ratio with its error
@dataclass(frozen=True)
class SharpeEstimate:
    """A Sharpe ratio and the moments that determine its uncertainty."""

    sharpe: float  # per bar
    n_returns: int
    skew: float = 0.0
    kurtosis: float = 3.0


@dataclass(frozen=True)
class Search:
    """Number and variance of the trials from which the winner was chosen."""

    n_trials: float  # a count, or an effective number of independent trials
    sharpe_variance: float  # variance of the trials' per-bar Sharpe ratios


def estimate_sharpe(returns: ArrayLike) -> SharpeEstimate:
    """Return the estimate from one-bar returns (n,), with sample skew and kurtosis without bias correction."""
    r = np.asarray(returns, dtype=np.float64)
    ratio = float(sharpe(r, 1.0))
    if isnan(ratio):
        return SharpeEstimate(nan, r.size, nan, nan)
    unit = (r - r.mean()) / r.std()
    return SharpeEstimate(ratio, r.size, float(np.mean(unit**3)), float(np.mean(unit**4)))


def probabilistic_sharpe(estimate: SharpeEstimate, benchmark: float = 0.0) -> float:
    """Return the confidence that the true Sharpe ratio is above `benchmark` (per bar), from the 2012 paper."""
    deviation = _deviation(estimate)
    if not deviation > 0.0 or estimate.n_returns < 2:
        return nan
    return float(ndtr((estimate.sharpe - benchmark) * sqrt(estimate.n_returns - 1) / deviation))


def minimum_track_record_length(
    estimate: SharpeEstimate, benchmark: float = 0.0, confidence: float = LEAST_CONFIDENCE
) -> float:
    """Return the number of returns at which `probabilistic_sharpe` reaches `confidence`, from the 2012 paper.

    The estimate is assumed to stay the same. The length is infinite if the Sharpe ratio is not above the benchmark.
    """
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0.5 and 1, such as 0.95; received {confidence}")
    deviation, lead = _deviation(estimate), estimate.sharpe - benchmark
    if isnan(deviation) or isnan(lead):
        return nan
    return 1.0 + (deviation * float(ndtri(confidence)) / lead) ** 2 if lead > 0.0 else inf


def _deviation(estimate: SharpeEstimate) -> float:
    """Return the standard error of the Sharpe ratio times sqrt(n - 1); nan for impossible moments."""
    ratio = estimate.sharpe
    variance = 1.0 - estimate.skew * ratio + (estimate.kurtosis - 1.0) / 4.0 * ratio**2
    return sqrt(variance) if variance >= 0.0 else nan


# ------------------------------------------------------------------------------------------------ the price of a search
def search_of(trial_sharpes: ArrayLike, bars_per_year: float = 1.0, n_trials: float | None = None) -> Search:
    """Return number and variance of a study's trials from their ANNUAL Sharpe ratios (N,).

    A trial with an undefined Sharpe ratio counts as a trial, but does not enter the variance. The variance is nan with
    fewer than 2 defined ratios, and 0 for a single trial, because nothing was chosen.

    Args:
        trial_sharpes: annual Sharpe ratio of every finished trial, including the winner.
        bars_per_year: number of bars per year used to annualize the ratios; 1 if they are per bar.
        n_trials: number of trials to use, such as `effective_trials`. The default is the plain count, which is the
            strictest choice.
    """
    ratios = np.asarray(trial_sharpes, dtype=np.float64)
    known = ratios[np.isfinite(ratios)]
    count = float(ratios.size if n_trials is None else n_trials)
    if known.size < 2:
        return Search(count, 0.0 if ratios.size == 1 and known.size == 1 else nan)
    return Search(count, float(np.var(known, ddof=1)) / bars_per_year)


def effective_trials(returns: ArrayLike) -> float:
    """Return the number of independent trials equivalent to N correlated ones: rho + (1 - rho) N.

    From the appendix of the 2014 paper; `returns` is (T, N) and rho the mean pairwise correlation. A pair without a
    correlation (an account that never traded) counts as uncorrelated, and a negative mean as 0, so that neither reduces
    the number.
    """
    r = np.asarray(returns, dtype=np.float64)
    n = r.shape[1]
    if n < 2:
        return float(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = np.nan_to_num(np.asarray(np.corrcoef(r, rowvar=False)))[np.triu_indices(n, 1)]
    rho = min(max(float(pairs.mean()), 0.0), 1.0)
    return rho + (1.0 - rho) * n


def expected_maximum_sharpe(search: Search) -> float:
    """Return the expected highest Sharpe ratio (per bar) among trials without skill, from the 2014 paper.

    The formula is an approximation for many trials, accurate within 3 % for at least 10. The result is 0 for a single
    trial and never negative.
    """
    n = search.n_trials
    if isnan(n) or n < 1.0 or not search.sharpe_variance >= 0.0:
        return nan
    if n == 1.0:
        return 0.0
    best = (1.0 - np.euler_gamma) * ndtri(1.0 - 1.0 / n) + np.euler_gamma * ndtri(1.0 - 1.0 / (n * np.e))
    return max(sqrt(search.sharpe_variance) * float(best), 0.0)


def deflated_sharpe(estimate: SharpeEstimate, search: Search) -> float:
    """Return one minus the p-value of the winner's Sharpe ratio, corrected for its selection, from the 2014 paper.

    This is the probabilistic Sharpe ratio with the expected maximum among trials without skill as the benchmark.
    """
    return probabilistic_sharpe(estimate, expected_maximum_sharpe(search))


# ---------------------------------------------------------------------------------- probability of backtest overfitting
@dataclass(frozen=True)
class Overfitting:
    """Result of combinatorially symmetric cross-validation over C combinations of blocks; Sharpe ratios are per bar.

    `chosen_share` and `any_share` are distribution functions of the out-of-sample Sharpe ratio of the trial chosen
    in-sample and of any trial. Choosing beats drawing at random (first-order stochastic dominance) if `chosen_share` is
    nowhere above `any_share`.
    """

    pbo: float  # fraction of combinations in which the chosen trial ranks in the lower half or the middle
    logits: np.ndarray  # (C,) logit of the chosen trial's relative rank out-of-sample; positive is above the middle
    chosen: np.ndarray  # (C,) int64, the trial that was best in-sample
    in_sample: np.ndarray  # (C,) Sharpe ratio of the chosen trial in-sample
    out_of_sample: np.ndarray  # (C,) Sharpe ratio of the chosen trial out-of-sample
    degradation_slope: float  # slope of out_of_sample on in_sample; nan if in_sample is constant
    degradation_intercept: float
    probability_of_loss: float  # fraction of combinations with out_of_sample below 0
    sharpe_grid: np.ndarray  # (101,)
    chosen_share: np.ndarray  # (101,) fraction of chosen trials at or below each Sharpe ratio of the grid
    any_share: np.ndarray  # (101,) fraction of all trials at or below it


def pbo_cscv(returns: ArrayLike, n_blocks: int = 16) -> Overfitting:
    """Return how often the best trial on one half of the data ranks in the lower half of the trials on the other half.

    The bars are divided into `n_blocks` blocks whose lengths differ by at most one bar. Every choice of half of the
    blocks is in-sample once, with the rest out-of-sample. Trials are compared by Sharpe ratio. Equal trials share their
    average rank, and the first of equals is chosen. The relative rank is rank / (N + 1), from the worst up.

    An account that was inactive in a half (all returns 0) has a Sharpe ratio of 0 there and beats accounts that lost.
    Ranking inactive trials last would flatter every winner. Constant nonzero returns have no Sharpe ratio and raise an
    error.

    Peak memory is twice the (C, N) float64 array of Sharpe ratios; 12,870 x 500 take 51 MB.

    Args:
        returns: one-bar returns (T, N) on the same bars for every trial.
        n_blocks: number of blocks, even; 16 in the paper.
    """
    r = _checked(returns, n_blocks)
    ratios = _half_sharpes(r, n_blocks)  # (C, N), for the half that each combination contains
    # Combinations are in lexicographic order, so the complement of the first is the last, and so on.
    elsewhere = ratios[::-1]
    chosen = ratios.argmax(axis=1)
    row = np.arange(len(chosen))
    in_sample, out_of_sample = ratios[row, chosen], elsewhere[row, chosen]
    rank = _average_rank(elsewhere, out_of_sample)
    logits = np.log(rank / (r.shape[1] + 1 - rank))
    slope, intercept = _line(in_sample, out_of_sample)
    grid = np.linspace(ratios.min(), ratios.max(), 101)
    return Overfitting(
        pbo=float(np.mean(logits <= 0.0)),
        logits=logits,
        chosen=chosen,
        in_sample=in_sample,
        out_of_sample=out_of_sample,
        degradation_slope=slope,
        degradation_intercept=intercept,
        probability_of_loss=float(np.mean(out_of_sample < 0.0)),
        sharpe_grid=grid,
        chosen_share=_share_up_to(grid, out_of_sample),
        any_share=_share_up_to(grid, ratios.ravel()),
    )


def _checked(returns: ArrayLike, n_blocks: int) -> np.ndarray:
    r = np.asarray(returns, dtype=np.float64)
    if n_blocks % 2 or not 2 <= n_blocks <= MAX_BLOCKS:
        raise ValueError(f"n_blocks must be an even number from 2 to {MAX_BLOCKS}; received {n_blocks}")
    if r.ndim != 2 or r.shape[1] < 2 or r.shape[0] < 2 * n_blocks:
        raise ValueError(
            f"returns must have shape (T, N) with N >= 2 and T >= {2 * n_blocks} (2 bars per block); received {r.shape}"
        )
    broken = np.flatnonzero(~np.isfinite(r).all(axis=0))
    if broken.size:
        raise ValueError(f"trials {broken.tolist()} have returns that are not finite; omit them")
    return r


def _half_sharpes(r: np.ndarray, n_blocks: int) -> np.ndarray:
    """Return Sharpe ratios (C, N) of every half of the blocks, from each block's sums of returns and squares."""
    centre = r.mean(axis=0)  # sums of squares around the mean keep their precision
    edges = np.linspace(0, len(r), n_blocks + 1).astype(np.int64)
    length = np.diff(edges).astype(np.float64)  # (S,)
    sums = np.add.reduceat(r - centre, edges[:-1], axis=0)  # (S, N)
    squares = np.add.reduceat((r - centre) ** 2, edges[:-1], axis=0)
    moves = np.add.reduceat(r != 0.0, edges[:-1], axis=0, dtype=np.float64)
    halves = np.array(list(combinations(range(n_blocks), n_blocks // 2)))
    ratios = np.empty((len(halves), r.shape[1]))
    for first in range(0, len(halves), CHUNK):
        half = halves[first : first + CHUNK]
        takes_in = np.zeros((len(half), n_blocks))  # (CHUNK, S)
        np.put_along_axis(takes_in, half, 1.0, axis=1)
        n = (takes_in @ length)[:, None]
        mean = takes_in @ sums / n
        square = takes_in @ squares
        spread_square = square - n * mean**2  # times n - 1
        has_no_spread = spread_square <= 1e-12 * square
        is_idle = takes_in @ moves == 0.0
        _refuse_constant(has_no_spread & ~is_idle)
        deviation = np.sqrt(np.where(has_no_spread, 1.0, spread_square) / (n - 1.0))
        ratios[first : first + CHUNK] = np.where(is_idle, 0.0, (mean + centre) / deviation)
    return ratios


def _refuse_constant(is_constant: np.ndarray) -> None:
    columns = np.flatnonzero(is_constant.any(axis=0))
    if columns.size:
        raise ValueError(
            f"trials {columns.tolist()} have a constant nonzero return over half of the bars and therefore no Sharpe "
            "ratio; omit them"
        )


def _average_rank(ratios: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the rank (C,) of `own` (C,) among the ratios (C, N), from 1 for the lowest; ties share their mean rank."""
    rank = np.empty(len(own))
    for first in range(0, len(own), CHUNK):
        rows, mine = ratios[first : first + CHUNK], own[first : first + CHUNK, None]
        # Rounding errors of the sums differ between columns by less than this.
        is_equal = np.abs(rows - mine) <= LEAST_RELATIVE_SPREAD * np.abs(mine) + 1e-12
        n_below = np.count_nonzero((rows < mine) & ~is_equal, axis=1)
        rank[first : first + CHUNK] = n_below + (np.count_nonzero(is_equal, axis=1) + 1) / 2.0
    return rank


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept by least squares; nan if x is constant."""
    deviation = x - x.mean()
    variation = float(deviation @ deviation)
    if variation <= (LEAST_RELATIVE_SPREAD * float(np.abs(x).max())) ** 2 * x.size:
        return nan, nan
    slope = float(deviation @ y) / variation
    return slope, float(y.mean() - slope * x.mean())


def _share_up_to(grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    counts = np.histogram(values, np.concatenate([[-inf], np.nextafter(grid, inf), [inf]]))[0]
    return np.cumsum(counts)[:-1] / values.size


# ------------------------------------------------------------------------------------------------------- in plain words
EVIDENCE = "Evidence of skill: "  # start of a positive conclusion


def conclusion(
    lead: SharpeEstimate,
    search: Search,
    pbo: float | None = None,
    choice: Choice | None = None,
    holdout: bool | None = None,
) -> str:
    """Return a sentence on whether the winner's alpha returns (`train.validation.lead`) are evidence of skill.

    Evidence requires a deflated Sharpe ratio of at least `LEAST_CONFIDENCE` AND a PBO of at most `LARGEST_PBO`. If the
    trials do not differ by more than their sampling error, PBO does not apply and the winner must pass the hold-out
    instead. Use this function for alpha returns only, because an account's returns may be market returns.

    Args:
        lead: estimate for the winner's alpha returns.
        search: alpha returns of all trials from which it was chosen.
        pbo: PBO of the alpha returns, or None if it was not computed.
        choice: gap between the best and the median trial; None means that PBO applies.
        holdout: True if the winner passed the hold-out; None without a verdict.
    """
    confidence = deflated_sharpe(lead, search)
    if not isfinite(confidence) or (pbo is not None and isnan(pbo)):
        return "Not evidence of skill: the winner cannot be judged, because a figure is undefined."
    if confidence < LEAST_CONFIDENCE:
        return (
            f"Not evidence of skill: the deflated Sharpe ratio of the alpha returns is {_percent(confidence)}; at "
            f"least {_percent(LEAST_CONFIDENCE)} is needed."
        )
    if pbo is None:
        return (
            "Not evidence of skill: the alpha returns pass the deflated Sharpe ratio, but too few trials completed to "
            "test for overfitting (PBO)."
        )
    if choice is not None and not choice.is_real:
        return _without_a_choice(holdout)
    if pbo > 0.5:
        return "Not evidence of skill: choosing the best trial does worse than chance (PBO above one half)."
    if pbo > LARGEST_PBO:
        return (
            f"Not evidence of skill: the PBO of the alpha returns is {_percent(pbo, np.ceil)}; at most "
            f"{_percent(LARGEST_PBO)} is allowed."
        )
    return f"{EVIDENCE}the alpha returns pass the deflated Sharpe ratio and PBO."


def _without_a_choice(holdout: bool | None) -> str:
    if holdout:
        return (
            f"{EVIDENCE}the alpha returns pass the deflated Sharpe ratio, and the winner passed the hold-out. PBO does "
            "not apply, because the trials do not differ by more than their sampling error."
        )
    said = "was not passed" if holdout is False else "has no verdict"
    return (
        f"Not evidence of skill: the alpha returns pass the deflated Sharpe ratio, but the hold-out {said}. The "
        "hold-out decides here: PBO does not apply, because the trials do not differ by more than their sampling error."
    )


def earning(account: SharpeEstimate, search: Search) -> str:
    """Return a sentence on whether the winner earned more than luck explains, which is not evidence of skill."""
    confidence = deflated_sharpe(account, search)
    if not isfinite(confidence):
        return "The return of the account cannot be judged, because a figure is undefined."
    if confidence < LEAST_CONFIDENCE:
        return (
            "The account may have earned no more than the luckiest of this many trials would "
            f"(confidence below {_percent(LEAST_CONFIDENCE)})."
        )
    return "The account earned more than the luckiest of this many trials would. Holding coins may earn that, too."


def finding(
    estimate: SharpeEstimate,
    search: Search,
    bars_per_year: float,
    pbo: float | None = None,
    choice: Choice | None = None,
) -> str:
    """Return the metrics behind a conclusion in a few sentences.

    Args:
        estimate: estimate for the winner.
        search: all trials from which it was chosen.
        bars_per_year: number of bars per year at the actual bar spacing.
        pbo: PBO, or None if it was not computed.
        choice: gap between the best and the median trial, or None if it was not computed.
    """
    confidence = deflated_sharpe(estimate, search)
    trials = f"{search.n_trials:.4g} trial{'' if search.n_trials == 1 else 's'}"
    if not isfinite(confidence) or (pbo is not None and isnan(pbo)):
        return f"The best of {trials} has an undefined figure."
    luck, won = (ratio * sqrt(bars_per_year) for ratio in (expected_maximum_sharpe(search), estimate.sharpe))
    if search.n_trials == 1.0:
        found = f"The study has a single trial, with an annual Sharpe ratio of {won:.2f}. "
    else:
        found = (
            f"Luck alone would give the best of {trials} an annual Sharpe ratio of about {luck:.1f}. "
            f"The winner has {won:.2f}. "
        )
    found += f"Deflated Sharpe ratio (1 minus the p-value, corrected for the number of trials): {_percent(confidence)}."
    if pbo is not None:
        found += " The best trial on one half of the data falls into the lower half of the trials on the other half "
        found += f"{_percent(pbo, np.ceil)} of the time."
    return found if choice is None else f"{found} {_choice_text(choice, sqrt(bars_per_year))}"


def _choice_text(choice: Choice, root: float) -> str:
    differ = "differ" if choice.is_real else "do not differ"
    return (
        f"The best trial's annual Sharpe ratio is {choice.gap * root:.2f} above the median trial's. Among equally good "
        f"trials the gap would be about {choice.gap_by_error * root:.2f} (p = {choice.p_value:.2g}), so the trials "
        f"{differ} by more than their sampling error (significance level {CHOICE_LEVEL:.1%}).".replace("%", " %")
    )


def _percent(share: float, rounding: np.ufunc = np.floor) -> str:
    """Return a percentage, rounded against the winner so that it never looks better than the threshold it missed."""
    tenths = rounding(round(share * 1000.0, 6))
    return f"{tenths / 10.0:.1f} %"
