"""How a trader trades, and what the program around it wants to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from paper_trading.feeds import Tick
from paper_trading.risk import Limits
from train.deploy.loading import Deployment


@dataclass(frozen=True)
class Settings:
    """How a trader trades.

    Attributes:
        limits: that every order passes.
        latest_s: a bar that arrives so many seconds after its close is not traded on; None for a replay.
        capital: quote that is traded with; None is all cash of the account.
        sends_at_once: send at the bar of the decision, not at the next one as the simulator does.
        n_steps: bars of a replay; only `observe_account` shows it.
    """

    limits: Limits = field(default_factory=Limits)
    latest_s: float | None = None
    capital: Decimal | None = None
    sends_at_once: bool = False
    n_steps: int | None = None


@dataclass(frozen=True)
class Hooks:
    """What the program around a trader wants to know and to say.

    Attributes:
        renewed: the deployment to take over, or None where nothing has changed.
        must_halt: why the user wants a halt; None where nobody does.
        tick: called every second while the trader waits.
        told: a state or deployment changed; one line.
    """

    renewed: Callable[[str], Deployment | None] = lambda _: None
    must_halt: Callable[[], str | None] = lambda: None
    tick: Tick = lambda: None
    told: Callable[[str], None] = lambda _: None
