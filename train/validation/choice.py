"""Test of whether the best of several trials differs from the median trial by more than sampling error.

PBO counts how often the best trial on one half of the bars falls below the median trial on the other half. Among
equally good trials this happens half of the time, whatever they earn. The choice then cannot be overfitted, and PBO
contains no information about skill. PBO is therefore used only if the best trial's Sharpe ratio exceeds the median
trial's by more than chance would explain among equal trials.

The statistic is the highest Sharpe ratio minus the median Sharpe ratio. Its null distribution follows White's reality
check: the largest of N correlated estimates is compared with the largest of N correlated errors. The errors of the
Sharpe ratios are jointly normal. Their covariance is that of the influence functions z - S (z^2 - 1) / 2 of a
standardized return z, so it reflects the correlation, skew and kurtosis of the returns.

    reality check         White 2000, "A Reality Check for Data Snooping", Econometrica 68(5)
    error of one Sharpe   Mertens 2002, "Comments on variance of the IID estimator in Lo (2002)"
    error of differences  Memmel 2003, "Performance Hypothesis Testing with the Sharpe Ratio"
    equality of several   Leung and Wong 2008, "On testing the equality of multiple Sharpe ratios", J. of Risk 10(3)

Bars are assumed to be independent, as everywhere in `train.validation.overfitting`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from train.validation.metrics import LEAST_RELATIVE_SPREAD

# p-value below which the trials differ, so that PBO applies. A constant difference with this p-value has a PBO below
# 5 %. With p = 1 % the PBO is 3 to 20 %, which only restates the p-value, because halves of the bars have larger errors
# than all bars (tests/validation/test_choice.py).
CHOICE_LEVEL = 0.001
N_DRAWS = 20_000  # draws of the errors under equality; the error of a p-value of 0.1 % is 0.02 %


@dataclass(frozen=True)
class Choice:
    """Gap between the best trial and the median trial; Sharpe ratios are per bar."""

    gap: float  # Sharpe ratio of the chosen trial minus the median Sharpe ratio
    gap_by_error: float  # mean gap of the highest Sharpe ratio among equally good trials
    p_value: float  # fraction of such gaps that are at least as large

    @property
    def is_real(self) -> bool:
        """True if the trials differ by more than their sampling error."""
        return self.p_value < CHOICE_LEVEL


def choice_of(returns: ArrayLike, winner: int | None = None, seed: int = 0, n_draws: int = N_DRAWS) -> Choice:
    """Compare the chosen one of several trials with the median trial.

    An inactive account has a Sharpe ratio of 0 without error, as in `pbo_cscv`.

    Args:
        returns: finite one-bar returns (T, N) on the same bars for every trial; N is at least 2.
        winner: column of the chosen trial; None selects the trial with the highest Sharpe ratio. The gap is that of the
            winner, because the lead of a different trial does not make this choice more certain.
        seed: seed of the draws.
        n_draws: number of draws of the errors under equality.
    """
    r = np.asarray(returns, dtype=np.float64)
    if r.ndim != 2 or r.shape[1] < 2 or not np.isfinite(r).all():
        raise ValueError(f"returns must be finite with shape (T, N) and 2 trials or more; received shape {r.shape}")
    ratios, influences = _sharpes_with_influences(r)
    n_bars = len(r)
    scale, axes = np.linalg.eigh(influences.T @ influences / n_bars**2)  # (N,), (N, N)
    draws = np.random.default_rng(seed).standard_normal((n_draws, r.shape[1]))
    errors = draws * np.sqrt(np.maximum(scale, 0.0)) @ axes.T  # (D, N) of the Sharpe ratios
    gap = float((ratios.max() if winner is None else ratios[winner]) - np.median(ratios))
    gaps = errors.max(axis=1) - np.median(errors, axis=1)
    n_larger = np.count_nonzero(gaps >= gap)
    return Choice(gap, float(gaps.mean()), (1 + n_larger) / (1 + n_draws))


def _sharpes_with_influences(r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Sharpe ratios per bar (N,), and T times the contribution of each bar to their errors (T, N)."""
    mean, spread = r.mean(axis=0), r.std(axis=0)
    is_idle = spread <= LEAST_RELATIVE_SPREAD * np.abs(r).max(axis=0)
    ratios = np.where(is_idle, 0.0, mean / np.where(is_idle, 1.0, spread))
    unit = np.where(is_idle, 0.0, (r - mean) / np.where(is_idle, 1.0, spread))
    return ratios, np.where(is_idle, 0.0, unit - ratios / 2.0 * (unit**2 - 1.0))
