"""scripts/data/download_bars.py as its user runs it: stopped, killed, offline, from elsewhere, with wrong flags."""

import io
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest
import tqdm

from barwise.commands import build_dataset, download_bars
from market.bars.candles import read_bars, write_bars
from market.dataset import load_dataset
from tests.support.bars_server import BarsServer, made_up_bars, seconds

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "data"
DOWNLOAD = SCRIPTS / "download_bars.py"
PERIOD = ("--start", "2024-11-01", "--end", "2025-02-01", "--timeframe", "1h")


@pytest.fixture
def server():
    bars = {coin: made_up_bars(coin, seconds(2024, 10), seconds(2025, 3), 3_600) for coin in ("BTC", "ETH")}
    market = {f"{coin}/{dollar}": table for coin, table in bars.items() for dollar in ("USD", "USDT")}
    with BarsServer(market, step=3_600) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a folder").mkdir()
    return tmp_path / "a folder"


def command(*arguments, source="alpaca", tickers=("BTC", "ETH")):
    return [sys.executable, str(DOWNLOAD), "--source", source, "--tickers", *tickers, *PERIOD, *map(str, arguments)]


def environment(server):
    return os.environ | {"CRYPTO_BARS_ALPACA_URL": server.url, "CRYPTO_BARS_BINANCE_URL": server.url}


def run(server, folder, *arguments, **options):
    return subprocess.run(
        command(*arguments, **options), cwd=folder, env=environment(server), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def start(server, folder, *arguments, **options):
    return subprocess.Popen(
        command(*arguments, **options), cwd=folder, env=environment(server), stderr=subprocess.PIPE, text=True
    )


def wait_for_requests(server, n, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while server.n_requests < n:
        assert time.monotonic() < deadline, server.requests
        time.sleep(0.02)


def exit_code_of(arguments):
    """In this process, where the exit code of argparse is an exception."""
    try:
        return download_bars.main(arguments)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(("source", "n_before"), [("alpaca", 1), ("binance", 4)])
def test_a_killed_download_goes_on_with_the_months_that_are_missing(server, folder, source, n_before):
    per_month = {"alpaca": 1, "binance": 2}[source]
    server.pause_after = n_before + 3 * per_month
    process = start(server, folder, "--cache", "kept", "--out", "bars.parquet", source=source)
    wait_for_requests(server, server.pause_after + 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "bars.parquet").exists()
    assert len(list((folder / "kept").rglob("*.parquet"))) == 3

    server.pause_after = None
    server.resume.set()
    done = run(server, folder, "--cache", "kept", "--out", "bars.parquet", source=source)
    assert done.returncode == 0, done.stderr
    times_asked = sorted(n for name, n in server.requests.items() if "1Day" not in name and "CHECKSUM" not in name)
    *others, under_way = times_asked
    assert others == [1, 1, 1, 1, 1]
    assert under_way == 2, server.requests  # once before the kill, once after
    bars = read_bars(folder / "bars.parquet")
    assert len(bars) == 2 * 92 * 24


def test_the_same_command_twice_and_then_without_a_network(server, folder):
    first = run(server, folder, "--cache", "kept", "--out", "a.csv")
    assert first.returncode == 0, first.stderr
    assert first.stdout == (
        "wrote a.csv: 4416 bars of BTC/USD, ETH/USD, opens 2024-11-01 00:00 .. 2025-01-31 23:00 UTC\n"
    )
    assert "Traceback" not in first.stderr
    server.stop()
    again = run(server, folder, "--cache", "kept", "--out", "b.csv")
    assert again.returncode == 0, again.stderr
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()
    refused = run(server, folder, "--cache", "kept", "--out", "b.csv")
    assert refused.returncode == 2
    assert refused.stderr == "download_bars.py: --out b.csv: already exists; pass --overwrite to replace it\n"


def test_ctrl_c_says_what_is_kept(server, folder):
    server.pause_after = 3
    process = start(server, folder, "--cache", "kept", "--out", "bars.parquet")
    wait_for_requests(server, 4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    kept = "2 of 6 symbol-months are in the cache kept; the same command resumes from there"
    assert error == f"download_bars.py: interrupted; {kept}\n"
    assert [path.name for path in folder.iterdir()] == ["kept"]


def test_ctrl_c_without_a_cache_says_that_nothing_is_kept(server, folder):
    server.pause_after = 3
    process = start(server, folder, "--no-cache", "--out", "bars.parquet")
    wait_for_requests(server, 4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == "download_bars.py: interrupted; nothing was written or cached\n"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("source", ["alpaca", "binance"])
def test_a_dead_server_is_one_line_in_seconds(server, folder, source):
    server.stop()
    began = time.monotonic()
    done = run(server, folder, "--cache", "kept", "--out", "bars.parquet", source=source)
    assert time.monotonic() - began < 10.0
    assert done.returncode == 2
    assert done.stderr.startswith("download_bars.py: 127.0.0.1 is unreachable (Connection refused); check the network")
    assert done.stderr.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_passing_faults_and_unknown_coins_are_said_line_by_line(server, folder):
    server.fail("503", where="1Hour")
    server.fail("truncate", where="1Hour")
    done = run(server, folder, "--no-cache", "--out", "bars.parquet")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "the server returned 503; trying again",
        "Alpaca, BTC/USD 2024-11: the response was truncated; downloading it again",
    ]
    unknown = run(server, folder, "--no-cache", "--out", "more.parquet", tickers=("BTC", "XYZ"))
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("download_bars.py: Alpaca has no bars of XYZ/USD from 2024-10-30 to 2025-02-03")
    assert unknown.stderr.count("\n") == 1


def test_the_default_cache_is_in_the_repository_and_ignored_by_git(server, folder, monkeypatch):
    monkeypatch.setattr(download_bars, "home", lambda: folder)
    monkeypatch.setenv("CRYPTO_BARS_ALPACA_URL", server.url)
    assert exit_code_of([*PERIOD, "--tickers", "BTC", "--out", str(folder / "a.csv")]) == 0
    assert len(list((folder / "data" / "cache").rglob("*.parquet"))) == 3
    assert "data/*" in (SCRIPTS.parents[1] / ".gitignore").read_text().splitlines()


def test_progress_counts_months_in_the_cache_but_not_for_speed(server, folder, monkeypatch):
    shown = []

    class Bar(tqdm.tqdm):
        def __init__(self, **options):
            super().__init__(**options | {"disable": False, "file": io.StringIO()})

        def update(self, n=1):
            super().update(n)
            shown.append((self.initial, self.n, self.total))

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setenv("CRYPTO_BARS_ALPACA_URL", server.url)
    monkeypatch.chdir(folder)
    options = ["--timeframe", "1h", "--start", "2024-11-01", "--cache", "kept", "--tickers", "BTC", "--out"]
    assert exit_code_of([*options, "a.csv", "--end", "2024-12-01"]) == 0
    assert exit_code_of([*options, "b.csv", "--end", "2025-02-01"]) == 0
    assert shown == [(0, 0, 1), (0, 1, 1), (1, 1, 3), (1, 2, 3), (1, 3, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "file", "--out", "o.csv"], "--source file requires --bars FILE"),
        (
            ["--source", "file", "--bars", "b.csv", "--cache", "c", "--out", "o.csv"],
            "--cache does not apply to --source",
        ),
        (["--source", "file", "--bars", "b.csv", "--no-cache", "--out", "o.csv"], "--no-cache does not apply"),
        (["--bars", "b.csv", "--out", "o.csv"], "--bars does not apply to --source alpaca; omit it"),
        (["--source", "binance", "--stamp", "close", "--out", "o.csv"], "--stamp does not apply to --source binance"),
        (["--source", "file", "--bars", "b.csv", "--stamp", "middle", "--out", "o.csv"], "invalid choice: 'middle'"),
        (["--cache", "c", "--no-cache", "--out", "o.csv"], "not allowed with argument"),
        (["--source", "file", "--bars", "--out", "o.csv"], "--bars: expected at least one argument"),
    ],
)
def test_flags_that_do_not_apply_are_errors(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    assert exit_code_of(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "end"), [("binance", datetime(2025, 2, 1, tzinfo=UTC)), ("alpaca", datetime(2025, 2, 17, tzinfo=UTC))]
)
def test_the_default_end_is_a_bar_that_the_source_can_have(source, end, monkeypatch):
    class Today(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2025, 2, 17, 13, 5, tzinfo=tz)

    monkeypatch.setattr(download_bars, "datetime", Today)
    args = download_bars.parse_arguments(["--source", source, "--out", "bars.parquet"])
    assert download_bars.period_of(args).end == end


def file_of(folder, name, first, last, shift_s=0):
    bars = made_up_bars("BTC", first, last, 300)
    stamps = pd.to_datetime(bars.pop("time") + shift_s, unit="s", utc=True)
    write_bars(bars.assign(timestamp=stamps, symbol="BTC/USD"), folder / name)


def test_files_are_joined_selected_cut_and_aggregated(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    file_of(folder, "a.csv", seconds(2025, 1, 1), seconds(2025, 1, 3))
    options = ["--source", "file", "--bars", "a.csv", "--timeframe", "1h", "--end", "2025-01-02T05:30+05:30"]
    assert exit_code_of([*options, "--out", "o.parquet"]) == 0
    assert capsys.readouterr().out == (
        "wrote o.parquet: 24 bars of BTC/USD, opens 2025-01-01 00:00 .. 2025-01-01 23:00 UTC\n"
    )
    assert exit_code_of(["--source", "file", "--bars", "a.csv", "no.csv", "--out", "p.csv"]) == 2
    assert (
        capsys.readouterr().err == "download_bars.py: no.csv: no such file; pass a tidy .parquet or .csv file of bars\n"
    )


def test_close_stamps_mean_the_same_in_both_scripts(folder, monkeypatch):
    monkeypatch.chdir(folder)
    first, last = seconds(2025, 1, 1), seconds(2025, 1, 3)
    file_of(folder, "opens.csv", first, last)
    file_of(folder, "closes.csv", first, last, shift_s=300)
    assert exit_code_of(["--source", "file", "--bars", "closes.csv", "--stamp", "close", "--out", "o.csv"]) == 0
    assert exit_code_of(["--source", "file", "--bars", "opens.csv", "--out", "p.csv"]) == 0
    assert (folder / "o.csv").read_bytes() == (folder / "p.csv").read_bytes()
    assert build_dataset.main(["--bars", "closes.csv", "--stamp", "close", "--tickers", "BTC", "--out", "x"]) == 0
    assert build_dataset.main(["--bars", "opens.csv", "--tickers", "BTC", "--out", "y"]) == 0
    one, other = load_dataset(folder / "x"), load_dataset(folder / "y")
    for array, expected in zip(one.arrays.values(), other.arrays.values(), strict=True):
        assert array.tobytes() == expected.tobytes()
