"""What an account earned beside its exposure to the market, and how sure a difference of two Sharpe ratios is.

An account that only holds less of the market than equal weight earns more where prices fall, and one that holds more
earns more where they rise. Neither is skill, so the lead is what is left after the exposure is taken out.

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
    """Exposure to the market: slope of the least-squares line, with a constant, of (n,) returns on (n,) of the market.

    0 where the market does not vary (nothing can be exposed to it); nan where something is not finite, or without
    returns.
    """
    r, m = np.asarray(returns, dtype=np.float64), np.asarray(market, dtype=np.float64)
    if not r.size or not (np.isfinite(r).all() and np.isfinite(m).all()):
        return nan
    apart = m - m.mean()
    if not apart.std() > LEAST_RELATIVE_SPREAD * np.abs(m).max():
        return 0.0
    return float(apart @ r / (apart @ apart))


def lead_returns(returns: ArrayLike, market: ArrayLike) -> np.ndarray:
    """(n,) returns less `market_beta` times the market's: the constant (alpha) and what the market does not explain.

    Their Sharpe ratio is the appraisal ratio. An account of constant exposure keeps its costs and nothing else.
    """
    r, m = np.asarray(returns, dtype=np.float64), np.asarray(market, dtype=np.float64)
    return r - market_beta(r, m) * m


def sharpe_difference_error(returns: ArrayLike, other: ArrayLike, bars_per_year: float) -> float:
    """Standard error of the annual Sharpe ratio of (n,) returns minus that of (n,) others on the same bars.

    By the correlation rho of the two and their Sharpe ratios a and b per bar, after Memmel:
    variance = (2 (1 - rho) + (a^2 + b^2 - 2 a b rho^2) / 2) / n. The closer they move together, the surer their
    difference; the error of a single ratio, 1 / n, is right for rho = 1/2 only. Bars are taken for independent and
    returns for normal. nan where a Sharpe ratio is undefined.
    """
    r, o = np.asarray(returns, dtype=np.float64), np.asarray(other, dtype=np.float64)
    a, b = float(sharpe(r, 1.0)), float(sharpe(o, 1.0))
    if not (isfinite(a) and isfinite(b)):
        return nan
    rho = float(np.corrcoef(r, o)[0, 1])
    variance = 2.0 * (1.0 - rho) + (a * a + b * b - 2.0 * a * b * rho * rho) / 2.0
    return sqrt(max(variance, 0.0) / r.size * bars_per_year)
