"""The trader on the terminal: what a frame says at any width, whatever the journal lacks, and the program around it."""

from __future__ import annotations

import io
import os
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from barwise.commands.dashboard import main
from paper_trading.day_page import write_day
from paper_trading.drift import TrackRecord
from paper_trading.story import Reader
from paper_trading.trader_status import Status
from paper_trading.trader_view import TraderBoard, TraderFrame
from paper_trading.words import record_text, usd
from tests.support.made_journal import MadeTrader, Sent, made_days
from train.store.worker_identity import start_ticks


def drawn(folder, width=100, height=None, encoding="utf-8") -> str:
    frame = TraderBoard(folder).frame()
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, color_system=None, highlight=False).print(frame, height=height, end="")
    file.seek(0)
    return file.read()


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trading") / "replay"
    made_days(folder, n_bars=300, synthetic=True, proven=False, in_sample=True)
    return folder


def plain(text: str) -> str:
    """On one line, for a sentence that is broken over several."""
    return " ".join(text.split())


def test_a_trader_is_told_in_full(days):
    text = plain(drawn(days))
    for part in (
        "REPLAY SYNTHETIC IN-SAMPLE UNPROVEN", "account replay 3 coins, 5-minute bars", "deployment dep-2",
        "REDUCING: 3 orders in a row were rejected", f"alive: pid {os.getpid()}, heartbeat", "300 decisions",
        "coin weight target band action coins why", "inside the band", "open or unknown: none", "equal weight",
        "USD paid", "bp from the close on average, 5.0 bp expected", "trader minus simulator",
        "return above 0 confidence", "largest buy of the bar", "difference from the simulator", "bars without orders",
        "(4 not seen; 2 the bar came N s", "dep-1 was replaced by dep-2", "5 XRP in the account are not ours",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("width", [80, 100, 120, 152, 160])
def test_nothing_is_cut_off(days, width):
    text = drawn(days, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in ("10,000.00 USD", "trader minus simulator", "remainder: different positions and sizes"):
        assert number in text


def test_a_low_terminal_says_what_is_missing(days):
    lines = drawn(days, height=12).splitlines()
    assert len(lines) == 12
    assert lines[-1].rstrip().endswith("more lines; enlarge the terminal to see them")


def test_an_ascii_terminal_gets_ascii_bars(days):
    text = drawn(days, encoding="latin-1")
    assert "█" not in text
    assert "@" in text


def test_before_the_first_decision_everything_is_unknown(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    text = plain(drawn(trader.folder))
    for part in (
        "unknown whether a trader is running: no status file", "unknown: no decision yet", "none yet",
        "unknown: no fill yet", "unknown: 0 of at least 100 bars",
        "largest position unknown of 80.0%",
    ):  # fmt: skip
        assert part in text, part
    trader.status(phase="warming up: 12 of 30 bars")
    assert "warming up: 12 of 30 bars" in drawn(trader.folder)


def test_a_status_without_a_journal(tmp_path):
    trader = MadeTrader(tmp_path / "paper-1", mode="PAPER")
    trader.status()
    trader.journal.path.unlink()
    assert plain(drawn(trader.folder)).startswith("PAPER")


def test_a_dead_trader_is_said_to_be_dead(tmp_path):
    trader = MadeTrader(tmp_path / "live-1", mode="LIVE", in_sample=None)
    trader.bar([100.0])
    with subprocess.Popen(["sleep", "60"]) as process:
        trader.status(pid=process.pid, start_ticks=start_ticks(process.pid))
        assert "alive: pid" in drawn(trader.folder)
        process.kill()
    assert "DEAD: pid" in plain(drawn(trader.folder))
    trader.status(start_ticks=1)  # our number, another process
    assert "DEAD: pid" in plain(drawn(trader.folder))
    trader.status(utc=(datetime.now(UTC) - timedelta(minutes=5)).isoformat())
    assert "SILENT: pid" in plain(drawn(trader.folder))
    trader.status(start_ticks=1)
    trader.journal.append("stop", why="stopped by SIGTERM", code=143)
    assert "stopped by SIGTERM (exit code 143)" in plain(drawn(trader.folder))


def test_an_account_that_lost_everything_has_no_shares(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100.0])
    trader.bar([100.0], equity=0.0, sim_equity=0.0, drawdown=1.0)
    text = plain(drawn(trader.folder))
    assert "trader minus simulator 0.00 USD unknown" in text
    assert "drawdown 100.0% of 20.0% 500% used" in text
    assert "-100.00%" in text
    assert write_day(trader.folder).is_file()


def test_damage_is_said_and_what_came_before_is_shown(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100.0])
    with trader.journal.path.open("ab") as file:
        file.write(b"damage\n")
    (trader.folder / "status.json").write_text("{")
    text = plain(drawn(trader.folder))
    assert "line 4 is damaged" in text
    assert "Only earlier events are shown" in text
    assert "status.json: not valid JSON" in text
    assert "1 decisions" in text


def test_a_fill_without_a_mid_is_not_split(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100.0])
    trader.bar([100.0], {"BTC": 10.0}, [Sent("BTC", 10.0, worse=0.001)])
    text = plain(drawn(trader.folder))
    assert "spread: fill price vs. mid, beyond slippage unknown: no mid" in text
    assert "spread and delay of fills without a mid -1.00 USD" in text


def test_an_open_order_stands_out(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100.0])
    trader.bar([100.0], {}, [Sent("BTC", 1.0, status="unknown")])
    trader.bar([100.0], {}, [Sent("BTC", 1.0)])
    text = drawn(trader.folder)
    assert "buy 1 BTC: unknown" in text
    assert "open or unknown: 1" in text


@pytest.mark.parametrize(
    ("decision", "why"),
    [
        ({"lo": [0.1], "hi": [0.2]}, "below the band"), ({"lo": [0.0], "hi": [0.2]}, "inside the band"),
        ({"target": [0.25]}, "+25.0% to target"), ({"target": [0.0]}, "at target"),
        ({"target": None}, "no target weight"),
    ],
)  # fmt: skip
def test_why_a_coin_is_traded_or_not(tmp_path, decision, why):
    trader = MadeTrader(tmp_path / "replay")
    trader.bar([100.0], **decision)
    assert why in drawn(trader.folder)


def test_texts_of_others_reach_no_terminal(tmp_path):
    trader = MadeTrader(tmp_path / "replay", ("B\x1b[31mC",), deployment="d\x1b]0;x\x07")
    trader.bar([100.0], notes=["a\x1b[2Jb"])
    trader.status(why="\x1b[31m", phase="\x1b[1m")
    assert "\x1b" not in drawn(trader.folder)


def test_records_in_words():
    assert record_text(TrackRecord(599, 0.621, 12_000.0), 300) == (
        "confidence 62% after 599 bars; 95% needs 12,000 more bars (41.7 d) at this ratio"
    )
    assert record_text(TrackRecord(599, 0.9999, 0.0), 300).startswith("confidence above 99% after 599 bars; enough")
    assert usd(-0.001) == "0.00 USD"


# -------------------------------------------------------------------------------------------------------------- program
def call(capsys, *flags) -> tuple[int, str, str]:
    code = main(["--once", *flags])
    return (code, *capsys.readouterr())


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch):
    monkeypatch.setattr("sys.argv", ["paper_trader_dashboard.py"])


def test_no_trader_is_one_line_with_the_command(capsys, tmp_path):
    code, out, err = call(capsys, "--trading-dir", str(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert (
        f"{tmp_path} contains no account; start a trader with python scripts/deployment/paper_trade.py --broker replay"
        in err
    )


def test_the_newest_heartbeat_is_shown_and_nothing_is_written(capsys, tmp_path):
    for name in ("replay", "paper-1"):
        MadeTrader(tmp_path / name).status()
    os.utime(tmp_path / "replay" / "status.json", (1, 1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, _ = call(capsys, "--trading-dir", str(tmp_path))
    assert (code, "account paper-1" in out) == (0, True)
    assert "account replay" in call(capsys, "--trading-dir", str(tmp_path), "--account", "replay")[1]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--account", "x"], "has no account x; choose from replay"),
        (["--study-name", "s"], "--study-name: only for a study; add --training"),
        (["--training"], "--trading-dir: only for a trader; remove --training"),
        (["--refresh", "0"], "--refresh must be at least"),
    ],
)
def test_wrong_flags_are_named(capsys, tmp_path, flags, said):
    MadeTrader(tmp_path / "replay")
    code, _, err = call(capsys, "--trading-dir", str(tmp_path), *flags)
    assert (code, said in err) == (2, True)


def test_old_figures_are_said_to_be_old(tmp_path):
    trader = MadeTrader(tmp_path / "replay")
    board = TraderBoard(trader.folder)
    board.frame()
    trader.journal.path.unlink()
    frame, said = board.frame_or_trouble()
    assert isinstance(frame, TraderFrame)
    assert "contains no account" in said
    assert Reader(trader.journal.path).refresh().start is None


def test_a_trader_of_another_machine_is_judged_by_its_heartbeat_alone():
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    status = Status("PAPER", "paper-1", 1, 1, now - timedelta(seconds=30), "ACTIVE", "waiting", machine="elsewhere")
    assert status.life(now, has_stopped=False) == "alive"
    assert status.life(now + timedelta(seconds=60), has_stopped=False) == "silent"
    assert status.life(now, has_stopped=True) == "ended"
