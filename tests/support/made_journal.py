"""Journals as the trader writes them, of bars and orders that a test names; with the simulator's account."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from paper_trading.journal import FILE, Journal
from train.store.worker_identity import start_ticks

FIRST_S = 1_764_460_800  # 2025-11-30 00:00 UTC
BAR_SECONDS = 300
LIMITS = {
    "max_order_weight": 0.5, "max_bar_turnover": 1.0, "max_day_turnover": 20.0, "max_position_weight": 0.8,
    "max_drawdown": 0.2, "max_rejects": 5, "max_price_move": 0.05, "max_drift": 0.02,
}  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """An order of the trader; the default fills whole at the simulator's price and fee."""

    ticker: str
    coins: float  # above 0 buy
    worse: float = 0.0  # fraction by which it fills worse than the simulator
    status: str = "filled"
    filled: float = 1.0  # share; 0 for what never filled
    mid: float | None = None  # as a multiple of the close
    sized: float | None = None
    fee_rate: float | None = None  # None: the simulator's
    reason: str = ""
    why: str = "policy"


class MadeTrader:
    """Writes a journal bar by bar. Both accounts begin with 10,000 USD."""

    def __init__(
        self, folder: Path, tickers: Sequence[str] = ("BTC",), fee: float = 0.0025, slippage: float = 0.0005,
        first_s: int = FIRST_S, **start: Any,
    ) -> None:  # fmt: skip
        self.folder, self.tickers, self.fee, self.slippage = folder, list(tickers), fee, slippage
        self.journal = Journal(folder / FILE, is_durable=False)
        n = len(tickers)
        self.cash = self.sim_cash = 10_000.0
        self.qty, self.sim_qty, self.benchmark_qty = np.zeros(n), np.zeros(n), None
        self.bar_s, self.n_sent, self.peak, self.fees = first_s, 0, 0.0, 0.0
        self.content = {
            "mode": "REPLAY", "account": folder.name, "broker": "replay", "deployment": "dep-1", "study": "s",
            "trial": 3, "tickers": self.tickers, "bar_seconds": BAR_SECONDS, "lookback": 10, "env_params": {},
            "limits": LIMITS, "fee_rates": {"buy": fee, "sell": fee}, "slippage_rate": slippage, "capital": "10000",
            "synthetic": False, "proven": True, "in_sample": False, "data_sha256": None, "code_version": "abc",
            "band": False, "resumed": False,
        } | start  # fmt: skip
        self.journal.append("start", **self.content)

    def bar(
        self, close: Sequence[float], sim: Mapping[str, float] | None = None, sent: Sequence[Sent] = (),
        state: str = "ACTIVE", notes: Sequence[str] = (), account: bool = True, skip: str = "", **decision: Any,
    ) -> None:  # fmt: skip
        """A bar at these closes: the simulator trades `sim` coins by ticker, the trader sends its orders."""
        price = np.asarray(close, dtype=float)
        j, at = self.journal, {"bar_s": self.bar_s}
        j.append("bar", **at, close=list(close), filled=[True] * len(price), late_s=None, notes=list(notes))
        for ticker, coins in (sim or {}).items():
            self._simulate(self.tickers.index(ticker), coins, price)
        fee = self._send(sent, price, at)
        self.fees += fee
        if sent and account:
            qty = dict(zip(self.tickers, map(repr, self.qty.tolist()), strict=True))
            j.append("account", **at, cash=repr(self.cash), qty=qty, fee_cash=repr(fee), fee_qty={},
                     foreign={"cash": "0", "qty": {}, "other": {}}, explained=True, notes=[])  # fmt: skip
        if skip:
            j.append("skip", **at, why=skip)
        if self.benchmark_qty is None:
            self.benchmark_qty = 10_000.0 / len(price) / price
        equity = self.cash + float(self.qty @ price)
        self.peak = max(self.peak, equity)
        weights = (self.qty * price / equity).tolist()
        said = {
            "observation_sha256": "0" * 64, "action": [0.0] * len(price), "target": weights, "lo": None, "hi": None,
            "weights": weights, "equity": equity, "cash": self.cash, "qty": self.qty.tolist(),
            "benchmark": float(self.benchmark_qty @ price), "sim_equity": self.sim_cash + float(self.sim_qty @ price),
            "sim_qty": self.sim_qty.tolist(), "peak": self.peak, "drawdown": 1.0 - equity / self.peak,
            "fees": self.fees, "state": state, "elapsed_ms": 3.0, "checkpoint": {},
        } | decision  # fmt: skip
        j.append("decision", **at, **said)
        self.bar_s += BAR_SECONDS

    def refuse(self, ticker: str, why: str) -> None:
        """An order that a limit stops; nothing but its end is written."""
        self.journal.append("order", id=f"barwise-r{self.n_sent}", ticker=ticker, side="buy", status="refused",
                            filled_qty="0", price=None, reason=why, mid=None, took_s=0.0)  # fmt: skip
        self.n_sent += 1

    def _simulate(self, i: int, coins: float, price: np.ndarray) -> None:
        sign = 1 if coins > 0 else -1
        fill = float(price[i]) * (1.0 + sign * self.slippage)
        self.sim_cash -= coins * fill + abs(coins) * fill * self.fee
        self.sim_qty[i] += coins

    def _send(self, sent: Sequence[Sent], price: np.ndarray, at: Mapping[str, int]) -> float:
        """Intents, then how each ended; returns the fees."""
        if not sent:
            return 0.0
        ids = [f"barwise-{self.n_sent + i:032x}" for i in range(len(sent))]
        self.n_sent += len(sent)
        self.journal.append("intents", **at, phase="buys", orders=[
            {"id": id_, "ticker": o.ticker, "side": "buy" if o.coins > 0 else "sell", "qty": repr(abs(o.coins)),
             "price": float(price[self.tickers.index(o.ticker)]), "why": o.why, "sized": abs(o.sized or o.coins)}
            for id_, o in zip(ids, sent, strict=True)
        ])  # fmt: skip
        fees = 0.0
        for id_, o in zip(ids, sent, strict=True):
            i, sign = self.tickers.index(o.ticker), (1 if o.coins > 0 else -1)
            share = o.filled if o.status in ("filled", "partial") else 0.0
            coins, fill = o.coins * share, float(price[i]) * (1.0 + sign * self.slippage) * (1.0 + sign * o.worse)
            fee = abs(coins) * fill * (self.fee if o.fee_rate is None else o.fee_rate)
            fees += fee
            self.cash -= coins * fill + fee
            self.qty[i] += coins
            self.journal.append(
                "order", id=id_, ticker=o.ticker, side="buy" if sign > 0 else "sell", status=o.status,
                filled_qty=repr(abs(coins)), price=repr(float(fill)) if share else None, reason=o.reason,
                mid=None if o.mid is None else repr(float(price[i] * o.mid)), took_s=0.1,
            )  # fmt: skip
        return fees

    def status(self, **changes: Any) -> None:
        """A heartbeat of this process, now."""
        said = {
            "mode": self.content["mode"], "account": self.folder.name, "pid": os.getpid(),
            "start_ticks": start_ticks(os.getpid()), "utc": datetime.now(UTC).isoformat(), "state": "ACTIVE", "why": "",
            "phase": "trading", "deployment": "dep-1", "in_sample": self.content["in_sample"],
            "synthetic": self.content["synthetic"], "proven": self.content["proven"],
            "bar_s": self.bar_s - BAR_SECONDS, "next_bar_s": self.bar_s, "bar_seconds": BAR_SECONDS,
            "journal": FILE,
        } | changes  # fmt: skip
        (self.folder / "status.json").write_text(json.dumps(said))


def made_days(folder: Path, n_bars: int = 600, seed: int = 1, **start: Any) -> MadeTrader:
    """Some days of three coins with a little of everything: rejects, partial fills, gaps, strangers, a takeover."""
    random = np.random.default_rng(seed)
    trader = MadeTrader(folder, ("BTC", "ETH", "SOL"), band=True, **start)
    price = np.array([60_000.0, 3_000.0, 150.0])
    for t in range(n_bars):
        price = price * np.exp(random.normal(0.00005, 0.002, 3))
        sent, sim = [], {}
        if t % 7 == 3:
            i = int(random.integers(3))
            buys = trader.qty[i] * price[i] < 2_500.0
            coins = float(round((1.0 if buys else -1.0) * 800.0 / price[i], 6))
            status = {0: "rejected", 1: "partial"}.get(int(random.integers(12)), "filled")
            ticker = trader.tickers[i]
            reason = "insufficient balance" if status == "rejected" else ""
            sent = [Sent(ticker, coins, random.normal(0.0002, 0.0003), status, 0.6 if status == "partial" else 1.0,
                         1.0 + random.normal(0.0, 0.0003), reason=reason)]  # fmt: skip
            sim = {ticker: coins}
        band = trader.qty * price / (trader.cash + trader.qty @ price)
        trader.bar([round(float(p), 2) for p in price], sim, sent, action=random.normal(0, 0.3, 3).tolist(),
                   lo=(band * 0.8).tolist(), hi=(band * 1.2 + 0.02).tolist(),
                   skip="the bar came 75 s after its close, more than 60 s" if t % 150 == 60 else "")  # fmt: skip
        trader.bar_s += BAR_SECONDS * 4 * (t % 211 == 100)
    trader.journal.append("foreign", what="coin", text="5 XRP in the account are not ours; they are left alone")
    trader.journal.append("deployment", **{"from": "dep-1", "to": "dep-2", "bar_s": trader.bar_s})
    trader.journal.append("state", **{"from": "ACTIVE", "to": "REDUCING", "why": "3 orders in a row were rejected"})
    trader.status(state="REDUCING", why="3 orders in a row were rejected", deployment="dep-2")
    return trader
