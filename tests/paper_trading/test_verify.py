"""A live journal leads to its own decisions and orders again, and a changed one does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from market.errors import UserError
from paper_trading.journal import encoded
from paper_trading.verify import verify
from tests.support.alpaca_stand_in import StandIn
from tests.support.trading_world import TradingWorld


@pytest.fixture(scope="module")
def server():
    with StandIn() as server:
        yield server


STOPS = {"trailing_stop_pct": 0.004, "stale_bars": 10, "observe_account": True}


@pytest.mark.parametrize(("head", "env"), [("orders", STOPS), ("band", {})])
def test_a_live_journal_leads_to_the_same_decisions_and_orders(tmp_path, server, head, env):
    world = TradingWorld(tmp_path, server, n_bars=40, head=head, env=env)
    first = world.trader()
    world.play(first, 15)
    server.control("missing_bar", symbol="ETH/USD", time=first.bar_s + 300)
    server.control("revised_bar", symbol="BTC/USD", time=first.bar_s + 900, first={"v": 123.0}, after_s=400)
    world.play(first, 6)
    world.play(world.trader(), 12)  # a restart
    done = verify(world.journal_path, tmp_path)
    assert done.decisions == len(world.events("decision")) >= 33
    assert done.orders == sum(len(event["orders"]) for event in world.events("intents")) > 15
    assert done.skipped == 0
    assert any("revised" in note for event in world.events("bar") for note in event["notes"])


@pytest.mark.parametrize(
    ("event", "change", "words"),
    [
        ("decision", lambda line: line["action"].__setitem__(0, 0.5), "the decision at the bar of"),
        ("decision", lambda line: line["checkpoint"]["account"].update(cash=1.0), "the observation at the bar of"),
        ("bar", lambda line: line["candles"]["high"].__setitem__(0, 1e9), "the observation at the bar of"),
        ("intents", lambda line: line["orders"][0].update(sized=1.0), "is sized"),
    ],
)
def test_a_difference_is_named(tmp_path, server, event, change, words):
    world = TradingWorld(tmp_path, server, n_bars=30)
    world.play(world.trader(), 20)
    lines = [json.loads(line) for line in world.journal_path.read_text().splitlines()]
    chosen = [line for line in lines if line["event"] == event][5]
    change(chosen)
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(b"".join(map(encoded, lines)))
    with pytest.raises(UserError, match=words):
        verify(changed, tmp_path)


def test_a_deployment_that_is_gone_is_counted(tmp_path, server):
    world = TradingWorld(tmp_path, server, n_bars=30)
    world.play(world.trader(), 5)
    done = verify(world.journal_path, Path(tmp_path / "elsewhere"))
    assert (done.decisions, done.skipped) == (0, 5)
