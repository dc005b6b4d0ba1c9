#!/usr/bin/env python3
"""From a file of bars to a dataset, and loading one: seconds and peak memory of whole processes.

The market is the sample market with as many coins and bars as the real one that this repository is tested on: 18 coins,
eight months of five-minute bars. The peer does what the FinRL_Crypto family's processors do with such bars, in pandas
and TA-Lib, with their fourteen columns a coin; it checks nothing, fills nothing and reports nothing.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measuring

REPO = Path(__file__).resolve().parents[1]

BUILD = REPO / "scripts" / "data" / "build_dataset.py"
COINS = "AAVE ATOM AVAX BCH BTC DOGE ETC ETH LINK LTC MATIC NEAR OP PEPE SHIB SOL UNI XRP".split()  # noqa: SIM905 - shorter to read
N_BARS, N_BARS_QUICK = 70_272, 600
ROUNDS, ROUNDS_QUICK = 5, 1
LOADS = 5
PEER = "the hosts' way, pandas"
COLUMNS = measuring.columns("contender", "columns", "seconds", ratio="times the peer's speed")
COLUMNS["peak_mb"] = "peak memory, MB"


def hosts_way(bars_file: str, out_file: str) -> None:
    """Bars to pickled price, tech and time arrays, coin by coin in data frames."""
    import numpy as np
    import pandas as pd
    import talib

    table = pd.read_parquet(bars_file)
    coins = []
    for _, coin in table.groupby("symbol", observed=True):
        frame = coin.reset_index(drop=True)
        close, high, low, volume = (frame[name] for name in ("close", "high", "low", "volume"))
        frame["macd"], frame["macd_signal"], frame["macd_hist"] = talib.MACD(close, 12, 26, 9)
        frame["rsi"], frame["cci"] = talib.RSI(close, 14), talib.CCI(high, low, close, 14)
        frame["dx"], range_mean = talib.DX(high, low, close, 14), talib.ATR(high, low, close, 14)
        frame["atr_regime_shift"] = range_mean / range_mean.rolling(50, min_periods=1).mean() - 1.0
        top, bottom = high.rolling(20, min_periods=1).max(), low.rolling(20, min_periods=1).min()
        signal = np.where(close > top, 1.0, np.where(close < bottom, -1.0, 0.0))
        frame["range_breakout_volume"] = signal * volume / volume.rolling(20, min_periods=1).mean()
        frame["trend_reacceleration"] = talib.ADX(high, low, close, 14).diff().diff()
        coins.append(frame)
    joined = pd.concat(coins, ignore_index=True).dropna().sort_values(["timestamp", "symbol"]).reset_index(drop=True)
    names = [name for name in joined.columns if name not in ("timestamp", "symbol", "synthetic")]
    parts = [joined[joined["symbol"] == symbol] for symbol in joined["symbol"].unique()]
    price = np.hstack([part[["close"]].to_numpy() for part in parts])
    tech = np.hstack([part[names].to_numpy() for part in parts])
    Path(out_file).write_bytes(pickle.dumps([price, tech, parts[0]["timestamp"].to_numpy()], protocol=5))


def run(command: list[str]) -> tuple[float, float]:
    """(seconds, peak megabytes) of a process from its start to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=REPO)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode} from: {' '.join(command)}")
    return seconds, usage.ru_maxrss / 1024.0


def commands(bars: Path, scratch: Path) -> dict[str, list[str]]:
    """Name -> the process that is timed."""
    program = "import sys; from benchmarks.dataset import hosts_way; hosts_way(*sys.argv[1:])"
    build = [sys.executable, str(BUILD), "--bars", str(bars), "--tickers", *COINS, "--overwrite"]
    return {
        PEER: [sys.executable, "-c", program, str(bars), str(scratch / "arrays.pickle")],
        "build_dataset.py --features host": [*build, "--features", "host", "--out", str(scratch / "host")],
        "build_dataset.py": [*build, "--out", str(scratch / "default")],
    }


def loading(folder: Path) -> tuple[int, list[float]]:
    """Feature columns of a dataset, and seconds of reading and checking it, hash included."""
    from market.dataset import load_dataset

    seconds = []
    for _ in range(LOADS):
        started = time.perf_counter()
        n_columns = load_dataset(folder).tech.shape[1]
        seconds.append(time.perf_counter() - started)
    return n_columns, seconds


def rows_of(n_bars: int, n_rounds: int, scratch: Path) -> list[dict[str, Any]]:
    """The table's rows; the processes take turns, so that a slow second of the machine hits all alike."""
    from market.bars.candles import write_bars
    from market.sample import sample_bars

    bars = scratch / "bars.parquet"
    write_bars(sample_bars("5m", n_bars, COINS), bars)
    timed = commands(bars, scratch)
    rounds = [{name: run(command) for name, command in timed.items()} for _ in range(n_rounds)]
    rows = []
    for name in timed:
        seconds = [done[name][0] for done in rounds]
        row = {"contender": name, "columns": 14 * len(COINS), "seconds": statistics.median(seconds)}
        row["ratio"] = measuring.ratio([done[PEER][0] for done in rounds], seconds)
        rows.append(row | {"peak_mb": max(done[name][1] for done in rounds)})
    rows[-1]["columns"], loads = loading(scratch / "default")
    loaded = {"contender": "load_dataset", "columns": rows[-1]["columns"], "seconds": statistics.median(loads)}
    return [*rows, loaded]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The section."""
    n_bars, n_rounds = (N_BARS_QUICK, ROUNDS_QUICK) if args.quick else (N_BARS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(n_bars, n_rounds, Path(folder))
    about = (
        f"{len(COINS)} coins, {n_bars:,} five-minute bars each, from one Parquet file to a dataset on disk: whole "
        "processes, imports, checks, report and picture included. Loading maps the arrays and checks them, hash "
        "included, with the files in the cache of the system."
    )
    *_, ours, loaded = rows
    checks = [
        measuring.check("bars to a dataset, seconds", ours["seconds"], most=20.0),
        measuring.check("bars to a dataset, peak MB", ours["peak_mb"], most=2_000.0),
        measuring.check("loading, seconds", loaded["seconds"], most=1.0),
    ]
    return measuring.section(args, about, COLUMNS, rows=rows, checks=checks)


if __name__ == "__main__":
    sys.exit(measuring.run("dataset", __doc__, measure))
