"""The trader as users start it: flags, refusals, one trader an account, the kill switch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from barwise.commands.paper_trade import main
from market.defaults import KEY_VARIABLES
from market.sample import synthetic_dataset
from paper_trading import control
from paper_trading.broker import RejectedError, order_id
from paper_trading.flatten import KeepGoingJournal, flatten, owned_by_journal
from paper_trading.journal import Journal, read
from paper_trading.presence import BusyError, sole_trader
from paper_trading.replay_venue import ReplayBroker
from paper_trading.stages import Request
from paper_trading.trader_program import HALTED, Program, trade
from tests.paper_trading.test_replay import set_out
from tests.support.alpaca_stand_in import StandIn
from tests.support.made_deployment import make_facts, write_facts
from tests.support.trading_world import FREE, TradingWorld, make_deployment, random_policy
from train.study.interruption import Interruption

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "deployment" / "paper_trade.py"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def server():
    with StandIn() as server:
        yield server


def environment(server: StandIn | None = None, **changes: str) -> dict[str, str]:
    own = {name for names in KEY_VARIABLES for name in names}
    kept = {name: value for name, value in os.environ.items() if name not in own}
    keys = {} if server is None else {"APCA_API_KEY_ID": server.key, "APCA_API_SECRET_KEY": server.secret}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | keys | changes


def flags(root: Path, server: StandIn | None = None) -> list[str]:
    common = ["--deployments-dir", str(root / "deployments"), "--trading-dir", str(root / "trading")]
    urls = [] if server is None else ["--paper-url", server.url, "--data-url", server.url]
    return common + urls


def run(root: Path, *more: str, server: StandIn | None = None, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *flags(root, server), *more]
    return subprocess.run(command, capture_output=True, text=True, env=environment(server, **changes), cwd=root,
                          timeout=PATIENCE_S, check=False)  # fmt: skip


@dataclass
class Answer:
    """What a program that ended in this process said."""

    returncode: int
    stderr: str


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """Run the program in this process, with keys: for what ends before anything is traded."""
    monkeypatch.setenv("APCA_API_KEY_ID", "k")
    monkeypatch.setenv("APCA_API_SECRET_KEY", "s")

    def asked(*more: str) -> Answer:
        code = main([*flags(tmp_path), *more])
        return Answer(code, capsys.readouterr().err)

    return asked


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]


def deploy(root: Path, world: TradingWorld) -> None:
    (root / "deployments").mkdir()
    world.deployment.folder.rename(root / "deployments" / "deployed")
    (root / "deployments" / "current").symlink_to("deployed")


# ------------------------------------------------------------------------------------------------------ what is refused
def test_without_a_deployment_a_line_says_which_command_makes_one(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert (
        "nothing is deployed; deploy a finished study with scripts/deployment/auto_replace_best_5m.py --once"
        in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--live"], "real money requires both --live and --live-url"),
        (["--live-url", "https://api.alpaca.markets"], "real money requires both --live and --live-url"),
        (["--live", "--live-url", "https://PAPER-api.alpaca.markets"], "which is the paper account"),
        (["--live", "--live-url", "https://evil.example.org"], "--live-url must be https://api.alpaca.markets"),
        (["--live", "--live-url", "http://api.alpaca.markets"], "--live-url must be https://api.alpaca.markets"),
        (["--paper-url", "https://api.alpaca.markets"], "which is the live account and requires --live"),
        (["--paper-url", "https://API.alpaca.markets."], "which is the live account and requires --live"),
        (["--paper-url", "https://x@api.alpaca.markets"], "must not contain a user name or password"),
        (
            ["--paper-url", "https://paper-api.alpaca.markets.evil.org"],
            "--paper-url must be https://paper-api.alpaca.markets",
        ),
        (
            ["--live", "--live-url", "https://api.alpaca.markets", "--allow-unproven"],
            "--live and --allow-unproven cannot be combined",
        ),
        (["--broker", "alpaca", "--all-bars"], "apply only to a replay"),
        (["--broker", "replay", "--faults", "flood"], "--faults flood: unknown fault; choose from timeout"),
        (["--max-drawdown", "5"], "must be a fraction of at most 1"),
        (["--max-drawdown", "0"], "--max-drawdown must be above 0"),
        (["--capital", "-5"], "--capital must be greater than 0; received -5"),
    ],
)
def test_flags_that_contradict_each_other_end_in_one_line(tmp_path, ask, more, words):
    done = ask(*more)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "trading").exists()


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        ({"synthetic": True}, [], "was trained on a SYNTHETIC market"),
        ({"proven": False, "waived": ["confidence"]}, [], "is unproven (waived: confidence)"),
        ({"feature_set": "of somebody"}, [], "its columns belong to no known feature set"),
        ({"rules": "cappuccino"}, [], "the policy was trained with rule set 'cappuccino'"),
        ({"proven": False}, ["--live", "--live-url", "https://api.alpaca.markets"], "is unproven"),
        ({"synthetic": True}, ["--live", "--live-url", "https://api.alpaca.markets"], "SYNTHETIC"),
    ],
)
def test_a_deployment_that_the_venue_must_not_have_is_refused(tmp_path, ask, changes, more, words):
    changes = dict(changes)
    rules = changes.pop("rules", None)
    folder = tmp_path / "deployments" / "made"
    deployment = make_deployment(folder, ("BTC", "ETH"), **changes)
    if rules is not None:
        _under_host_rules(folder, deployment, rules)
    (tmp_path / "deployments" / "current").symlink_to("made")
    done = ask("--broker", "alpaca", *more)
    assert done.returncode == 2
    assert words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


def _under_host_rules(folder: Path, deployment: Any, rules: str) -> None:
    """The same deployment under the rules of a host: its observation shows coins, not weights."""
    from drl_agents.policy_file import save_policy
    from environment_Alpaca_vectorized import observation_layout
    from train.deploy.loading import POLICY_FILE, SHARED_FACTS

    norms = dict.fromkeys(("norm_cash", "norm_stocks", "norm_tech", "norm_reward", "norm_action"), 1.0)
    params = {"rules": rules, "lookback": 3, **norms}
    names = deployment.feature_names
    layout = [list(block) for block in observation_layout(params, 2, len(names))]
    policy = random_policy(2, 3 * len(names), sum(int(width) for _, width in layout), "orders", 0)
    facts = make_facts(policy, "made", tickers=["BTC", "ETH"], feature_names=list(names), env_params=params,
                       observation_layout=layout, feature_set="default")  # fmt: skip
    save_policy(folder / POLICY_FILE, policy, {name: facts[name] for name in SHARED_FACTS})
    write_facts(folder, facts)


def test_wrong_keys_are_one_line_without_the_keys(tmp_path, server):
    world = TradingWorld(tmp_path, server, n_bars=5)
    deploy(tmp_path, world)
    done = run(tmp_path, server=server, APCA_API_KEY_ID="AKWRONG", APCA_API_SECRET_KEY="wrong-secret")
    assert done.returncode == 2
    assert "rejected the API keys" in done.stderr
    assert "AKWRONG" not in done.stderr + done.stdout
    assert "wrong-secret" not in done.stderr + done.stdout


# ---------------------------------------------------------------------------------------------------------- a replay
def test_without_keys_the_held_out_bars_are_replayed(tmp_path):
    dataset = synthetic_dataset(n_bars=400, tickers=("BTC", "ETH"))
    save = tmp_path / "data"
    set_out(tmp_path, dataset, 300, 400)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "replaying hold-out bars" in done.stdout
    assert "replay finished" in done.stdout
    events = read(tmp_path / "trading" / "replay" / "journal.jsonl")
    assert events[0]["in_sample"] is False
    assert {e["bar_s"] for e in events if e["event"] == "bar"} == set(dataset.time[300:].tolist())
    assert save.is_dir()
    page = next((tmp_path / "trading" / "replay" / "reports").glob("*.html")).read_text()
    assert "REPLAY" in page
    everything = run(tmp_path, "--all-bars", "--data-dir", str(save))
    assert everything.returncode == 0
    assert read(tmp_path / "trading" / "replay" / "journal.jsonl")[0]["in_sample"] is True


# ------------------------------------------------------------------------------------------------- a trader that runs
@contextmanager
def started(root: Path, server: StandIn, *more: str) -> Iterator[subprocess.Popen[str]]:
    log = (root / "log.txt").open("a")
    command = [sys.executable, str(SCRIPT), *flags(root, server), *more]
    process = subprocess.Popen(command, stdout=log, stderr=log, text=True, env=environment(server), cwd=root)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        log.close()


def wait_for(root: Path, words: str, n: int = 1) -> None:
    end = time.monotonic() + PATIENCE_S
    while (root / "log.txt").read_text().count(words) < n:
        assert time.monotonic() < end, (root / "log.txt").read_text()
        time.sleep(0.1)


def test_one_trader_an_account_and_the_kill_switch(tmp_path, server):
    world = TradingWorld(tmp_path, server, n_bars=30)
    server.control("now", at=world.start_s + 290)  # the next bar closes in 8 s
    deploy(tmp_path, world)
    with started(tmp_path, server) as process:
        wait_for(tmp_path, "decided on the bar of")
        second = run(tmp_path, server=server)
        assert second.returncode == 4
        assert "another trader uses account paper-" in last_line(second)
        status = run(tmp_path, "--status")
        assert status.returncode == 0
        assert f"pid {process.pid}, ACTIVE" in status.stdout
        server.control("now", at=world.start_s + 304)  # the answers tell the trader
        wait_for(tmp_path, "decided on the bar of", 2)
        assert Decimal(server.state()["cash"]) < 10000
        flat = run(tmp_path, "--flatten", server=server)
        assert flat.returncode == 0, flat.stderr + (tmp_path / "log.txt").read_text()
        assert server.state()["positions"] == {}
        assert f"pid {process.pid}, HALTED (the user said --flatten)" in run(tmp_path, "--status").stdout
        stop = run(tmp_path, "--stop")
        assert stop.returncode == 0
        assert process.wait(5) == 128 + signal.SIGTERM
    assert run(tmp_path, "--status").returncode == 3
    (folder,) = (tmp_path / "trading").iterdir()
    world.journal_path = folder / "journal.jsonl"
    world.check_books()
    events = read(world.journal_path)
    assert [e["to"] for e in events if e["event"] == "state"] == ["HALTED"]
    assert events[-1]["event"] == "stop"
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".jsonl", ".txt", ".json", ".html")]
    texts = "".join(path.read_text(errors="replace") for path in written)
    assert server.secret not in texts
    assert server.key not in texts


def test_flatten_works_without_a_trader_a_journal_or_a_policy(tmp_path, server):
    world = TradingWorld(tmp_path, server, n_bars=30)
    world.play(world.trader(), 12)
    assert server.state()["positions"]
    server.control("position", symbol="UNI/USD", qty="5")  # somebody else's
    done = run(tmp_path, "--flatten", "--broker", "alpaca", server=server)
    assert done.returncode == 0, done.stderr
    assert list(server.state()["positions"]) == ["UNI/USD"]


def test_flatten_works_where_the_disk_is_full(tmp_path, server, monkeypatch, caplog):
    world = TradingWorld(tmp_path, server, n_bars=30)
    world.play(world.trader(), 12)
    journal = Journal(world.journal_path)
    write = os.write
    full = lambda descriptor, text: write(descriptor, text[:5])  # noqa: E731 - a write that stops
    desk = world.trader().desk
    desk.journal = KeepGoingJournal(journal)
    owned = owned_by_journal(world.journal_path)
    assert owned is not None
    monkeypatch.setattr(os, "write", full)
    flatten(desk, owned[0], {}, "test")
    monkeypatch.undo()
    assert server.state()["positions"] == {}
    assert "not in the journal: intents" in caplog.text


def test_an_alert_command_gets_one_line_and_its_failure_costs_nothing(tmp_path, caplog):
    dataset = synthetic_dataset(n_bars=500, tickers=("BTC", "ETH"))
    _, request = set_out(tmp_path, dataset, 100, 500, seed=3)
    told = tmp_path / "told.txt"
    script = tmp_path / "tell me.sh"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >>"{told}"\n')
    script.chmod(0o755)
    halting = replace(request, limits=replace(FREE, max_drawdown=0.005))
    assert trade(replace(halting, alert_command=f"'{script}'")) == HALTED
    end = time.monotonic() + 10
    while not told.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert told.read_text().startswith("HALTED: the drawdown of")
    assert trade(replace(halting, alert_command="/no/such/program")) == HALTED
    end = time.monotonic() + 10
    while "--alert-command failed" not in caplog.text and time.monotonic() < end:
        time.sleep(0.05)
    assert "--alert-command failed" in caplog.text


def with_coins(root: Path, server: StandIn) -> Path:
    """A paper account with coins, its trader gone."""
    world = TradingWorld(root, server, n_bars=30)
    trader = world.trader()
    world.play(trader, 12)
    folder = root / "trading" / trader.broker.account
    folder.mkdir(parents=True)
    world.journal_path.rename(folder / "journal.jsonl")
    assert server.state()["positions"]
    return folder


def flatten_here(root: Path, server: StandIn, monkeypatch, *more: str) -> int:
    """`--flatten` in this process, with keys."""
    monkeypatch.setenv("APCA_API_KEY_ID", server.key)
    monkeypatch.setenv("APCA_API_SECRET_KEY", server.secret)
    monkeypatch.setattr(control, "STOP_WAIT_S", 1.0)
    return main([*flags(root, server), "--flatten", *more])


def test_flatten_says_what_it_could_not_sell(tmp_path, server, monkeypatch, capsys):
    folder = with_coins(tmp_path, server)
    server.control("fault", kind="insufficient", times=500)
    assert flatten_here(tmp_path, server, monkeypatch, "--broker", "alpaca") == 1
    assert f"{folder.name}: could not sell " in capsys.readouterr().out
    server.control("clear_faults")
    assert flatten_here(tmp_path, server, monkeypatch) == 0
    assert server.state()["positions"] == {}


def test_flatten_without_keys_names_the_account_that_holds_coins(tmp_path, server, monkeypatch, capsys):
    folder = with_coins(tmp_path, server)
    for name in (name for names in KEY_VARIABLES for name in names):
        monkeypatch.delenv(name, raising=False)
    assert main([*flags(tmp_path), "--flatten"]) == 2
    told = capsys.readouterr().err
    assert f"{folder.name} may hold coins of the trader, which is not running: set APCA_API_KEY_ID" in told


def test_flatten_of_one_account_leaves_the_trader_of_another(tmp_path, server, monkeypatch, capsys):
    with_coins(tmp_path, server)
    replay = tmp_path / "trading" / "replay"
    replay.mkdir()
    (replay / "journal.jsonl").write_text("")
    with sole_trader("replay", replay):
        asked: list[Path] = []
        monkeypatch.setattr(control, "_flattened_by_trader", lambda folder: asked.append(folder))
        assert flatten_here(tmp_path, server, monkeypatch, "--broker", "alpaca") == 0
    assert asked == []
    assert server.state()["positions"] == {}


def test_one_lock_whatever_tmpdir_says(tmp_path, monkeypatch):
    folder = tmp_path / "paper-1"
    folder.mkdir()
    elsewhere = tmp_path / "another checkout"
    elsewhere.mkdir()
    with sole_trader("paper-0test000", folder):
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        with pytest.raises(BusyError, match="another trader uses account"), sole_trader("paper-0test000", elsewhere):
            pass
        with pytest.raises(BusyError), sole_trader("paper-0test001", folder):
            pass
        assert (folder / "trader.pid").exists()
    assert not (folder / "trader.pid").exists()


def test_another_capital_than_the_account_began_with_is_refused(tmp_path, server, monkeypatch, capsys):
    world = TradingWorld(tmp_path, server, n_bars=5)
    deploy(tmp_path, world)
    monkeypatch.setenv("APCA_API_KEY_ID", server.key)
    monkeypatch.setenv("APCA_API_SECRET_KEY", server.secret)
    trader = world.trader()
    world.play(trader, 2)
    folder = tmp_path / "trading" / trader.broker.account
    folder.mkdir(parents=True)
    world.journal_path.rename(folder / "journal.jsonl")
    assert main([*flags(tmp_path, server), "--once", "--capital", "500"]) == 2
    assert "--capital 500: according to its journal, this account started with all its cash" in capsys.readouterr().err


# ------------------------------------------------------------------------- what the program looks at between two orders
def replayed(root: Path) -> Request:
    """A replay of 300 bars."""
    return set_out(root, synthetic_dataset(n_bars=400, tickers=("BTC", "ETH", "LTC")), 100, 400, seed=3)[1]


def test_the_file_halt_is_looked_at_before_every_order(tmp_path, monkeypatch):
    request, send = replayed(tmp_path), ReplayBroker.send
    sent: list[str] = []

    def send_and_halt(broker, intent):
        if intent.order_id != order_id("made", intent.ticker, intent.bar_s, intent.side):
            return send(broker, intent)  # the simulator beside the trader
        sent.append(intent.order_id)
        if len(sent) == 20:
            (tmp_path / "trading" / "replay" / "HALT").touch()
        return send(broker, intent)

    monkeypatch.setattr(ReplayBroker, "send", send_and_halt)
    assert trade(request) == HALTED
    assert len(sent) == 20
    kept = [e for e in read(tmp_path / "trading" / "replay" / "journal.jsonl") if e["event"] == "order"][20:]
    assert all(event["status"] == "canceled" for event in kept)
    assert all("HALT exists" in event["reason"] for event in kept)


class FlattenedProgram(Program):
    """Asked to flatten at its 100th tick; remembers what was left after every tick."""

    def __init__(self, request: Request, interruption: Interruption) -> None:
        super().__init__(request, interruption)
        self.left: list[str] = []

    def _tick(self) -> None:
        self.must_flatten = self.must_flatten or len(self.left) == 100
        super()._tick()
        self.left.append(self._flatten_left)


def test_a_sale_that_the_venue_refused_is_tried_again_until_nothing_is_left(tmp_path, monkeypatch):
    request, send = replayed(tmp_path), ReplayBroker.send
    refused: list[str] = []

    def refuse_at_first(broker, intent):
        if intent.why == "flatten" and len(refused) < 4:
            refused.append(intent.ticker)
            raise RejectedError("40310000 insufficient balance")
        return send(broker, intent)

    monkeypatch.setattr(ReplayBroker, "send", refuse_at_first)
    numbers = count()  # a replay's tries all come within a second
    monkeypatch.setattr("paper_trading.flatten.order_id", lambda *_: f"barwise-{next(numbers)}")
    with Interruption() as interruption:
        program = FlattenedProgram(request, interruption)
        assert program.run() == HALTED
    assert len(refused) == 4
    assert program.left[99] == ""
    assert program.left[100] != ""
    assert program.left[-1] == ""
    assert program._flattened_s > 0
    last = [e for e in read(tmp_path / "trading" / "replay" / "journal.jsonl") if e["event"] == "decision"][-1]
    assert last["qty"] == [0.0, 0.0, 0.0]


def test_a_signal_to_flatten_after_the_account_is_done_ends_nothing(tmp_path):
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:

        def draw(folder: Path, _: object) -> Path:
            os.kill(os.getpid(), signal.SIGUSR1)
            return folder

        assert trade(replayed(tmp_path), draw) == 0
        assert received == []
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)
