"""Order rules of the venue, and the coins that can currently be traded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from decimal import Decimal

from market.errors import UserError
from market.venues import ALPACA, OrderRule
from paper_trading.broker import Broker, UnreachableError, rounded_down
from paper_trading.journal import Journal
from paper_trading.ledger import count_out
from paper_trading.trader_memory import Memory
from train.deploy.loading import Deployment

log = logging.getLogger(__name__)


class Listing:
    """Order rules of a deployment's coins, from the venue or, if it provides none, from training.

    A coin that cannot currently be traded gets no orders, and its position is kept.

    Args:
        broker: the venue.
        journal: records changes.
        deployment: deployment whose coins are traded.
        told: function that receives one line when a coin can no longer, or can again, be traded.
    """

    def __init__(
        self, broker: Broker, journal: Journal, deployment: Deployment, told: Callable[[str], None]
    ) -> None:  # fmt: skip
        self.broker, self.journal, self.told = broker, journal, told
        trained = deployment.facts.order_rules
        self.rules = {ticker: OrderRule(trained[ticker].min_order_qty, trained[ticker].qty_increment)
                      for ticker in deployment.tickers}  # fmt: skip
        self.closed: tuple[str, ...] = ()  # coins that cannot currently be traded
        self.must_ask = True

    def ask(self) -> bool:
        """Update the rules from the venue if an update is due. Return True if the rules were updated.

        Raises:
            UnreachableError: if the venue does not respond. The update stays due.
        """
        if not self.must_ask:
            return False
        found = self.broker.rules()
        self.must_ask = False
        if found is None:
            return False
        rules = {ticker: found.get(ticker) or rule for ticker, rule in self.rules.items()}
        if rules != self.rules:
            sizes = {ticker: [rule.min_order_qty, rule.qty_increment] for ticker, rule in rules.items()}
            self.journal.append("rules", rules=sizes)
        self.rules = rules
        closed = tuple(ticker for ticker in self.rules if ticker not in found)
        for ticker in self.rules:
            if (ticker in closed) != (ticker in self.closed):
                self._say(ticker, is_closed=ticker in closed)
        self.closed = closed
        return True

    def renew(self, is_new_day: bool) -> bool:
        """Update the rules daily, after a rejection and while a coin cannot be traded. Return True if updated."""
        self.must_ask |= is_new_day or bool(self.closed)
        try:
            return self.ask()
        except UnreachableError as error:
            log.warning("the order rules could not be updated: %s", error)
            return False

    def _say(self, ticker: str, is_closed: bool) -> None:
        now = "cannot be traded at the venue now; its position is kept" if is_closed else "can be traded again"
        log.warning("%s %s", ticker, now)
        self.journal.append("foreign", what="coin", text=f"{ticker} {now}")
        self.told(f"{ticker} {now}")


def check_coins(memory: Memory, deployment: Deployment, journal: Journal) -> None:
    """Adapt the restored state to the deployment's coins.

    A checkpoint with different coins is discarded. Remainders of other coins that cannot be sold are marked as foreign.

    Raises:
        UserError: if we still hold sellable coins that this deployment does not trade.
    """
    held = {} if memory.ledger is None else memory.ledger.qty
    held = {ticker: qty for ticker, qty in held.items() if qty and ticker not in deployment.tickers}
    for ticker, qty in held.items():
        if memory.ledger is not None and not _can_be_sold(memory, ticker, qty):
            memory.ledger = count_out(memory.ledger, ticker)
            text = f"{ticker}: the trader's {qty} coins are too few to sell, and {deployment.name} does not trade them"
            journal.append("foreign", what="coin", text=text)
    strange = [f"{qty} {ticker}" for ticker, qty in held.items() if memory.ledger and memory.ledger.qty[ticker]]
    if strange:
        raise UserError(f"the trader still holds {', '.join(strange)}, which {deployment.name} does not trade; "
                        "sell them with --flatten")  # fmt: skip
    if memory.checkpoint is not None and set(memory.checkpoint["prices"]) != set(deployment.tickers):
        memory.checkpoint = None


def _can_be_sold(memory: Memory, ticker: str, qty: Decimal) -> bool:
    """Return True if the quantity meets the last known rules of the coin. Sales have no minimum notional."""
    rule = ALPACA.rule(ticker)
    least, step = memory.rules.get(ticker, (rule.min_order_qty, rule.qty_increment))
    whole = float(rounded_down(qty, step))
    return whole > 0 and whole >= least
