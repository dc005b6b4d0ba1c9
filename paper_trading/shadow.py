"""The simulator's account on the same bars, the reference for the trader's account.

The simulated account uses its own observations and fills at every close, as in training. A trader that misses no orders
and pays exactly the expected costs has the same account.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from drl_agents.policy import Policy
from market.venues import OrderRule
from paper_trading.broker import Intent, order_id
from paper_trading.feeds import until
from paper_trading.policy_choice import act
from paper_trading.replay_venue import ReplayBroker
from paper_trading.traded_account import TradedAccount, Window, Wish


class Shadow:
    """One simulated account.

    Args:
        env_params: environment parameters of the deployment, with the trader's capital.
        window: bars up to the first decision.
        rules: order rules by ticker.
        n_steps: same as in `TradedAccount`.
    """

    def __init__(
        self, env_params: Mapping[str, Any], window: Window, rules: Mapping[str, OrderRule], n_steps: int | None
    ) -> None:  # fmt: skip
        self.account = TradedAccount(env_params, window, rules, n_steps)
        self.venue = ReplayBroker(self.account.params, tuple(rules))
        self.action: np.ndarray | None = None  # (A,) decision at the current bar

    def advance(self, window: Window, n_bars: int, policy: Policy) -> None:
        """Trade bar by bar up to the newest bar. After a gap in the market, the account skips to the newest bar.

        Args:
            window: bars up to the newest one.
            n_bars: number of bars since the account's current bar.
            policy: the deployed policy.
        """
        if n_bars > len(window) - self.account.lookback:
            self.account.jump_to(window, n_bars)
            self.account.mark()
            self.action = None
            if len(window) >= self.account.lookback:
                self.decide(policy)
            return
        for n_back in range(n_bars - 1, -1, -1):
            self._step(until(window, n_back, self.account.lookback), policy)

    def _step(self, window: Window, policy: Policy) -> None:
        account = self.account
        account.move_to(window)
        action = np.zeros(account.action_dim, np.float32) if self.action is None else self.action
        plan = account.plan_sales(action, account.begin_bar())
        account.settle_sales(plan, self._fill(plan.sales, plan.price, window.bar_s), *self._holdings())
        account.settle_buys(plan, self._fill(account.plan_buys(plan), plan.price, window.bar_s), *self._holdings())
        account.mark()
        self.decide(policy)

    def decide(self, policy: Policy) -> None:
        """Make the decision at the current bar."""
        self.action = act(policy, self.account.observe())

    def _fill(self, wishes: Sequence[Wish], price: Sequence[float], bar_s: int) -> list[float]:
        filled = [0.0] * self.account.action_dim
        for wish in wishes:
            ticker = tuple(self.venue.qty)[wish.asset]
            name = order_id("simulator", ticker, bar_s, wish.side)
            qty = Decimal(repr(wish.quantity))
            order = Intent(name, ticker, wish.side, qty, bar_s, price[wish.asset], wish.why, wish.quantity)
            filled[wish.asset] = float(self.venue.send(order).filled_qty)
        return filled

    def _holdings(self) -> tuple[float, list[float]]:
        return self.venue.cash, list(self.venue.qty.values())

    def to_json(self) -> dict[str, Any]:
        """Return the state of the account as JSON values."""
        action = None if self.action is None else self.action.tolist()
        return {"account": self.account.to_json(), "cash": self.venue.cash, "qty": self.venue.qty, "action": action}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restore the state from the values of `to_json`."""
        self.account.restore(values["account"])
        self.venue.cash, self.venue.qty = values["cash"], dict(values["qty"])
        self.action = None if values["action"] is None else np.array(values["action"], np.float32)
