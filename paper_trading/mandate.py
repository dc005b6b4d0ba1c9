"""State of the trader: ACTIVE trades, REDUCING only sells, HALTED sends nothing.

A limit or a fault changes the state to a more restrictive one. Only a person can change it back. The state is stored
in the journal.
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
    """The trader's state, and the account limits that change it.

    After a person returns the trader to ACTIVE, drawdown and drift are measured from that moment.

    Args:
        journal: records every change.
        limits: limits on drawdown and drift.
        told: function that receives one line at every change.
        memory: state of an earlier run.
    """

    def __init__(self, journal: Journal, limits: Limits, told: Callable[[str], None], memory: Memory) -> None:
        self.journal, self.limits, self.told = journal, limits, told
        self.state: State = memory.state
        self.why = memory.why
        self.counts_anew = memory.resumed
        self.peak: float | None = None  # quote, since a person returned it to ACTIVE; None: the account's own peak
        self.base = 1.0  # our equity / the simulator's equity at that moment

    def change(self, state: State, why: str) -> None:
        """Change to a more restrictive state; any other change is ignored."""
        order = ("ACTIVE", "REDUCING", "HALTED")
        if order.index(state) <= order.index(self.state):
            return
        log.warning("%s -> %s: %s", self.state, state, why)
        self.journal.append("state", **{"from": self.state, "to": state, "why": why})
        self.state, self.why = state, why
        self.told(f"{state}: {why}")

    def resume(self, why: str) -> None:
        """Return to ACTIVE at the user's request."""
        if self.state != "ACTIVE":
            self.journal.append("state", **{"from": self.state, "to": "ACTIVE", "why": why})
            self.state, self.why, self.counts_anew = "ACTIVE", "", True

    def hold(self, bar_s: int, account: Account, simulated_equity: float, fees_spared: float) -> None:
        """Check the limits on drawdown and drift.

        A venue may charge less than the expected fees, as paper venues do. The fees saved in this way are not treated
        as drift.
        """
        beside, limits = (account.equity - max(fees_spared, 0.0)) / simulated_equity, self.limits
        if self.counts_anew:
            self.counts_anew, self.peak, self.base = False, account.equity, beside
        elif self.peak is not None:
            self.peak = max(self.peak, account.equity)
        drawdown = 1.0 - account.equity / (self.peak or account.peak)
        if drawdown > limits.max_drawdown:
            self.change("HALTED", f"the drawdown of {drawdown:.1%} exceeds --max-drawdown")
        ratio = beside / self.base - 1.0
        if abs(ratio) > limits.max_drift and self.state == "ACTIVE":
            self.journal.append("drift", bar_s=bar_s, ratio=ratio, bound=limits.max_drift)
            self.change("REDUCING", f"the difference of {ratio:+.1%} from the simulator exceeds --max-drift")
