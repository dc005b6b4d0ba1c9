"""Conversion of decisions to orders: first sales, then buys with their proceeds, each checked against the limits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

import numpy as np

from paper_trading.books import Books
from paper_trading.broker import Intent, order_id, rounded_down, whole_qty
from paper_trading.desk import Desk, Phase, Tracked
from paper_trading.journal import Journal
from paper_trading.listing import Listing
from paper_trading.mandate import Mandate
from paper_trading.risk import Standing, Used, refusal
from paper_trading.traded_account import Plan, TradedAccount, Wish
from train.deploy.loading import Deployment

log = logging.getLogger(__name__)


class Dealer:
    """Converts actions to orders.

    Args:
        deployment: name of the deployment, part of the order ids.
        desk: sends the orders.
        books: the trader's ledger.
        journal: records refused orders.
        listing: order rules.
        mandate: the trader's state and limits.
        used: used part of the limits.
        reconcile: function that adds the fills to the ledger and returns True if the venue responded.
    """

    def __init__(
        self, deployment: Deployment, desk: Desk, books: Books, journal: Journal, listing: Listing, mandate: Mandate,
        used: Used, reconcile: Callable[[int], bool],
    ) -> None:  # fmt: skip
        self.deployment, self.desk, self.books, self.journal = deployment, desk, books, journal
        self.listing, self.mandate, self.used, self.reconcile = listing, mandate, used, reconcile

    def execute(
        self, account: TradedAccount, action: np.ndarray, price: list[float], bar_s: int, before: Mapping[str, float]
    ) -> None:  # fmt: skip
        """Size an action's orders, send them and apply the fills to the account.

        Args:
            account: account at the bar.
            action: (A,) action; in the REDUCING state, only its sales are used.
            price: (A,) closes of the bar.
            bar_s: close time of the bar, in UTC seconds.
            before: closes of the previous bar by ticker.
        """
        asked = action if self.mandate.state == "ACTIVE" else np.minimum(action, 0.0)
        plan = account.plan_sales(asked, price)
        sold = self._send("sales", plan.sales, account, plan, bar_s, before)
        is_known = not sold or self.reconcile(bar_s)
        account.settle_sales(plan, self._filled(sold), *self.holdings())
        if not is_known:
            self.journal.append("skip", bar_s=bar_s, why="the proceeds of the sales are unknown, so nothing was bought")
        if self.mandate.state != "ACTIVE" or not is_known:
            return
        bought = self._send("buys", account.plan_buys(plan), account, plan, bar_s, before)
        if bought:
            self.reconcile(bar_s)
        account.settle_buys(plan, self._filled(bought), *self.holdings())

    def holdings(self) -> tuple[float, list[float]]:
        """Return our cash and our coins (A,)."""
        ledger = self.books.ledger
        assert ledger is not None
        return float(ledger.cash), [float(ledger.qty[ticker]) for ticker in self.deployment.tickers]

    def _send(
        self, phase: Phase, wishes: Sequence[Wish], account: TradedAccount, plan: Plan, bar_s: int,
        before: Mapping[str, float],
    ) -> list[Tracked]:  # fmt: skip
        """Send the orders of one phase and return them with their latest state."""
        standing = self._standing(account, plan.price, before)
        wanted = [intent for wish in wishes if (intent := self._intent(wish, plan.price, bar_s)) is not None]
        batch = self.desk.trade(bar_s, phase, [intent for intent in wanted if self._passes(intent, standing)])
        for each in batch:
            self._count_reject(each)
        return batch

    def _filled(self, batch: Sequence[Tracked]) -> list[float]:
        """Return the filled coins (A,)."""
        filled = {each.intent.ticker: float(each.filled) for each in batch}
        return [filled.get(ticker, 0.0) for ticker in self.deployment.tickers]

    def _intent(self, wish: Wish, price: Sequence[float], bar_s: int) -> Intent | None:
        """Return the order for a wish, or None if nothing can be ordered."""
        ticker = self.deployment.tickers[wish.asset]
        if ticker in self.listing.closed:
            return None
        step = self.listing.rules[ticker].qty_increment if self.desk.broker.mode != "REPLAY" else 0.0
        qty = whole_qty(wish.quantity, step)
        if wish.side == "sell" and qty >= (owned := self._sellable(ticker)):
            qty = rounded_down(owned, step)
        name = order_id(self.deployment.name, ticker, bar_s, wish.side)
        found = Intent(name, ticker, wish.side, qty, bar_s, price[wish.asset], wish.why, wish.quantity)
        return found if qty > 0 else None

    def _sellable(self, ticker: str) -> Decimal:
        """Return our coins. If the account also holds foreign coins, sales of unknown outcome are subtracted."""
        ledger = self.books.ledger
        assert ledger is not None
        owned = ledger.qty[ticker]
        return owned - self.desk.reserved(ticker) if ledger.foreign_qty.get(ticker) else owned

    def _passes(self, intent: Intent, standing: Standing) -> bool:
        """Return True if the limits allow the order. A refusal is recorded in the journal."""
        why = refusal(intent, self.mandate.limits, self.used, standing)
        if why is None:
            self.used.add(float(intent.qty) * intent.price)
            return True
        log.warning("%s %s %s not sent: %s", intent.side, intent.qty, intent.ticker, why)
        self.journal.append(
            "order", id=intent.order_id, ticker=intent.ticker, side=intent.side, status="refused", filled_qty="0",
            price=None, reason=why, mid=None, took_s=0.0, notional="0",
        )  # fmt: skip
        self._count_refusal()
        return False

    def _count_reject(self, each: Tracked) -> None:
        if each.status == "rejected":
            self.listing.must_ask = True
            self._count_refusal()
        else:
            self.used.rejects = 0

    def _count_refusal(self) -> None:
        self.used.rejects += 1
        if self.used.rejects >= self.mandate.limits.max_rejects:
            self.mandate.change("REDUCING", f"{self.used.rejects} consecutive orders were rejected")

    def _standing(self, account: TradedAccount, price: Sequence[float], before: Mapping[str, float]) -> Standing:
        held = [q * x for q, x in zip(account.account.qty, price, strict=True)]
        equity = account.account.cash + sum(held)
        return Standing(equity, dict(zip(self.deployment.tickers, held, strict=True)), before)
