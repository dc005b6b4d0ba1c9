"""Benchmarks on the same bars: equal weight, each coin, cash, and random orders with the same turnover.

Pure functions on the closes of ONE segment, (n + 1, A) for n steps, such as `close[record.bars]` of an evaluated
policy. Every account starts with the same cash on the same bar as the policy. Buy and hold buys at the close of the
first bar, and the cost of buying is part of its first return. The orders of a step fill at the close at the end of the
step, as in the environment.

    close 0          close 1                        close n
    capital          orders of step 0, valued       orders of step n - 1, valued
    buy and hold     turnover, fees of step 0

A coin whose close is 0 on a bar has no price there and cannot be traded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import ArrayLike

from train.records.account import Metrics
from train.records.defaults import RANDOM_DRAWS
from train.validation.metrics import MetricsBatch, join_points, join_steps, measure_batch, segment_ids

DRAWS_AT_ONCE = 20  # accounts measured together; measuring needs ten arrays of the size of their equity
DUST = 1e-9  # fraction of the initial capital; smaller amounts are rounding and are not traded


@dataclass(frozen=True)
class Costs:
    """Starting cash and trading costs of every account."""

    initial_capital: float  # quote
    fee_rate: float  # fraction of notional, for buys and sells
    # Buys pay this fraction more, and sells receive this fraction less. Buy and hold pays no slippage, as in the
    # environment, which slightly favors it over the policy.
    slippage_rate: float = 0.0

    def __post_init__(self) -> None:
        """Reject percentages."""
        for name in ("fee_rate", "slippage_rate"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(
                    f"{name} must be a fraction of notional (0.0025 is 0.25 %); received {getattr(self, name)}"
                )
        if not self.initial_capital > 0.0:
            raise ValueError(f"initial_capital must be above 0; received {self.initial_capital}")


@dataclass(frozen=True)
class Account:
    """One segment of one account, or of several accounts along leading axes, as in an episode record."""

    equity: np.ndarray  # (..., n + 1) quote
    turnover: np.ndarray  # (..., n) traded notional, quote
    fees: np.ndarray  # (..., n) quote
    trades: np.ndarray  # (..., n) int64, number of filled orders
    exposure: np.ndarray  # (..., n + 1) fraction of equity in coins


@dataclass(frozen=True)
class Draws:
    """Curves and sums of K accounts over G segments; they take a fifth of the memory of the `Account`s."""

    equity: tuple[np.ndarray, ...]  # G arrays (K, n + 1), quote
    turnover: np.ndarray  # (K, G) quote, sum over the steps of a segment
    fees: np.ndarray  # (K, G) quote
    trades: np.ndarray  # (K, G) int64
    exposure: np.ndarray  # (K, G) sum over a segment's points


@dataclass(frozen=True)
class Benchmarks:
    """Benchmark accounts, with one entry per segment in each list."""

    equal_weight: list[Account]
    coins: list[Account]  # (A, ...) buy and hold of each coin
    cash: list[Account]
    random: list[Account]  # (K, ...) random-order accounts; empty if there are none


def benchmarks_of(
    closes: Sequence[ArrayLike],
    turnover: Sequence[ArrayLike],
    costs: Costs,
    *,
    n_draws: int = RANDOM_DRAWS,
    seed: int | Sequence[int] = 0,
) -> Benchmarks:
    """Return all benchmarks of a policy from the closes (n_i + 1, A) and turnover (n_i,) of its segments.

    The random orders of a segment depend only on `seed` and the segment's position in the list.
    """
    streams = draw_streams(seed, len(closes))
    return Benchmarks(
        equal_weight=[equal_weight(close, costs) for close in closes],
        coins=[buy_and_hold_each(close, costs) for close in closes],
        cash=[cash_only(close, costs) for close in closes],
        random=[
            random_orders(close, traded, costs, n_draws, stream)
            for close, traded, stream in zip(closes, turnover, streams, strict=True)
            if n_draws
        ],
    )


def draw_streams(seed: int | Sequence[int], n_segments: int) -> list[np.random.Generator]:
    """Return one random generator per segment.

    For the random orders of a study's split, pass the pair (seed, split). With the sum of the two, split 0 with seed 1
    would get the random orders of split 1 with seed 0.
    """
    return [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(n_segments)]


def measure_accounts(segments: Sequence[Account], bars_per_year: float) -> MetricsBatch:
    """Return the metrics of the accounts over all their segments, as arrays over the leading axes."""
    return measure_batch(
        join_points([s.equity for s in segments]),
        bars_per_year,
        segment=segment_ids([s.equity.shape[-1] for s in segments]),
        turnover_notional=join_steps([s.turnover for s in segments]),
        fees_quote=join_steps([s.fees for s in segments]),
        trades=join_steps([s.trades for s in segments]),
        exposure=join_points([s.exposure for s in segments]),
    )


def draws_of(accounts: Sequence[Account]) -> Draws:
    """Return the curves and sums of several segments that the metrics need."""
    totals = {
        name: np.stack([getattr(a, name).sum(axis=-1) for a in accounts], axis=-1)
        for name in ("turnover", "fees", "trades", "exposure")
    }
    return Draws(tuple(a.equity for a in accounts), **totals)


def joined_draws(parts: Sequence[Draws]) -> Draws:
    """Join the segments of all parts."""
    totals = {f.name: np.concatenate([getattr(p, f.name) for p in parts], axis=-1) for f in fields(Draws)[1:]}
    return Draws(tuple(equity for part in parts for equity in part.equity), **totals)


def measure_draws(draws: Draws, bars_per_year: float) -> MetricsBatch:
    """Return the metrics of K accounts over all their segments, like `measure_accounts` but in batches of accounts."""
    ids, n_draws = segment_ids([equity.shape[-1] for equity in draws.equity]), len(draws.turnover)
    parts = []
    for first in range(0, n_draws, DRAWS_AT_ONCE):
        rows = slice(first, first + DRAWS_AT_ONCE)
        value = join_points([equity[rows] for equity in draws.equity])
        mean_equity = value.mean(axis=-1)
        parts.append(
            replace(
                measure_batch(value, bars_per_year, segment=ids),
                turnover=draws.turnover[rows].sum(axis=-1) / mean_equity,
                fees=draws.fees[rows].sum(axis=-1) / mean_equity,
                trades=draws.trades[rows].sum(axis=-1),
                exposure=draws.exposure[rows].sum(axis=-1) / len(ids),
            )
        )
    return MetricsBatch(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(MetricsBatch)})


def with_trades_of(own: Metrics, anew: Metrics) -> Metrics:
    """Return the recorded metrics of equal weight, with the unrecorded trade metrics from a recomputed account."""
    return replace(own, turnover=anew.turnover, fees=anew.fees, trades=anew.trades, exposure=anew.exposure)


# ---------------------------------------------------------------------------------------------------- nothing to decide
def cash_only(close: ArrayLike, costs: Costs) -> Account:
    """Return an account that never trades."""
    n_points = len(checked_closes(close))
    steps = np.zeros(n_points - 1)
    return Account(
        np.full(n_points, costs.initial_capital), steps, steps.copy(), steps.astype(np.int64), np.zeros(n_points)
    )


def equal_weight(close: ArrayLike, costs: Costs) -> Account:
    """Buy the same amount of every coin that has a price at the first close and hold it; stay in cash if none has."""
    price = checked_closes(close)
    is_priced = price[0] > 0.0
    if not is_priced.any():
        return cash_only(price, costs)
    accounts = _bought_at_first(price, is_priced[None] / is_priced.sum(), costs)
    return Account(**{f.name: getattr(accounts, f.name)[0] for f in fields(accounts)})


def buy_and_hold_each(close: ArrayLike, costs: Costs) -> Account:
    """Return one account per coin that holds only this coin; nan for a coin without a price at the first close."""
    price = checked_closes(close)
    return _bought_at_first(price, np.eye(price.shape[1]), costs)


def _bought_at_first(price: np.ndarray, weight: np.ndarray, costs: Costs) -> Account:
    """Return M accounts that put the weights (M, A) of their cash into coins and pay the fee from the cash."""
    cost_of_coin = np.where(price[0] > 0.0, price[0] * (1.0 + costs.fee_rate), np.nan)
    qty = np.where(weight > 0.0, costs.initial_capital * weight / cost_of_coin, 0.0)  # (M, A)
    equity = qty @ price.T  # (M, n + 1)
    equity[:, 0] = costs.initial_capital
    first = np.zeros((len(weight), len(price) - 1))
    first[:, :1] = 1.0
    notional = np.where(weight > 0.0, qty * price[0], 0.0).sum(axis=1, keepdims=True)
    n_orders = np.count_nonzero(weight, axis=1)[:, None]
    exposure = np.ones_like(equity)
    exposure[:, 0] = 0.0
    return Account(
        equity, first * notional, first * notional * costs.fee_rate, first.astype(np.int64) * n_orders, exposure
    )


# ---------------------------------------------------------------------------------------------- the same size at random
def random_orders(
    close: ArrayLike, turnover: ArrayLike, costs: Costs, n_draws: int, rng: np.random.Generator
) -> Account:
    """Return K accounts that trade the policy's turnover at the same bars, in random coins and a random direction.

    On every step an account may trade the notional that the policy has traded so far and the account has not. A fair
    coin toss decides whether it buys or sells first. The amount is spread uniformly at random over the coins and
    limited by the account's cash or coins. The remainder is traded in the other direction, and any rest is carried over
    to the next step. The account is long only and has no leverage. Its total turnover equals the policy's up to
    rounding, unless cash or coins run out in the last steps. An account that has lost most of its money, or that starts
    with a sale, may trade less (`turnover_gap`). No account trades more. Exposure is not matched.

    Args:
        close: closing prices (n + 1, A) in quote currency.
        turnover: notional (n,) in quote currency that the policy traded.
        costs: starting cash, and fees and slippage that every order pays.
        n_draws: number of accounts K.
        rng: generator; all draws of a step are made before its prices are used.

    Returns: an account with arrays of shape (K, n + 1) and (K, n).
    """
    price = checked_closes(close)
    traded = np.asarray(turnover, dtype=np.float64)
    if traded.shape != (len(price) - 1,) or not (np.isfinite(traded) & (traded >= 0.0)).all():
        raise ValueError(
            f"turnover must have {len(price) - 1} values, one per step, finite and at least 0; received shape "
            f"{traded.shape} with {np.count_nonzero(~(traded >= 0.0))} values below 0 or nan"
        )
    book = _Book(np.full(n_draws, costs.initial_capital), np.zeros((n_draws, price.shape[1])), costs)
    allowance = np.zeros(n_draws)
    steps = {name: np.zeros((n_draws, len(traded))) for name in ("turnover", "fees", "trades")}
    equity, exposure = np.full((n_draws, len(price)), costs.initial_capital), np.zeros((n_draws, len(price)))
    is_order, t = traded > 0.0, 0
    while t < len(traded):
        if not is_order[t] and book.is_dust(allowance).all():  # no account trades until the policy trades again
            end = t + 1 + int(np.argmax(is_order[t + 1 :])) if is_order[t + 1 :].any() else len(traded)
            equity[:, t + 1 : end + 1], exposure[:, t + 1 : end + 1] = book.value(price[t + 1 : end + 1])
            t = end
            continue
        buys_first = rng.random(n_draws) < 0.5
        spread = rng.standard_exponential((2, *book.qty.shape))  # uniform over all spreads, once scaled to 1
        book.start_step()
        allowance = _trade(book, allowance + traded[t], buys_first, spread, price[t + 1])
        for name, column in steps.items():
            column[:, t] = getattr(book, name)
        equity[:, t + 1 : t + 2], exposure[:, t + 1 : t + 2] = book.value(price[t + 1 : t + 2])
        t += 1
    return Account(equity, steps["turnover"], steps["fees"], steps["trades"].astype(np.int64), exposure)


def turnover_gap(account: Account | Draws, turnover: ArrayLike) -> np.ndarray:
    """Return the fraction (...) of the policy's notional that the accounts did not trade; 0 without trades."""
    wanted = float(np.sum(np.asarray(turnover, dtype=np.float64)))
    return 1.0 - account.turnover.sum(axis=-1) / wanted if wanted > 0.0 else np.zeros(account.turnover.shape[:-1])


def _trade(
    book: _Book, allowance: np.ndarray, buys_first: np.ndarray, spread: np.ndarray, price: np.ndarray
) -> np.ndarray:
    """Trade one step of random orders and return the unused allowance (K,)."""
    left = np.where(buys_first, book.buy(np.where(buys_first, allowance, 0.0), spread[0], price), allowance)
    left = book.sell(left, spread[1], price)
    return np.where(buys_first, left, book.buy(np.where(buys_first, 0.0, left), spread[0], price))


@dataclass
class _Book:
    """State of K accounts; `buy` and `sell` return the part of an amount that could not be traded."""

    cash: np.ndarray  # (K,) quote
    qty: np.ndarray  # (K, A) coins
    costs: Costs
    turnover: np.ndarray = field(init=False)  # (K,) quote, of this step
    fees: np.ndarray = field(init=False)  # (K,) quote
    trades: np.ndarray = field(init=False)  # (K,) orders

    def start_step(self) -> None:
        self.turnover, self.fees, self.trades = (np.zeros(len(self.cash)) for _ in range(3))

    def buy(self, amount: np.ndarray, spread: np.ndarray, price: np.ndarray) -> np.ndarray:
        """Buy a notional `amount` (K,), spread over the coins by `spread` (K, A), as far as the cash allows."""
        unit_cost = (1.0 + self.costs.slippage_rate) * (1.0 + self.costs.fee_rate)
        done = self._no_dust(np.minimum(amount, self.cash / unit_cost) * (price > 0.0).any())
        bought = done[:, None] * _shares(spread, price)
        self.qty = self.qty + bought / _divisor(price)
        self.cash = np.maximum(self.cash - done * unit_cost, 0.0)  # rounding only
        self._keep(bought, (1.0 + self.costs.slippage_rate) * self.costs.fee_rate)
        return np.maximum(amount - done, 0.0)

    def sell(self, amount: np.ndarray, spread: np.ndarray, price: np.ndarray) -> np.ndarray:
        """Sell a notional `amount` (K,), spread by `spread` (K, A); if a coin runs out, more of the others is sold."""
        held = self.qty * price
        done = self._no_dust(np.minimum(amount, held.sum(axis=1)))
        asked = np.minimum(done[:, None] * _shares(spread, price), held)
        rest = held - asked
        missing = np.maximum(done - asked.sum(axis=1), 0.0) / np.maximum(rest.sum(axis=1), np.finfo(float).tiny)
        sold = np.minimum(asked + rest * missing[:, None], held)
        self.qty = np.maximum(self.qty - sold / _divisor(price), 0.0)  # rounding only
        fill = 1.0 - self.costs.slippage_rate
        self.cash = self.cash + sold.sum(axis=1) * fill * (1.0 - self.costs.fee_rate)
        self._keep(sold, fill * self.costs.fee_rate)
        return np.maximum(amount - sold.sum(axis=1), 0.0)  # rounding only

    def value(self, price: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return equity and exposure, (K, M) each, at the prices (M, A) of M bars."""
        coins = self.qty @ price.T
        equity = self.cash[:, None] + coins
        return equity, coins / _divisor(equity)

    def is_dust(self, amount: np.ndarray) -> np.ndarray:
        """Return which amounts are too small to trade."""
        return amount <= DUST * self.costs.initial_capital

    def _no_dust(self, amount: np.ndarray) -> np.ndarray:
        return np.where(self.is_dust(amount), 0.0, amount)

    def _keep(self, notional: np.ndarray, fee_share: float) -> None:
        self.turnover = self.turnover + notional.sum(axis=1)
        self.fees = self.fees + notional.sum(axis=1) * fee_share
        self.trades = self.trades + np.count_nonzero(notional, axis=1)


def _shares(spread: np.ndarray, price: np.ndarray) -> np.ndarray:
    """Return shares (K, A) that sum to 1 over the coins with a price, or zeros if no coin has one."""
    share = np.where(price > 0.0, spread, 0.0)
    return share / _divisor(share.sum(axis=1, keepdims=True))


def _divisor(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0.0, values, 1.0)


def checked_closes(close: ArrayLike) -> np.ndarray:
    """Return closes (n + 1, A) as float64.

    Raises:
        ValueError: the shape is wrong, or a price is negative or not finite.
    """
    price = np.asarray(close, dtype=np.float64)
    if price.ndim != 2 or len(price) < 1 or not (np.isfinite(price) & (price >= 0.0)).all():
        raise ValueError(
            f"closes must have shape (n + 1, A) and be finite and at least 0 (0: no price); received {price.shape}"
        )
    return price
