"""What the trader may do: ACTIVE trades, REDUCING only sells, HALTED sends nothing.

A limit or a fault leads to a state that allows less, and only a person leads back. The state is in the journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from environment_Alpaca import Account
from paper_trading.journal import Journal
from paper_trading.risk import Limits, State
from paper_trading.trader_memory import Memory

log = logging.getLogger(__name__)


class Mandate:
    """The state, and the limits on the whole account that change it.

    A person who lifts a state accepts what was lost until then: drawdown and drift count from there on.

    Args:
        journal: every change goes there.
        limits: drawdown, drift.
        told: gets one line at every change.
        memory: the state of an earlier run.
    """

    def __init__(self, journal: Journal, limits: Limits, told: Callable[[str], None], memory: Memory) -> None:
        self.journal, self.limits, self.told = journal, limits, told
        self.state: State = memory.state
        self.why = memory.why
        self.counts_anew = memory.resumed
        self.peak: float | None = None  # quote, since a person lifted a state; None: the account's own
        self.base = 1.0  # our equity / the simulator's, then

    def change(self, state: State, why: str) -> None:
        """Go to a state that allows less."""
        order = ("ACTIVE", "REDUCING", "HALTED")
        if order.index(state) <= order.index(self.state):
            return
        log.warning("%s -> %s: %s", self.state, state, why)
        self.journal.append("state", **{"from": self.state, "to": state, "why": why})
        self.state, self.why = state, why
        self.told(f"{state}: {why}")

    def resume(self, why: str) -> None:
        """ACTIVE again, because the user said so."""
        if self.state != "ACTIVE":
            self.journal.append("state", **{"from": self.state, "to": "ACTIVE", "why": why})
            self.state, self.why, self.counts_anew = "ACTIVE", "", True

    def hold(self, bar_s: int, account: Account, simulated_equity: float, fees_spared: float) -> None:
        """Hold the account against drawdown and drift.

        A venue that takes less than the expected fees, as paper venues may, makes the account better than the
        simulator's and nothing wrong with it: what was spared is no drift.
        """
        beside, limits = (account.equity - max(fees_spared, 0.0)) / simulated_equity, self.limits
        if self.counts_anew:
            self.counts_anew, self.peak, self.base = False, account.equity, beside
        elif self.peak is not None:
            self.peak = max(self.peak, account.equity)
        drawdown = 1.0 - account.equity / (self.peak or account.peak)
        if drawdown > limits.max_drawdown:
            self.change("HALTED", f"the account fell {drawdown:.1%} from its peak, beyond --max-drawdown")
        ratio = beside / self.base - 1.0
        if abs(ratio) > limits.max_drift and self.state == "ACTIVE":
            self.journal.append("drift", bar_s=bar_s, ratio=ratio, bound=limits.max_drift)
            self.change("REDUCING", f"the account is {ratio:+.1%} from the simulator's, beyond --max-drift")
