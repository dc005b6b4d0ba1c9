# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Valuation and reward of the numba step, as in the plain file."""

from __future__ import annotations

import math

from . import drop_in
from .memory import LANES, Array, Record, native, order_at, position_at, segment_at, where
from .tables import CHOICE, TERM

EQUITY_FLOOR, TARGET_WEIGHT = drop_in.EQUITY_FLOOR, drop_in.TARGET_WEIGHT


@native
def account_value(book: Record, coins: int, orders: int, p: Record) -> None:
    """Set book.equity_at_fill to cash plus positions at the close, in quote."""
    for w in range(LANES):
        book.equity_at_fill[w] = book.cash[w]
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        for w in range(LANES):
            book.equity_at_fill[w] += coin.qty[w] * order.price[w]


@native
def mark_to_market(book: Record, coins: int, orders: int, p: Record) -> None:
    """Value account and benchmark at this bar, and update the running peak and largest drawdown."""
    for w in range(LANES):
        book.equity[w], book.benchmark[w] = book.cash[w], 0.0
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        for w in range(LANES):
            book.equity[w] += coin.qty[w] * order.price[w]
            book.benchmark[w] += coin.benchmark_qty[w] * order.price[w]
    for w in range(LANES):
        peak = where(book.equity[w] > book.peak[w], book.equity[w], book.peak[w])
        drawdown = 1.0 - book.equity[w] / peak
        book.peak[w] = peak
        book.max_drawdown[w] = where(drawdown > book.max_drawdown[w], drawdown, book.max_drawdown[w])


@native
def reward_terms(i: int, n: int, book: Record, coins: int, orders: int, terms: Array, p: Record) -> None:
    """Fill in the rows of terms (K, N), and set book.reward to their sum."""
    before, norm_reward = book.before, p.norm_reward
    if p.reward == CHOICE.reward.benchmark_difference:
        for w in range(LANES):
            gain = (book.equity[w] - before.equity[w]) - (book.benchmark[w] - before.benchmark[w])
            terms[TERM.benchmark_difference.alpha, i + w] = gain * norm_reward
    elif p.reward == CHOICE.reward.profit:
        for w in range(LANES):
            terms[TERM.profit.profit, i + w] = (book.equity[w] - before.equity[w]) * norm_reward
    elif p.reward == CHOICE.reward.cappuccino:
        cappuccino_terms(i, n, book, coins, orders, terms, p)
    else:
        weighted_terms(i, n, book, coins, orders, terms, p)
    for w in range(LANES):
        book.reward[w] = 0.0
    for k in range(terms.shape[0]):
        for w in range(LANES):
            book.reward[w] += terms[k, i + w]


@native
def weights_of(book: Record, coins: int, orders: int, p: Record) -> None:
    """Set coin.weight and book.largest_weight."""
    for w in range(LANES):
        book.largest_weight[w] = 0.0
    for a in range(p.n_assets):
        coin, order = position_at(coins, a), order_at(orders, a)
        for w in range(LANES):
            weight = where(book.equity[w] > 0, coin.qty[w] * order.price[w] / book.equity[w], 0.0)
            coin.weight[w] = weight
            book.largest_weight[w] = where(weight > book.largest_weight[w], weight, book.largest_weight[w])


@native
def weighted_terms(i: int, n: int, book: Record, coins: int, orders: int, terms: Array, p: Record) -> None:
    """Fill in the terms of the standard reward; expensive terms without a weight stay 0."""
    before, term, norm_reward, floor = book.before, TERM.weighted_terms, p.norm_reward, EQUITY_FLOOR * p.initial_capital
    drawdown_penalty, volatility_penalty = p.drawdown_penalty, p.volatility_penalty
    for w in range(n):
        book.growth[w] = math.log(max(book.equity[w], floor) / max(before.equity[w], floor))
        terms[term.growth, i + w] = norm_reward * (p.growth_weight * book.growth[w])
    if p.benchmark_weight != 0:
        for w in range(n):
            tracked = math.log(max(book.benchmark[w], floor) / max(before.benchmark[w], floor))
            terms[term.benchmark, i + w] = norm_reward * (-p.benchmark_weight * tracked)
    for w in range(LANES):
        drawdown = -drawdown_penalty * (book.max_drawdown[w] - before.max_drawdown[w])
        terms[term.drawdown, i + w] = norm_reward * drawdown
        terms[term.volatility, i + w] = norm_reward * (-volatility_penalty * book.growth[w] ** 2)
    if p.concentration_penalty != 0:
        weights_of(book, coins, orders, p)
        for w in range(n):
            excess = max(book.largest_weight[w] - TARGET_WEIGHT, 0.0)
            terms[term.concentration, i + w] = norm_reward * (-p.concentration_penalty * excess)
    turnover_penalty = p.turnover_penalty
    for w in range(LANES):
        equity = where(book.equity[w] > floor, book.equity[w], floor)
        terms[term.turnover, i + w] = norm_reward * (-turnover_penalty * book.turnover[w] / equity)


@native
def cappuccino_terms(i: int, n: int, book: Record, coins: int, orders: int, terms: Array, p: Record) -> None:
    """Fill in the terms of the Cappuccino reward."""
    before, term, norm_reward, initial_capital = book.before, TERM.cappuccino, p.norm_reward, p.initial_capital
    reserve = p.min_cash_reserve * initial_capital
    time_decay(n, book, p)
    for w in range(LANES):
        gain, benchmark_gain = book.equity[w] - before.equity[w], book.benchmark[w] - before.benchmark[w]
        market_return = where(before.benchmark[w] > 0, benchmark_gain / before.benchmark[w], 0.0)
        cash_share = where(book.equity[w] > 0, book.cash[w] / book.equity[w], 0.0)
        earns_bonus = (market_return < 0) & (cash_share > 0.1)
        shortfall = where(reserve > book.cash[w], reserve - book.cash[w], 0.0)
        terms[term.alpha, i + w] = 0.5 * (gain - benchmark_gain) * norm_reward * book.decay[w]
        terms[term.absolute, i + w] = 0.3 * gain / initial_capital * norm_reward * book.decay[w]
        bonus = 0.02 * abs(market_return) * cash_share * norm_reward
        terms[term.cash_bonus, i + w] = where(earns_bonus, bonus, 0.0)
        terms[term.cash_reserve, i + w] = -shortfall / initial_capital * norm_reward * 0.5
    if p.concentration_penalty != 0:
        weights_of(book, coins, orders, p)
        for w in range(n):
            terms[term.concentration, i + w] = cappuccino_concentration(w, book, coins, p)


@native
def time_decay(n: int, book: Record, p: Record) -> None:
    """Set book.decay, which falls over the segment."""
    for w in range(n):
        segment = segment_at(p.segments, book.segment[w])
        first, last = segment.segment_first + p.lookback - 1, segment.segment_end - p.lookback - 1
        progress = min(max((book.bar[w] - first) / max(last - first, 1), 0.0), 1.0)
        book.decay[w] = max(1.0 - progress, p.time_decay_floor)


@native
def cappuccino_concentration(w: int, book: Record, coins: int, p: Record) -> float:
    """Compute a penalty for concentrated positions and a bonus for evenly spread ones (Gini coefficient by ranks)."""
    if book.equity[w] <= 0:
        return 0.0
    penalty, n_held, total, ranked = p.concentration_penalty, 0, 0.0, 0.0
    for a in range(p.n_assets):
        weight = position_at(coins, a).weight[w]
        if weight > 0.01:
            n_held += 1
            total += weight
            ranked += weight * rank_among_held(w, a, weight, coins, p)
    large = penalty * max(0.0, book.largest_weight[w] - TARGET_WEIGHT)
    if n_held < 3:
        return -large - 0.5 * penalty * (3 - n_held)
    gini = 2.0 * ranked / (n_held * total) - (n_held + 1.0) / n_held
    return 0.1 * penalty * max(0.0, 0.4 - gini) - large


@native
def rank_among_held(w: int, a: int, weight: float, coins: int, p: Record) -> int:
    """Return the rank of a weight among the held weights (1 is the smallest). Ties are broken by column order."""
    rank = 1
    for other in range(p.n_assets):
        other_weight = position_at(coins, other).weight[w]
        rank += 0.01 < other_weight < weight or (other_weight == weight and other < a)
    return rank
