# SPDX-License-Identifier: MIT
# Copyright (c) 2026 the barwise contributors
"""CryptoEnvAlpaca: one trading account, stepped one bar at a time in plain NumPy and Python floats.

This file is the executable specification of the simulator (docs/simulator.md). It favors readability: each rule is one
line or a short loop over assets, all arithmetic is float64, and nothing is vectorized. Tests compare
``environment_Alpaca_vectorized.py`` with it at every step and in every field. The two files share settings
(`EnvParams`, the tables of rule sets and smallest orders) and input checks, but no computation, so neither file can
hide an error in the other. tests/test_import_directions.py lists the imports.

Units: money is in quote currency (USD) and quantities are in coins. ``*_rate`` and ``*_pct`` are fractions (0.0025 is
0.25 %). Causality: the observation at bar ``t`` uses rows ``<= t``. The action chosen at bar ``t`` fills at the close
of ``t + 1``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from environment_Alpaca_vectorized import (
    CAPPUCCINO_LIMITS,
    COLUMN_LIMITS,
    EQUITY_FLOOR,
    HELD_BARS_SCALE,
    INCREMENT_SLACK,
    TARGET_WEIGHT,
    EnvParams,
    check_arrays,
)


@dataclass
class Account:
    """State of one account: everything that changes within an episode.

    Only `CryptoEnvAlpaca._open_account` creates one.
    """

    bar: int  # current row of price_array
    first_bar: int  # bar of the episode's first observation
    last_bar: int  # bar at which the episode ends
    cash: float  # quote
    qty: list[float]  # (A,) coins
    held_bars: list[int]  # (A,) bars since the position was opened or last partly sold
    high: list[float]  # (A,) highest price while held, quote; updated if the trailing stop is enabled
    order_scale: list[float]  # (A,) coins per unit of action; host presets only
    benchmark_qty: list[float]  # (A,) coins of the equal-weight portfolio
    equity: float  # quote, account value at `bar`
    benchmark: float  # quote, value of the equal-weight portfolio at `bar`
    peak: float  # quote, highest equity of the episode
    max_drawdown: float  # fraction, largest fall from a peak in the episode
    filled: list[float]  # (A,) coins bought minus coins sold in the last step, including stops and releases
    discounted_return: float = 0.0  # host presets: G = gamma * G + r
    traded: Traded = field(default_factory=lambda: Traded())


@dataclass
class Traded:
    """Totals of the fills within one step."""

    trades: int = 0
    fees: float = 0.0  # quote
    slippage: float = 0.0  # quote
    turnover: float = 0.0  # quote, |quantity| * close


class CryptoEnvAlpaca:
    """A long-only spot account on A coins, stepped one bar at a time.

    Args:
        config: a mapping with these keys. `price_array` (T, A): closes, quote currency. `tech_array` (T, F): features.
            Optional: `tickers` (A,); `segments`, a list of (first, last_exclusive) bars; `min_order_qty` (A,) and
            `qty_increment` (A,), in coins; `filled_array` (T, A) bool, True for bars without trades of the coin, in
            which no order fills.
        env_params: `rules` (a key of `RULES`), `lookback` and any other setting of `EnvParams`. An unknown key is an
            error under "standard" and ignored under host presets.
        initial_capital: initial cash in quote currency; None uses the value of the rule set.
        buy_cost_pct: fee on a purchase, fraction of notional; None uses the value of the rule set.
        sell_cost_pct: fee on a sale, fraction of notional; None uses the value of the rule set.
        gamma: discount factor of the host presets' final reward.
        if_log: accepted for compatibility with hosts and ignored.
        seed: seed of the random starts; None is 0.
        start: "first" or "random"; None uses the value of the rule set.
        episode_bars: maximum episode length in steps; None ends episodes at the end of their segment.

    Raises:
        ValueError: arrays or settings cannot be simulated; the message names the value and suggests a fix.
    """

    def __init__(
        self, config: Mapping[str, Any], env_params: Mapping[str, Any], initial_capital: float | None = None,
        buy_cost_pct: float | None = None, sell_cost_pct: float | None = None, gamma: float = 0.99,
        if_log: bool = False, *, seed: int | None = None, start: str | None = None, episode_bars: int | None = None,
    ) -> None:  # fmt: skip
        self.params = p = EnvParams.from_mapping(env_params, initial_capital, buy_cost_pct, sell_cost_pct, gamma)
        self.cost_factor, self.lookback, self.if_log = 1.0, p.lookback, if_log
        self.initial_capital = self.initial_total_asset = p.initial_capital
        given_prices, tech = np.asarray(config["price_array"]), np.asarray(config["tech_array"])
        check_arrays(given_prices, tech, p.rules, p.norm_tech, config.get("tickers"))
        self.price_array = given_prices.astype(np.float64, copy=False)
        # float32 is not converted: it needs half the memory, and processes may share it
        self.tech_array = tech if tech.dtype == np.float32 else tech.astype(np.float64, copy=False)
        n_bars, n_assets = self.price_array.shape
        self.min_qty = self._smallest_orders(config, n_assets)
        self.qty_increment = (np.zeros(n_assets) + config.get("qty_increment", 0.0)).tolist()
        # (T, A), True if anyone traded the coin
        self.trades = ~np.broadcast_to(np.asarray(config.get("filled_array", False), dtype=bool), (n_bars, n_assets))
        given, whole = config.get("segments"), [(0, n_bars)]
        self.segments = [(int(a), int(b)) for a, b in (whole if given is None or len(given) == 0 else given)]
        self._scales = [self._order_scale(given_prices[first]) for first, _ in self.segments]
        self.seed, self.start, self.episode_bars = seed or 0, start or p.start, episode_bars
        self._starts = [self._starts_of(segment) for segment in self.segments]
        if not any(self._starts):
            raise ValueError(f"no segment is long enough for lookback {self.lookback}: {self.segments}; use more bars")
        self.episode = -1

        self.env_name, self.env_num, self.num_envs = "CryptoEnvAlpaca", 1, 1
        self.max_step = max(self._window_end(i, s[0]) - s[0] for i, s in enumerate(self._starts) if s)
        self.state_dim = 1 + n_assets + self.lookback * self.tech_array.shape[1] + (2 + n_assets) * p.observe_account
        self.action_dim, self.if_discrete, self.target_return = n_assets, False, 10.0
        self.reset()  # create the attributes that hosts read
        self.episode, self.done = -1, True  # the caller's first reset() then starts episode 0

    # ---------------------------------------------------------------- what hosts read
    @property
    def cash(self) -> float:
        """Cash of the account, quote currency."""
        return self.account.cash

    @property
    def stocks(self) -> np.ndarray:
        """Copy of the coins of the account, (A,)."""
        return np.array(self.account.qty)

    @property
    def filled(self) -> np.ndarray:
        """Copy of the coins bought minus coins sold in the last step, (A,), including stops and releases."""
        return np.array(self.account.filled)

    @property
    def cost_factor(self) -> float:
        """Fraction of fees and slippage that steps charge, 0 to 1. A new value takes effect with the next step.

        The equal-weight benchmark always pays its full entry fee.
        """
        return self._cost_factor

    @cost_factor.setter
    def cost_factor(self, factor: float) -> None:
        if not 0.0 <= factor <= 1.0:
            raise ValueError(f"cost_factor must be between 0 and 1; received {factor}")
        self._cost_factor, p = float(factor), self.params
        names = ("buy_fee_rate", "sell_fee_rate", "slippage_rate")
        self._charged = replace(p, **{name: getattr(p, name) * self._cost_factor for name in names})

    @property
    def time(self) -> int:
        """Current row of price_array."""
        return self.account.bar

    @property
    def total_asset(self) -> float:
        """Equity of the account, quote currency."""
        return self.account.equity

    @property
    def episode_return(self) -> float:
        """Equity divided by initial capital."""
        return self.account.equity / self.initial_capital

    def reset(self, bar: int | None = None) -> np.ndarray:
        """Open a fresh account and return its first observation, (S,) float32.

        Args:
            bar: first bar of the episode; None draws one. It must be in a segment that holds a full lookback before it.

        Raises:
            ValueError: no episode can start at `bar`.
        """
        self.episode += 1
        self.rejected_actions = 0
        segment, first = self._draw_start() if bar is None else self._locate(bar)
        self.account = self._open_account(segment, first)
        self.done = False
        return self._observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """Advance one bar.

        Args:
            actions: (A,) in [-1, 1]; positive buys, negative sells. Any non-finite entry turns the whole step into a
                hold.

        Returns:
            Observation (S,) float32, reward, done and info. An account does not restart when its episode ends; call
            `reset()`.

        Raises:
            ValueError: the action has a wrong shape.
            RuntimeError: `reset` has not been called, or the episode has ended.
        """
        if self.done:
            raise RuntimeError("no episode is running: call reset() before step()")
        action = np.asarray(actions, dtype=np.float32)
        if action.shape != (self.action_dim,):
            raise ValueError(f"actions must have shape ({self.action_dim},), one per asset; received {action.shape}")
        if not np.isfinite(action).all():
            self.rejected_actions += 1
            action = np.zeros_like(action)
        reward, terms, truncated = self._transition(action)
        state = self._observe()
        return state, reward, self.done, self._info(terms, truncated, state)

    # ---------------------------------------------------------------- the bar
    def _transition(self, action: np.ndarray) -> tuple[float, dict[str, float], bool]:
        """Run one bar in the order of docs/simulator.md and return (reward, reward terms, truncated)."""
        acct, p = self.account, self.params
        before, benchmark_before, drawdown_before = acct.equity, acct.benchmark, acct.max_drawdown
        price = self._begin_bar()
        order, equity_at_fill = self._reduce(action, price)
        self._buy(order, price, equity_at_fill)
        self._mark(price)
        terms = self._reward_terms(price, before, benchmark_before, drawdown_before)
        reward = math.fsum(terms.values())

        ruined = acct.equity <= p.terminal_equity_fraction * self.initial_capital and p.truncates
        at_end = acct.bar >= acct.last_bar
        self.done = at_end or ruined
        if p.final_reward == "discounted_return":
            acct.discounted_return = self.params.gamma * acct.discounted_return + reward
            reward = acct.discounted_return if self.done else reward
        return reward, terms, at_end and not ruined and p.truncates

    def _begin_bar(self) -> list[float]:
        """Advance to the next bar and return its closes (A,). Nothing trades yet."""
        acct = self.account
        acct.traded, acct.filled = Traded(), [0.0] * self.action_dim
        acct.bar += 1
        acct.held_bars = [n + 1 if q > 0 else n for n, q in zip(acct.held_bars, acct.qty, strict=True)]
        return self.price_array[acct.bar].tolist()

    def _reduce(self, action: np.ndarray, price: list[float]) -> tuple[list[float], float]:
        """Run stops, sells and releases. Return the orders (A,) in coins and the equity that sized them."""
        acct, p = self.account, self.params
        if p.trailing_stop_pct > 0:
            self._trailing_stop(price)
        equity_at_fill = acct.cash + sum(q * x for q, x in zip(acct.qty, price, strict=True))
        # An order does not fill in a bar in which nobody traded the coin.
        order = self._order_quantities(np.where(self.trades[acct.bar], action, np.float32(0.0)), price, equity_at_fill)
        if p.max_position_weight > 0:
            order = self._cap_positions(order, price, equity_at_fill)
        self._sell(order, price)
        if p.stale_bars > 0:
            self._release_stale(price)
        return order, equity_at_fill

    def _mark(self, price: list[float]) -> None:
        """Value account and benchmark at this bar."""
        acct = self.account
        acct.equity = acct.cash + sum(q * x for q, x in zip(acct.qty, price, strict=True))
        acct.benchmark = sum(q * x for q, x in zip(acct.benchmark_qty, price, strict=True))
        acct.peak = max(acct.peak, acct.equity)
        acct.max_drawdown = max(acct.max_drawdown, 1.0 - acct.equity / acct.peak)

    def _order_quantities(self, action: np.ndarray, price: list[float], equity: float) -> list[float]:
        """Return the coins (A,) that each action orders: positive buys, negative sells."""
        limit = np.float32(self.params.action_limit)
        action = np.clip(action, -limit, limit)
        if self.params.order_sizing in ("price_magnitude", "price_digits"):
            return [float(a) * s for a, s in zip(action, self.account.order_scale, strict=True)]
        if self.params.order_sizing == "initial_capital":  # in float32, like the host
            scale = np.array(self.account.order_scale, dtype=np.float32)
            with np.errstate(over="ignore"):
                return (action * scale).astype(np.float64).tolist()
        norm = self.params.norm_action
        return [float(a) * equity / (x * norm) if x > 0 else 0.0 for a, x in zip(action, price, strict=True)]

    def _cap_positions(self, order: list[float], price: list[float], equity: float) -> list[float]:
        """Reduce every buy so that its position stays within `max_position_weight` of equity."""
        limit = self.params.max_position_weight * equity
        room = [max(0.0, limit / x - q) if x > 0 else 0.0 for x, q in zip(price, self.account.qty, strict=True)]
        return [min(o, r) for o, r in zip(order, room, strict=True)]

    def _trailing_stop(self, price: list[float]) -> None:
        """Sell every position whose price has fallen by more than `trailing_stop_pct` from its high."""
        acct = self.account
        for i, x in enumerate(price):
            if acct.qty[i] > 0:
                acct.high[i] = max(acct.high[i], x)
                if 0 < x < acct.high[i] * (1.0 - self.params.trailing_stop_pct):
                    self._execute_sale(i, acct.qty[i], x)

    def _sell(self, order: list[float], price: list[float]) -> None:
        """Fill the sell orders, each limited to its position."""
        acct, p = self.account, self.params
        for i, x in enumerate(price):
            wanted = -order[i]
            if not (wanted > 0 and acct.qty[i] > 0 and x > 0):
                continue
            closes = p.always_allow_close and wanted >= acct.qty[i]
            if not closes:
                wanted = self._whole_increments(i, wanted)
                if not self._is_large_enough(i, wanted, x):
                    continue
            self._execute_sale(i, min(acct.qty[i], wanted), x)

    def _release_stale(self, price: list[float]) -> None:
        """Sell stale_fraction of each position held for at least stale_bars, or all if the venue requires more."""
        acct, p = self.account, self.params
        for i, x in enumerate(price):
            if acct.held_bars[i] >= p.stale_bars and (x > 0 or p.release_unpriced):
                released = acct.qty[i] * p.stale_fraction
                if p.always_allow_close:
                    released = self._whole_increments(i, released)
                    released = released if self._is_large_enough(i, released, x) else acct.qty[i]
                self._execute_sale(i, released, x)

    def _buy(self, order: list[float], price: list[float], equity: float) -> None:
        """Fill the buy orders as far as cash allows."""
        wanted = [0.0] * len(price)
        for i, x in enumerate(price):
            quantity = self._whole_increments(i, order[i])
            if x > 0 and self._is_large_enough(i, quantity, x):
                wanted[i] = quantity
        if self.params.buys == "sequential":
            for i in range(len(price)):
                self._execute_purchase(i, min(wanted[i], self._affordable(price[i], equity)), price[i])
            return
        cost = sum(q * self._purchase_price(x) for q, x in zip(wanted, price, strict=True))
        budget = self._spendable_cash(equity)
        scale = min(1.0, budget / cost) if cost > 0 else 0.0
        for i in range(len(price)):
            self._execute_purchase(i, self._whole_increments(i, wanted[i] * scale), price[i])

    def _spendable_cash(self, equity: float) -> float:
        base = equity if self.params.reserve_base == "equity" else self.initial_capital
        return max(0.0, self.account.cash - self.params.min_cash_reserve * base) * self.params.cash_haircut

    def _affordable(self, price: float, equity: float) -> float:
        if price <= 0:
            return 0.0
        budget, cost = self._spendable_cash(equity), self._purchase_price(price)
        return budget // cost if self.params.whole_coins else budget / cost

    def _purchase_price(self, price: float) -> float:
        """Return the cost of one coin in quote currency, including slippage and fee."""
        return price * (1.0 + self._charged.slippage_rate) * (1.0 + self._charged.buy_fee_rate)

    def _is_large_enough(self, i: int, quantity: float, price: float) -> bool:
        return quantity > self.min_qty[i] and quantity * price >= self.params.min_order_notional

    def _whole_increments(self, i: int, quantity: float) -> float:
        step = self.qty_increment[i]
        whole = step > 0 and math.isfinite(quantity)
        return math.floor(quantity / step + INCREMENT_SLACK) * step if whole else quantity

    def _execute_sale(self, i: int, quantity: float, price: float) -> None:
        """Sell coins at the close minus slippage and fee. The holding time of the position restarts."""
        acct = self.account
        fill = price * (1.0 - self._charged.slippage_rate)
        acct.qty[i] -= quantity
        acct.filled[i] -= quantity
        acct.cash += quantity * fill * (1.0 - self._charged.sell_fee_rate)
        acct.held_bars[i] = 0
        acct.high[i] = 0.0 if acct.qty[i] == 0.0 else acct.high[i]
        self._book(quantity, price, fill * self._charged.sell_fee_rate)

    def _execute_purchase(self, i: int, quantity: float, price: float) -> None:
        """Buy coins, unless limited cash reduced the order below the minimum."""
        # A buy reduced to exactly the minimum is kept, because the hosts drop only smaller ones.
        if quantity <= 0 or quantity < self.min_qty[i] or quantity * price < self.params.min_order_notional:
            return
        acct = self.account
        acct.high[i] = price if acct.qty[i] == 0.0 else acct.high[i]
        acct.qty[i] += quantity
        acct.filled[i] += quantity
        acct.cash = max(0.0, acct.cash - quantity * self._purchase_price(price))  # max corrects rounding by one ulp
        self._book(quantity, price, price * (1.0 + self._charged.slippage_rate) * self._charged.buy_fee_rate)

    def _book(self, quantity: float, price: float, fee_per_coin: float) -> None:
        traded = self.account.traded
        traded.trades += quantity > 0
        traded.turnover += quantity * price
        traded.fees += quantity * fee_per_coin
        traded.slippage += quantity * price * self._charged.slippage_rate

    # ---------------------------------------------------------------- reward
    def _reward_terms(
        self, price: list[float], before: float, benchmark_before: float, drawdown_before: float
    ) -> dict[str, float]:
        """Return the named reward terms. Their sum is the reward."""
        acct, p = self.account, self.params
        if p.reward == "benchmark_difference":
            gain = (acct.equity - before) - (acct.benchmark - benchmark_before)
            return {"alpha": gain * p.norm_reward}
        if p.reward == "profit":
            return {"profit": (acct.equity - before) * p.norm_reward}
        weights = [q * x / acct.equity if acct.equity > 0 else 0.0 for q, x in zip(acct.qty, price, strict=True)]
        if p.reward == "cappuccino":
            return self._cappuccino_terms(weights, before, benchmark_before)
        floor = EQUITY_FLOOR * self.initial_capital
        growth = math.log(max(acct.equity, floor) / max(before, floor))
        tracked = math.log(max(acct.benchmark, floor) / max(benchmark_before, floor))
        terms = {
            "growth": p.growth_weight * growth, "benchmark": -p.benchmark_weight * tracked,
            "drawdown": -p.drawdown_penalty * (acct.max_drawdown - drawdown_before),
            "volatility": -p.volatility_penalty * growth**2,
            "concentration": -p.concentration_penalty * max(0.0, max(weights) - TARGET_WEIGHT),
            "turnover": -p.turnover_penalty * acct.traded.turnover / max(acct.equity, floor)}  # fmt: skip
        return {name: p.norm_reward * value for name, value in terms.items()}

    def _cappuccino_terms(self, weights: list[float], before: float, benchmark_before: float) -> dict[str, float]:
        acct, p, norm = self.account, self.params, self.params.norm_reward
        gain, benchmark_gain = acct.equity - before, acct.benchmark - benchmark_before
        decay = self._time_decay()
        market = benchmark_gain / benchmark_before if benchmark_before > 0 else 0.0
        cash_share = acct.cash / acct.equity if acct.equity > 0 else 0.0
        cash_bonus = abs(market) * cash_share * norm * 0.1 if market < 0 and cash_share > 0.1 else 0.0
        reserve = p.min_cash_reserve * self.initial_capital
        shortfall = max(0.0, reserve - acct.cash) if p.min_cash_reserve > 0 else 0.0
        return {
            "alpha": 0.5 * (gain - benchmark_gain) * norm * decay,
            "absolute": 0.3 * gain / self.initial_capital * norm * decay, "cash_bonus": 0.2 * cash_bonus,
            "cash_reserve": -shortfall / self.initial_capital * norm * 0.5,
            "concentration": self._cappuccino_concentration(weights, p.concentration_penalty)}  # fmt: skip

    def _time_decay(self) -> float:
        first, last = self._segment[0] + self.lookback - 1, self._segment[1] - self.lookback - 1
        progress = min(max((self.account.bar - first) / max(last - first, 1), 0.0), 1.0)
        return max(1.0 - progress, self.params.time_decay_floor)

    def _cappuccino_concentration(self, weights: list[float], penalty: float) -> float:
        """Return a penalty for one large or few positions, and a bonus for even weights (Gini below 0.4)."""
        if not (penalty > 0 and self.account.equity > 0):
            return 0.0
        total = -penalty * max(0.0, max(weights) - TARGET_WEIGHT)
        held = sorted(w for w in weights if w > 0.01)
        n = len(held)
        if n < 3:
            return total - 0.5 * penalty * (3 - n)
        gini = 2.0 * sum(j * w for j, w in enumerate(held, start=1)) / (n * sum(held)) - (n + 1) / n
        return total + 0.1 * penalty * max(0.0, 0.4 - gini)

    # ---------------------------------------------------------------- observation
    def _observe(self) -> np.ndarray:
        """Return the observation, (S,) float32: account, L rows of features with the newest first, extra fields."""
        acct, p = self.account, self.params
        if p.observation == "absolute":
            account = [acct.cash * p.norm_cash, *(q * p.norm_stocks for q in acct.qty)]
        else:
            equity = max(acct.equity, EQUITY_FLOOR * self.initial_capital)
            price = self.price_array[acct.bar].tolist()
            account = [acct.cash / equity, *(q * x / equity for q, x in zip(acct.qty, price, strict=True))]
        newest_first = self.tech_array[acct.bar - self.lookback + 1 : acct.bar + 1][::-1]
        blocks = [account, (newest_first.astype(np.float64) * p.norm_tech).ravel()]
        if p.observe_account:
            progress = (acct.bar - acct.first_bar) / (acct.last_bar - acct.first_bar)
            blocks.append([progress, 1.0 - acct.equity / acct.peak, *(n * HELD_BARS_SCALE for n in acct.held_bars)])
        return np.concatenate(blocks).astype(np.float32)

    def _info(self, terms: dict[str, float], truncated: bool, state: np.ndarray) -> dict[str, Any]:
        acct = self.account
        return {
            "truncated": truncated, "final_state": state, "episode_return": self.episode_return,
            "equity": acct.equity, "benchmark_equity": acct.benchmark, "reward_terms": terms,
            "trades": acct.traded.trades, "fees": acct.traded.fees, "slippage": acct.traded.slippage,
            "turnover": acct.traded.turnover, "rejected_actions": self.rejected_actions,
        }  # fmt: skip

    # ---------------------------------------------------------------- episodes
    def _smallest_orders(self, config: Mapping[str, Any], n_assets: int) -> list[float]:
        """Return smallest orders (A,) in coins: the caller's, otherwise 1.1 times the host's limits, otherwise 0."""
        rules, given, tickers = self.params.rules, config.get("min_order_qty"), config.get("tickers")
        if given is not None or rules not in ("cappuccino", *COLUMN_LIMITS):
            return (np.zeros(n_assets) + (0.0 if given is None else given)).tolist()
        limits = COLUMN_LIMITS.get(rules) or tuple(CAPPUCCINO_LIMITS.values())
        if rules == "cappuccino" and tickers is not None:
            coins = [re.sub(r"/|USDT?$", "", str(ticker).upper()) for ticker in tickers]
            limits = tuple(CAPPUCCINO_LIMITS[coin] for coin in coins if coin in CAPPUCCINO_LIMITS)
        if len(limits) < n_assets:
            known = f"the {rules} rules have a smallest order for {len(limits)} columns, but price_array has {n_assets}"
            raise ValueError(f"{known}; pass config['min_order_qty'] (A,) in coins")
        return [1.1 * limit for limit in limits[:n_assets]]

    def _starts_of(self, segment: tuple[int, int]) -> range:
        """Return the possible first bars in a segment. If the segment is long enough, a whole window must fit."""
        first = segment[0] + self.lookback - 1
        steps = min(self.episode_bars or 1, max(self._last_bar_of(segment) - first, 1))
        return range(first, self._last_bar_of(segment) - steps + 1)

    def _last_bar_of(self, segment: tuple[int, int]) -> int:
        return segment[1] - 1 - (self.lookback if self.params.ends_lookback_early else 0)

    def _window_end(self, segment: int, first: int) -> int:
        last = self._last_bar_of(self.segments[segment])
        return min(last, first + self.episode_bars) if self.episode_bars else last

    def _draw_start(self) -> tuple[int, int]:
        """Return (segment, first bar) of the current episode, as drawn by environment 0 of the vectorized class."""
        usable = [i for i, starts in enumerate(self._starts) if starts]
        if self.start == "first":
            segment = usable[self.episode % len(usable)]
            return segment, self._starts[segment][0]
        if self.start != "random":
            raise ValueError(f'start must be "first" or "random" for one environment; received {self.start!r}')
        k = (hash32(self.seed, 0, self.episode) * sum(map(len, self._starts))) >> 32
        for segment in usable:
            if k < len(self._starts[segment]):
                return segment, self._starts[segment][k]
            k -= len(self._starts[segment])
        raise AssertionError("k must be below the number of starts")

    def _locate(self, bar: int) -> tuple[int, int]:
        for segment, (first, _) in enumerate(self.segments):
            if first + self.lookback - 1 <= bar < self._last_bar_of(self.segments[segment]):
                return segment, bar
        raise ValueError(f"no episode can start at bar {bar}: needs {self.lookback - 1} bars before it and one after")

    def _open_account(self, segment: int, first: int) -> Account:
        """Create a fresh account. Accounts are created only here, so no field survives a reset by accident."""
        p, capital, n_assets = self.params, self.initial_capital, self.action_dim
        self._segment = self.segments[segment]
        base_price = self.price_array[self._segment[0] if p.benchmark_base == "segment" else first]
        fee = 1.0 + (p.buy_fee_rate if p.benchmark_pays_fee else 0.0)
        share = capital / max(int((base_price > 0).sum()), 1)
        benchmark_qty = [share / (x * fee) if x > 0 else 0.0 for x in base_price.tolist()]
        benchmark = sum(q * x for q, x in zip(benchmark_qty, self.price_array[first].tolist(), strict=True))
        return Account(
            bar=first, first_bar=first, last_bar=self._window_end(segment, first), cash=capital,
            qty=[0.0] * n_assets, held_bars=[0] * n_assets, high=[0.0] * n_assets,
            order_scale=self._scales[segment], benchmark_qty=benchmark_qty,
            equity=capital, benchmark=benchmark, peak=capital, max_drawdown=0.0, filled=[0.0] * n_assets,
        )  # fmt: skip

    def _order_scale(self, first_price: np.ndarray) -> list[float]:
        """Return coins per unit of action (A,), from the first prices of a segment in the caller's dtype."""
        p, scales = self.params, [0.0] * len(first_price)
        for i, x in enumerate(first_price):
            if x > 0 and p.order_sizing == "price_magnitude":
                scales[i] = p.norm_action / 10.0 ** math.floor(math.log(x, 10))
            elif x > 0 and p.order_sizing == "price_digits":
                scales[i] = p.norm_action / 10.0 ** (len(str(x)) - 7)
            elif x > 0 and p.order_sizing == "initial_capital":
                scales[i] = self.initial_capital / (float(x) * p.norm_action)
        return scales


def hash32(seed: int, env: int, episode: int) -> int:
    """Return a 32-bit hash of the arguments; the finalizer is C. Wellons' `lowbias32`."""
    x = 0
    for word in (seed, env, episode):
        x = (x + word + 0x9E3779B9) & 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        x ^= x >> 16
    return x
