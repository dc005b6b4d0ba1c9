"""What a journal says, event by event: whole, empty, growing, replaced, torn, damaged."""

from __future__ import annotations

import json
import os
from datetime import date

import pytest

from paper_trading.journal import encoded
from paper_trading.story import NOT_SEEN, Reader, Story
from tests.support.made_journal import BAR_SECONDS, FIRST_S, MadeTrader, Sent, made_days


@pytest.fixture
def trader(tmp_path) -> MadeTrader:
    return MadeTrader(tmp_path / "replay", ("BTC", "ETH"))


def read(trader: MadeTrader) -> Story:
    reader = Reader(trader.journal.path)
    story = reader.refresh()
    assert reader.damage == ""
    return story


# ------------------------------------------------------------------------------------------------------------- the file
def test_no_journal_is_an_empty_story(tmp_path):
    reader = Reader(tmp_path / "none.jsonl")
    story = reader.refresh()
    assert (story.start, story.decision, story.orders, reader.damage) == (None, None, [], "")
    assert set(story.uses().values()) == {None}


def test_a_journal_of_one_start(trader):
    story = read(trader)
    assert (story.start.mode, story.start.tickers, story.n_starts) == ("REPLAY", ["BTC", "ETH"], 1)
    assert (story.state, story.decision, story.ratio) == (None, None, None)


def test_a_reader_reads_new_lines_only(trader, monkeypatch):
    reader = Reader(trader.journal.path)
    trader.bar([100.0, 10.0])
    reader.refresh()
    trader.bar([101.0, 10.0])
    seen = []
    monkeypatch.setattr(Story, "take", lambda self, event: seen.append(event["event"]))
    reader.refresh()
    assert seen == ["bar", "decision"]


def test_reading_in_pieces_is_reading_at_once(tmp_path):
    made_days(tmp_path / "replay", n_bars=60)
    path = tmp_path / "replay" / "journal.jsonl"
    whole, piece = Reader(path).refresh(), tmp_path / "piece.jsonl"
    reader, text = Reader(piece), path.read_bytes()
    piece.touch()
    for end in range(0, len(text) + 997, 997):
        with piece.open("ab") as file:
            file.write(text[file.tell() : end])
        story = reader.refresh()
    assert story == whole


def test_a_line_that_is_being_written_waits(trader):
    with trader.journal.path.open("ab") as file:
        file.write(b'{"n": 1, "utc": "2')
    reader = Reader(trader.journal.path)
    assert (reader.refresh().n_starts, reader.damage) == (1, "")


def test_a_replaced_file_is_read_anew(trader, tmp_path):
    reader = Reader(trader.journal.path)
    trader.bar([100.0, 10.0])
    assert reader.refresh().decision is not None
    other = MadeTrader(tmp_path / "other", ("SOL",))
    other.journal.append("weather", text="x" * 5_000)  # longer than the one before
    os.replace(other.journal.path, trader.journal.path)
    assert (reader.refresh().tickers, reader.story.decision) == (["SOL"], None)


def test_a_file_that_became_shorter_is_read_anew(trader):
    reader, first = Reader(trader.journal.path), trader.journal.path.read_bytes()
    trader.bar([100.0, 10.0])
    assert reader.refresh().decision is not None
    trader.journal.path.write_bytes(first)
    assert (reader.refresh().decision, reader.damage) == (None, "")


@pytest.mark.parametrize("damage", [b'"n":3', b'"n":9'])
def test_what_came_before_damage_is_kept(trader, damage):
    trader.bar([100.0, 10.0])
    trader.bar([200.0, 10.0])
    text = trader.journal.path.read_bytes()
    trader.journal.path.write_bytes(text.replace(b'"n":4', damage))
    reader = Reader(trader.journal.path)
    for _ in range(2):
        story = reader.refresh()
        assert "line 5 is damaged" in reader.damage
        assert (story.close["BTC"], len(story.curves.bar_s)) == (200.0, 1)


@pytest.mark.parametrize(("name", "value"), [("equity", "much"), ("qty", [1.0, 2.0, 3.0]), ("bar_s", None)])
def test_a_field_of_another_kind_is_damage(trader, name, value):
    trader.bar([100.0, 10.0])
    lines = trader.journal.path.read_bytes().splitlines(keepends=True)
    line = json.loads(lines[-1]) | {name: value}
    trader.journal.path.write_bytes(b"".join([*lines[:-1], encoded(line)]))
    reader = Reader(trader.journal.path)
    for _ in range(2):
        story = reader.refresh()
        assert "journal line 3, decision" in reader.damage
        assert len(story.curves.bar_s) <= 1


def test_an_event_of_a_later_version_is_passed_over(trader):
    trader.journal.append("weather", sun=True)
    trader.bar([100.0, 10.0])
    assert read(trader).decision is not None


# --------------------------------------------------------------------------------------------------------------- events
def test_orders_from_intent_to_end(trader):
    trader.bar([100.0, 10.0])
    trader.bar([100.0, 10.0], {}, [Sent("BTC", 2.0), Sent("ETH", 3.0, status="partial", filled=0.5, mid=1.01)])
    trader.bar([100.0, 10.0])
    trader.bar([100.0, 10.0], {}, [Sent("ETH", -1.0, status="rejected", reason="no \x1b[31mcoins")])
    story = read(trader)
    assert [(o.ticker, o.side, o.status, float(o.filled_qty)) for o in story.orders] == [
        ("BTC", "buy", "filled", 2.0), ("ETH", "buy", "partial", 1.5), ("ETH", "sell", "rejected", 0.0)
    ]  # fmt: skip
    assert story.orders[-1].reason == "no coins"
    assert [o.side for o in story.last_orders()] == ["sell"]
    # fees of the batch by notional: 0.25 % each
    assert story.orders[0].fee == pytest.approx(2.0 * 100.05 * 0.0025)
    assert story.orders[1].fee == pytest.approx(1.5 * 10.005 * 0.0025)


def test_a_fee_in_coins_is_worth_the_close(trader):
    trader.bar([100.0, 10.0])
    trader.bar([100.0, 10.0], {}, [Sent("BTC", 2.0), Sent("ETH", 3.0)], account=False)
    trader.journal.append("account", bar_s=trader.bar_s, cash="0", qty={}, fee_cash="0.4", fee_qty={"BTC": "0.005"},
                          foreign={}, explained=False, notes=["cash: -1 that no order explains"])  # fmt: skip
    story = read(trader)
    assert [o.fee for o in story.orders] == pytest.approx([0.5, 0.4])
    assert [note.text for note in story.foreign] == ["cash: -1 that no order explains"]


def test_limits_are_used_as_the_trader_counts(trader):
    for _ in range(2):
        trader.bar([100.0, 10.0])
    trader.bar([100.0, 10.0], {}, [Sent("BTC", 10.0)])
    trader.bar([104.0, 10.0], {}, [Sent("BTC", -5.0), Sent("ETH", 20.0, status="rejected"), Sent("ETH", 10.0)])
    trader.refuse("ETH", "beyond --max-order-weight")
    equity = read(trader).decision.equity
    uses = read(trader).uses()
    assert uses["max_order_weight"] == pytest.approx(200.0 / equity)
    assert uses["max_bar_turnover"] == pytest.approx((520.0 + 200.0 + 100.0) / equity)
    assert uses["max_day_turnover"] == pytest.approx((1000.0 + 520.0 + 200.0 + 100.0) / equity)
    assert uses["max_position_weight"] == pytest.approx(5.0 * 104.0 / equity)
    assert uses["max_price_move"] == pytest.approx(0.04)
    assert uses["max_rejects"] == 1.0
    assert uses["max_drift"] == pytest.approx(abs(equity / 10_000.0 - 1.0))


def test_a_new_day_begins_without_turnover(trader):
    trader.bar_s = FIRST_S + 86_400 - BAR_SECONDS
    trader.bar([100.0, 10.0], {}, [Sent("BTC", 10.0)])
    trader.bar([100.0, 10.0])
    story = read(trader)
    assert story.uses()["max_day_turnover"] == 0.0
    assert len(story.orders_of(date(2025, 11, 30))) == 1


def test_bars_without_orders_are_counted_by_why(trader):
    trader.bar([100.0, 10.0])
    trader.bar_s += 4 * BAR_SECONDS
    trader.bar([100.0, 10.0], skip="4 bars were missed; nothing is caught up")
    trader.bar([100.0, 10.0], skip="the bar came 75 s after its close, more than 60 s")
    trader.bar([100.0, 10.0], skip="the bar came 80.5 s after its close, more than 60 s")
    story = read(trader)
    assert +story.skipped == {
        NOT_SEEN: 4, "N bars were missed; nothing is caught up": 1,
        "the bar came N s after its close, more than N s": 2,
    }  # fmt: skip
    assert story.last_skip.text.startswith("the bar came 80.5 s")


def test_states_deployments_strangers_and_the_end(trader):
    trader.bar([100.0, 10.0])
    append = trader.journal.append
    append("state", **{"from": "ACTIVE", "to": "HALTED", "why": "the file HALT is there"})
    append("deployment", **{"from": "dep-1", "to": "dep-2", "bar_s": trader.bar_s})
    append("deployment", **{"from": "dep-2", "refused": "dep-3", "why": "other coins"})
    append("foreign", what="coin", text="5 XRP")
    append("drift", bar_s=trader.bar_s, ratio=-0.06, bound=0.05)
    append("stop", why="HALTED: the file HALT is there", code=5)
    story = read(trader)
    assert (story.state, story.why, story.deployment) == ("HALTED", "the file HALT is there", "dep-2")
    assert [note.text for note in story.deployments] == [
        "dep-1 was replaced by dep-2", "keeping dep-2: dep-3 was refused, other coins"
    ]  # fmt: skip
    assert [note.text for note in (*story.foreign, *story.drifts, story.ended)] == [
        "5 XRP", "-6.00% from the simulator, limit 5.00%", "HALTED: the file HALT is there (exit code 5)"
    ]  # fmt: skip
    append("start", **trader.content | {"resumed": True})
    story = read(trader)
    assert (story.ended, story.n_starts, len(story.curves.bar_s)) == (None, 2, 1)
    append("start", **trader.content)
    assert (read(trader).n_starts, read(trader).decision) == (3, None)
