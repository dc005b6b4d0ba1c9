"""The simulator's account, with its orders filled by a venue.

`TradedAccount` is a subclass of `environment_Alpaca.CryptoEnvAlpaca`. Stops, order sizing, rounding, minimum orders,
the position cap, the scaling of buys, valuation and observation are methods of that class. Only the fills differ. A
plan runs the methods on a copy of the account and collects the orders, the venue fills the orders, and `settle_sales`
and `settle_buys` copy the venue's cash and coins. If the venue fills at the bar's close with the simulator's slippage
and fee, the result is bit-identical to the simulator's step.

As in the simulator, sales are executed first, and buys are sized with their proceeds. Each coin has at most one order
per side and bar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from environment_Alpaca import Account, CryptoEnvAlpaca, Traded
from market.venues import OrderRule
from paper_trading.broker import Side, Why

Array = np.ndarray
NO_END = 2**62  # last bar of an endless account


@dataclass(frozen=True)
class Window:
    """Contiguous bars, with the newest last; n is at most lookback + 1."""

    close_s: Array  # (n,) int64, UTC seconds
    price: Array  # (n, A) float64, closes, quote per coin
    tech: Array  # (n, F) float32, features
    filled: Array  # (n, A) bool, True if the coin was not traded

    def __len__(self) -> int:
        return len(self.close_s)

    @property
    def bar_s(self) -> int:
        """Close time of the newest bar, in UTC seconds."""
        return int(self.close_s[-1])


@dataclass(frozen=True)
class Wish:
    """One order of a plan."""

    asset: int
    side: Side
    quantity: float  # coins
    why: Why


@dataclass(frozen=True)
class Plan:
    """Sales of a bar, and the inputs for sizing its buys after the sales are settled."""

    sales: Sequence[Wish]
    order: list[float]  # (A,) requested coins
    equity_at_fill: float  # quote
    high: list[float]  # (A,) highest price while held, including this bar
    price: list[float]  # (A,) closes


class TradedAccount(CryptoEnvAlpaca):
    """An account on live or replayed bars.

    Args:
        env_params: environment parameters of the deployment.
        window: at least `lookback` bars, up to the first observed one.
        rules: order rules by ticker, in column order.
        n_steps: bars per episode, used only by `observe_account`; None for an endless episode.
    """

    def __init__(
        self, env_params: Mapping[str, Any], window: Window, rules: Mapping[str, OrderRule], n_steps: int | None = None
    ) -> None:  # fmt: skip
        again = slice(-1, None)  # the class requires a next bar; `move_to` replaces it with the real one
        config = {
            "price_array": np.concatenate((window.price, window.price[again])),
            "tech_array": np.concatenate((window.tech, window.tech[again])),
            "filled_array": np.concatenate((window.filled, window.filled[again])),
            "min_order_qty": np.array([rule.min_order_qty for rule in rules.values()]),
            "qty_increment": np.array([rule.qty_increment for rule in rules.values()]),
        }
        super().__init__(config, env_params)
        self.wishes: list[Wish] = []
        self._why: Why = "policy"
        self.is_dust = [False] * self.action_dim  # (A,) True if only the remainder of a sold position is held
        self.reset(len(window) - 1)
        first = self.account.bar
        self.account = replace(self.account, last_bar=NO_END if n_steps is None else first + n_steps)

    def use_rules(self, rules: Mapping[str, OrderRule]) -> None:
        """Use new order rules, in column order."""
        self.min_qty = [rule.min_order_qty for rule in rules.values()]
        self.qty_increment = [rule.qty_increment for rule in rules.values()]

    # ---------------------------------------------------------------- the bar
    def move_to(self, window: Window) -> None:
        """Replace the bars. The account's current bar is then the one before the newest."""
        acct = self.account
        moved = len(window) - 2 - acct.bar
        self.price_array, self.tech_array, self.trades = window.price, window.tech, ~window.filled
        last_bar = acct.last_bar if acct.last_bar == NO_END else acct.last_bar + moved
        self.account = replace(acct, bar=acct.bar + moved, first_bar=acct.first_bar + moved, last_bar=last_bar)

    def jump_to(self, window: Window, n_bars: int) -> None:
        """Advance to the newest bar, `n_bars` after the current one, without orders in between.

        Highs are updated with the closes of the skipped bars in the window.
        """
        self.move_to(window)
        acct = self.account
        acct.bar += 1
        acct.first_bar -= n_bars - 1
        acct.last_bar -= 0 if acct.last_bar == NO_END else n_bars - 1
        acct.held_bars = [n + n_bars if q > 0 else n for n, q in zip(acct.held_bars, acct.qty, strict=True)]
        if self.params.trailing_stop_pct > 0:
            seen = window.price[-n_bars:].max(axis=0).tolist()
            acct.high = [max(high, x) if q > 0 else high for high, x, q in zip(acct.high, seen, acct.qty, strict=True)]
        self._renew_episode()
        self._forget_dust()

    def begin_bar(self) -> list[float]:
        """Advance to the newest bar and return its closes (A,)."""
        price = self._begin_bar()
        self._renew_episode()
        self._forget_dust()
        return price

    def take(self, cash: float, qty: Sequence[float]) -> None:
        """Copy the venue's cash and coins (A,), including changes that no order of this bar explains."""
        acct = self.account
        for i, (before, now) in enumerate(zip(acct.qty, qty, strict=True)):
            if now != before:
                self.is_dust[i] = now < before and self._cannot_be_sold(i, now)
            acct.held_bars[i] = acct.held_bars[i] if now > 0 else 0
        acct.cash, acct.qty = cash, list(qty)
        self._forget_dust()

    def _renew_episode(self) -> None:
        """Begin a new episode after the last bar of the current one."""
        acct = self.account
        n_steps = acct.last_bar - acct.first_bar
        while acct.bar > acct.last_bar:
            acct.first_bar = acct.last_bar + 1
            acct.last_bar = acct.first_bar + n_steps

    def _forget_dust(self) -> None:
        """Reset the holding time and the high of the remainders of sold positions."""
        for i, is_dust in enumerate(self.is_dust):
            if is_dust:
                self.account.held_bars[i], self.account.high[i] = 0, 0.0

    def _cannot_be_sold(self, i: int, quantity: float) -> bool:
        """Return True if the quantity is below one increment or below the minimum order."""
        whole = self._whole_increments(i, quantity)
        return quantity > 0 and (whole <= 0 or whole < self.min_qty[i])

    def plan_sales(self, action: Array, price: list[float]) -> Plan:
        """Plan the stops, sales and stale releases of the bar. An action (A,) that is not finite is a hold."""
        asked = np.asarray(action, dtype=np.float32)
        asked = asked if np.isfinite(asked).all() else np.zeros_like(asked)
        live, self.account, self.wishes = self.account, _copy(self.account), []
        try:
            order, equity = self._reduce(asked, price)
            planned = self.account
        finally:
            self.account = live
        # A position keeps its high until the venue has sold it.
        high = [after or now for now, after in zip(live.high, planned.high, strict=True)]
        return Plan(self.wishes, order, equity, high, price)

    def settle_sales(self, plan: Plan, sold: Sequence[float], cash: float, qty: Sequence[float]) -> None:
        """Copy the venue's cash and coins (A,) after the sales, given the sold coins (A,)."""
        acct, self.account.high = self.account, list(plan.high)
        whole = {wish.asset for wish in plan.sales if wish.quantity >= acct.qty[wish.asset]}
        for i, quantity in enumerate(sold):
            if quantity > 0:
                self.is_dust[i] = i in whole and self._cannot_be_sold(i, qty[i])
            acct.filled[i] -= quantity
            acct.held_bars[i] = 0 if quantity > 0 else acct.held_bars[i]
            acct.high[i] = 0.0 if quantity > 0 and qty[i] == 0.0 else acct.high[i]
        acct.cash, acct.qty = cash, list(qty)
        self._forget_dust()

    def plan_buys(self, plan: Plan) -> Sequence[Wish]:
        """Plan the buys of the bar after its sales are settled."""
        live, self.account, self.wishes = self.account, _copy(self.account), []
        try:
            self._buy(plan.order, plan.price, plan.equity_at_fill)
        finally:
            self.account = live
        return self.wishes

    def settle_buys(self, plan: Plan, bought: Sequence[float], cash: float, qty: Sequence[float]) -> None:
        """Copy the venue's cash and coins (A,) after the buys, given the bought coins (A,)."""
        acct = self.account
        for i, quantity in enumerate(bought):
            acct.filled[i] += quantity
            is_new = quantity > 0 and (acct.qty[i] == 0.0 or self.is_dust[i])
            acct.high[i] = plan.price[i] if is_new else acct.high[i]
            self.is_dust[i] = self.is_dust[i] and not is_new
        acct.cash, acct.qty = cash, list(qty)

    def mark(self) -> None:
        """Value the account at the newest bar."""
        self._mark(self.price_array[self.account.bar].tolist())

    def observe(self) -> Array:
        """Return the simulator's observation at the newest bar, (S,) float32."""
        return self._observe()

    # ---------------------------------------------------------------- collecting the orders of a plan
    def _trailing_stop(self, price: list[float]) -> None:
        self._collect("stop", lambda: super(TradedAccount, self)._trailing_stop(price))

    def _release_stale(self, price: list[float]) -> None:
        self._collect("stale", lambda: super(TradedAccount, self)._release_stale(price))

    def _collect(self, why: Literal["stop", "stale"], phase: Any) -> None:
        self._why = why
        phase()
        self._why = "policy"

    def _execute_sale(self, i: int, quantity: float, price: float) -> None:
        super()._execute_sale(i, quantity, price)
        if quantity > 0:
            self.wishes.append(Wish(i, "sell", quantity, self._why))

    def _execute_purchase(self, i: int, quantity: float, price: float) -> None:
        before = self.account.qty[i]
        super()._execute_purchase(i, quantity, price)
        if self.account.qty[i] != before:
            self.wishes.append(Wish(i, "buy", quantity, "policy"))

    # ---------------------------------------------------------------- saving and restoring
    def to_json(self) -> dict[str, Any]:
        """Return the account as JSON values, with bar indices relative to the current bar."""
        acct = self.account
        values = {name: value for name, value in asdict(acct).items() if name not in ("bar", "traded", "filled")}
        last = None if acct.last_bar == NO_END else acct.last_bar - acct.bar
        return values | {"first_bar": acct.first_bar - acct.bar, "last_bar": last, "is_dust": self.is_dust}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restore the account from the values of `to_json`, at the current bar."""
        bar = self.account.bar
        last = NO_END if values["last_bar"] is None else bar + values["last_bar"]
        own = {field.name for field in fields(Account)} - {"bar", "first_bar", "last_bar", "traded", "filled"}
        kept = {name: values[name] for name in own if name in values}
        account = replace(self.account, bar=bar, first_bar=bar + values["first_bar"], last_bar=last, **kept)
        self.account = _copy(account)
        self.is_dust = list(values.get("is_dust", self.is_dust))


def _copy(account: Account) -> Account:
    """Return a copy of the account with copied lists."""
    lists = {name: list(value) for name, value in vars(account).items() if isinstance(value, list)}
    return replace(account, traded=Traded(), **lists)
