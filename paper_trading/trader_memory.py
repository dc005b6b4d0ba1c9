"""State that a restarted trader restores from its journal: account, open orders and permissions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from paper_trading.books import Theirs
from paper_trading.desk import Desk
from paper_trading.journal import Event
from paper_trading.ledger import Ledger
from paper_trading.risk import DAY_S, State, Used


@dataclass
class Memory:
    """State of the trader after the last event of its journal."""

    begun: bool = False
    deployment: str | None = None
    capital: Decimal | None = None  # initial capital; None: all cash, or not started yet
    ledger: Ledger | None = None
    checkpoint: Mapping[str, Any] | None = None  # of the last decision
    decided_s: int | None = None  # bar of the last decision
    ordered_s: int | None = None  # last bar with recorded orders
    state: State = "ACTIVE"
    why: str = ""
    resumed: bool = False  # since the last decision
    fees: float = 0.0  # fees paid so far, quote
    fees_spared: float = 0.0  # expected minus paid fees so far, quote
    known_s: float | None = None  # time of the last reconciliation, UTC seconds
    rules: dict[str, tuple[float, float]] = field(default_factory=dict)  # ticker -> (minimum order, increment), coins
    theirs: dict[str, Theirs] = field(default_factory=dict)  # foreign orders that the ledger includes


def recall(events: Iterable[Event], desk: Desk, used: Used) -> Memory:
    """Restore the state from a journal, including the open orders in `desk` and the used limits in `used`."""
    memory = Memory()
    for event in events:
        desk.remember(event)
        _remember(memory, event, used)
    return memory


def _remember(memory: Memory, event: Event, used: Used) -> None:
    kind = event["event"]
    if kind == "start":
        if not memory.begun and event.get("capital") is not None:
            memory.capital = Decimal(event["capital"])
        memory.begun, memory.deployment = True, event["deployment"]
        _remember_rules(memory, event)
    elif kind == "rules":
        _remember_rules(memory, event)
    elif kind == "deployment" and "to" in event:
        memory.deployment = event["to"]
    elif kind == "intents":
        memory.ordered_s = event["bar_s"]
        for order in event["orders"]:
            if event["bar_s"] // DAY_S != used.day:
                used.begin_bar(event["bar_s"])
            used.add(float(order["qty"]) * order["price"])
    elif kind == "order":
        used.rejects = used.rejects + 1 if event["status"] in ("rejected", "refused") else 0
    elif kind == "account":
        _remember_account(memory, event)
    elif kind == "decision":
        memory.checkpoint, memory.decided_s, memory.fees = event["checkpoint"], event["bar_s"], event["fees"]
        memory.fees_spared = event.get("fees_spared", 0.0)
        memory.resumed = False
    elif kind == "state":
        memory.state, memory.why, memory.resumed = event["to"], event["why"], event["to"] == "ACTIVE"


def _remember_rules(memory: Memory, event: Event) -> None:
    memory.rules |= {ticker: (least, step) for ticker, (least, step) in event.get("rules", {}).items()}


def _remember_account(memory: Memory, event: Event) -> None:
    memory.ledger, memory.known_s = Ledger.from_json(event), event.get("known_s")
    memory.theirs |= {name: Theirs.from_json(values) for name, values in event.get("theirs", {}).items()}
    if memory.checkpoint is not None:  # the next decision records the new total
        paid = value_of_fees(event, memory.checkpoint["prices"])
        memory.fees += paid
        memory.fees_spared += float(event.get("fee_expected", paid)) - paid
    if not event["explained"] and memory.state == "ACTIVE":  # killed before it wrote the state event
        memory.state, memory.why = "REDUCING", f"the account is not explained: {'; '.join(event['notes'])}"


def value_of_fees(event: Event, prices: Mapping[str, float]) -> float:
    """Return the fees of an `account` event in quote currency, with coins valued at these prices."""
    coins = sum(float(fee) * prices.get(ticker, 0.0) for ticker, fee in event["fee_qty"].items())
    return float(event["fee_cash"]) + coins
