"""Alpha returns of an account, and the standard error of a difference of two Sharpe ratios.

An account that holds less of the market than equal weight earns more if prices fall. An account that holds more earns
more if prices rise. Neither is skill. Alpha returns are what remains after the effect of exposure is removed.

    beta, appraisal ratio  Treynor and Black 1973, "How to Use Security Analysis to Improve Portfolio Selection"
    difference of Sharpes  Jobson and Korkie 1981, corrected by Memmel 2003, "Performance Hypothesis Testing with the
                           Sharpe Ratio"
"""

from __future__ import annotations

from math import isfinite, nan, sqrt

import numpy as np
from numpy.typing import ArrayLike

from train.validation.metrics import LEAST_RELATIVE_SPREAD, sharpe


def market_beta(returns: ArrayLike, market: ArrayLike) -> float:
    """Return the least-squares slope, with intercept, of returns (n,) on market returns (n,): the market exposure.

    The exposure is 0 if the market does not vary, and nan if a value is not finite or there are no returns.
    """
    r, m = np.asarray(returns, dtype=np.float64), np.asarray(market, dtype=np.float64)
    if not r.size or not (np.isfinite(r).all() and np.isfinite(m).all()):
        return nan
    apart = m - m.mean()
    if not apart.std() > LEAST_RELATIVE_SPREAD * np.abs(m).max():
        return 0.0
    return float(apart @ r / (apart @ apart))


def lead_returns(returns: ArrayLike, market: ArrayLike) -> np.ndarray:
    """Return alpha returns (n,): returns minus `market_beta` times the market's returns, including the intercept.

    Their Sharpe ratio is the appraisal ratio. For an account with constant exposure, only the costs remain.
    """
    r, m = np.asarray(returns, dtype=np.float64), np.asarray(market, dtype=np.float64)
    return r - market_beta(r, m) * m


def sharpe_difference_error(returns: ArrayLike, other: ArrayLike, bars_per_year: float) -> float:
    """Return the standard error of the difference of two annual Sharpe ratios of returns (n,) on the same bars.

    With the correlation rho of the returns and their Sharpe ratios a and b per bar, after Memmel: variance = (2 (1 -
    rho) + (a^2 + b^2 - 2 a b rho^2) / 2) / n. The higher the correlation, the smaller the error. The variance of a
    single ratio, 1 / n, is correct only for rho = 1/2. Bars are assumed independent and returns normal. The result is
    nan if a Sharpe ratio is undefined.
    """
    r, o = np.asarray(returns, dtype=np.float64), np.asarray(other, dtype=np.float64)
    a, b = float(sharpe(r, 1.0)), float(sharpe(o, 1.0))
    if not (isfinite(a) and isfinite(b)):
        return nan
    rho = float(np.corrcoef(r, o)[0, 1])
    variance = 2.0 * (1.0 - rho) + (a * a + b * b - 2.0 * a * b * rho * rho) / 2.0
    return sqrt(max(variance, 0.0) / r.size * bars_per_year)
