#!/usr/bin/env python3
"""Measure the paper trader: replays of a week and a month, and the time from a bar's arrival to the last order.

The market has seven coins and 5-minute bars. The replays run the program itself
(`paper_trading.trader_program.trade`), including its journal. Each replay is compared with `CryptoEnvAlpaca` on the
same rows: cash, coins and account value must be bit-identical after every bar. The live rows use a local substitute
for Alpaca's API in a separate process. They include HTTP, JSON and alpaca-py, but no network latency to a venue.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measuring

WEEK, MONTH, QUICK = 7 * 288, 30 * 288, 120
LIVE_BARS, LIVE_BARS_QUICK = 200, 4
TICKERS = ("BTC", "ETH", "LINK", "LTC", "UNI", "AAVE", "AVAX")
COLUMNS = measuring.columns("contender", "policy", "bars", "orders", seconds="total, s", bar_ms="ms per bar")
COLUMNS |= {"ours_ms": "own time, median ms per bar", "worst_ms": "longest bar, ms"}
COLUMNS |= {"growth_mb": "memory growth after warm-up, MiB", "equal": "share of bars bit-identical to the simulator"}
ABOUT = (
    "The table shows the speed of the paper trader with 7 coins, 5-minute bars and lookback 3. The time includes the "
    'journal. The policy is a two-layer MLP with the head "orders" or "band". The warm-up is the first tenth of the '
    "bars."
)
BARS = ("--bars", {"type": Path, "metavar": "FILE", "help": "file of tidy bars to replay (default: the sample market)"})


def dataset_of(args: argparse.Namespace, n_bars: int) -> Any:
    """Return the sample market, or the last bars of a file."""
    from market.bars.candles import read_bars
    from market.build import dataset_from_bars
    from market.sample import synthetic_dataset

    if args.bars is None:
        return synthetic_dataset(n_bars=n_bars + 200, tickers=TICKERS)
    whole = dataset_from_bars(read_bars(args.bars), TICKERS, "5m", source=args.bars.name)
    return whole.with_rows(len(whole.time) - n_bars - 200, len(whole.time))


def replay(args: argparse.Namespace, head: str, n_bars: int) -> dict[str, Any]:
    """Run one replay and compare it with the scalar environment."""
    import psutil

    from paper_trading import trader_program
    from tests.paper_trading.test_replay import events, set_out, simulate

    dataset = dataset_of(args, n_bars)
    first, last = len(dataset.time) - n_bars, len(dataset.time)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        deployment, request = set_out(root, dataset, first, last, head=head, seed=3)
        memory, process = [], psutil.Process()
        beat = trader_program.Program._tick

        def weighed(program: Any) -> None:
            beat(program)
            gc.collect(0)
            memory.append(process.memory_info().rss / 2**20)

        trader_program.Program._tick = weighed
        started = time.perf_counter()
        try:
            code = trader_program.trade(request)
        finally:
            trader_program.Program._tick = beat
        took_s = time.perf_counter() - started
        assert code == trader_program.ENDED
        decisions = events(root, "decision")
        _, bars = simulate(deployment, dataset, first, last)
        pairs = zip(decisions[1:], bars, strict=True)
        equal = sum((d["cash"], d["qty"], d["equity"]) == (cash, qty, equity) for d, (cash, qty, equity, *_) in pairs)
        orders = sum(len(event["orders"]) for event in events(root, "intents"))
    tenth = len(memory) // 10
    took = [decision["took_ms"] for decision in decisions]
    return {
        "contender": "replay", "policy": head, "bars": n_bars, "orders": orders, "seconds": took_s,
        "bar_ms": 1e3 * took_s / n_bars, "ours_ms": statistics.median(d["elapsed_ms"] for d in decisions),
        "worst_ms": max(took), "growth_mb": memory[-1] - memory[tenth], "equal": equal / (n_bars - 1),
    }  # fmt: skip


def live(args: argparse.Namespace) -> dict[str, Any]:
    """Trade bars that close at the stand-in."""
    from tests.support.alpaca_stand_in import StandIn
    from tests.support.trading_world import TradingWorld

    n_bars = LIVE_BARS_QUICK if args.quick else LIVE_BARS
    with StandIn() as server, tempfile.TemporaryDirectory() as folder:
        world = TradingWorld(Path(folder), server, TICKERS, n_bars=n_bars + 2)
        started = time.perf_counter()
        world.play(world.trader(), n_bars)
        took_s = time.perf_counter() - started
        world.check_books()
        decisions = world.events("decision")[1:]
        orders = sum(len(event["orders"]) for event in world.events("intents"))
    return {
        "contender": "live, local stand-in of Alpaca", "policy": "orders", "bars": n_bars, "orders": orders,
        "seconds": took_s, "bar_ms": statistics.median(d["took_ms"] for d in decisions),
        "ours_ms": statistics.median(d["elapsed_ms"] for d in decisions),
        "worst_ms": max(d["took_ms"] for d in decisions),
    }  # fmt: skip


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the section."""
    logging.disable(logging.INFO)
    np.seterr(all="raise", under="ignore")
    week, month = (QUICK, QUICK) if args.quick else (WEEK, MONTH)
    rows = [replay(args, "orders", week), replay(args, "band", week), replay(args, "orders", month), live(args)]
    checks = [
        measuring.check("seconds (replay of a week)", rows[0]["seconds"], most=60.0),
        measuring.check("memory growth in MiB (replay of a month)", rows[2]["growth_mb"], most=10.0),
        measuring.check("share of bars equal to the simulator (replays)", min(r["equal"] for r in rows[:3]), least=1.0),
        measuring.check("longest ms from a bar's arrival to its decision (live)", rows[3]["worst_ms"], most=2000.0),
        measuring.check("median own time in ms per bar (live)", rows[3]["ours_ms"], most=100.0),
    ]
    return measuring.section(args, ABOUT, COLUMNS, rows=rows, checks=checks)


if __name__ == "__main__":
    sys.exit(measuring.run("trading", __doc__, measure, options=(BARS,)))
