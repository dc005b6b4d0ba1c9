"""The trading program, from the command line to its exit code."""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from market.errors import UserError
from paper_trading import flatten as kill_switch
from paper_trading.broker import UnreachableError
from paper_trading.desk import Desk
from paper_trading.feeds import Tick
from paper_trading.journal import FILE, Journal, JournalError, lines
from paper_trading.ledger import adopt, open_ledger
from paper_trading.presence import Heartbeat, sole_trader
from paper_trading.risk import DAY_S, Used
from paper_trading.stages import Request, Stage, alpaca_stage, deployed, replay_stage
from paper_trading.trader import Hooks, Settings, Trader
from paper_trading.trader_memory import Memory, recall
from train.deploy.loading import CURRENT, Deployment, DeploymentError, pointer_target
from train.env_factory import rules_of
from train.records.provenance import code_version
from train.study.interruption import Interrupted, Interruption

log = logging.getLogger(__name__)

ENDED, HALTED = 0, 5  # exit codes, in addition to those of every program
HALT_FILE, PREVIOUS = "HALT", "journal.previous.jsonl"
ALERT_TIMEOUT_S = 10.0


WritePage = Callable[[Path, date | None], Path]


def trade(request: Request, write_page: WritePage | None = None) -> int:
    """Run the trader and return its exit code. `write_page` writes the page of a day, or of the last bar for None."""
    # A flatten signal must not terminate the process before the account exists or after trading has ended.
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            return Program(request, interruption, write_page).run()
    finally:
        signal.signal(signal.SIGUSR1, before)


class Program:
    """One run of the trader."""

    def __init__(self, request: Request, interruption: Interruption, write_page: WritePage | None = None) -> None:
        self.request, self.interruption, self._write_page = request, interruption, write_page
        self.must_flatten, self._flattened_s, self._flatten_left = False, 0.0, ""
        self.trader: Trader | None = None
        self.heartbeat: Heartbeat | None = None
        self._refused, self._replayed_s = "", 0.0
        self._folder = Path()
        self._drawn_day: int | None = None

    def run(self) -> int:
        """Trade and return the exit code.

        Raises:
            UserError: if the trader cannot start.
            UnreachableError: if the venue does not respond.
            OSError: if the journal cannot be written.
        """
        request = self.request
        deployment = deployed(request)
        make = replay_stage if request.broker == "replay" else alpaca_stage
        stage = make(request, deployment, self.sleep)
        folder = request.trading / stage.broker.account
        folder.mkdir(parents=True, exist_ok=True)
        with sole_trader(stage.broker.account, folder):
            is_replay = request.broker == "replay"
            path = _journal_path(folder, is_replay, request.adopts)
            return self._trade(deployment, stage, folder, Journal(path, is_durable=not is_replay))

    def _trade(self, deployment: Deployment, stage: Stage, folder: Path, journal: Journal) -> int:
        request, used, self._folder = self.request, Used(), folder
        desk = Desk(stage.broker, journal, self._clock(stage), self._pause, request.order_timeout_s)
        desk.must_stop = self._must_stop
        memory = recall(lines(journal.path), desk, used)
        if request.capital is not None and memory.begun and request.capital != memory.capital:
            began = "all its cash" if memory.capital is None else f"--capital {memory.capital}"
            raise UserError(f"--capital {request.capital}: according to its journal, this account started with {began}")
        if request.adopts:
            take_for_ours(desk, memory, request.capital)
        latest_s = None if request.broker == "replay" else min(deployment.bar_seconds / 2, request.bar_timeout_s + 15.0)
        capital = memory.capital if request.capital is None else request.capital
        settings = Settings(request.limits, latest_s, capital, request.sends_at_once, stage.n_steps)
        hooks = Hooks(self._renewed, lambda: self._must_halt(folder), self._tick, self._tell)
        trader = Trader(deployment, stage.broker, stage.feed, journal, desk, memory, used, settings, hooks)
        self.trader = trader
        journal.append("start", **start_event(trader, stage, request))
        if request.resumes or request.adopts:
            trader.resume("the user said --adopt" if request.adopts else "the user said --resume")
        self.heartbeat = Heartbeat(folder, _status(deployment, stage))
        try:
            code, why = self._run(trader)
        finally:
            self._beat(now=True)
        journal.append("stop", why=why, code=code)
        log.info("%s; journal: %s", why, journal.path)
        _log_result(trader)
        self._draw_page(folder)
        return code

    def _run(self, trader: Trader) -> tuple[int, str]:
        signal.signal(signal.SIGUSR1, self._on_flatten)
        try:
            trader.run(self.request.once)
        except Interrupted as stopped:
            trader.phase = "ended"
            goes_on = "positions are kept, and the same command resumes trading"
            what = "the same command restarts the replay" if self.request.broker == "replay" else goes_on
            return 128 + stopped.signal_number, f"stopped by {stopped}; {what}"
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        if trader.state == "HALTED":
            return HALTED, f"HALTED: {trader.why}"
        return ENDED, "one bar traded" if self.request.once else "replay finished"

    # ---------------------------------------------------------------- waiting
    def sleep(self, seconds: float, tick: Tick) -> None:
        """Wait and call `tick` every second. A signal ends the wait."""
        end = time.monotonic() + seconds
        while True:
            tick()
            left = end - time.monotonic()
            if left <= 0:
                return
            with self.interruption.interruptible():
                time.sleep(min(left, 1.0))

    def _pause(self, seconds: float) -> None:
        """Wait for an order, regardless of signals. In a replay, only the simulated time advances."""
        self._beat()
        if self.request.broker == "replay":
            self._replayed_s += seconds
        else:
            time.sleep(seconds)

    def _must_stop(self) -> str | None:
        """Return the reason why no further order may be sent, or None."""
        if self.must_flatten:
            return "the user said --flatten"
        if self.interruption.received is not None:
            return "the trader is being stopped"
        return self._must_halt(self._folder)

    def _clock(self, stage: Stage) -> Callable[[], float]:
        return (lambda: time.time() + self._replayed_s) if self.request.broker == "replay" else stage.clock.now_s

    def _tick(self) -> None:
        self.interruption.check()
        if self.must_flatten and self.trader is not None:
            self.must_flatten = False
            self._flatten(self.trader)
        self._beat()
        self._end_of_day()

    def _end_of_day(self) -> None:
        """Write a live trader's page after the last bar of a UTC day. A replay writes its page at the end."""
        if self.trader is None or self.trader.bar_s is None or self.request.broker == "replay":
            return
        day = self.trader.bar_s // DAY_S
        if self._drawn_day is not None and day > self._drawn_day:
            self._draw_page(self._folder, datetime.fromtimestamp(self._drawn_day * DAY_S, UTC).date())
        self._drawn_day = day

    def _beat(self, now: bool = False) -> None:
        if self.heartbeat is not None and self.trader is not None:
            trader = self.trader
            self.heartbeat.beat(
                {"state": trader.state, "why": trader.why, "phase": trader.phase, "deployment": trader.deployment.name,
                 "bar_s": trader.bar_s, "proven": trader.deployment.proven,
                 "synthetic": trader.deployment.synthetic, "flattened_s": self._flattened_s,
                 "flatten_left": self._flatten_left}, now,
            )  # fmt: skip

    # ---------------------------------------------------------------- callbacks of the trader
    def _renewed(self, present: str) -> Deployment | None:
        """Return a new deployment if there is one that this trader can switch to, or None."""
        try:
            name = pointer_target(self.request.deployments / CURRENT)
            if name is None or name in (present, self._refused):
                return None
            assert self.trader is not None
            now = self.trader.deployment
            fits = {"tickers": now.tickers, "bar_seconds": now.bar_seconds}
            if self.request.broker == "replay":
                fits["feature_names"] = now.feature_names
            found = deployed(self.request, **fits)
        except DeploymentError as error:
            self._refused = name if (name := _name_or_none(self.request.deployments)) is not None else ""
            log.warning("the new deployment is not used: %s", error)
            if self.trader is not None:
                self.trader.journal.append(
                    "deployment", **{"from": present, "refused": self._refused, "why": str(error)}
                )
            return None
        return None if found.name == present else found

    def _must_halt(self, folder: Path) -> str | None:
        return f"the file {folder / HALT_FILE} exists" if (folder / HALT_FILE).exists() else None

    def _tell(self, text: str) -> None:
        """Write the heartbeat immediately, and run the alert command with this line in the background."""
        self._beat(now=True)
        if self.request.alert_command is not None:
            command = [*shlex.split(self.request.alert_command), text]
            threading.Thread(target=_run_alert, args=(command,), daemon=True).start()

    def _on_flatten(self, *_: object) -> None:
        self.must_flatten = True

    def _flatten(self, trader: Trader) -> None:
        """Sell our coins. If some could not be sold, the next tick retries."""
        trader.change_state("HALTED", "the user said --flatten")
        self._flatten_left, bar_s = "unknown", trader.bar_s or 0
        if trader.reconcile(bar_s) and trader.ledger is not None:
            try:
                kill_switch.flatten(trader.desk, trader.ledger.qty, trader.last_prices, trader.deployment.name)
                trader.reconcile(bar_s)
                left = kill_switch.left_over(trader.broker, trader.ledger.qty)
                self._flatten_left = kill_switch.listed(left)
            except UnreachableError as error:
                log.warning("some coins may not be sold yet: %s", error)
        self.must_flatten = bool(self._flatten_left)
        if not self.must_flatten:
            self._flattened_s = time.time()
        self._beat(now=True)

    def _draw_page(self, folder: Path, day: date | None = None) -> None:
        """Write the page of a day, or of the last bar for None. Errors are logged and do not affect trading."""
        if self._write_page is None or self.trader is None or self.trader.bar_s is None:
            return
        try:
            log.info("page: %s", self._write_page(folder, day))
        except (OSError, UserError) as error:
            log.warning("cannot write the daily page: %s", error)


def _log_result(trader: Trader) -> None:
    if trader.account is None or trader.shadow is None:
        return
    acct, capital = trader.account.account, trader.account.initial_capital
    gains = [value / capital - 1.0 for value in (acct.equity, trader.shadow.account.account.equity, acct.benchmark)]
    log.info("return %+.2f%% (simulator %+.2f%%, equal weight %+.2f%%), fees %.2f USD, max drawdown %.2f%%",
             *(100.0 * gain for gain in gains), trader.fees, 100.0 * acct.max_drawdown)  # fmt: skip


def _run_alert(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, timeout=ALERT_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("--alert-command failed: %s", error)


def _name_or_none(deployments: Path) -> str | None:
    try:
        return pointer_target(deployments / CURRENT)
    except DeploymentError:
        return None


def _journal_path(folder: Path, is_replay: bool, adopts: bool) -> Path:
    """Return the path of the journal. A replay begins a new journal, as does --adopt if the journal is damaged."""
    path = folder / FILE
    if is_replay and path.exists():
        path.replace(folder / PREVIOUS)
    elif adopts:
        try:
            for _ in lines(path):
                pass
        except JournalError as error:
            aside = folder / f"journal.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl"
            log.warning("%s; the damaged journal is kept as %s", error, aside)
            path.replace(aside)
    return path


def take_for_ours(desk: Desk, memory: Memory, capital: Decimal | None = None) -> None:
    """Adopt the cash and coins in the account as ours, including all fills so far.

    Raises:
        UnreachableError: if the venue does not respond.
    """
    desk.look_up_open()
    snapshot = desk.broker.snapshot()
    memory.ledger, memory.known_s = adopt(memory.ledger or open_ledger(snapshot, capital), snapshot), None
    desk.count()
    desk.journal.append("account", bar_s=None, **memory.ledger.to_json(), fee_cash="0", fee_qty={}, explained=True,
                   notes=["adopted by --adopt: these coins belong to the trader from now on"])  # fmt: skip


def start_event(trader: Trader, stage: Stage, request: Request) -> dict[str, Any]:
    """Return the content of the `start` event, which readers need to interpret later events."""
    deployment, memory = trader.deployment, trader.memory
    rules, facts = rules_of(deployment.env_params), deployment.facts
    sizes = {ticker: [rule.min_order_qty, rule.qty_increment] for ticker, rule in trader.rules.items()}
    return {
        "mode": stage.broker.mode, "account": stage.broker.account, "broker": request.broker,
        "deployment": deployment.name, "study": facts.study, "trial": facts.trial, "tickers": list(deployment.tickers),
        "bar_seconds": deployment.bar_seconds, "lookback": rules.lookback, "env_params": deployment.env_params,
        "limits": request.limits.to_json(), "fee_rates": {"buy": rules.buy_fee_rate, "sell": rules.sell_fee_rate},
        "slippage_rate": rules.slippage_rate, "capital": None if request.capital is None else str(request.capital),
        "synthetic": deployment.synthetic, "proven": deployment.proven, "in_sample": stage.in_sample,
        "data_sha256": stage.data_sha256, "code_version": code_version(), "band": deployment.policy.head == "band",
        "resumed": memory.begun, "faults": list(request.faults), "seed": request.seed,
        "sends_at_once": request.sends_at_once, "feature_set": facts.feature_set,
        "feature_names": list(facts.feature_names), "n_steps": stage.n_steps,
        "rules": sizes,
    }  # fmt: skip


def _status(deployment: Deployment, stage: Stage) -> dict[str, Any]:
    return {
        "mode": stage.broker.mode, "account": stage.broker.account, "in_sample": stage.in_sample, "journal": FILE,
        "bar_seconds": deployment.bar_seconds,
    }  # fmt: skip
