"""The --flatten and --verify commands: the kill switch and the offline replay of a journal."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

from market.defaults import KEY_VARIABLES
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
    """Replay a live journal offline and return the exit code and the message.

    Raises:
        UserError: if a recomputed decision or order differs; the message names the first difference.
    """
    if not journal.is_file():
        raise UserError(f"{journal}: the journal does not exist")
    done = verify(journal, deployments)
    gone = f"; skipped {done.skipped} decisions of removed deployments" if done.skipped else ""
    return ENDED, f"{journal}: recomputed {done.decisions} decisions and {done.orders} orders, no difference{gone}"


def flatten_now(request: Request) -> tuple[int, str]:
    """Cancel our orders and sell our coins, through the running trader or directly.

    Raises:
        UserError: if the venue cannot be used, or if keys are missing.
        UnreachableError: if the venue does not respond.
    """
    running = [folder for folder in folders(request.trading) if trader_pid(folder) is not None]
    mine = [folder for folder in running if _is_meant(folder, request)]
    texts, codes = [], [ENDED]
    for folder in mine:
        left = _flattened_by_trader(folder)
        if left is None and not folder.name.startswith("replay"):
            break  # the trader did not respond and was stopped: sell directly
        if left is None:
            codes.append(FAULT)
            texts.append(f"{folder.name}: the trader did not respond and was stopped; a replay's account ends with it")
            continue
        codes.append(FAULT if left else ENDED)
        what = f"could not sell {left} yet, keeps trying" if left else "has sold its coins"
        texts.append(f"{folder.name}: the trader {what} and is HALTED")
    else:
        if mine:
            return max(codes), "\n".join(texts)
    if request.broker == "alpaca":
        return _flatten_without_trader(request)
    _refuse_what_needs_keys(request)
    return ENDED, "API keys are not set, so no Alpaca account was checked; a replay's account ends with its trader"


def _is_meant(folder: Path, request: Request) -> bool:
    """Return True if a running trader uses the account that the flags select. Without --broker, all are selected."""
    if request.broker == "alpaca":
        return folder.name.startswith("live-" if request.live_url is not None else "paper-")
    return folder.name.startswith("replay") if request.names_broker else True


def _refuse_what_needs_keys(request: Request) -> None:
    """Raise UserError if an Alpaca account may hold our coins, because selling them requires keys."""
    for folder in folders(request.trading):
        if folder.name.startswith("replay") or request.names_broker:
            continue
        known = kill_switch.owned_by_journal(folder / FILE)
        if known is None or any(known[0].values()):
            raise UserError(f"{folder.name} may hold coins of the trader, which is not running: set "
                            f"{KEY_VARIABLES[0][0]} and {KEY_VARIABLES[0][1]}, then run the command again")  # fmt: skip


def _flattened_by_trader(folder: Path) -> str | None:
    """Return the coins that the running trader could not sell, or None if it did not respond and was stopped."""
    pid = trader_pid(folder)
    assert pid is not None
    asked_s, end, left = time.time(), time.monotonic() + STOP_WAIT_S, ""
    os.kill(pid, signal.SIGUSR1)
    log.info("told the trader (pid %d) to sell; if it does not respond within %.0f s, this command sells directly",
             pid, STOP_WAIT_S)  # fmt: skip
    while time.monotonic() < end and trader_pid(folder) == pid:
        found = read_status(folder) or {}
        if float(found.get("flattened_s") or 0.0) >= asked_s:
            return ""
        left = str(found.get("flatten_left") or "")
        time.sleep(0.2)
    if left and trader_pid(folder) == pid:
        return left
    log.warning("the trader (pid %d) does not respond; stopping it", pid)
    if ask(folder, signal.SIGTERM, STOP_WAIT_S) is False:
        os.kill(pid, signal.SIGKILL)
    return None


def _flatten_without_trader(request: Request) -> tuple[int, str]:
    clock, is_live = VenueClock(), request.live_url is not None
    url, keys = request.live_url or request.paper_url, keys_of(os.environ)
    account = AlpacaBroker(keys, (), url, request.data_url, is_live, clock).account
    folder = request.trading / account
    known = kill_switch.owned_by_journal(folder / FILE)
    tickers = known[1] if known is not None else _tickers_of_orders(request, clock)
    broker = AlpacaBroker(keys, tickers, url, request.data_url, is_live, clock)
    folder.mkdir(parents=True, exist_ok=True)
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
        left = kill_switch.flatten_until_sold(desk, owned, f"flatten {account}", STOP_WAIT_S)
        journal.append("state", **{"from": "ACTIVE", "to": "HALTED", "why": "the user said --flatten"})
    if left:
        return FAULT, f"{account}: could not sell {kill_switch.listed(left)}; check the account"
    return ENDED, f"{account}: all coins of the trader are sold"


def _tickers_of_orders(request: Request, clock: VenueClock) -> tuple[str, ...]:
    """Return the coins of all orders sent by a barwise trader."""
    url = request.live_url or request.paper_url
    broker = AlpacaBroker(keys_of(os.environ), (), url, request.data_url, request.live_url is not None, clock)
    return tuple(sorted({order.symbol.partition("/")[0] for order in broker.orders_after(0.0) if order.is_ours}))
