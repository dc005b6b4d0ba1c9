"""Settings of a trader, and its callbacks to the surrounding program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from paper_trading.feeds import Tick
from paper_trading.risk import Limits
from train.deploy.loading import Deployment


@dataclass(frozen=True)
class Settings:
    """Settings of a trader.

    Attributes:
        limits: limits against which every order is checked.
        latest_s: maximum delay of a bar in seconds; later bars are not traded. None for a replay.
        capital: cash to trade with, in quote currency; None uses all the account's cash.
        sends_at_once: True to send orders at the bar of the decision; the simulator sends them at the next bar.
        n_steps: number of bars of a replay, used only by `observe_account`.
    """

    limits: Limits = field(default_factory=Limits)
    latest_s: float | None = None
    capital: Decimal | None = None
    sends_at_once: bool = False
    n_steps: int | None = None


@dataclass(frozen=True)
class Hooks:
    """Callbacks from a trader to the surrounding program.

    Attributes:
        renewed: returns a new deployment, or None if the deployment has not changed.
        must_halt: returns the reason for a halt requested by the user, or None.
        tick: called every second while the trader waits.
        told: receives one line when the state or the deployment changes.
    """

    renewed: Callable[[str], Deployment | None] = lambda _: None
    must_halt: Callable[[], str | None] = lambda: None
    tick: Tick = lambda: None
    told: Callable[[str], None] = lambda _: None
