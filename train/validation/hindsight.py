"""The most that could have been earned on given bars: a trader who knows every later price, after costs.

An upper bound for every policy, and no teacher: it earns many times what can be earned without knowing the future.

Why one pass is exact. An account of C cash and Q_i coins can only turn cash into coins and coins into cash, at prices
that do not react, so its final value is linear in what it holds, and a linear function has its maximum in a corner: all
of the account in one coin, or all in cash. It is enough to know for every bar the most cash and the most coins of each
kind that one could own there:

    cash_t   = max(cash_(t-1), max_i coins_(t-1),i * price_t,i * (1 - slippage) * (1 - fee))        sell, or wait
    coins_t,i = max(coins_(t-1),i, cash_t / (price_t,i * (1 + slippage) * (1 + fee)))               buy, or wait

That is O(T * A). The account begins in cash. Orders fill from the second close on, because an order that is decided on
the first bar fills one bar later; hindsight loses nothing else by that delay, since it decides each order a bar ahead.
At the last close the account is valued as it is, coins at the close, as the environment values it: nobody has to sell.

Left out are the largest position, the cash reserve, the smallest order and the lot size. Each of them only takes
choices away, so the bound holds with them as well; it is then just larger than the true maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from train.validation.benchmarks import Costs, checked_closes

CASH = -1  # in `Hindsight.held`
FIRST_FILL = 1  # an order decided on the first bar fills on the next


@dataclass(frozen=True)
class Hindsight:
    """The plan of the clairvoyant trader on one segment, and what it is worth."""

    held: np.ndarray  # (n + 1,) int64 coin that all the account is in after a bar's orders, or `CASH`
    log_equity: np.ndarray  # (n + 1,) log of equity over the initial capital; -inf while the held coin has price 0

    @property
    def growth(self) -> float:
        """Log of final over initial equity, 0 or more."""
        return float(self.log_equity[-1])


def clairvoyant(
    close: ArrayLike, costs: Costs, is_traded: ArrayLike | None = None, first_fill: int = FIRST_FILL
) -> Hindsight:
    """The best that any long-only account without leverage could have done on one segment.

    Args:
        close: (n + 1, A) quote, finite; 0 for a coin without a price, which is neither bought nor sold there, and worth
            nothing if it is the last close.
        costs: fee and slippage are paid on every order; the capital does not matter.
        is_traded: (n + 1, A) bool, False on bars on which no order of a coin fills (`~filled_array`); without it every
            order fills. Leave it out for accounts with a trailing stop or stale release, which sell on such bars too.
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
    """Log growth as a share of the clairvoyant's, at most 1; nan where hindsight would not have traded either."""
    return growth / hindsight_growth if hindsight_growth > 0.0 else math.nan


def _best_plan(bought: np.ndarray, sold: np.ndarray, log_last_price: np.ndarray) -> np.ndarray:
    """The forward pass in logs, then the plan read back from the last bar; see the module. -> (n + 1,)."""
    n_points, n_assets = bought.shape
    sold_coin = np.full(n_points, CASH)  # whose sale gives the most cash on a bar
    is_bought = np.zeros((n_points, n_assets), dtype=bool)  # where buying gives more coins than holding them
    # Only the best of the sales matters, and only on bars on which something trades.
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
    """(n + 1,) what is held after each bar's orders, from what is held after the last."""
    held = np.full(len(sold_coin), CASH)
    state = last
    for t in range(len(sold_coin) - 1, -1, -1):
        held[t] = state
        if state != CASH and is_bought[t, state]:
            state = CASH  # as it was between the bar's sales and its purchases
        if state == CASH:
            state = sold_coin[t]
    return held


def _valued(held: np.ndarray, log_price: np.ndarray, bought: np.ndarray, sold: np.ndarray) -> np.ndarray:
    """(n + 1,) log equity of a plan that begins with cash 1."""
    before = np.concatenate(([CASH], held[:-1]))
    rows, is_change = np.arange(len(held)), held != before
    exits, entries = is_change & (before != CASH), is_change & (held != CASH)
    log_units = np.zeros(len(held))  # what an order adds to the log of what is owned, cash or coins
    log_units[exits] += sold[rows[exits], before[exits]]
    log_units[entries] += bought[rows[entries], held[entries]]
    return np.cumsum(log_units) + np.where(held == CASH, 0.0, log_price[rows, held])
