#!/usr/bin/env python3
"""Measure seconds and peak memory of building a dataset from a bars file, and of loading it.

The market is the sample market at the size of the real one in the tests: 18 coins, eight months of five-minute bars.
The baseline processes the bars as the FinRL_Crypto family does, with pandas and TA-Lib and fourteen columns per coin.
It validates nothing, fills no gaps and writes no report.
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
PEER = "host pipeline, pandas"
COLUMNS = measuring.columns("contender", "columns", "seconds", ratio="times the host pipeline's speed")
COLUMNS["peak_mb"] = "peak memory, MB"


def hosts_way(bars_file: str, out_file: str) -> None:
    """Convert bars to pickled price, feature and time arrays, with one data frame per coin."""
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
    """Run a process; return its wall time in seconds and its peak memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=REPO)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"command failed with exit code {process.returncode}: {' '.join(command)}")
    return seconds, usage.ru_maxrss / 1024.0


def commands(bars: Path, scratch: Path) -> dict[str, list[str]]:
    """Return the timed commands by name."""
    program = "import sys; from benchmarks.dataset import hosts_way; hosts_way(*sys.argv[1:])"
    build = [sys.executable, str(BUILD), "--bars", str(bars), "--tickers", *COINS, "--overwrite"]
    return {
        PEER: [sys.executable, "-c", program, str(bars), str(scratch / "arrays.pickle")],
        "build_dataset.py --features host": [*build, "--features", "host", "--out", str(scratch / "host")],
        "build_dataset.py": [*build, "--out", str(scratch / "default")],
    }


def loading(folder: Path) -> tuple[int, list[float]]:
    """Return a dataset's number of feature columns, and the seconds of each load with all checks."""
    from market.dataset import load_dataset

    seconds = []
    for _ in range(LOADS):
        started = time.perf_counter()
        n_columns = load_dataset(folder).tech.shape[1]
        seconds.append(time.perf_counter() - started)
    return n_columns, seconds


def rows_of(n_bars: int, n_rounds: int, scratch: Path) -> list[dict[str, Any]]:
    """Return the table's rows; the processes take turns, so that machine noise affects all of them equally."""
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
    """Measure the section."""
    n_bars, n_rounds = (N_BARS_QUICK, ROUNDS_QUICK) if args.quick else (N_BARS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(n_bars, n_rounds, Path(folder))
    about = (
        f"The table shows the time to build a dataset on disk from one Parquet file with {len(COINS)} coins and "
        f"{n_bars:,} five-minute bars each. Times are for whole processes, including imports, checks, report and "
        "plot. Loading maps the arrays and verifies them, including their hash. The files are in the page cache."
    )
    *_, ours, loaded = rows
    checks = [
        measuring.check("seconds (build a dataset)", ours["seconds"], most=20.0),
        measuring.check("peak memory in MB (build a dataset)", ours["peak_mb"], most=2_000.0),
        measuring.check("seconds (load a dataset)", loaded["seconds"], most=1.0),
    ]
    return measuring.section(args, about, COLUMNS, rows=rows, checks=checks)


if __name__ == "__main__":
    sys.exit(measuring.run("dataset", __doc__, measure))
