"""Faults of a venue, one by one, against a real server: what happens, and that the books stay the venue's."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from market.errors import UserError
from market.sources.assets import Keys
from paper_trading import flatten
from paper_trading.alpaca_venue import AlpacaBroker
from paper_trading.broker import UnreachableError, VenueError, answered, order_id
from paper_trading.desk import WATCH_S, Desk, _intent_of
from paper_trading.journal import Journal, JournalError, lines, read
from paper_trading.risk import Used
from paper_trading.trader import Trader
from paper_trading.trader_memory import recall
from paper_trading.trader_program import take_for_ours
from tests.support.alpaca_stand_in import StandIn
from tests.support.trading_crash import Crasher
from tests.support.trading_world import FREE, QUICK, STEP_S, TradingWorld, make_deployment

ORDERS, ONE_ORDER = {"method": "POST", "path": "/v2/orders"}, {"method": "GET", "path": "by_client_order_id"}


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with StandIn() as process:
        yield process


@pytest.fixture
def world(tmp_path: Path, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> TradingWorld:
    monkeypatch.setattr("paper_trading.alpaca_venue.PATIENCE", QUICK)
    monkeypatch.setattr("paper_trading.alpaca_venue.QUOTE_PATIENCE", QUICK)
    return TradingWorld(tmp_path, server, n_bars=60)


@pytest.fixture
def trader(world: TradingWorld) -> Trader:
    """At its first bar, with nothing bought."""
    return begun(world)


def begun(world: TradingWorld, **settings) -> Trader:
    trader = world.trader(**settings)
    world.play(trader, 1)
    return trader


def restarted(world: TradingWorld, **settings) -> Trader:
    """At the bar where the one before it ended."""
    trader = world.trader(**settings)
    trader.begin()
    return trader


def order(world: TradingWorld, trader: Trader, n_bars: int = 1, **actions: float) -> list[dict]:
    """Play bars; at the first of them these actions are executed. The order events since."""
    n_before = len(world.events("order"))
    trader.pending = np.array([actions.get(ticker, 0.0) for ticker in world.tickers], np.float32)
    world.play(trader, 1)
    for _ in range(n_bars - 1):
        idle(world, trader)
    return world.events("order")[n_before:]


def idle(world: TradingWorld, trader: Trader, n_bars: int = 1) -> None:
    for _ in range(n_bars):
        trader.pending = np.zeros(len(world.tickers), np.float32)
        world.play(trader, 1)


def held(world: TradingWorld, ticker: str = "BTC") -> Decimal:
    """Coins at the venue."""
    return Decimal(world.server.state()["positions"].get(f"{ticker}/USD", {}).get("qty", "0"))


def owned(trader: Trader, ticker: str = "BTC") -> Decimal:
    assert trader.ledger is not None
    return trader.ledger.qty[ticker]


def next_open(world: TradingWorld) -> int:
    """Open time of the bar that closes next."""
    return int(world.clock.local_s()) // STEP_S * STEP_S


def keys(world: TradingWorld) -> Keys:
    return Keys(key_id=world.server.key, secret=world.server.secret)


def texts(world: TradingWorld, *kinds: str) -> str:
    return "\n".join(str(event) for event in world.events(*kinds))


# ------------------------------------------------------------------------------------------------- an order's answer
@pytest.mark.parametrize("kind", ["drop_before", "hang_before", "html", "500", "503"])
def test_an_order_that_did_not_arrive_is_not_sent_again(world, trader, kind):
    world.server.control("fault", kind=kind, wall_s=0.4, **ORDERS)
    (ended,) = order(world, trader, BTC=0.3)
    assert ended["status"] == "not_arrived"
    idle(world, trader, 2)
    assert world.server.state()["orders"] == []
    assert trader.state == "ACTIVE"
    world.check_books()
    world.check_fees()


@pytest.mark.parametrize("kind", ["drop_after", "hang_after", "truncate", "500"])
def test_an_order_whose_answer_is_lost_is_looked_up_by_its_id(world, trader, kind):
    world.server.control("fault", kind=kind, wall_s=0.4, processed=True, **ORDERS)
    (ended,) = order(world, trader, BTC=0.3)
    assert ended["status"] == "filled"
    assert len(world.server.state()["orders"]) == 1
    world.check_books()
    world.check_fees()


def test_an_order_whose_answer_and_look_ups_are_lost_is_found_at_the_next_bar(world, trader):
    world.server.control("fault", kind="drop_after", **ORDERS)
    world.server.control("fault", kind="drop_before", times=500, path="by_client_order_id")
    (ended,) = order(world, trader, BTC=0.3)
    assert ended["status"] == "unknown"
    assert owned(trader) == 0
    world.server.control("clear_faults")
    idle(world, trader)
    assert owned(trader) == held(world) > 0
    assert trader.state == "ACTIVE"
    world.check_books()
    world.check_fees()


def test_a_429_to_an_order_is_a_refusal_and_costs_the_bar(world, trader):
    world.server.control("fault", kind="429", **ORDERS)
    (ended,) = order(world, trader, BTC=0.3)
    assert ended["status"] == "rejected"
    assert "429" in ended["reason"]
    assert world.server.state()["orders"] == []
    (again,) = order(world, trader, BTC=0.3)
    assert again["status"] == "filled"
    world.check_books()


@pytest.mark.parametrize(("kind", "words"), [("insufficient", "insufficient balance"), ("minimum", "minimal amount")])
def test_both_meanings_of_40310000_are_refusals_that_the_journal_tells_apart(world, trader, kind, words):
    world.server.control("fault", kind=kind)
    ended = order(world, trader, BTC=0.3, ETH=0.3)
    assert [each["status"] for each in ended] == ["rejected", "filled"]
    assert words in ended[0]["reason"]
    assert "40310000" in ended[0]["reason"]
    assert trader.state == "ACTIVE"
    world.check_books()


def test_a_refused_sale_leaves_the_coins_where_they_are(world, trader):
    order(world, trader, BTC=0.3)
    before = owned(trader)
    world.server.control("fault", kind="insufficient")
    (ended,) = order(world, trader, BTC=-1.0)
    assert ended["status"] == "rejected"
    assert owned(trader) == before == held(world)
    (again,) = order(world, trader, BTC=-1.0)
    assert again["status"] == "filled"
    assert held(world) == 0
    world.check_books()


def test_refusals_in_a_row_end_in_reducing(world):
    trader = begun(world, limits=replace(FREE, max_rejects=3))
    world.server.control("fault", kind="minimum", times=3)
    order(world, trader, BTC=0.3, ETH=0.3, LTC=0.3)
    assert trader.state == "REDUCING"
    assert "3 consecutive orders" in trader.why


@pytest.mark.parametrize(
    "path", ["/v2/account", "/v2/positions", "/v2/orders?", "by_client_order_id", "/latest/quotes"]
)
def test_a_question_that_fails_while_orders_are_under_way_leaves_the_books_right(world, trader, path):
    for kind in ("drop_before", "hang_before", "429", "truncate"):
        for skip in (0, 1):
            world.server.control("fault", kind=kind, times=3, skip=skip, wall_s=0.25, method="GET", path=path)
        world.server.control("plan", kind="delayed", gets=3)
        order(world, trader, BTC=0.2, ETH=-0.2)
        world.server.control("clear_faults")
        order(world, trader, BTC=-0.2, ETH=0.2)
        assert trader.state == "ACTIVE", trader.why
        world.check_books()
    idle(world, trader)
    world.check_books()
    world.check_fees()


def test_nothing_is_bought_while_it_is_unknown_what_the_sales_brought(world, trader):
    order(world, trader, ETH=0.3)
    world.server.control(
        "fault", kind="500", times=2, skip=1, path="/v2/account"
    )  # that before the bar's orders goes well
    ended = order(world, trader, BTC=0.3, ETH=-1.0)
    assert [each["side"] for each in ended] == ["sell"]
    assert "the proceeds of the sales are unknown" in texts(world, "skip")
    assert trader.state == "ACTIVE"
    idle(world, trader)
    world.check_books()


def test_no_order_is_sent_at_a_bar_before_which_the_venue_did_not_answer(world, trader):
    world.server.control("fault", kind="503", times=2, path="/v2/account")
    assert order(world, trader, BTC=0.3) == []
    assert "did not report the account" in texts(world, "skip")


# ------------------------------------------------------------------------------------------------- an order's life
def test_an_order_that_arrives_late_is_ours_and_is_counted(world, trader):
    world.server.control("fault", kind="late", after_s=400)
    (ended,) = order(world, trader, BTC=0.3)
    assert ended["status"] == "not_arrived"
    idle(world, trader, 2)
    assert held(world) == owned(trader) > 0
    assert trader.state == "ACTIVE"
    world.check_books()
    world.check_fees()


def test_an_order_that_arrives_after_it_was_given_up_is_not_traded_on(world, trader):
    world.server.control("fault", kind="late", after_s=WATCH_S + 1500)
    order(world, trader, BTC=0.3)
    idle(world, trader, 13)
    assert world.events("order")[-1]["status"] == "canceled"
    assert "no longer looked up" in world.events("order")[-1]["reason"]
    idle(world, trader, 6)
    assert held(world) > 0
    assert owned(trader) == 0
    assert trader.state == "REDUCING"


def test_a_sale_of_unknown_fate_does_not_sell_coins_of_others_when_it_arrives(world):
    world.server.control("position", symbol="BTC/USD", qty=5)
    trader = begun(world)
    order(world, trader, BTC=0.3)
    world.server.control("fault", kind="late", after_s=700)
    (ended,) = order(world, trader, BTC=-1.0)
    assert ended["status"] == "not_arrived"
    assert order(world, trader, BTC=-1.0) == []
    idle(world, trader, 2)
    assert owned(trader) == 0
    assert held(world) == 5
    world.check_own_coins()
    world.check_books()


@pytest.mark.parametrize(
    ("kind", "status"),
    [("partial_then_cancel", "partial"), ("partial_then_rest", "filled"), ("stuck", "canceled"),
     ("rejected", "rejected"), ("expired", "canceled"), ("delayed", "filled")],
)  # fmt: skip
def test_every_life_of_an_order_ends_in_the_journal_as_at_the_venue(world, trader, kind, status):
    world.server.control("plan", kind=kind, gets=3)
    (ended,) = order(world, trader, BTC=0.3)
    assert ended["status"] == status
    idle(world, trader)
    assert trader.state == "ACTIVE"
    assert owned(trader) == held(world)
    world.check_books()
    world.check_fees()


def test_an_order_that_cannot_be_cancelled_is_followed_over_bars_and_its_parts_are_counted(world, trader):
    world.server.control("plan", steps=[{"do": "fill", "fraction": 0.25}, {"do": "fill", "after_s": 500}])
    world.server.control("fault", kind="not_cancelable", times=10)
    (ended,) = order(world, trader, BTC=0.3)
    assert ended["status"] == "unknown"
    assert owned(trader) == held(world) > 0  # the part
    part = held(world)
    idle(world, trader, 2)
    assert owned(trader) == held(world) > 3 * part
    assert world.events("order")[-1]["status"] == "filled"
    assert trader.desk.open_orders == []
    world.check_books()
    world.check_fees(is_averaged=True)


def test_an_open_order_is_cancelled_after_a_restart(world, trader):
    world.server.control("plan", kind="stuck")
    world.server.control("fault", kind="not_cancelable", times=2)
    order(world, trader, BTC=0.3)
    assert world.server.state()["orders"][0]["status"] == "new"
    restarted(world)  # at the same bar: nothing is waited for
    assert world.server.state()["orders"][0]["status"] == "canceled"
    assert world.events("order")[-1]["status"] == "canceled"


def test_fills_between_the_look_up_and_the_snapshot_are_waited_for(world, trader):
    world.server.control("plan", steps=[{"do": "fill", "fraction": 0.25}, {"do": "fill", "gets": 47}])
    world.server.control("fault", kind="not_cancelable", times=10)
    order(world, trader, BTC=0.3)
    idle(world, trader)
    assert trader.state == "ACTIVE"
    assert world.events("foreign") == []
    world.check_books()


def test_a_position_is_sold_to_whole_increments_and_the_rest_is_kept(world):
    world.server.control("asset", symbol="LTC/USD", min_trade_increment="0.001", min_order_size="0.001")
    trader = begun(world)
    order(world, trader, LTC=0.3)
    (ended,) = order(world, trader, LTC=-1.0)
    assert ended["status"] == "filled"
    assert 0 < owned(trader, "LTC") < Decimal("0.001")
    assert order(world, trader, LTC=-1.0) == []
    world.check_books()


# ------------------------------------------------------------------------------------------------- the kill switch
def test_flattening_without_a_trader_sells_what_no_reconciliation_has_taken_in(world, trader):
    order(world, trader, ETH=0.3)
    world.server.control("fault", kind="drop_after", **ORDERS)
    world.server.control("fault", kind="drop_before", times=500, path="by_client_order_id")
    order(world, trader, BTC=0.3)
    world.server.control("clear_faults")
    bare = Desk(trader.broker, trader.journal, world.clock.now_s, world.clock.advance, 5.0)
    known, _ = flatten.owned_by_journal(world.journal_path)
    assert known["BTC"] == 0
    owned = flatten.with_open_orders(bare, world.journal_path, known)
    assert flatten.flatten_until_sold(bare, owned, "a test", 10.0) == {}
    assert held(world) == held(world, "ETH") == 0
    world.check_own_coins()
    idle(world, restarted(world))
    world.check_books()


def test_flattening_sells_whole_increments_and_tries_again_where_a_sale_was_refused(world):
    world.server.control("asset", symbol="LTC/USD", min_trade_increment="0.001", min_order_size="0.001")
    trader = begun(world)
    order(world, trader, LTC=0.3, BTC=0.3)
    world.server.control("fault", kind="insufficient")
    assert flatten.flatten_until_sold(trader.desk, trader.ledger.qty, "a test", 10.0) == {}
    assert [e["status"] for e in world.events("order")][-3:] == ["rejected", "filled", "filled"]
    assert 0 < held(world, "LTC") < Decimal("0.001")


def test_flattening_says_what_it_could_not_sell(world):
    trader = begun(world)
    order(world, trader, LTC=0.3, BTC=0.3)
    world.server.control("fault", kind="insufficient", times=500)
    left = flatten.flatten_until_sold(trader.desk, trader.ledger.qty, "a test", 0.0)
    assert left == {ticker: trader.ledger.qty[ticker] for ticker in ("BTC", "LTC")}
    assert flatten.listed({"BTC": Decimal("0.5"), "ETH": Decimal(3)}) == "0.5 BTC, 3 ETH"


def test_nothing_is_sent_after_a_halt_that_comes_between_two_orders(world):
    trader = begun(world)
    order(world, trader, BTC=0.5)
    calls = iter([None, "a halt"])
    trader.desk.must_stop = lambda: next(calls, "a halt")
    sold, *rest = order(world, trader, BTC=-0.5, ETH=0.3, LTC=0.3)
    assert sold["status"] == "filled"
    assert {each["status"] for each in rest} <= {"canceled"}
    assert held(world, "ETH") == held(world, "LTC") == 0
    world.check_books()


def test_a_refusal_of_keys_that_passes_costs_a_bar(world, trader):
    secret, trader.broker._client._secret_key = trader.broker._client._secret_key, "another"
    idle(world, trader, 2)
    trader.broker._client._secret_key = secret
    order(world, trader, BTC=0.3)
    assert held(world) > 0
    world.check_books()


# ------------------------------------------------------------------------------------------------- other hands
def test_an_order_with_the_id_of_an_intent_that_was_refused_is_not_ours(world, trader, monkeypatch):
    """Another machine trades the same deployment: equal ids are harmless, and the other hand is noticed."""
    name = order_id(world.deployment.name, "BTC", next_open(world) + STEP_S, "buy")

    def other_hand() -> dict:  # after the reconciliation, before ours is sent
        world.server.control("foreign_order", symbol="BTC/USD", side="buy", qty="0.001", client_order_id=name)
        return {}

    monkeypatch.setattr(trader.desk, "_mids", other_hand)
    (ended,) = order(world, trader, BTC=0.3)
    assert ended["status"] == "rejected"
    assert "unique" in ended["reason"]
    assert owned(trader) == 0
    assert held(world) > 0
    assert trader.state == "REDUCING"
    assert "another barwise trader uses this account" in trader.why
    assert order(world, restarted(world), BTC=-1.0) == []


def test_an_open_order_that_bears_our_mark_and_is_not_ours_is_another_trader(world, trader):
    world.server.control("foreign_order", symbol="BTC/USD", side="buy", qty="0.001", steps=[],
                         client_order_id=order_id("another", "BTC", 0, "buy"))  # fmt: skip
    idle(world, trader)
    assert trader.state == "REDUCING"
    assert "another barwise trader uses this account" in trader.why


def test_two_traders_with_one_account_both_go_to_reducing(tmp_path, world, trader):
    order(world, trader, BTC=0.3)
    world.journal_path = tmp_path / "elsewhere.jsonl"
    second = world.trader()
    second.begin()
    world.play(second, 1)
    order(world, second, ETH=0.3)
    idle(world, trader)
    assert trader.state == "REDUCING"
    assert "another barwise trader uses this account" in trader.why
    order(world, trader, BTC=-1.0)
    idle(world, second)
    assert second.state == "REDUCING"
    world.check_own_coins()


def test_foreign_orders_in_our_coins_are_named_and_counted_out_once(world, trader):
    order(world, trader, BTC=0.3)
    mine = owned(trader)
    for n in (1, 2):
        world.server.control("foreign_order", symbol="BTC/USD", side="buy", qty="0.01")
        order(world, trader, ETH=0.1)
        assert trader.state == "ACTIVE", trader.why
        assert trader.ledger.foreign_qty["BTC"] == n * Decimal("0.009975")
    assert owned(trader) == mine
    assert "foreign order: buy 0.01 BTC" in texts(world, "foreign")
    world.check_books()


def test_a_foreign_order_in_the_coin_and_bar_of_ours_shares_the_fee(world, trader):
    world.server.control("set", fee_rate="0.001")  # another one than was trained with
    world.server.control("foreign_order", symbol="BTC/USD", side="buy", qty="0.01", steps=[{"do": "fill", "gets": 4}])
    (ended,) = order(world, trader, BTC=0.3)
    assert trader.ledger.foreign_qty["BTC"] > 0
    idle(world, trader)
    assert trader.state == "ACTIVE"
    assert abs(owned(trader) - Decimal(ended["filled_qty"]) * Decimal("0.999")) <= Decimal("2e-9")
    world.check_books()


def test_a_foreign_order_that_fills_after_days_is_still_known(world, trader):
    slow = [{"do": "fill", "fraction": 0.5}, {"do": "fill", "after_s": 3000}]
    world.server.control("foreign_order", symbol="BTC/USD", side="buy", qty="0.01", steps=slow)
    idle(world, trader, 5)
    trader = world.trader()
    world.play(trader, 8)
    assert trader.state == "ACTIVE", trader.why
    assert trader.ledger.foreign_qty["BTC"] == Decimal("0.009975")
    world.check_books()


def test_foreign_fills_during_an_absence_are_explained(world, trader):
    order(world, trader, BTC=0.3)
    for _ in range(3):
        world.server.control("foreign_order", symbol="BTC/USD", side="buy", qty="0.01")
        world.clock.advance(STEP_S)
    trader = world.trader()
    world.play(trader, 2)
    assert trader.state == "ACTIVE", trader.why
    assert trader.ledger.foreign_qty["BTC"] == 3 * Decimal("0.009975")
    world.check_books()


def test_orders_before_the_start_are_no_news(world):
    world.server.control("foreign_order", symbol="BTC/USD", side="buy", qty="0.01")
    trader = begun(world)
    world.server.control("foreign_order", symbol="BTC/USD", side="sell", qty="0.009")
    idle(world, trader)
    assert trader.state == "ACTIVE", trader.why
    assert trader.ledger.foreign_qty["BTC"] == Decimal("0.000975")


def test_somebody_who_sells_our_coins_is_noticed(world, trader):
    order(world, trader, BTC=0.3)
    world.server.control("foreign_order", symbol="BTC/USD", side="sell", qty="0.01")
    idle(world, trader)
    assert trader.state == "REDUCING"
    assert "of the trader's coins were sold" in trader.why
    world.check_books()


def test_a_foreign_coin_is_named_and_left_alone(world, trader):
    world.server.control("position", symbol="SHIB/USD", qty=1000, avg_entry_price=1)
    idle(world, trader, 2)
    assert trader.state == "ACTIVE"
    assert texts(world, "foreign").count("SHIB") == 1
    assert world.events("account")[-1]["foreign"]["other"] == {"SHIBUSD": "1000"}
    world.server.control("position", symbol="SHIB/USD", qty=0)
    idle(world, trader)
    assert "no longer in the account" in texts(world, "foreign")


@pytest.mark.parametrize("amount", [250, -250])
def test_cash_that_comes_or_goes_is_counted_out_and_nothing_more_is_bought(world, trader, amount):
    order(world, trader, BTC=0.3)
    before = trader.ledger.cash
    world.server.control("cash", amount=amount)
    idle(world, trader)
    assert trader.state == "REDUCING"
    assert f"{amount:+d} not explained by any order" in trader.why
    assert trader.ledger.cash == min(before, before + amount)
    assert order(world, trader, ETH=0.3) == []
    assert [each["side"] for each in order(world, trader, ETH=0.3, BTC=-1.0)] == ["sell"]
    world.check_books()


def test_coins_from_nowhere_are_neither_sold_nor_added_to(world, trader):
    order(world, trader, BTC=0.3)
    mine = held(world)
    world.server.control("position", symbol="BTC/USD", qty=mine + 3)
    idle(world, trader)
    assert trader.state == "REDUCING"
    order(world, trader, BTC=-1.0)
    assert held(world) == 3
    assert order(world, trader, BTC=-1.0) == []
    assert order(world, trader, BTC=0.3) == []
    world.check_books()
    world.check_own_coins()


def test_adopting_takes_in_what_every_order_filled_until_then(world, trader):
    world.server.control("foreign_order", symbol="BTC/USD", side="buy", qty="0.01")
    world.server.control("fault", kind="drop_after", **ORDERS)
    world.server.control("fault", kind="drop_before", times=500, path="by_client_order_id")
    order(world, trader, BTC=0.3)  # bought, and nobody knows
    world.server.control("clear_faults")
    world.server.control("foreign_order", symbol="BTC/USD", side="sell", qty="0.002")
    again = world.trader()
    take_for_ours(again.desk, again.memory)
    assert again.memory.ledger.qty["BTC"] == held(world)
    started = world.trader()
    started.begin()
    assert started.state == "ACTIVE", started.why
    assert owned(started) == held(world)
    world.check_books()


def test_coins_that_vanish_are_noticed(world, trader):
    order(world, trader, BTC=0.3)
    world.server.control("position", symbol="BTC/USD", qty=held(world) / 2)
    idle(world, trader)
    assert trader.state == "REDUCING"
    world.check_books()


def test_a_kill_between_the_account_and_its_state_does_not_lose_the_state(world, trader):
    world.server.control("cash", amount=250)
    restarted(world)
    kinds = [event["event"] for event in world.events()]
    unexplained = max(n for n, event in enumerate(world.events()) if event["event"] == "account")
    assert kinds[unexplained + 1] == "state"
    text = world.journal_path.read_text().splitlines(keepends=True)
    world.journal_path.write_text("".join(text[: unexplained + 1]))
    assert world.trader().state == "REDUCING"


# ------------------------------------------------------------------------------------------------- coins
def test_a_coin_that_is_delisted_is_said_and_left_alone_and_the_others_go_on(world, trader):
    order(world, trader, BTC=0.3, LTC=0.3)
    world.server.control("asset", symbol="LTC/USD", tradable=False)
    ended = order(world, trader, LTC=-1.0, ETH=0.3)
    assert [(each["ticker"], each["status"]) for each in ended] == [("LTC", "rejected"), ("ETH", "filled")]
    ended = order(world, trader, LTC=-1.0, BTC=-1.0)
    assert [each["ticker"] for each in ended] == ["BTC"]
    assert "LTC cannot be traded at the venue now" in texts(world, "foreign")
    again = begun(world)
    assert again.listing.closed == ("LTC",)
    assert owned(again, "LTC") == held(world, "LTC") > 0
    world.server.control("asset", symbol="LTC/USD", tradable=True)
    assert [each["ticker"] for each in order(world, again, LTC=-1.0)] == ["LTC"]
    assert "LTC can be traded again" in texts(world, "foreign")
    world.check_books()


def test_a_restart_with_other_coins_is_refused_while_ours_are_held(world, trader):
    order(world, trader, BTC=0.3)
    whole, world.deployment = world.deployment, make_deployment(world.root / "others", ("ETH", "LTC"))
    with pytest.raises(UserError, match="BTC, which others does not trade; sell them with --flatten"):
        world.trader()
    world.deployment = whole
    order(world, restarted(world), BTC=-1.0)
    world.deployment, world.tickers = make_deployment(world.root / "others", ("ETH", "LTC")), ("ETH", "LTC")
    trader = begun(world)
    (ended,) = order(world, trader, ETH=0.3)
    assert ended["status"] == "filled"


# ------------------------------------------------------------------------------------------------- bars
def test_a_late_bar_is_waited_for(world, trader):
    world.server.control("late_bar", symbol="ETH/USD", time=next_open(world), seconds=12)
    (ended,) = order(world, trader, BTC=0.3)
    bar = world.events("bar")[-1]
    assert 12 <= bar["late_s"] < 20
    assert bar["filled"] == [False, False, False]
    assert ended["status"] == "filled"


def test_a_bar_that_is_too_late_stands_in_as_untraded(world, trader):
    world.server.control("late_bar", symbol="ETH/USD", time=next_open(world), seconds=45)
    order(world, trader, BTC=0.3)
    bar = world.events("bar")[-1]
    assert bar["filled"] == [False, True, False]
    assert "ETH: no bar" in str(bar["notes"])
    idle(world, trader)
    assert world.events("bar")[-1]["filled"] == [False, False, False]
    assert trader.state == "ACTIVE"


def test_bars_of_all_coins_that_come_very_late_are_not_traded_on(world, trader):
    for ticker in world.tickers:
        world.server.control("late_bar", symbol=f"{ticker}/USD", time=next_open(world), seconds=100)
    assert order(world, trader, BTC=0.3) == []
    assert "after its close; the limit is 60 s" in texts(world, "skip")


@pytest.mark.parametrize("n_missing", [1, 3, 4])
def test_a_coin_without_bars_is_filled_for_three_bars_and_then_breaks_the_series(world, trader, n_missing):
    for n in range(n_missing):
        world.server.control("missing_bar", symbol="ETH/USD", time=next_open(world) + n * STEP_S)
    order(world, trader, BTC=0.3)
    idle(world, trader, n_missing - 1)
    assert ("warming up" in texts(world, "skip")) == (n_missing > 3)
    assert trader.state == "ACTIVE"
    world.check_books()


@pytest.mark.parametrize(("n_missing", "warms_up"), [(1, False), (3, False), (5, True)])
def test_bars_that_no_coin_has_cost_those_bars_and_many_of_them_the_warm_up(world, trader, n_missing, warms_up):
    order(world, trader, BTC=0.3)
    gap(world, n_missing)
    world.clock.advance(n_missing * STEP_S)
    world.play(trader, 1)
    assert f"{n_missing} bars were missed; their orders are not sent later" in texts(world, "skip")
    idle(world, trader)
    assert ("warming up" in texts(world, "skip")) == warms_up
    assert len(order(world, trader, BTC=-1.0)) == (0 if warms_up else 1)
    assert trader.state == "ACTIVE"
    world.check_books()


def gap(world: TradingWorld, n_bars: int) -> None:
    """The next bars are missing."""
    for n in range(n_bars):
        for ticker in world.tickers:
            world.server.control("missing_bar", symbol=f"{ticker}/USD", time=next_open(world) + n * STEP_S)


def test_a_gap_of_a_day_does_nothing_and_says_so(tmp_path, server, monkeypatch):
    monkeypatch.setattr("paper_trading.alpaca_venue.PATIENCE", QUICK)
    world = TradingWorld(tmp_path, server, ("BTC", "ETH"), n_bars=320)
    trader = begun(world)
    order(world, trader, BTC=0.3)
    gap(world, 288)
    n_orders = len(world.events("order"))
    world.clock.advance(288 * STEP_S)
    world.play(trader, 5)
    assert len(world.events("order")) == n_orders
    whys = [event["why"] for event in world.events("skip")]
    assert any("288 bars were missed" in why for why in whys)
    assert sum("warming up: 1 of 3 bars" in why for why in whys) == 5
    assert trader.state == "ACTIVE"
    world.check_books()


def test_bars_of_an_absence_are_fetched_and_trading_goes_on_at_the_next_bar(world, trader):
    order(world, trader, BTC=0.3)
    world.clock.advance(10 * STEP_S)
    world.play(trader, 1)
    assert "9 bars were missed; their orders are not sent later" in texts(world, "skip")
    assert "warming up" not in texts(world, "skip")
    (ended,) = order(world, trader, BTC=-1.0)
    assert ended["status"] == "filled"
    world.check_books()


def test_doubled_rows_change_nothing(world, trader):
    plain = TradingWorld(world.root / "plain", world.server, n_bars=60)
    first = plain.trader()
    plain.play(first, 5)
    doubled = TradingWorld(world.root / "doubled", world.server, n_bars=60)
    doubled.server.control("fault", kind="duplicate_rows", times=50)
    second = doubled.trader()
    doubled.play(second, 5)
    hashes = [[event["observation_sha256"] for event in each.events("decision")] for each in (plain, doubled)]
    assert hashes[0] == hashes[1]
    assert all(event["notes"] == [] for event in doubled.events("bar"))


def test_a_revised_bar_is_noted(world, trader):
    row = next(row for row in world.rows["BTC/USD"] if row[0] == next_open(world))
    world.server.control("revised_bar", symbol="BTC/USD", time=row[0], first={"c": row[3]}, after_s=60)
    idle(world, trader, 2)
    notes = world.events("bar")[-1]["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("BTC: the bar of ")
    assert "was revised" in notes[0]


def test_the_open_bar_is_never_used(world, trader):
    world.server.control("set", show_open_bar=True)
    world.clock.advance(100)
    idle(world, trader, 2)
    for event in world.events("bar")[1:]:
        row = next(row for row in world.rows["BTC/USD"] if row[0] == event["bar_s"] - STEP_S)
        assert event["close"][0] == row[4]
        assert event["late_s"] >= 0
    assert all(event["notes"] == [] for event in world.events("bar"))


@pytest.mark.parametrize("skew_s", [-90, 90])
def test_a_skewed_clock_trades_no_bar_early_or_twice(world, trader, skew_s):
    world.server.control("set", date_skew_s=skew_s)
    for _ in range(4):
        order(world, trader, BTC=0.1)
        truth = world.clock.local_s()
        assert trader.bar_s <= truth
    bars = [event["bar_s"] for event in world.events("bar")]
    assert bars == sorted(set(bars))
    orders = world.server.state()["orders"]
    assert len({each["client_order_id"] for each in orders}) == len(orders)
    world.server.control("set", date_skew_s=0)
    idle(world, trader, 2)
    world.check_books()
    assert trader.state == "ACTIVE"


def test_this_machines_clock_may_be_wrong(world, trader):
    world.clock._now_s -= 90
    world.play(trader, 2)
    last = world.events("bar")[-1]
    assert last["late_s"] < 10


# ------------------------------------------------------------------------------------------------- the venue away
def test_a_venue_that_is_away_for_several_bars_costs_those_bars(world, trader):
    order(world, trader, BTC=0.3)
    world.server.control("fault", kind="drop_before", times=8)
    began = world.clock.local_s()

    def tick() -> None:
        if STEP_S <= world.clock.local_s() - began < 2 * STEP_S:
            world.clock.advance(STEP_S)

    trader.pending = np.array([0.0, 0.3, 0.0], np.float32)
    trader.on_bar(trader.feed.next(trader.bar_s, tick))
    assert "bars were missed" in texts(world, "skip")
    world.server.control("clear_faults")
    (ended,) = order(world, trader, BTC=-1.0)
    assert ended["status"] == "filled"
    assert trader.state == "ACTIVE"
    world.check_books()


def test_a_venue_that_is_away_at_the_start_is_waited_for_and_that_is_said(world, caplog):
    trader = world.trader()
    world.server.control("fault", kind="503", times=30)
    with caplog.at_level(logging.WARNING):
        trader.begin()
    said = [record.message for record in caplog.records if "retrying" in record.message]
    assert len(said) == 1
    world.play(trader, 2)
    assert trader.account is not None


def test_a_broker_is_made_as_soon_as_the_venue_answers(world, caplog):
    world.server.control("fault", kind="503", times=7)
    pauses = []
    with caplog.at_level(logging.WARNING):
        broker = answered(
            lambda: AlpacaBroker(keys(world), world.tickers, world.server.url, world.server.url, False, world.clock),
            lambda seconds, _: pauses.append(seconds),
        )
    assert broker.account.startswith("paper-")
    assert pauses == [1.0, 1.0, 1.0]
    assert caplog.text.count("; retrying") == 1


def test_a_signal_ends_the_waiting_at_the_start(world):
    trader = world.trader()
    world.server.control("fault", kind="503", times=10**6)

    def stop() -> None:
        raise KeyboardInterrupt

    trader.hooks = replace(trader.hooks, tick=stop)
    with pytest.raises(KeyboardInterrupt):
        trader.begin()


def test_a_takeover_that_finds_no_bars_waits_for_the_next_bar(world, trader):
    renewed = make_deployment(world.root / "renewed", world.tickers, seed=5)
    trader.hooks = replace(trader.hooks, renewed=lambda present: None if present == renewed.name else renewed)
    arrival = trader.feed.next(trader.bar_s, trader._tick)
    world.server.control("fault", kind="503", times=2, path="/bars")
    trader.on_bar(arrival)
    assert trader.deployment.name == world.deployment.name
    world.play(trader, 1)
    assert trader.deployment.name == renewed.name
    assert trader.account is not None


def test_keys_that_are_revoked_end_the_trader_with_one_line(world, trader):
    order(world, trader, BTC=0.3)
    trader.broker._client._secret_key = "another"
    trader.pending = np.array([0.0, 0.3, 0.0], np.float32)
    with pytest.raises(VenueError, match="rejected the API keys") as raised:
        world.play(trader, 8)
    assert "\n" not in str(raised.value)
    assert "another" not in str(raised.value)
    again = world.trader()
    world.play(again, 1)
    world.check_books()


@pytest.mark.parametrize("path", ["/v2/account", "/v2/positions", "/v2/orders?", "/v2/assets", "by_client_order_id"])
def test_an_answer_of_another_form_is_no_answer(world, monkeypatch, path):
    broker = AlpacaBroker(
        keys(world),
        world.tickers,
        world.server.url,
        world.server.url,
        False,
        world.clock,
    )
    monkeypatch.setattr(broker._client, "_one_request", lambda *_: {"message": "maintenance"})
    ask = {"/v2/orders?": lambda: broker.orders_after(0.0), "/v2/assets": broker.rules,
           "by_client_order_id": lambda: broker.find("x")}.get(path, broker.snapshot)  # fmt: skip
    with pytest.raises(UnreachableError):
        ask()


# ------------------------------------------------------------------------------------------------- states, the disk
@pytest.mark.parametrize("state", ["REDUCING", "HALTED"])
def test_a_state_outlives_a_restart_and_only_a_person_lifts_it(world, trader, state):
    order(world, trader, BTC=0.3)
    trader.change_state(state, "a test")
    again = restarted(world)
    assert (again.state, again.why) == (state, "a test")
    assert order(world, again, ETH=0.3) == []
    assert [each["side"] for each in order(world, again, BTC=-1.0)] == ([] if state == "HALTED" else ["sell"])
    lifted = restarted(world)
    lifted.resume("a person")
    assert [each["side"] for each in order(world, lifted, ETH=0.3)] == ["buy"]
    world.check_books()


def test_halted_sends_nothing_where_orders_are_sent_at_once(world):
    trader = begun(world, sends_at_once=True)
    world.play(trader, 6)
    assert owned(trader, "BTC") + owned(trader, "ETH") + owned(trader, "LTC") > 0
    world.halts.append("the file")
    n_orders = len(world.server.state()["orders"])
    world.play(trader, 10)
    assert trader.state == "HALTED"
    assert len(world.server.state()["orders"]) == n_orders


def test_halt_stops_the_bar_that_it_comes_before(world, trader):
    world.halts.append("the file HALT is there")
    assert order(world, trader, BTC=0.3) == []
    assert trader.state == "HALTED"
    world.halts.clear()
    assert order(world, trader, BTC=0.3) == []
    assert world.events("state")[-1]["why"] == "the file HALT is there"


def test_a_drawdown_that_was_looked_at_does_not_halt_again_at_once(world):
    limits = replace(FREE, max_drawdown=1e-9)
    trader = begun(world, limits=limits)
    order(world, trader, 1, BTC=0.3)  # the fee
    assert trader.state == "HALTED"
    assert "the drawdown of" in trader.why
    world.trader(limits=limits).resume("a person")  # and a kill before the next bar
    lifted = restarted(world, limits=limits)
    lifted.mandate.hold(lifted.bar_s, lifted.account.account, lifted.shadow.account.account.equity, 0.0)
    assert lifted.state == "ACTIVE"
    assert lifted.mandate.peak == lifted.account.account.equity < lifted.account.account.peak
    order(world, lifted, ETH=0.3)
    again = restarted(world, limits=limits)
    assert (again.state, again.mandate.peak) == (lifted.state, lifted.mandate.peak)


@pytest.mark.parametrize("at", range(9))
def test_a_full_disk_stops_before_an_order_without_an_intent_and_the_books_recover(world, at):
    begun(world)
    disk = Crasher(error=lambda: OSError(errno.ENOSPC, "No space left on device", "journal.jsonl"), only="append")
    trader = restarted(world, wrap=disk.wrap)
    disk.at = len(disk.calls) + at

    def orders_until_it_is_full() -> None:
        for _ in range(3):
            order(world, trader, BTC=0.3, ETH=-0.5)
            order(world, trader, BTC=-0.3, ETH=0.5)

    with pytest.raises(OSError, match="No space left"):
        orders_until_it_is_full()
    written = {each["id"] for event in world.events("intents") for each in event["orders"]}
    assert {each["client_order_id"] for each in world.server.state()["orders"]} <= written
    again = world.trader()
    world.play(again, 2)
    assert again.state == "ACTIVE"
    world.check_books()
    world.check_fees()


def test_a_torn_last_line_goes_and_the_rest_is_gone_by(world, trader):
    order(world, trader, BTC=0.3)
    whole = read(world.journal_path)
    with world.journal_path.open("ab") as file:
        file.write(b'{"n": 99, "utc": "20')
    again = world.trader()
    assert read(world.journal_path)[: len(whole)] == whole
    world.play(again, 2)
    world.check_books()


def test_a_damaged_journal_is_refused_with_its_line(world, trader):
    order(world, trader, BTC=0.3)
    text = world.journal_path.read_text().splitlines(keepends=True)
    text[3] = text[3].replace("0", "1", 1)
    world.journal_path.write_text("".join(text))
    with pytest.raises(JournalError, match="line 4 is damaged"):
        world.trader()


def test_an_intent_is_sent_once_even_if_it_is_asked_for_twice(world, trader):
    order(world, trader, BTC=0.3)
    intent = next(iter(trader.desk.tracked.values()), None)
    assert intent is None  # over and counted
    (sent,) = [each for event in world.events("intents") for each in event["orders"]]
    desk = Desk(trader.broker, Journal(world.root / "other.jsonl"), world.clock.now_s, world.clock.advance, 5.0)
    recall(lines(world.journal_path), desk, Used())
    assert desk.trade(sent_bar(world), "buys", [_intent_of(sent, sent_bar(world))]) == []


def sent_bar(world: TradingWorld) -> int:
    return world.events("intents")[-1]["bar_s"]


def test_fees_so_far_outlive_a_kill(world, trader):
    order(world, trader, BTC=0.3)
    idle(world, trader)
    order(world, trader, ETH=0.3)
    text = world.journal_path.read_text().splitlines(keepends=True)
    assert [event["event"] for event in world.events()][-2:] == ["account", "decision"]
    world.journal_path.write_text("".join(text[:-1]))  # a kill before the decision
    again = world.trader()
    assert again.fees == pytest.approx(trader.fees, rel=1e-9)
    assert again.fees > 0


def test_a_venue_that_takes_no_fee_is_no_drift(tmp_path, server):
    world = TradingWorld(tmp_path, server, n_bars=40, fee_rate="0")
    trader = world.trader(limits=replace(FREE, max_drift=0.004))
    world.play(trader, 35)
    last = world.events("decision")[-1]
    assert last["fees_spared"] > 0.004 * last["equity"]  # more than the bound
    assert last["equity"] > last["sim_equity"] * 1.004
    assert trader.state == "ACTIVE"
    world.check_books()
    assert world.trader().fees_spared == last["fees_spared"]


def test_a_venue_that_takes_more_than_the_fee_is_drift(tmp_path, server):
    world = TradingWorld(tmp_path, server, n_bars=40, fee_rate="0.0049")
    trader = world.trader(limits=replace(FREE, max_drift=0.004))
    world.play(trader, 35)
    assert trader.state == "REDUCING"
    assert "from the simulator exceeds --max-drift" in trader.why
