# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""Valuation and reward of the native step: mark_to_market and reward_terms, as in the plain file."""

from __future__ import annotations

import math

from .memory import LANES, REWARDS, Array, Record, native, position_at, segment_at, where

BENCHMARK_DIFFERENCE, PROFIT, CAPPUCCINO = (REWARDS.index(name) for name in REWARDS[:3])


@native
def value_accounts(b: Record, coins: int, p: Record) -> None:
    """b.equity_at_fill: cash plus positions at this bar, before any order of it."""
    for w in range(LANES):
        b.equity_at_fill[w] = b.cash[w]
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        for w in range(LANES):
            b.equity_at_fill[w] += coin.qty[w] * coin.price[w]


@native
def mark_to_market(b: Record, coins: int, p: Record) -> None:
    """Value account and benchmark; carry peak and drawdown on."""
    for w in range(LANES):
        b.equity[w], b.benchmark[w] = b.cash[w], 0.0
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        for w in range(LANES):
            b.equity[w] += coin.qty[w] * coin.price[w]
            b.benchmark[w] += coin.benchmark_qty[w] * coin.price[w]
    for w in range(LANES):
        peak = where(b.equity[w] > b.peak[w], b.equity[w], b.peak[w])
        drawdown = 1.0 - b.equity[w] / peak
        b.peak[w], b.max_drawdown[w] = peak, where(drawdown > b.max_drawdown[w], drawdown, b.max_drawdown[w])


@native
def reward_terms(i: int, n: int, b: Record, coins: int, terms: Array, p: Record) -> None:
    """Fill the rows of terms (n_terms, N), and b.reward with their sum."""
    norm_reward = p.norm_reward
    if p.reward == BENCHMARK_DIFFERENCE:
        for w in range(LANES):
            gain = (b.equity[w] - b.equity_before[w]) - (b.benchmark[w] - b.benchmark_before[w])
            terms[0, i + w] = gain * norm_reward
    elif p.reward == PROFIT:
        for w in range(LANES):
            terms[0, i + w] = (b.equity[w] - b.equity_before[w]) * norm_reward
    elif p.reward == CAPPUCCINO:
        cappuccino_terms(i, n, b, coins, terms, p)
    else:
        weighted_terms(i, n, b, coins, terms, p)
    for w in range(LANES):
        b.reward[w] = 0.0
    for k in range(terms.shape[0]):
        for w in range(LANES):
            b.reward[w] += terms[k, i + w]


@native
def find_largest_weight(b: Record, coins: int, p: Record) -> None:
    """b.largest_weight: share of the account in its largest position."""
    for w in range(LANES):
        b.largest_weight[w] = 0.0
    for a in range(p.n_assets):
        coin = position_at(coins, a)
        for w in range(LANES):
            weight = where(b.equity[w] > 0, coin.qty[w] * coin.price[w] / b.equity[w], 0.0)
            b.largest_weight[w] = where(weight > b.largest_weight[w], weight, b.largest_weight[w])


@native
def weighted_terms(i: int, n: int, b: Record, coins: int, terms: Array, p: Record) -> None:
    """The terms of the standard reward; one whose weight is 0 is 0 and is not computed."""
    floor, norm = p.equity_floor * p.initial_capital, p.norm_reward
    for w in range(n):
        growth = math.log(max(b.equity[w], floor) / max(b.equity_before[w], floor))
        terms[0, i + w] = norm * (p.growth_weight * growth)
        terms[3, i + w] = norm * (-p.volatility_penalty * growth**2)
    if p.benchmark_weight != 0:
        for w in range(n):
            tracked = math.log(max(b.benchmark[w], floor) / max(b.benchmark_before[w], floor))
            terms[1, i + w] = norm * (-p.benchmark_weight * tracked)
    drawdown_penalty, turnover_penalty = p.drawdown_penalty, p.turnover_penalty
    for w in range(LANES):
        equity = where(b.equity[w] > floor, b.equity[w], floor)
        terms[2, i + w] = norm * (-drawdown_penalty * (b.max_drawdown[w] - b.drawdown_before[w]))
        terms[5, i + w] = norm * (-turnover_penalty * b.turnover[w] / equity)
    if p.concentration_penalty != 0:
        find_largest_weight(b, coins, p)
        for w in range(n):
            excess = max(b.largest_weight[w] - p.target_weight, 0.0)
            terms[4, i + w] = norm * (-p.concentration_penalty * excess)


@native
def cappuccino_terms(i: int, n: int, b: Record, coins: int, terms: Array, p: Record) -> None:
    """The terms of the Cappuccino reward."""
    time_decay(n, b, p)
    norm, initial_capital, reserve = p.norm_reward, p.initial_capital, p.min_cash_reserve * p.initial_capital
    for w in range(LANES):
        gain, benchmark_gain = b.equity[w] - b.equity_before[w], b.benchmark[w] - b.benchmark_before[w]
        market_return = where(b.benchmark_before[w] > 0, benchmark_gain / b.benchmark_before[w], 0.0)
        cash_share = where(b.equity[w] > 0, b.cash[w] / b.equity[w], 0.0)
        earns_bonus = (market_return < 0) & (cash_share > 0.1)
        shortfall = where(reserve > b.cash[w], reserve - b.cash[w], 0.0)
        terms[0, i + w] = 0.5 * (gain - benchmark_gain) * norm * b.decay[w]
        terms[1, i + w] = 0.3 * gain / initial_capital * norm * b.decay[w]
        terms[2, i + w] = where(earns_bonus, 0.02 * abs(market_return) * cash_share * norm, 0.0)
        terms[3, i + w] = -shortfall / initial_capital * norm * 0.5
    if p.concentration_penalty != 0:
        find_largest_weight(b, coins, p)
        for w in range(n):
            terms[4, i + w] = cappuccino_concentration(w, b, coins, p)


@native
def time_decay(n: int, b: Record, p: Record) -> None:
    """b.decay: factor that falls over the segment."""
    for w in range(n):
        first = segment_at(p.segments, b.segment[w]).first + p.lookback - 1
        last = segment_at(p.segments, b.segment[w]).end - p.lookback - 1
        progress = min(max((b.bar[w] - first) / max(last - first, 1), 0.0), 1.0)
        b.decay[w] = max(1.0 - progress, p.time_decay_floor)


@native
def cappuccino_concentration(w: int, b: Record, coins: int, p: Record) -> float:
    """Penalty for one large position and for few, bonus for evenly spread ones (Gini coefficient by ranks)."""
    if b.equity[w] <= 0:
        return 0.0
    n_held, total, ranked = 0, 0.0, 0.0
    for a in range(p.n_assets):
        weight = position_at(coins, a).qty[w] * position_at(coins, a).price[w] / b.equity[w]
        if weight > 0.01:
            n_held += 1
            total += weight
            ranked += weight * rank_among_held(w, a, weight, b, coins, p)
    large = p.concentration_penalty * max(0.0, b.largest_weight[w] - p.target_weight)
    if n_held < 3:
        return -large - 0.5 * p.concentration_penalty * (3 - n_held)
    gini = 2.0 * ranked / (n_held * total) - (n_held + 1.0) / n_held
    return 0.1 * p.concentration_penalty * max(0.0, 0.4 - gini) - large


@native
def rank_among_held(w: int, a: int, weight: float, b: Record, coins: int, p: Record) -> int:
    """1 for the smallest held weight; ties go by column."""
    rank = 1
    for other in range(p.n_assets):
        other_weight = position_at(coins, other).qty[w] * position_at(coins, other).price[w] / b.equity[w]
        rank += 0.01 < other_weight < weight or (other_weight == weight and other < a)
    return rank
