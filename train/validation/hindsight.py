"""Hindsight optimum on given bars: what a trader who knows every later price would earn after costs.

It is an upper bound for every policy and not a target. It is many times what can be earned without knowing the future.

A single pass is exact. Prices do not react to orders, so the final value of an account is linear in its cash C and its
quantities Q_i. A linear function has its maximum at a corner: the whole account in one coin, or all in cash. It is
therefore enough to compute, for every bar, the largest amount of cash and of each coin that an account could own:

    cash_t   = max(cash_(t-1), max_i coins_(t-1),i * price_t,i * (1 - slippage) * (1 - fee))        sell, or wait
    coins_t,i = max(coins_(t-1),i, cash_t / (price_t,i * (1 + slippage) * (1 + fee)))               buy, or wait

The pass takes O(T * A) operations. The account starts in cash. Orders fill from the second close onward, because an
order decided on the first bar fills one bar later. The delay has no other cost, because the trader with hindsight
decides each order one bar ahead. At the last close the account is valued at closing prices without a sale, as in the
environment.

Position limit, cash reserve, minimum order and lot size are ignored. Each of them only removes choices, so the bound
remains valid with them, but it is then larger than the true maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from train.validation.benchmarks import Costs, checked_closes

CASH = -1  # value in `Hindsight.held` for an account in cash
FIRST_FILL = 1  # an order decided on the first bar fills on the next


@dataclass(frozen=True)
class Hindsight:
    """Plan of the hindsight optimum on one segment, and its value."""

    held: np.ndarray  # (n + 1,) int64, coin that holds the whole account after a bar's orders, or `CASH`
    log_equity: np.ndarray  # (n + 1,) log of equity over the initial capital; -inf while the held coin has price 0

    @property
    def growth(self) -> float:
        """Log of final equity over initial equity, 0 or more."""
        return float(self.log_equity[-1])


def clairvoyant(
    close: ArrayLike, costs: Costs, is_traded: ArrayLike | None = None, first_fill: int = FIRST_FILL
) -> Hindsight:
    """Return the best plan of any long-only account without leverage on one segment.

    Args:
        close: finite closing prices (n + 1, A) in quote currency. A close of 0 means no price: the coin cannot be
            traded on that bar, and is worthless if it is the last close.
        costs: fee and slippage that every order pays; the capital has no effect.
        is_traded: mask (n + 1, A), False on bars on which no order of a coin fills (`~filled_array`). Without it every
            order fills. Leave it out for accounts with a trailing stop or stale release, which also sell on such bars.
        first_fill: first row on which orders fill.
    """
    price = checked_closes(close)
    can_trade = price > 0.0
    if is_traded is not None:
        can_trade = can_trade & np.broadcast_to(np.asarray(is_traded, dtype=bool), price.shape)
    can_trade[:first_fill] = False
    with np.errstate(divide="ignore"):
        log_price = np.log(price)
    log_unit_cost = math.log1p(costs.slippage_rate) + math.log1p(costs.fee_rate)
    log_kept = math.log1p(-costs.slippage_rate) + math.log1p(-costs.fee_rate)
    log_coins_for_cash = np.where(can_trade, -log_price - log_unit_cost, -np.inf)  # (n + 1, A) bought for one of cash
    log_cash_for_coin = np.where(can_trade, log_price + log_kept, -np.inf)  # (n + 1, A) received for one coin
    held = _best_plan(log_coins_for_cash, log_cash_for_coin, log_price[-1])
    return Hindsight(held, _valued(held, log_price, log_coins_for_cash, log_cash_for_coin))


def share_of_hindsight(growth: float, hindsight_growth: float) -> float:
    """Return the log growth as a fraction (at most 1) of the hindsight optimum, or nan if that does not trade."""
    return growth / hindsight_growth if hindsight_growth > 0.0 else math.nan


def _best_plan(bought: np.ndarray, sold: np.ndarray, log_last_price: np.ndarray) -> np.ndarray:
    """Run the forward pass in logs and read the plan (n + 1,) back from the last bar."""
    n_points, n_assets = bought.shape
    sold_coin = np.full(n_points, CASH)  # coin whose sale gives the most cash on a bar
    is_bought = np.zeros((n_points, n_assets), dtype=bool)  # True if buying gives more coins than holding
    # Only the best sale matters, and only on bars on which a coin trades.
    cash, coins = 0.0, np.full(n_assets, -np.inf)
    proceeds, affordable = np.empty(n_assets), np.empty(n_assets)
    for t in np.flatnonzero(np.isfinite(bought).any(axis=1)).tolist():
        np.add(coins, sold[t], out=proceeds)
        best = int(proceeds.argmax())
        if proceeds[best] > cash:
            cash, sold_coin[t] = float(proceeds[best]), best
        np.add(bought[t], cash, out=affordable)
        np.greater(affordable, coins, out=is_bought[t])
        np.maximum(coins, affordable, out=coins)
    value = coins + log_last_price
    best = int(value.argmax())
    return _read_back(best if value[best] > cash else CASH, sold_coin.tolist(), is_bought)


def _read_back(last: int, sold_coin: list[int], is_bought: np.ndarray) -> np.ndarray:
    """Return the holding (n + 1,) after each bar's orders, given the holding after the last bar."""
    held = np.full(len(sold_coin), CASH)
    state = last
    for t in range(len(sold_coin) - 1, -1, -1):
        held[t] = state
        if state != CASH and is_bought[t, state]:
            state = CASH  # the state between the bar's sales and its purchases
        if state == CASH:
            state = sold_coin[t]
    return held


def _valued(held: np.ndarray, log_price: np.ndarray, bought: np.ndarray, sold: np.ndarray) -> np.ndarray:
    """Return the log equity (n + 1,) of a plan that starts with cash 1."""
    before = np.concatenate(([CASH], held[:-1]))
    rows, is_change = np.arange(len(held)), held != before
    exits, entries = is_change & (before != CASH), is_change & (held != CASH)
    log_units = np.zeros(len(held))  # change by an order in the log of the amount owned, cash or coins
    log_units[exits] += sold[rows[exits], before[exits]]
    log_units[entries] += bought[rows[entries], held[entries]]
    return np.cumsum(log_units) + np.where(held == CASH, 0.0, log_price[rows, held])
