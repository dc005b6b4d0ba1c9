"""Offline verification of a live journal: its bars must reproduce its decisions and orders.

Every observation is recomputed from the recorded candles and account, compared by its hash, and passed to the policy.
Every order is sized again. The first difference is an error. No venue is contacted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from market.errors import UserError
from market.times import utc_text
from market.venues import OrderRule
from paper_trading.broker import whole_qty
from paper_trading.feeds import BarStore, Candle, Needs, until
from paper_trading.journal import Event, lines
from paper_trading.ledger import Ledger
from paper_trading.policy_choice import decide
from paper_trading.traded_account import Plan, TradedAccount, Window
from train.deploy.loading import Deployment, read_deployment

NAMES = ("open", "high", "low", "close", "volume")


@dataclass
class Verified:
    """Numbers of compared decisions and orders."""

    decisions: int = 0
    orders: int = 0
    skipped: int = 0  # decisions of removed deployments


def verify(path: Path, deployments: Path) -> Verified:
    """Verify a journal.

    Args:
        path: path of the journal.
        deployments: folder with the deployments used in the journal.

    Raises:
        UserError: if there is a difference, or if the journal belongs to a replay.
        JournalError: if the journal is damaged.
    """
    run: _Run | None = None
    done = Verified()
    for event in lines(path):
        if event["event"] == "start":
            if event["broker"] == "replay":
                raise UserError(f"{path}: cannot verify the journal of a replay, because it contains no candles")
            run = _Run(event, deployments, done, run)
        elif run is not None:
            run.take(event)
    return done


class _Run:
    """Events from one `start` to the next."""

    def __init__(self, start: Event, deployments: Path, done: Verified, earlier: _Run | None) -> None:
        self.start, self.deployments, self.done = start, deployments, done
        self.rules = _rules(start)
        self.before: Event | None = earlier and earlier.before  # the previous decision
        self.ledger: Ledger | None = earlier and earlier.ledger
        self.plan: Plan | None = None
        self.account: TradedAccount | None = None
        self.state: str = "ACTIVE" if earlier is None else earlier.state
        self._begin(start["deployment"])

    def _begin(self, name: str) -> None:
        folder = self.deployments / name
        self.deployment: Deployment | None = read_deployment(folder) if folder.is_dir() else None
        if self.deployment is None:
            return
        d = self.deployment
        needs = Needs(d.tickers, d.bar_seconds, int(d.env_params["lookback"]), d.facts.feature_set, d.feature_names)
        self.store, self.window = BarStore(needs), None

    def take(self, event: Event) -> None:
        """Process the next event."""
        kind = event["event"]
        if kind == "rules":
            self.rules = _rules(event)
        elif kind == "deployment" and "to" in event:
            self._begin(event["to"])
        elif kind == "account":
            self.ledger = Ledger.from_json(event)
        elif kind == "state":
            self.state = event["to"]
        elif self.deployment is None:
            self.done.skipped += kind == "decision"
        elif kind == "bar":
            self._bar(event)
        elif kind == "intents":
            self._orders(event)
        elif kind == "decision":
            self._decision(event)

    def _bar(self, event: Event) -> None:
        step = self.store.needs.bar_seconds
        for open_s, ticker, *values in event["earlier"]:
            self.store.add({open_s: {ticker: Candle(*values)}})
        open_s, candles = event["bar_s"] - step, event["candles"]
        for i, ticker in enumerate(self.store.needs.tickers):
            values = [candles[name][i] for name in NAMES]
            if None not in values:
                self.store.add({open_s: {ticker: Candle(*values)}})
        self.window, self.plan, self.account = self.store.window(open_s), None, None

    def _decision(self, event: Event) -> None:
        assert self.window is not None
        assert self.deployment is not None
        window = until(self.window, 0, self.store.needs.lookback)
        account = self._account(window, event["checkpoint"])
        account.account.equity, account.account.peak = event["equity"], event["peak"]
        weights = np.array(event["weights"])
        found = decide(self.deployment.policy, account.observe(), weights, account.params.norm_action)
        when = f"{utc_text(event['bar_s'])} UTC"
        if found.observation_sha256 != event["observation_sha256"]:
            raise UserError(f"the observation at the bar of {when} differs from the recorded hash")
        if found.action.tolist() != event["action"]:
            raise UserError(f"the decision at the bar of {when} is {found.action}; recorded {event['action']}")
        self.before = event
        self.done.decisions += 1

    def _account(self, window: Window, checkpoint: Mapping[str, Any]) -> TradedAccount:
        assert self.deployment is not None
        params = self.deployment.env_params | {"initial_capital": checkpoint["capital"]}
        account = TradedAccount(params, window, self.rules, self.start["n_steps"])
        account.restore(checkpoint["account"])
        return account

    def _orders(self, event: Event) -> None:
        """Size the orders of a phase again from the previous decision and the holdings at that time."""
        if event["phase"] == "flatten" or self.before is None or self.window is None or self.ledger is None:
            return
        assert self.deployment is not None
        tickers = self.store.needs.tickers
        holdings = float(self.ledger.cash), [float(self.ledger.qty[ticker]) for ticker in tickers]
        if self.plan is None:
            self.account = self._account(until(self.window, 1, self.store.needs.lookback), self.before["checkpoint"])
            self.account.move_to(until(self.window, 0, self.store.needs.lookback))
            price = self.account.begin_bar()
            self.account.account.cash, self.account.account.qty = holdings
            action = np.array(self.before["action"], np.float32)
            self.plan = self.account.plan_sales(action if self.state == "ACTIVE" else np.minimum(action, 0.0), price)
        assert self.account is not None
        if event["phase"] == "buys":
            self.account.account.cash, self.account.account.qty = holdings
            wishes = self.account.plan_buys(self.plan)
        else:
            wishes = self.plan.sales
        asked = {(tickers[wish.asset], wish.side): wish.quantity for wish in wishes}
        for order in event["orders"]:
            sized = asked.get((order["ticker"], order["side"]), 0.0)
            if sized != order["sized"]:
                which = f"{order['side']} {order['ticker']} at the bar of {utc_text(event['bar_s'])} UTC"
                raise UserError(f"the order {which} is sized as {sized} coins; recorded {order['sized']}")
            step = self.rules[order["ticker"]].qty_increment
            is_cut = order["side"] == "sell" and Decimal(order["qty"]) < whole_qty(sized, step)  # limited to our coins
            if not is_cut and str(whole_qty(sized, step)) != order["qty"]:
                raise UserError(f"order {order['id']} is rounded to {whole_qty(sized, step)}; recorded {order['qty']}")
            self.done.orders += 1


def _rules(event: Event) -> dict[str, OrderRule]:
    return {ticker: OrderRule(least, step) for ticker, (least, step) in event["rules"].items()}
