"""Scalar environments as the hosts of the FinRL family have them, in our own words, with a switch for every rule.

`FinRLCryptoLike` and `CappuccinoLike` follow docs/simulator.md and have the habits of their hosts: coins and orders in
float32, orders written into the caller's array, attributes under the hosts' names, a benchmark and a discounted return
that a reset does not clear. Every rule is a class attribute, so that one line makes a class that breaks it:

    class Late(FinRLCryptoLike):
        stale_bars = 49
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

ALPACA_LIMITS = np.array([0.02, 0.3, 0.0007, 0.05, 1.3, 0.004, 0.06, 9.0, 0.5, 0.011])  # coins, by column


class HostScalar:
    """What the two have in common; `step` reads in the order of the rules."""

    capital, fee = 1_000_000.0, 0.003
    minimum_factor: Any = 1.1  # of the limits; an array (A,) sets each coin's
    stale_bars, stale_share = 48, 0.05
    haircut = 0.9
    buy_fee_factor = sell_fee_factor = 1.0
    buys_first = False
    end_shift = 0  # bars by which episodes end late
    final_discount = 1.0  # factor of gamma
    alpha_weight = 1.0
    action_limit = np.inf

    def __init__(
        self, config: dict[str, Any], env_params: dict[str, Any], initial_capital: float | None = None,
        buy_cost_pct: float | None = None, sell_cost_pct: float | None = None, gamma: float = 0.99,
        if_log: bool = False,
    ) -> None:  # fmt: skip
        self.price_array, self.tech_array = config["price_array"], config["tech_array"]
        self.initial_cash = self.initial_total_asset = self.capital if initial_capital is None else initial_capital
        self.buy_cost_pct = self.fee if buy_cost_pct is None else buy_cost_pct
        self.sell_cost_pct = self.fee if sell_cost_pct is None else sell_cost_pct
        self.gamma, self.if_log = gamma, if_log
        self.lookback = env_params["lookback"]
        self.norm_cash, self.norm_stocks = env_params["norm_cash"], env_params["norm_stocks"]
        self.norm_tech, self.norm_reward = env_params["norm_tech"], env_params["norm_reward"]
        self.norm_action = env_params["norm_action"]
        self.action_dim = self.price_array.shape[1]
        self.minimum_qty_alpaca = ALPACA_LIMITS[: self.action_dim] * self.minimum_factor
        self.safety_factor_stock_buy = self.haircut
        self.max_step = len(self.price_array) - self.lookback - 1 + self.end_shift
        self.action_norm_vector = self._order_scale(self.price_array[0])
        self.benchmark_qty = self._benchmark_qty(self.price_array[0])
        self.gamma_return = 0.0
        self._open()
        self.total_asset_eqw = float(self.benchmark_qty @ self.price_array[self.time])

    def _open(self) -> None:
        self.time, self.cash = self.lookback - 1, self.initial_cash
        self.total_asset = self.cash
        self.stocks = np.zeros(self.action_dim, dtype=np.float32)
        self.stocks_cooldown = np.zeros(self.action_dim, dtype=np.float32)
        self.high = np.zeros(self.action_dim, dtype=np.float32)

    def reset(self) -> np.ndarray:
        self._open()
        return self._observe()

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, float, bool, None]:
        self.time += 1
        price = self.price_array[self.time]
        self.stocks_cooldown[self.stocks > 0] += 1
        self._stop(price)
        np.clip(actions, -self.action_limit, self.action_limit, out=actions)
        for i in range(self.action_dim):
            actions[i] = actions[i] * self.action_norm_vector[i]
        self._cap(actions, price)
        sales = [self._sell, self._release]
        for trade in [self._buy, *sales] if self.buys_first else [*sales, self._buy]:
            trade(actions, price)
        value = self.cash + float((self.stocks * price).sum())
        benchmark = float(self.benchmark_qty @ price)
        reward = self._reward(price, value, benchmark)
        self.total_asset, self.total_asset_eqw = value, benchmark
        self.gamma_return = self.gamma_return * self.gamma * self.final_discount + reward
        done = self.time == self.max_step
        return self._observe(), self.gamma_return if done else reward, done, None

    def _observe(self) -> np.ndarray:
        rows = self.tech_array[self.time - self.lookback + 1 : self.time + 1][::-1] * self.norm_tech
        return np.hstack([self.cash * self.norm_cash, self.stocks * self.norm_stocks, rows.ravel()]).astype(np.float32)

    def _sell(self, order: np.ndarray, price: np.ndarray) -> None:
        for i in np.flatnonzero((order < -self.minimum_qty_alpaca) & (self.stocks > 0) & (price > 0)):
            self._take(i, min(self.stocks[i], -order[i]), price[i])

    def _release(self, _: np.ndarray, price: np.ndarray) -> None:
        for i in np.flatnonzero(self.stocks_cooldown >= self.stale_bars):
            self._take(i, self.stocks[i] * self.stale_share, price[i])

    def _take(self, i: int, quantity: np.float32, price: float) -> None:
        self.stocks_cooldown[i] = 0
        self.stocks[i] -= quantity
        self.cash += price * quantity * (1 - self.sell_cost_pct * self.sell_fee_factor)

    def _buy(self, order: np.ndarray, price: np.ndarray) -> None:
        for i in np.flatnonzero((order > self.minimum_qty_alpaca) & (price > 0)):
            unit_cost = price[i] * (1 + self.buy_cost_pct * self.buy_fee_factor)
            quantity = min(self._spendable() * self.safety_factor_stock_buy / unit_cost, order[i])
            if quantity >= self.minimum_qty_alpaca[i]:
                self._opened(i, price[i])
                self.stocks[i] += quantity
                self.cash -= quantity * unit_cost

    def _spendable(self) -> float:
        return self.cash

    def _opened(self, i: int, price: float) -> None:
        """For the class with a trailing stop."""

    def _stop(self, price: np.ndarray) -> None:
        """For the class with a trailing stop."""

    def _cap(self, order: np.ndarray, price: np.ndarray) -> None:
        """For the class with a concentration cap."""


class FinRLCryptoLike(HostScalar):
    """FinRL_Crypto's rules."""

    def _order_scale(self, first: np.ndarray) -> np.ndarray:
        return np.array([self.norm_action / 10 ** math.floor(math.log(x, 10)) for x in first])

    def _benchmark_qty(self, first: np.ndarray) -> np.ndarray:
        return self.initial_cash / self.action_dim / first

    def _reward(self, price: np.ndarray, value: float, benchmark: float) -> float:
        alpha = (value - self.total_asset) - (benchmark - self.total_asset_eqw)
        return self.alpha_weight * alpha * self.norm_reward


class CappuccinoLike(HostScalar):
    """Cappuccino's rules."""

    capital, fee, haircut = 500.0, 0.0025, 0.99
    alpha_weight, absolute_weight, bonus_weight, bonus_from = 0.5, 0.3, 0.02, 0.1
    shortfall_weight, reserve_factor = 0.5, 1.0
    concentration_from, few_weight, even_weight, even_below, active_from = 0.40, 0.5, 0.1, 0.4, 0.01
    stop_factor, cap_factor, action_limit = 1.0, 1.0, 1000.0
    purchase_resets_high = sale_resets_high = True

    def __init__(self, config: dict[str, Any], env_params: dict[str, Any], *args: Any, **named: Any) -> None:
        self.time_decay_floor = env_params.get("time_decay_floor", 0.0)
        self.min_cash_reserve = env_params.get("min_cash_reserve", 0.0)
        self.concentration_penalty = env_params.get("concentration_penalty", 0.0)
        self.trailing_stop_pct = env_params.get("trailing_stop_pct", 0.0)
        self.max_position_pct = 0.0
        super().__init__(config, env_params, *args, **named)

    def _order_scale(self, first: np.ndarray) -> np.ndarray:
        return (self.initial_total_asset / (first * self.norm_action)).astype(np.float32)

    def _benchmark_qty(self, first: np.ndarray) -> np.ndarray:
        return self.initial_cash / self.action_dim / (first * (1 + self.buy_cost_pct))

    def _spendable(self) -> float:
        return max(0.0, self.cash - self.initial_cash * self.min_cash_reserve * self.reserve_factor)

    def _opened(self, i: int, price: float) -> None:
        if self.stocks[i] == 0 and self.purchase_resets_high:
            self.high[i] = price

    def _take(self, i: int, quantity: np.float32, price: float) -> None:
        super()._take(i, quantity, price)
        if self.stocks[i] == 0 and self.sale_resets_high:
            self.high[i] = 0.0

    def _stop(self, price: np.ndarray) -> None:
        if self.trailing_stop_pct > 0:
            self.high = np.where(self.stocks > 0, np.maximum(self.high, price), self.high).astype(np.float32)
            level = self.high * (1 - self.trailing_stop_pct * self.stop_factor)
            for i in np.flatnonzero((self.stocks > 0) & (price > 0) & (price < level)):
                self._take(i, self.stocks[i], price[i])

    def _cap(self, order: np.ndarray, price: np.ndarray) -> None:
        if self.max_position_pct > 0:
            value = self.cash + float((self.stocks * price).sum())
            for i in np.flatnonzero((order > 0) & (price > 0)):
                room = self.max_position_pct * self.cap_factor * value / price[i] - self.stocks[i]
                order[i] = min(order[i], max(room, 0.0))

    def _reward(self, price: np.ndarray, value: float, benchmark: float) -> float:
        gain, benchmark_gain = value - self.total_asset, benchmark - self.total_asset_eqw
        first, last = self.lookback - 1, len(self.price_array) - self.lookback - 1
        decay = max(1 - (self.time - first) / max(last - first, 1), self.time_decay_floor)
        alpha = self.alpha_weight * (gain - benchmark_gain)
        absolute = self.absolute_weight * gain / self.initial_cash
        reward = (alpha + absolute) * self.norm_reward * decay + self._cash_terms(value, benchmark_gain)
        if self.concentration_penalty > 0 and value > 0:
            reward += self.concentration_penalty * self._concentration(self.stocks * price / value)
        return reward

    def _cash_terms(self, value: float, benchmark_gain: float) -> float:
        market = benchmark_gain / self.total_asset_eqw if self.total_asset_eqw > 0 else 0.0
        share = self.cash / value if value > 0 else 0.0
        bonus = self.bonus_weight * -market * share if market < 0 and share > self.bonus_from else 0.0
        shortfall = max(0.0, self.initial_cash * self.min_cash_reserve - self.cash) / self.initial_cash
        return (bonus - self.shortfall_weight * shortfall) * self.norm_reward

    def _concentration(self, weight: np.ndarray) -> float:
        large = -max(weight.max() - self.concentration_from, 0.0)
        active = np.sort(weight[weight > self.active_from])
        n = len(active)
        if n < 3:
            return large - self.few_weight * (3 - n)
        rank = np.arange(1, n + 1)
        gini = 2 * (rank @ active) / (n * active.sum()) - (n + 1) / n
        return large + self.even_weight * max(self.even_below - gini, 0.0)
