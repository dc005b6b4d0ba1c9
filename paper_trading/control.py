"""The kill switch as a command, and a journal replayed offline."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from market.errors import UserError
from market.sources.assets import keys_of
from paper_trading import flatten as kill_switch
from paper_trading.alpaca_venue import AlpacaBroker, VenueClock
from paper_trading.desk import Desk
from paper_trading.journal import FILE, Journal, JournalError
from paper_trading.presence import STOP_WAIT_S, ask, folders, read_status, sole_trader, trader_pid
from paper_trading.stages import Request
from paper_trading.verify import verify

log = logging.getLogger(__name__)

ENDED, FAULT = 0, 1  # exit codes


def verified(journal: Path, deployments: Path) -> tuple[int, str]:
    """Replay a live journal offline.

    Raises:
        UserError: the first difference.
    """
    if not journal.is_file():
        raise UserError(f"{journal}: no such journal")
    done = verify(journal, deployments)
    gone = f"; {done.skipped} decisions of deployments that are gone were left out" if done.skipped else ""
    return ENDED, f"{journal}: {done.decisions} decisions and {done.orders} orders are the same when made again{gone}"


def flatten_now(request: Request) -> tuple[int, str]:
    """Cancel our orders and sell our coins: by the running trader, or without one.

    Raises:
        UserError, UnreachableError: the venue cannot be used.
    """
    for folder in folders(request.trading):
        if trader_pid(folder) is not None and _flattened_by_trader(folder):
            return ENDED, f"{folder.name}: the trader has sold its coins and is HALTED"
    if request.broker == "replay":
        return ENDED, "a replay's account ends with it; there is nothing to sell"
    return _flatten_without_trader(request)


def _flattened_by_trader(folder: Path) -> bool:
    """Whether the running trader did it in time; one that does not is stopped."""
    pid = trader_pid(folder)
    assert pid is not None
    asked_s, end = time.time(), time.monotonic() + STOP_WAIT_S
    os.kill(pid, signal.SIGUSR1)
    while time.monotonic() < end and trader_pid(folder) == pid:
        found = read_status(folder) or {}
        if float(found.get("flattened_s") or 0.0) >= asked_s:
            return True
        time.sleep(0.2)
    log.warning("the trader (pid %d) does not answer; it is stopped", pid)
    if ask(folder, signal.SIGTERM, STOP_WAIT_S) is False:
        os.kill(pid, signal.SIGKILL)
    return False


def _flatten_without_trader(request: Request) -> tuple[int, str]:
    clock, is_live = VenueClock(), request.live_url is not None
    url, keys = request.live_url or request.paper_url, keys_of(os.environ)
    account = AlpacaBroker(keys, (), url, request.data_url, is_live, clock).account
    folder = request.trading / account
    known = kill_switch.owned_by_journal(folder / FILE)
    tickers = known[1] if known is not None else _tickers_of_orders(request, clock)
    broker = AlpacaBroker(keys, tickers, url, request.data_url, is_live, clock)
    with sole_trader(account, folder):
        journal: Any = kill_switch.NoJournal()
        if known is not None:
            try:
                journal = kill_switch.KeepGoingJournal(Journal(folder / FILE))
            except (OSError, JournalError) as error:
                log.warning("the journal cannot be used: %s", error)
        desk = Desk(broker, journal, clock.now_s, time.sleep, request.order_timeout_s)
        if known is not None:
            owned = kill_switch.with_open_orders(desk, folder / FILE, known[0])
        else:
            owned = kill_switch.owned_by_orders(broker, tickers)
        batch = kill_switch.flatten(desk, owned, {}, f"flatten {account}")
        is_sold = kill_switch.wait_until_sold(desk, batch, STOP_WAIT_S)
        journal.append("state", **{"from": "ACTIVE", "to": "HALTED", "why": "the user said --flatten"})
    if is_sold:
        return ENDED, f"{account}: {len(batch)} positions sold"
    return FAULT, f"{account}: not everything is sold; look at the account"


def _tickers_of_orders(request: Request, clock: VenueClock) -> tuple[str, ...]:
    """Coins of the orders that bear our mark."""
    url = request.live_url or request.paper_url
    broker = AlpacaBroker(keys_of(os.environ), (), url, request.data_url, request.live_url is not None, clock)
    return tuple(sorted({order.symbol.partition("/")[0] for order in broker.orders_after(0.0) if order.is_ours}))
